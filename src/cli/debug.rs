//! `minutely debug`: which messages are known, where they go, and what handles them.

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::output::{self, Format, FormatArg};
use super::{App, End, Result};

#[derive(clap::Args)]
#[command(after_help = r"Example:
  minutely debug 'App\Message\SendEmail'")]
pub(super) struct Args {
    /// One message type: where would it go, and what would handle it?
    #[arg(value_name = "TYPE")]
    message_type: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// What is known of a type or wildcard.
#[derive(Default)]
struct Entry {
    transports: Vec<String>,
    handlers: Vec<String>,
}

pub(super) fn run(app: &App, args: &Args) -> Result<End> {
    let entries = match &args.message_type {
        Some(message_type) => IndexMap::from([(message_type.clone(), one(app, message_type))]),
        None => all(app),
    };
    if args.format.format == Format::Json {
        let messages: Vec<Value> = entries
            .iter()
            .map(|(name, entry)| json!({ "type": name, "transports": entry.transports, "handlers": entry.handlers }))
            .collect();
        output::json(&json!({ "messages": messages }))?;
        return Ok(End::Well);
    }
    if entries.is_empty() {
        output::line("Neither routing nor handlers name any message.");
        return Ok(End::Well);
    }
    let rows = entries.into_iter().map(|(name, entry)| {
        let transports =
            if entry.transports.is_empty() { "handled at once".into() } else { entry.transports.join(", ") };
        let handlers = if entry.handlers.is_empty() { "none here".into() } else { entry.handlers.join("\n") };
        vec![name, transports, handlers]
    });
    output::table(&["type", "goes to", "handled by"], 0..0, rows);
    Ok(End::Well)
}

fn one(app: &App, message_type: &str) -> Entry {
    let handlers = app.handlers.for_type(message_type, &[]);
    Entry {
        transports: app.routing.transports(message_type, &[]),
        handlers: handlers.iter().map(|handler| handler.name().to_owned()).collect(),
    }
}

/// Everything that routing or handlers name. A wildcard's own entry shows what is said of the wildcard itself.
fn all(app: &App) -> IndexMap<String, Entry> {
    let mut entries: IndexMap<String, Entry> = IndexMap::new();
    for name in app.routing.patterns().chain(app.handlers.iter().map(|(pattern, _)| pattern)) {
        entries.entry(name.to_owned()).or_default();
    }
    for (name, entry) in &mut entries {
        *entry = if name.contains('*') { exactly(app, name) } else { one(app, name) };
    }
    entries
}

fn exactly(app: &App, pattern: &str) -> Entry {
    let of_pattern = app.handlers.iter().filter(|(name, _)| *name == pattern);
    Entry {
        transports: app.routing.exactly(pattern).to_vec(),
        handlers: of_pattern.flat_map(|(_, handlers)| handlers.iter().map(|one| one.name().to_owned())).collect(),
    }
}

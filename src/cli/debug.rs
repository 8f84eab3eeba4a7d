//! `minutely debug`: which messages are known, where they go, and what handles them; and what the scheduled jobs do.

use std::fmt;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::output::{self, Format, FormatArg};
use super::{App, End, Result};
use crate::handler::HandlerOptions;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = r"Example:
  minutely debug 'App\Message\SendEmail'")]
pub(super) struct Args {
    /// Show only this message type [default: all known types]
    #[arg(value_name = "TYPE")]
    message_type: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// The routing and handlers of a type or wildcard.
#[derive(Default)]
struct Entry {
    interfaces: Vec<String>,
    transports: Vec<String>,
    /// In the order in which they are called.
    handlers: Vec<Called>,
}

/// A handler, and when it is called.
struct Called {
    name: String,
    options: HandlerOptions,
}

impl Called {
    fn as_json(&self) -> Value {
        let HandlerOptions { from_transports, priority, bus, .. } = &self.options;
        json!({ "handler": self.name, "from_transport": from_transports, "priority": priority, "bus": bus })
    }
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HandlerOptions { from_transports, priority, bus, .. } = &self.options;
        let bus = bus.as_ref().map(|bus| format!("on {bus}"));
        let from = (!from_transports.is_empty()).then(|| format!("from {}", from_transports.join(", ")));
        let priority = (*priority != 0).then(|| format!("priority {priority}"));
        let when: Vec<String> = from.into_iter().chain(bus).chain(priority).collect();
        f.write_str(&self.name)?;
        if when.is_empty() { Ok(()) } else { write!(f, " ({})", when.join("; ")) }
    }
}

pub(super) fn run(app: &App, args: &Args) -> Result<End> {
    // Asked for a message, it shows no jobs.
    let jobs = if args.message_type.is_none() { &app.jobs[..] } else { &[] };
    let entries = match &args.message_type {
        Some(message_type) => IndexMap::from([(message_type.clone(), one(app, message_type))]),
        None => all(app),
    };
    if args.format.format == Format::Json {
        let messages: Vec<Value> = entries
            .iter()
            .map(|(name, Entry { interfaces, transports, handlers })| {
                let names: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
                let options: Vec<Value> = handlers.iter().map(Called::as_json).collect();
                json!({
                    "type": name,
                    "interfaces": interfaces,
                    "transports": transports,
                    "handlers": names,
                    "handler_options": options,
                })
            })
            .collect();
        let jobs: Vec<Value> = jobs
            .iter()
            .map(|job| {
                let does = job.config.action.to_string();
                json!({ "name": job.name(), "schedule": job.config.schedule, "does": does })
            })
            .collect();
        output::json(&json!({ "messages": messages, "jobs": jobs }))?;
        return Ok(End::Well);
    }
    if entries.is_empty() {
        output::line("Routing and handlers name no message.");
    } else {
        print_messages(entries);
    }
    if !jobs.is_empty() {
        output::line("");
        let rows =
            jobs.iter().map(|job| vec![job.name().to_owned(), job.schedule.to_string(), job.config.action.to_string()]);
        output::table(&["job", "when", "what it does"], 0..0, rows);
    }
    Ok(End::Well)
}

fn print_messages(entries: IndexMap<String, Entry>) {
    let rows = entries.into_iter().map(|(name, entry)| {
        let transports =
            if entry.transports.is_empty() { "handled at once".into() } else { entry.transports.join(", ") };
        let handlers: Vec<String> = entry.handlers.iter().map(Called::to_string).collect();
        let handlers = if handlers.is_empty() { "none here".into() } else { handlers.join("\n") };
        vec![[vec![name], entry.interfaces].concat().join("\n  "), transports, handlers]
    });
    output::table(&["type", "goes to", "handled by"], 0..0, rows);
}

fn one(app: &App, message_type: &str) -> Entry {
    let handlers = app.handlers.for_type(message_type, &[]).into_iter();
    let interfaces = app.handlers.interfaces(message_type, &[]);
    Entry {
        transports: app.routing.transports(message_type, &interfaces),
        interfaces: interfaces.into_iter().map(str::to_owned).collect(),
        handlers: handlers
            .map(|found| Called { name: found.handler.name().to_owned(), options: found.options.clone() })
            .collect(),
    }
}

/// Every type and wildcard that routing, handlers or interfaces name. A wildcard's entry applies to messages that nothing
/// more specific matches.
fn all(app: &App) -> IndexMap<String, Entry> {
    let handled = app.handlers.iter().map(|(pattern, _)| pattern);
    let names = app.routing.patterns().chain(handled).chain(app.handlers.known_types());
    names.map(|name| (name.to_owned(), one(app, name))).collect()
}

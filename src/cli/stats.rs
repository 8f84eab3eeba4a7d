//! `minutely stats`: how many messages wait.

use serde_json::{Map, Value, json};

use super::counts::{Known, count, is_failure_transport};
use super::output::{self, Format, FormatArg};
use super::status::{queues, shown};
use super::{App, End, Result, chosen};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Pending messages are due now, delayed ones later. On a failure transport, the delayed messages are those that failed \
there too: they are parked for a day. `minutely consume` on that transport tries all of them again. An auto-fallback \
transport is shown with its target in brackets; the messages are the target's.")]
pub(super) struct Args {
    /// The transports; all if none is named
    #[arg(value_name = "TRANSPORT")]
    transports: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// What this command is called.
pub(super) const NAMES: &[&str] = &["stats", "messenger:stats"];

/// The names that one queue has, as `status` shows them, and its messages.
type Counted = (Vec<String>, Known);

/// `consume` is what to type for that command.
pub(super) async fn run(app: &App, args: &Args, consume: &str) -> Result<End> {
    let mut end = End::Well;
    let mut counts: Vec<Counted> = Vec::new();
    let mut uncountable = Vec::new();
    let chosen = chosen(app, &args.transports)?;
    for names in queues(app)? {
        if !names.iter().any(|name| chosen.contains(name)) {
            continue;
        }
        let transport = app.transports.target(&names[0])?;
        match transport.counting {
            None => uncountable.extend(names.into_iter().filter(|name| chosen.contains(name))),
            Some(_) => match count(app, transport.name()).await {
                Ok(count) => counts.push((names, count)),
                Err(error) => {
                    output::error(&error.to_string());
                    end = End::Failed;
                }
            },
        }
    }
    match args.format.format {
        Format::Json => output::json(&symfony_shape(app, &chosen, counts, uncountable))?,
        Format::Text => {
            let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
            output::table(
                &["transport", "pending", "delayed"],
                1..3,
                counts.iter().map(|(names, known)| vec![shown(names), number(known.pending), number(known.delayed)]),
            );
            for (names, known) in
                counts.iter().filter(|(names, known)| known.all() > 0 && is_failure_transport(app, &names[0]))
            {
                let (name, all, delayed) = (&names[0], known.all(), known.delayed.unwrap_or_default());
                output::line(format_args!(
                    "{name} keeps {all} that failed for good, {delayed} of them parked; `{consume} {name}` tries them \
                     again."
                ));
            }
            // What keeps no messages is no queue, and is told only who asks for it.
            uncountable.retain(|name| args.transports.contains(name) || keeps_messages(app, name));
            if !uncountable.is_empty() {
                output::line(format_args!("cannot be counted: {}", uncountable.join(", ")));
            }
        }
    }
    Ok(end)
}

/// What `messenger:stats --format=json` prints, and besides it how many are delayed, and how many a failure transport
/// keeps.
fn symfony_shape(app: &App, chosen: &[String], counts: Vec<Counted>, uncountable: Vec<String>) -> Value {
    let of_each = counts.into_iter().flat_map(|(names, known)| names.into_iter().map(move |name| (name, known)));
    let transports = of_each.filter(|(name, _)| chosen.contains(name)).map(|(name, known)| {
        let mut shape = json!({ "count": known.pending, "delayed": known.delayed });
        if is_failure_transport(app, &name) {
            shape["failed"] = known.all().into();
        }
        (name, shape)
    });
    let transports: Map<String, Value> = transports.collect();
    let mut shape = json!({ "transports": transports });
    if !uncountable.is_empty() {
        shape["uncountable_transports"] = uncountable.into();
    }
    shape
}

fn keeps_messages(app: &App, name: &str) -> bool {
    app.transports.target(name).is_ok_and(|transport| transport.receiver.is_some())
}

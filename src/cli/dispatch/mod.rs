//! `minutely dispatch`: send a message, or a stream of messages, and say what became of them.

mod lines;
mod ndjson;
mod report;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use super::output::{self, Format, FormatArg};
use super::signals::Signals;
use super::{App, End, Failure, Result};
use crate::app::{Outgoing, OutgoingError, dispatch_report};
use crate::bus::{Dispatched, HandlerResult};
use crate::config::parse_duration;
use crate::message::TraceContext;

#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = concat!(
        "The message goes where `routing` says, by its type. On an auto-fallback transport it is queued if something ",
        "consumes that transport, and otherwise handled at once, in this process.\n\n",
        "With --ndjson, each line of a file is a JSON object: `type` and, if needed, `body`, `delay` (seconds, or a text such ",
        "as \"5m\"), `transports`, `bus` and `stamps` (an object: the values of each class). What a line does not say, --delay, ",
        "--transport, --bus and --stamp may. Lines are dispatched in groups; those of a stream that pauses do not wait ",
        "for others. A line that is no message, or cannot be dispatched, ends the run, unless --keep-going is given; a ",
        "store that does not answer ends it in any case. A signal ends it after the current group. Exit code 0: all ",
        "lines were accepted. 1: some were not, or the run was ended before the end of the stream.\n\n",
        "--report FILE keeps on disk which lines were accepted. The same command goes on where it was, also after a ",
        "kill: at most one group of lines (4096) is dispatched twice, and lines that failed are tried again.\n\n",
        r#"Examples:
  minutely dispatch 'App\Message\SendEmail' '{"to":"ada@example.com"}'
  minutely dispatch 'App\Message\SendEmail' - < message.json
  minutely dispatch 'App\Message\SendEmail' '{}' --delay=5m --transport=prio_low --format=json
  minutely dispatch 'App\Query\CountOrders' '{"customer":7}' --bus=query.bus
  minutely dispatch 'App\Message\Report' '{}' --stamp='DeduplicateStamp={"key":"report"}'
  minutely dispatch --ndjson messages.ndjson --report messages.report
  my-export | minutely dispatch --ndjson - --transport=prio_low --keep-going"#
    )
)]
pub(super) struct Args {
    /// The message's type, as `routing` and `handlers` name it
    #[arg(value_name = "TYPE", required_unless_present = "ndjson", conflicts_with = "ndjson")]
    message_type: Option<String>,
    /// The message as JSON; `-` reads it from standard input
    #[arg(value_name = "JSON", default_value = "{}", allow_hyphen_values = true)]
    body: String,
    /// Deliver it no sooner than after this time: a number of seconds, or 500ms, 5s, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// Send it to this transport, whatever `routing` says; may be given more than once
    #[arg(long = "transport", value_name = "NAME")]
    transports: Vec<String>,
    /// Dispatch it on this bus [default: `default_bus`]
    #[arg(long, value_name = "NAME")]
    bus: Option<String>,
    /// Give it a stamp: a class, and its values as JSON; may be given more than once
    #[arg(long = "stamp", value_name = "CLASS={JSON}")]
    stamps: Vec<String>,
    /// Dispatch a message for each line of this file, or of standard input (`-`): a JSON object with `type` and `body`
    #[arg(long, value_name = "FILE")]
    ndjson: Option<PathBuf>,
    /// Write to this file which lines were accepted, and go on after those that it says
    #[arg(long, value_name = "FILE", requires = "ndjson")]
    report: Option<PathBuf>,
    /// Begin with this line, counted from 1
    #[arg(long, value_name = "N", requires = "ndjson", conflicts_with = "report", value_parser = clap::value_parser!(u64).range(1..))]
    from_line: Option<u64>,
    /// Go on after lines that are no messages, or cannot be dispatched
    #[arg(long, requires = "ndjson")]
    keep_going: bool,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    if let Some(path) = &args.ndjson {
        return ndjson::run(app, args, path).await;
    }
    let body = if args.body == "-" { read_stdin()? } else { args.body.clone() };
    let message = Outgoing {
        message_type: args.message_type.clone().unwrap_or_default(),
        body,
        delay: args.delay,
        transports: args.transports.clone(),
        bus: args.bus.clone(),
        stamps: args.stamps.iter().map(|text| stamp(text)).collect(),
        trace: TraceContext::of_process(),
    };
    let dispatch = app.dispatch_outgoing(message).map_err(|error| Failure::Usage(error.to_string()))?;
    let mut signals = Signals::listen()?;
    let dispatched = tokio::select! {
        dispatched = dispatch.into_future() => dispatched,
        // Takes along what a handler has started.
        () = signals.next() => return Err(Failure::Failed("interrupted; the message may have been handled in part".to_owned())),
    };
    // What was started for this message, and kept for another.
    app.handlers.worker_stopped().await;
    let dispatched = dispatched?;
    match args.format.format {
        Format::Text => print(&dispatched),
        Format::Json => output::json(&dispatch_report(&dispatched))?,
    }
    Ok(End::Well)
}

/// `DelayStamp={"delay":500}`; a class alone has no values.
fn stamp(text: &str) -> (String, String) {
    let (class, values) = text.split_once('=').unwrap_or((text, "{}"));
    (class.to_owned(), values.to_owned())
}

fn read_stdin() -> Result<String> {
    if std::io::stdin().is_terminal() {
        output::warning("reading the message from the terminal; Ctrl-D ends it");
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Failed(format!("standard input cannot be read: {error}")))?;
    let body = String::from_utf8(bytes)
        .map_err(|error| Failure::Usage(OutgoingError::NotJson(error.to_string()).to_string()))?;
    Ok(body.trim_end().to_owned())
}

fn print(dispatched: &Dispatched) {
    if dispatched.is_duplicate() {
        output::line(format_args!("not dispatched: a message with this key is pending"));
    }
    for stamp in dispatched.queued() {
        let why = stamp.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        output::line(format_args!("queued on {} as {}{why}", stamp.queued_on, stamp.id));
    }
    let handled = if dispatched.is_unhandled() { "not handled, there is no handler for it" } else { "handled now" };
    for stamp in dispatched.handled_now() {
        output::line(format_args!("{handled}: {}", stamp.reason));
    }
    for HandlerResult { handler, result, .. } in dispatched.results().into_iter().filter(|one| !one.result.is_null()) {
        output::line(format_args!("{handler} returned {result}"));
    }
}

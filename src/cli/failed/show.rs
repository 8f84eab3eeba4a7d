//! `minutely failed show`: the messages that failed for good.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde_json::{Map, Value, json};

use super::{App, Choice, End, Failed, Failures, Result, escaped, no_such_message, one_line};
use crate::cli::Failure;
use crate::cli::output::{self, Format, FormatArg};
use crate::message::{Envelope, ErrorDetailsStamp, RedeliveryStamp};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Shows the id of each message, its type, when it failed the last time, and why. With an ID: all that is known of this \
message and of each attempt to handle it; with -v also its body and headers. Nothing is changed.

AMQP has no ids, and delivers messages in their order only. There the ID is computed from the content, so equal messages \
share one, and a message that fails again gets another. To be shown, each message is received and put back behind the \
others; of more than 1000, those that were shown are the last ones after that. Messages that wait for a retry of the \
failure transport itself cannot be seen there until they are due.

Exit code 1 if there is no message with this ID.

Examples:
  minutely failed show --max=10
  minutely failed show --stats
  minutely failed show 20 -v")]
pub(in super::super) struct Args {
    /// The message
    #[arg(value_name = "ID", conflicts_with_all = ["max", "class_filter", "stats"])]
    id: Option<String>,
    /// How many messages to show at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    max: usize,
    /// Only messages of this type
    #[arg(long, value_name = "TYPE")]
    class_filter: Option<String>,
    /// Count the messages of each type
    #[arg(long, conflicts_with = "max")]
    stats: bool,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args, verbose: bool) -> Result<End> {
    let failures = Failures::choose(app, &args.choice)?;
    match &args.id {
        Some(id) => one(app, &failures, id, args.format.format, verbose).await,
        None => {
            let end = if args.stats { stats(&failures, args).await? } else { list(&failures, args).await? };
            if let Some(hidden) = failures.hides(app) {
                output::warning(&hidden);
            }
            Ok(end)
        }
    }
}

async fn list(failures: &Failures, args: &Args) -> Result<End> {
    let (mut rows, mut objects, mut more) = (Vec::new(), Vec::new(), false);
    failures
        .look(|failed| {
            if !failed.is_of(args.class_filter.as_ref()) {
                return ControlFlow::Continue(());
            }
            if rows.len().max(objects.len()) == args.max {
                more = true;
                return ControlFlow::Break(());
            }
            match args.format.format {
                Format::Json => objects.push(brief(&failed)),
                Format::Text => rows.push(vec![
                    escaped(&failed.id.0),
                    escaped(failed.class()),
                    failed.failed_at().as_deref().map_or("-".to_owned(), escaped),
                    failed.error().as_deref().map_or("-".to_owned(), one_line),
                ]),
            }
            ControlFlow::Continue(())
        })
        .await?;
    let name = &failures.name;
    if args.format.format == Format::Json {
        output::json(&json!({ "transport": name, "messages": objects, "more": more }))?;
        return Ok(End::Well);
    }
    if rows.is_empty() && !more {
        let of = args.class_filter.as_ref().map(|class| format!(" of type {}", escaped(class))).unwrap_or_default();
        output::line(format_args!("There are no messages{of} on {name}."));
        return Ok(End::Well);
    }
    output::table(&["id", "type", "failed at", "error"], 0..0, rows);
    if more {
        output::line(format_args!("{name} has more; --max shows them."));
    }
    Ok(End::Well)
}

fn brief(failed: &Failed) -> Value {
    json!({
        "id": failed.id.0, "class": failed.class(), "failed_at": failed.failed_at(), "error": failed.error(),
        "original_transport": failed.origin(), "in_flight": failed.in_flight,
    })
}

async fn stats(failures: &Failures, args: &Args) -> Result<End> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    failures
        .look(|failed| {
            if failed.is_of(args.class_filter.as_ref()) {
                *counts.entry(failed.class().to_owned()).or_default() += 1;
            }
            ControlFlow::Continue(())
        })
        .await?;
    match args.format.format {
        Format::Json => output::json(&json!({ "transport": failures.name, "types": counts }))?,
        Format::Text => {
            let rows = counts.iter().map(|(class, count)| vec![escaped(class), count.to_string()]);
            output::table(&["type", "count"], 1..2, rows);
        }
    }
    Ok(End::Well)
}

async fn one(app: &App, failures: &Failures, id: &str, format: Format, verbose: bool) -> Result<End> {
    let Some(failed) = failures.find(id).await? else {
        let mut text = no_such_message(failures, id);
        if failures.changes_ids(app) {
            text.push_str(
                "; on Redis a message has another id while it is retried and after that: `failed show` lists all",
            );
        }
        return Err(Failure::Failed(text));
    };
    match format {
        Format::Text => print(&failed, verbose),
        Format::Json => output::json(&whole(&failed))?,
    }
    Ok(End::Well)
}

/// An attempt to handle the message.
struct Attempt {
    at: String,
    /// `None` if it cannot be told any more which one it was.
    error: Option<ErrorDetailsStamp>,
}

/// The attempts that are recorded: of many, the first and the latest ones. Each has left its time; equal errors in a row
/// have left one.
fn attempts(redeliveries: Vec<RedeliveryStamp>, errors: &[ErrorDetailsStamp]) -> Vec<Attempt> {
    let (times, last) = (redeliveries.len(), redeliveries.len().saturating_sub(1));
    let error = |n: usize| match errors {
        [one] => Some(one.clone()),
        all if all.len() == times => all.get(n).cloned(),
        all if n == 0 => all.first().cloned(),
        all if n == last => all.last().cloned(),
        _ => None,
    };
    let attempt = |(n, stamp): (usize, RedeliveryStamp)| Attempt { at: stamp.redelivered_at, error: error(n) };
    redeliveries.into_iter().enumerate().map(attempt).collect()
}

fn body(failed: &Failed) -> Value {
    if failed.is_encrypted() {
        return "(encrypted)".into();
    }
    match failed.envelope.as_ref().map(|envelope| serde_json::from_slice(envelope.body())) {
        Some(Ok(body)) => body,
        _ => String::from_utf8_lossy(&failed.stored.body).into_owned().into(),
    }
}

fn headers(failed: &Failed) -> Map<String, Value> {
    let readable = failed.envelope.as_ref().filter(|_| !failed.is_encrypted());
    let headers = readable.map(Envelope::json_headers);
    let headers = headers.unwrap_or_else(|| failed.stored.headers.clone());
    headers.iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// Everything about a message, for programs.
fn whole(failed: &Failed) -> Value {
    let stamps = failed.stamps();
    let (redeliveries, errors) = (stamps.all::<RedeliveryStamp>(), stamps.all::<ErrorDetailsStamp>());
    let error = |stamp: &ErrorDetailsStamp| json!({ "class": stamp.exception_class, "code": stamp.exception_code, "message": stamp.exception_message });
    let mut shape = brief(failed);
    shape["retries"] = redeliveries.iter().map(|stamp| stamp.retry_count).max().unwrap_or(0).into();
    shape["encrypted"] = failed.is_encrypted().into();
    shape["unreadable"] = failed.unreadable.clone().into();
    shape["errors"] = errors.iter().map(error).collect();
    let attempts = attempts(redeliveries, &errors);
    shape["attempts"] = attempts
        .iter()
        .map(|attempt| json!({ "at": attempt.at, "error": attempt.error.as_ref().map(error) }))
        .collect();
    (shape["body"], shape["headers"]) = (body(failed), headers(failed).into());
    shape
}

/// Everything about a message, for people; its body and headers only if `verbose`.
pub(super) fn print(failed: &Failed, verbose: bool) {
    let stamps = failed.stamps();
    let (redeliveries, errors) = (stamps.all::<RedeliveryStamp>(), stamps.all::<ErrorDetailsStamp>());
    let retries = redeliveries.iter().map(|stamp| stamp.retry_count).max().unwrap_or(0);
    let none = || "-".to_owned();
    let last = errors.last();
    row("id", &escaped(&failed.id.0));
    row("type", &escaped(failed.class()));
    row("failed at", &failed.failed_at().unwrap_or_else(none));
    row("error", &failed.error().unwrap_or_else(none));
    row("error code", &last.map_or_else(none, |error| shown(&error.exception_code)));
    row("error class", &last.map_or_else(none, |error| escaped(&error.exception_class)));
    row("transport", &failed.origin().as_deref().map_or_else(none, escaped));
    row("retries", &retries.to_string());
    if failed.is_encrypted() {
        row("content", "encrypted in its queue; not shown");
    }
    if failed.in_flight {
        row("state", "it is being handled");
    }
    if let Some(why) = &failed.unreadable {
        row("unreadable", why);
    }
    let attempts = attempts(redeliveries, &errors);
    if !attempts.is_empty() {
        output::line("");
        output::line("Attempts (of many, the first and the latest):");
        for attempt in &attempts {
            let error = attempt.error.as_ref().map(|error| one_line(&error.exception_message));
            let error = error.unwrap_or_else(|| "unknown: one of the errors below".to_owned());
            output::line(format_args!("  {}  {error}", escaped(&attempt.at)).to_string().trim_end());
        }
    }
    if !errors.is_empty() {
        output::line("");
        output::line("Errors (equal ones in a row are kept once):");
        for error in &errors {
            let (class, code) = (escaped(&error.exception_class), escaped(&shown(&error.exception_code)));
            output::line(format_args!("  {class} ({code})"));
            lines(&error.exception_message);
        }
    }
    if verbose {
        let body = body(failed);
        output::line("");
        output::line("Body:");
        let pretty = if body.is_string() { None } else { serde_json::to_string_pretty(&body).ok() };
        lines(&pretty.unwrap_or_else(|| shown(&body)));
        output::line("");
        output::line("Headers:");
        for (name, value) in &headers(failed) {
            output::line(format_args!("  {}: {}", escaped(name), escaped(&shown(value))));
        }
    }
}

/// A text without its quotes, or any other value as JSON.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A line of the overview; a text of several lines is continued below.
fn row(name: &str, text: &str) {
    let mut name = name;
    for line in text.lines().chain(text.is_empty().then_some("")) {
        output::line(format_args!("{name:<12}  {}", escaped(line)));
        name = "";
    }
}

fn lines(text: &str) {
    for line in text.lines() {
        output::line(format_args!("    {}", escaped(line)));
    }
}

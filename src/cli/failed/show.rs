//! `minutely failed show`: the messages that failed for good.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{App, Choice, End, Failed, Failures, PAGE, Result, escaped, one_line};
use crate::cli::Failure;
use crate::cli::output::{self, Format, FormatArg};
use crate::message::{ErrorDetailsStamp, RedeliveryStamp};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Shows the id of each message, its type, when it failed the last time, and why. With an ID: all that is known of this \
message and of each attempt to handle it; with -v also its body and headers. Nothing is changed.

Exit code 1 if there is no message with this ID. AMQP brokers cannot show single messages.

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
        Some(id) => one(&failures, id, args.format.format, verbose).await,
        None if args.stats => stats(&failures, args).await,
        None => list(&failures, args).await,
    }
}

async fn list(failures: &Failures, args: &Args) -> Result<End> {
    let mut shown: Vec<Vec<String>> = Vec::new();
    let mut objects = Vec::new();
    let (mut after, mut more) = (None, false);
    'pages: loop {
        let page = failures.page(after.as_ref()).await?;
        after = page.last().map(|listed| listed.received.id.clone());
        let is_last = page.len() < PAGE;
        for failed in page.into_iter().map(Failed::new).filter(|failed| failed.is_of(args.class_filter.as_ref())) {
            if shown.len().max(objects.len()) == args.max {
                more = true;
                break 'pages;
            }
            match args.format.format {
                Format::Json => objects.push(brief(&failed)),
                Format::Text => shown.push(vec![
                    escaped(&failed.id.0),
                    escaped(failed.class()),
                    failed.failed_at().as_deref().map_or("-".to_owned(), escaped),
                    failed.error().as_deref().map_or("-".to_owned(), one_line),
                ]),
            }
        }
        if is_last {
            break;
        }
    }
    let name = &failures.name;
    if args.format.format == Format::Json {
        output::json(&json!({ "transport": name, "messages": objects, "more": more }))?;
        return Ok(End::Well);
    }
    if shown.is_empty() && !more {
        let of = args.class_filter.as_ref().map(|class| format!(" of type {}", escaped(class))).unwrap_or_default();
        output::line(format_args!("There are no messages{of} on {name}."));
        return Ok(End::Well);
    }
    output::table(&["id", "type", "failed at", "error"], 0..0, shown);
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
    let mut after = None;
    loop {
        let page = failures.page(after.as_ref()).await?;
        after = page.last().map(|listed| listed.received.id.clone());
        let is_last = page.len() < PAGE;
        for failed in page.into_iter().map(Failed::new).filter(|failed| failed.is_of(args.class_filter.as_ref())) {
            *counts.entry(failed.class().to_owned()).or_default() += 1;
        }
        if is_last {
            break;
        }
    }
    match args.format.format {
        Format::Json => output::json(&json!({ "transport": failures.name, "types": counts }))?,
        Format::Text => {
            let rows = counts.iter().map(|(class, count)| vec![escaped(class), count.to_string()]);
            output::table(&["type", "count"], 1..2, rows);
        }
    }
    Ok(End::Well)
}

async fn one(failures: &Failures, id: &str, format: Format, verbose: bool) -> Result<End> {
    let Some(listed) = failures.find(id).await? else {
        return Err(Failure::Failed(failures.no_such_message(id)));
    };
    let failed = Failed::new(listed);
    let stamps = failed.stamps();
    let (redeliveries, errors) = (stamps.all::<RedeliveryStamp>(), stamps.all::<ErrorDetailsStamp>());
    let retries = redeliveries.iter().map(|stamp| stamp.retry_count).max().unwrap_or(0);
    let body: Value = match failed.envelope.as_ref().map(|envelope| serde_json::from_slice(envelope.body())) {
        Some(Ok(body)) => body,
        _ => String::from_utf8_lossy(&failed.stored.body).into_owned().into(),
    };
    let headers =
        failed.envelope.as_ref().map_or_else(|| failed.stored.headers.clone(), |envelope| envelope.json_headers());
    let headers: Map<String, Value> = headers.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    if format == Format::Json {
        let mut shape = brief(&failed);
        shape["retries"] = retries.into();
        shape["unreadable"] = failed.unreadable.clone().into();
        shape["redelivered_at"] = redeliveries.iter().map(|stamp| stamp.redelivered_at.clone()).collect();
        let error = |stamp: &ErrorDetailsStamp| json!({ "class": stamp.exception_class, "code": stamp.exception_code, "message": stamp.exception_message });
        shape["errors"] = errors.iter().map(error).collect();
        (shape["body"], shape["headers"]) = (body, headers.into());
        output::json(&shape)?;
        return Ok(End::Well);
    }
    let none = || "-".to_owned();
    let last = errors.last();
    row("id", &failed.id.0);
    row("type", failed.class());
    row("failed at", &failed.failed_at().unwrap_or_else(none));
    row("error", &failed.error().unwrap_or_else(none));
    row("error code", &last.map_or_else(none, |error| shown(&error.exception_code)));
    row("error class", &last.map_or_else(none, |error| error.exception_class.clone()));
    row("transport", &failed.origin().unwrap_or_else(none));
    row("retries", &retries.to_string());
    if failed.in_flight {
        row("state", "a worker is handling it");
    }
    if let Some(why) = &failed.unreadable {
        row("unreadable", why);
    }
    if !redeliveries.is_empty() {
        output::line("");
        output::line("Sent again:");
        for stamp in &redeliveries {
            output::line(format_args!("  {}", escaped(&stamp.redelivered_at)));
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
        output::line("");
        output::line("Body:");
        let pretty = if body.is_string() { None } else { serde_json::to_string_pretty(&body).ok() };
        lines(&pretty.unwrap_or_else(|| shown(&body)));
        output::line("");
        output::line("Headers:");
        for (name, value) in &headers {
            output::line(format_args!("  {}: {}", escaped(name), escaped(&shown(value))));
        }
    }
    Ok(End::Well)
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

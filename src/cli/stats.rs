//! `minutely stats`: how many messages wait.

use serde_json::{Map, Value, json};

use super::counts::{Known, count, is_failure_transport};
use super::output::{self, Format, FormatArg};
use super::{App, End, Result, chosen};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Pending messages are due now, delayed ones later. On a failure transport, delayed messages are those that failed there \
too: they are parked for a day. `minutely consume` on that transport tries all of them again.")]
pub(super) struct Args {
    /// Which transports; all when none is named
    #[arg(value_name = "TRANSPORT")]
    transports: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let mut end = End::Well;
    let mut counts: Vec<(String, Known)> = Vec::new();
    let mut uncountable = Vec::new();
    for name in chosen(app, &args.transports)? {
        let transport = app.transports.target(&name)?;
        match transport.counting {
            None => uncountable.push(name),
            Some(_) => match count(app, &name).await {
                Ok(count) => counts.push((name, count)),
                Err(error) => {
                    output::error(&error.to_string());
                    end = End::Failed;
                }
            },
        }
    }
    match args.format.format {
        Format::Json => output::json(&symfony_shape(app, counts, uncountable))?,
        Format::Text => {
            let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
            output::table(
                &["transport", "pending", "delayed"],
                1..3,
                counts.iter().map(|(name, known)| vec![name.clone(), number(known.pending), number(known.delayed)]),
            );
            for (name, known) in
                counts.iter().filter(|(name, known)| known.all() > 0 && is_failure_transport(app, name))
            {
                let (all, delayed) = (known.all(), known.delayed.unwrap_or_default());
                output::line(format_args!(
                    "{name} keeps {all} that failed for good, {delayed} of them parked; `minutely consume {name}` tries \
                     them again."
                ));
            }
            if !uncountable.is_empty() {
                output::line(format_args!("cannot be counted: {}", uncountable.join(", ")));
            }
        }
    }
    Ok(end)
}

/// What `messenger:stats --format=json` prints, and besides it how many are delayed, and how many a failure transport
/// keeps.
fn symfony_shape(app: &App, counts: Vec<(String, Known)>, uncountable: Vec<String>) -> Value {
    let transports = counts.into_iter().map(|(name, known)| {
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

//! `minutely stats`: how many messages wait.

use serde_json::{Map, Value, json};

use super::output::{self, Format, FormatArg};
use super::{App, End, Result, chosen};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Which transports; all when none is named
    #[arg(value_name = "TRANSPORT")]
    transports: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let mut end = End::Well;
    let mut counts: Vec<(String, u64)> = Vec::new();
    let mut uncountable = Vec::new();
    for name in chosen(app, &args.transports)? {
        let transport = app.transports.get(&name)?;
        match transport.counting() {
            None => uncountable.push(name),
            Some(counting) => match counting.pending(u64::MAX).await {
                Ok(count) => counts.push((name, count)),
                Err(error) => {
                    output::error(&error.to_string());
                    end = End::Failed;
                }
            },
        }
    }
    match args.format.format {
        Format::Json => output::json(&symfony_shape(counts, uncountable))?,
        Format::Text => {
            output::table(
                &["transport", "pending"],
                1..2,
                counts.iter().map(|(name, n)| vec![name.clone(), n.to_string()]),
            );
            if !uncountable.is_empty() {
                output::line(format_args!("cannot be counted: {}", uncountable.join(", ")));
            }
        }
    }
    Ok(end)
}

/// What `messenger:stats --format=json` prints.
fn symfony_shape(counts: Vec<(String, u64)>, uncountable: Vec<String>) -> Value {
    let transports: Map<String, Value> =
        counts.into_iter().map(|(name, count)| (name, json!({ "count": count }))).collect();
    let mut shape = json!({ "transports": transports });
    if !uncountable.is_empty() {
        shape["uncountable_transports"] = uncountable.into();
    }
    shape
}

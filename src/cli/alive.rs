//! `minutely alive`: is a transport being consumed? Is cron at work?

use serde_json::json;

use super::cron::heartbeat::cron_status;
use super::output::{self, Format, FormatArg};
use super::status::is_running;
use super::{App, End, Result, known};

/// The name of cron itself. A transport of this name comes first.
const CRON: &str = "cron";

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Exit code 0: the transport is being consumed, and an auto-fallback transport queues messages. 1: it is not.

For health checks and scripts:
  minutely alive prio_high -q || echo 'nobody consumes prio_high'

`minutely alive cron` tells whether cron is running: whether `minutely cron` or `minutely supervise` was seen within \
the last 70 seconds, on any host that shares the cache. If not, it tells when that was last the case, within the \
last day.")]
pub(super) struct Args {
    /// The transport to check, or `cron`
    #[arg(value_name = "TRANSPORT")]
    transport: String,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    if args.transport == CRON && !app.config.transports.contains_key(CRON) {
        return cron(app, args.format.format).await;
    }
    known(app, &args.transport)?;
    let running = is_running(app, &args.transport).await?;
    match args.format.format {
        Format::Json => output::json(&json!({ "transport": args.transport, "running": running }))?,
        Format::Text => {
            output::line(format_args!("{} is {}running", args.transport, if running { "" } else { "not " }));
        }
    }
    Ok(if running { End::Well } else { End::Failed })
}

async fn cron(app: &App, format: Format) -> Result<End> {
    let status = cron_status(app).await?;
    match format {
        Format::Json => output::json(&status)?,
        Format::Text => status.lines().iter().for_each(output::line),
    }
    Ok(if status.running { End::Well } else { End::Failed })
}

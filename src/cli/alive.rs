//! `minutely alive`: is a transport being consumed?

use serde_json::json;

use super::output::{self, Format, FormatArg};
use super::status::is_running;
use super::{App, End, Result, known};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Exit code 0: the transport is running, and an auto-fallback transport queues. 1: it is not running. For health checks and \
scripts:
  minutely alive prio_high -q || echo 'nobody consumes prio_high'")]
pub(super) struct Args {
    /// The transport to check
    #[arg(value_name = "TRANSPORT")]
    transport: String,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
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

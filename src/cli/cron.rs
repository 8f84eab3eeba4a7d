//! `minutely cron`: what cron starts every minute.

use super::output::{self, Format, FormatArg};
use super::signals::Signals;
use super::{App, End, Failure, Result};
use crate::app::explain;
use crate::supervisor::{Lifetime, Supervisor, SupervisorLock};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Looks at once, then every five seconds, and is gone at second 55 of the minute, before cron starts the next one. One that \
finds another one at work waits if that is about to end, and exits with 0 otherwise. One that is stuck (it has done nothing \
for two minutes) is reported, and replaced where that is safe. Prints nothing when all is well, except on a terminal; what \
happens is in the log under the state directory.

The crontab line:
  * * * * * cd /path/to/app && ./minutely cron")]
pub(super) struct Args {
    /// Show how many workers would be started, and why; start none
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let supervisor = supervisor(app)?;
    if args.dry_run {
        return dry_run(&supervisor, args.format.format).await;
    }
    let mut signals = Signals::listen()?;
    let lock = match at_work(app, &supervisor, Lifetime::UntilNextCron, &mut signals).await {
        Ok(lock) => lock,
        Err(end) => return Ok(end),
    };
    let failures = supervisor.cron(lock.remaining().unwrap_or_default(), signals.next(), explain).await;
    Ok(if failures.is_empty() { End::Well } else { End::Failed })
}

pub(super) fn supervisor(app: &App) -> Result<Supervisor> {
    app.supervisor_of_workers().map_err(|error| Failure::Failed(error.to_string()))
}

/// Becomes the supervisor. Or how the command ends, where there is nothing to do (another one is at work, or there are no
/// workers to keep), where nothing can be done, which is told, and at a signal.
pub(super) async fn at_work(
    app: &App,
    supervisor: &Supervisor,
    lifetime: Lifetime,
    signals: &mut Signals,
) -> std::result::Result<SupervisorLock, End> {
    if app.config.workers.is_empty() {
        tracing::info!("no workers are defined, so there is nothing to do");
        return Err(End::Well);
    }
    let lock = tokio::select! {
        lock = supervisor.lock(lifetime) => lock,
        () = signals.next() => return Err(End::Well),
    };
    match lock {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => {
            tracing::info!("another supervisor is at work");
            Err(End::Well)
        }
        // In the log as well: what cron mails is not always read.
        Err(error) => {
            tracing::error!("{error}");
            Err(End::Failed)
        }
    }
}

async fn dry_run(supervisor: &Supervisor, format: Format) -> Result<End> {
    let report = supervisor.dry_run().await;
    if format == Format::Json {
        output::json(&report.plan)?;
    } else if report.plan.workers.is_empty() {
        output::line("No workers are defined.");
    } else {
        let rows = report.plan.workers.into_iter().map(|planned| {
            let pending = planned.pending.map_or("?".to_owned(), |pending| pending.to_string());
            let running = planned.running.map_or("?".to_owned(), |running| running.to_string());
            let numbers = [planned.desired, planned.start].map(|number| number.to_string());
            [vec![planned.name, pending, running], numbers.to_vec(), vec![planned.reason]].concat()
        });
        output::table(&["worker", "pending", "running", "desired", "start", "why"], 1..5, rows);
    }
    Ok(End::Well)
}

//! `minutely cron`: what cron starts every minute.

use super::output::{self, Format, FormatArg};
use super::signals::Signals;
use super::{App, End, Result, worker_program};
use crate::supervisor::{Supervisor, SupervisorLock, TickReport};

#[derive(clap::Args)]
#[command(after_help = "\
Looks at once, then every five seconds, and is gone after 55 seconds. One that finds another one at work exits with 0 at
once. Prints nothing when all is well, except on a terminal; what happens is in the log under the state directory.

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
    let Some(_lock) = at_work(app, &supervisor).await? else { return Ok(End::Well) };
    let failures = supervisor.cron(signals.next(), tell).await;
    Ok(if failures.is_empty() { End::Well } else { End::Failed })
}

pub(super) fn supervisor(app: &App) -> Result<Supervisor> {
    let program = worker_program(&app.config.file)?;
    Ok(Supervisor::new(&app.config, program, app.transports.clone(), &app.cache))
}

/// Becomes the supervisor; none when there is nothing to do: another one is at work, or there are no workers to keep.
pub(super) async fn at_work(app: &App, supervisor: &Supervisor) -> Result<Option<SupervisorLock>> {
    if app.config.workers.is_empty() {
        tracing::info!("no workers are defined, so there is nothing to do");
        return Ok(None);
    }
    let lock = supervisor.lock().await?;
    if lock.is_none() {
        tracing::info!("another supervisor is at work");
    }
    Ok(lock)
}

/// Says why workers were started. That they were, and what failed, is told already.
pub(super) fn tell(report: &TickReport) {
    for planned in report.plan.workers.iter().filter(|planned| planned.start > 0) {
        tracing::info!("{}: {}", planned.name, planned.reason);
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

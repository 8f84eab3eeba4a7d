//! `minutely cron`: what cron starts every minute.

use super::output::{self, Format, FormatArg};
use super::signals::Signals;
use super::{App, End, Failure, Result, worker_program};
use crate::supervisor::{CRON_RUN, Lock, Supervisor, TickReport, lock};

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
    let Some(_lock) = at_work(app)? else { return Ok(End::Well) };
    let mut outcome = Told::default();
    tokio::select! {
        () = supervisor.run(Some(CRON_RUN), |report| outcome.tell(report)) => {}
        () = signals.next() => tracing::info!("a signal came; the workers live on"),
    }
    supervisor.hand_over().await;
    Ok(if outcome.failed { End::Failed } else { End::Well })
}

pub(super) fn supervisor(app: &App) -> Result<Supervisor> {
    let program = worker_program(&app.config.file)?;
    Ok(Supervisor::new(&app.config, program, app.transports.clone(), app.heartbeats.clone()))
}

/// Becomes the supervisor; none when there is nothing to do: another one is at work, or there are no workers to keep.
pub(super) fn at_work(app: &App) -> Result<Option<Lock>> {
    if app.config.workers.is_empty() {
        tracing::info!("no workers are defined, so there is nothing to do");
        return Ok(None);
    }
    let state_dir = &app.config.state_dir;
    let held = lock(state_dir).map_err(|error| {
        Failure::Failed(format!("the state directory {} cannot be used: {error}", state_dir.display()))
    })?;
    if held.is_none() {
        tracing::info!("another supervisor is at work");
    }
    Ok(held)
}

async fn dry_run(supervisor: &Supervisor, format: Format) -> Result<End> {
    let plan = supervisor.dry_run().await;
    if format == Format::Json {
        output::json(&plan)?;
        return Ok(End::Well);
    }
    if plan.workers.is_empty() {
        output::line("No workers are defined.");
        return Ok(End::Well);
    }
    let rows = plan.workers.into_iter().map(|step| {
        let pending = step.pending.map_or("?".to_owned(), |pending| pending.to_string());
        let numbers = [step.running, step.desired, step.start].map(|number| number.to_string());
        [vec![step.name, pending], numbers.to_vec(), vec![step.reason]].concat()
    });
    output::table(&["worker", "pending", "running", "desired", "start", "why"], 1..5, rows);
    Ok(End::Well)
}

/// Tells of each tick what is worth it: what was started, and what is wrong, once for as long as it stays the same.
#[derive(Default)]
pub(super) struct Told {
    problems: Vec<String>,
    failed: bool,
}

impl Told {
    pub(super) fn tell(&mut self, report: TickReport) {
        for started in &report.started {
            let why = report.plan.workers.iter().find(|step| step.name == started.definition);
            tracing::info!(
                pid = started.pid,
                "started worker {} of {}: {}",
                started.slot,
                started.definition,
                why.map_or("", |step| &step.reason)
            );
        }
        for problem in report.problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::error!("{problem}");
        }
        self.failed |= !report.problems.is_empty();
        self.problems = report.problems;
    }
}

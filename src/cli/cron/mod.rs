//! `minutely cron`: what cron starts every minute. And `cron list`, `next` and `run`: the scheduled jobs.

pub(super) mod heartbeat;
mod list;
mod next;
mod run;

use std::future::Future;

use clap::Subcommand;
use serde::Serialize;

use super::arguments::own_arguments;
use super::output::{self, Format, FormatArg, age};
use super::signals::Signals;
use super::{App, End, Failure, GlobalArgs, Result};
use crate::app::explain;
use crate::config::{Problem, Trigger};
use crate::schedule::{DueJob, Job, Report, Scheduler, SharedState, due_jobs};
use crate::supervisor::{JobSlots, Lifetime, Plan, Supervisor, SupervisorLock, known_host_owner};

/// What this command is called.
pub(super) const NAMES: &[&str] = &["cron", "contao:cron"];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Starts the jobs that are due and the workers that are needed. It looks at once and then every few seconds, and exits \
at second 55 of the minute, before cron starts the next one. Jobs and workers keep running.

If another supervisor is at work and about to end, this one waits for that. Otherwise it exits with 0. A supervisor \
that has done nothing for two minutes is stuck: it is reported, and replaced where that is safe.

Prints nothing when all is well, except on a terminal. What happens is in the log in the state directory. The output \
of a job that has failed is printed, and cron mails it.

The crontab line:
  * * * * * cd /path/to/app && ./minutely cron")]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Jobs>,
    /// Show which jobs and how many workers would be started now and why, without starting any
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Start all jobs now, whether they are due or not, except those with `scope: web`
    #[arg(long, conflicts_with = "dry_run")]
    force: bool,
    #[command(flatten)]
    format: FormatArg,
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum Jobs {
    /// Show the scheduled jobs: when they run, and how their last runs went
    List(list::Args),
    /// Show which jobs run next
    Next(next::Args),
    /// Run a job now
    Run(run::Args),
}

impl Args {
    /// The job that is run now.
    pub(super) fn runs(&self) -> Option<&str> {
        match &self.command {
            Some(Jobs::Run(args)) => Some(&args.job),
            _ => None,
        }
    }
}

pub(super) async fn run(app: &App, args: &Args, global: &GlobalArgs) -> Result<End> {
    if let Some(command) = &args.command {
        if args.dry_run || args.force {
            return Err(Failure::Usage("--dry-run and --force go with `cron` alone".to_owned()));
        }
        return match command {
            Jobs::List(args) => list::run(app, args).await,
            Jobs::Next(args) => next::run(app, args),
            Jobs::Run(args) => run::run(app, args).await,
        };
    }
    let supervisor = supervisor(app)?;
    if args.dry_run {
        return dry_run(app, &supervisor, args.format.format).await;
    }
    let mut signals = Signals::listen()?;
    let mut scheduler = scheduler(app, Trigger::Cli, NAMES, global)?;
    let mut not_started = Vec::new();
    if args.force {
        not_started = scheduler.start_all().await;
        not_started.iter().for_each(|error| tracing::error!("{error}"));
    }
    finish_removed(app, &scheduler).await;
    let heartbeat = heartbeat::of_cron(app);
    let lock = match at_work(app, &supervisor, Lifetime::UntilNextCron, &mut signals).await {
        Ok(lock) => lock,
        Err(End::Well) => {
            heartbeat.beat().await;
            return Ok(if not_started.is_empty() { End::Well } else { End::Failed });
        }
        Err(end) => return Ok(end),
    };
    let supervising = supervisor.cron(lock.remaining().unwrap_or_default(), signals.next(), explain);
    let failures = heartbeat.during(with_jobs(&mut scheduler, supervising)).await;
    Ok(if failures.is_empty() && not_started.is_empty() { End::Well } else { End::Failed })
}

pub(super) fn supervisor(app: &App) -> Result<Supervisor> {
    app.supervisor_of_workers().map_err(|error| Failure::Failed(error.to_string()))
}

/// What runs the jobs that are due, beside a supervisor that was started by a command of one of these names.
pub(super) fn scheduler(app: &App, trigger: Trigger, names: &[&str], global: &GlobalArgs) -> Result<Scheduler> {
    let (arguments, dir) =
        app.own_commands().unwrap_or_else(|| (own_arguments(names, global).unwrap_or_default(), None));
    app.jobs_in_processes(trigger, arguments, dir).map_err(|error| Failure::Failed(error.to_string()))
}

/// Supervises, and starts the jobs that are due meanwhile.
pub(super) async fn with_jobs<T>(scheduler: &mut Scheduler, supervising: impl Future<Output = T>) -> T {
    crate::app::with_jobs(scheduler, supervising, print_report).await
}

/// Where neither workers nor jobs are left: sees to runs of jobs that were removed from the configuration.
pub(super) async fn finish_removed(app: &App, scheduler: &Scheduler) {
    if app.config.workers.is_empty() && app.jobs.is_empty() {
        scheduler.finish(print_report).await;
    }
}

/// Prints a failed run. The process of the run has logged it.
fn print_report(report: &Report) {
    let Report { job, run } = report;
    let (why, at) = (run.why.as_deref().unwrap_or("unknown"), run.started_at.with_timezone(&chrono::Local));
    let took = age(run.took(chrono::Utc::now()).as_secs());
    output::error(&format!("job {job} failed: {why} (started at {}, took {took})", at.format("%Y-%m-%d %H:%M:%S")));
    output::quoted(&run.output);
}

/// Becomes the supervisor. Or how the command ends, where there is nothing to do (another one is at work, or there are
/// neither workers nor jobs), where nothing can be done, which is told, and at a signal.
pub(super) async fn at_work(
    app: &App,
    supervisor: &Supervisor,
    lifetime: Lifetime,
    signals: &mut Signals,
) -> std::result::Result<SupervisorLock, End> {
    if app.config.workers.is_empty() && app.jobs.is_empty() {
        tracing::info!("neither workers nor jobs are defined, so there is nothing to do");
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

/// The job of this name; an unknown one is a usage error.
fn named<'a>(app: &'a App, name: &str) -> Result<&'a Job> {
    let names = || app.jobs.iter().map(Job::name);
    let found = app.jobs.iter().find(|job| job.name() == name);
    found.ok_or_else(|| Failure::Usage(Problem::unknown("", "job", name, names()).message))
}

/// What `--dry-run --format json` prints.
#[derive(Serialize)]
struct DryRun<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    /// The jobs that are due. None if the cache cannot be read.
    jobs: Option<&'a [DueJob]>,
}

async fn dry_run(app: &App, supervisor: &Supervisor, format: Format) -> Result<End> {
    let report = supervisor.dry_run().await;
    let jobs = due(app).await;
    match format {
        Format::Json => output::json(&DryRun { plan: &report.plan, jobs: jobs.as_deref().ok() })?,
        Format::Text => {
            print_plan(report.plan);
            if let (Ok(jobs), false) = (&jobs, app.jobs.is_empty()) {
                output::line("");
                print_due(jobs, app);
            }
        }
    }
    jobs.map(|_| End::Well)
}

/// The jobs that `minutely cron` would start now, or why not.
async fn due(app: &App) -> Result<Vec<DueJob>> {
    let jobs: Vec<Job> = app.jobs.iter().filter(|job| job.config.scope.includes(Trigger::Cli)).cloned().collect();
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let state_dir = &app.config.state_dir;
    let shared = SharedState::new(app.cache.clone(), known_host_owner(state_dir)?.unwrap_or_default());
    Ok(due_jobs(&jobs, &shared, &JobSlots::new(state_dir), &app.config.workers, chrono::Utc::now()).await?)
}

fn print_plan(plan: Plan) {
    if plan.workers.is_empty() {
        output::line("No workers are defined.");
        return;
    }
    let rows = plan.workers.into_iter().map(|planned| {
        let pending = planned.pending.map_or("?".to_owned(), |pending| pending.to_string());
        let running = planned.running.map_or("?".to_owned(), |running| running.to_string());
        let numbers = [planned.desired, planned.start].map(|number| number.to_string());
        [vec![planned.name, pending, running], numbers.to_vec(), vec![planned.reason]].concat()
    });
    output::table(&["worker", "pending", "running", "desired", "start", "why"], 1..5, rows);
}

fn print_due(due: &[DueJob], app: &App) {
    if due.is_empty() {
        output::line("No job is due now; `minutely cron next` shows which are next.");
        return;
    }
    let rows = due.iter().map(|due| {
        let zone = app.jobs.iter().find(|job| job.name() == due.name).map(|job| job.schedule.zone());
        let since = due.due.zip(zone).map_or("after this boot".to_owned(), |(due, zone)| zone.show(due));
        let start = if due.start { "yes" } else { "no" };
        vec![due.name.clone(), since, start.to_owned(), due.why.clone().unwrap_or_default()]
    });
    output::table(&["job", "due", "start", "why"], 0..0, rows);
}

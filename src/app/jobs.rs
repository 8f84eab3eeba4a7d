//! Runs the jobs that are due beside a supervisor: each run in a process of this program, or as a task of this process.

use std::ffi::OsString;
use std::mem::take;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::Utc;
use futures_util::future::join;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{App, Error};
use crate::config::Trigger;
use crate::handler::CancellationToken;
use crate::schedule::{Job, Report, Runner, Scheduler, SharedState, StartJob};
use crate::supervisor::{HeldSlot, JobProcess, JobSlots, StateError, host_owner};

/// Runs of jobs as tasks of this process.
#[derive(Clone)]
pub(super) struct JobTasks {
    tasks: Arc<Mutex<JoinSet<()>>>,
    stop: CancellationToken,
}

impl App {
    /// This program's arguments before those of one of minutely's commands, and the folder it is called in. Nothing where they
    /// are not known.
    pub(crate) fn own_commands(&self) -> Option<(Vec<OsString>, Option<PathBuf>)> {
        let program = self.worker_program.as_deref()?;
        let (consume, arguments) = program.arguments.split_last()?;
        (consume == "consume").then(|| (arguments.to_vec(), program.dir.clone()))
    }

    /// What starts the runs that are due as processes: this program with these arguments, and `cron run` after them.
    pub(crate) fn jobs_in_processes(
        &self,
        trigger: Trigger,
        arguments: Vec<OsString>,
        dir: Option<PathBuf>,
    ) -> Result<Scheduler, Error> {
        let mut program = vec![std::env::current_exe().map_err(Error::ThisProgram)?.into()];
        program.extend(arguments);
        let dir = dir.map_or_else(std::env::current_dir, Ok).map_err(Error::ThisProgram)?;
        let slots = JobSlots::new(&self.config.state_dir);
        let shared = self.shared_state_of_jobs().map_err(|error| Error::Supervisor(error.into()))?;
        let (to_give_back, log) = (shared.clone(), slots.log().to_owned());
        let start = move |job: &Job, taken: Option<&str>, claim| {
            let run = ["cron".into(), "run".into(), job.name().into()];
            let words = taken.map(|taken| [OsString::from("--taken"), taken.into()]).into_iter().flatten();
            let command: Vec<OsString> = program.iter().cloned().chain(run).chain(words).collect();
            let process = slots.start(claim, &command, &dir).map_err(|error| error.to_string())?;
            tokio::spawn(not_begun(process, job.clone(), taken.map(str::to_owned), to_give_back.clone(), log.clone()));
            Ok(())
        };
        Ok(self.scheduler(trigger, shared, Box::new(start)))
    }

    /// What starts the runs that are due as tasks of this process.
    pub(super) fn jobs_in_tasks(&self, tasks: &JobTasks) -> Result<Scheduler, StateError> {
        let shared = self.shared_state_of_jobs()?;
        let (app, tasks, slots) = (self.clone(), tasks.clone(), JobSlots::new(&self.config.state_dir));
        let of_runs = shared.clone();
        let start = move |job: &Job, taken: Option<&str>, claim| {
            let slot = slots.take(claim).map_err(|error| error.to_string())?;
            let (job, taken) = (job.clone(), taken.map(str::to_owned));
            tasks.add(app.clone().run_job(job, of_runs.clone(), taken, slot, tasks.stop.clone()));
            Ok(())
        };
        Ok(self.scheduler(Trigger::Cli, shared, Box::new(start)))
    }

    fn scheduler(&self, trigger: Trigger, shared: SharedState, start: StartJob) -> Scheduler {
        let scheduler = Scheduler::new(&self.jobs, trigger, shared, &self.config.state_dir, start);
        scheduler.beside(&self.config.workers)
    }

    fn shared_state_of_jobs(&self) -> Result<SharedState, StateError> {
        let host = if self.jobs.is_empty() { String::new() } else { host_owner(&self.config.state_dir)? };
        Ok(SharedState::new(self.cache.clone(), host))
    }

    /// Runs a job in this process, until `stop`. How it went is logged.
    async fn run_job(
        self,
        job: Job,
        shared: SharedState,
        taken: Option<String>,
        slot: HeldSlot,
        stop: CancellationToken,
    ) {
        let mark = slot.mark().to_owned();
        let runner = Runner {
            job: &job,
            shared: &shared,
            bus: &self.bus,
            functions: &self.functions,
            dir: &self.config.dir,
            state_dir: &self.config.state_dir,
            taken: taken.as_deref(),
            mark: &mark,
            // It is in the log of this process already.
            reports: false,
            process_goes_on: true,
        };
        let ended = runner.run(slot, stop.cancelled(), |_| ()).await;
        if ended.is_stuck {
            tracing::error!(job = job.name(), "its function computes on, and keeps a thread of this process busy");
        }
    }
}

impl JobTasks {
    pub(super) fn new() -> Self {
        Self { tasks: Arc::default(), stop: CancellationToken::new() }
    }

    fn add(&self, run: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(run);
    }

    /// Breaks off the runs, and waits for their ends, which they record.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        let mut tasks = take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

/// Supervises, and starts the jobs that are due meanwhile. `report` gets the runs that have failed.
pub(crate) async fn with_jobs<T>(
    scheduler: &mut Scheduler,
    supervising: impl Future<Output = T>,
    report: impl FnMut(&Report),
) -> T {
    let (ended, stop) = oneshot::channel::<()>();
    let supervising = async {
        let result = supervising.await;
        drop(ended);
        result
    };
    let stop = async move {
        let _ = stop.await;
    };
    join(supervising, scheduler.run(stop, report)).await.0
}

/// Logs a failed run of another process.
pub(super) fn log_report(report: &Report) {
    let Report { job, run } = report;
    let why = run.why.as_deref().unwrap_or("unknown");
    tracing::error!(job, output = run.output, "failed: {why}");
}

/// Sees to a run whose process has ended before it began: its configuration may be wrong at the moment. One that has begun exits
/// with 0, however the job went, or was killed, or has panicked.
async fn not_begun(process: JobProcess, job: Job, taken: Option<String>, shared: SharedState, log: PathBuf) {
    let Ok(Some(status)) = process.await else { return };
    let Some(code @ 1..=2) = status.code() else { return };
    let given_back = match taken {
        Some(taken) => shared.skip(&job, &taken, Utc::now()).await.map(|()| "; it is tried again in the next minute"),
        None => Ok(""),
    };
    let then = given_back.unwrap_or("; its run could not be given back, and is lost");
    tracing::error!(job = job.name(), "its process could not begin (exit code {code}; see {}){then}", log.display());
}

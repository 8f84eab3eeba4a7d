//! A supervisor for an application's workers and jobs.

use std::ffi::OsString;
use std::future::pending;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::App;
use super::jobs::{JobTasks, log_report, with_jobs};
use crate::config::Trigger;
use crate::error::Error;
use crate::schedule::Scheduler;
use crate::supervisor::{Lifetime, Supervisor, TickReport, keep_inherited_from_children};

/// How often a supervisor that has found another one checks again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How the supervisor starts this program as a worker.
pub(crate) struct WorkerProgram {
    /// Its arguments, without transports and options.
    pub(crate) arguments: Vec<OsString>,
    /// The folder that it runs in; by default the supervisor's.
    pub(crate) dir: Option<PathBuf>,
}

impl App {
    /// A supervisor for the workers that the configuration defines.
    pub(crate) fn supervisor_of_workers(&self) -> Result<Supervisor, Error> {
        let of_this_program = self.config.workers.iter().any(|worker| worker.command.is_none());
        let (consume, dir) = match &self.worker_program {
            Some(program) => {
                let this_program = std::env::current_exe().map_err(Error::ThisProgram)?;
                (
                    std::iter::once(this_program.into()).chain(program.arguments.iter().cloned()).collect(),
                    program.dir.clone(),
                )
            }
            None if of_this_program => return Err(Error::WorkerArguments),
            None => (Vec::<OsString>::new(), None),
        };
        let dir = dir.map_or_else(std::env::current_dir, Ok).map_err(Error::ThisProgram)?;
        let supervisor = Supervisor::new(&self.config, consume, self.transports.clone(), &self.cache);
        Ok(supervisor.with_worker_dir(dir).without(|worker| self.why_idle(worker)))
    }
}

/// A supervisor to be started in this process. Created by [`App::supervisor`].
#[must_use = "nothing is supervised until the supervisor is started"]
pub struct SupervisorBuilder {
    app: App,
}

/// Runs the jobs that are due.
struct Jobs {
    scheduler: Scheduler,
    tasks: JobTasks,
}

/// A supervisor that runs in this process. If this is dropped, it goes on until the runtime ends.
pub struct SupervisorHandle {
    stop: oneshot::Sender<Workers>,
    task: JoinHandle<Result<(), Error>>,
}

/// What to do with the workers when their supervisor ends.
enum Workers {
    Finish,
    GoOn,
}

impl App {
    /// A supervisor in this process: it keeps the workers that the configuration defines running, and runs the jobs that are
    /// due, like `minutely supervise`. Workers are processes. For workers that are this program itself, set
    /// [`AppBuilder::worker_arguments`](super::AppBuilder::worker_arguments).
    ///
    /// With these arguments, each run of a job is a process too, and outlives this one. Without them, this program does not know how
    /// to call itself, and a run is a task of this process: a function shares its memory, and is interrupted when the
    /// supervisor ends.
    ///
    /// ```no_run
    /// # async fn example(app: minutely::App) -> Result<(), minutely::Error> {
    /// let supervisor = app.supervisor().spawn()?;
    /// // … the application runs …
    /// supervisor.stop().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Of several supervisors with the same state directory, one works; when it has ended, another takes over.
    ///
    /// From then on, programs that this process starts inherit none of the files that are open when the supervisor starts,
    /// except standard input and output: workers outlive the process, and would keep them open.
    pub fn supervisor(&self) -> SupervisorBuilder {
        SupervisorBuilder { app: self.clone() }
    }
}

impl SupervisorBuilder {
    /// Starts the supervisor as a task of the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(self) -> Result<SupervisorHandle, Error> {
        let supervisor = self.app.supervisor_of_workers()?;
        let tasks = JobTasks::new();
        let scheduler = match self.app.own_commands() {
            Some((arguments, dir)) => self.app.jobs_in_processes(Trigger::Cli, arguments, dir)?,
            None => self.app.jobs_in_tasks(&tasks).map_err(|error| Error::Supervisor(error.into()))?,
        };
        keep_inherited_from_children();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(supervise(supervisor, Jobs { scheduler, tasks }, stopped));
        Ok(SupervisorHandle { stop, task })
    }
}

impl SupervisorHandle {
    /// Asks all workers to finish their current messages and to end, and waits until they have ended. Breaks off the jobs that
    /// run in this process; others go on.
    pub async fn stop(self) -> Result<(), Error> {
        self.end(Workers::Finish).await
    }

    /// Stops supervising. Breaks off the jobs that run in this process. The workers go on until they reach their limits; the next supervisor finds them.
    pub async fn leave(self) -> Result<(), Error> {
        self.end(Workers::GoOn).await
    }

    async fn end(self, workers: Workers) -> Result<(), Error> {
        // The task may have ended already, with an error that is returned below.
        let _ = self.stop.send(workers);
        match self.task.await {
            Ok(ended) => ended,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(Error::Aborted),
            },
        }
    }
}

async fn supervise(supervisor: Supervisor, mut jobs: Jobs, stopped: oneshot::Receiver<Workers>) -> Result<(), Error> {
    let mut stopped = stopped.fuse();
    let _lock = loop {
        let lock = supervisor.lock(Lifetime::UntilStopped).await.inspect_err(|error| tracing::error!("{error}"));
        let lock = lock.map_err(|error| Error::Supervisor(error.into()))?;
        if let Some(lock) = lock {
            break lock;
        }
        tracing::debug!("another supervisor is running");
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            Ok(_) = &mut stopped => return Ok(()),
        }
    };
    let mut workers = None;
    let stop = async {
        match stopped.await {
            Ok(wish) => workers = Some(wish),
            // Nothing can stop it any more.
            Err(_) => pending().await,
        }
    };
    with_jobs(&mut jobs.scheduler, supervisor.supervise(stop, explain), log_report).await;
    jobs.tasks.end().await;
    if let Some(Workers::Finish) = workers {
        supervisor.stop_workers(pending()).await.map_err(|error| Error::Supervisor(error.into()))?;
    }
    Ok(())
}

/// Logs why workers were started. That they were started, and what failed, is logged elsewhere.
pub(crate) fn explain(report: &TickReport) {
    for planned in report.plan.workers.iter().filter(|planned| planned.start > 0) {
        tracing::info!("{}: {}", planned.name, planned.reason);
    }
}

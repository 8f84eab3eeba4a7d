//! Keeps the wanted number of workers running.
//!
//! A [`Supervisor`] ticks, every few seconds:
//!
//! | step | module | |
//! | --- | --- | --- |
//! | maintain | `leases`, `recovery` | renew leases on cluster slots, put back the messages of dead workers |
//! | observe | `observe` | pending messages, live workers |
//! | plan | `autoscale`, `headroom` | pure arithmetic: how many workers each definition gets, and why |
//! | act | `launch`, `spawn` | start a process in each slot to fill |
//! | promise | `promises` | tell producers whose messages will be taken |
//!
//! Supervisors come and go, under cron a new one every minute. Workers run in sessions of their own and outlive them; the
//! next supervisor finds them by the locks they hold on their [slots](Slots). A supervisor keeps nothing in memory that the
//! next one needs, so it may be killed at any moment. `lock` sees to it that only one runs.

mod autoscale;
mod command;
mod connections;
#[cfg(test)]
mod fixture;
mod headroom;
mod job;
mod launch;
mod leases;
mod lock;
mod observe;
mod process;
mod promises;
mod recovery;
mod refusal;
mod report;
mod session;
mod slots;
mod spawn;
#[cfg(test)]
mod tests;
mod tick;

pub(crate) use crate::state_files::StateError;
pub(crate) use autoscale::{Plan, PlannedWorkers};
pub(crate) use connections::{ServerConnections, connections};
pub(crate) use headroom::JobRoom;
pub(crate) use job::{JobProcess, JobSlots, KilledRun};
pub(crate) use leases::{host_owner, known_host_owner};
pub(crate) use lock::{Lifetime, LockError, SupervisorLock, SupervisorStatus, check_owner, supervisor_status};
pub(crate) use recovery::WORKER_VARIABLE;
pub(crate) use report::{Started, TickFailure, TickReport};
pub(crate) use slots::{LiveSlot, SlotClaim, Slots, WorkerRecord};
pub(crate) use spawn::{
    HeldSlot, REQUEST_VARIABLE, SLOT_FD_VARIABLE, SLOT_VARIABLE, adopt_slot, keep_inherited_from_children,
};

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Cache;
use crate::config::{Config, WorkerDefinition};
use crate::heartbeat::Heartbeats;
use crate::record::TickRecorder;
use crate::transport::Transports;
use launch::Launcher;
use leases::Leases;
use lock::Progress;
use observe::Observer;
use promises::{Phase, Promises};
use recovery::Recovery;
use tick::{Budget, COUNT_TIMEOUT, Logged};

/// How often slots are checked while waiting for workers to finish.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How the supervisor spends its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// From the start of one tick to the start of the next.
    pub tick: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tick: Duration::from_secs(5) }
    }
}

/// Keeps the wanted number of workers of each definition running.
pub(crate) struct Supervisor {
    definitions: Vec<WorkerDefinition>,
    /// Scheduled jobs are configured, and become due beside the workers.
    has_jobs: bool,
    state_dir: PathBuf,
    /// The configuration's file.
    config: PathBuf,
    slots: Slots,
    cache: Arc<Cache>,
    observer: Observer,
    launcher: Launcher,
    leases: Leases,
    recovery: Recovery,
    promises: Promises,
    pace: Pace,
    progress: Mutex<Progress>,
    logged: Mutex<Logged>,
    recorder: Mutex<TickRecorder>,
}

impl Supervisor {
    /// A supervisor for a configuration's workers. `consume` is the command line of this program's own worker without
    /// transports and options: program, `--config`, file, `consume`. Does nothing yet.
    pub(crate) fn new(
        config: &Config,
        consume: Vec<OsString>,
        transports: Arc<Transports>,
        cache: &Arc<Cache>,
    ) -> Self {
        let state_dir = config.state_dir.clone();
        let slots = Slots::new(&state_dir);
        let heartbeats = Heartbeats::new(Arc::clone(cache));
        Self {
            definitions: config.workers.clone(),
            has_jobs: !config.jobs.is_empty(),
            config: config.file.clone(),
            cache: Arc::clone(cache),
            observer: Observer {
                transports: Arc::clone(&transports),
                slots: slots.clone(),
                jobs: Slots::of_jobs(&state_dir),
                config: config.file.clone(),
                idle: HashMap::new(),
            },
            launcher: Launcher {
                slots: slots.clone(),
                dir: config.dir.clone(),
                consume_dir: config.dir.clone(),
                state_dir: state_dir.clone(),
                consume,
            },
            leases: Leases::new(Arc::clone(cache), &state_dir),
            recovery: Recovery::new(slots.clone(), Arc::clone(&transports)),
            promises: Promises::new(heartbeats, transports, slots.clone(), &state_dir),
            pace: Pace::default(),
            progress: Mutex::default(),
            logged: Mutex::default(),
            recorder: Mutex::new(TickRecorder::new(&state_dir)),
            slots,
            state_dir,
        }
    }

    /// The same supervisor at another pace.
    #[cfg(test)]
    fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// The same supervisor, whose workers of this program run in another folder than the configuration's.
    pub(crate) fn with_worker_dir(mut self, dir: PathBuf) -> Self {
        self.launcher.consume_dir = dir;
        self
    }

    /// The same supervisor, which starts no workers for those definitions for which `idle` gives a reason.
    pub(crate) fn without(mut self, idle: impl Fn(&WorkerDefinition) -> Option<String>) -> Self {
        let reasons =
            self.definitions.iter().filter_map(|definition| Some((definition.name.clone(), idle(definition)?)));
        self.observer.idle = reasons.collect();
        self
    }

    /// Takes the right to supervise this state directory. `None` if another supervisor has it and keeps it. Waits for one
    /// that is about to end; replaces one that is stuck. Keep the lock until the supervisor is done.
    pub(crate) async fn lock(&self, lifetime: Lifetime) -> Result<Option<SupervisorLock>, LockError> {
        let lock = SupervisorLock::take(&self.state_dir, &self.config, lifetime).await?;
        if let Some(lock) = &lock {
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = lock.progress();
        }
        Ok(lock)
    }

    /// Tells other supervisors that this one is not stuck.
    fn note_progress(&self) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).note();
    }

    /// What a tick would do now. Starts and writes nothing.
    pub(crate) async fn dry_run(&self) -> TickReport {
        self.plan(COUNT_TIMEOUT).await
    }

    /// Ticks now, then at the supervisor's pace for `lifetime`, or until `stop`; see [`SupervisorLock::remaining`]. Workers
    /// go on. Leaves promises for the time until the next cron. Returns what the last tick could not do.
    pub(crate) async fn cron(
        &self,
        lifetime: Duration,
        stop: impl Future<Output = ()>,
        on_tick: impl FnMut(&TickReport),
    ) -> Vec<TickFailure> {
        let Some(last) = self.run(Some(Instant::now() + lifetime), stop, on_tick).await else {
            return Vec::new();
        };
        self.promises.update(&self.definitions, &last.plan, Phase::Ending).await;
        last.failures
    }

    /// One tick, for somebody who comes again in a minute or so. Workers go on. `None` if another supervisor is at work.
    pub(crate) async fn once(&self) -> Result<Option<TickReport>, LockError> {
        let Some(_lock) = self.lock(Lifetime::OneTick).await? else { return Ok(None) };
        let budget = Budget { promises: false, ..Budget::FULL };
        let Some(report) = self.tick(budget, pin!(std::future::pending())).await else { return Ok(None) };
        self.promises.update(&self.definitions, &report.plan, Phase::Ending).await;
        self.cache.close_idle();
        Ok(Some(report))
    }

    /// Ticks until `stop`, then withdraws all promises. Workers go on, see [`Supervisor::stop_workers`]. Returns what the
    /// last tick could not do.
    pub(crate) async fn supervise(
        &self,
        stop: impl Future<Output = ()>,
        on_tick: impl FnMut(&TickReport),
    ) -> Vec<TickFailure> {
        let last = self.run(None, stop, on_tick).await;
        self.promises.withdraw_all(&self.definitions).await;
        last.map(|report| report.failures).unwrap_or_default()
    }

    /// Asks all live workers to finish (SIGTERM), also those of definitions that are no longer in the configuration, and
    /// waits for them, or until `hurry`. Returns those that still run.
    pub(crate) async fn stop_workers(&self, hurry: impl Future<Output = ()>) -> Result<Vec<LiveSlot>, StateError> {
        let mut hurry = pin!(hurry);
        let mut asked = HashSet::new();
        let mut next_renewal = Instant::now() + self.pace.tick;
        loop {
            self.note_progress();
            if Instant::now() >= next_renewal {
                // The workers may take longer to finish than their leases last.
                self.leases.maintain(&self.definitions).await;
                next_renewal = Instant::now() + self.pace.tick;
            }
            let live = self.slots.all_live()?;
            if live.is_empty() {
                // Releases the leases, so that other hosts need not wait for them to expire.
                self.leases.maintain(&self.definitions).await;
                return Ok(live);
            }
            // A worker that is just being started has its record by the next check.
            for record in live.iter().filter_map(|slot| slot.record.as_ref()) {
                // A worker that is asked twice stops at once.
                if asked.insert((record.process.pid, record.process.started_at))
                    && !self.leases.has_asked_to_finish(record)
                {
                    ask_to_finish(record);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(STOP_POLL_INTERVAL) => {}
                () = &mut hurry => return Ok(live),
            }
        }
    }

    /// Ticks until `end`, with the last tick then, or until `stop`. Returns the last tick's report.
    async fn run(
        &self,
        end: Option<Instant>,
        stop: impl Future<Output = ()>,
        mut on_tick: impl FnMut(&TickReport),
    ) -> Option<TickReport> {
        let mut stop = pin!(stop);
        let mut last = None;
        loop {
            let begun = Instant::now();
            let budget = end.map_or(Budget::FULL, |end| Budget::until_last(end - begun));
            let Some(report) = self.tick(budget, stop.as_mut()).await else { return last };
            on_tick(&report);
            let next = begun + self.pace.tick;
            let next = match end {
                Some(end) if begun >= end => return Some(report),
                Some(end) => next.min(end),
                None => next,
            };
            last = Some(report);
            tokio::select! {
                biased;
                () = &mut stop => return last,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

fn ask_to_finish(worker: &WorkerRecord) {
    let WorkerRecord { definition, slot, process, .. } = worker;
    let slot = format!("{definition}/{slot}");
    match process.terminate() {
        Ok(()) => tracing::info!(slot, pid = process.pid, "asked a worker to finish"),
        Err(error) => tracing::warn!(slot, pid = process.pid, %error, "a worker could not be asked to finish"),
    }
}

//! Keeps the wanted number of workers running.
//!
//! A [`Supervisor`] ticks: it observes (pending messages, live workers), plans (pure arithmetic, [`plan`]) and acts
//! (starts a process in each slot to fill). It comes and goes, a new one every minute under cron; workers run in
//! sessions of their own and outlive it, and the next one finds them by the locks they hold on their [slots](Slots). It
//! remembers nothing: all it knows it reads from the slots, so that it may be killed at any moment.

mod autoscale;
mod cluster;
mod command;
mod connections;
mod headroom;
mod lock;
mod process;
mod promise;
mod recovery;
mod refusal;
mod slot;
mod spawn;
mod state;
mod term;
#[cfg(test)]
mod tests;
mod tick;

pub use autoscale::{Observation, Plan, PlannedWorkers, count_cap, plan};
pub use command::command_line;
pub use connections::{ServerConnections, connections};
pub use lock::{LockError, SupervisorLock, SupervisorStatus, Term, check_owner, supervisor_status};
pub use process::ProcessId;
pub use slot::{Claim, LiveSlot, Record, Slots};
pub use spawn::{
    HeldSlot, SLOT_FD_VARIABLE, SLOT_VARIABLE, SpawnError, WORKER_VARIABLE, adopt_slot, keep_inherited_from_children,
    worker_log,
};
pub use state::StateError;
pub use tick::{Failure, Started, TickReport};

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Cache;
use crate::config::{Config, WorkerDefinition};
use crate::heartbeat::Heartbeats;
use crate::transport::Transports;
use cluster::Places;
use promise::{Moment, Promises};
use tick::Ground;

/// How long a transport may take to count its messages before the tick goes on without it. All definitions wait for that,
/// so it is less than the time between two ticks.
const COUNT_TIMEOUT: Duration = Duration::from_secs(3);
/// The same in the last tick under cron, so that this supervisor is gone when the next one is started.
const LAST_COUNT_TIMEOUT: Duration = Duration::from_secs(2);
/// Under cron, workers are not looked after in this time before the last tick.
const CARE_ENDS: Duration = Duration::from_secs(8);
/// How often slots are looked at while waiting for workers to finish.
const STOP_POLL: Duration = Duration::from_millis(200);

/// How the supervisor spends its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From the start of one tick to the start of the next.
    pub tick: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tick: Duration::from_secs(5) }
    }
}

/// Keeps the wanted number of workers of each definition running.
pub struct Supervisor {
    definitions: Vec<WorkerDefinition>,
    transports: Arc<Transports>,
    promises: Promises,
    cache: Arc<Cache>,
    places: Places,
    ground: Ground,
    /// Definitions that are not to get a worker, and why.
    idle: HashMap<String, String>,
    /// What went wrong in the last tick. What goes on being wrong is told once.
    told: Mutex<HashSet<Failure>>,
    pace: Pace,
    /// The lock's file, while there is a lock.
    lock: Mutex<Weak<File>>,
}

impl Supervisor {
    /// A supervisor for a configuration's workers. `consume` is the command line of this program's own worker without
    /// transports and options: program, `--config`, file, `consume`. Touches nothing yet.
    pub fn new(config: &Config, consume: Vec<OsString>, transports: Arc<Transports>, cache: &Arc<Cache>) -> Self {
        Self {
            definitions: config.workers.clone(),
            transports,
            promises: Promises::new(Heartbeats::new(Arc::clone(cache)), &config.state_dir),
            cache: Arc::clone(cache),
            places: Places::new(Arc::clone(cache), &config.state_dir),
            ground: Ground {
                slots: Slots::new(&config.state_dir),
                dir: config.dir.clone(),
                consume_dir: config.dir.clone(),
                state_dir: config.state_dir.clone(),
                config: config.file.clone(),
                consume,
            },
            idle: HashMap::new(),
            told: Mutex::default(),
            pace: Pace::default(),
            lock: Mutex::default(),
        }
    }

    /// The same at another pace.
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// The same, where this program's own workers run in another folder than the configuration's.
    pub fn with_worker_dir(mut self, dir: PathBuf) -> Self {
        self.ground.consume_dir = dir;
        self
    }

    /// The same, with no workers for those definitions whose workers could do nothing, for the reason that is given.
    pub fn without(self, idle: impl Fn(&WorkerDefinition) -> Option<String>) -> Self {
        let reasons =
            self.definitions.iter().filter_map(|definition| Some((definition.name.clone(), idle(definition)?)));
        Self { idle: reasons.collect(), ..self }
    }

    /// Takes the right to supervise this state directory, or `None` when another supervisor has it, and keeps it. Waits
    /// for one that is about to end; takes the place of one that is stuck. Keep it until the supervisor is done.
    pub async fn lock(&self, term: Term) -> Result<Option<SupervisorLock>, LockError> {
        let lock = SupervisorLock::take(&self.ground.state_dir, &self.ground.config, term).await?;
        if let Some(lock) = &lock {
            *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(lock.file());
        }
        Ok(lock)
    }

    /// Tells whoever comes second that this supervisor is not stuck.
    fn progress(&self) {
        if let Some(file) = self.lock.lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
            lock::progress(&file);
        }
    }

    /// What a tick would do now. Starts and writes nothing.
    pub async fn dry_run(&self) -> TickReport {
        self.observe(COUNT_TIMEOUT).await.into_plan()
    }

    /// One tick, promises included.
    pub async fn tick(&self) -> TickReport {
        self.look_after_workers().await;
        let mut report = self.observe(COUNT_TIMEOUT).await.into_plan();
        self.act(&mut report).await;
        self.promise(&report, Moment::Tick).await;
        self.cache.close_idle();
        report
    }

    /// Ticks now and again for `lifetime`, or until `stop`; [`SupervisorLock::remaining`] says for how long. Workers go on;
    /// promises are left as the next cron needs them. Returns what the last tick could not do.
    pub async fn cron(
        &self,
        lifetime: Duration,
        stop: impl Future<Output = ()>,
        on_tick: impl FnMut(&TickReport),
    ) -> Vec<Failure> {
        let Some(last) = self.run(Some(Instant::now() + lifetime), stop, on_tick).await else {
            return Vec::new();
        };
        self.promise(&last, Moment::End).await;
        last.failures
    }

    /// Ticks until `stop`, and takes back all promises. Workers go on, see [`Supervisor::stop_workers`]. Returns what
    /// the last tick could not do.
    pub async fn supervise(&self, stop: impl Future<Output = ()>, on_tick: impl FnMut(&TickReport)) -> Vec<Failure> {
        let last = self.run(None, stop, on_tick).await;
        self.withdraw_promises().await;
        last.map(|report| report.failures).unwrap_or_default()
    }

    /// Asks all live workers to finish (SIGTERM), also those of definitions that are no longer in the configuration, and
    /// waits until they have, or until `hurry`. Returns those that are still there.
    pub async fn stop_workers(&self, hurry: impl Future<Output = ()>) -> Result<Vec<LiveSlot>, StateError> {
        let mut hurry = pin!(hurry);
        let mut asked = HashSet::new();
        let mut next_care = Instant::now() + self.pace.tick;
        loop {
            self.progress();
            if Instant::now() >= next_care {
                // They may take longer than their places in the cluster are theirs.
                self.keep_places().await;
                next_care = Instant::now() + self.pace.tick;
            }
            let live = self.ground.slots.all_live()?;
            if live.is_empty() {
                // Other hosts need not wait for the places to end by themselves.
                self.keep_places().await;
                return Ok(live);
            }
            // A worker that was being started is recorded by the time of the next look.
            for record in live.iter().filter_map(|slot| slot.record.as_ref()) {
                // Asked twice, a worker stops at once.
                if asked.insert((record.process.pid, record.process.started_at)) && !self.places.have_asked(record) {
                    ask_to_finish(record);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(STOP_POLL) => {}
                () = &mut hurry => return Ok(live),
            }
        }
    }

    /// What the workers that are there, and those that are no more, have and had in hand.
    async fn look_after_workers(&self) {
        self.keep_places().await;
        self.recover().await;
    }

    /// Ticks until `end`, with the last tick then, or until `stop`. The last tick's report; its promises are the caller's.
    async fn run(
        &self,
        end: Option<Instant>,
        stop: impl Future<Output = ()>,
        mut on_tick: impl FnMut(&TickReport),
    ) -> Option<TickReport> {
        let mut stop = pin!(stop);
        let mut last = None;
        loop {
            self.progress();
            let now = Instant::now();
            let limit = end.map_or(COUNT_TIMEOUT, |end| count_limit(end - now));
            // Not in the last ticks under cron: the next supervisor does it, and this one must be gone by then.
            if end.is_none_or(|end| end - now > CARE_ENDS) {
                tokio::select! {
                    biased;
                    () = &mut stop => return last,
                    () = self.look_after_workers() => {}
                }
            }
            self.progress();
            let observed = tokio::select! {
                biased;
                () = &mut stop => return last,
                observed = self.observe(limit) => observed,
            };
            let mut report = observed.into_plan();
            self.progress();
            // Not interrupted: what was begun is finished, so that what was started is also reported.
            self.act(&mut report).await;
            // Once, and not at every tick.
            let told = last.as_ref().and_then(|last: &TickReport| last.held_back.as_ref());
            if let Some(held_back) = report.held_back.as_ref().filter(|held_back| told != Some(held_back)) {
                tracing::info!("{held_back}");
            }
            on_tick(&report);
            let next = now + self.pace.tick;
            let next = match end {
                Some(end) if now >= end => return Some(report),
                Some(end) => next.min(end),
                None => next,
            };
            self.promise(&report, Moment::Tick).await;
            self.cache.close_idle();
            last = Some(report);
            tokio::select! {
                biased;
                () = &mut stop => return last,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

/// How long counting may take with so much time left until the last tick.
fn count_limit(left: Duration) -> Duration {
    COUNT_TIMEOUT.min(left + LAST_COUNT_TIMEOUT)
}

fn ask_to_finish(record: &Record) {
    let Record { definition, slot, process, .. } = record;
    let slot = format!("{definition}/{slot}");
    match process.terminate() {
        Ok(()) => tracing::info!(slot, pid = process.pid, "asked a worker to finish"),
        Err(error) => tracing::warn!(slot, pid = process.pid, %error, "a worker could not be asked to finish"),
    }
}

//! Keeps the wanted number of workers running.
//!
//! Every few seconds comes a tick: *observe* (messages pending, live slots) ▸ *plan* ([`plan`], pure arithmetic) ▸ *act*
//! (start a process in each slot to fill). Supervisors come and go, cron starts one every minute; workers live on in their
//! slots, where the next supervisor finds them.

mod autoscale;
mod command;
mod lock;
mod promise;
mod slot;
mod spawn;
mod tick;

pub use autoscale::{Observation, Plan, Step, count_up_to, plan};
pub use lock::{AtWork, Lock, at_work, lock};
pub use slot::{Claim, Live, Record, SlotError, Slots};
pub use spawn::{SLOT_FD_VARIABLE, SLOT_VARIABLE, SlotHold, adopt_slot, keep_inherited_from_children};
pub use tick::{Started, TickReport};

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::{Config, WorkerDefinition};
use crate::heartbeat::Heartbeats;
use crate::transport::Transports;

use promise::Promises;

/// Time between ticks.
pub const TICK: Duration = Duration::from_secs(5);

/// How long the supervisor that cron starts is at work: gone before the next one comes, on hosts that guard a crontab line
/// with a lock too.
pub const CRON_RUN: Duration = Duration::from_secs(55);

/// How often the end of workers that were asked to stop is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Starts workers, and knows who runs.
pub struct Supervisor {
    definitions: Vec<WorkerDefinition>,
    program: Vec<OsString>,
    dir: PathBuf,
    log_dir: PathBuf,
    slots: Slots,
    transports: Arc<Transports>,
    promises: Promises,
}

impl Supervisor {
    /// A supervisor for a configuration's worker definitions. `program` is what a worker without a `command` of its own
    /// is started with, before its transports and options.
    pub fn new(config: &Config, program: Vec<OsString>, transports: Arc<Transports>, heartbeats: Heartbeats) -> Self {
        Self {
            definitions: config.workers.clone(),
            program,
            dir: config.dir.clone(),
            log_dir: config.state_dir.join("log"),
            slots: Slots::new(&config.state_dir),
            promises: Promises::new(heartbeats, &config.state_dir),
            transports,
        }
    }

    /// What a tick would do now. Starts and writes nothing.
    pub async fn dry_run(&self) -> Plan {
        plan(self.observe().await)
    }

    /// Ticks at once and every [`TICK`], for `time` or else for ever, and hands each report to `told`. To be dropped when
    /// it is to end sooner. The caller holds the [`Lock`].
    pub async fn run(&self, time: Option<Duration>, mut told: impl FnMut(TickReport)) {
        let end = time.and_then(|time| Instant::now().checked_add(time));
        let mut ticks = tokio::time::interval(TICK);
        // After the machine has slept, one tick says it all.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = until(end) => return,
            }
            told(self.tick().await);
        }
    }

    /// The end of a supervisor that another one is going to follow: keeps the promises that nobody else can make.
    pub async fn hand_over(&self) {
        for definition in &self.definitions {
            let live = self.slots.live(&definition.name).map_or(0, |live| live.len());
            self.promises.hand_over(&self.names(definition), definition, live).await;
        }
    }

    /// The end of a supervisor that nobody follows: takes back its promises, asks the workers to finish what they have in
    /// hand, and waits for them.
    pub async fn shut_down(&self) {
        for definition in &self.definitions {
            self.promises.take_back(&self.names(definition)).await;
            for live in self.live(definition) {
                terminate(definition, &live);
            }
        }
        while self.definitions.iter().any(|definition| !self.live(definition).is_empty()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A definition's transports, and those they really read: what producers may ask for.
    fn names(&self, definition: &WorkerDefinition) -> Vec<String> {
        let mut names = definition.transports.clone();
        let targets = definition.transports.iter().filter_map(|name| self.transports.target(name).ok());
        names.extend(targets.map(|target| target.name().to_owned()));
        names.sort();
        names.dedup();
        names
    }

    fn live(&self, definition: &WorkerDefinition) -> Vec<Live> {
        self.slots.live(&definition.name).unwrap_or_else(|error| {
            tracing::error!(%error, "who runs cannot be told");
            Vec::new()
        })
    }
}

/// Asks a worker to stop. The process is looked at again right before, so that none is asked that has got the pid since.
fn terminate(definition: &WorkerDefinition, live: &Live) {
    let Some(record) = live.record.as_ref().filter(|record| slot::is_alive(record)) else { return };
    let Ok(pid) = i32::try_from(record.pid) else { return };
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) => tracing::info!(definition = definition.name, pid, "asked to stop"),
        Err(error) => tracing::warn!(definition = definition.name, pid, %error, "could not be asked to stop"),
    }
}

/// Returns at a point in time, or never.
async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

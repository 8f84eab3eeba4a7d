//! One tick: observe ▸ plan ▸ act.
//!
//! Observing asks all transports at once, each for a limited time, and looks at the slots. Acting fills free slots. A
//! definition whose transports do not answer, or whose program is missing, does not hold up the others.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::runtime::Handle;

use super::autoscale::{Observation, Plan, PlannedWorkers, count_cap, plan};
use super::cluster::{Places, is_shared};
use super::command::command_line;
use super::promise::{Moment, is_due};
use super::slot::{LiveSlot, Slots};
use super::spawn::{spawn, worker_log};
use super::state::StateError;
use super::{Supervisor, blocking};
use crate::config::WorkerDefinition;

/// How long a worker that was just started has to live to be counted on.
const SETTLING: Duration = Duration::from_millis(500);

/// What a tick found and did.
#[derive(Debug, Default)]
pub struct TickReport {
    /// What was to be done, and why.
    pub plan: Plan,
    /// The workers that were started.
    pub started: Vec<Started>,
    /// What could not be done. In the log already.
    pub failures: Vec<Failure>,
}

/// A worker that a tick started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Started {
    /// The worker definition's name.
    pub definition: String,
    /// Which of its slots.
    pub slot: u32,
    /// Its process.
    pub pid: u32,
}

/// What a tick could not do for a worker definition. The next tick tries again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The worker definition's name.
    pub definition: String,
    /// What went wrong, for people.
    pub message: String,
}

impl Failure {
    fn new(definition: &WorkerDefinition, message: impl ToString) -> Self {
        Self { definition: definition.name.clone(), message: message.to_string() }
    }
}

/// What observing found.
pub(super) struct Observed<'a> {
    observations: Vec<Observation<'a>>,
    failures: Vec<Failure>,
}

impl Observed<'_> {
    /// Decides what to do, which nothing has been done about yet.
    pub fn into_plan(self) -> TickReport {
        TickReport { plan: plan(&self.observations), started: Vec::new(), failures: self.failures }
    }
}

impl Supervisor {
    /// Looks at backlogs and slots. Each transport is given `limit` to answer. Changes nothing.
    pub(super) async fn observe(&self, limit: Duration) -> Observed<'_> {
        let counts = join_all(self.definitions.iter().map(|definition| self.count(definition, limit)));
        let (counts, slots, held) = tokio::join!(counts, self.live_slots(), self.held_places());
        self.rest();
        let mut observed = Observed { observations: Vec::new(), failures: Vec::new() };
        for (((definition, pending), slots), held) in self.definitions.iter().zip(counts).zip(slots).zip(held) {
            if let Err(why) = &pending {
                let message = format!("pending could not be counted: {why}");
                observed.failures.push(Failure::new(definition, message));
            }
            // Not knowing who runs, the plan starts what it takes for missing. Occupied slots are locked all the same,
            // so that this exceeds `max` as little as anything else does.
            let here = slots.map_or_else(
                |error| {
                    observed.failures.push(Failure::new(definition, error));
                    BTreeSet::new()
                },
                |slots| slots.iter().map(|slot| slot.slot).collect(),
            );
            let running = held.map(|held| u32::try_from(held.union(&here).count()).unwrap_or(u32::MAX));
            if let Err(why) = &running {
                observed.failures.push(Failure::new(definition, why));
            }
            observed.observations.push(Observation { definition, pending, running });
        }
        observed
    }

    /// Fills free slots as planned. The plan's order is the definitions'.
    pub(super) async fn act(&self, report: &mut TickReport) {
        for (definition, planned) in self.definitions.iter().zip(&report.plan.workers) {
            if planned.start == 0 {
                continue;
            }
            let (ground, places) = (Arc::clone(&self.ground), Arc::clone(&self.places));
            let (definition, planned) = (definition.clone(), planned.clone());
            let filled = blocking(move || ground.fill(&definition, &planned, &places)).await;
            report.started.extend(filled.started);
            report.failures.extend(filled.failure);
        }
        for started in &report.started {
            let Started { definition, slot, pid } = started;
            tracing::info!(slot = format!("{definition}/{slot}"), pid, "started a worker");
        }
        for failure in &report.failures {
            tracing::error!(worker = failure.definition, "{}", failure.message);
        }
    }

    /// Says for which transports producers should queue, now that the tick is done or the supervisor ends.
    pub(super) async fn promise(&self, report: &TickReport, moment: Moment) {
        if moment == Moment::Tick && !report.started.is_empty() {
            // A program that cannot do its work fails at once, as a rule, and every time; it is not to be counted on.
            tokio::time::sleep(SETTLING).await;
        }
        let slots = self.live_slots().await.into_iter();
        let live: Vec<usize> = slots.map(|slots| slots.map_or(0, |slots| slots.len())).collect();
        let (mut promised, mut withdrawn) = (BTreeSet::new(), BTreeSet::new());
        for ((definition, planned), live) in self.definitions.iter().zip(&report.plan.workers).zip(live) {
            let live = u32::try_from(live).unwrap_or(u32::MAX);
            let due = is_due(definition, planned, live, moment);
            if due { &mut promised } else { &mut withdrawn }.extend(self.heard_as(definition));
        }
        self.promises.say(&promised, &withdrawn).await;
    }

    /// Takes back all promises.
    pub(super) async fn withdraw_promises(&self) {
        let all = self.definitions.iter().flat_map(|definition| self.heard_as(definition)).collect();
        self.promises.say(&BTreeSet::new(), &all).await;
    }

    /// The names under which producers ask whether a definition's transports are being consumed: those configured, and
    /// the targets of those that are auto-fallbacks.
    fn heard_as(&self, definition: &WorkerDefinition) -> BTreeSet<String> {
        let target = |name: &String| Some(self.transports.target(name).ok()?.name().to_owned());
        let targets = definition.transports.iter().filter_map(target);
        definition.transports.iter().cloned().chain(targets).collect()
    }

    /// The places of each definition that some host holds; none of those that are this host's alone.
    async fn held_places(&self) -> Vec<Result<BTreeSet<u32>, String>> {
        join_all(self.definitions.iter().map(|definition| async {
            if !is_shared(definition) {
                return Ok(BTreeSet::new());
            }
            let held = self.places.held(&definition.name).await;
            held.map_err(|why| format!("workers on all hosts could not be counted: {why}"))
        }))
        .await
    }

    /// Lets go of connections until the next tick: where few are allowed they are for those who work.
    fn rest(&self) {
        let names = self.definitions.iter().flat_map(|definition| &definition.transports);
        for transport in names.filter_map(|name| self.transports.target(name).ok()) {
            transport.rest();
        }
    }

    /// Messages pending in all of a definition's transports together.
    async fn count(&self, definition: &WorkerDefinition, limit: Duration) -> Result<u64, String> {
        let cap = count_cap(&definition.autoscale);
        let counts = definition.transports.iter().map(|transport| self.count_one(transport, cap, limit));
        let mut sum: u64 = 0;
        for count in join_all(counts).await {
            sum = sum.saturating_add(count?);
        }
        Ok(sum)
    }

    async fn count_one(&self, name: &str, cap: u64, limit: Duration) -> Result<u64, String> {
        let transport = self.transports.target(name).map_err(|error| error.to_string())?;
        let counting = transport.counting().ok_or_else(|| format!("transport \"{name}\" cannot count its messages"))?;
        match tokio::time::timeout(limit, counting.pending(cap)).await {
            Ok(count) => count.map_err(|error| error.to_string()),
            Err(_) => Err(format!("transport \"{name}\" did not answer within {limit:.0?}")),
        }
    }

    /// The live workers of each definition.
    async fn live_slots(&self) -> Vec<Result<Vec<LiveSlot>, StateError>> {
        let ground = Arc::clone(&self.ground);
        let names: Vec<String> = self.definitions.iter().map(|definition| definition.name.clone()).collect();
        blocking(move || names.iter().map(|name| ground.slots.live(name)).collect()).await
    }
}

/// Where workers run, and what they are.
pub(super) struct Ground {
    pub slots: Slots,
    /// Where workers run: the configuration's folder.
    pub dir: PathBuf,
    pub state_dir: PathBuf,
    /// This program's own worker.
    pub consume: Vec<OsString>,
}

/// What became of a definition's free slots.
struct Filled {
    started: Vec<Started>,
    /// The first thing that went wrong: the others are likely the same.
    failure: Option<Failure>,
}

impl Ground {
    /// Starts workers in the lowest free slots. Blocks, for as long as starting a process takes. To be called where
    /// blocking is allowed, within a tokio runtime.
    fn fill(&self, definition: &WorkerDefinition, planned: &PlannedWorkers, places: &Places) -> Filled {
        let command = command_line(definition, &self.consume);
        let log = worker_log(&self.state_dir, &definition.name);
        let mut filled = Filled { started: Vec::new(), failure: None };
        // Of the places that hosts share only as many as are wanted on all of them together: two hosts that see the same
        // need then compete for the same places, instead of each filling it.
        let slots = if is_shared(definition) { planned.desired } else { definition.autoscale.max };
        for slot in 0..slots {
            if filled.started.len() >= planned.start as usize {
                break;
            }
            let claim = match self.slots.claim(&definition.name, slot) {
                Ok(Some(claim)) => claim,
                // Occupied, perhaps just now, by another supervisor.
                Ok(None) => continue,
                // Something is wrong with this slot; the next one may do.
                Err(error) => {
                    filled.failure.get_or_insert_with(|| Failure::new(definition, error));
                    continue;
                }
            };
            if is_shared(definition) {
                match Handle::current().block_on(places.take(definition, slot)) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(why) => {
                        let message = format!("place {slot} of the cluster could not be taken: {why}");
                        filled.failure.get_or_insert_with(|| Failure::new(definition, message));
                        break;
                    }
                }
            }
            match spawn(claim, &command, &self.dir, &log) {
                Ok(spawned) => {
                    filled.started.push(Started { definition: definition.name.clone(), slot, pid: spawned.pid });
                    if let Some(error) = spawned.unrecorded {
                        let message = format!("worker {} runs in slot {slot}, unrecorded: {error}", spawned.pid);
                        filled.failure.get_or_insert_with(|| Failure::new(definition, message));
                    }
                }
                // The next slot would not help.
                Err(error) => {
                    filled.failure.get_or_insert_with(|| Failure::new(definition, error));
                    break;
                }
            }
        }
        filled
    }
}

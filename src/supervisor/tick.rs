//! One tick: observe ▸ plan ▸ act.
//!
//! Observing asks all transports at once, each for a limited time, and looks at the slots. Acting fills free slots. A
//! definition whose transports do not answer, or whose program is missing, does not hold up the others.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::join_all;
use serde::Serialize;

use super::Supervisor;
use super::autoscale::{Observation, Plan, PlannedWorkers, count_cap, plan};
use super::cluster::{Places, is_shared};
use super::command::command_line;
use super::headroom::Headroom;
use super::promise::{Moment, Word, is_due, word};
use super::refusal;
use super::slot::{LiveSlot, Slots};
use super::spawn::{spawn, worker_log};
use super::state::StateError;
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
    /// Which workers are wanted that there is no room for, if any, and why. In the plan's reasons too.
    pub held_back: Option<String>,
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
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
    headroom: Option<Headroom>,
}

impl Observed<'_> {
    /// Decides what to do, which nothing has been done about yet.
    pub fn into_plan(self) -> TickReport {
        let mut plan = plan(&self.observations);
        let mut failures = self.failures;
        let mut held_back = None;
        if let Some(headroom) = self.headroom {
            let wanted: u32 = plan.workers.iter().map(|planned| planned.start).sum();
            let without = headroom.limit(&mut plan, self.observations.iter().map(|observation| observation.definition));
            failures.extend(without.into_iter().map(|definition| {
                let message = format!("no worker can be started: {}", headroom.why());
                Failure { definition, message }
            }));
            let held = wanted - plan.workers.iter().map(|planned| planned.start).sum::<u32>();
            held_back = (held > 0).then(|| format!("{held} more workers are wanted and held back: {}", headroom.why()));
        }
        TickReport { plan, started: Vec::new(), failures, held_back }
    }
}

impl Supervisor {
    /// Looks at backlogs and slots. Each transport is given `limit` to answer. Changes nothing.
    pub(super) async fn observe(&self, limit: Duration) -> Observed<'_> {
        let counts = join_all(self.definitions.iter().map(|definition| self.count(definition, limit)));
        let (counts, held) = tokio::join!(counts, self.held_places());
        let slots = self.live_slots();
        let live = slots.iter().map(|slots| slots.as_deref().unwrap_or_default());
        let headroom = Headroom::look(self.definitions.iter().zip(live));
        self.rest();
        let mut observed = Observed { observations: Vec::new(), failures: Vec::new(), headroom };
        for (((definition, pending), slots), held) in self.definitions.iter().zip(counts).zip(slots).zip(held) {
            let (pending, unknown) = pending;
            for why in unknown {
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
            let refused = self.idle.get(&definition.name).cloned().or_else(|| self.ground.refused(definition));
            if let Some(why) = &refused {
                observed.failures.push(Failure::new(definition, format!("no worker is started: {why}")));
            }
            observed.observations.push(Observation { definition, pending, running, refused });
        }
        observed
    }

    /// Fills free slots as planned. The plan's order is the definitions'.
    pub(super) async fn act(&self, report: &mut TickReport) {
        for (definition, planned) in self.definitions.iter().zip(&report.plan.workers) {
            if planned.start == 0 {
                continue;
            }
            let filled = self.ground.fill(definition, planned, &self.places).await;
            report.started.extend(filled.started);
            report.failures.extend(filled.failure);
            // Nobody else would get a process either.
            if filled.refused {
                break;
            }
        }
        for started in &report.started {
            let Started { definition, slot, pid } = started;
            tracing::info!(slot = format!("{definition}/{slot}"), pid, "started a worker");
        }
        let failures: HashSet<Failure> = report.failures.iter().cloned().collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for failure in report.failures.iter().filter(|failure| !told.contains(*failure)) {
            tracing::error!(worker = failure.definition, "{}", failure.message);
        }
        *told = failures;
    }

    /// Says for which transports producers should queue, now that the tick is done or the supervisor ends.
    pub(super) async fn promise(&self, report: &TickReport, moment: Moment) {
        if moment == Moment::Tick && !report.started.is_empty() {
            // A program that cannot do its work fails at once, as a rule, and every time; it is not to be counted on.
            tokio::time::sleep(SETTLING).await;
        }
        let (mut promised, mut withdrawn) = (BTreeSet::new(), BTreeSet::new());
        let slots = self.live_slots().into_iter().map(Result::unwrap_or_default);
        for ((definition, planned), slots) in self.definitions.iter().zip(&report.plan.workers).zip(slots) {
            let live = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let failing = planned.pending.is_none() && self.can_count(definition);
            let names = self.heard_as(definition);
            if !is_due(definition, planned, live, moment, failing) {
                withdrawn.extend(names);
            } else if live == 0 || definition.command.is_some() {
                promised.extend(names);
            } else {
                let oldest = slots.iter().filter_map(|slot| slot.record.as_ref()).map(|record| record.started_at).min();
                for name in names {
                    match word(self.promises.is_heard(&name).await, oldest, Utc::now()) {
                        Word::Promise => drop(promised.insert(name)),
                        Word::Withdraw => drop(withdrawn.insert(name)),
                        Word::Leave => {}
                    }
                }
            }
        }
        self.promises.say(&promised, &withdrawn).await;
    }

    /// Takes back all promises.
    pub(super) async fn withdraw_promises(&self) {
        let all = self.definitions.iter().flat_map(|definition| self.heard_as(definition)).collect();
        self.promises.take_back(&all).await;
    }

    /// Can the messages of all its transports be counted, where their stores answer?
    fn can_count(&self, definition: &WorkerDefinition) -> bool {
        let mut transports = definition.transports.iter().map(|name| self.transports.target(name));
        transports.all(|transport| transport.is_ok_and(|transport| transport.counting.is_some()))
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
            if let Some(connecting) = &transport.connecting {
                connecting.close_idle();
            }
        }
    }

    /// Messages pending in all of a definition's transports together, and why some of these could not be counted. As long
    /// as one could, the others count as empty: workers for what is known to be pending are missing in any case.
    async fn count(&self, definition: &WorkerDefinition, limit: Duration) -> (Result<u64, String>, Vec<String>) {
        let cap = count_cap(&definition.autoscale);
        let counts = definition.transports.iter().map(|transport| self.count_one(transport, cap, limit));
        let (mut sum, mut unknown) = (None::<u64>, Vec::new());
        for count in join_all(counts).await {
            match count {
                Ok(count) => sum = Some(sum.unwrap_or(0).saturating_add(count)),
                Err(why) => unknown.push(why),
            }
        }
        let pending = match (sum, unknown.first()) {
            (None, Some(why)) => Err(why.clone()),
            (sum, _) => Ok(sum.unwrap_or(0)),
        };
        (pending, unknown)
    }

    async fn count_one(&self, name: &str, cap: u64, limit: Duration) -> Result<u64, String> {
        let transport = self.transports.target(name).map_err(|error| error.to_string())?;
        let counting = transport.counting.as_ref();
        let counting = counting.ok_or_else(|| format!("transport \"{name}\" cannot count its messages"))?;
        match tokio::time::timeout(limit, counting.pending(cap)).await {
            Ok(count) => count.map_err(|error| error.to_string()),
            Err(_) => Err(format!("transport \"{name}\" did not answer within {limit:.0?}")),
        }
    }

    /// The live workers of each definition.
    fn live_slots(&self) -> Vec<Result<Vec<LiveSlot>, StateError>> {
        self.definitions.iter().map(|definition| self.ground.slots.live(&definition.name)).collect()
    }
}

/// Where workers run, and what they are.
pub(super) struct Ground {
    pub slots: Slots,
    /// Where programs run as workers: the configuration's folder.
    pub dir: PathBuf,
    /// Where this program's own workers run.
    pub consume_dir: PathBuf,
    pub state_dir: PathBuf,
    /// The configuration's file.
    pub config: PathBuf,
    /// This program's own worker.
    pub consume: Vec<OsString>,
}

/// What became of a definition's free slots.
struct Filled {
    started: Vec<Started>,
    /// The first thing that went wrong: the others are likely the same.
    failure: Option<Failure>,
    /// The system gives this user no further process now.
    refused: bool,
}

impl Ground {
    /// Why workers of a definition can do nothing, as the last one has said.
    fn refused(&self, definition: &WorkerDefinition) -> Option<String> {
        refusal::read(&self.slots.dir_of(&definition.name), &self.config)
    }

    /// Starts workers in the lowest free slots.
    async fn fill(&self, definition: &WorkerDefinition, planned: &PlannedWorkers, places: &Places) -> Filled {
        let command = command_line(definition, &self.consume);
        let log = worker_log(&self.state_dir, &definition.name);
        let mut filled = Filled { started: Vec::new(), failure: None, refused: false };
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
                match places.take(definition, slot).await {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(why) => {
                        let message = format!("place {slot} of the cluster could not be taken: {why}");
                        filled.failure.get_or_insert_with(|| Failure::new(definition, message));
                        break;
                    }
                }
            }
            let dir = if definition.command.is_none() { &self.consume_dir } else { &self.dir };
            match spawn(claim, &command, dir, &log) {
                Ok(spawned) => {
                    filled.started.push(Started { definition: definition.name.clone(), slot, pid: spawned.pid });
                    if let Some(error) = spawned.unrecorded {
                        let message = format!("worker {} runs in slot {slot}, unrecorded: {error}", spawned.pid);
                        filled.failure.get_or_insert_with(|| Failure::new(definition, message));
                    }
                }
                // The next slot would not help.
                Err(error) => {
                    filled.refused = error.is_refusal();
                    let begun = filled.started.len();
                    let started = if begun > 0 {
                        format!("{begun} of {} workers started; ", planned.start)
                    } else {
                        String::new()
                    };
                    filled.failure.get_or_insert_with(|| Failure::new(definition, format!("{started}{error}")));
                    break;
                }
            }
        }
        filled
    }
}

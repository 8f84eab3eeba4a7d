//! The first step of a tick: what is pending, and who is running.
//!
//! All transports are asked at once, each for a limited time. A definition whose transports do not answer does not
//! delay the others.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::TickFailure;
use super::autoscale::{Observation, count_cap};
use super::headroom::Headroom;
use super::leases::{Leases, is_shared};
use super::refusal;
use super::slots::{LiveSlot, Slots};
use crate::config::WorkerDefinition;
use crate::state_files::StateError;
use crate::transport::Transports;

/// Observes the backlogs and workers of definitions. Changes nothing.
pub(super) struct Observer {
    pub transports: Arc<Transports>,
    pub slots: Slots,
    /// The slots of scheduled jobs, which take processes too.
    pub jobs: Slots,
    /// The configuration's file.
    pub config: PathBuf,
    /// Definitions that get no worker, and why.
    pub idle: HashMap<String, String>,
}

/// What was observed.
pub(super) struct Observed<'a> {
    /// One for each definition, in their order.
    pub observations: Vec<Observation<'a>>,
    /// What could not be observed.
    pub failures: Vec<TickFailure>,
    /// `None` if this user may have any number of processes.
    pub headroom: Option<Headroom>,
}

/// The pending messages of a definition.
struct Backlog {
    /// Of all transports together. An error if none of them could be counted.
    pending: Result<u64, String>,
    /// Why transports could not be counted.
    errors: Vec<String>,
}

impl Observer {
    /// Observes these definitions. Each transport has `count_timeout` to answer.
    pub(super) async fn observe<'a>(
        &self,
        definitions: &'a [WorkerDefinition],
        leases: &Leases,
        count_timeout: Duration,
    ) -> Observed<'a> {
        let backlogs = join_all(definitions.iter().map(|definition| self.count(definition, count_timeout)));
        let leased = join_all(definitions.iter().map(|definition| leased(definition, leases)));
        let (backlogs, leased) = tokio::join!(backlogs, leased);
        self.close_idle_connections(definitions);
        let live: Vec<_> = definitions.iter().map(|definition| self.slots.live(&definition.name)).collect();
        let here = live.iter().map(|live| live.as_deref().unwrap_or_default());
        let headroom = Headroom::look(definitions.iter().zip(here), || self.jobs.all_live().unwrap_or_default());
        let mut observed = Observed { observations: Vec::new(), failures: Vec::new(), headroom };
        for (((definition, backlog), live), leased) in definitions.iter().zip(backlogs).zip(live).zip(leased) {
            let failures = &mut observed.failures;
            let mut fail = |message: String| failures.push(TickFailure::new(definition, message));
            backlog.errors.iter().for_each(|why| fail(format!("pending could not be counted: {why}")));
            let running = running(live, leased, &mut fail);
            let refused = self.idle.get(&definition.name).cloned().or_else(|| self.refused(definition));
            if let Some(why) = &refused {
                fail(format!("no worker is started: {why}"));
            }
            observed.observations.push(Observation { definition, pending: backlog.pending, running, refused });
        }
        observed
    }

    /// Why workers of this definition can do nothing, as the last one has reported.
    fn refused(&self, definition: &WorkerDefinition) -> Option<String> {
        refusal::read(&self.slots.dir_of(&definition.name), &self.config)
    }

    /// Counts the pending messages of a definition. If some transports cannot be counted, they count as empty: workers
    /// for the messages of the others are needed in any case.
    async fn count(&self, definition: &WorkerDefinition, timeout: Duration) -> Backlog {
        let cap = count_cap(&definition.autoscale);
        let counts = definition.transports.iter().map(|transport| self.count_transport(transport, cap, timeout));
        let (mut sum, mut errors) = (None::<u64>, Vec::new());
        for count in join_all(counts).await {
            match count {
                Ok(count) => sum = Some(sum.unwrap_or(0).saturating_add(count)),
                Err(why) => errors.push(why),
            }
        }
        let pending = match (sum, errors.first()) {
            (None, Some(why)) => Err(why.clone()),
            (sum, _) => Ok(sum.unwrap_or(0)),
        };
        Backlog { pending, errors }
    }

    async fn count_transport(&self, name: &str, cap: u64, timeout: Duration) -> Result<u64, String> {
        let transport = self.transports.target(name).map_err(|error| error.to_string())?;
        let counting = transport.counting.as_ref();
        let counting = counting.ok_or_else(|| format!("transport \"{name}\" cannot count its messages"))?;
        match tokio::time::timeout(timeout, counting.pending(cap)).await {
            Ok(count) => count.map_err(|error| error.to_string()),
            Err(_) => Err(format!("transport \"{name}\" did not answer within {timeout:.0?}")),
        }
    }

    /// Closes connections until the next tick: servers that allow few need them for workers.
    fn close_idle_connections(&self, definitions: &[WorkerDefinition]) {
        let names = definitions.iter().flat_map(|definition| &definition.transports);
        for transport in names.filter_map(|name| self.transports.target(name).ok()) {
            if let Some(connecting) = &transport.connecting {
                connecting.close_idle();
            }
        }
    }
}

/// The cluster slots of a definition that any host has leased; none of a definition whose scope is the host.
async fn leased(definition: &WorkerDefinition, leases: &Leases) -> Result<BTreeSet<u32>, String> {
    if !is_shared(definition) {
        return Ok(BTreeSet::new());
    }
    let held = leases.held(&definition.name).await;
    held.map_err(|why| format!("workers on all hosts could not be counted: {why}"))
}

/// How many workers a definition has: on this host, and in cluster slots that any host has leased.
fn running(
    live: Result<Vec<LiveSlot>, StateError>,
    leased: Result<BTreeSet<u32>, String>,
    fail: &mut impl FnMut(String),
) -> Result<u32, String> {
    let here: BTreeSet<u32> = match live {
        Ok(live) => live.iter().map(|slot| slot.slot).collect(),
        // If it is unknown which workers run, the plan assumes that none does. This cannot exceed `max`, because
        // occupied slots are locked.
        Err(error) => {
            fail(error.to_string());
            BTreeSet::new()
        }
    };
    let running = leased.map(|leased| u32::try_from(leased.union(&here).count()).unwrap_or(u32::MAX));
    if let Err(why) = &running {
        fail(why.clone());
    }
    running
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{IMPATIENT, Pending, Stage, eventually, kill_dead, names, tick, tick_within};
    use crate::config::Autoscale;

    #[tokio::test]
    async fn workers_follow_the_pending_messages() {
        let stage = Stage::new()
            .transport("queue", Pending::Are(7))
            .auto_fallback("async", "queue")
            .transport("more", Pending::Are(4))
            .sleepers("mail", &["async", "more"], 0, 10);
        let supervisor = stage.supervisor();
        let report = tick(&supervisor).await;
        let planned = &report.plan.workers[0];
        assert_eq!((planned.pending, planned.desired, planned.start), (Some(11), 3, 3));
        assert_eq!(report.started.iter().map(|started| started.slot).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(tick(&supervisor).await.started, []);
    }

    #[tokio::test]
    async fn workers_follow_the_pending_messages_beside_a_transport_that_hangs() {
        let stage = Stage::new().transport("hung", Pending::Hang).transport("low", Pending::Are(9)).sleepers(
            "mail",
            &["hung", "low"],
            1,
            10,
        );
        let report = stage.supervisor().plan(IMPATIENT.count_timeout).await;
        let planned = &report.plan.workers[0];
        assert_eq!((planned.pending, planned.desired, planned.start), (Some(9), 2, 2));
        let messages: Vec<_> = report.failures.iter().map(|failure| failure.message.as_str()).collect();
        assert_eq!(messages, ["pending could not be counted: transport \"hung\" did not answer within 50ms"]);
    }

    #[tokio::test]
    async fn workers_beyond_a_lowered_max_still_count() {
        let stage = Stage::new().sleepers("mail", &[], 3, 3);
        tick(&stage.supervisor()).await;
        let lowest = stage.pids()[0];
        let mut stage = stage;
        stage.definitions[0].autoscale = Autoscale { min: 2, max: 2, ..stage.definitions[0].autoscale };
        kill_dead(lowest);
        eventually("a slot is free", || stage.live().len() == 2);
        let report = tick(&stage.supervisor()).await;
        assert_eq!((report.plan.workers[0].running, report.started), (Some(2), vec![]));
    }

    #[tokio::test]
    async fn definitions_that_cannot_be_counted_do_not_delay_the_others() {
        let stage = Stage::new()
            .transport("hung", Pending::Hang)
            .transport("mute", Pending::Uncountable)
            .transport("fine", Pending::Are(5))
            .sleepers("a", &["hung"], 1, 5)
            .sleepers("b", &["mute"], 0, 5)
            .sleepers("c", &["absent"], 0, 5)
            .sleepers("d", &["fine"], 0, 5);
        let report = tick_within(&stage.supervisor(), IMPATIENT).await;
        let messages: Vec<_> = report.failures.iter().map(|failure| failure.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "pending could not be counted: transport \"hung\" did not answer within 50ms",
                "pending could not be counted: transport \"mute\" cannot count its messages",
                "pending could not be counted: there is no transport \"absent\"",
            ]
        );
        let started: Vec<_> = report.started.iter().map(|started| started.definition.as_str()).collect();
        assert_eq!(started, ["a", "d"]);
        assert_eq!(stage.promised(), names(&["fine"]));
    }
}

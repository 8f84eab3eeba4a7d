//! The supervisor's promises to producers: heartbeats that say that a transport's messages will be handled within the
//! minute.
//!
//! Workers of minutely have heartbeats of their own, and withdraw them when they stop. The supervisor promises for all
//! others: for other programs, which have no heartbeats, and for definitions without a worker because there is nothing
//! to do. The rules are [`is_due`] and [`decide`].

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;

use super::autoscale::{Plan, PlannedWorkers};
use super::slots::{LiveSlot, Slots};
use crate::bounded_text::bounded;
use crate::config::WorkerDefinition;
use crate::heartbeat::{Heartbeats, PROMISE_TTL};
use crate::transport::Transports;

/// How long publishing may take. A cache that hangs must not stop the supervision of workers.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Prefix of the owner of every supervisor's heartbeats.
const OWNER_PREFIX: &str = "supervisor@";
/// The longest owner, in bytes. Every store of the cache accepts that.
const MAX_OWNER_LENGTH: usize = 500;

/// How long withdrawing is tried again. Longer than the pause of the cache after an error.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(7);

/// How long a worker of minutely may take until its first heartbeat.
const FIRST_HEARTBEAT: TimeDelta = TimeDelta::seconds(30);

/// What follows a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The next tick of the same supervisor.
    Supervising,
    /// The end of this supervisor, and then the next cron.
    Ending,
}

/// Whether the supervisor promises that messages for this definition's transports will be handled.
///
/// - While it supervises: if there is a worker, or if none is wanted yet and the next tick will see the first message.
///   Not if workers are wanted and cannot be started, or if they could do nothing. Not without a worker if the messages
///   cannot be counted: nothing would handle them. Workers of minutely report themselves whether they can receive
///   messages: see [`decide`].
/// - Not for another program whose transports do not answer (`is_failing`): it cannot take messages from them either.
/// - At its end, for the time until the next cron: only for other programs, and for definitions without a worker
///   because there is nothing to do. Workers of minutely have heartbeats. If the crontab line is removed, the clean
///   stop of the last one is known at once; a promise of the supervisor would keep producers from falling back.
fn is_due(definition: &WorkerDefinition, planned: &PlannedWorkers, live: u32, phase: Phase, is_failing: bool) -> bool {
    let has_nothing_to_do = planned.desired == 0 && planned.pending.is_some();
    match (live, phase, definition.command.is_some()) {
        _ if planned.refused => false,
        (0, _, _) => has_nothing_to_do,
        (_, _, true) => !is_failing,
        (_, Phase::Supervising, false) => true,
        (_, Phase::Ending, false) => false,
    }
}

/// What to do with the promise for a transport with live workers of minutely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Its workers take messages: promise.
    Promise,
    /// Its workers have been alive for long, and none of them has a heartbeat: withdraw.
    Withdraw,
    /// Its workers have just been started: leave the promise as it is.
    Leave,
}

/// `has_heartbeat`: whether any worker has a heartbeat for the transport. `oldest`: when the first of its workers
/// started.
fn decide(has_heartbeat: bool, oldest: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Decision {
    match oldest {
        _ if has_heartbeat => Decision::Promise,
        Some(started_at) if now - started_at > FIRST_HEARTBEAT => Decision::Withdraw,
        _ => Decision::Leave,
    }
}

/// The heartbeats of the supervisor of one state directory.
pub(super) struct Promises {
    heartbeats: Heartbeats,
    owner: String,
    transports: Arc<Transports>,
    slots: Slots,
}

impl Promises {
    /// The owner is the same for all supervisors of this state directory on this host: the next one renews the promises
    /// of the one before.
    pub(super) fn new(heartbeats: Heartbeats, transports: Arc<Transports>, slots: Slots, state_dir: &Path) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let owner = format!("{OWNER_PREFIX}{}:{}", host.display(), state_dir.display());
        Self { heartbeats, owner: bounded(owner, MAX_OWNER_LENGTH), transports, slots }
    }

    /// Promises for the transports of some definitions, and withdraws the promises for the others, as their plan and
    /// their live workers demand.
    pub(super) async fn update(&self, definitions: &[WorkerDefinition], plan: &Plan, phase: Phase) {
        let (mut promised, mut withdrawn) = (BTreeSet::new(), BTreeSet::new());
        for (definition, planned) in definitions.iter().zip(&plan.workers) {
            let slots = self.slots.live(&definition.name).unwrap_or_default();
            let live = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let is_failing = planned.pending.is_none() && self.is_countable(definition);
            let names = self.producers_names(definition);
            if !is_due(definition, planned, live, phase, is_failing) {
                withdrawn.extend(names);
            } else if live == 0 || definition.command.is_some() {
                promised.extend(names);
            } else {
                let oldest = oldest(&slots);
                for name in names {
                    match decide(self.has_worker_heartbeat(&name).await, oldest, Utc::now()) {
                        Decision::Promise => drop(promised.insert(name)),
                        Decision::Withdraw => drop(withdrawn.insert(name)),
                        Decision::Leave => {}
                    }
                }
            }
        }
        self.publish(&promised, &withdrawn).await;
    }

    /// Withdraws all promises, at the end of a supervisor that no other is to follow. Tries for some seconds.
    pub(super) async fn withdraw_all(&self, definitions: &[WorkerDefinition]) {
        let names: BTreeSet<String> =
            definitions.iter().flat_map(|definition| self.producers_names(definition)).collect();
        let names = names.iter().map(String::as_str).collect();
        self.heartbeats.withdraw_all(names, &self.owner, WITHDRAW_TIMEOUT).await;
    }

    /// Whether the messages of all its transports can be counted while their stores respond.
    fn is_countable(&self, definition: &WorkerDefinition) -> bool {
        let mut transports = definition.transports.iter().map(|name| self.transports.target(name));
        transports.all(|transport| transport.is_ok_and(|transport| transport.counting.is_some()))
    }

    /// The names under which producers ask whether a definition's transports are consumed: the configured names, and
    /// for auto-fallbacks also their targets'.
    fn producers_names(&self, definition: &WorkerDefinition) -> BTreeSet<String> {
        let target = |name: &String| Some(self.transports.target(name).ok()?.name().to_owned());
        let targets = definition.transports.iter().filter_map(target);
        definition.transports.iter().cloned().chain(targets).collect()
    }

    /// Whether a worker has a heartbeat for this transport. True if that cannot be read.
    async fn has_worker_heartbeat(&self, transport: &str) -> bool {
        let heartbeats = tokio::time::timeout(TIMEOUT, self.heartbeats.of(transport)).await;
        let Ok(Ok(heartbeats)) = heartbeats else { return true };
        heartbeats.iter().any(|heartbeat| !heartbeat.key.starts_with(OWNER_PREFIX))
    }

    /// What fails is logged: producers then handle messages themselves, or wait for a promise to expire.
    async fn publish(&self, promised: &BTreeSet<String>, withdrawn: &BTreeSet<String>) {
        let promises = promised.iter().map(|transport| self.promise(transport));
        let withdrawals = withdrawn.difference(promised).map(|transport| self.withdraw(transport));
        let all = async { tokio::join!(join_all(promises), join_all(withdrawals)) };
        if tokio::time::timeout(TIMEOUT, all).await.is_err() {
            tracing::warn!("the store of heartbeats did not answer within {} s", TIMEOUT.as_secs());
        }
    }

    async fn promise(&self, transport: &str) {
        // A cache that is down is reported once, and not for each transport.
        if let Err(error) = self.heartbeats.beat(transport, &self.owner, PROMISE_TTL).await
            && !error.known
        {
            tracing::warn!(transport, %error, "no heartbeat; producers may handle messages themselves");
        }
    }

    async fn withdraw(&self, transport: &str) {
        if let Err(error) = self.heartbeats.withdraw(transport, &self.owner).await
            && !error.known
        {
            tracing::warn!(transport, %error, "the heartbeat could not be withdrawn; it expires by itself");
        }
    }
}

/// When the first of these workers was started.
fn oldest(slots: &[LiveSlot]) -> Option<DateTime<Utc>> {
    slots.iter().filter_map(|slot| slot.record.as_ref()).map(|record| record.started_at).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Autoscale, ConsumeOptions};

    /// A definition with one live worker that has nothing to do.
    struct Case {
        pending: Option<u64>,
        is_other_program: bool,
        desired: u32,
        live: u32,
        refused: bool,
    }

    impl Default for Case {
        fn default() -> Self {
            Self { pending: Some(0), is_other_program: false, desired: 1, live: 1, refused: false }
        }
    }

    impl Case {
        fn is_promised(&self, phase: Phase) -> bool {
            let definition = WorkerDefinition {
                name: "mail".into(),
                path: "workers[0]".into(),
                transports: vec![],
                options: vec![],
                consume_options: ConsumeOptions::default(),
                autoscale: Autoscale::default(),
                command: self.is_other_program.then(|| vec!["php".into()]),
            };
            let planned = PlannedWorkers {
                name: "mail".into(),
                transports: vec![],
                pending: self.pending,
                running: Some(self.live),
                desired: self.desired,
                start: 0,
                reason: String::new(),
                refused: self.refused,
            };
            is_due(&definition, &planned, self.live, phase, self.pending.is_none())
        }
    }

    #[test]
    fn workers_that_do_not_take_messages_are_not_promised_for() {
        let now = Utc::now();
        let since = |seconds| Some(now - TimeDelta::seconds(seconds));
        assert_eq!(decide(true, since(3600), now), Decision::Promise);
        assert_eq!(decide(false, since(3600), now), Decision::Withdraw);
        assert_eq!(decide(false, since(1), now), Decision::Leave, "it may be about to");
        assert_eq!(decide(false, None, now), Decision::Leave);
    }

    #[test]
    fn a_running_supervisor_promises_for_all_definitions_that_are_served() {
        for is_other_program in [true, false] {
            let case = |desired, live| Case { desired, live, is_other_program, ..Case::default() };
            assert!(case(1, 1).is_promised(Phase::Supervising), "a worker");
            assert!(case(0, 0).is_promised(Phase::Supervising), "nothing to do");
            assert!(!case(1, 0).is_promised(Phase::Supervising), "a worker that cannot be started");
        }
    }

    #[test]
    fn at_its_end_a_supervisor_promises_for_workers_without_heartbeats() {
        let case = |is_other_program, desired, live| Case { is_other_program, desired, live, ..Case::default() };
        assert!(!case(false, 1, 1).is_promised(Phase::Ending), "a worker of minutely has a heartbeat");
        assert!(case(true, 1, 1).is_promised(Phase::Ending), "another program has none");
        assert!(case(true, 0, 1).is_promised(Phase::Ending), "the last worker of another program");
        for is_other_program in [true, false] {
            assert!(case(is_other_program, 0, 0).is_promised(Phase::Ending), "nothing to do");
            assert!(!case(is_other_program, 1, 0).is_promised(Phase::Ending), "all workers are dead");
        }
    }

    #[test]
    fn nothing_is_promised_for_workers_that_could_do_nothing() {
        for phase in [Phase::Supervising, Phase::Ending] {
            assert!(!Case { desired: 0, live: 0, refused: true, ..Case::default() }.is_promised(phase));
        }
    }

    #[test]
    fn nothing_is_promised_for_messages_that_would_not_be_noticed() {
        for phase in [Phase::Supervising, Phase::Ending] {
            let uncountable = Case { pending: None, desired: 0, live: 0, ..Case::default() };
            assert!(!uncountable.is_promised(phase));
            let other_program = Case { is_other_program: true, live: 1, ..uncountable };
            assert!(!other_program.is_promised(phase), "a program whose store does not answer");
        }
    }
}

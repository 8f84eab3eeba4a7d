//! What the supervisor promises to producers: that somebody will look at a transport within the minute.
//!
//! A worker of ours pings for itself, and stops when it stops. The supervisor's promise is for the rest: for programs
//! that cannot ping, and for definitions that have no worker because there is nothing to do. All the rules are in
//! [`is_due`].

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;

use super::autoscale::PlannedWorkers;
use crate::bounded_text::bounded;
use crate::config::WorkerDefinition;
use crate::heartbeat::{Heartbeats, PROMISE_TTL};

/// How long saying everything may take. A store of heartbeats that hangs must not stop the supervision of workers.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Begins the names of supervisors among all that say who consumes what.
const OWNER: &str = "supervisor@";

/// For how long promises are tried to be taken back: longer than a cache that failed is left alone for.
const TAKING_BACK: Duration = Duration::from_secs(7);
/// How long the name of a supervisor is at most, in bytes: every store of the cache takes that.
const LONGEST_OWNER: usize = 500;

/// When a promise is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// After a tick; the next one follows.
    Tick,
    /// The supervisor ends, and the next cron starts another.
    End,
}

/// Should messages for this definition's transports be queued because the supervisor says so?
///
/// - While it supervises: when there is a worker, or when none is wanted yet and it will see the first message at its
///   next tick. Not when workers are wanted and cannot be started, or could do nothing, and not when there is no worker and
///   the messages cannot be counted: they would wait for nobody. What a worker of ours cannot take from, it says itself:
///   see [`Word`].
/// - Not for another program whose transports do not answer (`failing`): it cannot take messages from them either.
/// - At its end, for the time until the next cron, only for those who cannot speak for themselves: workers that are
///   other programs, and definitions at rest. Our own workers ping. When the crontab line is gone, the last one's clean
///   stop is then known at once, and a promise of the supervisor would only keep producers from falling back.
pub(super) fn is_due(
    definition: &WorkerDefinition,
    planned: &PlannedWorkers,
    live: u32,
    moment: Moment,
    failing: bool,
) -> bool {
    let at_rest = planned.desired == 0 && planned.pending.is_some();
    match (live, moment, definition.command.is_some()) {
        _ if planned.refused => false,
        (0, _, _) => at_rest,
        (_, _, true) => !failing,
        (_, Moment::Tick, false) => true,
        (_, Moment::End, false) => false,
    }
}

/// How long a worker of ours may take until it says that it takes messages, or does not.
const FINDING_ITS_VOICE: TimeDelta = TimeDelta::seconds(30);

/// What is to be said of a transport, for whose workers, ours, a promise is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Its workers take messages.
    Promise,
    /// Its workers live, and have said for long that they cannot take messages by not saying that they do.
    Withdraw,
    /// They have just been started: whatever was said before stands.
    Leave,
}

/// `heard`: does a worker say that the transport is being consumed? `oldest`: since when the first of them runs.
pub(super) fn word(heard: bool, oldest: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Word {
    match oldest {
        _ if heard => Word::Promise,
        Some(since) if now - since > FINDING_ITS_VOICE => Word::Withdraw,
        _ => Word::Leave,
    }
}

/// The supervisor's own heartbeats.
pub(super) struct Promises {
    heartbeats: Heartbeats,
    owner: String,
}

impl Promises {
    /// The promises of whoever supervises this state directory on this host. The next supervisor renews the same ones.
    pub fn new(heartbeats: Heartbeats, state_dir: &Path) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let owner = bounded(format!("{OWNER}{}:{}", host.display(), state_dir.display()), LONGEST_OWNER);
        Self { heartbeats, owner }
    }

    /// Does a worker say that this transport is being consumed? Where that cannot be read, it is taken to be so.
    pub async fn is_heard(&self, transport: &str) -> bool {
        let heard = tokio::time::timeout(TIMEOUT, self.heartbeats.of(transport)).await;
        let Ok(Ok(heard)) = heard else { return true };
        heard.iter().any(|fact| !fact.key.starts_with(OWNER))
    }

    /// Promises for some transports, and takes back what was promised for others. Failures are logged: producers then
    /// handle messages themselves, or wait for a promise to expire.
    pub async fn say(&self, promised: &BTreeSet<String>, withdrawn: &BTreeSet<String>) {
        let beats = promised.iter().map(|transport| self.beat(transport));
        let withdrawals = withdrawn.difference(promised).map(|transport| self.withdraw(transport));
        let all = async { tokio::join!(join_all(beats), join_all(withdrawals)) };
        if tokio::time::timeout(TIMEOUT, all).await.is_err() {
            tracing::warn!("the store of heartbeats did not answer within {} s", TIMEOUT.as_secs());
        }
    }

    /// Takes back what was promised for these transports, at the end of a supervisor after which none is to come. Tries for
    /// a while.
    pub async fn take_back(&self, transports: &BTreeSet<String>) {
        let transports = transports.iter().map(String::as_str).collect();
        self.heartbeats.withdraw_all(transports, &self.owner, TAKING_BACK).await;
    }

    async fn beat(&self, transport: &str) {
        // A cache that is down is told of once, and not for each transport.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Autoscale;

    fn due(foreign: bool, desired: u32, live: u32, moment: Moment) -> bool {
        due_when(Some(0), foreign, desired, live, moment)
    }

    fn due_when(pending: Option<u64>, foreign: bool, desired: u32, live: u32, moment: Moment) -> bool {
        let definition = WorkerDefinition {
            name: "mail".into(),
            path: "workers[0]".into(),
            transports: vec![],
            options: vec![],
            autoscale: Autoscale::default(),
            command: foreign.then(|| vec!["php".into()]),
        };
        let planned = PlannedWorkers {
            name: "mail".into(),
            transports: vec![],
            pending,
            running: Some(live),
            desired,
            start: 0,
            reason: String::new(),
            refused: false,
        };
        is_due(&definition, &planned, live, moment, pending.is_none())
    }

    #[test]
    fn workers_that_do_not_take_messages_are_not_promised_for() {
        let now = Utc::now();
        let since = |seconds| Some(now - TimeDelta::seconds(seconds));
        assert_eq!(word(true, since(3600), now), Word::Promise);
        assert_eq!(word(false, since(3600), now), Word::Withdraw);
        assert_eq!(word(false, since(1), now), Word::Leave, "it may be about to");
        assert_eq!(word(false, None, now), Word::Leave);
    }

    #[test]
    fn while_it_supervises_it_promises_for_all_that_are_served() {
        for foreign in [true, false] {
            assert!(due(foreign, 1, 1, Moment::Tick), "a worker");
            assert!(due(foreign, 0, 0, Moment::Tick), "at rest");
            assert!(!due(foreign, 1, 0, Moment::Tick), "a worker that cannot be started");
        }
    }

    #[test]
    fn at_its_end_it_promises_for_those_who_cannot_speak_for_themselves() {
        assert!(!due(false, 1, 1, Moment::End), "our own worker pings");
        assert!(due(true, 1, 1, Moment::End), "another program cannot");
        assert!(due(true, 0, 1, Moment::End), "the last one of another program");
        for foreign in [true, false] {
            assert!(due(foreign, 0, 0, Moment::End), "at rest");
            assert!(!due(foreign, 1, 0, Moment::End), "all dead");
        }
    }

    #[test]
    fn nothing_is_promised_for_workers_that_could_do_nothing() {
        let definition = WorkerDefinition {
            name: "mail".into(),
            path: "workers[0]".into(),
            transports: vec![],
            options: vec![],
            autoscale: Autoscale::default(),
            command: None,
        };
        let planned = PlannedWorkers {
            name: "mail".into(),
            transports: vec![],
            pending: Some(0),
            running: Some(0),
            desired: 0,
            start: 0,
            reason: String::new(),
            refused: true,
        };
        for moment in [Moment::Tick, Moment::End] {
            assert!(!is_due(&definition, &planned, 0, moment, false));
        }
    }

    #[test]
    fn nothing_is_promised_for_messages_that_nobody_would_notice() {
        for moment in [Moment::Tick, Moment::End] {
            assert!(!due_when(None, false, 0, 0, moment));
            assert!(!due_when(None, true, 0, 1, moment), "a program whose store does not answer");
        }
    }
}

//! One tick: maintain ▸ observe ▸ plan ▸ act ▸ promise.
//!
//! The loops of `cron` and `supervise` call [`Supervisor::tick`], and so do the tests. Its [`Budget`] says how much of
//! it there is time for.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Supervisor;
use super::autoscale::{Plan, plan};
use super::observe::Observed;
use super::promises::Phase;
use super::report::{Started, TickFailure, TickReport};
use crate::clock;

/// How long a transport may take to count its messages. The tick waits for all of them, so this is less than the time
/// between two ticks.
pub(super) const COUNT_TIMEOUT: Duration = Duration::from_secs(3);
/// The same in the last tick under cron, so that this supervisor is gone when the next one starts.
pub(super) const LAST_COUNT_TIMEOUT: Duration = Duration::from_secs(2);
/// Under cron, there is no maintenance in this time before the last tick: it may take seconds, and the next supervisor
/// does it.
const MAINTENANCE_ENDS: Duration = Duration::from_secs(8);
/// How long a worker that was just started must live to count as alive for [promises](super::promises).
const SETTLE: Duration = Duration::from_millis(500);

/// What a tick has time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// How long each transport has to count its messages.
    pub count_timeout: Duration,
    /// Whether leases are renewed, and messages of dead workers put back.
    pub maintains: bool,
    /// Whether another tick follows, so that this one ends with its promises. After the last tick, [`Supervisor::cron`]
    /// makes those for the time until the next cron.
    pub promises: bool,
}

/// What the last tick logged. What stays as it is, is logged once.
#[derive(Default)]
pub(super) struct Logged {
    failures: HashSet<TickFailure>,
    held_back: Option<String>,
}

impl Budget {
    /// Everything.
    pub(super) const FULL: Self = Self { count_timeout: COUNT_TIMEOUT, maintains: true, promises: true };

    /// For a tick that begins this long before the last one; zero is the last one itself.
    pub(super) fn until_last(left: Duration) -> Self {
        Self {
            count_timeout: COUNT_TIMEOUT.min(left + LAST_COUNT_TIMEOUT),
            maintains: left > MAINTENANCE_ENDS,
            promises: !left.is_zero(),
        }
    }
}

impl Supervisor {
    /// One tick. `stop` interrupts it, with `None`, until it begins to act. What was begun is finished, so that what
    /// was started is also reported.
    pub(super) async fn tick(&self, budget: Budget, stop: Pin<&mut impl Future<Output = ()>>) -> Option<TickReport> {
        let mut report = tokio::select! {
            biased;
            () = stop => return None,
            report = self.prepare(budget) => report,
        };
        self.act(&mut report).await;
        self.log(&report);
        self.record(&report);
        if budget.promises {
            if !report.started.is_empty() {
                // A program that cannot do its work usually fails at once, every time. It is not relied on.
                tokio::time::sleep(SETTLE).await;
            }
            self.promises.update(&self.definitions, &report.plan, Phase::Supervising).await;
            self.cache.close_idle();
        }
        Some(report)
    }

    /// All of a tick that comes before acting.
    async fn prepare(&self, budget: Budget) -> TickReport {
        self.note_progress();
        if budget.maintains {
            self.leases.maintain(&self.definitions).await;
            self.recovery.run().await;
            self.recorder.lock().unwrap_or_else(PoisonError::into_inner).tidy(unix_seconds());
            self.note_progress();
        }
        self.plan(budget.count_timeout).await
    }

    /// Observes and plans. Starts and writes nothing.
    pub(super) async fn plan(&self, count_timeout: Duration) -> TickReport {
        decide(self.observer.observe(&self.definitions, &self.leases, count_timeout).await, self.has_jobs)
    }

    /// Starts workers as planned.
    async fn act(&self, report: &mut TickReport) {
        self.note_progress();
        // The plan's order is the definitions'.
        for (definition, planned) in self.definitions.iter().zip(&report.plan.workers) {
            if planned.start == 0 {
                continue;
            }
            let launched = self.launcher.launch(definition, planned, &self.leases).await;
            report.started.extend(launched.started);
            report.failures.extend(launched.failure);
            // The next definition would not get a process either.
            if launched.out_of_processes {
                break;
            }
        }
    }

    fn record(&self, report: &TickReport) {
        let at = unix_seconds();
        let lines = report.plan.workers.iter().map(|planned| report.line(planned, at));
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).record(lines);
    }

    fn log(&self, report: &TickReport) {
        for Started { definition, slot, pid } in &report.started {
            tracing::info!(slot = format!("{definition}/{slot}"), pid, "started a worker");
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        for failure in report.failures.iter().filter(|failure| !logged.failures.contains(*failure)) {
            tracing::error!(worker = failure.definition, "{}", failure.message);
        }
        if let Some(held_back) = report.held_back.as_ref().filter(|why| logged.held_back.as_ref() != Some(*why)) {
            tracing::info!("{held_back}");
        }
        *logged = Logged { failures: report.failures.iter().cloned().collect(), held_back: report.held_back.clone() };
    }
}

/// Makes a plan of what was observed, within what this user may run.
fn decide(observed: Observed<'_>, has_jobs: bool) -> TickReport {
    let Observed { observations, mut failures, headroom } = observed;
    let mut plan = plan(&observations);
    let mut held_back = None;
    if let Some(headroom) = headroom {
        let wanted = to_start(&plan);
        let definitions = observations.iter().map(|observation| observation.definition);
        let without = headroom.limit(&mut plan, definitions, has_jobs);
        failures.extend(without.into_iter().map(|definition| {
            let message = format!("no worker can be started: {}", headroom.why());
            TickFailure { definition, message }
        }));
        let held = wanted - to_start(&plan);
        held_back = (held > 0).then(|| format!("{held} more workers are wanted and held back: {}", headroom.why()));
    }
    TickReport { plan, started: Vec::new(), failures, held_back }
}

/// The time of day.
fn unix_seconds() -> i64 {
    DateTime::<Utc>::from(clock::now()).timestamp()
}

fn to_start(plan: &Plan) -> u32 {
    plan.workers.iter().map(|planned| planned.start).sum()
}

#[cfg(test)]
mod tests {
    use super::super::lock::CRON_LIFETIME;
    use super::*;

    #[test]
    fn the_last_tick_under_cron_is_over_before_the_next_cron() {
        assert!(CRON_LIFETIME + Budget::until_last(Duration::ZERO).count_timeout < Duration::from_secs(60));
        for left in 0..60 {
            let left = Duration::from_secs(left);
            let budget = Budget::until_last(left);
            assert!(budget.count_timeout <= left + LAST_COUNT_TIMEOUT);
            assert_eq!(budget.maintains, left > MAINTENANCE_ENDS, "maintenance takes seconds");
            assert_eq!(budget.promises, !left.is_zero(), "those of the end follow the last tick");
        }
        assert_eq!(Budget::until_last(Duration::from_secs(50)), Budget::FULL);
    }
}

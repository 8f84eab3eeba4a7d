//! When a worker stops by itself.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::far_future;
use crate::config::ConsumeOptions;
use crate::memory;

/// The shortest interval between two checks of this process's memory. A check takes some tens of microseconds.
const MEMORY_CHECK: Duration = Duration::from_millis(250);

/// Why a worker stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// [`ConsumeOptions::limit`].
    MessageLimit,
    /// [`ConsumeOptions::failure_limit`].
    FailureLimit,
    /// [`ConsumeOptions::memory_limit`].
    MemoryLimit,
    /// [`ConsumeOptions::time_limit`].
    TimeLimit,
    /// SIGTERM, SIGINT or SIGQUIT was received.
    #[serde(rename = "signal")]
    OsSignal,
    /// It was asked to, by `stop-workers` or by its handle.
    #[serde(rename = "asked")]
    Requested,
    /// A handler asked for it.
    Handler,
    /// What handlers share could not be [reset](crate::AppBuilder::reset) after a message.
    NotReset,
    /// No message was pending, and it was to work only as long as there are some.
    Idle,
    /// One of the transports has only messages that nothing here can handle: they are another application's.
    Unhandleable,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MessageLimit => "the message limit is reached",
            Self::FailureLimit => "the failure limit is reached",
            Self::MemoryLimit => "the memory limit is exceeded",
            Self::TimeLimit => "the time limit is reached",
            Self::OsSignal => "a signal was received",
            Self::Requested => "workers were asked to stop",
            Self::Handler => "a handler asked for it",
            Self::NotReset => "what handlers share could not be reset",
            Self::Idle => "no message is pending",
            Self::Unhandleable => "nothing here can handle the pending messages",
        })
    }
}

/// Counts what a worker has done, and checks it against the limits.
pub(super) struct LimitTracker {
    pub(super) handled: u64,
    pub(super) failed: u64,
    options: ConsumeOptions,
    started: Instant,
    memory_checked: Option<Instant>,
}

impl LimitTracker {
    pub(super) fn new(options: ConsumeOptions) -> Self {
        Self { handled: 0, failed: 0, options, started: Instant::now(), memory_checked: None }
    }

    pub(super) fn count(&mut self, success: bool) {
        if success { self.handled += 1 } else { self.failed += 1 }
    }

    pub(super) fn reached(&mut self) -> Option<StopReason> {
        if self.options.limit.is_some_and(|limit| self.handled + self.failed >= limit) {
            Some(StopReason::MessageLimit)
        } else if self.options.failure_limit.is_some_and(|limit| self.failed >= limit) {
            Some(StopReason::FailureLimit)
        } else if Instant::now() >= self.deadline() {
            Some(StopReason::TimeLimit)
        } else if self.exceeds_memory() {
            Some(StopReason::MemoryLimit)
        } else {
            None
        }
    }

    /// How many more messages may be started while `running` are being handled.
    pub(super) fn remaining(&self, running: usize) -> u64 {
        let spent = self.handled + self.failed + running as u64;
        self.options.limit.map_or(u64::MAX, |limit| limit.saturating_sub(spent))
    }

    pub(super) fn deadline(&self) -> Instant {
        self.options.time_limit.and_then(|time| self.started.checked_add(time)).unwrap_or_else(far_future)
    }

    fn exceeds_memory(&mut self) -> bool {
        let Some(limit) = self.options.memory_limit else { return false };
        let worked = self.handled + self.failed > 0;
        if !worked || self.memory_checked.is_some_and(|at| at.elapsed() < MEMORY_CHECK) {
            return false;
        }
        self.memory_checked = Some(Instant::now());
        memory::resident(std::process::id()).is_some_and(|bytes| bytes > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(options: ConsumeOptions) -> LimitTracker {
        LimitTracker::new(options)
    }

    #[test]
    fn a_worker_without_limits_does_not_stop() {
        let mut tracker = tracker(ConsumeOptions::default());
        tracker.count(false);
        assert_eq!(tracker.reached(), None);
        assert_eq!(tracker.remaining(7), u64::MAX);
    }

    #[test]
    fn messages_being_handled_count_towards_the_message_limit() {
        let mut tracker = tracker(ConsumeOptions { limit: Some(3), ..ConsumeOptions::default() });
        tracker.count(true);
        assert_eq!(tracker.remaining(1), 1);
        assert_eq!(tracker.remaining(5), 0);
        tracker.count(false);
        tracker.count(true);
        assert_eq!(tracker.reached(), Some(StopReason::MessageLimit));
    }

    #[test]
    fn failures_memory_and_time_have_limits_of_their_own() {
        let mut failing = tracker(ConsumeOptions { failure_limit: Some(1), ..ConsumeOptions::default() });
        failing.count(true);
        assert_eq!(failing.reached(), None);
        failing.count(false);
        assert_eq!(failing.reached(), Some(StopReason::FailureLimit));

        let mut large = tracker(ConsumeOptions { memory_limit: Some(1), ..ConsumeOptions::default() });
        assert_eq!(large.reached(), None, "a worker that has done nothing would only be started again");
        large.count(true);
        assert_eq!(large.reached(), Some(StopReason::MemoryLimit));

        let mut late = tracker(ConsumeOptions { time_limit: Some(Duration::ZERO), ..ConsumeOptions::default() });
        assert_eq!(late.reached(), Some(StopReason::TimeLimit));
    }

    #[test]
    fn a_time_limit_that_overflows_is_no_limit() {
        assert_eq!(
            tracker(ConsumeOptions { time_limit: Some(Duration::MAX), ..ConsumeOptions::default() }).reached(),
            None
        );
    }
}

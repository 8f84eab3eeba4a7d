//! What is to be done for a job now: arithmetic on times, without clock and I/O.

use chrono::{DateTime, TimeDelta, Utc};

use super::job::Job;
use crate::config::{CatchUp, Overlap};

/// A run that begins this much too late was missed; `catch_up: none` leaves it out. Between two crons, nobody looks for some
/// seconds.
pub(super) const MISSED_AFTER: TimeDelta = TimeDelta::seconds(90);

/// What to do for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before this time; nothing at all without one.
    Wait(Option<DateTime<Utc>>),
    /// The run waits for the one that goes on.
    WaitForRun,
    /// Leave out everything that was due until then.
    LeaveOut { due: DateTime<Utc>, why: &'static str },
    /// Start the run that was due then.
    Start { due: DateTime<Utc> },
}

/// What to do for a job whose due times were seen to up to `last`. `running`: since when a run goes on, if one does.
pub(super) fn step(job: &Job, last: DateTime<Utc>, now: DateTime<Utc>, running: Option<DateTime<Utc>>) -> Step {
    let wanted = match job.config.catch_up {
        CatchUp::All => job.schedule.next_after(last).filter(|due| job.begins(*due) <= now),
        CatchUp::Once | CatchUp::None => latest(job, last, now),
    };
    let Some(due) = wanted else {
        return Step::Wait(job.schedule.next_after(last).map(|due| job.begins(due)));
    };
    if job.config.catch_up == CatchUp::None && now - job.begins(due) > MISSED_AFTER {
        return Step::LeaveOut { due, why: "it was missed" };
    }
    match (job.config.overlap, running) {
        (Overlap::Skip, Some(since)) if due > since => Step::LeaveOut { due, why: "the job still runs" },
        (Overlap::Skip | Overlap::Queue, Some(_)) => Step::WaitForRun,
        _ => Step::Start { due },
    }
}

/// The last due time after `last` whose run begins by now. Earlier ones are seen to with it.
fn latest(job: &Job, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let due = job.schedule.last_within(last, now)?;
    if job.begins(due) <= now {
        return Some(due);
    }
    // A run begins before the next one is due.
    job.schedule.last_within(last, due - TimeDelta::seconds(1))
}

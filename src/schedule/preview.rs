//! What would be done for jobs now: for `cron --dry-run`. Starts and writes nothing.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::due::{Step, step};
use super::job::Job;
use super::scheduler::boot_id;
use super::shared_state::SharedState;
use super::timing::Schedule;
use crate::cache::CacheError;
use crate::config::WorkerDefinition;
use crate::supervisor::{JobRoom, JobSlots};

/// A job that is due.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DueJob {
    pub name: String,
    /// Since when; none for a job that runs after a boot.
    pub due: Option<DateTime<Utc>>,
    /// Would it be started now?
    pub start: bool,
    /// Why it would not.
    pub why: Option<String>,
}

/// The jobs that are due now, in their order.
pub(crate) async fn due_jobs(
    jobs: &[Job],
    shared: &SharedState,
    slots: &JobSlots,
    workers: &[WorkerDefinition],
    now: DateTime<Utc>,
) -> Result<Vec<DueJob>, CacheError> {
    let mut room = slots.room(workers);
    let mut due_jobs = Vec::new();
    for job in jobs {
        let (due, why) = match job.schedule {
            Schedule::Reboot if shared.is_boot_taken(job, &boot_id()).await? => continue,
            Schedule::Reboot => (None, None),
            _ => match look(job, shared, slots, now).await? {
                Some((due, why)) => (Some(due), why),
                None => continue,
            },
        };
        let why = why.or_else(|| place(&mut room));
        due_jobs.push(DueJob { name: job.name().to_owned(), due, start: why.is_none(), why });
    }
    Ok(due_jobs)
}

/// Since when a job is due, and why it would not be started. `None`: it is not due.
async fn look(
    job: &Job,
    shared: &SharedState,
    slots: &JobSlots,
    now: DateTime<Utc>,
) -> Result<Option<(DateTime<Utc>, Option<String>)>, CacheError> {
    let history = shared.known_history(job, now).await?;
    let here = slots.live(job.name()).unwrap_or_default();
    let mut running = here.iter().map(|slot| slot.record.as_ref().map_or(now, |record| record.started_at)).min();
    if running.is_none() && job.has_lease() {
        let mut leases = shared.leases().await?.into_iter();
        if leases.any(|(name, host)| name == job.name() && host != shared.host()) {
            running = Some(shared.running_since(job).await?.unwrap_or(now));
        }
    }
    let (due, why) = match step(job, history.last, now, running) {
        Step::Wait(_) => return Ok(None),
        Step::Start { due } => (due, None),
        Step::WaitForRun => (now, Some("it waits for the run that goes on".to_owned())),
        Step::LeaveOut { due, why } => (due, Some(format!("it is left out: {why}"))),
    };
    let gave_back = history.not_before.filter(|time| *time > now);
    let waits =
        gave_back.map(|time| format!("it has skipped itself, and waits until {}", job.schedule.zone().show(time)));
    Ok(Some((due, why.or(waits))))
}

fn place(room: &mut JobRoom) -> Option<String> {
    if !room.has_place() {
        return Some(format!("it waits until others have ended: {}", room.why()));
    }
    room.take();
    None
}

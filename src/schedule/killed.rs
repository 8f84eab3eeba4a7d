//! Cleans up after runs whose processes were killed.

use std::path::Path;

use chrono::{DateTime, Utc};

use super::job::Job;
use super::report::{Report, Reports};
use super::shared_state::{Outcome, Run, SharedState, key_of};
use crate::supervisor::{JobSlots, KilledRun};

/// Before a job is run by hand: sees to runs of it that were killed.
pub(crate) async fn clean_up_job(
    job: &Job,
    shared: &SharedState,
    slots: &JobSlots,
    state_dir: &Path,
    now: DateTime<Utc>,
) {
    let mut killed = slots.killed_runs();
    killed.retain(|killed| killed.job == job.name());
    clean_up(killed, &[job], shared, slots, &Reports::new(state_dir), now).await;
}

/// Ends what killed runs have left running, and records and reports that these runs are over.
pub(super) async fn clean_up(
    killed: Vec<KilledRun>,
    jobs: &[&Job],
    shared: &SharedState,
    slots: &JobSlots,
    reports: &Reports,
    now: DateTime<Utc>,
) {
    for killed in killed {
        // While it is held, no run of this host has the lease.
        let _claim = match slots.claim_killed(&killed) {
            Ok(Some(claim)) => claim,
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(job = killed.job, %error, "what a killed run has left cannot be cleaned up now");
                continue;
            }
        };
        if !killed.end_leftovers().await {
            continue;
        }
        let runs = match shared.runs(&killed.job).await {
            Ok(runs) => runs,
            // The next look tries again.
            Err(_) => continue,
        };
        // With the run's end, if that had come and could not be recorded.
        let (id, end) = killed.id.split_once('\n').unwrap_or((&killed.id, ""));
        let run = runs.into_iter().find(|run| run.id == id);
        let had_started = run.is_some();
        // One with an end was killed right after that was recorded.
        let over = match serde_json::from_str::<Run>(end).ok() {
            _ if run.as_ref().is_some_and(|run| run.ended_at.is_some()) => None,
            Some(ended) => Some(ended),
            None => run.map(|run| interrupted(run, &killed.job, reports, now)),
        };
        if over.is_none() && !had_started {
            tracing::error!(job = killed.job, "a run was killed before its start was recorded");
        }
        if let Some(run) = over
            && let Err(error) = shared.write(&killed.job, &run).await
        {
            tracing::warn!(job = killed.job, %error, "the end of a run could not be recorded now");
            continue;
        }
        if let Some(job) = jobs.iter().find(|job| job.name() == killed.job)
            && killed.is_first()
            && job.has_lease()
            && let Err(error) = shared.release(job).await
        {
            tracing::warn!(job = killed.job, %error, "its lease could not be released, and expires");
        }
        if let Err(error) = killed.forget() {
            tracing::warn!(job = killed.job, %error, "the file of a killed run could not be removed, and is found again");
        }
    }
}

/// A run that was killed: reports it.
fn interrupted(run: Run, job: &str, reports: &Reports, now: DateTime<Utc>) -> Run {
    let why = Some("it was killed, or the computer went off".to_owned());
    let run = Run { ended_at: Some(now), outcome: Some(Outcome::Interrupted), why, ..run };
    tracing::info!(job, "the run of {} was killed", key_of(run.started_at));
    let report = Report { job: job.to_owned(), run };
    if let Err(error) = reports.save(&report) {
        tracing::error!(job, %error, "the failure of a job cannot be reported by mail");
    }
    report.run
}

//! A job: what the configuration says of it, and its schedule.

use chrono::{DateTime, TimeDelta, Utc};

use super::expression::hash;
use super::timing::Schedule;
use super::zone::{Zone, problem_of_tz};
use crate::config::{Config, JobConfig, Overlap, Problem};

/// More runs of one job at once are not started, with `overlap: allow`.
const MAX_AT_ONCE: u32 = 64;

/// A job with a schedule that can be used.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// What the configuration says.
    pub config: JobConfig,
    /// When it is due.
    pub schedule: Schedule,
}

/// The jobs of a configuration, and what is wrong with their schedules.
pub(crate) fn jobs(config: &Config, now: DateTime<Utc>) -> (Vec<Job>, Vec<Problem>) {
    let (mut jobs, mut problems) = (Vec::new(), Vec::new());
    for job in &config.jobs {
        let zone = job.timezone.as_deref().map_or(Ok(Zone::of_system()), |name| {
            let told = |why| format!("unknown time zone \"{}\"{why}", name.escape_debug());
            Zone::parse(name).map_err(|why| Problem::error(format!("{}.timezone", job.path), told(why)))
        });
        let zone = zone.unwrap_or_else(|problem| {
            problems.push(problem);
            Zone::System
        });
        let path = format!("{}.schedule", job.path);
        match Schedule::parse(&job.schedule, zone, &job.name) {
            Err(why) => problems.push(Problem::error(path, why)),
            Ok(schedule) => {
                if matches!(schedule, Schedule::At { .. }) && schedule.next_after(now).is_none() {
                    problems.push(Problem::warning(
                        path,
                        "is in the past: unless it was missed, the job does not run again",
                    ));
                }
                jobs.push(Job { config: job.clone(), schedule });
            }
        }
    }
    if let Some((job, problem)) = problem_of_zone(&jobs) {
        problems.push(Problem::warning(format!("{}.timezone", job.config.path), format!("is missing, and {problem}")));
    }
    (jobs, problems)
}

/// What is wrong with the system's zone, and the first of the jobs that need it.
pub(super) fn problem_of_zone<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Option<(&'a Job, String)> {
    let job = jobs.into_iter().find(|job| job.config.timezone.is_none() && job.schedule.is_local())?;
    Some((job, problem_of_tz()?))
}

impl Job {
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// So many runs of it may go on at once on a host.
    pub(crate) fn slots(&self) -> u32 {
        if self.config.overlap == Overlap::Allow { MAX_AT_ONCE } else { 1 }
    }

    /// Does it run on one host at a time, the one that has its lease?
    pub(crate) fn has_lease(&self) -> bool {
        self.config.overlap != Overlap::Allow && self.schedule != Schedule::Reboot
    }

    /// When a run that is due at this time begins: later by a part of `jitter` that is the same on all hosts, and always
    /// before the next one is due.
    pub(super) fn begins(&self, due: DateTime<Utc>) -> DateTime<Utc> {
        let millis = u64::try_from(self.config.jitter.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return due;
        }
        let part = u64::from(hash(&self.config.name, &due.timestamp().to_string()));
        let late = TimeDelta::milliseconds(i64::try_from((millis * part) >> 24).unwrap_or(0));
        let room = self.schedule.next_after(due).map(|next| next - due - TimeDelta::seconds(1));
        due + room.map_or(late, |room| late.min(room))
    }
}

//! What the hosts know of a job together: which due times were taken, where it runs, and how its last runs went. In the shared
//! cache.
//!
//! | group | key | value | |
//! | --- | --- | --- | --- |
//! | `cron/JOB` | `2026-11-21T12:00:00Z` | a random id | this due time was taken; one host gets it |
//! | `cron/JOB` | `seen FROM TO` | a random id | all due times between these two were taken; their keys are forgotten |
//! | `cron/JOB` | `since SCHEDULE` | a time | since when this schedule is known: what was due before is not caught up |
//! | `cron/JOB` | `not before` | a time | after a run that has skipped itself |
//! | `cron/JOB` | `warned of TIME` | a random id | for a day after a warning |
//! | `cron/JOB` | `boot ID HOST` | a random id | this boot was taken |
//! | `cron-runs/JOB` | start and id | a [`Run`] | how a run went |
//! | `cron-lease` | `JOB` | a host | the job runs there |
//!
//! Hosts with other versions of this program read them: they must not change.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::job::Job;
use super::seen::{Span, with_forgotten};
use crate::cache::{Cache, CacheError};
use crate::clock;

/// How long is remembered what a job has done: longer than the time between two leap days.
const MEMORY: Duration = Duration::from_secs(10 * 366 * 86_400);

/// So many due times that were taken last are kept one by one, and all that were taken within [`KEEP_FOR`]. Earlier ones become
/// [`Span`]s. By both, a host whose clock is behind knows what was run already.
const KEPT: usize = 16;
const KEEP_FOR: Duration = Duration::from_secs(600);

/// How many runs are kept.
const KEPT_RUNS: usize = 20;

/// How long a lease lasts, and when it is renewed.
pub(super) const LEASE: Duration = Duration::from_secs(60);
pub(super) const RENEW_LEASE: Duration = Duration::from_secs(15);

/// A due time that is further in the future was taken by a clock that went wrong.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(60);

/// How long nobody is warned again of such a time.
const WARNING: Duration = Duration::from_secs(86_400);

const LEASES: &str = "cron-lease";
const NOT_BEFORE: &str = "not before";

/// What the hosts know of jobs.
#[derive(Clone)]
pub(crate) struct SharedState {
    cache: Arc<Cache>,
    /// This host's name there.
    host: String,
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Well.
    Succeeded,
    /// Not well.
    Failed,
    /// It has decided that it need not run now.
    Skipped,
    /// It was interrupted from outside.
    Interrupted,
}

/// A run of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    /// A random id.
    pub id: String,
    /// The host.
    pub host: String,
    /// The process that runs the job.
    pub pid: u32,
    /// When it was due; none when it was started by hand.
    pub due: Option<DateTime<Utc>>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended; none while it goes on.
    pub ended_at: Option<DateTime<Utc>>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The program's exit code.
    pub exit_code: Option<i32>,
    /// Why it did not end well.
    pub why: Option<String>,
    /// The last lines it has printed.
    pub output: String,
}

/// What the shared says of a job.
pub(super) struct History {
    /// All due times up to this one were seen to, or are none of ours.
    pub last: DateTime<Utc>,
    /// A later one was taken by a clock that went wrong.
    pub future: Option<DateTime<Utc>>,
    /// The job is not to run before this time.
    pub not_before: Option<DateTime<Utc>>,
    /// The job is new, or has a new schedule.
    is_new: bool,
    /// What was taken, and is forgotten.
    seen: Vec<Span>,
    /// Keys of the group, with the times at which they were written.
    keys: Vec<(String, SystemTime)>,
}

impl Run {
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.started_at.to_rfc3339_opts(SecondsFormat::Millis, true), self.id)
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How long it took, or has been going on.
    pub(crate) fn took(&self, now: DateTime<Utc>) -> Duration {
        (self.ended_at.unwrap_or(now) - self.started_at).to_std().unwrap_or_default()
    }
}

impl SharedState {
    /// The shared as this host sees it.
    pub(crate) fn new(cache: Arc<Cache>, host: String) -> Self {
        Self { cache, host }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// What is known of a job. Of one that is new, or has a new schedule, it is known from now on.
    pub(super) async fn history(&self, job: &Job, now: DateTime<Utc>) -> Result<History, CacheError> {
        let history = self.known_history(job, now).await?;
        if history.is_new {
            self.cache.put(&group(job), &since_key(job), &key_of(now), MEMORY).await?;
        }
        Ok(history)
    }

    /// The same, but writes nothing.
    pub(super) async fn known_history(&self, job: &Job, now: DateTime<Utc>) -> Result<History, CacheError> {
        let since_key = since_key(job);
        let entries = self.cache.list(&group(job)).await?;
        let value = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
        let since = value(&since_key).and_then(parse_time).filter(|since| *since <= now + CLOCK_TOLERANCE);
        let (mut last, mut future) = (since.unwrap_or(now), None);
        for due in entries.iter().filter_map(|entry| parse_time(&entry.key)) {
            if due <= now + CLOCK_TOLERANCE {
                last = last.max(due);
            } else {
                future = Some(due);
            }
        }
        let seen: Vec<Span> = entries.iter().filter_map(|entry| Span::parse(&entry.key)).collect();
        // Where this clock is behind, what is due now was perhaps taken long ago. Spans that lie wholly in the future are of a
        // clock that went wrong.
        for span in seen.iter().filter(|span| span.from <= now + CLOCK_TOLERANCE) {
            last = last.max(span.to);
        }
        let not_before = value(NOT_BEFORE).and_then(parse_time);
        let keys = entries.iter().map(|entry| (entry.key.clone(), entry.written_at)).collect();
        Ok(History { last, future, not_before, is_new: since.is_none(), seen, keys })
    }

    /// Is nobody warned yet, today, that this due time was taken although it is in the future?
    pub(super) async fn may_warn_of(&self, job: &Job, future: DateTime<Utc>) -> Result<bool, CacheError> {
        let key = format!("warned of {}", key_of(future));
        self.cache.claim(&group(job), &key, &random_id(), WARNING).await
    }

    /// Takes a due time: `true` for one of all hosts, once. Forgets old ones.
    pub(super) async fn take(&self, job: &Job, due: DateTime<Utc>, history: &History) -> Result<bool, CacheError> {
        let taken = self.cache.claim(&group(job), &key_of(due), &random_id(), MEMORY).await?;
        if taken {
            self.forget(job, history).await?;
        }
        Ok(taken)
    }

    /// Forgets old due times. That they were taken is written before: a kill in between leaves both.
    async fn forget(&self, job: &Job, history: &History) -> Result<(), CacheError> {
        let now = clock::now();
        let is_old = |written_at: &SystemTime| now.duration_since(*written_at).is_ok_and(|age| age > KEEP_FOR);
        let times: Vec<(DateTime<Utc>, SystemTime)> =
            history.keys.iter().filter_map(|(key, written_at)| Some((parse_time(key)?, *written_at))).collect();
        let old = &times[..times.len().saturating_sub(KEPT)];
        let old: Vec<DateTime<Utc>> =
            old.iter().filter(|(_, written_at)| is_old(written_at)).map(|(due, _)| *due).collect();
        if old.is_empty() {
            return Ok(());
        }
        let near = TimeDelta::from_std(KEEP_FOR).unwrap_or_default();
        let seen = with_forgotten(history.seen.clone(), &old, &job.schedule, near);
        for span in seen.iter().filter(|span| !history.seen.contains(span)) {
            self.cache.put(&group(job), &span.key(), &random_id(), MEMORY).await?;
        }
        for due in &old {
            self.cache.remove(&group(job), &key_of(*due)).await?;
        }
        for span in history.seen.iter().filter(|span| !seen.contains(span)) {
            self.cache.remove(&group(job), &span.key()).await?;
        }
        Ok(())
    }

    /// Gives a due time back, so that it is due again: nothing was run for it.
    pub(super) async fn give_back(&self, job: &Job, due: DateTime<Utc>) -> Result<(), CacheError> {
        self.cache.remove(&group(job), &key_of(due)).await
    }

    /// As [`SharedState::give_back`], for a run that has decided that it need not run now. It is tried again in the next minute.
    pub(crate) async fn skip(&self, job: &Job, taken: &str, now: DateTime<Utc>) -> Result<(), CacheError> {
        let next_minute = DateTime::from_timestamp((now.timestamp().div_euclid(60) + 1) * 60, 0).unwrap_or(now);
        self.cache.put(&group(job), NOT_BEFORE, &key_of(next_minute), Duration::from_secs(120)).await?;
        self.cache.remove(&group(job), taken).await
    }

    /// Was this boot of this host taken?
    pub(super) async fn is_boot_taken(&self, job: &Job, boot: &str) -> Result<bool, CacheError> {
        let key = format!("boot {boot} {}", self.host);
        Ok(self.cache.list(&group(job)).await?.iter().any(|entry| entry.key == key))
    }

    /// Takes this boot of this host, once. Forgets earlier ones. Returns its key, if it was free.
    pub(super) async fn take_boot(&self, job: &Job, boot: &str) -> Result<Option<String>, CacheError> {
        let key = format!("boot {boot} {}", self.host);
        let entries = self.cache.list(&group(job)).await?;
        let not_before =
            entries.iter().find(|entry| entry.key == NOT_BEFORE).and_then(|entry| parse_time(&entry.value));
        let now: DateTime<Utc> = clock::now().into();
        if not_before.is_some_and(|time| time > now)
            || !self.cache.claim(&group(job), &key, &random_id(), MEMORY).await?
        {
            return Ok(None);
        }
        let of_this_host = |key: &str| key.starts_with("boot ") && key.ends_with(&self.host);
        for old in entries.iter().filter(|entry| of_this_host(&entry.key) && entry.key != key) {
            self.cache.remove(&group(job), &old.key).await?;
        }
        Ok(Some(key))
    }

    /// Takes the lease on running a job, or renews it: `false` while another host has it.
    pub(crate) async fn lease(&self, job: &Job) -> Result<bool, CacheError> {
        self.cache.claim(LEASES, job.name(), &self.host, LEASE).await
    }

    /// Gives the lease back.
    pub(super) async fn release(&self, job: &Job) -> Result<(), CacheError> {
        self.cache.unclaim(LEASES, job.name(), &self.host).await
    }

    /// Since when a job runs on the host that has the lease. `None` while it is being started there.
    pub(super) async fn running_since(&self, job: &Job) -> Result<Option<DateTime<Utc>>, CacheError> {
        let leases = self.leases().await?;
        let holder = leases.iter().find(|(name, _)| name == job.name()).map(|(_, host)| host);
        let runs = self.runs(job.name()).await?;
        // Runs of a host that has died may be without an end for ever.
        let going_on = runs.iter().find(|run| run.ended_at.is_none() && Some(&run.host) == holder);
        Ok(going_on.map(|run| run.started_at))
    }

    /// The host that has the lease on running each job, by the job's name.
    pub(crate) async fn leases(&self) -> Result<Vec<(String, String)>, CacheError> {
        let leases = self.cache.list(LEASES).await?;
        Ok(leases.into_iter().map(|lease| (lease.key, lease.value)).collect())
    }

    /// The last runs of a job, the latest first.
    pub(crate) async fn runs(&self, job: &str) -> Result<Vec<Run>, CacheError> {
        let entries = self.cache.list(&runs_group(job)).await?;
        Ok(entries.iter().rev().filter_map(|entry| serde_json::from_str(&entry.value).ok()).collect())
    }

    /// Writes down how a run goes. One that has ended takes the place of the oldest.
    pub(super) async fn write(&self, job: &str, run: &Run) -> Result<(), CacheError> {
        let group = runs_group(job);
        self.cache.put(&group, &run.key(), &run.to_json(), MEMORY).await?;
        if run.ended_at.is_some() {
            for old in self.cache.list(&group).await?.into_iter().rev().skip(KEPT_RUNS) {
                self.cache.remove(&group, &old.key).await?;
            }
        }
        Ok(())
    }
}

fn group(job: &Job) -> String {
    format!("cron/{}", job.name())
}

fn runs_group(job: &str) -> String {
    format!("cron-runs/{job}")
}

fn since_key(job: &Job) -> String {
    let zone = job.config.timezone.as_deref().unwrap_or_default();
    format!("since {} {zone}", job.config.schedule.trim()).trim_end().to_owned()
}

/// In this form, the order of the texts is that of the times.
pub(super) fn key_of(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

pub(super) fn parse_time(key: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(key).ok().map(|time| time.to_utc())
}

pub(super) fn random_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

//! Looks which jobs are due, takes their runs among all hosts, and starts a process for each.
//!
//! It keeps nothing in memory that the next one needs, and may be killed at any moment.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use super::due::{Step, step};
use super::job::{Job, problem_of_zone};
use super::killed;
use super::report::{Report, Reports};
use super::shared_state::{SharedState, key_of};
use super::timing::Schedule;
use crate::cache::CacheError;
use crate::clock;
use crate::config::{Trigger, WorkerDefinition};
use crate::supervisor::{JobRoom, JobSlots, SlotClaim, StateError};

/// How often jobs are looked at that are due at no known time, and reports of failed runs.
const PACE: TimeDelta = TimeDelta::seconds(5);
/// How often is looked whether a run has ended that another one waits for.
const BUSY_PACE: TimeDelta = TimeDelta::seconds(1);
/// How often is looked whether there is room for a process that a job waits for.
const ROOM_PACE: TimeDelta = TimeDelta::milliseconds(250);
/// How often all jobs are looked at, also those that are not due: a run may have given its due time back.
const FULL_PACE: Duration = Duration::from_secs(60);

/// A due time that is taken this long after the shared state was read was perhaps taken and forgotten meanwhile.
const STALE: Duration = Duration::from_secs(60);

/// Why a run that is due is not started yet.
const RUNS: &str = "it runs already; this run is looked at again after its end";

const NO_ROOM: &str = "it waits until there is room for a further process";

/// Starts the process of a run in a slot: for a job, and what the run has taken. Returns why it could not.
pub(crate) type StartJob = Box<dyn Fn(&Job, Option<&str>, SlotClaim) -> Result<(), String> + Send + Sync>;

/// Runs what is due.
pub(crate) struct Scheduler {
    jobs: Vec<Watched>,
    /// Those that something else starts. After a kill, they are cleaned up here too.
    others: Vec<Job>,
    shared: SharedState,
    slots: JobSlots,
    reports: Reports,
    start: StartJob,
    /// Whose workers need processes, too.
    workers: Vec<WorkerDefinition>,
    /// Were jobs waiting for room at the last look?
    was_full: bool,
    /// When it last looked. Where that is later than now, the clock was set back.
    looked_at: DateTime<Utc>,
    looked: Looked,
}

/// A job, and what is known of it here.
struct Watched {
    job: Job,
    /// When it is to be looked at next.
    wake: DateTime<Utc>,
    /// What was wrong at the last look. What stays as it is, is logged once.
    problem: Option<String>,
    /// Since when it is due and there is no room for a further process. Who waits longest comes first.
    waits_since: Option<DateTime<Utc>>,
}

/// What became of the jobs at a look.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Those that were started.
    pub started: Vec<String>,
    /// Those that are due and were not started, and why.
    pub left_out: Vec<(String, String)>,
    /// Those that could not be looked at or started, and why.
    pub failed: Vec<(String, String)>,
}

/// Why a job could not be looked at.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Cache(#[from] CacheError),
    #[error("{0}")]
    State(#[from] StateError),
    #[error("{0}")]
    Start(String),
}

impl Scheduler {
    /// Starts those of the jobs whose scope includes `trigger`.
    pub(crate) fn new(jobs: &[Job], trigger: Trigger, shared: SharedState, state_dir: &Path, start: StartJob) -> Self {
        let watch = |job: Job| Watched { job, wake: DateTime::UNIX_EPOCH, problem: None, waits_since: None };
        let (jobs, others): (Vec<Job>, Vec<Job>) =
            jobs.iter().cloned().partition(|job| job.config.scope.includes(trigger));
        Self {
            jobs: jobs.into_iter().map(watch).collect(),
            others,
            shared,
            slots: JobSlots::new(state_dir),
            reports: Reports::new(state_dir),
            start,
            workers: Vec::new(),
            was_full: false,
            looked_at: DateTime::UNIX_EPOCH,
            looked: Looked::default(),
        }
    }

    /// The same, beside the workers of these definitions, which share the processes that this user may have.
    pub(crate) fn beside(self, workers: &[WorkerDefinition]) -> Self {
        Self { workers: workers.to_vec(), ..self }
    }

    /// Starts what is due until `stop`. What was started goes on. `report` gets the runs that have failed.
    pub(crate) async fn run(&mut self, stop: impl Future<Output = ()>, mut report: impl FnMut(&Report)) {
        if let Some((_, problem)) = problem_of_zone(self.jobs.iter().map(|watched| &watched.job)) {
            tracing::warn!("for jobs without `timezone`: {problem}");
        }
        let mut stop = pin!(stop);
        let mut last_full = Instant::now();
        loop {
            if last_full.elapsed() >= FULL_PACE {
                self.wake_all(now());
                last_full = Instant::now();
            }
            // Not interrupted: what was taken is also started.
            let wake = self.look(now()).await;
            self.reports.deliver(&mut report);
            let pause = (wake - now()).clamp(TimeDelta::zero(), PACE).to_std().unwrap_or_default();
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.reports.deliver(&mut report);
    }

    /// Looks at all jobs once, and starts what is due. What was started goes on.
    pub(crate) async fn once(&mut self) -> Looked {
        self.wake_all(now());
        self.look(now()).await;
        std::mem::take(&mut self.looked)
    }

    /// Looks at all jobs once, and starts what is due. Returns when to look again.
    pub(super) async fn look(&mut self, now: DateTime<Utc>) -> DateTime<Utc> {
        if now < self.looked_at {
            self.wake_all(now);
        }
        self.looked_at = now;
        self.looked = Looked::default();
        self.clean_up(now).await;
        // Also those that wait for room, whose turn it is before that of others.
        let is_due = |watched: &Watched| watched.wake <= now || watched.waits_since.is_some();
        let mut due: Vec<usize> = (0..self.jobs.len()).filter(|n| is_due(&self.jobs[*n])).collect();
        due.sort_by_key(|n| self.jobs[*n].waits_since.unwrap_or(DateTime::<Utc>::MAX_UTC));
        // Looked at when the first one is to be started: that takes a moment.
        let mut room = None;
        for n in due {
            let waited_since = self.jobs[n].waits_since;
            if waited_since.is_some() && !self.has_place(&mut room) {
                self.jobs[n].wake = now + ROOM_PACE;
                continue;
            }
            self.jobs[n].waits_since = None;
            let started_before = self.looked.started.len();
            let looked = self.look_at(n, now, &mut room).await;
            let watched = &mut self.jobs[n];
            // One that has had a run now waits for its next one behind the others.
            if self.looked.started.len() == started_before && watched.waits_since.is_some() {
                watched.waits_since = waited_since.or(watched.waits_since);
            }
            watched.wake = *looked.as_ref().unwrap_or(&(now + PACE));
            let problem = looked.err().map(|error| error.to_string());
            self.looked.failed.extend(problem.clone().map(|problem| (watched.job.name().to_owned(), problem)));
            if let Some(problem) = problem.as_ref().filter(|problem| watched.problem.as_ref() != Some(problem)) {
                tracing::error!(job = watched.job.name(), "it cannot be run now: {problem}");
            }
            watched.problem = problem;
        }
        self.tell_of_waiting(room);
        self.jobs.iter().map(|watched| watched.wake).min().unwrap_or(now + PACE)
    }

    /// Logs, once, that jobs wait for room.
    fn tell_of_waiting(&mut self, room: Option<JobRoom>) {
        let waiting = self.jobs.iter().filter(|watched| watched.waits_since.is_some()).count();
        if let Some(room) = room.filter(|_| waiting > 0 && !self.was_full) {
            tracing::info!(jobs = waiting, "jobs wait until others have ended: {}", room.why());
        }
        self.was_full = waiting > 0;
    }

    /// Cleans up after killed runs, and passes on the reports of failed ones. For when nothing is to be run any more.
    pub(crate) async fn finish(&self, report: impl FnMut(&Report)) {
        self.clean_up(now()).await;
        self.reports.deliver(report);
    }

    async fn clean_up(&self, now: DateTime<Utc>) {
        let jobs: Vec<&Job> = self.jobs.iter().map(|watched| &watched.job).chain(&self.others).collect();
        killed::clean_up(self.slots.killed_runs(), &jobs, &self.shared, &self.slots, &self.reports, now).await;
    }

    fn wake_all(&mut self, now: DateTime<Utc>) {
        self.jobs.iter_mut().for_each(|watched| watched.wake = watched.wake.min(now));
    }

    /// Starts all jobs of its scope now, whether they are due or not. One that runs already, and may not run twice at once, is left alone.
    pub(crate) async fn start_all(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        let mut room = self.slots.room(&self.workers);
        for Watched { job, .. } in &self.jobs {
            if !room.has_place() {
                failed.push(format!("job {}: it is not started: {}", job.name(), room.why()));
                continue;
            }
            match self.start_now(job).await {
                Ok(true) => room.take(),
                Ok(false) => tracing::info!(job = job.name(), "it runs already"),
                Err(error) => failed.push(format!("job {}: {error}", job.name())),
            }
        }
        failed
    }

    async fn start_now(&self, job: &Job) -> Result<bool, LookError> {
        let Some(claim) = self.claim(job)? else { return Ok(false) };
        if job.has_lease() && !self.shared.lease(job).await? {
            return Ok(false);
        }
        match (self.start)(job, None, claim) {
            Ok(()) => Ok(true),
            Err(why) => {
                self.release(job).await;
                Err(LookError::Start(why))
            }
        }
    }

    /// Looks at one job. Returns when to look again.
    async fn look_at(
        &mut self,
        n: usize,
        now: DateTime<Utc>,
        room: &mut Option<JobRoom>,
    ) -> Result<DateTime<Utc>, LookError> {
        if self.jobs[n].job.schedule == Schedule::Reboot {
            return self.look_at_boot(n, now, room).await;
        }
        loop {
            let asked = Instant::now();
            let history = self.shared.history(&self.jobs[n].job, now).await?;
            let job = &self.jobs[n].job;
            if let Some(future) = history.future
                && self.shared.may_warn_of(job, future).await?
            {
                let future = key_of(future);
                tracing::warn!(job = job.name(), "a run was taken for {future}, in the future; it does not count");
            }
            if let Some(time) = history.not_before.filter(|time| *time > now) {
                return Ok(time);
            }
            let running = self.running_since(job)?;
            let mut wanted = step(job, history.last, now, running);
            let mut claim = None;
            if let Step::Start { .. } = wanted {
                if !self.has_place(room) {
                    self.looked.left_out.push((job.name().to_owned(), NO_ROOM.to_owned()));
                    self.jobs[n].waits_since = Some(now);
                    return Ok(now + ROOM_PACE);
                }
                claim = self.claim(job)?;
                if claim.is_none() {
                    self.looked.left_out.push((job.name().to_owned(), RUNS.to_owned()));
                    return Ok(now + BUSY_PACE);
                }
                if job.has_lease() && !self.shared.lease(job).await? {
                    let since = self.shared.running_since(job).await?.unwrap_or(now);
                    wanted = step(job, history.last, now, Some(since));
                    claim = None;
                }
            }
            match (wanted, claim) {
                (Step::Wait(wake), _) => return Ok(wake.unwrap_or(now + TimeDelta::days(1))),
                (Step::WaitForRun, _) | (Step::Start { .. }, None) => {
                    self.looked.left_out.push((job.name().to_owned(), RUNS.to_owned()));
                    return Ok(now + BUSY_PACE);
                }
                (Step::LeaveOut { due, why }, _) => {
                    if self.shared.take(job, due, &history).await? {
                        tracing::info!(job = job.name(), "the run of {} is left out: {why}", key_of(due));
                        self.looked.left_out.push((job.name().to_owned(), why.to_owned()));
                    }
                }
                (Step::Start { due }, Some(claim)) => {
                    let taken = self.shared.take(job, due, &history).await;
                    if !matches!(taken, Ok(true)) {
                        self.release(job).await;
                        taken?;
                        // Another host was faster.
                        continue;
                    }
                    let stale = asked.elapsed() > STALE;
                    let started = if stale { Ok(()) } else { (self.start)(job, Some(&key_of(due)), claim) };
                    if stale || started.is_err() {
                        self.shared.give_back(job, due).await?;
                        self.release(job).await;
                        started.map_err(LookError::Start)?;
                    } else {
                        self.looked.started.push(job.name().to_owned());
                        if let Some(room) = room {
                            room.take();
                        }
                    }
                }
            }
        }
    }

    async fn look_at_boot(
        &mut self,
        n: usize,
        now: DateTime<Utc>,
        room: &mut Option<JobRoom>,
    ) -> Result<DateTime<Utc>, LookError> {
        if !self.has_place(room) && !self.shared.is_boot_taken(&self.jobs[n].job, &boot_id()).await? {
            self.looked.left_out.push((self.jobs[n].job.name().to_owned(), NO_ROOM.to_owned()));
            self.jobs[n].waits_since = Some(now);
            return Ok(now + ROOM_PACE);
        }
        let job = &self.jobs[n].job;
        let Some(claim) = self.claim(job)? else { return Ok(now + BUSY_PACE) };
        if let Some(taken) = self.shared.take_boot(job, &boot_id()).await? {
            if let Err(why) = (self.start)(job, Some(&taken), claim) {
                self.shared.skip(job, &taken, now).await?;
                return Err(LookError::Start(why));
            }
            self.looked.started.push(job.name().to_owned());
            if let Some(room) = room {
                room.take();
            }
        }
        Ok(now + TimeDelta::days(1))
    }

    /// Is there room for the process of a further run?
    fn has_place(&self, room: &mut Option<JobRoom>) -> bool {
        room.get_or_insert_with(|| self.slots.room(&self.workers)).has_place()
    }

    /// Since when a run of this job goes on here, if one does.
    fn running_since(&self, job: &Job) -> Result<Option<DateTime<Utc>>, StateError> {
        let live = self.slots.live(job.name())?;
        // One without a record is just being started.
        Ok(live.iter().map(|slot| slot.record.as_ref().map_or_else(now, |record| record.started_at)).min())
    }

    /// A free slot of this job.
    fn claim(&self, job: &Job) -> Result<Option<SlotClaim>, StateError> {
        for slot in 0..job.slots() {
            if let Some(claim) = self.slots.claim(job.name(), slot)? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    async fn release(&self, job: &Job) {
        if job.has_lease()
            && let Err(error) = self.shared.release(job).await
        {
            tracing::warn!(job = job.name(), %error, "its lease could not be released, and expires");
        }
    }
}

/// The time of day, to the millisecond.
fn now() -> DateTime<Utc> {
    DateTime::from(clock::now())
}

/// Tells this boot from others.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned());
    id.unwrap_or_else(|_| format!("at {}", sysinfo::System::boot_time().unwrap_or_default() / 60))
}

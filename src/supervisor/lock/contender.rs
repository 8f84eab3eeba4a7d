//! A supervisor that is being started while another one may run: takes the lock, waits, leaves, refuses, or replaces.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::Utc;
use tokio::time::Instant;

use super::super::process::StuckState;
use super::record::{FILE, LockFile, SupervisorRecord, open_existing};
use super::{Lifetime, LockError, SupervisorLock, lifetime};
use crate::state_files::{self, Mode, StateError};

/// How many times a lock that is taken is tried, and the pause in between. `status` holds it for an instant to test
/// whether it is free, and so does a process that was forked but has not executed its program yet. Neither is a
/// supervisor.
const ATTEMPTS: u32 = 6;
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The pause between two checks whether the other supervisor has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A supervisor without progress for [`STUCK_AFTER`] that makes none for another [`WATCH_FOR`] is stuck. Its age alone
/// does not tell: after a machine was suspended, all times are old.
const STUCK_AFTER: Duration = Duration::from_secs(120);
const WATCH_FOR: Duration = Duration::from_secs(15);
/// How long a killed supervisor may take to disappear.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The state directory belongs to the configuration of the last supervisor if that one made progress within this time.
const OWNED_FOR: Duration = Duration::from_secs(600);

/// A supervisor that is being started.
pub(super) struct Contender<'a> {
    pub state_dir: &'a Path,
    /// The configuration's file, without symbolic links.
    pub config: &'a Path,
    pub lifetime: Lifetime,
}

impl LockFile {
    /// Whether the last supervisor made progress so recently that the state directory belongs to its configuration.
    pub(super) fn is_recent(&self) -> bool {
        self.silent < OWNED_FOR
    }
}

impl Contender<'_> {
    /// See [`SupervisorLock::take`].
    pub(super) async fn take(&self) -> Result<Option<SupervisorLock>, LockError> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            if let Some(lock) = self.try_take()? {
                return Ok(Some(lock));
            }
        }
        self.wait_or_leave().await
    }

    fn try_take(&self) -> Result<Option<SupervisorLock>, LockError> {
        state_files::create_dir(self.state_dir)?;
        let path = self.state_dir.join(FILE);
        let file = state_files::open(&path, Mode::ReadWrite)?;
        if !state_files::try_lock(&file, &path)? || !state_files::is_at(&file, &path) {
            return Ok(None);
        }
        let last = LockFile::read(&file, &path)?;
        if let Some(record) = last.record.as_ref().filter(|record| last.is_recent() && !self.may_succeed(record)) {
            return Err(self.other_configuration(record));
        }
        let now = Utc::now();
        let ends_at = match self.lifetime {
            Lifetime::UntilNextCron => Some(lifetime::end(now, last.record.map(|record| record.started_at))),
            Lifetime::OneTick => Some(now + lifetime::ONE_TICK),
            Lifetime::UntilStopped => None,
        };
        if let Err(error) = SupervisorRecord::of_this_process(self.config, now, ends_at).write(&file) {
            // The disk may be full. Workers can be supervised all the same; only `status` does not know by whom.
            tracing::warn!(path = %path.display(), %error, "the supervisor could not be recorded");
        }
        Ok(Some(SupervisorLock { file: Arc::new(file), ends_at }))
    }

    /// Another supervisor has the lock: waits for it, leaves, refuses, or replaces it.
    async fn wait_or_leave(&self) -> Result<Option<SupervisorLock>, LockError> {
        let begun = Instant::now();
        // Since when the other one has been watched without progress, and the modification time of its file then.
        let mut watched: Option<(Instant, SystemTime)> = None;
        loop {
            if let Some(lock) = self.try_take()? {
                return Ok(Some(lock));
            }
            let path = self.state_dir.join(FILE);
            let other = LockFile::read(&state_files::open(&path, Mode::ReadWrite)?, &path)?;
            let Some(record) = &other.record else { return Ok(None) };
            if other.silent >= STUCK_AFTER {
                match watched.filter(|(_, modified_at)| *modified_at == other.modified_at) {
                    Some((since, _)) if since.elapsed() >= WATCH_FOR => {
                        self.kill(record, other.silent)?;
                        return self.take_when_gone(record, other.silent).await;
                    }
                    Some(_) => {}
                    None => watched = Some((Instant::now(), other.modified_at)),
                }
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
            let wait = record.ends_at.filter(|_| self.lifetime == Lifetime::UntilNextCron);
            let wait = wait.and_then(|end| lifetime::wait(Utc::now(), end));
            let may_wait = wait.is_some() && begun.elapsed() < lifetime::CRON_LIFETIME + lifetime::OVERDUE;
            if record.config != self.config && !(may_wait && self.may_succeed(record)) {
                return Err(self.other_configuration(record));
            }
            if !may_wait {
                return Ok(None);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether this configuration may succeed that of another supervisor: it may if it is the same, if the other one's
    /// file no longer exists, or if it is a new version of an application: in another folder, with the same file name.
    pub(super) fn may_succeed(&self, other: &SupervisorRecord) -> bool {
        let is_new_version =
            other.config.file_name() == self.config.file_name() && other.config.parent() != self.config.parent();
        other.config == self.config || is_new_version || !other.config.exists()
    }

    pub(super) fn other_configuration(&self, other: &SupervisorRecord) -> LockError {
        let (state_dir, ours) = (self.state_dir.to_owned(), self.config.to_owned());
        LockError::OtherConfiguration { state_dir, other: other.config.clone(), ours }
    }

    /// Kills a stuck supervisor. Its workers live on, and everything that it knew is on the disk.
    fn kill(&self, stuck: &SupervisorRecord, silent: Duration) -> Result<(), LockError> {
        let pid = stuck.process.pid;
        let why = match stuck.process.stuck_state() {
            StuckState::NotVisible => {
                "its process cannot be seen from here; end it on the host, or in the container, where it runs"
            }
            StuckState::UninterruptibleSleep => {
                "it waits for a disk or a network file system that does not answer; see to that"
            }
            StuckState::Killable => match stuck.process.kill() {
                Ok(()) => {
                    tracing::error!(
                        pid,
                        silent = silent.as_secs(),
                        "killed the supervisor, which made no progress, to take its place"
                    );
                    return Ok(());
                }
                Err(error) => return Err(self.stuck(stuck, silent, format!("it cannot be killed: {error}"))),
            },
        };
        Err(self.stuck(stuck, silent, why.to_owned()))
    }

    /// Takes the lock once the killed supervisor has disappeared.
    async fn take_when_gone(
        &self,
        killed: &SupervisorRecord,
        silent: Duration,
    ) -> Result<Option<SupervisorLock>, LockError> {
        let begun = Instant::now();
        while begun.elapsed() < KILL_TIMEOUT {
            if let Some(lock) = self.try_take()? {
                return Ok(Some(lock));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(self.stuck(killed, silent, "it was killed, and is still there".to_owned()))
    }

    fn stuck(&self, other: &SupervisorRecord, silent: Duration, why: String) -> LockError {
        LockError::Stuck { state_dir: self.state_dir.to_owned(), pid: other.process.pid, silent, why }
    }
}

/// An error if this state directory belongs to another configuration, whose workers a command would then affect. Creates
/// nothing, and does not wait.
pub(crate) fn check_owner(state_dir: &Path, config: &Path) -> Result<(), LockError> {
    let path = state_dir.join(FILE);
    let Some(file) = open_existing(&path)? else { return Ok(()) };
    let last = LockFile::read(&file, &path)?;
    let Some(record) = &last.record else { return Ok(()) };
    let config = config.canonicalize().unwrap_or_else(|_| config.to_owned());
    let ours = Contender { state_dir, config: &config, lifetime: Lifetime::UntilStopped };
    let is_in_use = || Ok::<_, StateError>(last.is_recent() || state_files::is_locked(&file, &path)?);
    if !ours.may_succeed(record) && is_in_use()? { Err(ours.other_configuration(record)) } else { Ok(()) }
}

//! One supervisor per state directory: whoever holds the lock on `supervisor.lock`.
//!
//! The file also says who that is, of which configuration, and, under cron, until when. Its time of change says when that
//! supervisor last did something. So one that comes second knows whether to wait, to leave, to tell of another
//! configuration, or to tell of a supervisor that is stuck and take its place.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use super::process::{ProcessId, Suspect};
use super::slot::is_locked;
use super::state::{self, Mode, StateError};
use super::term;

const FILE: &str = "supervisor.lock";
/// How often the lock is tried, and how long to wait in between. `status` holds it for an instant to see whether it is
/// free, and a process that is just being started holds a copy until it runs its own program; neither is a supervisor.
const TRIES: u32 = 6;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
/// Between two looks at whether the one at work has ended.
const LOOK: Duration = Duration::from_millis(100);
/// A record longer than this (in bytes) is not ours.
const MAX_RECORD: u64 = 16 << 10;

/// A supervisor that has done nothing for so long is stuck, if it goes on doing nothing for [`WATCH`]: after a machine was
/// suspended, all times are old.
const STUCK: Duration = Duration::from_secs(120);
const WATCH: Duration = Duration::from_secs(15);
/// How long a supervisor that was killed may take to go.
const GOING: Duration = Duration::from_secs(5);

/// A configuration whose last supervisor did something no longer ago than this has the state directory to itself.
const BELONGS: Duration = Duration::from_secs(600);

/// How long a supervisor is going to be at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// To the end of the minute: cron starts the next one.
    Cron,
    /// Until it is stopped.
    Endless,
}

/// The right to supervise. Ends when it is dropped, and with the process.
#[derive(Debug)]
pub struct SupervisorLock {
    file: Arc<File>,
    end: Option<DateTime<Utc>>,
}

/// Why there is no telling whether a supervisor is at work, or why another one should not be.
#[derive(Debug, Error)]
pub enum LockError {
    /// The lock could not be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Two configurations would take each other's workers for their own.
    #[error(
        "{} is in use by another configuration, {}: give {} a `state_dir` of its own",
        state_dir.display(), other.display(), ours.display()
    )]
    OtherConfiguration {
        /// What both want to use.
        state_dir: PathBuf,
        /// The configuration of the supervisor that is at work there, or was a short while ago.
        other: PathBuf,
        /// This one.
        ours: PathBuf,
    },
    /// The one at work does nothing, and was not replaced.
    #[error("the supervisor in {} (process {pid}) has done nothing for {} s, and is not replaced: {why}", state_dir.display(), silent.as_secs())]
    Stuck {
        /// Where it supervises.
        state_dir: PathBuf,
        /// Its process.
        pid: u32,
        /// For how long.
        silent: Duration,
        /// Why not, and what to do.
        why: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    process: ProcessId,
    started_at: DateTime<Utc>,
    /// Under cron: when it is going to end.
    until: Option<DateTime<Utc>>,
    /// The configuration's file, without symbolic links.
    config: PathBuf,
}

/// The supervisor of a state directory, as `status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SupervisorStatus {
    /// Is one at work?
    pub running: bool,
    /// Its process.
    pub pid: Option<u32>,
    /// Since when.
    pub started_at: Option<DateTime<Utc>>,
}

/// The lock's file as it is now.
struct Found {
    record: Option<Record>,
    /// For how long whoever is at work has done nothing.
    silent: Duration,
    changed_at: SystemTime,
}

impl SupervisorLock {
    /// When this supervisor is to end: so long from now. `None`: when it is stopped.
    pub fn remaining(&self) -> Option<Duration> {
        self.end.map(|end| (end - Utc::now()).to_std().unwrap_or_default())
    }

    /// For [`progress`].
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Takes the lock, or `None` when another supervisor is at work, and no other is needed. Waits for one that is about
    /// to end; kills one that is stuck.
    pub(super) async fn take(state_dir: &Path, config: &Path, term: Term) -> Result<Option<Self>, LockError> {
        let config = config.canonicalize().unwrap_or_else(|_| config.to_owned());
        let other = Other { state_dir, config: &config, term };
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            if let Some(lock) = other.try_take()? {
                return Ok(Some(lock));
            }
        }
        other.give_way().await
    }
}

/// A supervisor that finds the lock taken.
struct Other<'a> {
    state_dir: &'a Path,
    config: &'a Path,
    term: Term,
}

impl Other<'_> {
    fn try_take(&self) -> Result<Option<SupervisorLock>, LockError> {
        state::create_dir(self.state_dir)?;
        let path = self.state_dir.join(FILE);
        let file = state::open(&path, Mode::ReadWrite)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(StateError::io(&path, "locked")(error).into()),
        }
        if !state::is_at(&file, &path) {
            return Ok(None);
        }
        let before = found(&file).map_err(StateError::io(&path, "read"))?;
        if let Some(record) = &before.record
            && before.silent < BELONGS
            && !self.may_follow(record)
        {
            return Err(self.other_configuration(record));
        }
        let now = Utc::now();
        let end = (self.term == Term::Cron).then(|| term::end(now, before.record.map(|record| record.started_at)));
        if let Err(error) = write(&file, self.config, now, end) {
            // Full disk, perhaps: workers can be supervised all the same, only `status` does not know by whom.
            tracing::warn!(path = %path.display(), %error, "the supervisor could not be recorded");
        }
        Ok(Some(SupervisorLock { file: Arc::new(file), end }))
    }

    /// The lock is taken: waits for it, or leaves.
    async fn give_way(&self) -> Result<Option<SupervisorLock>, LockError> {
        let begun = Instant::now();
        // Since when it has been seen to do nothing, and what its file's time was then.
        let mut watched: Option<(Instant, SystemTime)> = None;
        loop {
            if let Some(lock) = self.try_take()? {
                return Ok(Some(lock));
            }
            let path = self.state_dir.join(FILE);
            let file = state::open(&path, Mode::ReadWrite)?;
            let at_work = found(&file).map_err(StateError::io(&path, "read"))?;
            let Some(record) = &at_work.record else { return Ok(None) };
            if at_work.silent >= STUCK {
                match watched.filter(|(_, changed_at)| *changed_at == at_work.changed_at) {
                    Some((since, _)) if since.elapsed() >= WATCH => {
                        self.replace(record, at_work.silent)?;
                        return self.when_gone(record, at_work.silent).await;
                    }
                    Some(_) => {}
                    None => watched = Some((Instant::now(), at_work.changed_at)),
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let wait = record.until.filter(|_| self.term == Term::Cron).and_then(|end| term::wait(Utc::now(), end));
            let may_wait = wait.is_some() && begun.elapsed() < term::LIFETIME + term::OVERDUE;
            if record.config != self.config && !(may_wait && self.may_follow(record)) {
                return Err(self.other_configuration(record));
            }
            if !may_wait {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Is that configuration this one, or one that this one takes the place of? A new version of an application may lie in
    /// another folder, under the same name.
    fn may_follow(&self, record: &Record) -> bool {
        let is_new_version =
            record.config.file_name() == self.config.file_name() && record.config.parent() != self.config.parent();
        record.config == self.config || is_new_version || !record.config.exists()
    }

    fn other_configuration(&self, record: &Record) -> LockError {
        let (state_dir, ours) = (self.state_dir.to_owned(), self.config.to_owned());
        LockError::OtherConfiguration { state_dir, other: record.config.clone(), ours }
    }

    /// Kills a supervisor that is stuck. Its workers live on, and everything it knew is on the disk.
    fn replace(&self, record: &Record, silent: Duration) -> Result<(), LockError> {
        let pid = record.process.pid;
        let why = match record.process.suspect() {
            Suspect::Unknown => {
                "its process cannot be seen from here; end it on the host, or in the container, where it runs"
            }
            Suspect::WaitsForDisk => "it waits for a disk or a network file system that does not answer; see to that",
            Suspect::Killable => match record.process.kill() {
                Ok(()) => {
                    tracing::error!(
                        pid,
                        silent = silent.as_secs(),
                        "killed the supervisor, which did nothing any more, to take its place"
                    );
                    return Ok(());
                }
                Err(error) => return Err(self.stuck(record, silent, format!("it cannot be killed: {error}"))),
            },
        };
        Err(self.stuck(record, silent, why.to_owned()))
    }

    async fn when_gone(&self, record: &Record, silent: Duration) -> Result<Option<SupervisorLock>, LockError> {
        let begun = Instant::now();
        while begun.elapsed() < GOING {
            if let Some(lock) = self.try_take()? {
                return Ok(Some(lock));
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        Err(self.stuck(record, silent, "it was killed, and is still there".to_owned()))
    }

    fn stuck(&self, record: &Record, silent: Duration, why: String) -> LockError {
        LockError::Stuck { state_dir: self.state_dir.to_owned(), pid: record.process.pid, silent, why }
    }
}

/// The supervisor that holds this lock has done something.
pub(super) fn progress(file: &File) {
    // Where this fails (it hardly can), the supervisor looks stuck to the next one, which says so.
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(%error, "the supervisor could not note that it is at work");
    }
}

/// Who supervises this state directory now. Creates nothing.
pub fn supervisor_status(state_dir: &Path) -> Result<SupervisorStatus, StateError> {
    let path = state_dir.join(FILE);
    let file = match state::open(&path, Mode::Read) {
        Ok(file) => file,
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(SupervisorStatus::default());
        }
        Err(error) => return Err(error),
    };
    if !is_locked(&file).map_err(StateError::io(&path, "locked"))? {
        return Ok(SupervisorStatus::default());
    }
    let record = found(&file).map_err(StateError::io(&path, "read"))?.record;
    Ok(SupervisorStatus {
        running: true,
        pid: record.as_ref().map(|record| record.process.pid),
        started_at: record.as_ref().map(|record| record.started_at),
    })
}

/// Is an error where this state directory belongs to another configuration: whatever is done to its workers is done to the
/// other one's. Creates nothing, and waits for nobody.
pub fn check_owner(state_dir: &Path, config: &Path) -> Result<(), LockError> {
    let path = state_dir.join(FILE);
    let file = match state::open(&path, Mode::Read) {
        Ok(file) => file,
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let last = found(&file).map_err(StateError::io(&path, "read"))?;
    let config = config.canonicalize().unwrap_or_else(|_| config.to_owned());
    let ours = Other { state_dir, config: &config, term: Term::Endless };
    match &last.record {
        Some(record)
            if !ours.may_follow(record)
                && (last.silent < BELONGS || is_locked(&file).map_err(StateError::io(&path, "locked"))?) =>
        {
            Err(ours.other_configuration(record))
        }
        _ => Ok(()),
    }
}

fn found(file: &File) -> io::Result<Found> {
    let mut text = vec![0; usize::try_from(MAX_RECORD).unwrap_or_default()];
    let mut length = 0;
    loop {
        match file.read_at(&mut text[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let changed_at = file.metadata()?.modified()?;
    let silent = SystemTime::now().duration_since(changed_at).unwrap_or_default();
    Ok(Found { record: serde_json::from_slice(&text[..length]).ok(), silent, changed_at })
}

fn write(file: &File, config: &Path, now: DateTime<Utc>, until: Option<DateTime<Utc>>) -> io::Result<()> {
    let pid = std::process::id();
    let process = ProcessId::of(pid).unwrap_or(ProcessId { pid, started_at: 0 });
    let until = until.map(|until| until.trunc_subsecs(3));
    let json = serde_json::to_vec(&Record { process, started_at: now, until, config: config.to_owned() })?;
    file.set_len(0)?;
    file.write_all_at(&json, 0)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    async fn take(dir: &Path, config: &str, term: Term) -> Result<Option<SupervisorLock>, LockError> {
        SupervisorLock::take(dir, &dir.join(config), term).await
    }

    /// A folder with two configurations and a state directory.
    fn folder() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for config in ["a.yaml", "b.yaml"] {
            std::fs::write(dir.path().join(config), "").unwrap();
        }
        dir
    }

    /// As if the supervisor at work had last done something so many seconds ago.
    fn nothing_was_done_for(dir: &Path, seconds: u64) {
        let file = state::open(&dir.join(FILE), Mode::ReadWrite).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    fn rewrite(dir: &Path, change: impl FnOnce(&mut Record)) {
        let file = state::open(&dir.join(FILE), Mode::ReadWrite).unwrap();
        let mut record = found(&file).unwrap().record.unwrap();
        change(&mut record);
        file.set_len(0).unwrap();
        file.write_all_at(&serde_json::to_vec(&record).unwrap(), 0).unwrap();
    }

    #[tokio::test]
    async fn a_cron_waits_for_one_that_is_about_to_end() {
        let dir = folder();
        let first = take(dir.path(), "a.yaml", Term::Cron).await.unwrap().unwrap();
        // In the middle of a minute, so that no cron would be started soon after.
        let now = Utc::now();
        let until = now + chrono::TimeDelta::seconds(if (5..40).contains(&(now.timestamp() % 60)) { 1 } else { 25 });
        rewrite(dir.path(), |record| record.until = Some(until));
        let ends = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(take(dir.path(), "a.yaml", Term::Cron), ends);
        assert!(second.unwrap().is_some(), "it follows");
    }

    #[tokio::test]
    async fn nobody_waits_for_one_that_does_not_end() {
        let dir = folder();
        let _first = take(dir.path(), "a.yaml", Term::Endless).await.unwrap().unwrap();
        for term in [Term::Cron, Term::Endless] {
            assert!(take(dir.path(), "a.yaml", term).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn another_configuration_is_refused_by_name_also_shortly_after() {
        let dir = folder();
        let refused = |result: Result<Option<SupervisorLock>, LockError>| {
            let text = result.unwrap_err().to_string();
            let real = dir.path().canonicalize().unwrap();
            let (var, a, b) = (dir.path().display(), real.join("a.yaml"), real.join("b.yaml"));
            let (a, b) = (a.display(), b.display());
            let expected = format!("{var} is in use by another configuration, {a}: give {b} a `state_dir` of its own");
            assert_eq!(text, expected);
        };
        let first = take(dir.path(), "a.yaml", Term::Cron).await.unwrap().unwrap();
        refused(take(dir.path(), "b.yaml", Term::Cron).await);
        drop(first);
        refused(take(dir.path(), "b.yaml", Term::Endless).await);
        // The same one by another name.
        std::os::unix::fs::symlink(dir.path().join("a.yaml"), dir.path().join("link.yaml")).unwrap();
        drop(take(dir.path(), "link.yaml", Term::Cron).await.unwrap().unwrap());
        // One that is no more, and one that has been out of use.
        nothing_was_done_for(dir.path(), 700);
        drop(take(dir.path(), "b.yaml", Term::Cron).await.unwrap().unwrap());
        std::fs::remove_file(dir.path().join("b.yaml")).unwrap();
        drop(take(dir.path(), "a.yaml", Term::Cron).await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn a_new_version_of_an_application_follows_the_one_before() {
        let dir = folder();
        for version in ["1", "2"] {
            std::fs::create_dir(dir.path().join(version)).unwrap();
            std::fs::write(dir.path().join(version).join("config.yaml"), "").unwrap();
        }
        let first = take(dir.path(), "1/config.yaml", Term::Endless).await.unwrap().unwrap();
        let error = take(dir.path(), "2/config.yaml", Term::Endless).await.unwrap_err();
        assert!(matches!(error, LockError::OtherConfiguration { .. }), "not beside it: {error}");
        drop(first);
        assert!(take(dir.path(), "2/config.yaml", Term::Endless).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn one_that_is_stuck_where_it_cannot_be_seen_is_reported() {
        let dir = folder();
        let _first = take(dir.path(), "a.yaml", Term::Endless).await.unwrap().unwrap();
        // A process of another host, or of another container.
        rewrite(dir.path(), |record| record.process.started_at -= 3600);
        nothing_was_done_for(dir.path(), 130);
        let text = take(dir.path(), "a.yaml", Term::Cron).await.unwrap_err().to_string();
        let pid = std::process::id();
        assert!(text.contains(&format!("(process {pid}) has done nothing for 1")), "{text}");
        assert!(text.contains("is not replaced: its process cannot be seen from here"), "{text}");
    }

    #[tokio::test]
    async fn one_that_does_something_again_is_not_stuck() {
        let dir = folder();
        let first = take(dir.path(), "a.yaml", Term::Endless).await.unwrap().unwrap();
        // As after the machine was suspended.
        nothing_was_done_for(dir.path(), 1000);
        let goes_on = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            progress(first.file());
        };
        let (second, ()) = tokio::join!(take(dir.path(), "a.yaml", Term::Cron), goes_on);
        assert!(second.unwrap().is_none());
    }

    #[tokio::test]
    async fn the_second_supervisor_finds_the_first_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let take = || take(dir.path(), "config.yaml", Term::Endless);
        let first = take().await.unwrap();
        assert!(first.is_some());
        assert!(take().await.unwrap().is_none());
        let status = supervisor_status(dir.path()).unwrap();
        assert_eq!((status.running, status.pid), (true, Some(std::process::id())));

        drop(first);
        let status = || supervisor_status(dir.path()).unwrap();
        crate::supervisor::tests::eventually("the lock is free", || status() == SupervisorStatus::default());
        assert!(take().await.unwrap().is_some());
    }

    #[test]
    fn looking_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("var");
        assert_eq!(supervisor_status(&state_dir).unwrap(), SupervisorStatus::default());
        assert!(!state_dir.exists());
    }

    #[tokio::test]
    async fn someone_who_looks_is_not_taken_for_a_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let take = || take(dir.path(), "config.yaml", Term::Endless);
        drop(take().await.unwrap());
        let looking = state::open(&dir.path().join(FILE), Mode::Read).unwrap();
        looking.try_lock_shared().unwrap();
        let (lock, ()) = tokio::join!(take(), async move {
            tokio::time::sleep(BETWEEN_TRIES * 2).await;
            drop(looking);
        });
        assert!(lock.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_folder_in_the_place_of_the_lock_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        let error = take(dir.path(), "config.yaml", Term::Cron).await.unwrap_err().to_string();
        assert!(error.ends_with("supervisor.lock is not a regular file; move it away"), "{error}");
    }
}

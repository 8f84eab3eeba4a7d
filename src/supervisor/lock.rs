//! One supervisor per state directory: whoever holds the lock on `supervisor.lock`.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::slot::is_locked;
use super::state::{self, Mode, StateError};

const FILE: &str = "supervisor.lock";
/// How often the lock is tried, and how long to wait in between. `status` holds it for an instant to see whether it is
/// free, and a process that is just being started holds a copy until it runs its own program; neither is a supervisor.
const TRIES: u32 = 6;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
/// A record longer than this (in bytes) is not ours.
const MAX_RECORD: u64 = 4096;

/// The right to supervise. Ends when it is dropped, and with the process.
#[derive(Debug)]
pub struct SupervisorLock {
    _file: File,
}

#[derive(Serialize, Deserialize)]
struct Record {
    pid: u32,
    started_at: DateTime<Utc>,
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

impl SupervisorLock {
    /// Takes the lock, or `None` when another supervisor is at work.
    pub(super) async fn take(state_dir: &Path) -> Result<Option<Self>, StateError> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            if let Some(lock) = Self::try_take(state_dir)? {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    fn try_take(state_dir: &Path) -> Result<Option<Self>, StateError> {
        state::create_dir(state_dir)?;
        let path = state_dir.join(FILE);
        let file = state::open(&path, Mode::ReadWrite)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(StateError::io(&path, "locked")(error)),
        }
        if !state::is_at(&file, &path) {
            return Ok(None);
        }
        if let Err(error) = record(&file) {
            // Full disk, perhaps: workers can be supervised all the same, only `status` does not know by whom.
            tracing::warn!(path = %path.display(), %error, "the supervisor could not be recorded");
        }
        Ok(Some(Self { _file: file }))
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
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text).map_err(StateError::io(&path, "read"))?;
    let record: Option<Record> = serde_json::from_slice(&text).ok();
    Ok(SupervisorStatus {
        running: true,
        pid: record.as_ref().map(|record| record.pid),
        started_at: record.as_ref().map(|record| record.started_at),
    })
}

fn record(file: &File) -> io::Result<()> {
    let json = serde_json::to_vec(&Record { pid: std::process::id(), started_at: Utc::now() })?;
    file.set_len(0)?;
    file.write_all_at(&json, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_supervisor_finds_the_first_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let first = SupervisorLock::take(dir.path()).await.unwrap();
        assert!(first.is_some());
        assert!(SupervisorLock::take(dir.path()).await.unwrap().is_none());
        let status = supervisor_status(dir.path()).unwrap();
        assert_eq!((status.running, status.pid), (true, Some(std::process::id())));

        drop(first);
        let status = || supervisor_status(dir.path()).unwrap();
        crate::supervisor::tests::eventually("the lock is free", || status() == SupervisorStatus::default());
        assert!(SupervisorLock::take(dir.path()).await.unwrap().is_some());
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
        drop(SupervisorLock::take(dir.path()).await.unwrap());
        let looking = state::open(&dir.path().join(FILE), Mode::Read).unwrap();
        looking.try_lock_shared().unwrap();
        let (lock, ()) = tokio::join!(SupervisorLock::take(dir.path()), async move {
            tokio::time::sleep(BETWEEN_TRIES * 2).await;
            drop(looking);
        });
        assert!(lock.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_folder_in_the_place_of_the_lock_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        let error = SupervisorLock::take(dir.path()).await.unwrap_err().to_string();
        assert!(error.ends_with("supervisor.lock is not a regular file; move it away"), "{error}");
    }
}

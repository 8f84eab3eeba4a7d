//! What `supervisor.lock` says about the supervisor that holds it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use super::super::process::ProcessId;
use crate::state_files::{self, Mode, StateError};

pub(super) const FILE: &str = "supervisor.lock";
/// A longer file (in bytes) was not written by [`SupervisorRecord::write`].
const MAX_BYTES: usize = 16 << 10;

/// A supervisor, as recorded in the lock's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SupervisorRecord {
    #[serde(flatten)]
    pub process: ProcessId,
    pub started_at: DateTime<Utc>,
    /// Under cron: when the supervisor ends.
    #[serde(rename = "until")]
    pub ends_at: Option<DateTime<Utc>>,
    /// The configuration's file, without symbolic links.
    pub config: PathBuf,
}

/// The content of the lock's file, and its age.
pub(super) struct LockFile {
    /// The last supervisor. `None` if the file is empty or damaged.
    pub record: Option<SupervisorRecord>,
    /// When that supervisor last made progress.
    pub modified_at: SystemTime,
    /// How long ago that was.
    pub silent: Duration,
}

impl LockFile {
    pub(super) fn read(file: &File, path: &Path) -> Result<Self, StateError> {
        Self::read_open(file).map_err(StateError::io(path, "read"))
    }

    fn read_open(file: &File) -> io::Result<Self> {
        let mut text = vec![0; MAX_BYTES];
        let mut length = 0;
        loop {
            match file.read_at(&mut text[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let modified_at = file.metadata()?.modified()?;
        let silent = SystemTime::now().duration_since(modified_at).unwrap_or_default();
        Ok(Self { record: serde_json::from_slice(&text[..length]).ok(), modified_at, silent })
    }
}

impl SupervisorRecord {
    /// This process, as the supervisor of a configuration.
    pub(super) fn of_this_process(config: &Path, now: DateTime<Utc>, ends_at: Option<DateTime<Utc>>) -> Self {
        let pid = std::process::id();
        let process = ProcessId::of(pid).unwrap_or(ProcessId { pid, started_at: 0 });
        let ends_at = ends_at.map(|time| time.trunc_subsecs(3));
        Self { process, started_at: now, ends_at, config: config.to_owned() }
    }

    /// Replaces the content of the lock's file.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        file.set_len(0)?;
        file.write_all_at(&json, 0)
    }
}

/// The supervisor of a state directory, as `status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SupervisorStatus {
    /// Whether one runs.
    pub running: bool,
    /// Its process.
    pub pid: Option<u32>,
    /// When it started.
    pub started_at: Option<DateTime<Utc>>,
}

/// The supervisor that runs in this state directory. Creates nothing.
pub(crate) fn supervisor_status(state_dir: &Path) -> Result<SupervisorStatus, StateError> {
    let path = state_dir.join(FILE);
    let Some(file) = open_existing(&path)? else { return Ok(SupervisorStatus::default()) };
    if !state_files::is_locked(&file, &path)? {
        return Ok(SupervisorStatus::default());
    }
    let record = LockFile::read(&file, &path)?.record;
    Ok(SupervisorStatus {
        running: true,
        pid: record.as_ref().map(|record| record.process.pid),
        started_at: record.as_ref().map(|record| record.started_at),
    })
}

/// The lock's file, if there is one.
pub(super) fn open_existing(path: &Path) -> Result<Option<File>, StateError> {
    match state_files::open(path, Mode::Read) {
        Ok(file) => Ok(Some(file)),
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

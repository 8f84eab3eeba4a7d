//! One supervisor at a time for a state directory.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::slot::lock_patiently;

const FILE: &str = "supervisor.lock";

/// Held by the supervisor that is at work.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The supervisor that is at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtWork {
    /// Its process.
    pub pid: u32,
    /// Since when, as RFC 3339.
    pub started_at: String,
}

/// Makes this process the supervisor; none when another one is.
pub fn lock(state_dir: &Path) -> io::Result<Option<Lock>> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    let path = state_dir.join(FILE);
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match lock_patiently(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let started_at = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let record = serde_json::to_vec(&AtWork { pid: std::process::id(), started_at })?;
    // Only `status` reads it; a full disk is no reason not to supervise.
    if let Err(error) = file.set_len(0).and_then(|()| file.write_all(&record)) {
        tracing::warn!(%error, "{FILE} could not be written: `status` cannot tell the supervisor's pid");
    }
    Ok(Some(Lock { _file: file }))
}

/// Is a supervisor at work? `Some(None)`: one of which nothing more is known.
pub fn at_work(state_dir: &Path) -> io::Result<Option<Option<AtWork>>> {
    let mut file = match File::open(state_dir.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok(Some(serde_json::from_slice(&text).ok()))
        }
    }
}

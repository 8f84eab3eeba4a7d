//! Which workers run inside other programs. The supervisor has not started them, so they have no slot; `status` shows them by
//! the file that each of them keeps locked.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

const FOLDER: &str = "in-process";

/// A worker that runs inside another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InProcessWorker {
    /// What it consumes, in order of priority.
    pub transports: Vec<String>,
    /// How many messages it handles at once.
    pub concurrency: usize,
    /// The program's process.
    pub pid: u32,
    /// Since when it works.
    pub started_at: DateTime<Utc>,
}

/// Says that a worker is at work, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Presence {
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Presence {
    /// Says that this worker is at work in this state directory.
    pub(crate) fn announce(state_dir: &Path, worker: &InProcessWorker) -> io::Result<Self> {
        let dir = state_dir.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut file = tempfile::Builder::new().prefix(&format!("{}-", worker.pid)).tempfile_in(&dir)?;
        file.write_all(&serde_json::to_vec(worker)?)?;
        // Nobody else looks at a file for longer than an instant.
        file.as_file().lock()?;
        let (file, path) = file.keep()?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // One that is left is known by its lock, which ends now.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The workers that run inside programs, in the order in which they were started.
pub fn in_process_workers(state_dir: &Path) -> io::Result<Vec<InProcessWorker>> {
    let files = match state_dir.join(FOLDER).read_dir() {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut workers: Vec<InProcessWorker> = files.filter_map(|file| live_worker(&file.ok()?.path())).collect();
    workers.sort_by_key(|worker| worker.started_at);
    Ok(workers)
}

/// The worker whose file this is, if it is at work. The file of one that was killed is removed.
fn live_worker(path: &Path) -> Option<InProcessWorker> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => serde_json::from_slice(&std::fs::read(path).ok()?).ok(),
        Err(TryLockError::Error(_)) => None,
        Ok(()) => {
            // Not locked: it is gone, or has not locked its file yet, which takes an instant.
            let text = std::fs::read(path).ok()?;
            let worker: InProcessWorker = serde_json::from_slice(&text).ok()?;
            if Utc::now() - worker.started_at > chrono::TimeDelta::seconds(60) {
                let _ = std::fs::remove_file(path);
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_seen_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let worker = |name: &str, minutes| InProcessWorker {
            transports: vec![name.to_owned()],
            concurrency: 4,
            pid: std::process::id(),
            started_at: Utc::now() - chrono::TimeDelta::minutes(minutes),
        };
        assert_eq!(in_process_workers(dir.path()).unwrap(), []);
        let (mail, thumbs) = (worker("mail", 1), worker("thumbs", 2));
        let first = Presence::announce(dir.path(), &mail).unwrap();
        let second = Presence::announce(dir.path(), &thumbs).unwrap();
        assert_eq!(in_process_workers(dir.path()).unwrap(), [thumbs, mail.clone()]);
        drop(second);
        assert_eq!(in_process_workers(dir.path()).unwrap(), [mail]);
        // As one leaves its file that is killed.
        let left = first.path.clone();
        let copy = dir.path().join("copy");
        std::fs::copy(&left, &copy).unwrap();
        drop(first);
        std::fs::rename(&copy, &left).unwrap();
        assert_eq!(in_process_workers(dir.path()).unwrap(), []);
        assert!(!left.exists());
    }
}

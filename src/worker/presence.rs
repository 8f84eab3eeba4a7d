//! Workers that run inside other programs. They have no slot, because no supervisor started them. Each keeps a file
//! locked, by which `status` finds it.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

const FOLDER: &str = "in-process";

/// A worker that runs inside another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InProcessWorker {
    /// What it consumes, in order of priority.
    pub transports: Vec<String>,
    /// How many messages it handles at once.
    pub concurrency: usize,
    /// The program's process.
    pub pid: u32,
    /// When it was started.
    pub started_at: DateTime<Utc>,
}

/// Shows that a worker is running, until this is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Presence {
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Presence {
    /// Creates and locks a file for this worker in the state directory.
    pub(crate) fn announce(state_dir: &Path, worker: &InProcessWorker) -> io::Result<Self> {
        let dir = state_dir.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut file = tempfile::Builder::new().prefix(&format!("{}-", worker.pid)).tempfile_in(&dir)?;
        file.write_all(&serde_json::to_vec(worker)?)?;
        // Others lock it only for an instant, to check it.
        file.as_file().lock()?;
        let (file, path) = file.keep()?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // If it cannot be removed, its missing lock shows that the worker is gone.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The workers that run inside other programs, in the order in which they were started.
pub(crate) fn in_process_workers(state_dir: &Path) -> io::Result<Vec<InProcessWorker>> {
    let files = match state_dir.join(FOLDER).read_dir() {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut workers: Vec<InProcessWorker> = files.filter_map(|file| live_worker(&file.ok()?.path())).collect();
    workers.sort_by_key(|worker| worker.started_at);
    Ok(workers)
}

/// The worker that this file belongs to, if it is running. The file of a killed worker is removed.
fn live_worker(path: &Path) -> Option<InProcessWorker> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => serde_json::from_slice(&std::fs::read(path).ok()?).ok(),
        Err(TryLockError::Error(_)) => None,
        Ok(()) => {
            // Not locked: the worker is gone, or is about to lock its file.
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
    fn a_worker_is_listed_until_it_ends() {
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
        // A killed worker leaves its file.
        let left = first.path.clone();
        let copy = dir.path().join("copy");
        std::fs::copy(&left, &copy).unwrap();
        drop(first);
        std::fs::rename(&copy, &left).unwrap();
        assert_eq!(in_process_workers(dir.path()).unwrap(), []);
        assert!(!left.exists());
    }
}

//! The running workers: a *slot* is the n-th place of a worker definition, and holds at most one live worker.
//!
//! A slot is a file, `slots/<definition>/<n>`. The worker's process holds an exclusive `flock` on it for as long as it
//! lives, through a descriptor that it inherited: the supervisor locks the file, starts the program, and closes its own
//! descriptor. The lock belongs to the *open file*, which the two share. The kernel releases it when the last
//! descriptor is closed, so on any death of the worker, `kill -9` included.
//!
//! ```text
//!            claim: lock, empty the file     spawn: the child inherits the lock     record it, close
//!   (free) ──────────────────────────────▶ claimed ─────────────────────────▶ live ────────────────▶ live
//!      ▲                                      │ the program cannot be started                          │
//!      └──────────────────────────────────────┴──────────────── the worker is gone ───────────────────┘
//! ```
//!
//! A supervisor that dies at any point of this leaves a slot that is free, or one with a live worker.
//!
//! The file also [records](WorkerRecord) the process. That is for people, and a second line of defence: a program may
//! close descriptors that it does not know, and a network file system may not carry the lock over to the child. So a
//! slot is also occupied if its lock is free and its recorded process lives.
//!
//! Slot files are never deleted: another process could be about to lock one, and would then hold a lock that no other
//! sees.

mod claim;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use claim::SlotClaim;
pub(crate) use record::WorkerRecord;

use std::io;
use std::path::{Path, PathBuf};

use crate::state_files::{self, Mode, StateError};

/// All slots of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    dir: PathBuf,
}

/// A slot with a live worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveSlot {
    /// The worker definition's name.
    pub definition: String,
    /// The slot's number.
    pub slot: u32,
    /// The worker. `None` while it is being started, or if its record could not be written or read.
    pub record: Option<WorkerRecord>,
}

impl Slots {
    /// The slots under this state directory. Creates nothing.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("slots") }
    }

    /// The slots of scheduled jobs under this state directory: a job that runs holds one, as a worker does.
    pub(crate) fn of_jobs(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("jobs") }
    }

    /// The slots of requests to consume, by receiver: one at a time holds the first.
    pub(crate) fn of_requests(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("requests") }
    }

    /// The path of a slot's file.
    pub(crate) fn path(&self, definition: &str, slot: u32) -> PathBuf {
        self.dir.join(definition).join(slot.to_string())
    }

    /// Claims a slot for a worker that is about to be started. `None` if the slot is occupied, or claimed by another
    /// process. Creates the file and its folders if they are missing.
    pub(crate) fn claim(&self, definition: &str, slot: u32) -> Result<Option<SlotClaim>, StateError> {
        SlotClaim::take(self, definition, slot)
    }

    /// The live workers of a definition, by slot. Includes slots beyond a `max` that has been lowered. Files that are
    /// no slots are ignored.
    pub(crate) fn live(&self, definition: &str) -> Result<Vec<LiveSlot>, StateError> {
        let mut slots: Vec<u32> =
            names(&self.dir.join(definition))?.iter().filter_map(|name| name.parse().ok()).collect();
        slots.sort_unstable();
        // `7` and `+7` are the same number.
        slots.dedup();
        slots.into_iter().filter_map(|slot| self.live_slot(definition, slot).transpose()).collect()
    }

    /// All live workers, also of definitions that are no longer in the configuration.
    pub(crate) fn all_live(&self) -> Result<Vec<LiveSlot>, StateError> {
        let mut definitions = names(&self.dir)?;
        definitions.sort_unstable();
        let mut live = Vec::new();
        for definition in definitions {
            // A stray file among the folders belongs to no definition.
            if self.dir.join(&definition).is_dir() {
                live.extend(self.live(&definition)?);
            }
        }
        Ok(live)
    }

    /// The names of all definitions that have or had slots here, also of those that are no longer in the configuration.
    pub(super) fn definitions(&self) -> Vec<String> {
        let mut definitions = names(&self.dir).unwrap_or_default();
        definitions.retain(|definition| self.dir_of(definition).is_dir());
        definitions
    }

    /// The folder of a definition's slots.
    pub(super) fn dir_of(&self, definition: &str) -> PathBuf {
        self.dir.join(definition)
    }

    /// The slot, if it has a live worker.
    pub(super) fn live_slot(&self, definition: &str, slot: u32) -> Result<Option<LiveSlot>, StateError> {
        let path = self.path(definition, slot);
        let file = match state_files::open(&path, Mode::Read) {
            Ok(file) => file,
            // What is not a file never was a worker's slot. Claiming the slot reports what is wrong.
            Err(StateError::NotAFile(_)) => return Ok(None),
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let locked = state_files::is_locked(&file, &path)?;
        let record = WorkerRecord::read(&file).ok().flatten();
        let live = locked || record.as_ref().is_some_and(|record| record.process.is_alive());
        Ok(live.then(|| LiveSlot { definition: definition.to_owned(), slot, record }))
    }
}

/// The names in a folder; none if the folder does not exist.
fn names(dir: &Path) -> Result<Vec<String>, StateError> {
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StateError::io(dir, "read")(error)),
    };
    let name =
        |entry: io::Result<std::fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok()).transpose();
    entries.filter_map(name).collect::<io::Result<_>>().map_err(StateError::io(dir, "read"))
}

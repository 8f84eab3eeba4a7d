//! A slot that this process has locked to start a worker in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Utc;

use super::super::process::ProcessId;
use super::{Slots, WorkerRecord};
use crate::state_files::{self, Mode, StateError};

/// How many times a slot file is created again that is deleted while it is being claimed.
const MAX_REOPENED: u32 = 3;

/// A claimed slot. Free again when it is dropped, unless a child has inherited its file.
#[derive(Debug)]
pub(crate) struct SlotClaim {
    definition: String,
    slot: u32,
    path: PathBuf,
    /// Locked. With `std`'s lock and not `nix`'s `Flock`, which *unlocks* when it is dropped and would so take the lock
    /// from the child as well. Closing the file leaves the lock to the child.
    file: Arc<File>,
}

impl SlotClaim {
    pub(super) fn take(slots: &Slots, definition: &str, slot: u32) -> Result<Option<Self>, StateError> {
        let path = slots.path(definition, slot);
        for _ in 0..MAX_REOPENED {
            state_files::create_dir(&slots.dir_of(definition))?;
            let file = state_files::open(&path, Mode::ReadWrite)?;
            if !state_files::try_lock(&file, &path)? {
                return Ok(None);
            }
            // The state directory may have been deleted since the file was opened. The lock would then be on a file
            // that no other process finds.
            if !state_files::is_at(&file, &path) {
                continue;
            }
            let (definition, is_free) = (definition.to_owned(), empty(&file, &path)?);
            return Ok(is_free.then(|| Self { definition, slot, path, file: Arc::new(file) }));
        }
        Err(StateError::Vanishing(path))
    }

    /// `<definition>/<n>`, as in the worker's environment.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.definition, self.slot)
    }

    /// The slot's number.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// The locked file, for the child to inherit.
    pub(in crate::supervisor) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Records the worker's process in the slot's file. If this fails, the worker holds its slot nevertheless, but its
    /// pid is not shown.
    pub(in crate::supervisor) fn record(&self, process: ProcessId, command: Vec<String>) -> Result<(), StateError> {
        let (definition, slot) = (self.definition.clone(), self.slot);
        let record = WorkerRecord { definition, slot, process, command, started_at: Utc::now() };
        let written = record.write(&self.file);
        if written.is_err() {
            // If this fails as well, half a record is left, which is read as none.
            let _ = self.file.set_len(0);
        }
        written.map_err(StateError::io(&self.path, "written"))
    }
}

/// Empties the file of a slot that was just locked, so that the last worker's record is not taken for the next one's.
/// `false`, and nothing is done, if the recorded process lives although it does not hold the lock.
fn empty(file: &File, path: &Path) -> Result<bool, StateError> {
    match WorkerRecord::read(file) {
        Ok(Some(record)) if record.process.is_alive() => return Ok(false),
        Ok(_) => {}
        Err(error) => tracing::warn!(slot = %path.display(), %error, "the slot's record is damaged, and is replaced"),
    }
    file.set_len(0).map_err(StateError::io(path, "emptied"))?;
    Ok(true)
}

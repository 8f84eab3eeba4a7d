//! Who is running: a *slot* is the n-th place of a worker definition, and holds at most one live worker.
//!
//! A slot is a file, `slots/<definition>/<n>`. The worker's process holds an exclusive `flock` on it for as long as it
//! lives, through a descriptor that it inherited: the supervisor locks the file, starts the program, and closes its own
//! descriptor. The lock belongs to the *open file*, which the two share, and the kernel lets go when the last
//! descriptor to it is closed; that is, on any death of the worker, `kill -9` included.
//!
//! ```text
//!            claim: lock, empty the file     spawn: the child inherits the lock     record it, close
//!   (free) ──────────────────────────────▶ claimed ─────────────────────────▶ live ────────────────▶ live
//!      ▲                                      │ the program cannot be started                          │
//!      └──────────────────────────────────────┴──────────────── the worker is gone ───────────────────┘
//! ```
//!
//! A supervisor that dies at any point of this leaves a slot that is free, or one whose worker lives.
//!
//! The file also *records* the process. That is for people, and a second line of defence: a program may close
//! descriptors it does not know, and a network file system may not carry the lock over to the child. A slot whose lock
//! is free and whose recorded process lives is therefore still occupied.
//!
//! Slot files are never deleted. Deleting one would need the certainty that nobody is about to lock it, and whoever has
//! it open would then hold a lock that nobody else sees.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use super::state::{self, Mode, StateError};

/// A record longer than this (in bytes) is not read: nothing that long was written by [`Claim::record`].
const MAX_RECORD: u64 = 4 << 20;
/// How often a slot file that is deleted under the claimer's hands is created anew.
const MAX_REOPENED: u32 = 3;

/// All slots of one state directory.
#[derive(Debug, Clone)]
pub struct Slots {
    dir: PathBuf,
}

/// What a slot's file says about its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The worker definition's name.
    pub definition: String,
    /// Which of its slots.
    pub slot: u32,
    /// The worker's process.
    #[serde(flatten)]
    pub process: ProcessId,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When the supervisor started it.
    pub started_at: DateTime<Utc>,
}

/// A slot with a live worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSlot {
    /// The worker definition's name.
    pub definition: String,
    /// Which of its slots.
    pub slot: u32,
    /// Who lives there. `None` while the worker is being started, or when that could not be written or read.
    pub record: Option<Record>,
}

/// A slot that is this process's to fill. Free again when it is dropped, unless a child has inherited it.
#[derive(Debug)]
pub struct Claim {
    definition: String,
    slot: u32,
    path: PathBuf,
    /// Locked. `std`'s lock and not `nix`'s `Flock`, which *unlocks* when it is dropped: that would take the lock from
    /// the child as well. Closing leaves it to the child.
    file: Arc<File>,
}

impl Slots {
    /// The slots under this state directory. Creates nothing.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("slots") }
    }

    /// Where a slot's file is.
    pub fn path(&self, definition: &str, slot: u32) -> PathBuf {
        self.dir.join(definition).join(slot.to_string())
    }

    /// Takes a slot, or `None` when it is occupied or being taken. Creates what is missing of its file and folders.
    pub fn claim(&self, definition: &str, slot: u32) -> Result<Option<Claim>, StateError> {
        let path = self.path(definition, slot);
        for _ in 0..MAX_REOPENED {
            state::create_dir(&self.dir.join(definition))?;
            let file = state::open(&path, Mode::ReadWrite)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(StateError::io(&path, "locked")(error)),
            }
            // The state directory may have been deleted since the file was opened. The lock would then be on a file that
            // nobody else finds.
            if !state::is_at(&file, &path) {
                continue;
            }
            return Ok(take(&file, &path)?.then(|| Claim {
                definition: definition.to_owned(),
                slot,
                path,
                file: Arc::new(file),
            }));
        }
        Err(StateError::Vanishing(path))
    }

    /// The live workers of a definition, by slot, also of slots that a lowered `max` has since taken away.
    ///
    /// What is in the folder and is not a slot is passed over.
    pub fn live(&self, definition: &str) -> Result<Vec<LiveSlot>, StateError> {
        let mut slots: Vec<u32> =
            names(&self.dir.join(definition))?.iter().filter_map(|name| name.parse().ok()).collect();
        slots.sort_unstable();
        // `7` and `+7` are one number.
        slots.dedup();
        let look = |slot| self.look(definition, slot).transpose();
        slots.into_iter().filter_map(look).collect()
    }

    /// All live workers, also of definitions that are no longer in the configuration.
    pub fn all_live(&self) -> Result<Vec<LiveSlot>, StateError> {
        let mut definitions = names(&self.dir)?;
        definitions.sort_unstable();
        let mut live = Vec::new();
        for definition in definitions {
            // A stray file among the folders is nobody's definition.
            if self.dir.join(&definition).is_dir() {
                live.extend(self.live(&definition)?);
            }
        }
        Ok(live)
    }

    /// Every definition that has or had slots here, also those that are no longer in the configuration.
    pub(super) fn definitions(&self) -> Vec<String> {
        let mut definitions = names(&self.dir).unwrap_or_default();
        definitions.retain(|definition| self.dir_of(definition).is_dir());
        definitions
    }

    /// The folder of a definition's slots.
    pub(super) fn dir_of(&self, definition: &str) -> PathBuf {
        self.dir.join(definition)
    }

    /// The slot, if a worker lives there.
    pub(super) fn look(&self, definition: &str, slot: u32) -> Result<Option<LiveSlot>, StateError> {
        let path = self.path(definition, slot);
        let file = match state::open(&path, Mode::Read) {
            Ok(file) => file,
            // Nothing that is not a file was ever a worker's slot; claiming it says what is wrong.
            Err(StateError::NotAFile(_)) => return Ok(None),
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let locked = is_locked(&file).map_err(StateError::io(&path, "locked"))?;
        let record = read(&file).ok().flatten();
        let live = locked || record.as_ref().is_some_and(|record| record.process.is_alive());
        Ok(live.then(|| LiveSlot { definition: definition.to_owned(), slot, record }))
    }
}

impl Claim {
    /// `<definition>/<n>`, as the worker's environment names it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.definition, self.slot)
    }

    /// Which of the definition's slots.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The locked file, for the child to inherit.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Writes down who lives here now. When this fails, the worker still holds its slot; only nobody can see who it is.
    pub(super) fn record(&self, process: ProcessId, command: Vec<String>) -> Result<(), StateError> {
        let (definition, slot) = (self.definition.clone(), self.slot);
        let record = Record { definition, slot, process, command, started_at: Utc::now() };
        let written = serde_json::to_vec(&record)
            .map_err(io::Error::from)
            // At a given place, because the child shares this file's position. In one write, so that a reader sees all
            // of it or nothing.
            .and_then(|json| self.file.write_all_at(&json, 0));
        if written.is_err() {
            // Better nothing than half a record. If this fails too, half a record is read as none.
            let _ = self.file.set_len(0);
        }
        written.map_err(StateError::io(&self.path, "written"))
    }
}

/// With the lock in hand: makes the slot ours, unless the recorded process lives although it holds no lock.
fn take(file: &File, path: &Path) -> Result<bool, StateError> {
    match read(file) {
        Ok(Some(record)) if record.process.is_alive() => return Ok(false),
        Ok(_) => {}
        Err(error) => tracing::warn!(slot = %path.display(), %error, "the slot's record is damaged, and is replaced"),
    }
    // Emptied before the program starts, so that the last worker is not taken for the next one.
    file.set_len(0).map_err(StateError::io(path, "emptied"))?;
    Ok(true)
}

/// Does someone hold the lock?
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    // Shared, so that two who look do not see each other; and only for an instant, because a supervisor that claims the
    // slot meanwhile finds it taken, and has to leave it to its next tick.
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The record in a file that was just opened, or `None` in an empty one.
fn read(file: &File) -> io::Result<Option<Record>> {
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text)?;
    if text.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&text)?)) }
}

/// The names in a folder; none when it is not there.
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::supervisor::tests::{eventually, soon};

    fn slots() -> (TempDir, Slots) {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(&dir.path().join("var"));
        (dir, slots)
    }

    fn this_process() -> ProcessId {
        ProcessId::of(std::process::id()).unwrap()
    }

    fn numbers(slots: &Slots) -> Vec<u32> {
        slots.live("mail").unwrap().iter().map(|slot| slot.slot).collect()
    }

    /// Claims a free slot. Another test's child may for an instant hold a copy of a lock that was let go of here.
    fn claim(slots: &Slots, slot: u32) -> Claim {
        soon("the slot is free", || slots.claim("mail", slot).unwrap())
    }

    /// A slot file as a worker leaves it that has died, or closed its descriptor.
    fn leave_record(slots: &Slots, process: ProcessId) {
        let held = claim(slots, 0);
        held.record(process, vec!["php".into()]).unwrap();
    }

    #[test]
    fn a_slot_is_claimed_once_and_free_again_afterwards() {
        let (_dir, slots) = slots();
        let held = claim(&slots, 0);
        assert!(slots.claim("mail", 0).unwrap().is_none());
        claim(&slots, 1);
        assert_eq!(numbers(&slots), [0]);
        drop(held);
        eventually("no slot is live", || numbers(&slots).is_empty());
        claim(&slots, 0);
    }

    #[test]
    fn looking_creates_nothing() {
        let (dir, slots) = slots();
        assert_eq!(slots.live("mail").unwrap(), []);
        assert_eq!(slots.all_live().unwrap(), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn two_who_look_do_not_see_each_other() {
        let (_dir, slots) = slots();
        drop(claim(&slots, 0));
        let looking = state::open(&slots.path("mail", 0), Mode::Read).unwrap();
        looking.try_lock_shared().unwrap();
        eventually("no slot is live", || numbers(&slots).is_empty());
    }

    #[test]
    fn a_number_reused_by_another_program_is_not_a_worker() {
        let (_dir, slots) = slots();
        let reused = ProcessId { started_at: this_process().started_at - 3600, ..this_process() };
        leave_record(&slots, reused);
        eventually("no slot is live", || numbers(&slots).is_empty());
        claim(&slots, 0);
    }

    #[test]
    fn a_worker_that_let_go_of_its_lock_still_occupies_its_slot() {
        let (_dir, slots) = slots();
        leave_record(&slots, this_process());
        assert_eq!(numbers(&slots), [0]);
        assert!(slots.claim("mail", 0).unwrap().is_none());
        assert_eq!(slots.live("mail").unwrap()[0].record.as_ref().unwrap().command, ["php"]);
    }

    #[test]
    fn a_damaged_record_hides_nobody_and_blocks_nobody() {
        let (_dir, slots) = slots();
        leave_record(&slots, this_process());
        let path = slots.path("mail", 0);
        let half = fs::read(&path).unwrap();
        for damaged in [&half[..half.len() / 2], b"\0\0\0\0", b"null", b"[]", b"\xff"] {
            fs::write(&path, damaged).unwrap();
            eventually("no slot is live", || numbers(&slots).is_empty());
            let held = claim(&slots, 0);
            fs::write(&path, damaged).unwrap();
            assert_eq!(slots.live("mail").unwrap(), [LiveSlot { definition: "mail".into(), slot: 0, record: None }]);
            drop(held);
        }
    }

    #[test]
    fn the_last_workers_record_is_gone_when_the_slot_is_claimed() {
        let (_dir, slots) = slots();
        leave_record(&slots, ProcessId { started_at: 0, ..this_process() });
        let _claim = claim(&slots, 0);
        assert_eq!(slots.live("mail").unwrap()[0].record, None);
    }

    #[test]
    fn what_is_no_file_is_an_error_for_its_slot_alone() {
        let (dir, slots) = slots();
        drop(claim(&slots, 0));
        fs::create_dir(slots.path("mail", 1)).unwrap();
        nix::unistd::mkfifo(&slots.path("mail", 2), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink(dir.path().join("elsewhere"), slots.path("mail", 3)).unwrap();
        for slot in 1..=3 {
            let error = slots.claim("mail", slot).unwrap_err().to_string();
            assert!(error.ends_with(&format!("mail/{slot} is not a regular file; move it away")), "{error}");
        }
        let _claim = claim(&slots, 0);
        assert_eq!(numbers(&slots), [0]);
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn strangers_among_the_slots_are_passed_over() {
        let (_dir, slots) = slots();
        let _claim = claim(&slots, 7);
        for name in ["+7", ".DS_Store", "99999999999", "notes"] {
            fs::write(slots.dir.join("mail").join(name), "").unwrap();
        }
        fs::write(slots.dir.join("stray"), "").unwrap();
        assert_eq!(numbers(&slots), [7]);
        assert_eq!(slots.all_live().unwrap().len(), 1);
    }

    #[test]
    fn deleting_the_state_directory_while_nothing_runs_is_harmless() {
        let (dir, slots) = slots();
        drop(claim(&slots, 0));
        fs::remove_dir_all(dir.path().join("var")).unwrap();
        eventually("no slot is live", || numbers(&slots).is_empty());
        claim(&slots, 0);
    }

    #[test]
    fn only_the_owner_may_look_into_the_state_directory() {
        let (dir, slots) = slots();
        let _claim = claim(&slots, 0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("var")), 0o700);
        assert_eq!(mode(&dir.path().join("var/slots/mail")), 0o700);
        assert_eq!(mode(&slots.path("mail", 0)), 0o600);
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("var"), "").unwrap();
        let error = Slots::new(&dir.path().join("var")).claim("mail", 0).unwrap_err().to_string();
        assert!(error.contains("var/slots/mail could not be created: "), "{error}");
    }
}

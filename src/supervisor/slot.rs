//! Who is running: one file per place for a worker, locked for as long as the worker lives.
//!
//! A slot is taken while somebody holds an exclusive `flock` on its file. The supervisor takes the lock and hands the open
//! file to the worker it starts, so the lock lives exactly as long as the worker's process and the kernel lets go of it on
//! any death. There are only `max` files to lock, which makes `max` a bound for any number of supervisors at once.
//!
//! What is written in the file is for people, and for file systems (NFS is one) whose locks do not follow a file into
//! another process: there, a slot whose record names a living process of the right start time is taken too.
//!
//! Slot files are never removed. Removing one while another process is about to lock it would leave two locks of one name.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use thiserror::Error;

/// By how many seconds two readings of one process's start time may differ: both are rounded, and the kernel derives
/// them from a clock that may be adjusted in between.
const START_TOLERANCE: u64 = 2;

/// How often, and how far apart, a lock is asked for that somebody may hold only to look.
const LOOKS: u32 = 3;
const LOOK: std::time::Duration = std::time::Duration::from_millis(1);

/// Records longer than this are no records.
const RECORD_MOST: u64 = 64 * 1024;

/// The slots of all worker definitions.
#[derive(Debug, Clone)]
pub struct Slots {
    dir: PathBuf,
}

/// What a slot's file says of the worker in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The worker's process.
    pub pid: u32,
    /// When that process began, in seconds since 1970, as the system tells it: a reused pid has another one.
    pub process_started: u64,
    /// When the supervisor started it, as RFC 3339.
    pub started_at: String,
    /// What it runs.
    pub command: Vec<String>,
}

/// A live worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Its slot's number.
    pub slot: u32,
    /// What is known of it; nothing for a moment after its start, or when the file is damaged.
    pub record: Option<Record>,
}

/// A free slot, held. Dropping it closes the file and does not unlock it: the worker that has inherited it keeps the slot.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
}

/// A slot's file could not be used.
#[derive(Debug, Error)]
#[error("the slot {} cannot be used: {source}; check the owner and the free space of the state directory", path.display())]
pub struct SlotError {
    path: PathBuf,
    source: io::Error,
}

impl Slots {
    /// The slots under this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("slots") }
    }

    /// Takes a slot, if no worker lives in it.
    pub fn claim(&self, definition: &str, slot: u32) -> Result<Option<Claim>, SlotError> {
        let path = self.dir.join(definition).join(slot.to_string());
        let failed = |source| SlotError { path: path.clone(), source };
        let dir = self.dir.join(definition);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match lock_patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if read(&file).is_some_and(|record| is_alive(&record)) {
            return Ok(None);
        }
        Ok(Some(Claim { file, path }))
    }

    /// The live workers of a definition, in the order of their slots.
    pub fn live(&self, definition: &str) -> Result<Vec<Live>, SlotError> {
        let dir = self.dir.join(definition);
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| SlotError { path: dir.clone(), source })?,
        };
        let mut numbers: Vec<u32> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        let mut live = Vec::new();
        for slot in numbers {
            let path = dir.join(slot.to_string());
            if let Some(record) = probe(&path).map_err(|source| SlotError { path, source })? {
                live.push(Live { slot, record });
            }
        }
        Ok(live)
    }
}

impl Claim {
    /// The file, to be handed to the worker.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets who was here before. To be done before a worker is started: if the supervisor dies right after, nobody is
    /// shown the dead one's pid for the living one's.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Notes who is here now.
    pub fn note(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        let mut file: &File = &self.file;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&text)
    }
}

/// Says who lives in a slot: nobody; somebody; somebody with this record.
///
/// A shared lock is asked for, so that two who look at once do not take each other for a worker.
fn probe(path: &Path) -> io::Result<Option<Option<Record>>> {
    let file = File::open(path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(read(&file).filter(is_alive).map(Some)),
        Err(TryLockError::WouldBlock) => Ok(Some(read(&file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Locks a file exclusively (`flock`). Somebody who only looks holds a shared lock for some microseconds, and is waited
/// for; whoever holds on is a worker or a supervisor.
pub(super) fn lock_patiently(file: &File) -> Result<(), TryLockError> {
    for _ in 0..LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            done => return done,
        }
    }
    file.try_lock()
}

/// The record in a slot's file, if there is one that can be read.
fn read(mut file: &File) -> Option<Record> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(RECORD_MOST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Does the process that the record names still live? A process that has got its pid since began at another time.
pub(super) fn is_alive(record: &Record) -> bool {
    process_start(record.pid).is_some_and(|started| started.abs_diff(record.process_started) <= START_TOLERANCE)
}

/// When a process began, in seconds since 1970. None when there is no such process, or nothing but its exit code.
pub(super) fn process_start(pid: u32) -> Option<u64> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
    let process = system.process(pid)?;
    let dead = matches!(process.status(), sysinfo::ProcessStatus::Zombie | sysinfo::ProcessStatus::Dead);
    (!dead).then(|| process.start_time())
}

//! Starts a worker's process in its slot, and, on the other side, takes the slot over in a worker of our own.
//!
//! A worker gets: its own session, so that it outlives the supervisor and no terminal or group signal reaches it; the
//! configuration's folder; the supervisor's environment with [`SLOT_VARIABLE`], [`SLOT_FD_VARIABLE`] and
//! [`WORKER_VARIABLE`]; nothing on standard input; standard output and error in its definition's log; and, of all open files, only its slot.
//!
//! The only file with `unsafe` in it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::setsid;
use thiserror::Error;
use tokio::process::{Child, Command};

use super::process::ProcessId;
use super::recovery;
use super::refusal;
use super::slot::{Claim, Slots};
use super::state::{self, Mode, StateError};
use crate::threads;

/// Names the worker's slot in its environment: `<definition>/<n>`.
pub const SLOT_VARIABLE: &str = "MINUTELY_SLOT";
/// The number of the descriptor that holds the slot's lock, in the worker's environment.
pub const SLOT_FD_VARIABLE: &str = "MINUTELY_SLOT_FD";

/// A number that is in the environment of a worker, and of all that it starts: when the worker is dead, the supervisor
/// knows by it what is left.
pub const WORKER_VARIABLE: &str = "MINUTELY_WORKER";

/// A log that is longer than this (in bytes) is put aside as `….log.1` when the next worker starts.
const LOG_ROTATED_AT: u64 = 10 << 20;

/// Descriptors above this one are not looked for; what starts this program opens low numbers.
const INHERITED_MOST: RawFd = 1024;

/// Keeps what this process has inherited, and does not know of, from the programs it starts. A host that guards its
/// crontab lines with `flock` hands its lock down like that: workers would hold it long after the supervisor's end, and
/// the next cron would not come. The slot that a worker has inherited is left for [`adopt_slot`].
///
/// To be called when the process starts.
pub fn keep_inherited_from_children() {
    let slot = std::env::var(SLOT_FD_VARIABLE).ok().and_then(|descriptor| descriptor.parse().ok());
    for descriptor in (3..INHERITED_MOST).filter(|descriptor| Some(*descriptor) != slot) {
        // SAFETY: only a flag is set, and the borrow ends with the call. A number that is no open descriptor is an error.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let _ = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// A worker's process, just started.
pub(super) struct Spawned {
    /// Its number.
    pub pid: u32,
    /// The process could not be written down. It runs and holds its slot all the same.
    pub unrecorded: Option<StateError>,
}

/// A worker was not started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// Its log could not be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no such program, it may not be run, or the system is out of processes or descriptors.
    #[error("the program \"{program}\" could not be started in {}: {source}{}", dir.display(), threads::advice(source))]
    Program {
        /// The program, as configured.
        program: String,
        /// Where it was to run.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `command: []`.
    #[error("the command is empty")]
    Empty,
}

impl SpawnError {
    /// Does the system give no further process now, nor what one needs?
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Program { source, .. } if threads::is_refusal(source))
    }
}

/// Where the output of a definition's workers goes.
pub fn worker_log(state_dir: &Path, definition: &str) -> PathBuf {
    state_dir.join("log").join(format!("worker-{definition}.log"))
}

/// Starts a program in a slot, and watches from a task of its own how it ends. Must be called within a tokio runtime.
///
/// When the supervisor is killed before this returns, the program runs in its slot or does not run; at worst nobody
/// knows its number.
pub(super) fn spawn(claim: Claim, command: &[OsString], dir: &Path, log: &Path) -> Result<Spawned, SpawnError> {
    let (program, arguments) = command.split_first().ok_or(SpawnError::Empty)?;
    let output = open_log(log)?;
    let error_output = output.try_clone().map_err(StateError::io(log, "opened"))?;
    let mut prepared = Command::new(program);
    prepared
        .args(arguments)
        .current_dir(dir)
        .env(SLOT_VARIABLE, claim.name())
        .env(SLOT_FD_VARIABLE, claim.file().as_raw_fd().to_string())
        .env(WORKER_VARIABLE, format!("{:016x}", fastrand::u64(..)))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(error_output);
    detach_with(&mut prepared, Arc::clone(claim.file()));
    let program_error =
        |source| SpawnError::Program { program: program.display().to_string(), dir: dir.to_owned(), source };
    let child = prepared.spawn().map_err(program_error)?;

    // A number is there until the process has been waited for, which the task below is the first to do. Until then also
    // its start can be read, even when it is dead already.
    let pid = child.id().unwrap_or_default();
    let unrecorded = record(&claim, pid, command).err();
    tokio::spawn(watch(child, claim.name(), pid, log.to_owned()));
    // From here on (the claim is dropped, and with `prepared` its last copy) the child alone holds the slot.
    Ok(Spawned { pid, unrecorded })
}

fn record(claim: &Claim, pid: u32, command: &[OsString]) -> Result<(), StateError> {
    // Where processes cannot be seen (no /proc), the start that is written down fits no process: the lock alone counts.
    let process = ProcessId::of(pid).unwrap_or(ProcessId { pid, started_at: 0 });
    claim.record(process, command.iter().map(|argument| argument.to_string_lossy().into_owned()).collect())
}

/// The child gets a session of its own, and inherits this one file.
fn detach_with(command: &mut Command, slot: Arc<File>) {
    let detach = move || {
        setsid()?;
        // All descriptors of this process are closed on exec. That is undone here, in the child, and not before: a
        // child that another thread starts at the same time must not inherit this slot.
        fcntl(&*slot, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed, and no allocation or lock, because another
    // thread may have held one when the process forked. The closure makes two system calls, setsid(2) and fcntl(2); an
    // error becomes an `io::Error` that holds only its number.
    unsafe { command.pre_exec(detach) };
}

/// Opens the log, after putting an overlong one aside. Workers that are writing to that one go on doing so.
fn open_log(path: &Path) -> Result<File, StateError> {
    if let Some(dir) = path.parent() {
        state::create_dir(dir)?;
    }
    if path.symlink_metadata().is_ok_and(|log| log.is_file() && log.len() > LOG_ROTATED_AT) {
        let aside = path.with_added_extension("1");
        if let Err(error) = std::fs::rename(path, &aside) {
            tracing::warn!(log = %path.display(), %error, "the log could not be put aside, and grows");
        }
    }
    state::open(path, Mode::Append)
}

/// Waits for the process, so that no zombie stays, and says how it ended.
async fn watch(mut child: Child, slot: String, pid: u32, log: PathBuf) {
    match child.wait().await {
        Ok(status) if status.success() => tracing::debug!(slot, pid, "the worker is finished"),
        // Someone asked it to stop, and it has no handler for that.
        Ok(status) if status.signal() == Some(Signal::SIGTERM as i32) => {
            tracing::info!(slot, pid, "the worker was terminated");
        }
        Ok(status) => {
            tracing::warn!(slot, pid, "the worker failed: {}; its output is in {}", ending(status), log.display());
        }
        Err(error) => tracing::warn!(slot, pid, %error, "the worker's end could not be observed"),
    }
}

/// `exit code 3`, `killed by SIGKILL`.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(Ok(signal))) => format!("killed by {signal}"),
        _ => status.to_string(),
    }
}

/// The slot this process is a worker in. Keep it to the end: the slot is free when it is dropped.
#[derive(Debug)]
pub struct HeldSlot {
    name: String,
    note: PathBuf,
    _file: File,
}

impl HeldSlot {
    /// `<definition>/<n>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where this worker notes what it has in flight. The supervisor looks there when the worker is dead.
    pub fn note(&self) -> &Path {
        &self.note
    }

    /// Says why workers of this definition can do nothing until somebody mends it. The supervisor then starts none for a
    /// while, and tells the reason.
    pub fn refuse(&self, why: &str) {
        let Some(dir) = self.note.parent() else { return };
        if let Err(error) = refusal::write(dir, why) {
            tracing::warn!(slot = self.name, %error, "the supervisor could not be told, and goes on starting workers");
        }
    }
}

/// In a worker: takes over the slot that the supervisor started it in, so that the programs it starts in turn do not
/// inherit the lock and occupy the slot when the worker is dead. `None` when no supervisor started this process.
///
/// The environment may be stale, or say nonsense: it is inherited by everything a worker starts. Nothing is touched
/// unless the descriptor that it names is this very slot's file, and was inherited. The environment is left as it is;
/// what starts further programs should remove [`SLOT_VARIABLE`] and [`SLOT_FD_VARIABLE`] from theirs.
pub fn adopt_slot(state_dir: &Path) -> Option<HeldSlot> {
    let name = std::env::var(SLOT_VARIABLE).ok()?;
    let descriptor = std::env::var(SLOT_FD_VARIABLE).ok()?;
    let held = adopt(state_dir, &name, descriptor.parse().ok()?);
    if held.is_none() {
        tracing::debug!(slot = name, descriptor, "the environment names a slot that this process does not hold");
    }
    held
}

fn adopt(state_dir: &Path, name: &str, descriptor: RawFd) -> Option<HeldSlot> {
    let (definition, slot) = name.rsplit_once('/')?;
    let (slots, slot) = (Slots::new(state_dir), slot.parse().ok()?);
    let slot_file = slots.path(definition, slot).metadata().ok()?;
    // Looked at by its name in /dev/fd, which works for numbers that are no open descriptor as well.
    let open_file = Path::new("/dev/fd").join(descriptor.to_string()).metadata().ok()?;
    if (open_file.dev(), open_file.ino()) != (slot_file.dev(), slot_file.ino()) {
        return None;
    }
    // SAFETY: the descriptor was open a moment ago, and is only looked at; were it closed meanwhile, the look would be an
    // error (EBADF).
    let look = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let flags = FdFlag::from_bits_retain(fcntl(look, FcntlArg::F_GETFD).ok()?);
    if flags.contains(FdFlag::FD_CLOEXEC) {
        return None;
    }
    // SAFETY: the descriptor is open, and nothing in this process owns it. All that this process opens is closed on exec
    // (`std` and tokio see to that), and this descriptor is not: it is the one that was inherited. Once it is owned here
    // it is closed on exec too, so that it is taken only once.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    if let Err(error) = fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        tracing::warn!(slot = name, %error, "programs started by this worker may occupy its slot after its death");
    }
    let process = ProcessId::of(std::process::id())?;
    let mark = std::env::var(WORKER_VARIABLE).unwrap_or_default();
    let note = recovery::note_path(&slots, definition, slot, process, &mark);
    Some(HeldSlot { name: name.to_owned(), note, _file: owned.into() })
}

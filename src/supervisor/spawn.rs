//! Starts a worker in a slot, and lets a worker know its slot. The one file with `unsafe` in it.
#![allow(
    unsafe_code,
    reason = "running code between fork and exec, and adopting an inherited descriptor, have no safe form"
)]

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use chrono::{SecondsFormat, Utc};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::setsid;
use tokio::process::{Child, Command};

use super::slot::{Claim, Record, process_start};

/// Tells a worker its slot's file.
pub const SLOT_VARIABLE: &str = "MINUTELY_SLOT";

/// Tells a worker under which number it has inherited that file.
pub const SLOT_FD_VARIABLE: &str = "MINUTELY_SLOT_FD";

/// A log of workers' output is set aside when it is larger than this.
const LOG_MOST: u64 = 10 << 20;

/// Descriptors above this one are not looked for; what starts this program opens low numbers.
const INHERITED_MOST: RawFd = 1024;

/// Keeps what this process has inherited, and does not know of, from the programs it starts. A host that guards its
/// crontab lines with `flock` hands its lock down like that: workers would hold it long after the supervisor's end, and
/// the next cron would not come.
///
/// To be called when the process starts.
pub fn keep_inherited_from_children() {
    for fd in 3..INHERITED_MOST {
        // SAFETY: only a flag is set, and the borrow ends with the call. A number that is no open descriptor gives an error.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// What to start.
pub(super) struct Program<'a> {
    /// The definition it is for.
    pub(super) definition: &'a str,
    /// The program and its arguments.
    pub(super) command: Vec<OsString>,
    /// Where it runs.
    pub(super) dir: &'a Path,
    /// Where its output goes.
    pub(super) log_dir: PathBuf,
}

/// Starts a worker that holds the claimed slot for as long as it lives, in a session of its own: signals for the
/// supervisor's terminal or process group do not reach it.
pub(super) fn spawn(program: &Program<'_>, claim: &Claim) -> io::Result<Child> {
    let Some((name, arguments)) = program.command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    claim.clear()?;
    let log = log(program)?;
    let fd = claim.file().as_raw_fd();
    let mut command = Command::new(name);
    command
        .args(arguments)
        .current_dir(program.dir)
        .env(SLOT_VARIABLE, claim.path())
        .env(SLOT_FD_VARIABLE, fd.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes two plain system calls
    // and allocates nothing, its errors included. `fd` is open in the child: `claim` is borrowed until after the spawn.
    unsafe { command.pre_exec(move || detach(fd)) };
    let child = command.spawn()?;
    if let Some(pid) = child.id() {
        note(program, claim, pid);
    }
    Ok(child)
}

/// Runs in the child. Every descriptor of the supervisor is close-on-exec; this one alone is to be inherited, and by this
/// child alone.
fn detach(fd: RawFd) -> io::Result<()> {
    setsid()?;
    // SAFETY: the descriptor is open (see above), and the borrow ends with this line.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Notes the worker in its slot. When that fails the worker runs all the same, and its lock says so.
fn note(program: &Program<'_>, claim: &Claim, pid: u32) {
    let Some(process_started) = process_start(pid) else { return };
    let record = Record {
        pid,
        process_started,
        started_at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
        command: program.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
    };
    if let Err(error) = claim.note(&record) {
        tracing::warn!(
            definition = program.definition, pid, slot = %claim.path().display(), %error,
            "the worker runs, but its slot could not be written: `status` cannot tell its pid"
        );
    }
}

/// The file that takes what a definition's workers print.
fn log(program: &Program<'_>) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(&program.log_dir)?;
    let path = log_path(program);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_MOST) {
        std::fs::rename(&path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Where a definition's workers print to.
pub(super) fn log_path(program: &Program<'_>) -> PathBuf {
    program.log_dir.join(format!("worker-{}.log", program.definition))
}

/// A worker's hold on its slot.
#[derive(Debug)]
pub struct SlotHold {
    _file: OwnedFd,
}

/// Takes over the slot that a supervisor has handed to this process, so that programs started by this one do not inherit
/// it: they would keep the slot taken after this worker's death. None where there is no such slot.
///
/// To be called once, when the process starts.
pub fn adopt_slot() -> Option<SlotHold> {
    let path = PathBuf::from(std::env::var_os(SLOT_VARIABLE)?);
    let fd: RawFd = std::env::var(SLOT_FD_VARIABLE).ok()?.parse().ok().filter(|fd| *fd > 2)?;
    // The variables may have come from afar (a worker's shell, say), and the number may mean another file here.
    let inherited = std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?;
    let slot = std::fs::metadata(path).ok()?;
    if (inherited.dev(), inherited.ino()) != (slot.dev(), slot.ino()) {
        return None;
    }
    // SAFETY: the descriptor is open, for it has just been looked at. It is nobody else's: this process has not opened the
    // slot's file itself, so it was inherited, and this function is called once.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(SlotHold { _file: file })
}

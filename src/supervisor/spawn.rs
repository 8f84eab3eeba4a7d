//! Starts a worker's process in its slot; and in a worker of minutely, takes over that slot.
//!
//! A worker's process has
//!
//! - a session of its own, so that it outlives the supervisor, and no signal of a terminal or a process group reaches
//!   it,
//! - the configuration's folder as its working directory,
//! - the supervisor's environment with [`SLOT_VARIABLE`], [`SLOT_FD_VARIABLE`] and [`WORKER_VARIABLE`],
//! - an empty standard input, and its definition's log as standard output and error,
//! - no other open file but its slot's.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::process::ProcessId;
use super::recovery::{self, WORKER_VARIABLE};
use super::refusal;
use super::slots::{SlotClaim, Slots};
use crate::state_files::{self, Mode, StateError};
use crate::{descriptors, threads};

/// Names the worker's slot in its environment: `<definition>/<n>`.
pub(crate) const SLOT_VARIABLE: &str = "MINUTELY_SLOT";
/// Tells `cgi`, executed again, which request was admitted: method, path, and how long the body is. Nothing inherits it. A client
/// cannot set it: what comes from a request begins with `HTTP_`.
pub(crate) const REQUEST_VARIABLE: &str = "MINUTELY_CGI_REQUEST";
/// Names the file descriptor that holds the slot's lock, in the worker's environment.
pub(crate) const SLOT_FD_VARIABLE: &str = "MINUTELY_SLOT_FD";

/// The role of a process that runs a job.
pub(super) const JOB: &str = "job";

/// A log longer than this (in bytes) is renamed to `….log.1` when the next worker starts.
const LOG_ROTATED_AT: u64 = 10 << 20;

/// Hides the descriptors that this process has inherited from the programs that it starts, except a worker's slot,
/// which [`adopt_slot`] takes over. A host that guards its crontab lines with `flock` hands its lock down in such a
/// descriptor: workers would hold that lock long after the supervisor's end, and the next cron would be refused.
///
/// To be called when the process starts, before it opens files.
pub(crate) fn keep_inherited_from_children() {
    let slot = std::env::var(SLOT_FD_VARIABLE).ok().and_then(|descriptor| descriptor.parse().ok());
    descriptors::keep_from_children(slot);
}

/// A worker's process, just started.
pub(super) struct Spawned {
    /// Its pid.
    pub pid: u32,
    /// Why the process could not be recorded. It runs and holds its slot all the same.
    pub unrecorded: Option<StateError>,
    /// Waits for its end.
    pub ended: JoinHandle<Option<ExitStatus>>,
}

/// A worker could not be started.
#[derive(Debug, Error)]
pub(crate) enum SpawnError {
    /// Its log could not be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// The program does not exist or may not be run, or the system is out of processes or descriptors.
    #[error("the program \"{program}\" could not be started in {}: {source}{}", dir.display(), threads::advice(source))]
    Program {
        /// The program, as configured.
        program: String,
        /// Its working directory.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The configuration has `command: []`.
    #[error("the command is empty")]
    Empty,
}

impl SpawnError {
    /// Whether the system refused a further process, or what a process needs.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Program { source, .. } if threads::is_refusal(source))
    }
}

/// The log to which the workers of a definition write their output.
pub(super) fn worker_log(state_dir: &Path, definition: &str) -> PathBuf {
    state_dir.join("log").join(format!("worker-{definition}.log"))
}

/// Starts a program in a slot, and a task that logs how it ends, as that of the `worker` or whatever its role is. Must be
/// called within a tokio runtime.
///
/// If the supervisor is killed before this returns, the program runs in its slot or does not run; at worst its pid is
/// not recorded.
pub(super) fn spawn(
    claim: SlotClaim,
    command: &[OsString],
    dir: &Path,
    log: &Path,
    role: &'static str,
) -> Result<Spawned, SpawnError> {
    let (program, arguments) = command.split_first().ok_or(SpawnError::Empty)?;
    let output = open_log(log)?;
    let error_output = output.try_clone().map_err(StateError::io(log, "opened"))?;
    let mut prepared = Command::new(program);
    prepared
        .args(arguments)
        .current_dir(dir)
        .env(SLOT_VARIABLE, claim.name())
        .env(SLOT_FD_VARIABLE, claim.file().as_raw_fd().to_string())
        .env(WORKER_VARIABLE, random_mark())
        .env_remove(REQUEST_VARIABLE)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(error_output);
    descriptors::detach_with(&mut prepared, Arc::clone(claim.file()));
    let program_error =
        |source| SpawnError::Program { program: program.display().to_string(), dir: dir.to_owned(), source };
    let child = prepared.spawn().map_err(program_error)?;

    // Until the task below waits for the process, it keeps its pid, and its start time can be read even if it is dead.
    let pid = child.id().unwrap_or_default();
    let unrecorded = record(&claim, pid, command).err();
    let ended = tokio::spawn(watch(child, role, claim.name(), pid, log.to_owned()));
    // The claim is dropped here, and with `prepared` its last copy: from now on only the child holds the slot.
    Ok(Spawned { pid, unrecorded, ended })
}

fn random_mark() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn record(claim: &SlotClaim, pid: u32, command: &[OsString]) -> Result<(), StateError> {
    // Without /proc, the recorded start time fits no process, so that only the lock counts.
    let process = ProcessId::of(pid).unwrap_or(ProcessId { pid, started_at: 0 });
    claim.record(process, command.iter().map(|argument| argument.to_string_lossy().into_owned()).collect())
}

/// Opens the log, after renaming one that is too long. Workers that have that one open go on writing to it.
fn open_log(path: &Path) -> Result<File, StateError> {
    if let Some(dir) = path.parent() {
        state_files::create_dir(dir)?;
    }
    if path.symlink_metadata().is_ok_and(|log| log.is_file() && log.len() > LOG_ROTATED_AT) {
        let aside = path.with_added_extension("1");
        if let Err(error) = std::fs::rename(path, &aside) {
            tracing::warn!(log = %path.display(), %error, "the log could not be rotated, and grows");
        }
    }
    state_files::open(path, Mode::Append)
}

/// Waits for the process, so that it does not stay a zombie, and logs how it ended.
async fn watch(mut child: Child, role: &'static str, slot: String, pid: u32, log: PathBuf) -> Option<ExitStatus> {
    let ended = child.wait().await;
    match &ended {
        Ok(status) if status.success() => tracing::debug!(slot, pid, "the {role} is finished"),
        // It was asked to stop, and does not handle that signal.
        Ok(status) if status.signal() == Some(Signal::SIGTERM as i32) => {
            tracing::info!(slot, pid, "the {role} was terminated");
        }
        // Its run is reported.
        Ok(status) if role == JOB => {
            tracing::info!(slot, pid, "the {role} failed: {}; its output is in {}", ending(*status), log.display());
        }
        Ok(status) => {
            tracing::warn!(slot, pid, "the {role} failed: {}; its output is in {}", ending(*status), log.display());
        }
        Err(error) => tracing::warn!(slot, pid, %error, "the {role}'s end could not be observed"),
    }
    ended.ok()
}

/// `exit code 3`, `killed by SIGKILL`.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(Ok(signal))) => format!("killed by {signal}"),
        _ => status.to_string(),
    }
}

/// The slot that this process, a worker, runs in. Keep it until the end: dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct HeldSlot {
    name: String,
    mark: String,
    in_flight_path: PathBuf,
    file: Arc<File>,
    /// Does this process hold it for something that ends before the process does?
    is_for_a_run: bool,
}

impl HeldSlot {
    /// Takes a slot for this very process, which runs a job by hand.
    pub(super) fn take(slots: &Slots, claim: SlotClaim, command: &[OsString]) -> Result<Self, StateError> {
        let pid = std::process::id();
        record(&claim, pid, command)?;
        let process = ProcessId::of(pid).unwrap_or(ProcessId { pid, started_at: 0 });
        let name = claim.name();
        let definition = name.rsplit_once('/').map_or(name.as_str(), |(definition, _)| definition);
        let mark = random_mark();
        let in_flight_path = recovery::in_flight_path(slots, definition, claim.slot(), process, &mark);
        Ok(Self { mark, in_flight_path, file: Arc::clone(claim.file()), name, is_for_a_run: true })
    }

    /// Frees the slot, although this process goes on for a moment.
    pub(crate) fn free(mut self) {
        self.is_for_a_run = true;
    }

    /// The value of [`WORKER_VARIABLE`] for what this process starts.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// `<definition>/<n>`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file in which this worker records its messages in flight. The supervisor reads it after the worker's death.
    pub(crate) fn in_flight_path(&self) -> &Path {
        &self.in_flight_path
    }

    /// Reports why workers of this definition can do nothing until somebody fixes it. The supervisor then starts none
    /// for some minutes, and logs the reason.
    pub(crate) fn refuse(&self, why: &str) {
        let Some(dir) = self.in_flight_path.parent() else { return };
        if let Err(error) = refusal::write(dir, why) {
            tracing::warn!(slot = self.name, %error, "the supervisor could not be notified, and goes on starting workers");
        }
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        if !self.is_for_a_run {
            return;
        }
        // The record would say that the slot is occupied as long as this process lives.
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(slot = self.name, %error, "the slot is free when this process ends");
        }
    }
}

/// In a worker: takes over the slot that the supervisor started it in, so that the programs which the worker starts do
/// not inherit the lock, and do not occupy the slot after its death. `None` if no supervisor started this process.
///
/// The environment may be stale or wrong, because everything that a worker starts inherits it. So the descriptor that
/// it names is left alone unless it is this very slot's file, and was inherited. The environment is not changed; code
/// that starts further programs should remove [`SLOT_VARIABLE`] and [`SLOT_FD_VARIABLE`] from theirs.
pub(crate) fn adopt_slot(state_dir: &Path) -> Option<HeldSlot> {
    adopt_among(&Slots::new(state_dir))
}

/// The same, among these slots.
pub(super) fn adopt_among(slots: &Slots) -> Option<HeldSlot> {
    let name = std::env::var(SLOT_VARIABLE).ok()?;
    let descriptor = std::env::var(SLOT_FD_VARIABLE).ok()?;
    let held = adopt(slots, &name, descriptor.parse().ok()?);
    if held.is_none() {
        tracing::debug!(slot = name, descriptor, "the environment names a slot that this process does not hold");
    }
    held
}

fn adopt(slots: &Slots, name: &str, descriptor: RawFd) -> Option<HeldSlot> {
    let (definition, slot) = name.rsplit_once('/')?;
    let slot = slot.parse().ok()?;
    let slot_file = slots.path(definition, slot).metadata().ok()?;
    let (file, hidden) = descriptors::take_inherited(descriptor, &slot_file)?;
    if let Err(error) = hidden {
        tracing::warn!(slot = name, %error, "programs started by this worker may occupy its slot after its death");
    }
    let process = ProcessId::of(std::process::id())?;
    let mark = std::env::var(WORKER_VARIABLE).unwrap_or_default();
    let in_flight_path = recovery::in_flight_path(slots, definition, slot, process, &mark);
    Some(HeldSlot { name: name.to_owned(), mark, in_flight_path, file: Arc::new(file), is_for_a_run: false })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use nix::unistd::Pid;

    use super::super::Lifetime;
    use super::super::fixture::{Stage, eventually, kill_dead, soon, tick};
    use super::*;

    #[tokio::test]
    async fn a_worker_has_its_own_slot_open_and_no_other() {
        let stage = Stage::new().sleepers("mail", &[], 4, 4);
        let supervisor = stage.supervisor();
        let _lock = supervisor.lock(Lifetime::UntilStopped).await.unwrap().unwrap();
        tick(&supervisor).await;
        eventually("all sleep", || stage.lines("started").len() == 4);
        let state_dir = stage.state_dir();
        for slot in stage.live() {
            let open = fs::read_dir(format!("/proc/{}/fd", slot.record.unwrap().process.pid)).unwrap();
            let open: Vec<PathBuf> = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
            let ours: BTreeSet<&Path> = open.iter().filter_map(|file| file.strip_prefix(&state_dir).ok()).collect();
            let own = format!("slots/mail/{}", slot.slot);
            assert_eq!(ours, [Path::new("log/worker-mail.log"), Path::new(&own)].into());
        }
    }

    #[tokio::test]
    async fn a_worker_gets_its_environment() {
        let script = r#"echo "$PWD $MINUTELY_SLOT"; readlink /proc/self/fd/$MINUTELY_SLOT_FD >&2; cat; echo done"#;
        let stage = Stage::new().workers("mail", &[], 1, 1, script);
        tick(&stage.supervisor()).await;
        let log = "var/log/worker-mail.log";
        eventually("it is done", || stage.lines(log).contains(&"done".to_owned()));
        let (dir, slot) = (stage.dir.display(), stage.state_dir().join("slots/mail/0"));
        assert_eq!(stage.lines(log), [format!("{dir} mail/0"), slot.display().to_string(), "done".into()]);
    }

    #[tokio::test]
    async fn a_worker_leads_a_session_of_its_own() {
        let stage = Stage::new().sleepers("mail", &[], 1, 1);
        tick(&stage.supervisor()).await;
        let pid = stage.pids()[0] as i32;
        assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))), Ok(Pid::from_raw(pid)));
    }

    #[tokio::test]
    async fn a_log_that_is_too_long_is_rotated() {
        let stage = Stage::new().workers("mail", &[], 1, 1, "echo new");
        let log = worker_log(&stage.state_dir(), "mail");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        // Sparse: it takes no room.
        fs::File::create(&log).unwrap().set_len((10 << 20) + 1).unwrap();
        tick(&stage.supervisor()).await;
        eventually("the new log is written", || stage.lines("var/log/worker-mail.log") == ["new"]);
        assert_eq!(fs::metadata(log.with_added_extension("1")).unwrap().len(), (10 << 20) + 1);
    }

    #[tokio::test]
    async fn processes_started_by_our_worker_do_not_hold_its_slot() {
        let script = "exec env MINUTELY_TEST_HELPER=work MINUTELY_TEST_STAGE=\"$PWD\" \"$0\" --exact \
                      supervisor::fixture::helper_process --nocapture";
        let mut stage = Stage::new().workers("mail", &[], 1, 1, script);
        let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        stage.definitions[0].command.as_mut().unwrap().push(program);
        tick(&stage.supervisor()).await;
        let line = soon("the worker has started something", || stage.lines("grandchild").pop());
        let (grandchild, slot) = line.split_once(' ').unwrap();
        assert_eq!(slot, "mail/0");
        let grandchild = ProcessId::of(grandchild.parse().unwrap()).unwrap();
        kill_dead(stage.pids()[0]);
        eventually("the slot is free", || stage.live().is_empty());
        assert!(grandchild.is_alive());
        grandchild.terminate().unwrap();
    }

    #[test]
    fn a_process_that_no_supervisor_started_adopts_nothing() {
        let stage = Stage::new();
        assert!(adopt_slot(&stage.state_dir()).is_none());
    }
}

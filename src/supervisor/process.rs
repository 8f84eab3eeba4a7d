//! Identifies processes by pid and start time, because a pid may be reused.

use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// How far two readings of one process's start time may differ, in seconds. The kernel counts ticks since boot, and the
/// time of boot is derived from a clock that is being adjusted.
const START_TOLERANCE: u64 = 2;

/// A process, by its pid and its start time: a later process with the same pid is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// The process id.
    pub pid: u32,
    /// When the process started, in seconds since 1970.
    #[serde(rename = "process_started_at")]
    pub started_at: u64,
}

/// What a process that makes no progress is doing, as far as it can be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StuckState {
    /// The process is not visible: it runs elsewhere or is gone, or its pid belongs to another process now.
    NotVisible,
    /// Uninterruptible sleep (`D`), in most cases waiting for a disk or a network file system.
    UninterruptibleSleep,
    /// Stopped, sleeping or running: SIGKILL ends it.
    Killable,
}

impl ProcessId {
    /// The process with this pid. `None` if there is none, or it cannot be seen from here. A dead process counts until
    /// it is reaped.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        look(pid).map(|(started_at, _)| Self { pid, started_at })
    }

    /// Is the process running? A dead process that was not reaped is not: otherwise it would keep its slot for ever in
    /// a container whose first process reaps nothing.
    pub(crate) fn is_alive(&self) -> bool {
        self.status().is_some_and(runs)
    }

    /// What the process, which makes no progress, is doing.
    pub(super) fn stuck_state(&self) -> StuckState {
        match self.status() {
            Some(ProcessStatus::UninterruptibleDiskSleep) => StuckState::UninterruptibleSleep,
            Some(status) if runs(status) => StuckState::Killable,
            _ => StuckState::NotVisible,
        }
    }

    /// Whether the pid belongs to this process (`Some(true)`), to another one (`Some(false)`), or to none (`None`). A
    /// dead process keeps its pid until it is reaped.
    pub(super) fn has_pid(&self) -> Option<bool> {
        look(self.pid).map(|(started_at, _)| self.started_at_about(started_at))
    }

    /// Asks the process to finish (SIGTERM). Checks immediately before that it is still the same process, and does
    /// nothing if it is gone.
    pub(crate) fn terminate(&self) -> Result<(), nix::Error> {
        self.signal(Signal::SIGTERM)
    }

    /// Kills the process (SIGKILL), with the same check.
    pub(crate) fn kill(&self) -> Result<(), nix::Error> {
        self.signal(Signal::SIGKILL)
    }

    fn signal(&self, signal: Signal) -> Result<(), nix::Error> {
        // 0 would address this process's own group, and a number out of range another one's.
        let Some(pid) = i32::try_from(self.pid).ok().filter(|pid| *pid > 0) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        match kill(nix::unistd::Pid::from_raw(pid), signal) {
            Err(nix::Error::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// This process's status; `None` if its pid belongs to no process or to another one.
    fn status(&self) -> Option<ProcessStatus> {
        look(self.pid).filter(|(started_at, _)| self.started_at_about(*started_at)).map(|(_, status)| status)
    }

    fn started_at_about(&self, time: u64) -> bool {
        time.abs_diff(self.started_at) <= START_TOLERANCE
    }
}

/// Whether a process with this status is running.
pub(super) fn runs(status: ProcessStatus) -> bool {
    !matches!(status, ProcessStatus::Zombie | ProcessStatus::Dead)
}

/// The start time and the status of a process. Reads one small file of `/proc`.
fn look(pid: u32) -> Option<(u64, ProcessStatus)> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new().ok()?;
    let only_what_is_always_read = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, only_what_is_always_read);
    let process = system.process(pid)?;
    Some((process.start_time(), process.status()))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::super::fixture::eventually;
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn a_process_is_alive_until_it_dies_even_before_it_is_reaped() {
        let mut child = sleeper();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        eventually("a zombie is not alive", || !process.is_alive());
        assert_eq!(process.has_pid(), Some(true), "it is there, and dead");
        child.wait().unwrap();
        assert_eq!(ProcessId::of(child.id()), None);
    }

    #[test]
    fn another_start_time_is_another_process_and_is_not_signalled() {
        let mut child = sleeper();
        let process = ProcessId::of(child.id()).unwrap();
        let earlier = ProcessId { started_at: process.started_at - 60, ..process };
        assert!(!earlier.is_alive());
        assert_eq!(earlier.stuck_state(), StuckState::NotVisible);
        earlier.terminate().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        process.terminate().unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_stopped_process_can_be_killed() {
        let mut child = sleeper();
        let process = ProcessId::of(child.id()).unwrap();
        kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGSTOP).unwrap();
        assert_eq!(process.stuck_state(), StuckState::Killable);
        process.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_number_that_is_not_a_pid_is_not_signalled() {
        for pid in [0, u32::MAX] {
            ProcessId { pid, started_at: 0 }.terminate().unwrap();
        }
    }
}

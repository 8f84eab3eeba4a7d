//! Whether a recorded process is still that process: its number and its start time together tell.

use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// How far two readings of one process's start may be apart, in seconds. The system knows it as ticks since boot, and
/// the boot's own time is derived from a clock that is being adjusted.
const START_TOLERANCE: u64 = 2;

/// A process that a later process of the same number is not mistaken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in seconds since 1970, by the clock of this boot.
    #[serde(rename = "process_started_at")]
    pub started_at: u64,
}

impl ProcessId {
    /// The process that has this number now. One that is dead and only waits to be reaped counts as well; `None` when
    /// there is no such process, or it cannot be seen from here.
    pub fn of(pid: u32) -> Option<Self> {
        look(pid).map(|(started_at, _)| Self { pid, started_at })
    }

    /// Is it still running? A dead process that nobody reaped is not: in a container whose first process reaps nothing
    /// it would otherwise keep its slot for ever.
    pub fn is_alive(&self) -> bool {
        look(self.pid)
            .is_some_and(|(started_at, status)| runs(status) && started_at.abs_diff(self.started_at) <= START_TOLERANCE)
    }

    /// What can be done about it when it does nothing any more?
    pub(super) fn suspect(&self) -> Suspect {
        match look(self.pid) {
            Some((started_at, status)) if runs(status) && started_at.abs_diff(self.started_at) <= START_TOLERANCE => {
                match status {
                    ProcessStatus::UninterruptibleDiskSleep => Suspect::WaitsForDisk,
                    _ => Suspect::Killable,
                }
            }
            _ => Suspect::Unknown,
        }
    }

    /// Is a process of this number there, and is it this one? It may be dead, and wait to be reaped.
    pub(super) fn is_there(&self) -> Option<bool> {
        Self::of(self.pid).map(|there| there.started_at.abs_diff(self.started_at) <= START_TOLERANCE)
    }

    /// Asks it to finish (SIGTERM). Looks right before that it is still the same process, and does nothing when it is
    /// gone.
    pub fn terminate(&self) -> Result<(), nix::Error> {
        self.signal(Signal::SIGTERM)
    }

    /// Kills it, with the same care.
    pub fn kill(&self) -> Result<(), nix::Error> {
        self.signal(Signal::SIGKILL)
    }

    fn signal(&self, signal: Signal) -> Result<(), nix::Error> {
        // Number 0 would address this process's own group, and a number out of range another one's.
        let Some(pid) = i32::try_from(self.pid).ok().filter(|pid| *pid > 0) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        match kill(nix::unistd::Pid::from_raw(pid), signal) {
            Err(nix::Error::ESRCH) => Ok(()),
            result => result,
        }
    }
}

/// How often a session that is killed is looked at for what it has started meanwhile.
const KILL_PASSES: usize = 10;

/// A process that does nothing any more, as far as it can be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspect {
    /// It is not there, or another one has its number.
    Unknown,
    /// In a call of the system that no signal ends.
    WaitsForDisk,
    /// Stopped, asleep or at work.
    Killable,
}

/// The processes of a session that run. A worker leads one, so these are, once it is dead, what it has left behind. A
/// number is not given to another process while it is a session's.
pub(super) fn session(leader: u32) -> Vec<ProcessId> {
    let Ok(mut system) = System::new() else { return Vec::new() };
    system.refresh_processes_specifics(ProcessesToUpdate::All, false, ProcessRefreshKind::nothing().without_tasks());
    let members = system.processes().values().filter(|process| process.session_id() == Some(Pid::from_u32(leader)));
    let members = members.filter(|process| runs(process.status()));
    members.map(|process| ProcessId { pid: process.pid().as_u32(), started_at: process.start_time() }).collect()
}

/// Kills all that runs in a session, also what is started meanwhile. One that cannot be killed does not save the others;
/// the first error is returned.
pub(super) fn kill_session(leader: u32) -> Result<(), nix::Error> {
    kill_all(|| session(leader), ProcessId::kill)
}

fn kill_all(
    members: impl Fn() -> Vec<ProcessId>,
    kill: impl Fn(&ProcessId) -> Result<(), nix::Error>,
) -> Result<(), nix::Error> {
    let (mut killed, mut result) = (Vec::new(), Ok(()));
    for _ in 0..KILL_PASSES {
        let mut left = members();
        left.retain(|member| !killed.contains(member));
        if left.is_empty() {
            break;
        }
        for member in left {
            result = result.and(kill(&member));
            killed.push(member);
        }
    }
    result
}

fn runs(status: ProcessStatus) -> bool {
    !matches!(status, ProcessStatus::Zombie | ProcessStatus::Dead)
}

/// Its start and what it does. Reads one small file of `/proc`.
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
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.is_alive() {
            assert!(std::time::Instant::now() < deadline, "a zombie counts as alive");
            std::thread::yield_now();
        }
        assert!(ProcessId::of(child.id()).is_some(), "it is there, and dead");
        child.wait().unwrap();
        assert_eq!(ProcessId::of(child.id()), None);
    }

    #[test]
    fn another_start_time_is_another_process_and_is_not_signalled() {
        let mut child = sleeper();
        let process = ProcessId::of(child.id()).unwrap();
        let earlier = ProcessId { started_at: process.started_at - 60, ..process };
        assert!(!earlier.is_alive());
        earlier.terminate().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        process.terminate().unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn one_that_cannot_be_killed_saves_no_others() {
        let process = |pid| ProcessId { pid, started_at: 1 };
        let killed = std::cell::RefCell::new(Vec::new());
        // Number 4 is started while the others are being killed.
        let members = || (1..if killed.borrow().is_empty() { 4 } else { 5 }).map(process).collect();
        let result = kill_all(members, |member| {
            killed.borrow_mut().push(member.pid);
            if member.pid == 1 { Err(nix::Error::EPERM) } else { Ok(()) }
        });
        assert_eq!(result, Err(nix::Error::EPERM));
        assert_eq!(killed.into_inner(), [1, 2, 3, 4]);
    }

    #[test]
    fn numbers_that_are_no_process_are_not_signalled() {
        for pid in [0, u32::MAX] {
            ProcessId { pid, started_at: 0 }.terminate().unwrap();
        }
    }
}

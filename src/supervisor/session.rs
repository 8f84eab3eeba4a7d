//! The processes of a worker's session: the worker, and what its handlers have started.

use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System};

use super::process::{ProcessId, runs};

/// How many times the members of a session are listed while it is being killed: they may start further processes.
const KILL_PASSES: usize = 10;

/// The running processes of a session. A worker leads a session, so once it is dead these are what it has left running.
/// The kernel does not reuse a pid while it is the id of a session.
pub(super) fn members(leader: u32) -> Vec<ProcessId> {
    running(|process| process.session_id() == Some(Pid::from_u32(leader)))
}

/// All running processes.
pub(super) fn all() -> Vec<ProcessId> {
    running(|_| true)
}

fn running(wanted: impl Fn(&Process) -> bool) -> Vec<ProcessId> {
    let Ok(mut system) = System::new() else { return Vec::new() };
    system.refresh_processes_specifics(ProcessesToUpdate::All, false, ProcessRefreshKind::nothing().without_tasks());
    let found = system.processes().values().filter(|process| wanted(process) && runs(process.status()));
    found.map(|process| ProcessId { pid: process.pid().as_u32(), started_at: process.start_time() }).collect()
}

/// Kills all processes of a session, also those that are started meanwhile. Goes on where one cannot be killed, and
/// returns the first error.
pub(super) fn kill(leader: u32) -> Result<(), nix::Error> {
    kill_all(|| members(leader), ProcessId::kill)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_cannot_be_killed_does_not_protect_others() {
        let process = |pid| ProcessId { pid, started_at: 1 };
        let killed = std::cell::RefCell::new(Vec::new());
        // Process 4 is started while the others are being killed.
        let members = || (1..if killed.borrow().is_empty() { 4 } else { 5 }).map(process).collect();
        let result = kill_all(members, |member| {
            killed.borrow_mut().push(member.pid);
            if member.pid == 1 { Err(nix::Error::EPERM) } else { Ok(()) }
        });
        assert_eq!(result, Err(nix::Error::EPERM));
        assert_eq!(killed.into_inner(), [1, 2, 3, 4]);
    }
}

//! Ends what a dead worker has left running: the other processes of its session, which its handlers had started. And what the
//! killed run of a job has left: it may have been started by hand, in the session of a terminal, so its mark counts as well.
//!
//! The worker's pid may belong to another process by now, so its session is identified with care: see
//! [`Leftovers::running`].

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::super::process::ProcessId;
use super::super::session;

/// Marks the environment of a worker, and so of all that it starts, with a random number. By it the supervisor finds
/// what a dead worker has left running.
pub(crate) const WORKER_VARIABLE: &str = "MINUTELY_WORKER";

/// How long processes get to finish after SIGTERM, before they are killed.
const GRACE: Duration = Duration::from_secs(2);
/// How long ending them may take per tick. The next tick tries again to end a process that cannot be killed.
const TIMEOUT: Duration = Duration::from_secs(4);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How far, in seconds, a process's start time and a file's modification time may differ for the same moment.
const CLOCK_TOLERANCE: u64 = 5;

/// A dead worker that has left messages in flight.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct DeadWorker {
    pub process: ProcessId,
    /// The value of `MINUTELY_WORKER` in its environment, and in that of all it has started.
    pub mark: String,
    /// When it last recorded its messages in flight, in seconds since 1970.
    pub recorded_at: u64,
}

/// What a dead process was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum Role {
    Worker,
    /// It has run a job. That it was killed is reported elsewhere.
    Job,
}

/// Ends what a dead process has left running, including what those processes start meanwhile. `true` if all of it is
/// gone.
pub(in crate::supervisor) async fn end(worker: DeadWorker, role: Role) -> bool {
    let (begun, pid) = (Instant::now(), worker.process.pid);
    let mut leftovers = Leftovers { worker, role, is_identified: false };
    let mut asked = BTreeSet::new();
    loop {
        let running = leftovers.running();
        if running.is_empty() {
            return true;
        }
        let waited = begun.elapsed();
        if waited >= TIMEOUT {
            let pids: Vec<u32> = running.iter().map(|process| process.pid).collect();
            match role {
                Role::Worker => tracing::error!(
                    worker = pid,
                    ?pids,
                    "programs that a dead worker had started cannot be ended; what it had in hand is seen to when they are gone"
                ),
                Role::Job => tracing::error!(
                    run = pid,
                    ?pids,
                    "programs that the killed run of a job had started cannot be ended; the job waits until they are gone"
                ),
            }
            return false;
        }
        for process in running {
            if waited >= GRACE {
                let _ = process.kill();
            } else if asked.insert(process.pid) {
                match role {
                    Role::Worker => {
                        tracing::warn!(pid = process.pid, "ending a program that a dead worker had started");
                    }
                    Role::Job => {
                        tracing::info!(pid = process.pid, "ending a program that the killed run of a job had started");
                    }
                }
                let _ = process.terminate();
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The session that a dead worker has led.
struct Leftovers {
    worker: DeadWorker,
    role: Role,
    /// Whether a member was identified as one of the worker's. While one runs, the session is the worker's.
    is_identified: bool,
}

impl Leftovers {
    /// The processes that still run in the worker's session.
    ///
    /// While the session has a member, the kernel gives the worker's pid to no other process. So a process with that
    /// pid is either the worker itself, dead and not reaped, or shows that the worker's session is over.
    ///
    /// If no process has that pid, the session may be that of a later process, itself dead by now, that had the same
    /// pid. One member identifies it as the worker's: it has the worker's mark in its environment, or it was started
    /// between the worker's start and the last change of its record, when the pid was the worker's.
    fn running(&mut self) -> Vec<ProcessId> {
        let process = self.worker.process;
        let mut members = session::members(process.pid);
        members.retain(|member| member.pid != process.pid && member.pid != std::process::id());
        self.is_identified |= match process.has_pid() {
            Some(has_pid) => has_pid,
            None => members.iter().any(|member| self.worker.has_started(member)),
        };
        let mut running = if self.is_identified && process.has_pid() != Some(false) { members } else { Vec::new() };
        if self.role == Role::Job {
            let mut marked = session::all();
            marked.retain(|one| self.worker.has_marked(one.pid) && one.pid != std::process::id());
            marked.retain(|one| !running.contains(one));
            running.extend(marked);
        }
        running
    }
}

impl DeadWorker {
    /// Whether this worker, or a process that it had started, has certainly started this member of its session.
    fn has_started(&self, member: &ProcessId) -> bool {
        let earliest = self.process.started_at.saturating_sub(CLOCK_TOLERANCE);
        let latest = self.recorded_at.saturating_add(CLOCK_TOLERANCE);
        (earliest..=latest).contains(&member.started_at) || self.has_marked(member.pid)
    }

    fn has_marked(&self, pid: u32) -> bool {
        let mark = format!("{WORKER_VARIABLE}={}", self.mark);
        // Where the system shows environments, it shows those of this user's processes.
        let environment = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).unwrap_or_default();
        !self.mark.is_empty() && environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::super::super::fixture::eventually;
    use super::super::super::slots::Slots;
    use super::super::in_flight_files::{self, DeadWorkersFile};
    use super::*;

    /// The leader of a session in which something else runs, both with this mark.
    fn worker(mark: &str) -> Child {
        let script = "sleep 300 & exec sleep 300";
        let mut worker = Command::new("setsid");
        worker.args(["sh", "-c", script]).env(WORKER_VARIABLE, mark).stdin(Stdio::null());
        let worker = worker.spawn().unwrap();
        eventually("it leads a session of two", || session::members(worker.id()).len() == 2);
        worker
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[tokio::test]
    async fn what_a_worker_has_left_running_is_ended_even_if_the_worker_is_not_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(dir.path());
        let mut worker = worker("");
        let process = ProcessId::of(worker.id()).unwrap();
        let path = in_flight_files::path(&slots, "mail", 0, process, "");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(in_flight_files::of_dead_workers(&slots).is_empty(), "it lives");
        worker.kill().unwrap();
        eventually("it is dead, and not reaped", || !process.is_alive());
        assert_eq!(session::members(process.pid).len(), 1);
        let DeadWorkersFile { worker: dead, .. } = in_flight_files::of_dead_workers(&slots).pop().unwrap();
        assert!(end(dead, Role::Worker).await);
        assert_eq!(session::members(process.pid), []);
        worker.wait().unwrap();
    }

    #[tokio::test]
    async fn a_process_started_long_after_the_record_is_found_by_its_mark_and_others_are_left_alone() {
        let mut worker = worker("17ab");
        let process = ProcessId::of(worker.id()).unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
        let process = ProcessId { started_at: process.started_at - 3600, ..process };
        let dead = |mark: &str| DeadWorker { process, mark: mark.to_owned(), recorded_at: now() - 1800 };
        for another in ["17a", "17abc", ""] {
            assert!(end(dead(another), Role::Worker).await);
            assert_eq!(session::members(process.pid).len(), 1, "a later process had the same pid");
        }
        assert!(end(dead("17ab"), Role::Worker).await);
        assert_eq!(session::members(process.pid), []);
    }
}

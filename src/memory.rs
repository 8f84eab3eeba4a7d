//! How much memory a process uses.

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// The resident memory of the process with this id, in bytes, without that of processes that it has started. Reads a small file
/// under `/proc`.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new().ok()?;
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
    system.process(pid).map(sysinfo::Process::memory)
}

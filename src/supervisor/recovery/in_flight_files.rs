//! Finds the files in which dead workers have recorded their messages in flight, beside their slots.

use std::fs::DirEntry;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::leases;
use super::super::process::ProcessId;
use super::super::slots::Slots;
use super::leftovers::DeadWorker;
use crate::worker::{InFlightFile, UNFINISHED};

const EXTENSION: &str = "work";

/// A temporary file this old was left by a process that was killed while writing such a file, or a lease.
const TEMPORARY_FOR: Duration = Duration::from_secs(60);

/// A dead worker and its file.
pub(super) struct DeadWorkersFile {
    pub worker: DeadWorker,
    pub file: InFlightFile,
}

/// Where the worker in a slot records its messages in flight. `mark` is the value of `MINUTELY_WORKER` in its
/// environment.
pub(in crate::supervisor) fn path(
    slots: &Slots,
    definition: &str,
    slot: u32,
    process: ProcessId,
    mark: &str,
) -> PathBuf {
    let ProcessId { pid, started_at } = process;
    slots.path(definition, slot).with_file_name(format!("{slot}.{pid}-{started_at}-{mark}.{EXTENSION}"))
}

/// The files of all dead workers.
pub(super) fn of_dead_workers(slots: &Slots) -> Vec<DeadWorkersFile> {
    let found = of_dead_processes(slots).into_iter();
    found.map(|(worker, _, path)| DeadWorkersFile { worker, file: InFlightFile::new(path) }).collect()
}

/// The files beside slots, named by [`path`], whose processes are dead. Removes abandoned temporary files. Reads a few folders.
pub(in crate::supervisor) fn of_dead_processes(slots: &Slots) -> Vec<(DeadWorker, u32, PathBuf)> {
    slots.definitions().iter().flat_map(|definition| of_dead_processes_in(slots, definition)).collect()
}

/// The same, of one definition. With the slots that the processes had.
pub(in crate::supervisor) fn of_dead_processes_in(slots: &Slots, definition: &str) -> Vec<(DeadWorker, u32, PathBuf)> {
    let files = std::fs::read_dir(slots.dir_of(definition)).into_iter().flatten().flatten();
    let found = files.filter_map(|file| {
        remove_if_abandoned(&file);
        of_dead_process(slots, definition, &file)
    });
    found.collect()
}

fn of_dead_process(slots: &Slots, definition: &str, file: &DirEntry) -> Option<(DeadWorker, u32, PathBuf)> {
    let name = file.file_name();
    let (slot, process, mark) = parse_name(name.to_str()?)?;
    // The lock is checked first: it does not depend on any clock.
    let holder = slots.live_slot(definition, slot).ok()?.and_then(|live| live.record);
    if holder.is_some_and(|record| record.process.pid == process.pid) || process.is_alive() {
        return None;
    }
    let recorded_at = file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let worker = DeadWorker { process, mark: mark.to_owned(), recorded_at };
    Some((worker, slot, file.path()))
}

/// The slot, the worker and its mark from the name of a file.
fn parse_name(name: &str) -> Option<(u32, ProcessId, &str)> {
    let (slot, worker) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.split_once('.')?;
    let (process, mark) = worker.rsplit_once('-')?;
    let (pid, started_at) = process.split_once('-')?;
    let process = ProcessId { pid: pid.parse().ok()?, started_at: started_at.parse().ok()? };
    let is_mark = mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_mark.then_some((slot.parse().ok()?, process, mark))
}

/// Removes a temporary file that was never finished.
fn remove_if_abandoned(file: &DirEntry) {
    let name = file.file_name();
    let prefixes = [UNFINISHED, leases::TEMPORARY_PREFIX];
    let is_temporary = prefixes.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
    let age = || SystemTime::now().duration_since(file.metadata().ok()?.modified().ok()?).ok();
    if is_temporary && age().is_some_and(|age| age > TEMPORARY_FOR) {
        let _ = std::fs::remove_file(file.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_temporary_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(dir.path());
        std::fs::create_dir_all(slots.dir_of("mail")).unwrap();
        let file = |name: &str, age: u64| {
            let path = slots.dir_of("mail").join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            path
        };
        let removed = [file(".note-abc", 300), file(".lease-abc", 300)];
        let kept = [file(".note-def", 1), file(".lease-def", 1), file("0", 300), file("0.lease", 300)];
        assert!(of_dead_workers(&slots).is_empty());
        assert!(removed.iter().all(|path| !path.exists()) && kept.iter().all(|path| path.exists()));
    }

    #[test]
    fn the_name_of_the_file_has_the_slot_and_the_worker() {
        let slots = Slots::new("/state".as_ref());
        let process = ProcessId { pid: 17, started_at: 1_800_000_000 };
        let path = path(&slots, "prio.high+low", 3, process, "00ff");
        assert_eq!(path, PathBuf::from("/state/slots/prio.high+low/3.17-1800000000-00ff.work"));
        assert_eq!(parse_name("3.17-1800000000-00ff.work"), Some((3, process, "00ff")));
        assert_eq!(parse_name("3.17-1800000000-.work"), Some((3, process, "")));
        for name in ["3", "3.work", "3.17.work", "3.x-y-z.work", ".note-abc", "3.17-1-f.work.tmp", "3.17-1-x.work"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}

//! Puts back what dead workers had in flight.
//!
//! A worker notes its messages beside its slot, in a file that carries its process's number and start. When that process
//! is gone and the note is not, nobody is going to finish those messages: they are released, and pending again at once.
//! What other consumers hold is in no note, and never touched; and a message that another consumer has received since the
//! note was written has another receipt.
//!
//! Programs that the worker's handlers had started may have survived it. They are ended first, all of them, and nothing is
//! put back while one of them runs, so that no message is handled by two at once. A number may be another process's by now,
//! so they are looked for with care: see [`Remains::running`].

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use indexmap::IndexMap;
use tokio::time::Instant;

use super::process::{ProcessId, session};
use super::slot::Slots;
use super::spawn::WORKER_VARIABLE;
use super::{Supervisor, cluster};
use crate::transport::{Delivery, TransportError};
use crate::worker::{InFlight, Note, Taken, UNFINISHED};

const EXTENSION: &str = "work";

/// How long programs that a dead worker has left get to finish, before they are killed.
const GRACE: Duration = Duration::from_secs(2);
/// How long all that may take per tick. A process that cannot be killed is looked at again at the next tick.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(50);

/// How far apart, in seconds, a process's start and a file's time may be told for one moment.
const CLOCKS: u64 = 5;

/// How long one transport may take to put messages back, per tick. What is left is put back at a later tick.
const TIMEOUT: Duration = Duration::from_secs(4);

/// A file that was to become a note or a lease, and has not for so long, is of a process that was killed while it wrote it.
const UNFINISHED_FOR: Duration = Duration::from_secs(60);

/// Where the worker in a slot notes what it has in flight. `mark` is what its environment calls it.
pub(super) fn note_path(slots: &Slots, definition: &str, slot: u32, process: ProcessId, mark: &str) -> PathBuf {
    let ProcessId { pid, started_at } = process;
    slots.path(definition, slot).with_file_name(format!("{slot}.{pid}-{started_at}-{mark}.{EXTENSION}"))
}

/// The slot and the worker that a note is of.
fn worker_of(name: &str) -> Option<(u32, ProcessId, &str)> {
    let (slot, worker) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.split_once('.')?;
    let (process, mark) = worker.rsplit_once('-')?;
    let (pid, started_at) = process.split_once('-')?;
    let process = ProcessId { pid: pid.parse().ok()?, started_at: started_at.parse().ok()? };
    let is_mark = mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_mark.then_some((slot.parse().ok()?, process, mark))
}

impl Supervisor {
    /// Puts back what workers had in flight that live no more. What cannot be put back now is tried again at the next
    /// tick. Nobody waits for another: not a worker's messages for those of another worker, nor one transport's for those
    /// of another.
    pub(super) async fn recover(&self) {
        let notes = notes_of_the_dead(&self.ground.slots);
        join_all(notes.into_iter().map(|(dead, note)| self.recover_noted(dead, note))).await;
    }

    async fn recover_noted(&self, dead: Dead, note: Note) {
        let in_flight = note.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "a dead worker's note cannot be read; its messages come again after redeliver_timeout");
            InFlight::default()
        });
        if !in_flight.left_nothing_running && !end_remains(dead).await {
            return;
        }
        let put_back = in_flight.transports.into_iter().map(|(transport, taken)| async move {
            match self.put_back(&transport, &taken).await {
                Ok(messages) => {
                    if messages > 0 {
                        tracing::warn!(transport, messages, "put back what a dead worker had in flight");
                    }
                    None
                }
                Err(error) => {
                    tracing::error!(error, "what a dead worker had in flight cannot be put back now");
                    Some((transport, taken))
                }
            }
        });
        let left: IndexMap<_, _> = join_all(put_back).await.into_iter().flatten().collect();
        // Killed before this is written, the next supervisor puts back the same again: that changes nothing.
        let noted = match left {
            left if left.is_empty() => note.remove(),
            transports => note.write(&InFlight { transports, left_nothing_running: true }),
        };
        if let Err(error) = noted {
            tracing::warn!(%error, "a dead worker's note could not be brought up to date");
        }
    }

    /// Returns how many messages were put back at most.
    async fn put_back(&self, transport: &str, taken: &[Taken]) -> Result<usize, String> {
        // A transport that has left the configuration, or whose broker takes messages back by itself.
        let Ok(transport) = self.transports.get(transport) else { return Ok(0) };
        let Some(releasing) = &transport.releasing else { return Ok(0) };
        let mut deliveries: Vec<Delivery> = taken.iter().flat_map(Taken::deliveries).collect();
        // A broker gives no receipts.
        deliveries.retain(|delivery| delivery.receipts.iter().any(|receipt| !receipt.0.is_empty()));
        if deliveries.is_empty() {
            return Ok(0);
        }
        match tokio::time::timeout(TIMEOUT, releasing.release(&deliveries)).await {
            Ok(released) => released.map(|()| deliveries.len()).map_err(|error: TransportError| error.to_string()),
            Err(_) => Err(format!("transport \"{}\" did not answer within {} s", transport.name(), TIMEOUT.as_secs())),
        }
    }
}

/// Ends what a dead worker has left running, also what that starts meanwhile. Is all of it gone?
async fn end_remains(dead: Dead) -> bool {
    let (begun, pid) = (Instant::now(), dead.process.pid);
    let mut remains = Remains { dead, is_known: false };
    let mut asked = BTreeSet::new();
    loop {
        let running = remains.running();
        if running.is_empty() {
            return true;
        }
        let waited = begun.elapsed();
        if waited >= PATIENCE {
            let pids: Vec<u32> = running.iter().map(|process| process.pid).collect();
            tracing::error!(
                worker = pid,
                ?pids,
                "programs that a dead worker had started cannot be ended; its messages are put back when they are gone"
            );
            return false;
        }
        for process in running {
            if waited >= GRACE {
                let _ = process.kill();
            } else if asked.insert(process.pid) {
                tracing::warn!(pid = process.pid, "ending a program that a dead worker had started");
                let _ = process.terminate();
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a dead worker has left running: the processes of the session that it led.
struct Remains {
    dead: Dead,
    /// Has one of them been known for the worker's? As long as one runs, the session is the worker's.
    is_known: bool,
}

impl Remains {
    /// The processes that are still in the session.
    ///
    /// As long as there is one, the system gives the worker's number to no other process. So when a process has that number,
    /// either it is the worker, which nobody has reaped, or the session is over. When there is none, the session may be that
    /// of a later process of the same number, itself gone by now. One member tells for all: one that the worker's mark is in
    /// the environment of, or that began after the worker and no later than shortly after it last wrote its note, for
    /// then it was the worker that lived under this number.
    fn running(&mut self) -> Vec<ProcessId> {
        let process = self.dead.process;
        let mut members = session(process.pid);
        members.retain(|member| member.pid != process.pid && member.pid != std::process::id());
        self.is_known |= match process.is_there() {
            Some(is_it) => is_it,
            None => members.iter().any(|member| self.dead.started(member)),
        };
        if self.is_known && process.is_there() != Some(false) { members } else { Vec::new() }
    }
}

/// A worker that lives no more, and has left a note.
#[derive(Debug, Clone)]
struct Dead {
    process: ProcessId,
    /// What its environment called it, and that of what it has started.
    mark: String,
    /// When it last wrote its note, in seconds since 1970.
    noted_at: u64,
}

impl Dead {
    /// Was it certainly this worker, or something it had started, that started a member of its session?
    fn started(&self, member: &ProcessId) -> bool {
        let earliest = self.process.started_at.saturating_sub(CLOCKS);
        let latest = self.noted_at.saturating_add(CLOCKS);
        (earliest..=latest).contains(&member.started_at) || self.has_marked(member.pid)
    }

    fn has_marked(&self, pid: u32) -> bool {
        let mark = format!("{WORKER_VARIABLE}={}", self.mark);
        // Only where the system shows environments, and only this user's.
        let environment = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).unwrap_or_default();
        !self.mark.is_empty() && environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    }
}

/// Blocks for as long as reading some folders takes.
fn notes_of_the_dead(slots: &Slots) -> Vec<(Dead, Note)> {
    let notes = slots.definitions().into_iter().flat_map(|definition| {
        let files = std::fs::read_dir(slots.dir_of(&definition)).into_iter().flatten().flatten();
        files
            .filter_map(|file| {
                sweep(&file);
                note_of_the_dead(slots, &definition, &file)
            })
            .collect::<Vec<_>>()
    });
    notes.collect()
}

/// Removes what was to become a note or a lease, and never has.
fn sweep(file: &DirEntry) {
    let name = file.file_name();
    let is_unfinished =
        [UNFINISHED, cluster::UNFINISHED].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
    let age = || SystemTime::now().duration_since(file.metadata().ok()?.modified().ok()?).ok();
    if is_unfinished && age().is_some_and(|age| age > UNFINISHED_FOR) {
        let _ = std::fs::remove_file(file.path());
    }
}

fn note_of_the_dead(slots: &Slots, definition: &str, file: &DirEntry) -> Option<(Dead, Note)> {
    let name = file.file_name();
    let (slot, process, mark) = worker_of(name.to_str()?)?;
    // The lock is asked first: it does not depend on any clock.
    let holder = slots.look(definition, slot).ok()?.and_then(|live| live.record);
    if holder.is_some_and(|record| record.process.pid == process.pid) || process.is_alive() {
        return None;
    }
    let noted_at = file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some((Dead { process, mark: mark.to_owned(), noted_at }, Note::new(file.path())))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::super::tests::eventually;
    use super::*;

    /// The leader of a session in which something else runs, both with this mark.
    fn worker(mark: &str) -> Child {
        let script = "sleep 300 & exec sleep 300";
        let mut worker = Command::new("setsid");
        worker.args(["sh", "-c", script]).env(WORKER_VARIABLE, mark).stdin(Stdio::null());
        let worker = worker.spawn().unwrap();
        eventually("it leads a session of two", || session(worker.id()).len() == 2);
        worker
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[tokio::test]
    async fn what_a_worker_has_left_is_ended_also_where_nobody_reaps_it() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(dir.path());
        let mut worker = worker("");
        let process = ProcessId::of(worker.id()).unwrap();
        let path = note_path(&slots, "mail", 0, process, "");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(notes_of_the_dead(&slots).is_empty(), "it lives");
        worker.kill().unwrap();
        eventually("it is dead, and still there", || !process.is_alive());
        assert_eq!(session(process.pid).len(), 1);
        let (dead, _) = notes_of_the_dead(&slots).pop().unwrap();
        assert!(end_remains(dead).await);
        assert_eq!(session(process.pid), []);
        worker.wait().unwrap();
    }

    #[tokio::test]
    async fn what_was_started_long_after_the_note_is_known_by_its_mark_and_strangers_are_left_alone() {
        let mut worker = worker("17ab");
        let process = ProcessId::of(worker.id()).unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
        let process = ProcessId { started_at: process.started_at - 3600, ..process };
        let dead = |mark: &str| Dead { process, mark: mark.to_owned(), noted_at: now() - 1800 };
        for another in ["17a", "17abc", ""] {
            assert!(end_remains(dead(another)).await);
            assert_eq!(session(process.pid).len(), 1, "a later process had the same number");
        }
        assert!(end_remains(dead("17ab")).await);
        assert_eq!(session(process.pid), []);
    }

    #[test]
    fn what_never_became_a_note_or_a_lease_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(dir.path());
        std::fs::create_dir_all(slots.dir_of("mail")).unwrap();
        let file = |name: &str, age: u64| {
            let path = slots.dir_of("mail").join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            path
        };
        let swept = [file(".note-abc", 300), file(".lease-abc", 300)];
        let kept = [file(".note-def", 1), file(".lease-def", 1), file("0", 300), file("0.lease", 300)];
        assert!(notes_of_the_dead(&slots).is_empty());
        assert!(swept.iter().all(|path| !path.exists()) && kept.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_note_tells_whose_it_is() {
        let slots = Slots::new("/state".as_ref());
        let process = ProcessId { pid: 17, started_at: 1_800_000_000 };
        let path = note_path(&slots, "prio.high+low", 3, process, "00ff");
        assert_eq!(path, PathBuf::from("/state/slots/prio.high+low/3.17-1800000000-00ff.work"));
        assert_eq!(worker_of("3.17-1800000000-00ff.work"), Some((3, process, "00ff")));
        assert_eq!(worker_of("3.17-1800000000-.work"), Some((3, process, "")));
        for name in ["3", "3.work", "3.17.work", "3.x-y-z.work", ".note-abc", "3.17-1-f.work.tmp", "3.17-1-x.work"] {
            assert_eq!(worker_of(name), None, "{name}");
        }
    }
}

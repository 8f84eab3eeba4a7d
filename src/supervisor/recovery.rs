//! Puts back what dead workers had in flight.
//!
//! A worker notes its messages beside its slot, in a file that carries its process's number and start. When that process
//! is gone and the note is not, nobody is going to finish those messages: they are released, and pending again at once.
//! What other consumers hold is in no note, and never touched.
//!
//! Programs that the worker's handlers had started may have survived it. They are ended first, so that no message is
//! handled by two at once. A number may be another process's by now, so they are looked for with care: see [`left_by`].

use std::fs::DirEntry;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use super::process::{ProcessId, session};
use super::slot::Slots;
use super::{Supervisor, blocking};
use crate::transport::{MessageId, TransportError};
use crate::worker::{InFlight, Note, Taken};

const EXTENSION: &str = "work";

/// How long programs that a dead worker has left get to finish, before they are killed.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// How far apart, in seconds, a process's start and a file's time may be told for one moment.
const CLOCKS: u64 = 5;

/// How long putting back may take per tick. What is left has its note, and is put back at a later tick.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the worker in a slot notes what it has in flight.
pub(super) fn note_path(slots: &Slots, definition: &str, slot: u32, process: ProcessId) -> PathBuf {
    let ProcessId { pid, started_at } = process;
    slots.path(definition, slot).with_file_name(format!("{slot}.{pid}-{started_at}.{EXTENSION}"))
}

/// The slot and the process that a note is of.
fn process_of(name: &str) -> Option<(u32, ProcessId)> {
    let (slot, process) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.split_once('.')?;
    let (pid, started_at) = process.split_once('-')?;
    Some((slot.parse().ok()?, ProcessId { pid: pid.parse().ok()?, started_at: started_at.parse().ok()? }))
}

impl Supervisor {
    /// Puts back what workers had in flight that live no more. What cannot be put back now is tried again at the next
    /// tick.
    pub(super) async fn recover(&self) {
        let ground = self.ground.clone();
        let notes = blocking(move || notes_of_the_dead(&ground.slots)).await;
        let all = async {
            for (dead, note) in notes {
                end_session(dead).await;
                self.recover_noted(&note).await;
            }
        };
        if tokio::time::timeout(TIMEOUT, all).await.is_err() {
            tracing::warn!("messages of dead workers could not be put back within {} s", TIMEOUT.as_secs());
        }
    }

    async fn recover_noted(&self, note: &Note) {
        let in_flight = note.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "a dead worker's note cannot be read; its messages come again after redeliver_timeout");
            InFlight::default()
        });
        for (transport, taken) in &in_flight.transports {
            match self.put_back(transport, taken).await {
                Ok(0) => {}
                Ok(messages) => tracing::warn!(transport, messages, "put back what a dead worker had in flight"),
                Err(error) => {
                    tracing::error!(%error, "what a dead worker had in flight cannot be put back now");
                    return;
                }
            }
        }
        if let Err(error) = note.remove() {
            tracing::warn!(%error, "a dead worker's note could not be removed");
        }
    }

    /// Returns how many messages were put back at most.
    async fn put_back(&self, transport: &str, taken: &Taken) -> Result<usize, TransportError> {
        // A transport that has left the configuration, or whose broker takes messages back by itself.
        let Ok(transport) = self.transports.get(transport) else { return Ok(0) };
        let Some(releasing) = transport.releasing() else { return Ok(0) };
        let timeout = transport.keeping_alive().map(|keeping| keeping.redeliver_timeout());
        if timeout.is_some_and(|timeout| taken.age() >= timeout) {
            // They have come again already, and what is in flight under their ids is somebody else's.
            return Ok(0);
        }
        let ids: Vec<MessageId> = taken.ids.iter().cloned().map(MessageId).collect();
        releasing.release(&ids).await?;
        Ok(ids.len())
    }
}

/// Ends what a dead worker has left running.
async fn end_session(dead: Dead) {
    let left = blocking(move || left_by(&dead)).await;
    for process in &left {
        tracing::warn!(pid = process.pid, "ending a program that a dead worker had started");
        let _ = process.terminate();
    }
    let deadline = Instant::now() + GRACE;
    while left.iter().any(ProcessId::is_alive) && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    for process in left {
        let _ = process.kill();
    }
}

/// The processes that are still in the session a dead worker led.
///
/// As long as one is, the system gives the worker's number to no other process; so when there is a process of that number,
/// the session is somebody else's. And what the worker started began after the worker, and no later than shortly after it
/// last wrote its note, for that is what it does before it starts anything.
fn left_by(dead: &Dead) -> Vec<ProcessId> {
    if ProcessId::of(dead.process.pid).is_some() {
        return Vec::new();
    }
    let earliest = dead.process.started_at.saturating_sub(CLOCKS);
    let latest = dead.noted_at.saturating_add(CLOCKS);
    let mut members = session(dead.process.pid);
    members.retain(|member| (earliest..=latest).contains(&member.started_at) && member.pid != std::process::id());
    members
}

/// A worker that lives no more, and has left a note.
#[derive(Debug, Clone, Copy)]
struct Dead {
    process: ProcessId,
    /// When it last wrote its note, in seconds since 1970.
    noted_at: u64,
}

/// Blocks for as long as reading some folders takes.
fn notes_of_the_dead(slots: &Slots) -> Vec<(Dead, Note)> {
    let notes = slots.definitions().into_iter().flat_map(|definition| {
        let files = std::fs::read_dir(slots.dir_of(&definition)).into_iter().flatten().flatten();
        files.filter_map(|file| note_of_the_dead(slots, &definition, &file)).collect::<Vec<_>>()
    });
    notes.collect()
}

fn note_of_the_dead(slots: &Slots, definition: &str, file: &DirEntry) -> Option<(Dead, Note)> {
    let (slot, process) = process_of(file.file_name().to_str()?)?;
    // The lock is asked first: it does not depend on any clock.
    let holder = slots.look(definition, slot).ok()?.and_then(|live| live.record);
    if holder.is_some_and(|record| record.process.pid == process.pid) || process.is_alive() {
        return None;
    }
    let noted_at = file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some((Dead { process, noted_at }, Note::new(file.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_tells_whose_it_is() {
        let slots = Slots::new("/state".as_ref());
        let process = ProcessId { pid: 17, started_at: 1_800_000_000 };
        let path = note_path(&slots, "prio.high+low", 3, process);
        assert_eq!(path, PathBuf::from("/state/slots/prio.high+low/3.17-1800000000.work"));
        assert_eq!(process_of("3.17-1800000000.work"), Some((3, process)));
        for name in ["3", "3.work", "3.17.work", "3.x-y.work", ".note-abc", "3.17-1.work.tmp"] {
            assert_eq!(process_of(name), None, "{name}");
        }
    }
}

//! Puts back what dead workers had in flight.
//!
//! A worker notes its messages beside its slot, in a file that carries its process's number and start. When that process
//! is gone and the note is not, nobody is going to finish those messages: they are released, and pending again at once.
//! What other consumers hold is in no note, and never touched.
//!
//! Programs that the worker's handlers had started may have survived it. They are ended first, so that no message is
//! handled by two at once.

use std::path::PathBuf;
use std::time::Duration;

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

/// How long putting back may take per tick. What is left has its note, and is put back at a later tick.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the worker in a slot notes what it has in flight.
pub(super) fn note_path(slots: &Slots, definition: &str, slot: u32, process: ProcessId) -> PathBuf {
    let ProcessId { pid, started_at } = process;
    slots.path(definition, slot).with_file_name(format!("{slot}.{pid}-{started_at}.{EXTENSION}"))
}

/// The process that a note is of.
fn process_of(name: &str) -> Option<ProcessId> {
    let (_slot, process) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.split_once('.')?;
    let (pid, started_at) = process.split_once('-')?;
    Some(ProcessId { pid: pid.parse().ok()?, started_at: started_at.parse().ok()? })
}

impl Supervisor {
    /// Puts back what workers had in flight that live no more. What cannot be put back now is tried again at the next
    /// tick.
    pub(super) async fn recover(&self) {
        let definitions: Vec<String> = self.definitions.iter().map(|definition| definition.name.clone()).collect();
        let ground = self.ground.clone();
        let notes = blocking(move || notes_of_the_dead(&ground.slots, &definitions)).await;
        let all = async {
            for (process, note) in notes {
                end_session(process).await;
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
async fn end_session(leader: ProcessId) {
    let left = blocking(move || session(leader.pid)).await;
    for process in &left {
        tracing::warn!(pid = process.pid, worker = leader.pid, "ending a program that a dead worker had started");
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

/// Blocks for as long as reading some folders takes.
fn notes_of_the_dead(slots: &Slots, definitions: &[String]) -> Vec<(ProcessId, Note)> {
    let dirs = definitions.iter().filter_map(|definition| slots.path(definition, 0).parent().map(PathBuf::from));
    let files = dirs.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let notes = files.filter_map(|file| Some((process_of(file.file_name().to_str()?)?, Note::new(file.path()))));
    notes.filter(|(process, _)| !process.is_alive()).collect()
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
        assert_eq!(process_of("3.17-1800000000.work"), Some(process));
        for name in ["3", "3.work", "3.17.work", "3.x-y.work", ".note-abc", "3.17-1.work.tmp"] {
            assert_eq!(process_of(name), None, "{name}");
        }
    }
}

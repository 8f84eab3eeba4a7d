//! Puts back what dead workers had in flight.
//!
//! A worker notes its messages beside its slot, in a file whose name holds the process's pid and start time. When that
//! process is gone and the note is not, nobody is going to finish those messages: they are released, and are pending again
//! at once. Messages that other consumers hold are in no note, and are never touched. A message that another consumer has
//! received since the note was written has another receipt, and is not released either.
//!
//! Before that, [whatever the worker's handlers have left running](leftovers) is ended, so that no message is handled by two
//! at once.

mod leftovers;
mod notes;

pub(super) use notes::path as note_path;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use indexmap::IndexMap;

use super::slots::Slots;
use crate::transport::{Delivery, TransportError, Transports};
use crate::worker::{InFlight, Taken};
use notes::NoteOfTheDead;

/// How long a transport may take to release messages, per tick. A later tick releases the rest.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);

/// Releases the messages of dead workers.
pub(super) struct Recovery {
    slots: Slots,
    transports: Arc<Transports>,
}

impl Recovery {
    pub fn new(slots: Slots, transports: Arc<Transports>) -> Self {
        Self { slots, transports }
    }

    /// Puts back what dead workers had in flight. What cannot be put back now is tried again at the next tick. All workers
    /// and all transports at once, so that none waits for another.
    pub async fn run(&self) {
        let notes = notes::of_the_dead(&self.slots);
        join_all(notes.into_iter().map(|note| self.recover(note))).await;
    }

    async fn recover(&self, NoteOfTheDead { worker, note }: NoteOfTheDead) {
        let in_flight = note.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "a dead worker's note cannot be read; its messages come again after redeliver_timeout");
            InFlight::default()
        });
        if !in_flight.left_nothing_running && !leftovers::end(worker).await {
            return;
        }
        let released = in_flight.transports.into_iter().map(|(transport, taken)| async move {
            match self.release(&transport, &taken).await {
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
        let left: IndexMap<_, _> = join_all(released).await.into_iter().flatten().collect();
        // If this process is killed before this is written, the next supervisor releases the same messages again, which
        // changes nothing.
        let noted = match left {
            left if left.is_empty() => note.remove(),
            transports => note.write(&InFlight { transports, left_nothing_running: true }),
        };
        if let Err(error) = noted {
            tracing::warn!(%error, "a dead worker's note could not be brought up to date");
        }
    }

    /// Releases messages to a transport. Returns how many they are at most.
    async fn release(&self, transport: &str, taken: &[Taken]) -> Result<usize, String> {
        // The transport may have left the configuration, or its broker takes messages back by itself.
        let Ok(transport) = self.transports.get(transport) else { return Ok(0) };
        let Some(releasing) = &transport.releasing else { return Ok(0) };
        let mut deliveries: Vec<Delivery> = taken.iter().flat_map(Taken::deliveries).collect();
        // A broker gives no receipts.
        deliveries.retain(|delivery| delivery.receipts.iter().any(|receipt| !receipt.0.is_empty()));
        if deliveries.is_empty() {
            return Ok(0);
        }
        match tokio::time::timeout(RELEASE_TIMEOUT, releasing.release(&deliveries)).await {
            Ok(released) => released.map(|()| deliveries.len()).map_err(|error: TransportError| error.to_string()),
            Err(_) => {
                let (name, seconds) = (transport.name(), RELEASE_TIMEOUT.as_secs());
                Err(format!("transport \"{name}\" did not answer within {seconds} s"))
            }
        }
    }
}

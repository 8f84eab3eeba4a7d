//! Puts the messages of dead workers back into their queues.
//!
//! A worker records its messages in flight beside its slot, in a file whose name has the pid and start time of its
//! process. If the file is there and the process is gone, nothing is going to finish those messages: they are released,
//! and pending again at once. Messages of other consumers are in no such file, and are never touched. A message that
//! another consumer has received since has another receipt, and is not released either.
//!
//! Before that, [whatever the worker's handlers have left running](leftovers) is ended, so that no message is handled
//! twice at the same time.

mod in_flight_files;
mod leftovers;

pub(super) use in_flight_files::{of_dead_processes, of_dead_processes_in, path as in_flight_path};
pub(crate) use leftovers::WORKER_VARIABLE;
pub(super) use leftovers::{DeadWorker, Role, end as end_leftovers};

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use indexmap::IndexMap;

use super::slots::Slots;
use crate::transport::{Delivery, TransportError, Transports};
use crate::worker::{InFlight, InFlightBatch};
use in_flight_files::DeadWorkersFile;

/// How long a transport may take to release messages, per tick. A later tick releases the rest.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);

/// Releases the messages of dead workers.
pub(super) struct Recovery {
    slots: Slots,
    transports: Arc<Transports>,
}

impl Recovery {
    pub(super) fn new(slots: Slots, transports: Arc<Transports>) -> Self {
        Self { slots, transports }
    }

    /// Puts the messages of dead workers back. What cannot be put back now is tried again at the next tick. All workers
    /// and transports are handled concurrently, so that none waits for another.
    pub(super) async fn run(&self) {
        let files = in_flight_files::of_dead_workers(&self.slots);
        join_all(files.into_iter().map(|file| self.recover(file))).await;
    }

    async fn recover(&self, DeadWorkersFile { worker, file }: DeadWorkersFile) {
        let in_flight = file.read().unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "a dead worker's record of messages in flight cannot be read; they are delivered again after redeliver_timeout"
            );
            InFlight::default()
        });
        if !in_flight.left_nothing_running && !leftovers::end(worker, Role::Worker).await {
            return;
        }
        let released = in_flight.transports.into_iter().map(|(transport, batches)| async move {
            match self.release(&transport, &batches).await {
                Ok(messages) => {
                    if messages > 0 {
                        tracing::warn!(transport, messages, "put the messages of a dead worker back into the queue");
                    }
                    None
                }
                Err(error) => {
                    tracing::error!(
                        error,
                        "the messages of a dead worker cannot be put back now; trying again at the next tick"
                    );
                    Some((transport, batches))
                }
            }
        });
        let left: IndexMap<_, _> = join_all(released).await.into_iter().flatten().collect();
        // If this process is killed before this is written, the next supervisor releases the same messages again, which
        // changes nothing.
        let updated = match left {
            left if left.is_empty() => file.remove(),
            transports => file.write(&InFlight { transports, left_nothing_running: true }),
        };
        if let Err(error) = updated {
            tracing::warn!(%error, "a dead worker's record of messages in flight could not be updated");
        }
    }

    /// Releases messages to a transport. Returns the most that it can have put back.
    async fn release(&self, transport: &str, batches: &[InFlightBatch]) -> Result<usize, String> {
        // The transport may be gone from the configuration, or its broker puts messages back by itself.
        let Ok(transport) = self.transports.get(transport) else { return Ok(0) };
        let Some(releasing) = &transport.releasing else { return Ok(0) };
        let mut deliveries: Vec<Delivery> = batches.iter().flat_map(InFlightBatch::deliveries).collect();
        // A broker issues no receipts.
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

//! The fixture of a test: two stores, and queues that are opened in them.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "what fails here fails the test")]

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use crate::message::Encoded;
use crate::transport::{Counts, Delivery, MessageId, Receipt, Received, Receiver, Sent, Transport, TransportError};

/// How long to wait for anything, even on a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// The stores of one test, empty at first.
pub struct Stage {
    open: Box<Open>,
    here: TempDir,
    elsewhere: TempDir,
}

type Open = dyn Fn(&Path, &str, &str) -> Arc<Transport> + Send + Sync;

impl Stage {
    pub(super) fn new(open: impl Fn(&Path, &str, &str) -> Arc<Transport> + Send + Sync + 'static) -> Self {
        Self { open: Box::new(open), here: TempDir::new().unwrap(), elsewhere: TempDir::new().unwrap() }
    }

    /// Opens a queue as another process would.
    pub fn open(&self, queue: &str) -> Queue {
        self.open_with(queue, "{}")
    }

    /// Opens a queue with options, as YAML.
    pub fn open_with(&self, queue: &str, options: &str) -> Queue {
        Queue((self.open)(self.here.path(), queue, options))
    }

    /// Opens a queue in the other store.
    pub fn open_elsewhere(&self, queue: &str) -> Queue {
        Queue((self.open)(self.elsewhere.path(), queue, "{}"))
    }
}

/// A transport under test.
pub struct Queue(Arc<Transport>);

impl Deref for Queue {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.0
    }
}

impl Queue {
    /// The same, receiving from one of its queues alone.
    pub fn only(&self, queue: &str) -> Self {
        let queues = self.queues.as_ref().expect("the transport has `queues`");
        Self(Arc::new(queues.only(&[queue.to_owned()])))
    }

    pub fn receiver(&self) -> &dyn Receiver {
        self.0.receiver.as_deref().expect("a transport under test has a receiver")
    }

    /// Sends a message, and returns its id.
    pub async fn send(&self, body: impl Into<Bytes>) -> MessageId {
        self.send_later(body, Duration::ZERO).await
    }

    pub async fn send_later(&self, body: impl Into<Bytes>, delay: Duration) -> MessageId {
        self.queued(self.sender.send(&message(body), delay).await)
    }

    /// The id of a message that was queued here.
    pub fn queued(&self, sent: Result<Sent, TransportError>) -> MessageId {
        match sent.unwrap() {
            Sent::Queued { id, transport, .. } => {
                assert_eq!(transport, self.name(), "the name in `Sent::Queued` is that of the transport");
                id
            }
            Sent::HandleNow { reason } => panic!("not queued: {reason}"),
        }
    }

    pub async fn receive(&self, up_to: usize) -> Vec<Received> {
        let received = self.receiver().receive(up_to).await.unwrap();
        assert!(received.len() <= up_to, "{} received, of {up_to} at most", received.len());
        received
    }

    /// Receives everything that is due, in one call or several.
    pub async fn receive_all(&self) -> Vec<Received> {
        let mut all = Vec::new();
        loop {
            let part = self.receive(1000).await;
            if part.is_empty() {
                return all;
            }
            all.extend(part);
        }
    }

    /// Receives until a message arrives.
    pub async fn receive_eventually(&self) -> Received {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(received) = self.receive(1).await.pop() {
                return received;
            }
            assert!(Instant::now() < deadline, "no message came");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ack(&self, received: &[Received]) {
        self.receiver().ack(&ids(received)).await.unwrap();
    }

    /// Fails unless the queue has these counts, as far as it can count.
    pub async fn holds(&self, expected: Counts) {
        let Some(counting) = &self.counting else { return };
        let (delayed, in_flight) =
            if counting.counts_pending_only() { (0, 0) } else { (expected.delayed, expected.in_flight) };
        let counts = counting.counts(1000).await.unwrap();
        assert_eq!(counts, Counts { delayed, in_flight, ..expected });
    }

    /// Fails if a message is left.
    pub async fn is_empty(&self) {
        self.holds(Counts::default()).await;
        assert!(self.receive(1).await.is_empty(), "a message is left");
    }
}

/// A message with this body.
pub(super) fn message(body: impl Into<Bytes>) -> Encoded {
    let headers = [("type", "App\\Message\\Test"), ("Content-Type", "application/json")].into();
    Encoded { body: body.into(), headers }
}

pub(super) fn message_of(received: &Received) -> &Encoded {
    received.message.as_ref().unwrap()
}

pub(super) fn bodies(received: &[Received]) -> Vec<String> {
    received.iter().map(|received| String::from_utf8(message_of(received).body.to_vec()).unwrap()).collect()
}

pub(super) fn ids(received: &[Received]) -> Vec<MessageId> {
    received.iter().map(|received| received.id.clone()).collect()
}

/// The deliveries of received messages.
pub(super) fn deliveries(received: &[Received]) -> Vec<Delivery> {
    received.iter().map(Received::delivery).collect()
}

/// Deliveries of messages that were never received, with the receipt of another message.
pub(super) fn never_received(ids: &[MessageId], receipt: &Receipt) -> Vec<Delivery> {
    ids.iter().map(|id| Delivery { id: id.clone(), receipts: vec![receipt.clone()] }).collect()
}

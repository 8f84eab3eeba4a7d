//! A message as a transport knows it: its id, one delivery of it, and how many there are.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::message::{Encoded, UndecodableError};

/// How long a message is parked, that is delayed, when it failed for good and stays on its transport: long enough that it
/// keeps no worker busy.
pub const PARKED_FOR: Duration = Duration::from_secs(86_400);

/// A message's id on its transport, unique there for as long as the message is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub String);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What became of a message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It waits in a store, and survives this process.
    Queued {
        /// The transport that holds it.
        transport: String,
        /// Its id there.
        id: MessageId,
        /// Why it is there, where there was a choice.
        reason: Option<String>,
    },
    /// Nothing was stored: the caller handles the message now.
    HandleNow {
        /// Why.
        reason: String,
    },
}

/// Identifies one delivery of a message, as a receipt handle does in Amazon SQS. A consumer can release a message, or keep
/// it alive, only with the receipt of its last delivery: not once another consumer has received it. Empty where the message
/// was listed and not received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// A message in flight, as its consumer knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message's id.
    pub id: MessageId,
    /// One of these is valid. Keeping a message alive may change its receipt; while that is not confirmed, there are two.
    pub receipts: Vec<Receipt>,
}

/// A message taken from a store. It stays there, in flight, until it is acknowledged, rejected, retried or released.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its id.
    pub id: MessageId,
    /// Identifies this delivery of it.
    pub receipt: Receipt,
    /// The message; or, where the stored content is damaged, what can still be read of it.
    pub message: Result<Encoded, Damaged>,
}

impl Received {
    /// What releases it, or keeps it alive.
    pub fn delivery(&self) -> Delivery {
        Delivery { id: self.id.clone(), receipts: vec![self.receipt.clone()] }
    }
}

/// A stored message whose headers cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Damaged {
    /// The body as stored.
    pub body: Bytes,
    /// The headers as stored.
    pub headers: Bytes,
    /// What is wrong with them.
    pub error: UndecodableError,
}

/// How many messages a transport holds, by state. Each number stops at the cap it was counted with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Due, waiting for a consumer. In flight for longer than `redeliver_timeout` counts as pending.
    pub pending: u64,
    /// Not due yet.
    pub delayed: u64,
    /// Received and not acknowledged.
    pub in_flight: u64,
}

/// A stored message as a listing shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The message.
    pub received: Received,
    /// When it becomes due, where the store knows.
    pub available_at: Option<SystemTime>,
    /// Whether a consumer has it in hand.
    pub in_flight: bool,
}

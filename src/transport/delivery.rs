//! A message from a transport's view: its id, its deliveries, and counts.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::message::{Encoded, UndecodableError};

/// How long a message is parked, that is delayed, when it failed for good and stays on its transport: long enough that
/// it keeps no worker busy.
pub const PARKED_FOR: Duration = Duration::from_secs(86_400);

/// A message's id on its transport, unique for as long as the message exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub String);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The result of sending a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It is in a store, and survives this process.
    Queued {
        /// The transport that holds it.
        transport: String,
        /// Its id there.
        id: MessageId,
        /// Why it is there, if there was a choice.
        reason: Option<String>,
    },
    /// Nothing was stored: the caller has to handle the message now.
    HandleNow {
        /// Why.
        reason: String,
    },
}

/// Identifies one delivery of a message, like a receipt handle in Amazon SQS. A message can be released or kept alive
/// only with the receipt of its last delivery, and so not after another consumer has received it. Empty if the message
/// was listed and not received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// A message in flight, as its consumer identifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message's id.
    pub id: MessageId,
    /// One of these is valid. Keeping a message alive may change its receipt; until that is confirmed, there are two.
    pub receipts: Vec<Receipt>,
}

/// A message that was received. It stays in its store, in flight, until it is acknowledged, rejected, retried or
/// released.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its id.
    pub id: MessageId,
    /// Identifies this delivery of it.
    pub receipt: Receipt,
    /// The message; or what can be read of it, if the stored content is damaged.
    pub message: Result<Encoded, Damaged>,
}

impl Received {
    /// Identifies this delivery, to release the message or keep it alive.
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

/// How many messages a transport holds, by state. No count is higher than the cap that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Due, and waiting for a consumer. Includes messages in flight for longer than `redeliver_timeout`.
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
    /// When it becomes due, if the store knows that.
    pub available_at: Option<SystemTime>,
    /// Whether it is in flight. After `redeliver_timeout` it is pending again, and this is `false`.
    pub in_flight: bool,
}

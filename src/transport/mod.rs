//! Where messages wait: one file or folder per transport, behind one trait, made by one factory keyed by DSN scheme.
//!
//! [`Transport`] is the contract every transport keeps: send, receive, acknowledge, reject. What only some can do
//! (count, set up, list, …) are capabilities of their own, asked for at run time: `transport.counting()` is `None` where
//! a transport cannot count, and the caller says so. The conformance suite in `tests/it/conformance/` holds every
//! transport to all of it.
//!
//! A message in a store is *pending* (due, waiting), *delayed* (waiting to become due) or *in flight* (received by a
//! consumer that has not acknowledged it; pending again after `redeliver_timeout`).
//!
//! ```text
//!             send                receive                ack | reject
//!   (nothing) ────▶ delayed ─▶ pending ────▶ in flight ─────────────▶ (gone)
//!                      ▲          ▲              │
//!                      │          └── release ───┤  redeliver_timeout
//!                      └───────────── retry ─────┘
//! ```

#[cfg(feature = "amqp")]
mod amqp;
mod auto_fallback;
mod dsn;
mod factory;
mod file_watch;
mod in_memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod rdbms;
#[cfg(feature = "redis")]
mod redis;
mod spec;
mod sql;
mod sql_facts;
mod sqlite;
mod sync;
#[cfg(any(feature = "redis", feature = "amqp"))]
mod tls;

#[cfg(feature = "amqp")]
pub use amqp::AmqpFactory;
pub use auto_fallback::{AutoFallback, Liveness};
pub use dsn::{Dsn, DsnError, Host};
pub use factory::{Context, Factory, Transports, built_in_factories, cache_store};
pub use in_memory::{InMemory, InMemoryFactory};
#[cfg(feature = "mysql")]
pub use mysql::MysqlFactory;
#[cfg(feature = "postgres")]
pub use postgres::PostgresFactory;
#[cfg(feature = "redis")]
pub use redis::RedisFactory;
pub use spec::{Options, TransportSpec};
pub use sqlite::{Sqlite, SqliteFactory};
pub use sync::{Sync, SyncFactory};

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;

use crate::message::{Encoded, UndecodableError};

/// How long a message rests that failed for good and stays where it is: long enough that nobody is kept busy by it.
pub const REST: Duration = Duration::from_secs(86_400);

/// What a transport calls a message. Unique within the transport for as long as the message is there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub String);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What became of a message that was given to a transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It waits in a store, and survives this process.
    Queued {
        /// The transport that holds it.
        transport: String,
        /// Its id there.
        id: MessageId,
        /// Why there, where there was a choice.
        reason: Option<String>,
    },
    /// Nothing was stored: the caller handles the message now.
    HandleNow {
        /// Why.
        reason: String,
    },
}

/// Tells one delivery of a message from all others: whoever shows it can put the message back, or keep it for longer, only
/// while nobody else has received it since. Amazon SQS calls the same a receipt handle. Empty where a message was only
/// looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// A message in flight, as the consumer knows it that has received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message's id.
    pub id: MessageId,
    /// Any of these may be valid: keeping a message alive may change its receipt, and the answer may have got lost.
    pub receipts: Vec<Receipt>,
}

/// A message taken from a store. It stays there, in flight, until it is acknowledged, rejected, retried or released.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its id.
    pub id: MessageId,
    /// Tells this delivery of it from others.
    pub receipt: Receipt,
    /// The message, or the parts of it that a store with damaged content still gives.
    pub message: Result<Encoded, Damaged>,
}

impl Received {
    /// What is shown to put it back, or to keep it.
    pub fn delivery(&self) -> Delivery {
        Delivery { id: self.id.clone(), receipts: vec![self.receipt.clone()] }
    }
}

/// A stored message whose headers are beyond reading.
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

/// Sends to, and receives from, one queue.
///
/// Every method is safe to call from many tasks at once, and to cancel: a cancelled `receive` may leave messages in
/// flight until `redeliver_timeout`, never lost.
#[async_trait]
pub trait Transport: Send + std::marker::Sync {
    /// The name it has in the configuration.
    fn name(&self) -> &str;

    /// Stores a message, due after `delay`. When this returns `Queued`, the message survives a crash of everything.
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError>;

    /// Takes up to `up_to` due messages in flight, oldest first. Returns at once, with none when none is due.
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError>;

    /// Stores a message that was received as `id` again, due after `delay`, where it came from: of several queues that its
    /// first sending led to, only that one gets it. The received one stays in flight.
    async fn send_again(&self, _id: &MessageId, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        self.send(message, delay).await
    }

    /// The messages were handled: they leave the store. An id that is not there any more is passed over.
    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError>;

    /// The messages are given up, or have been sent elsewhere: they leave the store.
    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError>;

    /// Can it be consumed at all? `sync://` cannot.
    fn consumable(&self) -> bool {
        true
    }

    /// The transport that consuming and counting this one really reads: itself, or an auto-fallback's target.
    fn target(&self) -> Option<&str> {
        None
    }

    /// Nothing is going to be asked of it for some seconds: it may close what it holds open, and opens that again when it
    /// is asked something.
    fn rest(&self) {}

    /// Nothing is going to be asked of it any more. Returns once the server has received everything it was told; the caller
    /// bounds how long that may take.
    async fn close(&self) {}

    /// How many messages wait.
    fn counting(&self) -> Option<&dyn Counting> {
        None
    }

    /// Tables, streams, exchanges.
    fn setting_up(&self) -> Option<&dyn SettingUp> {
        None
    }

    /// Looking without taking.
    fn listing(&self) -> Option<&dyn Listing> {
        None
    }

    /// Putting back what was received.
    fn releasing(&self) -> Option<&dyn Releasing> {
        None
    }

    /// Holding on to messages for longer than `redeliver_timeout`.
    fn keeping_alive(&self) -> Option<&dyn KeepingAlive> {
        None
    }

    /// Knowing of messages at rest.
    fn resting(&self) -> Option<&dyn Resting> {
        None
    }

    /// Being told of new messages instead of asking.
    fn waking(&self) -> Option<&dyn Waking> {
        None
    }

    /// Being sent messages ahead of asking for them.
    fn prefetching(&self) -> Option<&dyn Prefetching> {
        None
    }

    /// Having several queues, of which a consumer may want some.
    fn queues(&self) -> Option<&dyn Queues> {
        None
    }

    /// Holding a connection to a server.
    fn connecting(&self) -> Option<&dyn Connecting> {
        None
    }

    /// Retrying, and moving to another queue, in one step of the store.
    fn moving(&self) -> Option<&dyn Moving> {
        None
    }
}

/// Counts messages.
#[async_trait]
pub trait Counting: Send + std::marker::Sync {
    /// How many are pending now. Stops counting at `cap`, so that a backlog of millions costs no more than `cap`.
    async fn pending(&self, cap: u64) -> Result<u64, TransportError>;

    /// Pending, delayed and in flight, each counted up to `cap`.
    async fn counts(&self, cap: u64) -> Result<Counts, TransportError>;

    /// Does it know nothing but what is pending? Then `counts` gives zero for the rest.
    fn knows_pending_alone(&self) -> bool {
        false
    }
}

/// Prepares the store.
#[async_trait]
pub trait SettingUp: Send + std::marker::Sync {
    /// Creates what is missing, and leaves alone what is there. Safe to run any number of times, also at once.
    async fn setup(&self) -> Result<(), TransportError>;
}

/// Looks at messages without taking them.
#[async_trait]
pub trait Listing: Send + std::marker::Sync {
    /// Up to `limit` messages in the order of their ids, after the message `after`.
    async fn list(&self, after: Option<&MessageId>, limit: usize) -> Result<Vec<Listed>, TransportError>;

    /// One message, if it is there.
    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError>;
}

/// Puts messages back.
#[async_trait]
pub trait Releasing: Send + std::marker::Sync {
    /// Makes received messages pending again at once, as if they had never been received. One that is not in flight any
    /// more, or has been received by another consumer since, is passed over.
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError>;

    /// For how long after it was given a receipt may be given again, to another consumer that receives the same message:
    /// not at all, or, where a store notes deliveries by the second, for as long as that may take on any host's clock.
    fn receipt_repeats_within(&self) -> Duration {
        Duration::ZERO
    }
}

/// Knows of messages that wait for a long time, and ends their wait.
#[async_trait]
pub trait Resting: Send + std::marker::Sync {
    /// How many messages rest ([`REST`]), or are delayed where the store makes no difference. Stops counting at `cap`.
    async fn resting(&self, cap: u64) -> Result<u64, TransportError>;

    /// Makes all these pending at once. What is in flight is not touched.
    async fn resume(&self) -> Result<(), TransportError>;
}

/// Keeps messages in flight.
#[async_trait]
pub trait KeepingAlive: Send + std::marker::Sync {
    /// For how long a message may be in flight before it is pending again.
    fn redeliver_timeout(&self) -> Duration;

    /// Starts the `redeliver_timeout` of these messages anew, at `now`. One that is not in flight any more, or has been
    /// received by another consumer since, is passed over.
    async fn keep_alive(&self, deliveries: &[Delivery], now: SystemTime) -> Result<(), TransportError>;

    /// The receipt that messages have which are kept alive at `now`; `None`, they keep theirs.
    fn receipt_at(&self, _now: SystemTime) -> Option<Receipt> {
        None
    }
}

/// Wakes a waiting consumer.
#[async_trait]
pub trait Waking: Send + std::marker::Sync {
    /// Returns when a message may have become due. May return early, and may never return; the caller bounds it.
    async fn wake(&self) -> Result<(), TransportError>;

    /// How long a consumer that waits for `wake` may go without looking for messages itself. `None`, as long as it likes
    /// to look when nothing wakes it: at present not every message makes `wake` return.
    fn poll_interval(&self) -> Option<Duration> {
        None
    }
}

/// Fetches messages from a broker before they are asked for.
///
/// What such a broker gets back it marks as delivered before, which consumers of Symfony Messenger take for a failure. So a
/// consumer that stops handles what has been fetched, and releases it only where it would wait long.
#[async_trait]
pub trait Prefetching: Send + std::marker::Sync {
    /// Whether [`Transport::receive`] may fetch further messages meanwhile, as many as are received at once and for some
    /// milliseconds. It may not until this is called.
    fn fetch_ahead(&self, allowed: bool);

    /// Fetches nothing more until the next [`Transport::receive`]. Returns what was fetched and not received.
    async fn stop_fetching(&self) -> Result<Vec<Received>, TransportError>;
}

/// Brings messages from several queues.
pub trait Queues: Send + std::marker::Sync {
    /// Their names, in the order in which they are looked into.
    fn names(&self) -> Vec<String>;

    /// The same transport, receiving and counting from these queues alone.
    fn only(&self, names: &[String]) -> Arc<dyn Transport>;
}

/// Holds a connection to a server, one for each process, from when it is first used until it rests.
#[async_trait]
pub trait Connecting: Send + std::marker::Sync {
    /// The server: `host:port`, or its socket. Its limit is for all connections together.
    fn server(&self) -> &str;

    /// What the connection is to: transports of a process that say the same here share one.
    fn connection(&self) -> &str;

    /// How many connections the server allows whoever this one is made as. `None` where it does not say.
    async fn limit(&self) -> Result<Option<u64>, TransportError>;
}

/// Changes a received message's place in one step: at no instant is it in neither place, or in both.
///
/// A message that is not there any more has been finished by another consumer meanwhile (this one held it for longer than
/// `redeliver_timeout`). It is passed over, and does not come back.
#[async_trait]
pub trait Moving: Send + std::marker::Sync {
    /// Replaces the message by `message`, due after `delay`, in the same queue.
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError>;

    /// Moves it, as `message` and due at once, to `destination`. `None`, with nothing done, when that lives in another
    /// store; the caller then sends first and rejects after.
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError>;

    /// Where this queue is, for [`Moving::move_to`] from another.
    fn place(&self) -> Place;
}

/// A queue's place within a store that can move messages between queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which store: equal for two queues that one transaction reaches.
    pub store: String,
    /// The table in it.
    pub table: String,
    /// The queue in that.
    pub queue: String,
}

/// Why a transport could not do what it was asked. Names the transport; never contains a password.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The store answered with an error, or did not answer.
    #[error("transport \"{transport}\": {action} failed: {source}")]
    Store {
        /// The transport's name.
        transport: String,
        /// What was being done: `sending`, `receiving`, ….
        action: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + std::marker::Sync>,
    },
    /// The table, stream or exchange is missing and may not be created.
    #[error("transport \"{transport}\": {what} does not exist; run `minutely setup`, or set auto_setup=true")]
    NotSetUp {
        /// The transport's name.
        transport: String,
        /// What is missing, with its place.
        what: String,
    },
    /// The store cannot hold this message, ever.
    #[error("transport \"{transport}\" cannot hold this message: {why}")]
    Unstorable {
        /// The transport's name.
        transport: String,
        /// What is in the way.
        why: String,
    },
    /// The transport cannot do this, ever.
    #[error("transport \"{transport}\" cannot {what}: {why}")]
    Unsupported {
        /// The transport's name.
        transport: String,
        /// What was asked.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The transport is not one of the configuration's.
    #[error("there is no transport \"{0}\"")]
    Unknown(String),
}

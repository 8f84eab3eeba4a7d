//! What a transport may be able to do besides sending and receiving, each a contract of its own and each optional.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{Counts, Delivery, Listed, MessageId, Receipt, Received, Transport, TransportError};
#[cfg(doc)]
use super::{PARKED_FOR, Receiver};
use crate::message::Encoded;

/// Counts messages.
#[async_trait]
pub trait Counting: Send + Sync {
    /// How many are pending now. Stops counting at `cap`, so that a backlog of millions costs no more than `cap`.
    async fn pending(&self, cap: u64) -> Result<u64, TransportError>;

    /// Pending, delayed and in flight, each counted up to `cap`.
    async fn counts(&self, cap: u64) -> Result<Counts, TransportError>;

    /// Whether pending messages are all it can count. Then `counts` returns zero for the rest.
    fn counts_pending_only(&self) -> bool {
        false
    }
}

/// Prepares the store: tables, streams, exchanges.
#[async_trait]
pub trait SettingUp: Send + Sync {
    /// Creates what is missing, and leaves what is there as it is. May be called any number of times, also by several
    /// processes at once.
    async fn setup(&self) -> Result<(), TransportError>;
}

/// Shows messages without taking them.
#[async_trait]
pub trait Listing: Send + Sync {
    /// Up to `limit` messages in the order of their ids, after the message `after`: pending, delayed and in flight.
    async fn list(&self, after: Option<&MessageId>, limit: usize) -> Result<Vec<Listed>, TransportError>;

    /// One message; `None` if it is not there.
    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError>;
}

/// Gives received messages back.
#[async_trait]
pub trait Releasing: Send + Sync {
    /// Makes received messages pending again at once, as if they had never been received. Also called by another process
    /// than the one that received them, once that one is dead.
    ///
    /// A message is passed over that is not in flight any more, or that another consumer has received since: its receipts
    /// are none of [`Delivery::receipts`].
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError>;

    /// For how long a receipt may be given a second time, to another consumer of the same message. Zero where every
    /// delivery has a receipt of its own. A store that notes deliveries by the second gives the same one within that
    /// second, and for as long as the clocks of hosts differ.
    fn receipt_repeats_within(&self) -> Duration {
        Duration::ZERO
    }
}

/// Counts parked messages, and makes them due again. A message that failed for good and stays on its transport is parked:
/// delayed by [`PARKED_FOR`].
#[async_trait]
pub trait Parking: Send + Sync {
    /// How many messages are parked; how many are delayed, where the store cannot tell the two apart. Stops counting at
    /// `cap`.
    async fn parked(&self, cap: u64) -> Result<u64, TransportError>;

    /// Makes all of them pending. Messages in flight stay in flight.
    async fn resume(&self) -> Result<(), TransportError>;
}

/// Keeps messages in flight for longer than `redeliver_timeout`.
#[async_trait]
pub trait KeepingAlive: Send + Sync {
    /// For how long a message may be in flight before it is pending again.
    fn redeliver_timeout(&self) -> Duration;

    /// Starts the `redeliver_timeout` of these messages again, at `now`. A message is passed over that is not in flight any
    /// more, or that another consumer has received since.
    async fn keep_alive(&self, deliveries: &[Delivery], now: SystemTime) -> Result<(), TransportError>;

    /// The receipt of messages that were kept alive at `now`. `None`: they keep the one that they had.
    fn receipt_at(&self, _now: SystemTime) -> Option<Receipt> {
        None
    }
}

/// Wakes a waiting consumer.
#[async_trait]
pub trait Waking: Send + Sync {
    /// Returns when a message may have become due: sent, released, or at the end of its delay. Returns at once where one
    /// came since the last [`Receiver::receive`]. May return early, and may never return; the caller bounds it, and
    /// cancels it at any time.
    async fn wake(&self) -> Result<(), TransportError>;

    /// How long a consumer that waits for `wake` may go without polling. `None`: no longer than a consumer that cannot be
    /// woken, because at present not every message makes `wake` return.
    fn poll_interval(&self) -> Option<Duration> {
        None
    }
}

/// Fetches messages from a broker before they are asked for.
///
/// What such a broker gets back it marks as delivered before, which consumers of Symfony Messenger take for a failure. So a
/// consumer that stops handles what has been fetched, and releases it only where it would wait long.
#[async_trait]
pub trait Prefetching: Send + Sync {
    /// Whether [`Receiver::receive`] may fetch further messages meanwhile, as many as are received at once and for some
    /// milliseconds. It may not until this is called.
    fn fetch_ahead(&self, allowed: bool);

    /// Fetches nothing more until the next [`Receiver::receive`]. Returns what was fetched and not received.
    async fn stop_fetching(&self) -> Result<Vec<Received>, TransportError>;
}

/// Receives from several queues.
pub trait Queues: Send + Sync {
    /// Their names, in the order in which they are received from.
    fn names(&self) -> Vec<String>;

    /// The same transport, receiving and counting from these queues alone.
    fn only(&self, names: &[String]) -> Transport;
}

/// Holds a connection to a server, one for each process, from when it is first used until it is closed.
#[async_trait]
pub trait Connecting: Send + Sync {
    /// The server: `host:port`, or its socket. Its limit is for all connections together.
    fn server(&self) -> &str;

    /// What the connection is to: transports of a process that say the same here share one.
    fn connection(&self) -> &str;

    /// How many connections the server allows to this user. `None` where it does not say.
    async fn limit(&self) -> Result<Option<u64>, TransportError>;

    /// Nothing is asked of the transport for some seconds: closes what is open. The next call to any part of the transport
    /// opens it again.
    fn close_idle(&self);

    /// Nothing is asked of the transport any more. Returns once the server has received everything it was told; the caller
    /// bounds how long that may take.
    async fn close(&self) {}
}

/// Puts a message that failed back into the queue that it came from.
#[async_trait]
pub trait Retrying: Send + Sync {
    /// Replaces the received message `id` by `message`, due after `delay`. At no instant is neither of them in the store:
    /// one step of the store, or storing the new one first. Of several queues that the first sending led to, only the one
    /// that it was received from gets it.
    ///
    /// A message that is not there any more was finished by another consumer (this one held it for longer than
    /// `redeliver_timeout`). It is passed over, and does not come back.
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError>;
}

/// Moves a message to another queue of the same store in one step: at no instant is it in neither queue, or in both.
#[async_trait]
pub trait Moving: Send + Sync {
    /// Moves the received message `id`, as `message` and due at once, to `destination`. Returns its id there; `None`, with
    /// nothing done, when the destination is in another store or not set up: the caller then sends and rejects.
    ///
    /// A message that is not there any more was finished by another consumer. It is passed over, as if it had been moved.
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError>;

    /// Where this queue is, for [`Moving::move_to`] of another transport.
    fn place(&self) -> Place;
}

/// Where a queue is in its store. Only a store of the same kind can read it, by the type of what it put in.
#[derive(Clone)]
pub struct Place(Arc<dyn AnyPlace>);

/// What a [`Place`] holds.
trait AnyPlace: Any + fmt::Debug + Send + Sync {}

impl<T: Any + fmt::Debug + Send + Sync> AnyPlace for T {}

impl Place {
    /// A place that a store describes in a type of its own.
    pub fn new<T: Any + fmt::Debug + Send + Sync>(place: T) -> Self {
        Self(Arc::new(place))
    }

    /// The description, if it is of this type; `None` where another kind of store made the place.
    pub fn get<T: Any>(&self) -> Option<&T> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! What a transport may be able to do besides sending and receiving. Each capability is a trait of its own, and
//! optional.
//!
//! While the store is missing (a table, a stream, a folder), all of them do as [`Receiver::receive`] does. If sending
//! creates the store, it holds no messages, and calls that change messages do nothing. If only [`SettingUp::setup`] may
//! create it (`auto_setup: false`), [`Counting`] reports [`TransportError::NotSetUp`], so that `stats` and `status` say
//! so. The others report that error or do nothing.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{Counts, Delivery, Listed, MessageId, Receipt, Received, Sent, TransportError};
#[cfg(doc)]
use super::{PARKED_FOR, Receiver};
use crate::message::{AmqpStamp, Encoded};

/// Counts messages.
#[async_trait]
pub trait Counting: Send + Sync {
    /// How many are pending now. Stops counting at `cap`, so that a backlog of millions costs no more than `cap`.
    async fn pending(&self, cap: u64) -> Result<u64, TransportError>;

    /// Pending, delayed and in flight, each counted up to `cap`.
    async fn counts(&self, cap: u64) -> Result<Counts, TransportError>;

    /// Whether it can count only pending messages. Then `counts` returns zero for the others.
    fn counts_pending_only(&self) -> bool {
        false
    }
}

/// Sends messages with what the stamp of AMQP says: a routing key, a priority and other properties.
#[async_trait]
pub trait Addressing: Send + Sync {
    /// Stores a message as [`Sender::send`](super::Sender::send) does, as the stamp says.
    async fn send_with(&self, message: &Encoded, delay: Duration, stamp: &AmqpStamp) -> Result<Sent, TransportError>;
}

/// Prepares the store: tables, streams, exchanges.
#[async_trait]
pub trait SettingUp: Send + Sync {
    /// Creates what is missing, and leaves the rest as it is: also a table that lacks an index ([`Migrating`]). May be called any number of times, also by several
    /// processes at once.
    async fn setup(&self) -> Result<(), TransportError>;
}

/// Describes the store as statements of SQL, and brings one up to date that an earlier version or another program has
/// created.
///
/// Several transports may be in one table, and then have equal statements.
#[async_trait]
pub trait Migrating: Send + Sync {
    /// Where the store is, as errors name it: a path, or a server and database.
    fn location(&self) -> &str;

    /// The statements that create all of it in an empty database. Asks no server.
    fn schema(&self) -> SchemaChange;

    /// What [`Migrating::migrate`] would change now.
    async fn missing(&self) -> Result<Vec<SchemaChange>, TransportError>;

    /// Creates what is missing, also in a table that exists and is in use. No message is changed, and what other programs
    /// need stays. Returns what was changed. May be called any number of times, also by several processes at once.
    async fn migrate(&self) -> Result<Vec<SchemaChange>, TransportError>;
}

/// A change of a store's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchemaChange {
    /// In a few words: `create table "messenger_messages"`.
    pub what: String,
    /// The statements of SQL, in order, without semicolons at their ends.
    pub statements: Vec<String>,
}

impl SchemaChange {
    /// A change by these statements.
    pub fn new(what: impl Into<String>, statements: Vec<String>) -> Self {
        Self { what: what.into(), statements }
    }
}

/// Shows messages without receiving them.
#[async_trait]
pub trait Listing: Send + Sync {
    /// Up to `limit` messages in the order of their ids, after the message `after`: pending, delayed and in flight.
    async fn list(&self, after: Option<&MessageId>, limit: usize) -> Result<Vec<Listed>, TransportError>;

    /// One message; `None` if it is not there.
    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError>;
}

/// Receives a message that is known by its id.
#[async_trait]
pub trait Taking: Send + Sync {
    /// Receives the message `id`, also before it is due. From then on it is in flight, as after
    /// [`Receiver::receive`]. The id of the received message may be another one.
    ///
    /// `None` if it is not there, or if a consumer has it: of several that take a message at once, one gets it. A store
    /// may also return `None` for a message whose consumer has died.
    async fn take(&self, id: &MessageId) -> Result<Option<Received>, TransportError>;
}

/// Goes through the messages of a store that has no ids for them and delivers them in their order only, so that they can
/// be neither listed nor [taken](Taking): for the commands `failed`.
///
/// There are as many as [`Counting::pending`] and [`Parking::parked`] say. A caller that receives so many, and puts back
/// those that it does not want, has seen each.
#[async_trait]
pub trait Browsing: Send + Sync {
    /// Receives the next message that is due, or with `parked` the next one that is parked. `None` if there is none.
    async fn next(&self, parked: bool) -> Result<Option<Received>, TransportError>;

    /// Puts a message back that [`Browsing::next`] has returned, behind the others, due or parked as it was.
    async fn put_back(&self, message: &Received) -> Result<(), TransportError>;

    /// Whether a received message is still in flight here. A broker may take it back after some time.
    async fn is_held(&self, id: &MessageId) -> bool;
}

/// Releases received messages.
#[async_trait]
pub trait Releasing: Send + Sync {
    /// Makes received messages pending again at once, as if they had never been received. After the death of a process,
    /// another process calls this for the messages that it received.
    ///
    /// A message that is no longer in flight is skipped, and so is one that another consumer has received since: its
    /// receipt is not among [`Delivery::receipts`].
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError>;

    /// How long after a delivery the next delivery of the same message may get an equal receipt. Zero if every delivery
    /// has a receipt of its own. A store that records the time of a delivery in seconds repeats a receipt within a
    /// second, and for as long as the clocks of hosts differ.
    fn receipt_repeats_within(&self) -> Duration {
        Duration::ZERO
    }
}

/// Counts parked messages, and makes them due again. A message that failed for good and stays on its transport is
/// parked: delayed by [`PARKED_FOR`].
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
    /// How long a message may be in flight before it is pending again.
    fn redeliver_timeout(&self) -> Duration;

    /// Restarts the `redeliver_timeout` of these messages. A message that is no longer in flight, or that another
    /// consumer has received since, is skipped.
    ///
    /// `now` is the present time by the clock of this process, and the time that [`KeepingAlive::receipt_at`] is called
    /// with. A store whose receipts contain a time must use it. One that measures by a clock of its own, such as a
    /// server's, may go on to do so.
    async fn keep_alive(&self, deliveries: &[Delivery], now: SystemTime) -> Result<(), TransportError>;

    /// The receipt of messages that were kept alive at `now`. `None`: they keep the receipt that they had.
    fn receipt_at(&self, _now: SystemTime) -> Option<Receipt> {
        None
    }
}

/// Wakes a waiting consumer.
#[async_trait]
pub trait Waking: Send + Sync {
    /// Returns when a message may have become due: it was sent or released, or its delay is over. Returns at once if
    /// that has happened since the last [`Receiver::receive`]. May return early, or never; the caller sets a time
    /// limit, and may cancel it at any time.
    async fn wake(&self) -> Result<(), TransportError>;

    /// How long a consumer that waits for `wake` may go without polling. `None`: it must poll as often as without
    /// `wake`, because at present not every message makes `wake` return.
    ///
    /// A store that sends no notifications can implement `wake` all the same, if it has a check that costs less than
    /// [`Receiver::receive`], such as a folder's time of change: `wake` repeats the check. If the check notices every
    /// message, an interval of a minute is right; it limits the damage where the check is wrong.
    fn poll_interval(&self) -> Option<Duration> {
        None
    }
}

/// Fetches messages from a broker before they are needed.
///
/// Such a broker marks released messages as redelivered, and consumers of Symfony Messenger count that as a failure. So
/// a consumer that stops handles the messages that were fetched, and releases them only if they would wait long.
#[async_trait]
pub trait Prefetching: Send + Sync {
    /// Allows [`Receiver::receive`] to fetch further messages in the background: as many as it returns, and for some
    /// milliseconds. Until this is called, it must not.
    fn fetch_ahead(&self, allowed: bool);

    /// Fetches nothing more until the next [`Receiver::receive`]. Returns the messages that were fetched and not yet
    /// received.
    async fn stop_fetching(&self) -> Result<Vec<Received>, TransportError>;
}

/// Holds a connection to a server: one for each process, from its first use until it is closed.
#[async_trait]
pub trait Connecting: Send + Sync {
    /// The server: `host:port`, or its socket. Its limit is for all its connections together.
    fn server(&self) -> &str;

    /// Identifies the connection: transports of a process with an equal value share one.
    fn connection(&self) -> &str;

    /// How many connections the server allows this user. `None` if it does not say.
    async fn limit(&self) -> Result<Option<u64>, TransportError>;

    /// Closes what is open, because the transport will not be used for some seconds. Its next use opens it again.
    fn close_idle(&self);

    /// Closes the transport for good. Returns when the server has received everything that was sent to it; the caller
    /// sets a time limit.
    async fn close(&self) {}
}

/// Puts a message that failed back into the queue that it came from.
#[async_trait]
pub trait Retrying: Send + Sync {
    /// Replaces the received message `id` by `message`, due after `delay`. At least one of them is in the store at any
    /// time: this is one step of the store, or the new one is stored first. If the original was sent to several queues,
    /// only the one that it was received from gets the new one.
    ///
    /// The new one may have another id.
    ///
    /// A message that is gone was finished by another consumer (this one held it for longer than `redeliver_timeout`).
    /// It is skipped, and does not come back. A store that cannot look and replace in one step may miss that the other
    /// consumer finishes it in the same moment: it is then handled once more.
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError>;
}

/// Moves a message to another queue of the same store in one step: at any time it is in exactly one of the two.
#[async_trait]
pub trait Moving: Send + Sync {
    /// Moves the received message `id`, as `message` and due at once, to `destination`. Returns its id there, which may
    /// be another one.
    ///
    /// Returns `None`, with nothing done, if the destination is in another store or is missing: the caller then sends
    /// the message there, which creates the destination if that is allowed, and rejects it here. A destination that
    /// sending would create may also be created here.
    ///
    /// A message that is gone was finished by another consumer. It is skipped, as if it had been moved: the result is
    /// any id. What [`Retrying::retry`] says of the same moment holds here too.
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError>;

    /// The location of this queue, for [`Moving::move_to`] of another transport.
    fn place(&self) -> Place;
}

/// The location of a queue in its store. Each kind of store describes it in a type of its own, which no other can read.
#[derive(Clone)]
pub struct Place(Arc<dyn AnyPlace>);

/// What a [`Place`] holds.
trait AnyPlace: Any + fmt::Debug + Send + Sync {}

impl<T: Any + fmt::Debug + Send + Sync> AnyPlace for T {}

impl Place {
    /// A location, described in a store's own type.
    pub fn new<T: Any + fmt::Debug + Send + Sync>(place: T) -> Self {
        Self(Arc::new(place))
    }

    /// The description, if it is of this type; `None` if it is of another kind of store.
    pub fn get<T: Any>(&self) -> Option<&T> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! What a transport is: a sender, a receiver unless it only sends, and whatever else it can do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Connecting, Counting, KeepingAlive, Listing, MessageId, Moving, Prefetching, Queues, Received, Releasing, Parking,
    Retrying, Sent, SettingUp, TransportError, Waking,
};
use crate::message::Encoded;

/// Takes messages.
///
/// Called by many tasks at once. A call may be cancelled; then the message may have been stored or not.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Stores a message, due after `delay` and not before. When this returns [`Sent::Queued`], the message survives a crash
    /// of everything.
    ///
    /// - Body and headers come back from [`Receiver::receive`] as they are here. What the store cannot hold, ever, is
    ///   refused with [`TransportError::Unstorable`], and nothing is stored.
    /// - A delay may be of any length. One that is too long for the store ends as late as the store allows, or is refused
    ///   with [`TransportError::Unstorable`].
    /// - A table, stream or folder that is missing is created, or the answer is [`TransportError::NotSetUp`].
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError>;
}

/// Gives messages to consumers, and lets them go once they are handled.
///
/// Called by many tasks at once. A call may be cancelled; messages that a cancelled `receive` took are in flight, and
/// pending again after `redeliver_timeout`, never lost.
#[async_trait]
pub trait Receiver: Send + Sync {
    /// Takes up to `up_to` due messages, oldest first. They are in flight from then on: no other consumer receives them
    /// until they are released or `redeliver_timeout` is over.
    ///
    /// - Returns at once, with no messages when none is due, or when `up_to` is 0.
    /// - May return fewer than are due; some when some are due.
    /// - A store that is missing holds no messages, where sending creates it; otherwise the answer is
    ///   [`TransportError::NotSetUp`]. After this error, and after [`TransportError::Unsupported`], a worker stops. After
    ///   any other it tries again.
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError>;

    /// The messages were handled: they leave the store.
    ///
    /// Called with any number of ids, of messages that this receiver has received by one call or several. Every other id
    /// is passed over without an error: of a message that is gone, of another queue, of no message at all. The same holds
    /// for [`Receiver::reject`].
    ///
    /// A message that this receiver has held for longer than `redeliver_timeout` may be with another consumer. It was
    /// handled, so it leaves the store all the same, where the store allows that.
    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError>;

    /// The messages are given up, or are stored elsewhere by now: they leave the store.
    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError>;
}

/// A transport, as its [`Factory`](super::Factory) makes it: its parts, all but the sender optional.
///
/// What a transport cannot do is `None` here, and whoever needs it says so. One type may be all the parts:
///
/// ```
/// # use std::sync::Arc;
/// # use minutely::transport::{InMemory, Transport};
/// let store = Arc::new(InMemory::new("mail"));
/// let mut transport = Transport::queue("mail", store.clone());
/// transport.counting = Some(store.clone());
/// transport.listing = Some(store);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Transport {
    name: String,
    /// Takes messages.
    pub sender: Arc<dyn Sender>,
    /// Gives them to consumers. `None`: nothing can be consumed here.
    pub receiver: Option<Arc<dyn Receiver>>,
    /// Counts messages: for autoscaling, `stats` and `status`.
    pub counting: Option<Arc<dyn Counting>>,
    /// Creates tables, streams, exchanges: for `setup`.
    pub setting_up: Option<Arc<dyn SettingUp>>,
    /// Shows messages without taking them.
    pub listing: Option<Arc<dyn Listing>>,
    /// Puts back what was received. Without it, workers take one message at a time.
    pub releasing: Option<Arc<dyn Releasing>>,
    /// Holds messages in flight for longer than `redeliver_timeout`.
    pub keeping_alive: Option<Arc<dyn KeepingAlive>>,
    /// Counts messages that are parked after they failed for good, and makes them due again.
    pub parking: Option<Arc<dyn Parking>>,
    /// Wakes waiting consumers. Without it they poll.
    pub waking: Option<Arc<dyn Waking>>,
    /// Has messages sent ahead of asking for them.
    pub prefetching: Option<Arc<dyn Prefetching>>,
    /// Has several queues, of which a consumer may want some.
    pub queues: Option<Arc<dyn Queues>>,
    /// Holds a connection to a server.
    pub connecting: Option<Arc<dyn Connecting>>,
    /// Puts a message that failed back into its queue. Without it, a retry sends the message and rejects the received one.
    pub retrying: Option<Arc<dyn Retrying>>,
    /// Moves messages to another queue of the same store. Without it, moving is sending there and rejecting here.
    pub moving: Option<Arc<dyn Moving>>,
}

impl Transport {
    /// A transport that takes messages and from which none can be consumed.
    pub fn sender(name: impl Into<String>, sender: Arc<impl Sender + 'static>) -> Self {
        Self {
            name: name.into(),
            sender,
            receiver: None,
            counting: None,
            setting_up: None,
            listing: None,
            releasing: None,
            keeping_alive: None,
            parking: None,
            waking: None,
            prefetching: None,
            queues: None,
            connecting: None,
            retrying: None,
            moving: None,
        }
    }

    /// A transport that keeps messages for consumers.
    pub fn queue(name: impl Into<String>, queue: Arc<impl Sender + Receiver + 'static>) -> Self {
        Self { receiver: Some(Arc::clone(&queue) as Arc<dyn Receiver>), ..Self::sender(name, queue) }
    }

    /// The name it has in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.name)
    }
}

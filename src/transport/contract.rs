//! What a transport is: a sender, usually a receiver, and whatever else it can do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Addressing, Browsing, Connecting, Counting, KeepingAlive, Listing, MessageId, Migrating, Moving, Parking,
    Prefetching, Received, Releasing, Retrying, Sent, SettingUp, Taking, TransportError, Waking,
};
use crate::connection::sql::CallersConnection;
use crate::message::{AmqpStamp, Encoded, Envelope};
use crate::serializer::Serializer;

/// Stores messages in a queue.
///
/// Called by many tasks at once. A call may be cancelled; the message may then be stored or not.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Stores a message, due after `delay` and not before: a store that keeps times in milliseconds or seconds rounds
    /// up. Once this returns [`Sent::Queued`], the message survives a
    /// crash of any process.
    ///
    /// - [`Receiver::receive`] returns body and headers unchanged. A message that the store can never hold is refused
    ///   with [`TransportError::Unstorable`], and nothing is stored.
    /// - A delay may be of any length. If the store does not allow it, it ends as late as the store allows, or the
    ///   message is refused with [`TransportError::Unstorable`].
    /// - A missing table, stream or folder is created, or the result is [`TransportError::NotSetUp`].
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError>;

    /// Stores many messages, for a store that does so in fewer steps than by [`send`](Self::send) one after the other.
    ///
    /// - Returns a result for each message, in their order. What holds for `send` holds for each of them: one that the store
    ///   can never hold does not keep the others from it.
    /// - Those that are due at the same time are received in their order.
    /// - Whether they are stored in one step is left to the store. After an error that concerns them all (there is no
    ///   connection, for example) it need not try the rest, and tells them the same error.
    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        let mut results = Vec::with_capacity(messages.len());
        for ToSend { message, delay } in messages {
            results.push(self.send(message, *delay).await);
        }
        results
    }
}

/// Stores messages in transactions that the caller has begun, on connections of its own.
#[async_trait]
pub(crate) trait Enlisting: Send + Sync {
    /// Stores a message. It exists when the transaction is committed.
    async fn send_in(
        &self,
        connection: CallersConnection<'_>,
        message: &Encoded,
        delay: Duration,
    ) -> Result<Sent, TransportError>;
}

/// A message for [`Sender::send_all`].
#[derive(Debug, Clone, PartialEq)]
pub struct ToSend {
    /// The message.
    pub message: Encoded,
    /// It is due after this time.
    pub delay: Duration,
}

/// Delivers messages to consumers, and removes them when they were handled.
///
/// Called by many tasks at once. A call may be cancelled; messages that a cancelled `receive` has taken are in flight,
/// and pending again after `redeliver_timeout`. They are never lost.
#[async_trait]
pub trait Receiver: Send + Sync {
    /// Takes up to `up_to` due messages, oldest first. From then on they are in flight: no other consumer receives them
    /// until they are released, or `redeliver_timeout` is over.
    ///
    /// - Returns at once, with no messages if none is due or `up_to` is 0.
    /// - May return fewer than are due, but at least one if any is due.
    /// - A missing store holds no messages if sending creates it; otherwise the result is [`TransportError::NotSetUp`].
    ///   A worker stops after this error and after [`TransportError::Unsupported`]. After any other error it tries
    ///   again.
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError>;

    /// Removes messages that were handled.
    ///
    /// Called with any number of ids of messages that this receiver has received, in one call or several. Ids are
    /// skipped without an error if the message is gone, or is in another queue, or if they are no ids at all. The same
    /// holds for [`Receiver::reject`].
    ///
    /// After `redeliver_timeout` the message may be pending again, or another consumer may have it too. It was handled,
    /// so it is removed all the same, if the store allows that. So a store need not know whether a pending message was
    /// received before: no one calls this for a message that was not.
    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError>;

    /// Removes messages that are given up, or stored elsewhere by now.
    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError>;
}

/// Receives from several queues.
pub trait Queues: Send + Sync {
    /// Their names, in the order in which they are received from.
    fn names(&self) -> Vec<String>;

    /// The same transport, but receiving from and counting only these queues.
    fn only(&self, names: &[String]) -> Transport;
}

/// A transport, as its [`Factory`](super::Factory) creates it: a sender, and optional parts.
///
/// A part is `None` if the transport cannot do it; whoever needs it then reports an error. One type may implement all
/// parts:
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
    /// Stores messages.
    pub sender: Arc<dyn Sender>,
    /// Sends with a routing key and properties of AMQP. Without it, such stamps mean nothing.
    pub addressing: Option<Arc<dyn Addressing>>,
    /// Delivers them to consumers. `None`: nothing can be consumed here.
    pub receiver: Option<Arc<dyn Receiver>>,
    /// Counts messages: for autoscaling, `stats` and `status`.
    pub counting: Option<Arc<dyn Counting>>,
    /// Creates tables, streams, exchanges: for `setup`.
    pub setting_up: Option<Arc<dyn SettingUp>>,
    /// Brings tables up to date, and prints their SQL: for `setup`.
    pub migrating: Option<Arc<dyn Migrating>>,
    /// Shows messages without receiving them.
    pub listing: Option<Arc<dyn Listing>>,
    /// Receives messages that are known by their ids: for `failed retry`.
    pub taking: Option<Arc<dyn Taking>>,
    /// Goes through messages without ids: for `failed`, where there is no `listing`.
    pub browsing: Option<Arc<dyn Browsing>>,
    /// Releases received messages. Without it, workers receive one message at a time.
    pub releasing: Option<Arc<dyn Releasing>>,
    /// Keeps messages in flight for longer than `redeliver_timeout`.
    pub keeping_alive: Option<Arc<dyn KeepingAlive>>,
    /// Counts messages that are parked after they failed for good, and makes them due again.
    pub parking: Option<Arc<dyn Parking>>,
    /// Wakes waiting consumers. Without it they poll.
    pub waking: Option<Arc<dyn Waking>>,
    /// Fetches messages before they are needed.
    pub prefetching: Option<Arc<dyn Prefetching>>,
    /// Has several queues, some of which a consumer may select.
    pub queues: Option<Arc<dyn Queues>>,
    /// Holds a connection to a server.
    pub connecting: Option<Arc<dyn Connecting>>,
    /// Puts a message that failed back into its queue. Without it, a retry sends the message and rejects the received
    /// one.
    pub retrying: Option<Arc<dyn Retrying>>,
    /// Moves messages to another queue of the same store. Without it, moving is sending there and rejecting here.
    pub moving: Option<Arc<dyn Moving>>,
    /// Stores messages in transactions of the caller's.
    pub(crate) enlisting: Option<Arc<dyn Enlisting>>,
    /// Writes its new messages. `None`: as JSON, or as another transport writes them to which this one passes them on.
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
}

impl Transport {
    /// A transport from which nothing can be consumed.
    pub fn sender(name: impl Into<String>, sender: Arc<impl Sender + 'static>) -> Self {
        Self {
            name: name.into(),
            sender,
            addressing: None,
            receiver: None,
            counting: None,
            setting_up: None,
            migrating: None,
            listing: None,
            taking: None,
            browsing: None,
            releasing: None,
            keeping_alive: None,
            parking: None,
            waking: None,
            prefetching: None,
            queues: None,
            connecting: None,
            retrying: None,
            moving: None,
            enlisting: None,
            serializer: None,
        }
    }

    /// A transport that stores messages for consumers.
    pub fn queue(name: impl Into<String>, queue: Arc<impl Sender + Receiver + 'static>) -> Self {
        Self { receiver: Some(Arc::clone(&queue) as Arc<dyn Receiver>), ..Self::sender(name, queue) }
    }

    /// Sends a new message, in the form that this transport has.
    pub(crate) async fn send(&self, envelope: &Envelope, delay: Duration) -> Result<Sent, TransportError> {
        self.send_encoded(&self.encode(envelope)?, delay, envelope.last::<AmqpStamp>().as_ref()).await
    }

    /// Sends new messages, together where the store can do that. Returns a result for each, in their order.
    pub(crate) async fn send_all(&self, messages: Vec<(Envelope, Duration)>) -> Vec<Result<Sent, TransportError>> {
        let mut results = Vec::with_capacity(messages.len());
        let mut together = Vec::with_capacity(messages.len());
        for (envelope, delay) in messages {
            let stamp = self.addressing.as_ref().and_then(|to| Some((to, envelope.last::<AmqpStamp>()?)));
            let alone = match (self.encode(&envelope), stamp) {
                (Ok(message), None) => {
                    together.push(ToSend { message, delay });
                    continue;
                }
                (Ok(message), Some(with)) => Ok((message, with)),
                (Err(error), _) => Err(error),
            };
            results.extend(self.send_together(&std::mem::take(&mut together)).await);
            results.push(match alone {
                Ok((message, (addressing, stamp))) => addressing.send_with(&message, delay, &stamp).await,
                Err(error) => Err(error),
            });
        }
        results.extend(self.send_together(&together).await);
        results
    }

    /// Passes on new messages that are still in the form of [`Envelope::encode`]. Returns a result for each, in their order.
    pub(crate) async fn pass_on_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        if self.serializer.is_none() {
            return self.send_together(messages).await;
        }
        let (mut results, mut together) = (Vec::with_capacity(messages.len()), Vec::new());
        for ToSend { message, delay } in messages {
            let envelope = Envelope::decode(message).map_err(|error| self.unwritable(&error));
            match envelope.and_then(|envelope| self.encode(&envelope)) {
                Ok(message) => together.push(ToSend { message, delay: *delay }),
                Err(error) => {
                    results.extend(self.send_together(&std::mem::take(&mut together)).await);
                    results.push(Err(error));
                }
            }
        }
        results.extend(self.send_together(&together).await);
        results
    }

    /// Stores a new message in a transaction of the caller's.
    pub(crate) async fn send_in(
        &self,
        connection: CallersConnection<'_>,
        envelope: &Envelope,
        delay: Duration,
    ) -> Result<Sent, TransportError> {
        let enlisting = self.enlisting.as_ref().ok_or_else(|| TransportError::Unsupported {
            transport: self.name.clone(),
            what: "store messages in a transaction",
            why: "it is no queue in a table of the same database",
        })?;
        enlisting.send_in(connection, &self.encode(envelope)?, delay).await
    }

    async fn send_together(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        if let [ToSend { message, delay }] = messages {
            return vec![self.sender.send(message, *delay).await];
        }
        if messages.is_empty() {
            return Vec::new();
        }
        let mut results = self.sender.send_all(messages).await;
        // An application's own transport may be wrong about this, and a message without a result would be taken for another.
        if results.len() != messages.len() {
            let (expected, found) = (messages.len(), results.len());
            let error = || {
                let text = format!("`send_all` was given {expected} messages, and has {found} results");
                Err(TransportError::store(&self.name, "sending", std::io::Error::other(text)))
            };
            results = messages.iter().map(|_| error()).collect();
        }
        results
    }

    /// Passes on a new message that is still in the form of [`Envelope::encode`].
    pub(crate) async fn pass_on(
        &self,
        message: &Encoded,
        delay: Duration,
        stamp: Option<&AmqpStamp>,
    ) -> Result<Sent, TransportError> {
        if self.serializer.is_none() {
            return self.send_encoded(message, delay, stamp).await;
        }
        let envelope = Envelope::decode(message).map_err(|error| self.unwritable(&error))?;
        self.send_encoded(&self.encode(&envelope)?, delay, stamp).await
    }

    async fn send_encoded(
        &self,
        message: &Encoded,
        delay: Duration,
        stamp: Option<&AmqpStamp>,
    ) -> Result<Sent, TransportError> {
        match (&self.addressing, stamp) {
            (Some(addressing), Some(stamp)) => addressing.send_with(message, delay, stamp).await,
            _ => self.sender.send(message, delay).await,
        }
    }

    fn encode(&self, envelope: &Envelope) -> Result<Encoded, TransportError> {
        match &self.serializer {
            Some(serializer) => serializer.encode(envelope).map_err(|error| self.unwritable(&error)),
            None => Ok(envelope.encode()),
        }
    }

    fn unwritable(&self, error: &dyn fmt::Display) -> TransportError {
        TransportError::Unwritable { transport: self.name.clone(), why: error.to_string() }
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

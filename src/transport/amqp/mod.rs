//! `amqp:`: queues of a broker that speaks AMQP 0-9-1, RabbitMQ for example, with the exchanges, queues and headers
//! that Symfony Messenger's AMQP transport uses.
//!
//! Messages are sent to an exchange, which puts them into the queues that are bound to it, and are received from those
//! queues. The broker knows which connection has which message in flight, and requeues it when that connection ends:
//! there is no `redeliver_timeout`. There are no transactions to move a message with, so a message that is retried is
//! first sent and then acknowledged.

mod browsing;
mod consuming;
mod fetching;
mod message_properties;
mod options;
mod parking;
mod publishing;
mod tags;
mod topology;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lapin::types::ShortString;
use tokio::sync::Mutex;

use self::consuming::{ConsumedQueue, Consuming, HandedOut, Held};
use self::publishing::{Outgoing, Publishing, To};
use self::topology::Topology;
use super::{
    Addressing, Connecting, Counting, Counts, Delivery, Factory, FactoryContext, MessageId, Prefetching, Queues,
    Receipt, Received, Receiver, Releasing, Retrying, Sender, Sent, SettingUp, ToSend, Transport, TransportError,
    TransportSpec, Waking,
};
use crate::config::{Definition, Problem};
use crate::connection::amqp::{AmqpConnection, AmqpFailure};
use crate::connection::{self, Connections, StoreKind};
use crate::message::{AmqpStamp, Encoded};

/// A waiting consumer polls after this time in any case, to notice a connection that broke without an error.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// The most messages that are sent before the broker's answers are waited for.
const CHUNK: usize = 1024;

/// An exchange and its queues.
pub(crate) struct Amqp {
    name: String,
    topology: Arc<Topology>,
    /// The queues that are consumed and counted.
    queues: Vec<ShortString>,
    connection: Arc<AmqpConnection>,
    publishing: Arc<Publishing>,
    consuming: Mutex<Option<Arc<Consuming>>>,
    /// Receives from where messages are parked.
    parked: Mutex<Option<Arc<Consuming>>>,
    /// Whether messages may be prefetched.
    ahead: AtomicBool,
}

/// What becomes of messages in flight.
#[derive(Clone, Copy)]
enum Settlement {
    Ack,
    Reject,
    Requeue,
}

impl Amqp {
    fn new(name: &str, topology: Topology, connection: Arc<AmqpConnection>) -> Self {
        let topology = Arc::new(topology);
        Self {
            name: name.to_owned(),
            queues: topology.queues.iter().map(|queue| queue.name.clone()).collect(),
            publishing: Arc::new(Publishing::new(Arc::clone(&connection), Arc::clone(&topology))),
            topology,
            connection,
            consuming: Mutex::new(None),
            parked: Mutex::new(None),
            ahead: AtomicBool::new(false),
        }
    }

    fn error(&self, action: &'static str, failure: AmqpFailure) -> TransportError {
        if failure.is_missing() {
            let what = format!("{}: {}", self.connection.location(), failure.reason());
            return TransportError::NotSetUp { transport: self.name.clone(), what };
        }
        TransportError::store(&self.name, action, failure)
    }

    /// The channel to receive on.
    async fn consuming(&self) -> Result<Arc<Consuming>, AmqpFailure> {
        let mut consuming = self.consuming.lock().await;
        if let Some(open) = consuming.as_ref().filter(|consuming| consuming.is_open()) {
            return Ok(Arc::clone(open));
        }
        *consuming = None;
        let channel = self.connection.channel().await?;
        if self.topology.auto_setup {
            publishing::set_up(&channel, &self.topology).await.map_err(|error| self.connection.failure(error))?;
        }
        let most = self.topology.prefetch.map_or(fetching::MAX_PREFETCH, usize::from);
        let open = Arc::new(Consuming::new(channel, self.consumed_queues(), most));
        *consuming = Some(Arc::clone(&open));
        Ok(open)
    }

    fn consumed_queues(&self) -> Vec<ConsumedQueue> {
        let is_deleted = |name: &ShortString| {
            self.topology.queues.iter().any(|queue| queue.name == *name && queue.flags.auto_delete)
        };
        self.queues
            .iter()
            .map(|name| ConsumedQueue { name: name.clone(), pushes: !is_deleted(name), parks_for: None })
            .collect()
    }

    /// Gives up a channel after an error. The broker requeues the messages that were received on it.
    async fn broken(&self, broken: &Arc<Consuming>) {
        for place in [&self.consuming, &self.parked] {
            let mut consuming = place.lock().await;
            if consuming.as_ref().is_some_and(|consuming| Arc::ptr_eq(consuming, broken)) {
                *consuming = None;
            }
        }
    }

    /// The channels on which messages may be in flight.
    async fn open(&self) -> Vec<Arc<Consuming>> {
        let mut open = Vec::new();
        for place in [&self.consuming, &self.parked] {
            open.extend(place.lock().await.clone());
        }
        open
    }

    /// What is known of a message in flight. `None` if its channel is gone, and the broker has requeued it.
    async fn held(&self, id: &MessageId) -> Option<Held> {
        self.open().await.iter().filter(|consuming| consuming.is_open()).find_map(|consuming| consuming.held(id))
    }

    /// Acknowledges or refuses messages in flight. On a channel that is gone, there are none any more.
    async fn settle(
        &self,
        action: &'static str,
        ids: &[MessageId],
        settlement: Settlement,
    ) -> Result<(), TransportError> {
        if ids.is_empty() {
            return Ok(());
        }
        for open in self.open().await {
            let settled = match settlement {
                // The dead-letter exchange of a queue for parked messages would make them due.
                Settlement::Reject if !open.is_of_parked() => open.nack(ids, false).await,
                Settlement::Ack | Settlement::Reject => open.ack(ids).await,
                Settlement::Requeue => open.nack(ids, true).await,
            };
            if let Err(error) = settled {
                let failure = self.connection.failure(error);
                tracing::warn!(
                    transport = self.name,
                    messages = ids.len(),
                    "{action} failed, and the broker requeues the messages: {failure}"
                );
                self.broken(&open).await;
            }
        }
        Ok(())
    }

    async fn publish(
        &self,
        to: To<'_>,
        message: &Encoded,
        before: Option<&lapin::BasicProperties>,
        delay: Duration,
    ) -> Result<Sent, TransportError> {
        let properties = message_properties::of(&self.name, message, before)?;
        let sent = self.publishing.publish(to, &message.body, properties, delay).await;
        self.sent(sent)
    }

    fn sent(&self, sent: Result<(), AmqpFailure>) -> Result<Sent, TransportError> {
        sent.map_err(|failure| self.error("sending", failure))?;
        // The broker issues no id. This one is only unique.
        let id = MessageId(format!("sent-{:016x}", fastrand::u64(..)));
        Ok(Sent::Queued { transport: self.name.clone(), id, reason: None })
    }

    /// The broker has no longer delays than this.
    fn check_delay(&self, delay: Duration) -> Result<(), TransportError> {
        let longest = self.topology.delays.longest();
        if delay.as_millis() <= longest.into() {
            return Ok(());
        }
        let days = longest / 86_400_000;
        let why = format!("it is delayed for more than {days} days, which is the broker's limit");
        Err(TransportError::Unstorable { transport: self.name.clone(), why })
    }
}

impl Amqp {
    /// Stores a message, as the stamp says if there is one.
    async fn send_as(
        &self,
        message: &Encoded,
        delay: Duration,
        stamp: Option<&AmqpStamp>,
    ) -> Result<Sent, TransportError> {
        self.check_delay(delay)?;
        let Some(stamp) = stamp else { return self.publish(To::Exchange, message, None, delay).await };
        let unstorable = |why: String| TransportError::Unstorable { transport: self.name.clone(), why };
        let properties = message_properties::of_stamp(&stamp.attributes, !delay.is_zero()).map_err(unstorable)?;
        let mut message = message.clone();
        message.headers.extend(&stamp.attributes.headers);
        let key = stamp.routing_key.as_ref().map(ShortString::try_new).transpose();
        let key = key.map_err(|_| unstorable("its routing key is longer than 255 bytes".to_owned()))?;
        self.publish(key.map_or(To::Exchange, To::Key), &message, Some(&properties), delay).await
    }
}

#[async_trait]
impl Sender for Amqp {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        self.send_as(message, delay, None).await
    }

    /// Up to [`CHUNK`] messages are sent before the broker has confirmed the first.
    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        let mut results: Vec<Option<Result<Sent, TransportError>>> = messages.iter().map(|_| None).collect();
        let mut outgoing = Vec::with_capacity(messages.len().min(CHUNK));
        let mut places = Vec::with_capacity(messages.len().min(CHUNK));
        for (n, ToSend { message, delay }) in messages.iter().enumerate() {
            let properties = self.check_delay(*delay).and_then(|()| message_properties::of(&self.name, message, None));
            match properties {
                Ok(properties) => {
                    outgoing.push(Outgoing { body: &message.body, properties, delay: *delay });
                    places.push(n);
                }
                Err(error) => results[n] = Some(Err(error)),
            }
            if outgoing.len() == CHUNK || n + 1 == messages.len() {
                let sent = self.publishing.publish_all(&std::mem::take(&mut outgoing)).await;
                for (n, sent) in std::mem::take(&mut places).into_iter().zip(sent) {
                    results[n] = Some(self.sent(sent));
                }
            }
        }
        // Each has a result by now: it was refused above, or was in a chunk.
        results.into_iter().flatten().collect()
    }
}

#[async_trait]
impl Addressing for Amqp {
    async fn send_with(&self, message: &Encoded, delay: Duration, stamp: &AmqpStamp) -> Result<Sent, TransportError> {
        self.send_as(message, delay, Some(stamp)).await
    }
}

#[async_trait]
impl Receiver for Amqp {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let action = "receiving";
        if up_to == 0 {
            return Ok(Vec::new());
        }
        if self.queues.is_empty() {
            let transport = self.name.clone();
            let (what, why) = ("be consumed", "`queues: []` leaves it none to receive from");
            return Err(TransportError::Unsupported { transport, what, why });
        }
        let consuming = self.consuming().await.map_err(|failure| self.error(action, failure))?;
        match consuming.take(up_to, self.ahead.load(Ordering::Relaxed)).await {
            Ok(taken) => Ok(taken.into_iter().map(received).collect()),
            Err(error) => {
                self.broken(&consuming).await;
                Err(self.error(action, self.connection.failure(error)))
            }
        }
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.settle("acknowledging", ids, Settlement::Ack).await
    }

    /// The messages go to the queue's dead-letter exchange, if it has one, as with Symfony.
    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.settle("rejecting", ids, Settlement::Reject).await
    }
}

#[async_trait]
impl Retrying for Amqp {
    /// Only to the queue that it came from. The message is first sent and then rejected, as with Symfony.
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let delay = delay.min(Duration::from_millis(self.topology.delays.longest()));
        // Otherwise it was requeued with its channel, and is delivered again.
        if let Some(held) = self.held(id).await {
            self.publish(To::Queue(&held.queue), message, Some(&held.properties), delay).await?;
        }
        self.reject(std::slice::from_ref(id)).await
    }
}

#[async_trait]
impl Counting for Amqp {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        let action = "counting";
        // A channel of its own, because the broker closes it if a queue does not exist.
        let channel = self.connection.channel().await.map_err(|failure| self.error(action, failure))?;
        match consuming::count(&channel, &self.queues).await.map_err(|error| self.connection.failure(error)) {
            Ok(count) => {
                let _ = channel.close(200, "counted".into()).await;
                Ok(count.min(cap))
            }
            Err(failure) if failure.is_missing() && self.topology.auto_setup => Ok(0),
            Err(failure) => Err(self.error(action, failure)),
        }
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        Ok(Counts { pending: self.pending(cap).await?, ..Counts::default() })
    }

    fn counts_pending_only(&self) -> bool {
        true
    }
}

#[async_trait]
impl SettingUp for Amqp {
    async fn setup(&self) -> Result<(), TransportError> {
        self.publishing.set_up().await.map_err(|failure| self.error("setting up", failure))
    }
}

#[async_trait]
impl Releasing for Amqp {
    /// Releases messages of this process. The broker requeues those of processes that have ended.
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError> {
        let ids: Vec<MessageId> = deliveries.iter().map(|delivery| delivery.id.clone()).collect();
        self.settle("releasing", &ids, Settlement::Requeue).await
    }
}

#[async_trait]
impl Prefetching for Amqp {
    fn fetch_ahead(&self, allowed: bool) {
        self.ahead.store(allowed, Ordering::Relaxed);
    }

    async fn stop_fetching(&self) -> Result<Vec<Received>, TransportError> {
        self.fetch_ahead(false);
        let Some(consuming) = self.consuming.lock().await.clone() else { return Ok(Vec::new()) };
        match consuming.stop().await {
            Ok(taken) => Ok(taken.into_iter().map(received).collect()),
            Err(error) => {
                self.broken(&consuming).await;
                Err(self.error("receiving", self.connection.failure(error)))
            }
        }
    }
}

fn received(taken: HandedOut) -> Received {
    let message = message_properties::to_message(taken.data, &taken.properties);
    // The id already identifies the delivery.
    Received { id: taken.id, receipt: Receipt::default(), message: Ok(message) }
}

#[async_trait]
impl Waking for Amqp {
    async fn wake(&self) -> Result<(), TransportError> {
        // An error of the channel is reported by the next poll.
        if let Ok(consuming) = self.consuming().await
            && let Err(error) = consuming.wait().await
        {
            let failure = self.connection.failure(error);
            tracing::warn!(transport = self.name, "the broker requeues the messages in flight: {failure}");
            self.broken(&consuming).await;
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        if self.consumed_queues().iter().any(|queue| !queue.pushes) {
            return None;
        }
        let consuming = self.consuming.try_lock().ok()?;
        consuming.as_ref().filter(|consuming| consuming.is_open()).map(|_| POLL_INTERVAL)
    }
}

impl Queues for Amqp {
    fn names(&self) -> Vec<String> {
        self.queues.iter().map(|queue| queue.as_str().to_owned()).collect()
    }

    fn only(&self, names: &[String]) -> Transport {
        let queues = self.queues.iter().filter(|queue| names.iter().any(|name| name == queue.as_str())).cloned();
        let narrowed = Self {
            name: self.name.clone(),
            topology: Arc::clone(&self.topology),
            queues: queues.collect(),
            connection: Arc::clone(&self.connection),
            publishing: Arc::clone(&self.publishing),
            consuming: Mutex::new(None),
            parked: Mutex::new(None),
            ahead: AtomicBool::new(false),
        };
        narrowed.into_transport()
    }
}

#[async_trait]
impl Connecting for Amqp {
    fn server(&self) -> &str {
        self.connection.location().server()
    }

    fn connection(&self) -> &str {
        self.connection.location().as_str()
    }

    /// AMQP does not report it.
    async fn limit(&self) -> Result<Option<u64>, TransportError> {
        Ok(None)
    }

    fn close_idle(&self) {
        self.publishing.close_idle();
        for place in [&self.consuming, &self.parked] {
            if let Ok(mut consuming) = place.try_lock() {
                *consuming = None;
            }
        }
        self.connection.close_idle();
    }

    /// The broker does not confirm acknowledgements. It confirms that the channel is closed, after everything that was
    /// sent before. A process that ends without waiting for this may lose its last acknowledgements.
    async fn close(&self) {
        // While another task opens it, there is nothing to close.
        for place in [&self.consuming, &self.parked] {
            let open = place.try_lock().ok().and_then(|mut consuming| consuming.take());
            if let Some(open) = open {
                open.close().await;
            }
        }
    }
}

impl Amqp {
    fn into_transport(self) -> Transport {
        let queues = Arc::new(self);
        let mut transport = Transport::queue(&queues.name, Arc::clone(&queues));
        transport.counting = Some(queues.clone());
        transport.setting_up = Some(queues.clone());
        transport.releasing = Some(queues.clone());
        transport.parking = Some(queues.clone());
        transport.browsing = Some(queues.clone());
        transport.waking = Some(queues.clone());
        transport.prefetching = Some(queues.clone());
        transport.queues = Some(queues.clone());
        transport.connecting = Some(queues.clone());
        transport.addressing = Some(queues.clone());
        transport.retrying = Some(queues);
        transport
    }
}

/// Creates the transports of `amqp:`. Those on one virtual host share one connection.
#[derive(Default)]
pub(super) struct AmqpFactory {
    connections: Connections,
}

impl AmqpFactory {
    pub(super) fn new(connections: &Connections) -> Self {
        Self { connections: connections.clone() }
    }
}

impl Factory for AmqpFactory {
    fn schemes(&self) -> &'static [&'static str] {
        StoreKind::Amqp.schemes()
    }

    fn options(&self) -> Vec<Definition> {
        [&options::OPTIONS[..], &connection::amqp::OPTIONS].concat()
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let (address, topology) = options::read(spec, &mut options);
        options.finish()?;
        Ok(Amqp::new(&spec.name, topology, self.connections.amqp(address)).into_transport())
    }
}

//! Sends messages, with publisher confirms, and declares the queues in which delayed messages wait.
//!
//! A delayed message is published to a queue for its delay, from which the broker moves it on when it is due. The names
//! and arguments are Symfony's, so that both sides use the same queues.

mod bulk;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind};
use tokio::sync::Semaphore;

pub(super) use self::bulk::Outgoing;

use super::topology::Topology;
use crate::connection::amqp::{AmqpConnection, AmqpFailure};

/// So many messages, or groups of messages, are sent at the same time.
const CHANNELS: usize = 16;

/// Channels for sending. Opened when they are needed, and again after they were closed.
///
/// Each is used by one caller at a time: of several messages that are under way on a channel, the driver may mix up which the
/// broker has returned. A channel on which an answer is still to come is not used again.
pub(super) struct Publishing {
    connection: Arc<AmqpConnection>,
    topology: Arc<Topology>,
    idle: Mutex<Vec<Channel>>,
    places: Semaphore,
}

/// Where a message is sent.
pub(super) enum To<'a> {
    /// To the exchange, with its default routing key.
    Exchange,
    /// To the exchange, with this routing key.
    Key(ShortString),
    /// Back to one queue.
    Queue(&'a ShortString),
}

impl Publishing {
    pub(super) fn new(connection: Arc<AmqpConnection>, topology: Arc<Topology>) -> Self {
        Self { connection, topology, idle: Mutex::default(), places: Semaphore::new(CHANNELS) }
    }

    /// Returns when the broker has confirmed the message, which then is on its disk.
    pub(super) async fn publish(
        &self,
        to: To<'_>,
        body: &[u8],
        properties: BasicProperties,
        delay: Duration,
    ) -> Result<(), AmqpFailure> {
        let _place = self.places.acquire().await;
        let channel = self.channel().await?;
        let again = matches!(to, To::Queue(_));
        let (exchange, key) = self.address(to);
        let (exchange, key) = match millis(delay) {
            0 => (exchange, key),
            millis => (
                self.topology.delays.exchange.clone(),
                self.delay_queue(&channel, millis, &exchange, &key, again).await?,
            ),
        };
        let unroutable = self.unroutable(&exchange, &key);
        let confirmed = async {
            let confirmation = channel.basic_publish(exchange, key, mandatory(), body, properties).await?;
            confirmation.await
        };
        match tokio::time::timeout(self.topology.confirm_timeout, confirmed).await {
            Ok(confirmed) => {
                self.idle().push(channel.clone());
                match confirmed {
                    Ok(Confirmation::Ack(Some(_))) => Err(unroutable),
                    confirmed => self.outcome(confirmed),
                }
            }
            Err(_) => Err(self.unconfirmed()),
        }
    }

    /// Declares everything.
    pub(super) async fn set_up(&self) -> Result<(), AmqpFailure> {
        let channel = self.open().await?;
        set_up(&channel, &self.topology).await.map_err(|error| self.connection.failure(error))?;
        set_up_delays(&channel, &self.topology).await.map_err(|error| self.connection.failure(error))
    }

    /// Drops the channels.
    pub(super) fn close_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        // A panic while the lock is held leaves nothing half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self, to: To<'_>) -> (ShortString, ShortString) {
        let exchange = &self.topology.exchange;
        match to {
            To::Exchange => (exchange.name.clone(), exchange.routing_key.clone()),
            To::Key(key) => (exchange.name.clone(), key),
            To::Queue(queue) => (ShortString::default(), queue.clone()),
        }
    }

    /// What the broker's answer means. Whether the message could be routed is looked at before.
    fn outcome(&self, confirmed: lapin::Result<Confirmation>) -> Result<(), AmqpFailure> {
        match confirmed {
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(Confirmation::Nack(_)) => {
                Err(self.own("the broker refused the message: a queue may be full (x-max-length)"))
            }
            Ok(Confirmation::NotRequested) => Err(self.own("the broker does not confirm messages")),
            Err(error) => Err(self.connection.failure(error)),
        }
    }

    fn unconfirmed(&self) -> AmqpFailure {
        let seconds = self.topology.confirm_timeout.as_secs_f32();
        self.own(format!("the broker did not confirm the message within {seconds} seconds"))
    }

    fn unroutable(&self, exchange: &ShortString, key: &ShortString) -> AmqpFailure {
        self.own(format!("no queue takes messages from exchange \"{exchange}\" with routing key \"{key}\""))
    }

    fn own(&self, reason: impl Into<String>) -> AmqpFailure {
        AmqpFailure::own(self.connection.location(), reason)
    }

    /// A channel that nobody else uses. A new one declares exchange and queues first if `auto_setup` is on.
    async fn channel(&self) -> Result<Channel, AmqpFailure> {
        let idle = {
            let mut idle = self.idle();
            idle.retain(|channel| channel.status().connected());
            idle.pop()
        };
        if let Some(channel) = idle {
            return Ok(channel);
        }
        let channel = self.open().await?;
        if self.topology.auto_setup {
            set_up(&channel, &self.topology).await.map_err(|error| self.connection.failure(error))?;
        }
        Ok(channel)
    }

    async fn open(&self) -> Result<Channel, AmqpFailure> {
        let channel = self.connection.channel().await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirm.map_err(|error| self.connection.failure(error))?;
        Ok(channel)
    }

    /// Declares the queue for a delay, which restarts its expiry, and returns its routing key.
    async fn delay_queue(
        &self,
        channel: &Channel,
        millis: u64,
        exchange: &ShortString,
        key: &ShortString,
        again: bool,
    ) -> Result<ShortString, AmqpFailure> {
        let name = self.topology.delay_queue(millis, key.as_str(), again);
        let name = ShortString::try_new(name).map_err(|_| {
            self.own("the name of the queue for this delay is longer than 255 bytes: shorten queue_name_pattern")
        })?;
        let arguments = self.topology.delays.queue_arguments(millis, exchange, key);
        let declare = async {
            if self.topology.auto_setup {
                set_up_delays(channel, &self.topology).await?;
            }
            channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), arguments).await?;
            let (delays, options) = (self.topology.delays.exchange.clone(), QueueBindOptions::default());
            channel.queue_bind(name.clone(), delays, name.clone(), options, FieldTable::default()).await
        };
        declare.await.map_err(|error| self.connection.failure(error))?;
        Ok(name)
    }
}

/// Mandatory: a message that cannot be routed is returned, and not dropped.
fn mandatory() -> BasicPublishOptions {
    BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() }
}

/// Rounded up, so that the delay is never cut short.
fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Declares exchange and queues, and binds them.
pub(super) async fn set_up(channel: &Channel, topology: &Topology) -> lapin::Result<()> {
    let exchange = &topology.exchange;
    if !exchange.name.as_str().is_empty() {
        let options = ExchangeDeclareOptions {
            durable: exchange.flags.durable,
            auto_delete: exchange.flags.auto_delete,
            internal: exchange.flags.internal,
            ..ExchangeDeclareOptions::default()
        };
        let (name, kind) = (exchange.name.clone(), exchange.kind.clone());
        channel.exchange_declare(name, kind, options, exchange.arguments.clone()).await?;
    }
    for binding in &exchange.bindings {
        for key in &binding.keys {
            let (this, source, arguments) = (exchange.name.clone(), binding.source.clone(), binding.arguments.clone());
            channel.exchange_bind(this, source, key.clone(), ExchangeBindOptions::default(), arguments).await?;
        }
    }
    for queue in &topology.queues {
        let options = QueueDeclareOptions {
            durable: queue.flags.durable,
            exclusive: queue.flags.exclusive,
            auto_delete: queue.flags.auto_delete,
            ..QueueDeclareOptions::default()
        };
        channel.queue_declare(queue.name.clone(), options, queue.arguments.clone()).await?;
        // The default exchange is bound to every queue.
        let keys = queue.binding_keys.iter().filter(|_| !exchange.name.as_str().is_empty());
        for key in keys {
            let (name, exchange, arguments) =
                (queue.name.clone(), exchange.name.clone(), queue.binding_arguments.clone());
            channel.queue_bind(name, exchange, key.clone(), QueueBindOptions::default(), arguments).await?;
        }
    }
    Ok(())
}

async fn set_up_delays(channel: &Channel, topology: &Topology) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(topology.delays.exchange.clone(), ExchangeKind::Direct, options, FieldTable::default())
        .await
}

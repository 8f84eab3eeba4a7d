//! The exchange, the queues and the delays of a transport.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// A delay queue expires this many milliseconds after its delay, counted from when it was last declared.
const EXPIRES_AFTER: u64 = 10_000;
/// Milliseconds by which daily queues outlive their delay.
const DAY: u64 = 24 * 60 * 60 * 1000;

/// The longest `x-expires` that RabbitMQ accepts since 3.10, in milliseconds: ten years.
const LONGEST_EXPIRY: u64 = 315_360_000_000;

/// Where messages are sent to, and received from.
#[derive(Clone)]
pub(super) struct Topology {
    pub(super) exchange: Exchange,
    pub(super) queues: Vec<Queue>,
    /// The queues for delayed messages.
    pub(super) delays: Delays,
    pub(super) auto_setup: bool,
    pub(super) confirm_timeout: Duration,
    /// The most messages to prefetch.
    pub(super) prefetch: Option<u16>,
}

#[derive(Clone)]
pub(super) struct Exchange {
    /// Empty: the broker's default exchange, which exists without being declared.
    pub(super) name: ShortString,
    pub(super) kind: ExchangeKind,
    pub(super) routing_key: ShortString,
    pub(super) flags: Flags,
    pub(super) arguments: FieldTable,
    /// Exchanges that forward messages to this one.
    pub(super) bindings: Vec<Binding>,
}

/// A binding to another exchange.
#[derive(Clone)]
pub(super) struct Binding {
    pub(super) source: ShortString,
    pub(super) keys: Vec<ShortString>,
    pub(super) arguments: FieldTable,
}

/// The queues in which delayed messages wait, one for each delay.
#[derive(Clone)]
pub(super) struct Delays {
    /// Their exchange.
    pub(super) exchange: ShortString,
    /// The pattern of their names.
    pub(super) pattern: String,
    /// Additional arguments of these queues.
    pub(super) arguments: FieldTable,
    /// Whether each day has queues of its own. Needed for quorum queues, whose expiry is not restarted by declaring
    /// them again.
    pub(super) daily: bool,
}

#[derive(Clone)]
pub(super) struct Queue {
    pub(super) name: ShortString,
    pub(super) binding_keys: Vec<ShortString>,
    pub(super) binding_arguments: FieldTable,
    pub(super) flags: Flags,
    pub(super) arguments: FieldTable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) durable: bool,
    pub(super) exclusive: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
}

impl Topology {
    /// The name of the queue for a delay, which is also its routing key at the delay exchange.
    pub(super) fn delay_queue(&self, millis: u64, routing_key: &str, again: bool) -> String {
        self.delay_queue_of(Utc::now(), millis, routing_key, again)
    }

    /// The same for messages that were sent at another time.
    pub(super) fn delay_queue_of(&self, at: DateTime<Utc>, millis: u64, routing_key: &str, again: bool) -> String {
        let name = self.delays.pattern.replace("%exchange_name%", self.exchange.name.as_str());
        let name = name.replace("%routing_key%", routing_key).replace("%delay%", &millis.to_string());
        let action = if again { "retry" } else { "delay" };
        // The "Z" keeps it apart from Symfony's queues, whose days are in PHP's time zone: a queue that is used on the
        // next day may be deleted with its messages.
        let day = if self.delays.daily { at.format("_%Y-%m-%dZ").to_string() } else { String::new() };
        format!("{name}_{action}{day}")
    }
}

impl Delays {
    /// The longest delay, in milliseconds: the longest lifetime of a queue, minus the time by which the queue outlives the
    /// delay.
    pub(super) fn longest(&self) -> u64 {
        LONGEST_EXPIRY - self.outlives()
    }

    fn outlives(&self) -> u64 {
        EXPIRES_AFTER + if self.daily { DAY } else { 0 }
    }

    /// The arguments of the queue for a delay. Its messages go on to `exchange`, with the routing key `key`.
    pub(super) fn queue_arguments(&self, millis: u64, exchange: &ShortString, key: &ShortString) -> FieldTable {
        let number = |millis: u64| AMQPValue::LongLongInt(i64::try_from(millis).unwrap_or(i64::MAX));
        let text = |text: &ShortString| AMQPValue::LongString(text.as_str().into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-message-ttl".into(), number(millis));
        arguments.insert("x-expires".into(), number(millis + self.outlives()));
        arguments.insert("x-dead-letter-exchange".into(), text(exchange));
        arguments.insert("x-dead-letter-routing-key".into(), text(key));
        for (name, value) in self.arguments.inner() {
            arguments.insert(name.clone(), value.clone());
        }
        arguments
    }
}

impl Flags {
    /// The defaults of Symfony Messenger.
    pub(super) const DEFAULT: Self = Self { durable: true, exclusive: false, auto_delete: false, internal: false };
}

//! Stamps: metadata of a message, either sent with it or kept in this process.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Metadata of a message, written as a JSON object into the header of its class.
pub trait Stamp: Serialize + DeserializeOwned {
    /// Its name on the wire: a PHP class name.
    const CLASS: &'static str;
    /// Whether it is sent with the message (Symfony's `NonSendableStampInterface` means that it is not).
    const SENDABLE: bool = true;
    /// Whether a message keeps all stamps of this class, instead of only the first and the latest ones.
    const ALL_KEPT: bool = false;
}

macro_rules! stamp {
    ($(#[$attribute:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? } $(, sendable: $sendable:literal)? $(, all_kept: $all_kept:literal)?) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        impl Stamp for $name {
            const CLASS: &'static str = concat!(r"Symfony\Component\Messenger\Stamp\", stringify!($name));
            $(const SENDABLE: bool = $sendable;)?
            $(const ALL_KEPT: bool = $all_kept;)?
        }
    };
}

stamp! {
    /// Which bus dispatched the message.
    BusNameStamp {
        /// `messenger.bus.default`, unless the application sets another name.
        bus_name: String,
    }
}

stamp! {
    /// The delay before the message is delivered.
    DelayStamp {
        /// Milliseconds.
        delay: u64,
    }
}

stamp! {
    /// The message was sent again after a failure.
    #[non_exhaustive]
    RedeliveryStamp {
        /// The number of retries, including this one.
        retry_count: u32,
        /// The time, in ISO 8601.
        redelivered_at: String,
    }
}

impl RedeliveryStamp {
    /// A stamp for a redelivery now.
    pub(crate) fn now(retry_count: u32, now: DateTime<Utc>) -> Self {
        Self { retry_count, redelivered_at: now.to_rfc3339_opts(SecondsFormat::Secs, false) }
    }
}

stamp! {
    /// The message's id on its transport.
    #[non_exhaustive]
    TransportMessageIdStamp {
        /// A number for SQL stores, text for others; kept as received.
        id: serde_json::Value,
    }
}

stamp! {
    /// The message failed for good and was moved to the failure transport.
    #[non_exhaustive]
    SentToFailureTransportStamp {
        /// The transport it failed on.
        original_receiver_name: String,
    }
}

stamp! {
    /// Why the message failed.
    #[non_exhaustive]
    ErrorDetailsStamp {
        /// The kind of error; a class name if PHP wrote it.
        exception_class: String,
        /// The error's code: an exit code, or 0.
        exception_code: serde_json::Value,
        /// What went wrong, with the last lines of a program's output.
        exception_message: String,
        /// PHP's stack trace; passed on, never written by minutely.
        #[serde(default)]
        flatten_exception: serde_json::Value,
    }
}

stamp! {
    /// The transports to which this message is sent instead of those in `routing`. Not sent with the message: receivers
    /// do not need it, and Symfony 5.4, which does not know it, would refuse the message.
    TransportNamesStamp {
        /// Their names, in sending order.
        #[serde(alias = "transports")]
        transport_names: Vec<String>,
    }
}

stamp! {
    /// A handler has succeeded. Sent with a retry, so that only the other handlers run again.
    #[non_exhaustive]
    HandledStamp {
        /// The return value of a PHP handler; null for minutely's handlers.
        result: serde_json::Value,
        /// The handler's name.
        handler_name: String,
    }, all_kept: true
}

stamp! {
    /// The message was received from a transport, so it is handled and not sent again.
    #[non_exhaustive]
    ReceivedStamp {
        /// Its name.
        transport_name: String,
    }, sendable: false
}

stamp! {
    /// The message was queued.
    #[non_exhaustive]
    SentStamp {
        /// The transport the message was routed to.
        transport_name: String,
        /// The transport that stores it: a different one if `transport_name` is an auto-fallback.
        queued_on: String,
        /// Its id there.
        id: String,
        /// Why it was sent there, if there was a choice.
        reason: Option<String>,
    }, sendable: false, all_kept: true
}

stamp! {
    /// The message was handled during its dispatch.
    #[non_exhaustive]
    HandledNowStamp {
        /// The transport that decided this; `None` if no routing matched.
        transport_name: Option<String>,
        /// Why it was not queued.
        reason: String,
    }, sendable: false, all_kept: true
}

stamp! {
    /// There was no handler for the message, and its bus allows that.
    #[non_exhaustive]
    UnhandledStamp {}, sendable: false
}

stamp! {
    /// The message waits until the message that is being handled was handled well; it is dropped if that fails. Set by
    /// [`Dispatch::after_current`](crate::bus::Dispatch::after_current).
    DispatchAfterCurrentBusStamp {}, sendable: false
}

stamp! {
    /// The address that links begin with, in what the message's handlers write: that of the request during which it was
    /// dispatched. The middleware `router_context` gives it to further messages.
    RouterContextStamp {
        /// The path below which the application is: empty, or `/shop`.
        #[serde(default)]
        base_url: String,
        /// The request's method.
        #[serde(default)]
        method: String,
        /// The host's name.
        #[serde(default)]
        host: String,
        /// `http` or `https`.
        #[serde(default)]
        scheme: String,
        /// The port of `http`.
        #[serde(default = "http_port")]
        http_port: u16,
        /// The port of `https`.
        #[serde(default = "https_port")]
        https_port: u16,
        /// The request's path, below `base_url`.
        #[serde(default)]
        path_info: String,
        /// What stands after `?` in the request.
        #[serde(default)]
        query_string: String,
    }
}

fn http_port() -> u16 {
    80
}

fn https_port() -> u16 {
    443
}

stamp! {
    /// Further values for the handlers of the message. Not sent: a middleware adds it on each side.
    HandlerArgumentsStamp {
        /// The values, in order.
        additional_arguments: Vec<serde_json::Value>,
    }, sendable: false
}

stamp! {
    /// Which checks the message must pass, by their names under `validation.TYPE.groups`.
    ValidationStamp {
        /// The names; `Default` is the check without a name.
        groups: Vec<String>,
    }
}

impl ValidationStamp {
    /// The name of the check without a name.
    pub const DEFAULT: &'static str = "Default";
}

stamp! {
    /// What Symfony's serializer is to know about the message. Passed on; without meaning here.
    SerializerStamp {
        /// The serializer's context.
        context: serde_json::Value,
    }
}

stamp! {
    /// Of the messages with the same key, one at a time is pending: those dispatched meanwhile are dropped.
    DeduplicateStamp {
        /// The key.
        key: String,
        /// After so many seconds another message with the key may be dispatched in any case; `None`: never.
        #[serde(default = "deduplicated_for")]
        ttl: Option<f64>,
        /// Another message may be dispatched as soon as the handling of this one begins, and not only when it has ended.
        #[serde(default)]
        only_deduplicate_in_queue: bool,
    }
}

#[allow(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn deduplicated_for() -> Option<f64> {
    Some(300.0)
}

impl DeduplicateStamp {
    /// A stamp with Symfony's defaults: for 300 seconds, until the message was handled.
    pub fn new(key: impl Into<String>) -> Self {
        Self { key: key.into(), ttl: deduplicated_for(), only_deduplicate_in_queue: false }
    }
}

/// The message was not dispatched: one with the same key is pending ([`DeduplicateStamp`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DuplicateStamp {
    /// The key.
    pub key: String,
}

impl DuplicateStamp {
    pub(crate) fn new(key: String) -> Self {
        Self { key }
    }
}

impl Stamp for DuplicateStamp {
    const CLASS: &'static str = r"minutely\DuplicateStamp";
    const SENDABLE: bool = false;
}

/// How the message is sent by AMQP. Not sent itself, and without meaning for other transports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AmqpStamp {
    /// The routing key; without it the transport's `exchange[default_publish_routing_key]`.
    #[serde(default)]
    pub routing_key: Option<String>,
    /// PHP's flags. All messages are sent with `AMQP_MANDATORY` here, and brokers know no other.
    #[serde(default)]
    pub flags: u32,
    /// The message's properties.
    #[serde(default)]
    pub attributes: AmqpAttributes,
}

impl Stamp for AmqpStamp {
    const CLASS: &'static str = r"Symfony\Component\Messenger\Bridge\Amqp\Transport\AmqpStamp";
    const SENDABLE: bool = false;
}

/// The properties of a message on a broker. It is stored on disk in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AmqpAttributes {
    /// More is delivered earlier, by queues with the argument `x-max-priority`.
    pub priority: Option<u8>,
    /// The type of the body.
    pub content_type: Option<String>,
    /// The encoding of the body.
    pub content_encoding: Option<String>,
    /// An id of the application's choice.
    pub message_id: Option<String>,
    /// The id of a request that this answers.
    pub correlation_id: Option<String>,
    /// The queue that answers go to.
    pub reply_to: Option<String>,
    /// The broker drops the message after so many milliseconds; not while it is delayed.
    pub expiration: Option<String>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// A kind of message, of the application's choice.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The application that sends it.
    pub app_id: Option<String>,
    /// Further headers.
    pub headers: std::collections::BTreeMap<String, String>,
}

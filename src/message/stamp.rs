//! Stamps: facts about a message that travel with it, or that stay with it in this process.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A fact about a message. Written as a JSON object into the header of its class.
pub trait Stamp: Serialize + DeserializeOwned {
    /// The PHP class name it goes by on the wire.
    const CLASS: &'static str;
    /// Whether it travels (Symfony's `NonSendableStampInterface` says no).
    const SENDABLE: bool = true;
    /// Whether a message keeps all of them, and not only the first and the latest of many.
    const ALL_KEPT: bool = false;
}

macro_rules! stamp {
    ($(#[$docs:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? } $(, sendable: $sendable:literal)? $(, all_kept: $all_kept:literal)?) => {
        $(#[$docs])*
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
        /// `messenger.bus.default` unless the application says otherwise.
        bus_name: String,
    }
}

stamp! {
    /// How long the message was to wait before it is delivered.
    DelayStamp {
        /// Milliseconds.
        delay: u64,
    }
}

stamp! {
    /// The message was sent again after a failure.
    RedeliveryStamp {
        /// How many retries there have been, this one included.
        retry_count: u32,
        /// When, as ISO 8601.
        redelivered_at: String,
    }
}

impl RedeliveryStamp {
    /// A stamp for a redelivery now.
    pub fn now(retry_count: u32, now: DateTime<Utc>) -> Self {
        Self { retry_count, redelivered_at: now.to_rfc3339_opts(SecondsFormat::Secs, false) }
    }
}

stamp! {
    /// The name the message's transport knows it by.
    TransportMessageIdStamp {
        /// A number for SQL stores, text for the others; kept as it came.
        id: serde_json::Value,
    }
}

stamp! {
    /// The message failed for good and was put on the failure transport.
    SentToFailureTransportStamp {
        /// The transport it failed on.
        original_receiver_name: String,
    }
}

stamp! {
    /// Why the message failed.
    ErrorDetailsStamp {
        /// The kind of error; a class name where PHP wrote it.
        exception_class: String,
        /// The error's code: an exit code, or 0.
        exception_code: serde_json::Value,
        /// What went wrong, with the last lines of a program's output.
        exception_message: String,
        /// PHP's stack trace; passed on, never written here.
        #[serde(default)]
        flatten_exception: serde_json::Value,
    }
}

stamp! {
    /// The transports this message goes to, whatever the routing says. Not sent along: it has no meaning for whoever
    /// receives the message, and Symfony 5.4, which does not know it, would refuse the message.
    TransportNamesStamp {
        /// Their names, in sending order.
        #[serde(alias = "transports")]
        transport_names: Vec<String>,
    }
}

stamp! {
    /// A handler has succeeded; sent along with a retry, so that only the handlers that have not run again.
    HandledStamp {
        /// What a PHP handler returned; null from handlers here.
        result: serde_json::Value,
        /// Which handler.
        handler_name: String,
    }, all_kept: true
}

stamp! {
    /// The message came from a transport, so it is handled and not sent.
    ReceivedStamp {
        /// Its name.
        transport_name: String,
    }, sendable: false
}

stamp! {
    /// The message was queued.
    SentStamp {
        /// The transport the message was routed to.
        transport_name: String,
        /// The transport that holds it: another one where `transport_name` is an auto-fallback.
        queued_on: String,
        /// Its id there.
        id: String,
        /// Why it went there, where there was a choice.
        reason: Option<String>,
    }, sendable: false, all_kept: true
}

stamp! {
    /// The message was handled during its dispatch.
    HandledNowStamp {
        /// The transport that said so; none where the message matched no routing.
        transport_name: Option<String>,
        /// Why it was not queued.
        reason: String,
    }, sendable: false, all_kept: true
}

//! What a Redis DSN and its options say about a queue: which stream, group and consumer.

use std::time::Duration;

use super::super::sql::REDELIVER_TIMEOUT;
use super::entry::Wrapping;
use crate::config::{Options, TransportSpec};
use crate::connection::redis::{self, Address};

const CLAIM_INTERVAL: u64 = 60_000;

/// A queue: a stream, and the group that consumes it.
pub(super) struct Queue {
    pub(super) stream: String,
    pub(super) group: String,
    /// None: a name of its own for each process.
    pub(super) consumer: Option<String>,
    pub(super) auto_setup: bool,
    pub(super) delete_after_ack: bool,
    pub(super) delete_after_reject: bool,
    /// The stream is cut to about so many entries.
    pub(super) stream_max_entries: Option<u64>,
    pub(super) wrapping: Wrapping,
    pub(super) redeliver_timeout: Duration,
    pub(super) claim_interval: Duration,
}

/// Reads a transport's description, and notes what is wrong with it.
pub(super) fn read(spec: &TransportSpec, options: &mut Options<'_>) -> (Address, Queue) {
    let address = Address::read(spec, options);
    // With a socket the whole path is its own.
    let path = if spec.dsn.host().is_empty() { "" } else { spec.dsn.path() };
    let mut parts = path.split('/').skip(1).map(|part| if part.is_empty() { None } else { Some(part.to_owned()) });
    let mut named = |name, options: &mut Options<'_>| {
        let given = options.text(name);
        parts.next().flatten().or(given)
    };
    let stream = named("stream", options).unwrap_or_else(|| "messages".to_owned());
    let group = named("group", options).unwrap_or_else(|| "symfony".to_owned());
    let consumer = named("consumer", options);
    if parts.next().is_some() {
        options.push(spec.dsn_problem("its path is /stream/group/consumer, and no more"));
    }
    let wrapping = match options.text("serializer").as_deref() {
        None | Some("1") => Wrapping::Php,
        Some("0") => Wrapping::None,
        Some(_) => {
            let why =
                "serializer is 0 (JSON as it is) or 1 (wrapped by PHP's serializer); others need igbinary or msgpack";
            options.refuse("serializer", why);
            Wrapping::Php
        }
    };
    let queue = Queue {
        stream,
        group,
        consumer,
        auto_setup: options.flag("auto_setup", true),
        delete_after_ack: options.flag("delete_after_ack", true),
        delete_after_reject: options.flag("delete_after_reject", true),
        stream_max_entries: options.whole_number("stream_max_entries", u32::MAX.into()).filter(|most| *most > 0),
        wrapping,
        redeliver_timeout: options.seconds("redeliver_timeout", REDELIVER_TIMEOUT),
        claim_interval: Duration::from_millis(
            options.whole_number("claim_interval", u32::MAX.into()).unwrap_or(CLAIM_INTERVAL),
        ),
    };
    redis::refuse_unsupported(options);
    (address, queue)
}

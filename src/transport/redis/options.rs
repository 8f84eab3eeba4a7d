//! Reads the options of a queue from a Redis DSN: stream, group, consumer and others.

use std::time::Duration;

use super::super::options::REDELIVER_TIMEOUT;
use super::DELAYED_SET;
use super::entry::Wrapping;
use crate::config::{Definition, OptionReader, Setting, TransportSpec};
use crate::connection::redis::Address;

/// The options of a queue, in the DSN or under `options:`.
pub(super) const OPTIONS: [Definition; 10] = [
    STREAM.definition,
    GROUP.definition,
    CONSUMER.definition,
    SERIALIZER.definition,
    REDELIVER_TIMEOUT.definition,
    CLAIM_INTERVAL.definition,
    DELETE_AFTER_ACK.definition,
    DELETE_AFTER_REJECT.definition,
    STREAM_MAX_ENTRIES.definition,
    AUTO_SETUP.definition,
];
const STREAM: Setting<String> = Setting::text("stream", "messages", "the stream, if the DSN's path names none");
const GROUP: Setting<String> =
    Setting::text("group", "symfony", "the consumer group; all workers of one application share it");
const CONSUMER: Setting<Option<String>> = Setting::text(
    "consumer",
    "",
    "the consumer's name in the group; best left out, as workers that share a name take each other's messages",
)
.or("one for each process");
const SERIALIZER: Setting<String> = Setting::text(
    "serializer",
    "1",
    "how messages are wrapped in the stream, for php-redis: 1, by PHP's serializer; 0, not at all. Both are read",
)
.of_kind("0, or 1");
const CLAIM_INTERVAL: Setting<Duration> = Setting::millis(
    "claim_interval",
    "60000",
    "milliseconds after which a waiting worker searches for messages whose `redeliver_timeout` is over",
);
const DELETE_AFTER_ACK: Setting<bool> =
    Setting::php_flag("delete_after_ack", "true", "delete handled messages from the stream");
const DELETE_AFTER_REJECT: Setting<bool> = Setting::php_flag(
    "delete_after_reject",
    "true",
    "delete failed messages from the stream, once they were sent elsewhere",
);
const STREAM_MAX_ENTRIES: Setting<u64> = Setting::whole(
    "stream_max_entries",
    0,
    u32::MAX as u64,
    "0",
    "cut the stream to about this many messages; 0: never. **This drops the oldest, handled or not**",
);
const AUTO_SETUP: Setting<bool> =
    Setting::php_flag("auto_setup", "true", "create stream and group if they are missing");

/// A queue: a stream, and the group that consumes it.
pub(super) struct Queue {
    pub(super) stream: String,
    pub(super) group: String,
    /// `None`: each process has a name of its own.
    pub(super) consumer: Option<String>,
    pub(super) auto_setup: bool,
    pub(super) delete_after_ack: bool,
    pub(super) delete_after_reject: bool,
    /// The stream is cut to about this many entries.
    pub(super) stream_max_entries: Option<u64>,
    pub(super) wrapping: Wrapping,
    pub(super) redeliver_timeout: Duration,
    pub(super) claim_interval: Duration,
}

/// Reads a transport's description, and reports mistakes to `options`.
pub(super) fn read(spec: &TransportSpec, options: &mut OptionReader<'_>) -> (Address, Queue) {
    let mut address = Address::read(spec, options);
    // With a socket, the whole path is the socket's.
    let path = if address.is_socket() { "" } else { spec.dsn.path() };
    let mut parts = path.split('/').skip(1).map(|part| if part.is_empty() { None } else { Some(part.to_owned()) });
    let mut part = || parts.next().flatten();
    let stream = part().unwrap_or_else(|| options.get(&STREAM));
    let group = part().unwrap_or_else(|| options.get(&GROUP));
    let consumer = part().or_else(|| options.get(&CONSUMER));
    if parts.next().is_some() {
        options.push(spec.dsn_problem("its path is /stream/group/consumer, and no more"));
    }
    if !address.select_node(&stream) {
        options.push(spec.dsn_problem(format!(
            "in a cluster, the stream \"{stream}\" and its delayed messages, \"{stream}{DELAYED_SET}\", would be on different \
             nodes, and no step could change both: name it with braces, here and in other applications, such as \
             {{{stream}}}. Keys with the same text in braces are on the same node"
        )));
    }
    let wrapping = match options.get(&SERIALIZER).as_str() {
        "1" => Wrapping::Php,
        "0" => Wrapping::None,
        _ => {
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
        auto_setup: options.get(&AUTO_SETUP),
        delete_after_ack: options.get(&DELETE_AFTER_ACK),
        delete_after_reject: options.get(&DELETE_AFTER_REJECT),
        stream_max_entries: Some(options.get(&STREAM_MAX_ENTRIES)).filter(|most| *most > 0),
        wrapping,
        redeliver_timeout: options.get(&REDELIVER_TIMEOUT),
        claim_interval: options.get(&CLAIM_INTERVAL),
    };
    (address, queue)
}

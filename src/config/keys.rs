//! Every key there is, with its type, default and one line of help: for finding unknown keys, and for the reference in
//! `docs/configuration.md`, which a test holds against this table.

/// A key of the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Where it stands. `*` is any name, `[]` any item of a list: `workers[].autoscale.max`.
    pub path: &'static str,
    /// What its value is.
    pub kind: &'static str,
    /// What is taken when it is missing.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

const fn key(path: &'static str, kind: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { path, kind, default, help }
}

/// All keys, in the order of the reference.
pub const KEYS: &[Key] = &[
    key("transports", "map", "none", "where messages wait, by a name of your choice"),
    key(
        "transports.*.dsn",
        "DSN",
        "required",
        "what kind of transport, and where; may be given alone, without the map",
    ),
    key("transports.*.options", "map", "none", "options of the transport; they win over those in its DSN"),
    key("transports.*.serializer", "text", "JSON", "accepted for Symfony's sake: messages are JSON in any case"),
    key("transports.*.failure_transport", "transport", "`failure_transport`", "where its failed messages go"),
    key("transports.*.retry_strategy", "map", "as below", "when a failed message is tried again"),
    key("transports.*.retry_strategy.max_retries", "whole number", "3", "tries after the first one"),
    key("transports.*.retry_strategy.delay", "milliseconds", "1000", "wait before the first retry"),
    key(
        "transports.*.retry_strategy.multiplier",
        "number, 1 to 1000",
        "2",
        "each wait is this many times the one before",
    ),
    key("transports.*.retry_strategy.max_delay", "milliseconds", "0", "no wait is longer; 0 is no bound"),
    key("transports.*.retry_strategy.jitter", "number, 0 to 1", "0.1", "part of the wait that is up to chance"),
    key("routing", "map", "none", "which transports a message goes to, by type or wildcard"),
    key("routing.*.senders", "list of transports", "required", "Symfony's long form of the list"),
    key("interfaces", "map", "none", "further names that a type is routed and handled by, such as its PHP interfaces"),
    key("failure_transport", "transport", "none", "where messages go that failed for good"),
    key("workers", "list", "`[]`", "what the supervisor keeps running"),
    key("workers[].transports", "transport, or list", "required", "what is consumed, the most important first"),
    key(
        "workers[].options",
        "list of text",
        "`--time-limit=60`",
        "options of `consume`; a time limit is added if missing",
    ),
    key("workers[].name", "text", "from the transports", "the name in `status` and in the log"),
    key("workers[].command", "list, or text", "`minutely consume`", "another program to run"),
    key("workers[].autoscale", "map", "one worker", "how many workers run"),
    key("workers[].autoscale.enabled", "true or false", "true", "false is the same as no `autoscale`"),
    key("workers[].autoscale.desired_size", "whole number, 1 or more", "required", "pending messages per worker"),
    key("workers[].autoscale.min", "whole number", "1", "workers that run in any case; may be 0"),
    key("workers[].autoscale.max", "whole number, 1 to 10000", "10", "workers that are never exceeded"),
    key(
        "workers[].autoscale.scope",
        "host, or cluster",
        "host",
        "whether `min` and `max` are per host, or for all hosts",
    ),
    key("handlers", "map", "none", "which program handles a message, by type or wildcard"),
    key("handlers.*.exec", "list of text", "required", "the program and its arguments"),
    key("handlers.*.timeout", "duration", "none", "how long it may take"),
    key("state_dir", "path", "`var`", "folder for locks, heartbeats and the log"),
    key("cache", "DSN, or map", "files in `state_dir`", "where heartbeats are kept; a server, for several hosts"),
    key("cache.dsn", "DSN", "required", "where; may be given alone, without the map"),
    key("cache.options", "map", "none", "options; they win over those in the DSN"),
    key("heartbeat", "map", "as below", "how producers see that a transport is consumed"),
    key("heartbeat.ttl", "duration", "60s", "how long a worker's heartbeat lasts when it is not renewed"),
    key("connections", "map", "`default`: `DATABASE_URL`", "database URLs by name, for `doctrine://NAME`"),
];

/// The keys that may stand in the mapping at `parent` (empty for the whole file).
pub(super) fn children(parent: &str) -> impl Iterator<Item = &'static str> {
    let prefix = if parent.is_empty() { String::new() } else { format!("{parent}.") };
    KEYS.iter().filter_map(move |key| key.path.strip_prefix(&prefix)).filter(|rest| !rest.contains(['.', '[', '*']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_the_keys_one_level_below() {
        assert_eq!(
            children("workers[].autoscale").collect::<Vec<_>>(),
            ["enabled", "desired_size", "min", "max", "scope"]
        );
        assert_eq!(children("heartbeat").collect::<Vec<_>>(), ["ttl"]);
        let top: Vec<_> = children("").collect();
        assert_eq!(
            top,
            [
                "transports",
                "routing",
                "interfaces",
                "failure_transport",
                "workers",
                "handlers",
                "state_dir",
                "cache",
                "heartbeat",
                "connections"
            ]
        );
    }
}

//! Errors of Redis servers: they name the server, and say what to do.

use redis::RedisError;
use thiserror::Error;

use crate::connection::Location;

/// Why a request to a server failed. Names the server and the database, without secrets.
#[derive(Debug, Clone, Error)]
#[error("{location}: {reason}")]
pub(crate) struct RedisFailure {
    /// `host:port/database`
    location: Location,
    #[source]
    reason: Reason,
}

#[derive(Debug, Clone, Error)]
enum Reason {
    #[error("{}{}", plainly(.0), advice(.0))]
    Driver(#[source] RedisError),
    #[error("{0}")]
    Own(String),
}

impl RedisFailure {
    pub(crate) fn new(location: &Location, error: RedisError) -> Self {
        Self { location: location.clone(), reason: Reason::Driver(error) }
    }

    /// An error that was found without the server.
    pub(crate) fn own(location: &Location, reason: String) -> Self {
        Self { location: location.clone(), reason: Reason::Own(reason) }
    }

    /// Whether the stream, or its consumer group, is missing.
    pub(crate) fn is_missing(&self) -> bool {
        // The server embeds its error in a text about the script.
        self.says("NOGROUP") || self.says("requires the key to exist") || self.is_no_key()
    }

    /// Whether the stream is missing.
    pub(crate) fn is_no_key(&self) -> bool {
        self.says("no such key")
    }

    /// Whether the group exists already.
    pub(crate) fn is_there_already(&self) -> bool {
        self.says("BUSYGROUP")
    }

    /// Whether the server's memory is full.
    pub(crate) fn is_full(&self) -> bool {
        self.says("OOM")
    }

    fn says(&self, word: &str) -> bool {
        matches!(&self.reason, Reason::Driver(error) if says(error, word))
    }
}

/// Whether the next request needs a new connection. The server's name may lead to another server by now.
pub(crate) fn ends_connection(error: &RedisError) -> bool {
    let wrong_server = ["READONLY", "NOAUTH", "MOVED", "CLUSTERDOWN"].iter().any(|word| says(error, word));
    error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() || wrong_server
}

/// An error without the script and the line it came from, and without the arguments, which may be parts of a message.
fn plainly(error: &RedisError) -> String {
    let text = error.to_string();
    let shown = [" script: ", ", with args beginning with"]
        .iter()
        .fold(&*text, |text, cut| text.split_once(cut).map_or(text, |(text, _)| text));
    shown.trim_end_matches([',', '.']).to_owned()
}

fn says(error: &RedisError, word: &str) -> bool {
    error.code() == Some(word) || error.to_string().contains(word)
}

const TOO_OLD: &str = "; this server is too old (Redis 6.2 is the oldest that works), or a sentinel, or it was expected to be one (`sentinel_master`)";

/// What to do about it.
fn advice(error: &RedisError) -> &'static str {
    let about = [
        ("WRONGPASS", "; the DSN's user and password are wrong"),
        ("NOAUTH", "; the server asks for a password: redis://:password@host"),
        ("AuthenticationFailed", "; the DSN's user and password are wrong, or missing"),
        ("NOPERM", "; this user may not do that: see ACL SETUSER"),
        ("WRONGTYPE", "; the key is in use for something else: choose another `stream`"),
        ("can't run this command", "; this user may not do that: see ACL SETUSER"),
        ("unknown command", TOO_OLD),
        ("Unknown Redis command", TOO_OLD),
        ("RESP3NotSupported", TOO_OLD),
        ("timed out", "; is that its port, and is it rediss: exactly where the server speaks TLS?"),
        ("READONLY", "; this is a replica: connect to the primary"),
        ("MOVED", "; another node of the cluster has these keys: set `cluster: true`, or if it is set, try again"),
        ("ASK", "; these keys are being moved to another node of the cluster: try again"),
        ("CLUSTERDOWN", "; the cluster has lost nodes, see CLUSTER INFO"),
        ("OOM", "; the server's memory is full (maxmemory)"),
        ("MISCONF", "; the server cannot write to its disk"),
        ("max number of clients", "; see the server's maxclients"),
        ("DB index is out of range", "; see the option `dbindex` and the server's `databases`"),
    ];
    about.into_iter().find(|(word, _)| says(error, word)).map_or("", |(_, advice)| advice)
}

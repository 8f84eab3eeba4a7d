//! What goes wrong with a server, told with its place and with what to do about it.

use std::sync::Arc;

use redis::RedisError;
use thiserror::Error;

/// Why a server did not do what it was asked. Names the server and the database, and no secret.
#[derive(Debug, Error)]
#[error("{place}: {reason}")]
pub(crate) struct RedisFailure {
    /// `host:port/database`
    place: Arc<str>,
    #[source]
    reason: Reason,
}

#[derive(Debug, Error)]
enum Reason {
    #[error("{}{}", plainly(.0), advice(.0))]
    Driver(#[source] RedisError),
    #[error("{0}")]
    Own(String),
}

impl RedisFailure {
    pub(super) fn new(place: &Arc<str>, error: RedisError) -> Self {
        Self { place: Arc::clone(place), reason: Reason::Driver(error) }
    }

    /// One that the server knows nothing of.
    pub(super) fn own(place: &Arc<str>, reason: String) -> Self {
        Self { place: Arc::clone(place), reason: Reason::Own(reason) }
    }

    /// The stream, or the consumer group in it, is not there.
    pub(super) fn is_missing(&self) -> bool {
        // Scripts put their own words around what the server says.
        self.says("NOGROUP") || self.says("requires the key to exist") || self.is_no_key()
    }

    /// The stream is not there.
    pub(super) fn is_no_key(&self) -> bool {
        self.says("no such key")
    }

    /// The group is there already.
    pub(super) fn is_there_already(&self) -> bool {
        self.says("BUSYGROUP")
    }

    /// The server's memory is full.
    pub(super) fn is_full(&self) -> bool {
        self.says("OOM")
    }

    fn says(&self, word: &str) -> bool {
        matches!(&self.reason, Reason::Driver(error) if says(error, word))
    }
}

/// Should what comes next be asked on another connection? The name of a server may lead to another one by now.
pub(super) fn ends_connection(error: &RedisError) -> bool {
    let wrong_server = says(error, "READONLY") || says(error, "NOAUTH");
    error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() || wrong_server
}

/// An error without the script and the line it came from.
fn plainly(error: &RedisError) -> String {
    let text = error.to_string();
    match text.split_once(" script: ") {
        Some((text, _)) => text.trim_end_matches([',', '.']).to_owned(),
        None => text,
    }
}

fn says(error: &RedisError, word: &str) -> bool {
    error.code() == Some(word) || error.to_string().contains(word)
}

const TOO_OLD: &str = "; this server is too old: Redis 6.2 is the oldest that works";

/// What a person can do about it.
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
        ("OOM", "; the server's memory is full (maxmemory)"),
        ("MISCONF", "; the server cannot write to its disk"),
        ("max number of clients", "; see the server's maxclients"),
        ("DB index is out of range", "; see the option `dbindex` and the server's `databases`"),
    ];
    about.into_iter().find(|(word, _)| says(error, word)).map_or("", |(_, advice)| advice)
}

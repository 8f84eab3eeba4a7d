//! What goes wrong with a server, told with its place and with what to do about it.

use std::sync::Arc;

use redis::RedisError;
use thiserror::Error;

/// Why a server did not do what it was asked. Names the server and the database, and no secret.
#[derive(Debug, Error)]
#[error("{place}: {error}{}", advice(error))]
pub(crate) struct RedisFailure {
    /// `host:port/database`
    place: Arc<str>,
    #[source]
    error: RedisError,
}

impl RedisFailure {
    pub(super) fn new(place: &Arc<str>, error: RedisError) -> Self {
        Self { place: Arc::clone(place), error }
    }

    /// The stream, or the consumer group in it, is not there.
    pub(super) fn is_missing(&self) -> bool {
        // Scripts put their own words around what the server says.
        says(&self.error, "NOGROUP") || says(&self.error, "requires the key to exist") || self.is_no_key()
    }

    /// The stream is not there.
    pub(super) fn is_no_key(&self) -> bool {
        says(&self.error, "no such key")
    }

    /// The group is there already.
    pub(super) fn is_there_already(&self) -> bool {
        says(&self.error, "BUSYGROUP")
    }
}

fn says(error: &RedisError, word: &str) -> bool {
    error.code() == Some(word) || error.to_string().contains(word)
}

/// What a person can do about it.
fn advice(error: &RedisError) -> &'static str {
    let about = [
        ("WRONGPASS", "; the DSN's user and password are wrong"),
        ("NOAUTH", "; the server asks for a password: redis://:password@host"),
        ("AuthenticationFailed", "; the DSN's user and password are wrong, or missing"),
        ("NOPERM", "; this user may not do that: see ACL SETUSER"),
        ("WRONGTYPE", "; the key is in use for something else: choose another `stream`"),
        ("unknown command", "; this server is too old: Redis 6.2 is the oldest that works"),
        ("READONLY", "; this is a replica: connect to the primary"),
        ("OOM", "; the server's memory is full (maxmemory)"),
        ("MISCONF", "; the server cannot write to its disk"),
        ("max number of clients", "; see the server's maxclients"),
        ("DB index is out of range", "; see the option `dbindex` and the server's `databases`"),
    ];
    about.into_iter().find(|(word, _)| says(error, word)).map_or("", |(_, advice)| advice)
}

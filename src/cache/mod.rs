//! Small entries that processes share, each with an expiry: who is consuming what, and when workers were asked to stop.
//!
//! Entries live in *groups*, because the question is "who pings transport X?" and not "what did pinger 17 say?". A store
//! keeps them ([`FileStore`] by default); [`Cache`] answers repeated reads from memory for a moment.

mod file;
mod file_name;
mod front;
mod memory;
mod open;
#[cfg(feature = "redis")]
mod redis;
mod sql;

pub use file::FileStore;
pub use front::{Cache, READ_TTL};
pub use memory::MemoryStore;
pub(crate) use open::open_store_on;
pub use open::{cache_options, open_store};

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use thiserror::Error;

/// An entry from further in the future than this was written before the clock was set back, and says nothing about now.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// One entry that has not expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Unique within its group.
    pub key: String,
    /// What it says.
    pub value: String,
    /// When it was last put.
    pub written_at: SystemTime,
    /// When it stops being true.
    pub expires_at: SystemTime,
}

/// Keeps entries where several processes see them.
///
/// Groups and keys may hold any text. An entry is read whole or not at all, also while it is being written or when its
/// writer is killed.
#[async_trait]
pub trait CacheStore: Send + Sync {
    /// States an entry, in place of an earlier one of the same key, for `ttl` from now.
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError>;

    /// Withdraws an entry. One that is not there is no error.
    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError>;

    /// The entries of a group that have not expired, in the order of their keys. What cannot be read is left out, with a
    /// warning.
    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError>;

    /// Takes the place `key` for `owner`, for `ttl` from now: `true` when it is now, or was already, `owner`'s; `false`
    /// when it is another's. Of many who ask at once, one gets it. A claim is an entry whose value is its owner.
    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError>;

    /// Gives a place back. One that is another's, or nobody's, is left as it is.
    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError>;

    /// Where it is, as errors name it: a path or a server, without secrets.
    fn location(&self) -> String;

    /// Creates what is missing. Putting an entry does this too.
    async fn set_up(&self) -> Result<(), CacheError> {
        Ok(())
    }

    /// Nothing is going to be asked of it for some seconds: it may close what it holds open.
    fn close_idle(&self) {}
}

/// The cache could not be read or written.
#[derive(Debug, Error)]
#[error("the cache at {location} could not be {action}: {source}")]
pub struct CacheError {
    /// Where it is: a path or a server, without secrets.
    pub location: String,
    /// `read` or `written`.
    pub action: &'static str,
    /// It went wrong a moment ago, and the store has not been asked again since.
    pub known: bool,
    /// What went wrong.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

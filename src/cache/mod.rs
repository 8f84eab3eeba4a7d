//! Small entries that processes share, each with an expiry: which workers consume which transports, and when workers
//! were asked to stop.
//!
//! Entries are in *groups*, which are read as a whole: all heartbeats of a transport, for example. A store keeps them
//! (`FileStore` by default). [`Cache`] serves repeated reads from memory for a moment.

mod file;
mod file_name;
mod front;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod open;
#[cfg(feature = "redis")]
mod redis;
mod sql;

pub(crate) use file::FileStore;
pub use front::Cache;
pub(crate) use front::READ_TTL;
#[cfg(any(test, feature = "testing"))]
pub(crate) use memory::MemoryStore;
pub use open::open_store;
pub(crate) use open::{cache_options, open_store_on};

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use thiserror::Error;

/// An entry written further in the future than this was written before the clock was set back, and is ignored.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// An entry that has not expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Unique within its group.
    pub key: String,
    /// Its content.
    pub value: String,
    /// When it was last written.
    pub written_at: SystemTime,
    /// When it expires.
    pub expires_at: SystemTime,
}

/// Keeps entries that several processes can read.
///
/// Groups and keys may be any text. An entry is read completely or not at all, even while it is being written, or if
/// its writer is killed.
#[async_trait]
pub trait CacheStore: Send + Sync {
    /// Writes an entry that expires after `ttl`. Replaces an earlier one with the same key.
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError>;

    /// Removes an entry. It is no error if there is none.
    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError>;

    /// The entries of a group that have not expired, in the order of their keys. Damaged entries are left out, with a
    /// warning.
    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError>;

    /// Claims `key` for `owner`, for `ttl` from now. Returns `true` if the claim is now, or was already, `owner`'s, and
    /// `false` if it is another's. If several ask at once, exactly one gets it. A claim is an entry whose value is its
    /// owner.
    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError>;

    /// Gives a claim up. Does nothing if it is not `owner`'s.
    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError>;

    /// Where the store is, as errors name it: a path or a server, without secrets.
    fn location(&self) -> String;

    /// Creates what is missing. Writing an entry does this too.
    async fn set_up(&self) -> Result<(), CacheError> {
        Ok(())
    }

    /// The statements of SQL that create it in an empty database. None if it is not in a database.
    fn schema(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether there is nothing to create.
    async fn is_set_up(&self) -> Result<bool, CacheError> {
        Ok(true)
    }

    /// Closes what is open, because the store will not be used for some seconds. Its next use opens it again.
    fn close_idle(&self) {}
}

/// The cache could not be read or written.
#[derive(Debug, Error)]
#[error("the cache at {location} could not be {action}: {source}")]
pub struct CacheError {
    /// Where the cache is: a path or a server, without secrets.
    pub location: String,
    /// `read` or `written`.
    pub action: &'static str,
    /// The error is that of an earlier call a moment ago. The store has not been asked again since.
    pub known: bool,
    /// What went wrong.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

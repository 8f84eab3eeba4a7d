//! A cache in front of a store: keeps what was read a moment ago, and limits the time that a slow store may take.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{CacheEntry, CacheError, CacheStore};
use crate::clock;

/// How long entries that were read are served from memory. A producer that dispatches thousands of messages a second
/// reads the store four times a second. In return, it may notice this much later that the last worker has gone.
pub(crate) const READ_TTL: Duration = Duration::from_millis(250);

/// How long the store may take to respond: a dispatch may be waiting.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);

/// After a failure, the store is not used for this many times the time that it took to fail, between the shortest and
/// the longest pause. So a store that refuses at once is tried again soon, and one that does not respond costs only a
/// small part of the time.
const PAUSE_FACTOR: u32 = 5;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A store, with its recent entries in memory.
pub struct Cache {
    store: Arc<dyn CacheStore>,
    recent: moka::sync::Cache<String, Arc<RecentRead>>,
    down: Mutex<Option<Down>>,
}

/// Entries that were read from the store.
struct RecentRead {
    entries: Vec<CacheEntry>,
    /// By tokio's clock, which tests can pause, unlike that of the memory cache.
    read_at: Instant,
}

/// A store that failed a moment ago.
struct Down {
    /// When it is used again.
    until: Instant,
    /// What went wrong.
    why: String,
}

impl Cache {
    /// A cache in front of a store.
    pub fn new(store: Arc<dyn CacheStore>) -> Self {
        let recent = moka::sync::Cache::builder().max_capacity(1_000).time_to_live(READ_TTL).build();
        Self { store, recent, down: Mutex::new(None) }
    }

    /// See [`CacheStore::put`].
    pub async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        self.write(group, self.store.put(group, key, value, ttl)).await
    }

    /// See [`CacheStore::remove`].
    pub async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.write(group, self.store.remove(group, key)).await
    }

    /// See [`CacheStore::list`]. Always reads the store.
    pub async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        self.ask("read", self.store.list(group)).await
    }

    /// See [`CacheStore::claim`].
    pub async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        self.write(group, self.store.claim(group, key, owner, ttl)).await
    }

    /// See [`CacheStore::unclaim`].
    pub async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        self.write(group, self.store.unclaim(group, key, owner)).await
    }

    /// The entries of a group as they were at most a quarter of a second ago, without those that have expired since.
    pub async fn list_recent(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let answer = match self.recent.get(group).filter(|answer| answer.read_at.elapsed() < READ_TTL) {
            Some(answer) => answer,
            None => {
                let (read_at, entries) = (Instant::now(), self.list(group).await?);
                let answer = Arc::new(RecentRead { entries, read_at });
                self.recent.insert(group.to_owned(), Arc::clone(&answer));
                answer
            }
        };
        let now = clock::now();
        Ok(answer.entries.iter().filter(|entry| entry.expires_at > now).cloned().collect())
    }

    /// See [`CacheStore::set_up`]. Without a time limit.
    pub async fn set_up(&self) -> Result<(), CacheError> {
        self.store.set_up().await
    }

    /// See [`CacheStore::schema`].
    pub fn schema(&self) -> Vec<String> {
        self.store.schema()
    }

    /// See [`CacheStore::location`].
    pub fn location(&self) -> String {
        self.store.location()
    }

    /// See [`CacheStore::is_set_up`]. Without a time limit.
    pub async fn is_set_up(&self) -> Result<bool, CacheError> {
        self.store.is_set_up().await
    }

    /// See [`CacheStore::close_idle`].
    pub fn close_idle(&self) {
        self.store.close_idle();
    }

    async fn write<T>(&self, group: &str, asked: impl Future<Output = Result<T, CacheError>>) -> Result<T, CacheError> {
        let result = self.ask("written", asked).await;
        self.recent.invalidate(group);
        result
    }

    /// Waits for the store, up to the time limit. If it failed a moment ago, returns that error at once, marked as
    /// [known](CacheError::known).
    async fn ask<T>(
        &self,
        action: &'static str,
        asked: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        if let Some(why) = self.is_down() {
            return Err(CacheError { location: self.store.location(), action, known: true, source: why.into() });
        }
        let begun = Instant::now();
        let result = tokio::time::timeout(STORE_TIMEOUT, asked).await.unwrap_or_else(|_| {
            let source = format!("no response within {} s", STORE_TIMEOUT.as_secs()).into();
            Err(CacheError { location: self.store.location(), action, known: false, source })
        });
        *self.down() = result.as_ref().err().map(|error| {
            let pause = (begun.elapsed() * PAUSE_FACTOR).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            Down { until: Instant::now() + pause, why: error.source.to_string() }
        });
        result
    }

    /// The error of a moment ago. After the pause, one caller tries the store again, and the others do not wait for the
    /// result.
    fn is_down(&self) -> Option<String> {
        let mut down = self.down();
        let known = down.as_mut()?;
        let now = Instant::now();
        if now < known.until {
            return Some(known.why.clone());
        }
        known.until = now + STORE_TIMEOUT;
        None
    }

    fn down(&self) -> MutexGuard<'_, Option<Down>> {
        // A panic while the lock is held leaves nothing half changed.
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

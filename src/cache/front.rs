//! A cache's memory of what it read a moment ago, and its patience with a store that does not answer.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{CacheError, CacheEntry, CacheStore};
use crate::clock;

/// How old an answer from memory may be. A producer that dispatches thousands of messages a second asks the store four
/// times a second; the price is that it may learn this much later that the last worker has gone.
pub const READ_TTL: Duration = Duration::from_millis(250);

/// How long the store may take to answer: a dispatch may be waiting.
const PATIENCE: Duration = Duration::from_secs(1);

/// A store that failed is left alone for so many times as long as it took to fail, within bounds: one that refuses at
/// once is asked again soon, and one that does not answer at all costs but a small part of the time.
const PAUSE_FACTOR: u32 = 5;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A store with a short memory.
pub struct Cache {
    store: Arc<dyn CacheStore>,
    recent: moka::sync::Cache<String, Arc<Answer>>,
    down: Mutex<Option<Down>>,
}

/// What a store has answered.
struct Answer {
    entries: Vec<CacheEntry>,
    /// Here, and not by the memory's own clock, which no test can pause.
    read_at: Instant,
}

/// What is known of a store that does not do its work at present.
struct Down {
    /// When it is asked again.
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

    /// See [`CacheStore::list`]. Always asks the store.
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

    /// The entries of a group as they were at most a quarter of a second ago, less those that have expired since.
    pub async fn list_recent(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let answer = match self.recent.get(group).filter(|answer| answer.read_at.elapsed() < READ_TTL) {
            Some(answer) => answer,
            None => {
                let (read_at, entries) = (Instant::now(), self.list(group).await?);
                let answer = Arc::new(Answer { entries, read_at });
                self.recent.insert(group.to_owned(), Arc::clone(&answer));
                answer
            }
        };
        let now = clock::now();
        Ok(answer.entries.iter().filter(|entry| entry.expires_at > now).cloned().collect())
    }

    /// See [`CacheStore::set_up`]. Takes its time.
    pub async fn set_up(&self) -> Result<(), CacheError> {
        self.store.set_up().await
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

    /// Waits for the store, but not for long; where it failed a moment ago, not at all, and the error says that this is
    /// [known already](CacheError::known).
    async fn ask<T>(
        &self,
        action: &'static str,
        asked: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        if let Some(why) = self.is_down() {
            return Err(CacheError { location: self.store.location(), action, known: true, source: why.into() });
        }
        let begun = Instant::now();
        let result = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
            let source = format!("no answer within {} s", PATIENCE.as_secs()).into();
            Err(CacheError { location: self.store.location(), action, known: false, source })
        });
        *self.down() = result.as_ref().err().map(|error| {
            let pause = (begun.elapsed() * PAUSE_FACTOR).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            Down { until: Instant::now() + pause, why: error.source.to_string() }
        });
        result
    }

    /// What went wrong a moment ago. After the pause one caller asks, and the others do not wait for what it finds.
    fn is_down(&self) -> Option<String> {
        let mut down = self.down();
        let known = down.as_mut()?;
        let now = Instant::now();
        if now < known.until {
            return Some(known.why.clone());
        }
        known.until = now + PATIENCE;
        None
    }

    fn down(&self) -> MutexGuard<'_, Option<Down>> {
        // A panic while the lock is held leaves nothing half done.
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

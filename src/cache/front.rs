//! A cache's memory of what it read a moment ago, and its patience with a store that does not answer.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{CacheError, Fact, Store};

/// How old an answer from memory may be. A producer that dispatches thousands of messages a second asks the store four
/// times a second; the price is that it may learn this much later that the last worker has gone.
pub const RECENT: Duration = Duration::from_millis(250);

/// How long the store may take to answer: a dispatch may be waiting.
const PATIENCE: Duration = Duration::from_secs(1);

/// For how long a store that failed is not asked whether it is there again.
const PAUSE: Duration = Duration::from_secs(5);

/// A store with a short memory.
pub struct Cache {
    store: Arc<dyn Store>,
    recent: moka::sync::Cache<String, Arc<Vec<Fact>>>,
    /// When the store failed last, if that was the last that was heard of it, and how.
    down: Mutex<Option<(Instant, String)>>,
}

impl Cache {
    /// A cache in front of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let recent = moka::sync::Cache::builder().max_capacity(1_000).time_to_live(RECENT).build();
        Self { store, recent, down: Mutex::new(None) }
    }

    /// See [`Store::put`].
    pub async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        self.write(group, self.store.put(group, key, value, ttl)).await
    }

    /// See [`Store::remove`].
    pub async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.write(group, self.store.remove(group, key)).await
    }

    /// See [`Store::list`]. Always asks the store.
    pub async fn list(&self, group: &str) -> Result<Vec<Fact>, CacheError> {
        self.ask("read", self.store.list(group)).await
    }

    /// See [`Store::claim`].
    pub async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        self.write(group, self.store.claim(group, key, owner, ttl)).await
    }

    /// See [`Store::unclaim`].
    pub async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        self.write(group, self.store.unclaim(group, key, owner)).await
    }

    /// The facts of a group as they were at most a quarter of a second ago, less those that have expired since.
    ///
    /// A store that failed a moment ago is not asked: who dispatches does not wait for it each time. Then the error says
    /// that it is [known already](CacheError::known).
    pub async fn list_recent(&self, group: &str) -> Result<Vec<Fact>, CacheError> {
        let facts = match self.recent.get(group) {
            Some(facts) => facts,
            None => {
                if let Some(error) = self.is_down() {
                    return Err(error);
                }
                let facts = Arc::new(self.list(group).await?);
                self.recent.insert(group.to_owned(), Arc::clone(&facts));
                facts
            }
        };
        let now = SystemTime::now();
        Ok(facts.iter().filter(|fact| fact.expires_at > now).cloned().collect())
    }

    /// See [`Store::set_up`]. Takes its time.
    pub async fn set_up(&self) -> Result<(), CacheError> {
        self.store.set_up().await
    }

    /// See [`Store::rest`].
    pub fn rest(&self) {
        self.store.rest();
    }

    async fn write<T>(&self, group: &str, asked: impl Future<Output = Result<T, CacheError>>) -> Result<T, CacheError> {
        let result = self.ask("written", asked).await;
        self.recent.invalidate(group);
        result
    }

    /// Waits for the store, but not for long.
    async fn ask<T>(
        &self,
        action: &'static str,
        asked: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        let result = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
            let source = format!("no answer within {} s", PATIENCE.as_secs()).into();
            Err(CacheError { place: self.store.place(), action, known: false, source })
        });
        *self.down() = result.as_ref().err().map(|error| (Instant::now(), error.source.to_string()));
        result
    }

    /// What went wrong a moment ago.
    fn is_down(&self) -> Option<CacheError> {
        let down = self.down();
        let (_, why) = down.as_ref().filter(|(since, _)| since.elapsed() < PAUSE)?;
        Some(CacheError { place: self.store.place(), action: "read", known: true, source: why.clone().into() })
    }

    fn down(&self) -> std::sync::MutexGuard<'_, Option<(Instant, String)>> {
        // A panic while the lock is held leaves nothing half done.
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! A cache's memory of what it read a moment ago.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{CacheError, Fact, Store};

/// How old an answer from memory may be. A producer that dispatches thousands of messages a second asks the store four
/// times a second; the price is that it may learn this much later that the last worker has gone.
pub const RECENT: Duration = Duration::from_millis(250);

/// A store with a short memory.
pub struct Cache {
    store: Arc<dyn Store>,
    recent: moka::sync::Cache<String, Arc<Vec<Fact>>>,
}

impl Cache {
    /// A cache in front of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, recent: moka::sync::Cache::builder().max_capacity(1_000).time_to_live(RECENT).build() }
    }

    /// See [`Store::put`].
    pub async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        let result = self.store.put(group, key, value, ttl).await;
        self.recent.invalidate(group);
        result
    }

    /// See [`Store::remove`].
    pub async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        let result = self.store.remove(group, key).await;
        self.recent.invalidate(group);
        result
    }

    /// See [`Store::list`]. Always asks the store.
    pub async fn list(&self, group: &str) -> Result<Vec<Fact>, CacheError> {
        self.store.list(group).await
    }

    /// See [`Store::claim`].
    pub async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        let result = self.store.claim(group, key, owner, ttl).await;
        self.recent.invalidate(group);
        result
    }

    /// See [`Store::unclaim`].
    pub async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        let result = self.store.unclaim(group, key, owner).await;
        self.recent.invalidate(group);
        result
    }

    /// The facts of a group as they were at most a quarter of a second ago, less those that have expired since.
    pub async fn list_recent(&self, group: &str) -> Result<Vec<Fact>, CacheError> {
        let facts = match self.recent.get(group) {
            Some(facts) => facts,
            None => {
                let facts = Arc::new(self.store.list(group).await?);
                self.recent.insert(group.to_owned(), Arc::clone(&facts));
                facts
            }
        };
        let now = SystemTime::now();
        Ok(facts.iter().filter(|fact| fact.expires_at > now).cloned().collect())
    }
}

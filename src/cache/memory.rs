//! Entries in this process, for tests: no other process sees them, and their expiry follows tokio's clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{CacheEntry, CacheError, CacheStore};
use crate::clock;

/// The longest time to live. Longer ones could overflow.
const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Keeps entries in this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryStore {
    groups: Arc<Mutex<HashMap<String, Group>>>,
}

type Group = BTreeMap<String, Stored>;

#[derive(Debug)]
struct Stored {
    entry: CacheEntry,
    expires_at: Instant,
}

impl MemoryStore {
    fn groups(&self) -> MutexGuard<'_, HashMap<String, Group>> {
        // No code under the lock panics between two changes that belong together.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `action` with the entries of a group that have not expired.
    fn with<T>(&self, group: &str, action: impl FnOnce(&mut Group) -> T) -> T {
        let (mut groups, now) = (self.groups(), Instant::now());
        let group = groups.entry(group.to_owned()).or_default();
        group.retain(|_, stored| stored.expires_at > now);
        action(group)
    }
}

fn put(group: &mut Group, key: &str, value: &str, ttl: Duration) {
    let ttl = ttl.min(A_CENTURY);
    let written_at = clock::now();
    let entry = CacheEntry { key: key.to_owned(), value: value.to_owned(), written_at, expires_at: written_at + ttl };
    group.insert(key.to_owned(), Stored { entry, expires_at: Instant::now() + ttl });
}

#[async_trait]
impl CacheStore for MemoryStore {
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        self.with(group, |group| put(group, key, value, ttl));
        Ok(())
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.with(group, |group| group.remove(key));
        Ok(())
    }

    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        Ok(self.with(group, |group| group.values().map(|stored| stored.entry.clone()).collect()))
    }

    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        Ok(self.with(group, |group| {
            if group.get(key).is_some_and(|stored| stored.entry.value != owner) {
                return false;
            }
            put(group, key, owner, ttl);
            true
        }))
    }

    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        self.with(group, |group| {
            if group.get(key).is_some_and(|stored| stored.entry.value == owner) {
                group.remove(key);
            }
        });
        Ok(())
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn entries_expire_by_tokios_clock_also_those_read_from_memory() {
        let cache = Cache::new(Arc::new(MemoryStore::default()));
        cache.put("g", "a", "", MINUTE).await.unwrap();
        cache.put("g", "b", "", 3 * MINUTE).await.unwrap();
        assert_eq!(cache.list_recent("g").await.unwrap().len(), 2);
        tokio::time::sleep(2 * MINUTE).await;
        let left = |entries: Vec<CacheEntry>| entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
        assert_eq!(left(cache.list_recent("g").await.unwrap()), ["b"]);
        assert!(cache.claim("g", "a", "me", MINUTE).await.unwrap());
        assert!(!cache.claim("g", "a", "you", MINUTE).await.unwrap());
        tokio::time::sleep(2 * MINUTE).await;
        assert!(cache.claim("g", "a", "you", MINUTE).await.unwrap());
        assert_eq!(left(cache.list_recent("g").await.unwrap()), ["a"]);
    }
}

//! Notifies waiting tasks that a server has reported a change.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Counts the changes of each key with subscribers. A subscriber compares counts, so it misses no change while it is
/// not waiting.
pub(crate) struct Notifier<K> {
    counters: Mutex<HashMap<K, Arc<watch::Sender<u64>>>>,
}

impl<K> Default for Notifier<K> {
    fn default() -> Self {
        Self { counters: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Notifier<K> {
    /// The total count of changes of these keys. Earlier changes count as seen.
    pub(crate) fn subscribe<const N: usize>(&self, keys: [K; N]) -> watch::Receiver<u64> {
        let mut counters = self.counters();
        let known = keys.iter().find_map(|key| counters.get(key).cloned());
        let counter = known.unwrap_or_default();
        for key in keys {
            counters.entry(key).or_insert_with(|| Arc::clone(&counter));
        }
        counter.subscribe()
    }

    /// Counts a change of a key. Does nothing if it has no subscribers.
    pub(crate) fn notify(&self, key: &K) {
        if let Some(counter) = self.counters().get(key) {
            counter.send_modify(|count| *count += 1);
        }
    }

    /// Wakes all waiters: anything may have changed.
    pub(crate) fn notify_all(&self) {
        for counter in self.counters().values() {
            counter.send_modify(|count| *count += 1);
        }
    }

    /// All keys with subscribers.
    #[cfg(feature = "redis")]
    pub(crate) fn keys(&self) -> Vec<K> {
        self.counters().keys().cloned().collect()
    }

    fn counters(&self) -> MutexGuard<'_, HashMap<K, Arc<watch::Sender<u64>>>> {
        // At worst, a panic while the lock is held loses an entry.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_see_the_changes_of_their_keys_alone() {
        let notifier = Notifier::default();
        let (mut a, mut b) = (notifier.subscribe(["a", "a2"]), notifier.subscribe(["b"]));
        notifier.notify(&"a2");
        notifier.notify(&"unknown");
        assert!(a.has_changed().unwrap() && !b.has_changed().unwrap());
        assert!(!notifier.subscribe(["a"]).has_changed().unwrap());
        a.mark_unchanged();
        notifier.notify_all();
        assert!(a.has_changed().unwrap() && b.borrow_and_update().has_changed());
    }
}

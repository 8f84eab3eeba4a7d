//! Tells waiting tasks that a server has reported a change.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Counts the changes of each key that somebody subscribed to. A subscriber compares counts, so it misses no change that
/// came while it was not waiting.
pub(crate) struct Notifier<K> {
    counters: Mutex<HashMap<K, Arc<watch::Sender<u64>>>>,
}

impl<K> Default for Notifier<K> {
    fn default() -> Self {
        Self { counters: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Notifier<K> {
    /// The count of changes of these keys, together. All that happened before counts as seen.
    pub(crate) fn subscribe<const N: usize>(&self, keys: [K; N]) -> watch::Receiver<u64> {
        let mut counters = self.counters();
        let known = keys.iter().find_map(|key| counters.get(key).cloned());
        let counter = known.unwrap_or_default();
        for key in keys {
            counters.entry(key).or_insert_with(|| Arc::clone(&counter));
        }
        counter.subscribe()
    }

    /// A key has changed. Does nothing where nobody has subscribed to it.
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

    /// All keys that somebody subscribed to.
    #[cfg(feature = "redis")]
    pub(crate) fn keys(&self) -> Vec<K> {
        self.counters().keys().cloned().collect()
    }

    fn counters(&self) -> MutexGuard<'_, HashMap<K, Arc<watch::Sender<u64>>>> {
        // A panic while the lock is held leaves at worst an entry out.
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

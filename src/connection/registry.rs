//! Values that are shared by all callers with the same key, for as long as one of them holds the value.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Shared values by key. Holds none of them itself.
pub(super) struct Registry<K, V> {
    shared: Mutex<HashMap<K, Weak<V>>>,
}

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Self { shared: Mutex::default() }
    }
}

impl<K: Eq + Hash, V> Registry<K, V> {
    /// The value that is in use under this key, or a new one.
    pub(super) fn get_or_create(&self, key: K, create: impl FnOnce(&K) -> V) -> Arc<V> {
        match self.get_or_try_create(key, |key| Ok::<V, Infallible>(create(key))) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    /// The same, if creating may fail.
    pub(super) fn get_or_try_create<E>(&self, key: K, create: impl FnOnce(&K) -> Result<V, E>) -> Result<Arc<V>, E> {
        // At worst, a panic while the lock is held loses an entry.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = shared.get(&key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        let value = Arc::new(create(&key)?);
        shared.insert(key, Arc::downgrade(&value));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_shared_for_as_long_as_it_is_in_use() {
        let registry = Registry::default();
        let first = registry.get_or_create("a", |_| 1);
        assert_eq!(*registry.get_or_create("a", |_| 2), 1);
        assert_eq!(*registry.get_or_create("b", |_| 3), 3);
        drop(first);
        assert_eq!(*registry.get_or_create("a", |_| 4), 4);
    }

    #[test]
    fn creating_is_tried_again_after_a_failure() {
        let registry = Registry::default();
        assert_eq!(registry.get_or_try_create("a", |_| Err::<i32, _>("no")).unwrap_err(), "no");
        assert_eq!(*registry.get_or_create("a", |_| 1), 1);
    }
}

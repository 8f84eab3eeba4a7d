//! The states that all handlers of an application share.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::HandlerError;

/// The states of an application, by type.
#[derive(Clone, Default)]
pub struct States {
    by_type: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

/// A state, and the function that creates it when it is first needed.
struct Cell<T> {
    value: OnceCell<T>,
    make: Option<Make<T>>,
}

type Make<T> = Box<dyn Fn() -> BoxFuture<'static, Result<T, HandlerError>> + Send + Sync>;

impl States {
    pub(crate) fn insert<T: Clone + Send + Sync + 'static>(&mut self, value: T) {
        self.add(Cell { value: OnceCell::new_with(Some(value)), make: None });
    }

    pub(crate) fn insert_lazy<T, F, R, E>(&mut self, make: F)
    where
        T: Clone + Send + Sync + 'static,
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<HandlerError> + 'static,
    {
        let make: Make<T> = Box::new(move || make().map(|made| made.map_err(Into::into)).boxed());
        self.add(Cell { value: OnceCell::new(), make: Some(make) });
    }

    fn add<T: Clone + Send + Sync + 'static>(&mut self, cell: Cell<T>) {
        self.by_type.insert(TypeId::of::<T>(), Arc::new(cell));
    }

    /// Whether there is a state of this type.
    pub fn has<T: 'static>(&self) -> bool {
        self.by_type.contains_key(&TypeId::of::<T>())
    }

    /// A clone of the state, if it has been created: a lazy one may not have been needed yet.
    pub fn created<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.by_type.get(&TypeId::of::<T>())?.downcast_ref::<Cell<T>>()?.value.get().cloned()
    }

    /// A clone of the state. A lazy state is created by the first call; if that fails, the next call tries again.
    pub async fn get<T: Clone + Send + Sync + 'static>(&self) -> Result<T, HandlerError> {
        let cell = self.by_type.get(&TypeId::of::<T>()).and_then(|cell| cell.downcast_ref::<Cell<T>>());
        let Some(cell) = cell else {
            return Err(HandlerError::failed(format!("there is no state of type {}", type_name::<T>())));
        };
        let made = cell.value.get_or_try_init(|| async {
            match &cell.make {
                Some(make) => make().await,
                // Unreachable: such a cell has its value from the start.
                None => Err(HandlerError::failed(format!("there is no state of type {}", type_name::<T>()))),
            }
        });
        let made = made.await.map_err(|error| HandlerError {
            message: format!("the state {} could not be created: {}", type_name::<T>(), error.message),
            ..error
        });
        made.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_lazy_state_is_created_once_when_it_is_needed() {
        let made = Arc::new(AtomicU32::new(0));
        let mut states = States::default();
        states.insert("Ada");
        states.insert_lazy({
            let made = Arc::clone(&made);
            move || {
                let made = made.fetch_add(1, Ordering::Relaxed);
                async move { if made == 0 { Err("not yet") } else { Ok(7_u32) } }
            }
        });
        assert!(states.has::<u32>() && !states.has::<u64>());
        assert_eq!(states.get::<&str>().await.unwrap(), "Ada");
        assert_eq!(states.created::<u32>(), None);
        assert_eq!(made.load(Ordering::Relaxed), 0);
        assert!(states.get::<u32>().await.unwrap_err().message.ends_with("u32 could not be created: not yet"));
        for _ in 0..2 {
            assert_eq!(states.get::<u32>().await.unwrap(), 7);
        }
        assert_eq!(made.load(Ordering::Relaxed), 2);
        assert_eq!(states.get::<u64>().await.unwrap_err().message, "there is no state of type u64");
    }
}

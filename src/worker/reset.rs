//! Resets what handlers share, between two messages (as Symfony resets its services).

use std::future::Future;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};

use crate::handler::{HandlerError, Handlers, States, caught};

type Reset = Arc<dyn Fn(States) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync>;

/// What an application calls after each message, in this order.
#[derive(Clone, Default)]
pub(crate) struct Resets {
    all: Vec<Reset>,
}

impl Resets {
    pub(crate) fn add<F, R, E>(&mut self, reset: F)
    where
        F: Fn(States) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError> + 'static,
    {
        self.all.push(Arc::new(move |states| reset(states).map(|reset| reset.map_err(Into::into)).boxed()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Calls all of them, also after one has failed. Returns whether all have succeeded.
    pub(super) async fn run(&self, handlers: &Handlers) -> bool {
        let mut are_done = true;
        for reset in &self.all {
            // The function itself may panic, too.
            let reset = caught(async { reset(handlers.states.clone()).await });
            if let Err(error) =
                reset.await.unwrap_or_else(|panic| Err(HandlerError::failed(format!("panicked: {panic}"))))
            {
                tracing::error!(%error, "what handlers share could not be reset; the worker stops");
                are_done = false;
            }
        }
        are_done
    }
}

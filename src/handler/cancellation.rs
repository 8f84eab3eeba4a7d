//! Tells handlers that their worker is asked to stop.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

/// Is cancelled when the worker is asked to stop, by a signal for example. A long-running handler may then return an
/// error, and the message is retried. It is never cancelled while a message is handled during its dispatch.
///
/// Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct CancellationToken {
    cancelled: Option<Arc<watch::Sender<bool>>>,
}

impl CancellationToken {
    /// A token that can be cancelled.
    pub(crate) fn new() -> Self {
        Self { cancelled: Some(Arc::new(watch::Sender::new(false))) }
    }

    pub(crate) fn cancel(&self) {
        if let Some(cancelled) = &self.cancelled {
            cancelled.send_replace(true);
        }
    }

    /// Whether the worker is asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.as_ref().is_some_and(|cancelled| *cancelled.borrow())
    }

    /// Returns when the worker is asked to stop.
    pub async fn cancelled(&self) {
        match &self.cancelled {
            // The channel stays open for as long as this value exists, which has its sender.
            Some(cancelled) => drop(cancelled.subscribe().wait_for(|cancelled| *cancelled).await.map(drop)),
            None => pending().await,
        }
    }
}

//! What passes between a worker and its handlers: the worker is asked to stop, and a handler asks for it.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::{Argument, HandlerContext, HandlerError};

/// Is cancelled when the worker is asked to stop, by a signal for example. A long-running handler may then return an
/// error, and the message is retried. It is never cancelled while a message is handled during its dispatch.
///
/// Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct CancellationToken {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    cancelled: watch::Sender<bool>,
    /// A handler wants the worker to stop.
    stop_wanted: AtomicBool,
}

impl CancellationToken {
    /// A token that can be cancelled.
    pub(crate) fn new() -> Self {
        let shared = Shared { cancelled: watch::Sender::new(false), stop_wanted: AtomicBool::new(false) };
        Self { shared: Some(Arc::new(shared)) }
    }

    pub(crate) fn cancel(&self) {
        if let Some(shared) = &self.shared {
            shared.cancelled.send_replace(true);
        }
    }

    /// Whether the worker is asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| *shared.cancelled.borrow())
    }

    /// Returns when the worker is asked to stop.
    pub async fn cancelled(&self) {
        match &self.shared {
            // The channel stays open for as long as this value exists, which has its sender.
            Some(shared) => drop(shared.cancelled.subscribe().wait_for(|cancelled| *cancelled).await.map(drop)),
            None => pending().await,
        }
    }

    /// Asks the worker to stop when a message has ended. Returns whether there is a worker.
    pub(crate) fn want_stop(&self) -> bool {
        let Some(shared) = &self.shared else { return false };
        shared.stop_wanted.store(true, Ordering::Relaxed);
        true
    }

    /// Whether a handler wants the worker to stop.
    pub(crate) fn is_stop_wanted(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.stop_wanted.load(Ordering::Relaxed))
    }
}

/// The worker that handles the message, as an argument of a handler.
///
/// ```
/// use minutely::handler::CurrentWorker;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Reload {}
/// # impl minutely::message::Message for Reload { const TYPE: &'static str = r"App\Message\Reload"; }
///
/// async fn reload(_: Reload, worker: CurrentWorker) {
///     // The message is handled. Its worker ends, and the supervisor starts a new one.
///     worker.stop_after_this();
/// }
/// # let app = minutely::App::builder().handle(reload);
/// ```
///
/// A handler that fails stops its worker with [`HandlerError::stopping_worker`].
#[derive(Debug, Clone)]
pub struct CurrentWorker {
    token: CancellationToken,
}

impl CurrentWorker {
    /// Asks the worker to stop after this message, once it has finished those that it handles at the same time. Returns
    /// `false`, and does nothing, if the message is handled during its dispatch.
    pub fn stop_after_this(&self) -> bool {
        self.token.want_stop()
    }
}

impl Argument for CurrentWorker {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(Self { token: context.cancellation().clone() })
    }
}

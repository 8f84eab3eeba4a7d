//! How a worker is asked to stop: within its process by a [`StopToken`], and from other processes by a
//! [`StopBroadcast`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::StopReason;
use crate::cache::{Cache, CacheError};
use crate::handler::CancellationToken;

const GROUP: &str = "workers";
const KEY: &str = "stop";

/// How long the request stays in the cache: long enough for a worker that handles one message for days.
const REQUEST_TTL: Duration = Duration::from_secs(7 * 86_400);

/// How often workers check for it.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Asks one worker to stop. Clones share one state.
#[derive(Debug, Clone)]
pub(crate) struct StopToken {
    sender: Arc<watch::Sender<State>>,
    receiver: watch::Receiver<State>,
    cancellation: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct State {
    reason: Option<StopReason>,
    /// Whether the worker is ending, so that failed operations are not tried again.
    is_ending: bool,
    /// Whether it has no message in hand any more, and will have none.
    has_finished: bool,
}

impl Default for StopToken {
    fn default() -> Self {
        let (sender, receiver) = watch::channel(State { reason: None, is_ending: false, has_finished: false });
        Self { sender: Arc::new(sender), receiver, cancellation: CancellationToken::new() }
    }
}

impl StopToken {
    /// A token without a request.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Asks the worker to finish its current messages and to stop. The first reason counts.
    pub(crate) fn request(&self, reason: StopReason) {
        self.sender.send_modify(|state| state.reason = state.reason.or(Some(reason)));
        self.cancellation.cancel();
    }

    /// A token for handlers, which is cancelled when a stop is requested.
    pub(super) fn cancellation(&self) -> CancellationToken {
        self.cancellation.clone()
    }

    /// Stops the worker if a handler has asked for it.
    pub(super) fn heed_handlers(&self) {
        if self.cancellation.is_stop_wanted() {
            self.request(StopReason::Handler);
        }
    }

    /// The reason to stop, if a stop was requested.
    pub(crate) fn requested(&self) -> Option<StopReason> {
        self.receiver.borrow().reason
    }

    /// Returns when a stop is requested.
    pub(crate) async fn wait(&mut self) {
        // The channel stays open for as long as this value exists, which has its sender.
        let _ = self.receiver.wait_for(|state| state.reason.is_some()).await;
    }

    /// The worker is ending: from now on, failed operations are not tried again.
    pub(super) fn stop_retrying(&self) {
        self.sender.send_modify(|state| state.is_ending = true);
    }

    /// The worker has finished its last message.
    pub(super) fn finished(&self) {
        self.sender.send_modify(|state| state.has_finished = true);
    }

    /// Whether the worker has finished its last message, and only ends what is left: hooks, for example.
    pub(crate) fn has_finished(&self) -> bool {
        self.receiver.borrow().has_finished
    }

    /// Whether to try failed operations again.
    pub(super) fn may_retry(&self) -> bool {
        let state = *self.receiver.borrow();
        !state.is_ending && state.reason.is_none()
    }
}

/// Asks all running workers to stop, by an entry in the cache (Symfony: `messenger:stop-workers`).
#[derive(Clone)]
pub(crate) struct StopBroadcast {
    cache: Arc<Cache>,
}

impl StopBroadcast {
    /// A broadcast to the workers that share this cache.
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    /// Asks every worker that runs now to stop. Workers that are started later are not affected.
    pub(crate) async fn send(&self) -> Result<(), CacheError> {
        self.cache.put(GROUP, KEY, "", REQUEST_TTL).await
    }

    /// Passes the request on to `stop` for a worker that started at `since`. Runs until then.
    pub(crate) async fn watch(self, stop: StopToken, since: SystemTime) {
        let mut is_readable = true;
        loop {
            match self.cache.list(GROUP).await {
                Ok(entries) if entries.iter().any(|entry| entry.key == KEY && entry.written_at >= since) => {
                    return stop.request(StopReason::Requested);
                }
                Ok(_) if is_readable => {}
                Ok(_) => {
                    is_readable = true;
                    tracing::info!("requests to stop can be read again");
                }
                // Once, and not every second.
                Err(error) if is_readable => {
                    is_readable = false;
                    tracing::warn!(%error, "requests to stop cannot be read");
                }
                Err(_) => {}
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }
}

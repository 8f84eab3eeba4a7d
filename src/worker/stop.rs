//! How a worker is asked to stop: within its process by a [`StopToken`], and from other processes by a [`StopBroadcast`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::StopReason;
use crate::cache::{Cache, CacheError};
use crate::handler::CancellationToken;

const GROUP: &str = "workers";
const KEY: &str = "stop";

/// How long the request stays in the cache: a worker that has one message in hand for days still hears of it.
const REMEMBERED: Duration = Duration::from_secs(7 * 86_400);

/// How often workers look.
const LOOK: Duration = Duration::from_secs(1);

/// Asks one worker to stop, and tells it so. Clones share one state.
#[derive(Debug, Clone)]
pub struct StopToken {
    said: Arc<watch::Sender<State>>,
    heard: watch::Receiver<State>,
    cancellation: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct State {
    reason: Option<StopReason>,
    impatient: bool,
}

impl Default for StopToken {
    fn default() -> Self {
        let (said, heard) = watch::channel(State { reason: None, impatient: false });
        Self { said: Arc::new(said), heard, cancellation: CancellationToken::new() }
    }
}

impl StopToken {
    /// Nobody has said anything yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the worker to finish what it has in hand and to stop. The first reason stands.
    pub fn request(&self, reason: StopReason) {
        self.said.send_modify(|state| state.reason = state.reason.or(Some(reason)));
        self.cancellation.cancel();
    }

    /// For handlers: is cancelled when a stop is requested.
    pub(super) fn cancellation(&self) -> CancellationToken {
        self.cancellation.clone()
    }

    /// Why to stop, if so.
    pub fn requested(&self) -> Option<StopReason> {
        self.heard.borrow().reason
    }

    /// Returns when a stop is requested.
    pub async fn wait(&mut self) {
        // The channel is open for as long as this value lives: its sender is in it.
        let _ = self.heard.wait_for(|state| state.reason.is_some()).await;
    }

    /// From now on a store that fails is not tried again: the worker is about to end.
    pub(super) fn no_more_patience(&self) {
        self.said.send_modify(|state| state.impatient = true);
    }

    /// Whether to try again what failed.
    pub(super) fn is_patient(&self) -> bool {
        let state = *self.heard.borrow();
        !state.impatient && state.reason.is_none()
    }
}

/// Asks all running workers to stop, by an entry in the cache (Symfony: `messenger:stop-workers`).
#[derive(Clone)]
pub struct StopBroadcast {
    cache: Arc<Cache>,
}

impl StopBroadcast {
    /// To the workers that share this cache.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    /// Asks every worker that runs now to stop. Those started later are not meant.
    pub async fn send(&self) -> Result<(), CacheError> {
        self.cache.put(GROUP, KEY, "", REMEMBERED).await
    }

    /// Passes the request on to `stop` for a worker that started at `since`. Runs until then.
    pub async fn watch(self, stop: StopToken, since: SystemTime) {
        let mut readable = true;
        loop {
            match self.cache.list(GROUP).await {
                Ok(entries) if entries.iter().any(|entry| entry.key == KEY && entry.written_at >= since) => {
                    return stop.request(StopReason::Requested);
                }
                Ok(_) if readable => {}
                Ok(_) => {
                    readable = true;
                    tracing::info!("whether workers are to stop can be read again");
                }
                // Once, and not every second.
                Err(error) if readable => {
                    readable = false;
                    tracing::warn!(%error, "whether workers are to stop cannot be read");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

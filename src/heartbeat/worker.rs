//! The heartbeat of one worker, renewed by a task of its own: a handler that runs for ten minutes does not make the
//! worker look dead.
//!
//! A heartbeat promises that messages are taken. So the worker reports for each of its sources whether it can receive
//! from it, and has a heartbeat only for those.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::Heartbeats;

/// How long withdrawing may take, with what must end before it. Longer than the pause of the cache after a short error, so that
/// a cache that is locked for a moment does not make producers queue messages without a consumer; and no longer, because the
/// worker waits.
const WITHDRAW_TIMEOUT: Duration = Duration::from_millis(1500);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Renews a worker's heartbeats until it is stopped.
pub(crate) struct WorkerHeartbeat {
    beats: Beats,
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
    receiving: Arc<watch::Sender<Vec<bool>>>,
}

/// Reports which sources a worker can receive from.
#[derive(Clone)]
pub(crate) struct SourceReporter(Arc<watch::Sender<Vec<bool>>>);

impl SourceReporter {
    /// Reports whether the worker can receive from the source with this index.
    pub(crate) fn report(&self, source: usize, receives: bool) {
        self.0.send_if_modified(|receiving| match receiving.get_mut(source) {
            Some(before) => std::mem::replace(before, receives) != receives,
            None => false,
        });
    }
}

/// What is written to the cache.
#[derive(Clone)]
struct Beats {
    heartbeats: Heartbeats,
    /// The names under which producers ask for each source.
    sources: Vec<Vec<String>>,
    owner: String,
    ttl: Duration,
}

impl WorkerHeartbeat {
    /// Starts the task for these sources, each with the names under which producers ask for it. There is no heartbeat
    /// until the worker reports that it receives from a source. Then there is one at once, which is renewed every
    /// quarter of its `ttl`, so that it does not expire even if some renewals fail.
    pub(crate) fn start(heartbeats: Heartbeats, sources: Vec<Vec<String>>, owner: String, ttl: Duration) -> Self {
        let (receiving, mut reports) = watch::channel(vec![false; sources.len()]);
        let beats = Beats { heartbeats, sources, owner, ttl };
        let (end, mut ended) = oneshot::channel();
        let task = tokio::spawn({
            let beats = beats.clone();
            async move {
                let mut has_heartbeat = vec![false; beats.sources.len()];
                let mut next_renewal = Instant::now() + ttl / 4;
                loop {
                    let renews = tokio::select! {
                        _ = &mut ended => return,
                        _ = reports.changed() => false,
                        () = tokio::time::sleep_until(next_renewal) => true,
                    };
                    if renews {
                        next_renewal = Instant::now() + ttl / 4;
                    }
                    let receiving = reports.borrow_and_update().clone();
                    for (source, receives) in receiving.into_iter().enumerate() {
                        match (receives, std::mem::replace(&mut has_heartbeat[source], receives)) {
                            (true, before) if renews || !before => beats.renew(source).await,
                            (false, true) => beats.withdraw(source).await,
                            _ => {}
                        }
                    }
                }
            }
        });
        Self { beats, task, end, receiving: Arc::new(receiving) }
    }

    /// For reporting which sources the worker receives from.
    pub(crate) fn reporter(&self) -> SourceReporter {
        SourceReporter(Arc::clone(&self.receiving))
    }

    /// Withdraws the heartbeats, so that producers fall back at once. The heartbeats of a worker that dies instead last
    /// for the rest of their `ttl`, and so do those that a cache that is down cannot withdraw in time.
    pub(crate) async fn stop(self) {
        let Self { beats, mut task, end, receiving } = self;
        let deadline = Instant::now() + WITHDRAW_TIMEOUT;
        // A renewal that has begun is waited for: it could otherwise be written after the withdrawal.
        let _ = end.send(());
        if timeout_at(deadline, &mut task).await.is_err() {
            task.abort();
        }
        drop(receiving);
        let transports = beats.sources.iter().flatten().map(String::as_str).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        beats.heartbeats.withdraw_all(transports, &beats.owner, left).await;
    }
}

impl Beats {
    async fn renew(&self, source: usize) {
        for transport in &self.sources[source] {
            if let Err(error) = self.heartbeats.beat(transport, &self.owner, self.ttl).await {
                tracing::warn!(transport, %error, "no heartbeat; producers may handle messages themselves");
            }
        }
    }

    async fn withdraw(&self, source: usize) {
        let transports = self.sources[source].iter().map(String::as_str).collect();
        self.heartbeats.withdraw_all(transports, &self.owner, Duration::ZERO).await;
    }
}

impl Heartbeats {
    /// Withdraws `owner`'s heartbeats of these transports. Tries again for `timeout` where that fails, then logs what
    /// is left. It takes no longer, but tries each at least once.
    pub(crate) async fn withdraw_all(&self, mut transports: Vec<&str>, owner: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let mut failed = Vec::new();
            let mut last_error = None;
            for transport in transports {
                if let Err(error) = self.withdraw(transport, owner).await {
                    failed.push(transport);
                    last_error = Some(error);
                }
            }
            let Some(error) = last_error else { return };
            if Instant::now() + RETRY_PAUSE > deadline {
                let transports = failed.join(", ");
                tracing::warn!(transports, %error, "heartbeats could not be withdrawn; they expire by themselves");
                return;
            }
            transports = failed;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::{Cache, FileStore};

    #[tokio::test]
    async fn a_heartbeat_is_withdrawn_as_soon_as_the_cache_can_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let heartbeats = Heartbeats::new(Arc::new(Cache::new(Arc::new(FileStore::new(&folder)))));
        let sources = vec![vec!["a".to_owned()], vec!["b".to_owned()]];
        let heartbeat = WorkerHeartbeat::start(heartbeats.clone(), sources, "me".to_owned(), Duration::from_secs(3600));
        assert_eq!(heartbeats.of("a").await.unwrap(), [], "nobody takes messages yet");
        for source in 0..2 {
            heartbeat.reporter().report(source, true);
        }
        while heartbeats.of("b").await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(heartbeats.of("a").await.unwrap().len(), 1);
        // A file is where the folder was: nothing can be written.
        std::fs::rename(&folder, dir.path().join("aside")).unwrap();
        std::fs::write(&folder, "").unwrap();
        let stopping = tokio::spawn(heartbeat.stop());
        while heartbeats.withdraw("a", "me").await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!stopping.is_finished(), "it gives up at once");
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(dir.path().join("aside"), &folder).unwrap();
        stopping.await.unwrap();
        let other = Heartbeats::new(Arc::new(Cache::new(Arc::new(FileStore::new(&folder)))));
        for transport in ["a", "b"] {
            assert_eq!(other.of(transport).await.unwrap(), [], "{transport}");
        }
    }
}

//! The heartbeat of one worker, from a task of its own: a handler that runs for ten minutes does not look dead.
//!
//! A heartbeat promises that messages are taken. So the worker says of each of its sources whether it can take from it, and
//! only those are pinged.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Heartbeats;

/// For how long a heartbeat is tried to be taken back: longer than a cache that failed is left alone for, so that one that
/// is locked for a moment does not keep producers queueing for nobody.
const WITHDRAWING: Duration = Duration::from_secs(10);
/// Between two tries.
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// Pings for a worker until it is stopped.
pub struct Pulse {
    beating: Beating,
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
    working: Arc<watch::Sender<Vec<bool>>>,
}

/// Says which sources messages can be taken from.
#[derive(Clone)]
pub struct Voice(Arc<watch::Sender<Vec<bool>>>);

impl Voice {
    /// Whether messages can be taken from this source, by its number.
    pub fn say(&self, source: usize, works: bool) {
        self.0.send_if_modified(|working| match working.get_mut(source) {
            Some(before) => std::mem::replace(before, works) != works,
            None => false,
        });
    }
}

#[derive(Clone)]
struct Beating {
    heartbeats: Heartbeats,
    /// The names under which producers ask for each source.
    sources: Vec<Vec<String>>,
    owner: String,
    ttl: Duration,
}

impl Pulse {
    /// A pulse for these sources, each with the names under which producers ask for it. Silent at first; a source that
    /// works is pinged at once, and again often enough that a ping of `ttl` never runs out, even when some fail.
    pub fn start(heartbeats: Heartbeats, sources: Vec<Vec<String>>, owner: String, ttl: Duration) -> Self {
        let (working, mut heard) = watch::channel(vec![false; sources.len()]);
        let beating = Beating { heartbeats, sources, owner, ttl };
        let (end, mut ended) = oneshot::channel();
        let task = tokio::spawn({
            let beating = beating.clone();
            async move {
                let mut pinged = vec![false; beating.sources.len()];
                let mut next_ping = Instant::now() + ttl / 4;
                loop {
                    let all = tokio::select! {
                        _ = &mut ended => return,
                        _ = heard.changed() => false,
                        () = tokio::time::sleep_until(next_ping) => true,
                    };
                    if all {
                        next_ping = Instant::now() + ttl / 4;
                    }
                    let working = heard.borrow_and_update().clone();
                    for (source, works) in working.into_iter().enumerate() {
                        match (works, std::mem::replace(&mut pinged[source], works)) {
                            (true, before) if all || !before => beating.ping(source).await,
                            (false, true) => beating.withdraw(source).await,
                            _ => {}
                        }
                    }
                }
            }
        });
        Self { beating, task, end, working: Arc::new(working) }
    }

    /// To say which sources work.
    pub fn voice(&self) -> Voice {
        Voice(Arc::clone(&self.working))
    }

    /// Takes the heartbeat back, so that producers fall back at once. A worker that dies instead is believed alive for
    /// the rest of its `ttl`.
    pub async fn stop(self) {
        // A ping under way is waited for, and not cut off: it could still be written after the withdrawal.
        let _ = self.end.send(());
        let _ = self.task.await;
        let transports = self.beating.sources.iter().flatten().map(String::as_str).collect();
        self.beating.heartbeats.withdraw_all(transports, &self.beating.owner, WITHDRAWING).await;
    }
}

impl Beating {
    async fn ping(&self, source: usize) {
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
    /// Takes back `owner`'s heartbeats of these transports, and tries again for a while where that fails. What is left then
    /// is logged.
    pub async fn withdraw_all(&self, mut transports: Vec<&str>, owner: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let mut failed = Vec::new();
            let mut why = None;
            for transport in transports {
                if let Err(error) = self.withdraw(transport, owner).await {
                    failed.push(transport);
                    why = Some(error);
                }
            }
            let Some(error) = why else { return };
            if Instant::now() >= deadline {
                let transports = failed.join(", ");
                tracing::warn!(transports, %error, "heartbeats could not be withdrawn; they expire by themselves");
                return;
            }
            transports = failed;
            tokio::time::sleep(BETWEEN_TRIES).await;
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
        let pulse = Pulse::start(heartbeats.clone(), sources, "me".to_owned(), Duration::from_secs(3600));
        assert_eq!(heartbeats.of("a").await.unwrap(), [], "nobody takes messages yet");
        for source in 0..2 {
            pulse.voice().say(source, true);
        }
        while heartbeats.of("b").await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(heartbeats.of("a").await.unwrap().len(), 1);
        // A file is where the folder was: nothing can be written.
        std::fs::rename(&folder, dir.path().join("aside")).unwrap();
        std::fs::write(&folder, "").unwrap();
        let stopping = tokio::spawn(pulse.stop());
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

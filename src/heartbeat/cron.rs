//! The heartbeat of cron itself: on each host, when `minutely cron` and `minutely supervise` were last at work.
//!
//! It does not expire with cron: for a day it tells when cron was last there, and that it is not there any more.
//!
//! | group | key | value |
//! | --- | --- | --- |
//! | `cron-heartbeat` | `cron HOST`, `by-hand HOST`, `supervise HOST` | [`Content`] |
//!
//! Hosts with other versions of this program read them: they must not change.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::PROMISE_TTL;
use crate::cache::{Cache, CacheError};
use crate::clock;

const GROUP: &str = "cron-heartbeat";

/// How long is remembered when cron was last there.
const MEMORY: Duration = Duration::from_secs(86_400);

/// How often the heartbeat is renewed.
const RENEWAL: Duration = Duration::from_secs(15);

/// What is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CronKind {
    /// `minutely cron`, started every minute.
    Cron,
    /// `minutely cron`, started at a terminal: the cron daemon may not be there.
    ByHand,
    /// `minutely supervise`, which runs until it is stopped.
    Supervise,
}

/// When cron was last at work on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CronBeat {
    /// The host: its name, and its id.
    pub host: String,
    /// What was at work.
    pub kind: CronKind,
    /// When that was started, for the last time.
    pub started_at: DateTime<Utc>,
    /// How long ago it last gave a sign of life.
    pub age: Duration,
    /// It was stopped, and says that nothing follows it.
    pub stopped: bool,
}

/// What the cache has of it.
#[derive(Serialize, Deserialize)]
struct Content {
    started_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopped: bool,
}

impl CronKind {
    const ALL: [Self; 3] = [Self::Cron, Self::ByHand, Self::Supervise];

    fn name(self) -> &'static str {
        match self {
            Self::Cron => "cron",
            Self::ByHand => "by-hand",
            Self::Supervise => "supervise",
        }
    }
}

impl CronBeat {
    /// Is it at work, or will the next one be soon: within the minute, and some seconds?
    pub(crate) fn is_running(&self) -> bool {
        !self.stopped && self.age < PROMISE_TTL
    }
}

/// All that is known of cron, on all hosts that share the cache: the latest sign of life first.
pub(crate) async fn cron_beats(cache: &Cache) -> Result<Vec<CronBeat>, CacheError> {
    let now = clock::now();
    let beats = cache.list(GROUP).await?.into_iter().filter_map(|entry| {
        let (kind, host) = entry.key.split_once(' ')?;
        let kind = CronKind::ALL.into_iter().find(|known| known.name() == kind)?;
        let Content { started_at, stopped } = serde_json::from_str(&entry.value).ok()?;
        let age = now.duration_since(entry.written_at).unwrap_or_default();
        Some(CronBeat { host: host.to_owned(), kind, started_at, age, stopped })
    });
    let mut beats: Vec<CronBeat> = beats.collect();
    beats.sort_by_key(|beat| beat.age);
    Ok(beats)
}

/// When a cron daemon (and nobody at a terminal) last had `minutely cron` at work on this host. `None` if that was not within a
/// day. `host` is the host's id and name.
pub(crate) async fn last_cron(cache: &Cache, host: &str) -> Result<Option<CronBeat>, CacheError> {
    let mut beats = cron_beats(cache).await?.into_iter();
    Ok(beats.find(|beat| beat.host == host && beat.kind == CronKind::Cron))
}

/// The heartbeat of this process.
pub(crate) struct CronHeartbeat {
    cache: Arc<Cache>,
    key: String,
    content: Content,
}

impl CronHeartbeat {
    /// Of a process that begins now.
    pub(crate) fn new(cache: Arc<Cache>, kind: CronKind, host: &str) -> Self {
        let content = Content { started_at: clock::now().into(), stopped: false };
        Self { cache, key: format!("{} {host}", kind.name()), content }
    }

    /// Renews it until `work` ends.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let renew = async {
            loop {
                self.beat().await;
                tokio::time::sleep(RENEWAL).await;
            }
        };
        tokio::select! {
            biased;
            result = &mut work => result,
            never = renew => never,
        }
    }

    /// Says that it is at work.
    pub(crate) async fn beat(&self) {
        let text = serde_json::to_string(&self.content).unwrap_or_default();
        // A cache that is down is reported by those who need it more.
        if let Err(error) = self.cache.put(GROUP, &self.key, &text, MEMORY).await {
            tracing::info!(%error, "that cron runs could not be noted");
        }
    }

    /// Says that it was stopped, and that nothing follows it.
    pub(crate) async fn stop(mut self) {
        self.content.stopped = true;
        self.beat().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::MemoryStore;

    fn cache() -> Arc<Cache> {
        Arc::new(Cache::new(Arc::new(MemoryStore::default())))
    }

    #[tokio::test(start_paused = true)]
    async fn cron_runs_while_it_gives_signs_of_life_and_until_the_next_one_is_due() {
        let cache = cache();
        let heartbeat = CronHeartbeat::new(cache.clone(), CronKind::Cron, "a:1");
        heartbeat.during(tokio::time::sleep(Duration::from_secs(55))).await;
        let is_running = async || cron_beats(&cache).await.unwrap()[0].is_running();
        assert!(is_running().await);
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(is_running().await, "the next cron is not due yet");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!is_running().await);
        let beats = cron_beats(&cache).await.unwrap();
        assert_eq!((beats.len(), beats[0].host.as_str()), (1, "a:1"), "but is remembered");
        tokio::time::sleep(MEMORY).await;
        assert_eq!(cron_beats(&cache).await.unwrap(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_is_stopped_is_not_waited_for() {
        let cache = cache();
        let heartbeat = CronHeartbeat::new(cache.clone(), CronKind::Supervise, "a:1");
        heartbeat.beat().await;
        assert!(cron_beats(&cache).await.unwrap()[0].is_running());
        heartbeat.stop().await;
        assert!(!cron_beats(&cache).await.unwrap()[0].is_running());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_cron_daemon_has_started_here_is_told_from_all_else() {
        let cache = cache();
        for (kind, host) in [(CronKind::Supervise, "a:1"), (CronKind::Cron, "b:2"), (CronKind::ByHand, "a:1")] {
            CronHeartbeat::new(cache.clone(), kind, host).beat().await;
        }
        cache.put(GROUP, "cron c:3", "no JSON", MEMORY).await.unwrap();
        assert_eq!(cron_beats(&cache).await.unwrap().len(), 3);
        assert_eq!(last_cron(&cache, "a:1").await.unwrap(), None);
        CronHeartbeat::new(cache.clone(), CronKind::Cron, "a:1").beat().await;
        assert!(last_cron(&cache, "a:1").await.unwrap().is_some());
    }
}

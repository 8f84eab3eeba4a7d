//! Which transports are being consumed, as producers see it; and whether cron is at work.
//!
//! A heartbeat is a cache entry that says "transport X is being consumed", and expires. Each worker has its own for
//! each transport, so that the clean stop of one worker does not hide the others. A supervisor has heartbeats too,
//! called *promises*: for workers that are other programs and have none, and for definitions without a worker that it
//! is going to observe again within the minute.

mod cron;
mod worker;

pub(crate) use cron::last_cron;
pub(crate) use cron::{CronBeat, CronHeartbeat, CronKind, cron_beats};
pub(crate) use worker::{SourceReporter, WorkerHeartbeat};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::cache::{Cache, CacheEntry, CacheError};
use crate::transport::Liveness;

/// How long a supervisor's promise lasts: from one cron to the next, and some seconds more.
pub(crate) const PROMISE_TTL: Duration = Duration::from_secs(70);

/// The heartbeats of all transports.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    cache: Arc<Cache>,
}

impl Heartbeats {
    /// Heartbeats kept in this cache.
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    /// Writes the heartbeat of `owner`, which consumes the transport. It expires after `ttl`. Owners must be unique.
    pub(crate) async fn beat(&self, transport: &str, owner: &str, ttl: Duration) -> Result<(), CacheError> {
        self.cache.put(&group(transport), owner, "", ttl).await
    }

    /// Withdraws `owner`'s heartbeat.
    pub(crate) async fn withdraw(&self, transport: &str, owner: &str) -> Result<(), CacheError> {
        self.cache.remove(&group(transport), owner).await
    }

    /// The heartbeats of a transport that have not expired; their keys are the owners.
    pub(crate) async fn of(&self, transport: &str) -> Result<Vec<CacheEntry>, CacheError> {
        self.cache.list(&group(transport)).await
    }
}

#[async_trait]
impl Liveness for Heartbeats {
    async fn is_running(&self, transports: &[&str]) -> bool {
        for transport in transports {
            match self.cache.list_recent(&group(transport)).await {
                Ok(entries) if !entries.is_empty() => return true,
                Ok(_) => {}
                // The fallback then handles the message: slower, but no message waits without a consumer.
                Err(error) if error.known => tracing::debug!(transport, %error, "assumed not to be running"),
                Err(error) => tracing::warn!(transport, %error, "heartbeats cannot be read; assumed not to be running"),
            }
        }
        false
    }
}

fn group(transport: &str) -> String {
    format!("heartbeat/{transport}")
}

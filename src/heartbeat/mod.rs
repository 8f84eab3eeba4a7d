//! Who is consuming what, as producers see it.
//!
//! A heartbeat says "transport X is being consumed" and lasts for a while. Each worker has one of its own per transport,
//! so that one worker's clean stop does not silence the others. A supervisor has one too, a *promise*: it speaks for
//! workers that cannot ping (other programs), and for definitions it is going to look at again within the minute.

mod pulse;

pub use pulse::{Pulse, Voice};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::cache::{Cache, CacheError, Fact};
use crate::transport::Liveness;

/// How long a supervisor's promise to look again lasts: long enough to reach from one cron to the next.
pub const PROMISE_TTL: Duration = Duration::from_secs(70);

/// The heartbeats of all transports.
#[derive(Clone)]
pub struct Heartbeats {
    cache: Arc<Cache>,
}

impl Heartbeats {
    /// Heartbeats kept in this cache.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    /// Says that `owner` (unique among all who ping) consumes the transport, for `ttl` from now.
    pub async fn beat(&self, transport: &str, owner: &str, ttl: Duration) -> Result<(), CacheError> {
        self.cache.put(&group(transport), owner, "", ttl).await
    }

    /// Takes `owner`'s heartbeat back.
    pub async fn withdraw(&self, transport: &str, owner: &str) -> Result<(), CacheError> {
        self.cache.remove(&group(transport), owner).await
    }

    /// Who says that the transport is being consumed, at this moment.
    pub async fn of(&self, transport: &str) -> Result<Vec<Fact>, CacheError> {
        self.cache.list(&group(transport)).await
    }
}

#[async_trait]
impl Liveness for Heartbeats {
    async fn is_running(&self, transports: &[&str]) -> bool {
        for transport in transports {
            match self.cache.list_recent(&group(transport)).await {
                Ok(facts) if !facts.is_empty() => return true,
                Ok(_) => {}
                // Nobody is known to consume it, and the fallback handles the message: slower, but nothing is stranded.
                Err(error) if error.known => tracing::debug!(transport, %error, "taken as not running"),
                Err(error) => tracing::warn!(transport, %error, "heartbeats cannot be read; taken as not running"),
            }
        }
        false
    }
}

fn group(transport: &str) -> String {
    format!("heartbeat/{transport}")
}

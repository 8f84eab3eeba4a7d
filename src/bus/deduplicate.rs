//! `deduplicate_middleware`: of the messages with the same key ([`DeduplicateStamp`]), one at a time is pending. Those that are
//! dispatched meanwhile are dropped.
//!
//! Whoever dispatches a message claims its key in the shared cache, and the worker gives the claim up: when the message was
//! handled, well or not, or when its handling begins, as the stamp says. The owner of a claim travels with its message, so
//! that a message that is delivered once more does not give up the claim of another. A claim whose message is lost on the way
//! ends by itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::{DispatchError, Middleware, Next};
use crate::cache::Cache;
use crate::message::{DeduplicateStamp, DuplicateStamp, Envelope, ReceivedStamp, SentStamp};

/// The group of the claims in the cache.
const GROUP: &str = "deduplicate";

/// The owner of a message's claim. A header and not a part of the stamp, which is Symfony's.
const OWNER: &str = "X-Minutely-Claim";

/// How long a claim without an end lasts: ten years.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The pauses before a claim that could not be given up is tried to be given up again: for two minutes.
const RELEASE_PAUSES: [Duration; 5] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(40), LAST_PAUSE];
const LAST_PAUSE: Duration = Duration::from_secs(60);

pub(super) struct Deduplicate {
    pub(super) cache: Arc<Cache>,
}

#[async_trait]
impl Middleware for Deduplicate {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let Some(stamp) = envelope.last::<DeduplicateStamp>() else { return next.run(envelope).await };
        if envelope.last::<ReceivedStamp>().is_some() {
            return self.receive(&stamp, envelope, next).await;
        }
        self.dispatch(&stamp, envelope, next).await
    }
}

impl Deduplicate {
    /// Gives up the claim of a message that was received.
    async fn receive(
        &self,
        stamp: &DeduplicateStamp,
        envelope: Envelope,
        next: Next,
    ) -> Result<Envelope, DispatchError> {
        // A message from PHP has its lock there.
        let Some(owner) = envelope.headers().get(OWNER).map(str::to_owned) else { return next.run(envelope).await };
        if stamp.only_deduplicate_in_queue {
            self.release(&stamp.key, &owner).await;
            return next.run(envelope).await;
        }
        let result = next.run(envelope).await;
        self.release(&stamp.key, &owner).await;
        result
    }

    async fn dispatch(
        &self,
        stamp: &DeduplicateStamp,
        mut envelope: Envelope,
        next: Next,
    ) -> Result<Envelope, DispatchError> {
        if next.is_in_transaction() {
            let message_type = envelope.message_type().to_owned();
            let why = "its DeduplicateStamp claims a key, which would stay claimed after a rollback".to_owned();
            return Err(DispatchError::NotInTransaction { message_type, why });
        }
        let owner = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let key = &stamp.key;
        // Also where the cache gives no answer in time: it may have made the claim, and the worker gives it up then.
        envelope.set_header(OWNER, &owner);
        match self.cache.claim(GROUP, &name(key), &owner, ttl(stamp)).await {
            Ok(true) => {}
            Ok(false) => {
                let message_type = envelope.message_type();
                tracing::debug!(message_type, "not dispatched: one with the same key is pending");
                return Ok(envelope.with(&DuplicateStamp::new(key.clone())));
            }
            // Rather twice than never.
            Err(error) => {
                let message_type = envelope.message_type();
                tracing::warn!(message_type, %error, "dispatched without a look whether a message with the same key is pending");
            }
        }
        let result = next.run(envelope).await;
        let is_queued = match &result {
            Ok(envelope) => envelope.last::<SentStamp>().is_some(),
            Err(DispatchError::Sending { sent, .. }) => !sent.is_empty(),
            Err(DispatchError::Handling(failed)) => failed.envelope.last::<SentStamp>().is_some(),
            Err(DispatchError::Delayed(failed)) => failed.envelope.last::<SentStamp>().is_some(),
            Err(_) => false,
        };
        if !is_queued {
            self.release(key, &owner).await;
        }
        result
    }

    /// Tries again in the background if the cache does not answer: nobody waits for that.
    async fn release(&self, key: &str, owner: &str) {
        let Err(error) = self.cache.unclaim(GROUP, &name(key), owner).await else { return };
        tracing::info!(%error, "a deduplication key could not be released; it is tried again");
        let (cache, name, owner) = (Arc::clone(&self.cache), name(key), owner.to_owned());
        tokio::spawn(async move {
            for pause in RELEASE_PAUSES {
                tokio::time::sleep(pause).await;
                match cache.unclaim(GROUP, &name, &owner).await {
                    Ok(()) => return,
                    Err(error) if pause == LAST_PAUSE => {
                        tracing::warn!(%error, "a deduplication key could not be released: messages with it are dropped until its time is over");
                    }
                    Err(_) => {}
                }
            }
        });
    }
}

/// What the claim of a key is called in the cache: a hash, as keys have any length, and may be what nobody else is to read,
/// an address for example.
fn name(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long the claim lasts if nobody gives it up.
fn ttl(stamp: &DeduplicateStamp) -> Duration {
    let seconds = stamp.ttl.unwrap_or(f64::INFINITY);
    // What is negative or no number ends at once.
    if seconds > FOR_EVER.as_secs_f64() { FOR_EVER } else { Duration::try_from_secs_f64(seconds).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::cache::{CacheEntry, CacheError, CacheStore, MemoryStore};

    /// Does not answer so many times when a claim is given up.
    struct Down(MemoryStore, AtomicU32);

    #[async_trait]
    impl CacheStore for Down {
        async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
            self.0.put(group, key, value, ttl).await
        }

        async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
            self.0.remove(group, key).await
        }

        async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
            self.0.list(group).await
        }

        async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
            self.0.claim(group, key, owner, ttl).await
        }

        async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
            let left = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            match left {
                Ok(_) => {
                    let source = Box::new(std::io::Error::other("down"));
                    Err(CacheError { location: self.location(), action: "written", known: false, source })
                }
                Err(_) => self.0.unclaim(group, key, owner).await,
            }
        }

        fn location(&self) -> String {
            self.0.location()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_could_not_be_released_is_released_when_the_cache_is_back() {
        let store = Down(MemoryStore::default(), AtomicU32::new(2));
        let deduplicate = Deduplicate { cache: Arc::new(Cache::new(Arc::new(store))) };
        let claim = async |owner| deduplicate.cache.claim(GROUP, &name("key"), owner, FOR_EVER).await.unwrap();
        assert!(claim("first").await);
        deduplicate.release("key", "first").await;
        tokio::time::sleep(Duration::from_secs(125)).await;
        assert!(claim("second").await);
    }
}

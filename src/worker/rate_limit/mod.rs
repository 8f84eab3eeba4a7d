//! Limits how many messages of a transport are begun in a time, by all workers that share a cache.
//!
//! What is used of a limit is an entry in the cache, and so is each change of it: under the next number, which is claimed.
//! If several workers want the same number, one gets it, and the others read what it has written and try again. So no
//! permit is ever given twice, and nothing is locked: a worker that dies holds nobody up, and only its own permits are lost.
//!
//! All times come from the cache's store, by its own clock. What passes between reading and writing counts as if it had
//! not passed, so that slowness makes the limit a little stricter, and never looser.

mod usage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::usage::Usage;
use crate::cache::{Cache, CacheError};
use crate::clock;
use crate::config::{Config, RateLimit};

/// How often a change is tried while other workers change the same limit.
const ATTEMPTS: u32 = 20;

/// The pause after a lost attempt is up to this long, times how many were lost.
const PAUSE: Duration = Duration::from_millis(2);

/// The pause after all attempts were lost.
const LONG_PAUSE: Duration = Duration::from_millis(100);

/// How long workers wait while the cache is down.
const CACHE_DOWN: Duration = Duration::from_secs(1);

/// Workers that wait for the same permit try at slightly different times, so that none of them is always first.
const SPREAD: Duration = Duration::from_millis(20);

/// How long an entry is kept when it no longer says anything.
const KEPT_LONGER: Duration = Duration::from_secs(120);

/// How many earlier entries are kept: a store that lists files while they are replaced then still finds one, and who wants
/// a number that was removed meanwhile finds that out.
const KEPT: u64 = 16;

/// A worker takes at most this part of a limit at once, so that others get some too.
const SHARE: u64 = 8;

/// A limit, shared through the cache. Transports that name the same one share this too.
pub(crate) struct RateLimiter {
    cache: Arc<Cache>,
    group: String,
    limit: RateLimit,
    state: Mutex<State>,
}

/// The limits of an application, by name.
#[derive(Default)]
pub(crate) struct RateLimiters(HashMap<String, Arc<RateLimiter>>);

impl RateLimiters {
    /// Those of the configuration, which are counted in the cache.
    pub(crate) fn of(config: &Config, cache: &Arc<Cache>) -> Self {
        let limits = config.transports.values().filter_map(|transport| transport.rate_limit.clone());
        let limiters = limits.map(|limit| (limit.name.clone(), Arc::new(RateLimiter::new(Arc::clone(cache), limit))));
        Self(limiters.collect())
    }

    /// The limit of a transport. An auto-fallback's comes before its target's.
    pub(super) fn of_transport(&self, config: &Config, names: [&str; 2]) -> Option<Arc<RateLimiter>> {
        let limit = names.iter().find_map(|name| config.transports.get(*name)?.rate_limit.as_ref())?;
        self.0.get(&limit.name).cloned()
    }
}

/// What this process knows.
#[derive(Default)]
struct State {
    /// The last number that was seen, and when.
    last: Option<(u64, Instant)>,
    /// Whether the cache is known to be down.
    is_down: bool,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permits {
    /// Messages may be begun.
    Taken(Taken),
    /// None now; ask again after this time.
    Wait(Duration),
}

/// Permits to begin messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) permits: usize,
    /// The window that they are of.
    window: u64,
}

impl Taken {
    /// Keeps as many as are needed, and returns the others.
    pub(super) fn without_needed(self, needed: usize) -> Option<Self> {
        let permits = self.permits.saturating_sub(needed);
        (permits > 0).then_some(Self { permits, ..self })
    }
}

impl RateLimiter {
    pub(crate) fn new(cache: Arc<Cache>, limit: RateLimit) -> Self {
        Self { cache, group: format!("rate-limit/{}", limit.name), limit, state: Mutex::default() }
    }

    /// Takes up to this many permits, but not too many at once. While the cache is down, there are none.
    pub(super) async fn take(&self, wanted: usize) -> Permits {
        let most = (self.limit.limit / SHARE).max(1).min(wanted as u64);
        let (mut left, mut window) = (Duration::ZERO, 0);
        let taken = self.change(|usage| {
            let permits = usage.free(&self.limit).min(most);
            (left, window) = (usage.wait(&self.limit), usage.window);
            (permits > 0).then(|| (usage.with(permits), permits))
        });
        let taken = taken.await;
        self.report(taken.as_ref().err());
        match taken {
            Ok(Changed::To(permits)) => {
                Permits::Taken(Taken { permits: usize::try_from(permits).unwrap_or(wanted), window })
            }
            Ok(Changed::Not) => Permits::Wait(left + SPREAD.mul_f64(fastrand::f64())),
            Ok(Changed::Lost) => Permits::Wait(LONG_PAUSE.mul_f64(0.5 + fastrand::f64())),
            Err(_) => Permits::Wait(CACHE_DOWN),
        }
    }

    /// Gives back permits that were not needed. If that fails, or their window is over, they are lost.
    pub(super) async fn give_back(&self, unneeded: Taken) {
        let given = self.change(|usage| Some((usage.without(unneeded.permits as u64, unneeded.window)?, 0)));
        if let Err(error) = given.await {
            tracing::debug!(%error, limiter = self.limit.name, "permits could not be given back");
        }
    }

    /// Makes a change, unless `make` finds that there is none to make.
    async fn change(&self, mut make: impl FnMut(Usage) -> Option<(Usage, u64)>) -> Result<Changed, CacheError> {
        for attempt in 1..=ATTEMPTS {
            if let Some((number, usage, earlier)) = self.read().await? {
                let Some((usage, permits)) = make(usage) else { return Ok(Changed::Not) };
                if self.write(number + 1, usage).await? && self.is_valid(number + 1).await? {
                    for number in earlier {
                        self.cache.remove(&self.group, &key(number)).await?;
                    }
                    return Ok(Changed::To(permits));
                }
            }
            tokio::time::sleep((PAUSE * attempt).mul_f64(fastrand::f64())).await;
        }
        Ok(Changed::Lost)
    }

    /// The last number, what is used now, and the numbers that are no longer needed. `None` if the store has not shown the
    /// last entry: it was being replaced.
    async fn read(&self) -> Result<Option<(u64, Usage, Vec<u64>)>, CacheError> {
        let entries = self.cache.list(&self.group).await?;
        let numbers = entries.iter().filter_map(|entry| Some((entry.key.parse::<u64>().ok()?, entry)));
        let last = numbers.clone().max_by_key(|(number, _)| *number);
        let number = last.map_or(0, |(number, _)| number);
        let forgotten = Usage::forgotten_after(&self.limit);
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.last.is_some_and(|(known, at)| known > number && at.elapsed() < forgotten) {
                return Ok(None);
            }
            state.last = Some((number, Instant::now()));
        }
        let usage = last.map_or_else(Usage::default, |(_, entry)| {
            let elapsed = clock::now().duration_since(entry.written_at).unwrap_or_default();
            parse(&entry.value).after(elapsed, &self.limit)
        });
        let earlier = numbers.map(|(other, _)| other).filter(|other| other + KEPT <= number);
        Ok(Some((number, usage, earlier.collect())))
    }

    /// Whether an entry that was just written followed the last one. A worker that took long from reading to writing may
    /// have claimed a number that others had claimed, left behind and removed; then it counts for nothing.
    async fn is_valid(&self, number: u64) -> Result<bool, CacheError> {
        let entries = self.cache.list(&self.group).await?;
        let is_removed = |other: u64| other >= number + KEPT;
        if !entries.iter().filter_map(|entry| entry.key.parse().ok()).any(is_removed) {
            return Ok(true);
        }
        self.cache.remove(&self.group, &key(number)).await?;
        Ok(false)
    }

    /// Whether this is the next entry. A value differs from all others, so that nobody else's is taken for it.
    async fn write(&self, number: u64, usage: Usage) -> Result<bool, CacheError> {
        let Usage { used, previous, since, window } = usage;
        let value = format!("{used} {previous} {} {window} {:016x}", since.as_micros(), fastrand::u64(..));
        let ttl = Usage::forgotten_after(&self.limit).saturating_add(KEPT_LONGER);
        let is_next = self.cache.claim(&self.group, &key(number), &value, ttl).await?;
        if is_next {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.last = state.last.max(Some((number, Instant::now())));
        }
        Ok(is_next)
    }

    /// Says once that the cache is down, and once that it is there again.
    fn report(&self, error: Option<&CacheError>) {
        let was_down = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut state.is_down, error.is_some())
        };
        match (was_down, error) {
            (false, Some(error)) => {
                tracing::error!(%error, limiter = self.limit.name, "no message under this rate limit is begun until the cache answers");
            }
            (true, None) => tracing::info!(limiter = self.limit.name, "the rate limit can be read again"),
            _ => {}
        }
    }
}

/// What came of a change.
enum Changed {
    /// It was made, with this many permits.
    To(u64),
    /// There is nothing to change.
    Not,
    /// Others were faster each time.
    Lost,
}

fn key(number: u64) -> String {
    format!("{number:020}")
}

/// What an entry says. One that is damaged says that nothing is free, until it is over.
fn parse(value: &str) -> Usage {
    let mut numbers = value.split(' ').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    match (next(), next(), next(), next()) {
        (Some(used), Some(previous), Some(since), Some(window)) => {
            Usage { used, previous, since: Duration::from_micros(since), window }
        }
        _ => Usage { used: u64::from(u32::MAX), ..Usage::default() },
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::cache::{FileStore, MemoryStore};
    use crate::config::RatePolicy;

    fn limit(limit: u64, seconds: u64) -> RateLimit {
        let interval = Duration::from_secs(seconds);
        RateLimit { name: "mails".to_owned(), limit, interval, policy: RatePolicy::FixedWindow }
    }

    /// Takes what it gets until it has to wait for long.
    async fn take_all(limiter: &RateLimiter) -> usize {
        let mut sum = 0;
        loop {
            match limiter.take(100).await {
                Permits::Taken(taken) => sum += taken.permits,
                Permits::Wait(time) if time < Duration::from_secs(5) => tokio::time::sleep(time).await,
                Permits::Wait(_) => return sum,
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_workers_at_once_get_exactly_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let workers = (0..6).map(|_| {
            let cache = Cache::new(Arc::new(FileStore::new(dir.path().to_owned())));
            let limiter = RateLimiter::new(Arc::new(cache), limit(100, 3600));
            tokio::spawn(async move { take_all(&limiter).await })
        });
        let taken: Vec<usize> = join_all(workers).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(taken.iter().sum::<usize>(), 100, "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_can_be_taken_and_a_window_is_over_when_it_is_over() {
        let cache = Arc::new(Cache::new(Arc::new(MemoryStore::default())));
        let limiter = RateLimiter::new(Arc::clone(&cache), limit(2, 60));
        let one = |window| Permits::Taken(Taken { permits: 1, window });
        assert_eq!(limiter.take(9).await, one(0), "a small part of the limit at once");
        assert_eq!(limiter.take(1).await, one(0));
        let Permits::Wait(time) = limiter.take(1).await else { panic!("a third permit") };
        assert!(time >= Duration::from_secs(59) && time < Duration::from_secs(61), "{time:?}");
        limiter.give_back(Taken { permits: 1, window: 0 }).await;
        assert_eq!(RateLimiter::new(cache, limit(2, 60)).take(1).await, one(0), "by any worker");
        tokio::time::sleep(time).await;
        assert_eq!((limiter.take(1).await, limiter.take(1).await), (one(1), one(1)));
        limiter.give_back(Taken { permits: 2, window: 0 }).await;
        assert!(
            matches!(limiter.take(1).await, Permits::Wait(_)),
            "what comes back late makes no room in the next window"
        );
        assert!(limiter.cache.list("rate-limit/mails").await.unwrap().len() <= 18, "earlier entries are removed");
    }
}

//! How much of a rate limit is used, and when more is free: arithmetic alone.

use std::time::Duration;

use crate::config::{RateLimit, RatePolicy};

/// What of a limit is used, as of some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// The permits of this window; of a bucket, the tokens that are missing.
    pub(super) used: u64,
    /// The permits of the window before.
    pub(super) previous: u64,
    /// How long ago the window began, or tokens were last added.
    pub(super) since: Duration,
    /// How often a window has begun, or tokens were added: what was taken before is not given back after.
    pub(super) window: u64,
}

impl Usage {
    /// What is used when `elapsed` more has passed.
    pub(super) fn after(self, elapsed: Duration, limit: &RateLimit) -> Self {
        let since = self.since.saturating_add(elapsed);
        let intervals = u64::try_from(since.as_nanos() / limit.interval.as_nanos().max(1)).unwrap_or(u64::MAX);
        if intervals == 0 {
            return Self { since, ..self };
        }
        let nanos = u64::try_from(since.as_nanos() % limit.interval.as_nanos().max(1)).unwrap_or_default();
        let rest = Duration::from_nanos(nanos);
        let window = self.window.saturating_add(intervals);
        let unused = Self { window, ..Self::default() };
        match limit.policy {
            RatePolicy::TokenBucket(amount) => {
                let used = self.used.saturating_sub(intervals.saturating_mul(amount));
                // A full bucket waits for no tokens: the next interval begins when one is taken.
                let since = if used == 0 { Duration::ZERO } else { rest };
                Self { used, previous: 0, since, window }
            }
            RatePolicy::FixedWindow => unused,
            RatePolicy::SlidingWindow if intervals == 1 => Self { used: 0, previous: self.used, since: rest, window },
            RatePolicy::SlidingWindow => unused,
        }
    }

    /// How many permits are free.
    pub(super) fn free(self, limit: &RateLimit) -> u64 {
        limit.limit.saturating_sub(self.used).saturating_sub(self.still_counted(limit))
    }

    /// How many permits of the window before still count: as many as if they had been evenly spread over it.
    fn still_counted(self, limit: &RateLimit) -> u64 {
        let (interval, since) = (limit.interval.as_nanos(), self.since.as_nanos());
        let left = interval.saturating_sub(since);
        u64::try_from((u128::from(self.previous) * left).div_ceil(interval.max(1))).unwrap_or(u64::MAX)
    }

    /// With these permits taken as well.
    pub(super) fn with(self, permits: u64) -> Self {
        let is_new = self.used == 0 && self.previous == 0;
        let since = if is_new { Duration::ZERO } else { self.since };
        Self { used: self.used.saturating_add(permits), since, ..self }
    }

    /// With these permits given back, which were taken in this window. `None` if that is over: they would loosen the limit of
    /// another one.
    pub(super) fn without(self, permits: u64, window: u64) -> Option<Self> {
        (self.window == window).then(|| Self { used: self.used.saturating_sub(permits), ..self })
    }

    /// How long it takes until a permit is free, if none is.
    pub(super) fn wait(self, limit: &RateLimit) -> Duration {
        let to_next = limit.interval.saturating_sub(self.since);
        if limit.policy != RatePolicy::SlidingWindow {
            return to_next;
        }
        // In which part of a window the permits of the one before have become so few that there is one more.
        let part = |previous: u64, used: u64| {
            let (most, interval) = (limit.limit.saturating_sub(used).saturating_sub(1), limit.interval.as_nanos());
            let kept = interval * u128::from(most) / u128::from(previous.max(1));
            Duration::from_nanos(u64::try_from(interval.saturating_sub(kept)).unwrap_or(u64::MAX))
        };
        if self.used < limit.limit {
            part(self.previous, self.used).saturating_sub(self.since)
        } else {
            to_next.saturating_add(part(self.used, 0))
        }
    }

    /// After this time without a permit taken, nothing is used.
    pub(super) fn forgotten_after(limit: &RateLimit) -> Duration {
        let intervals = match limit.policy {
            RatePolicy::TokenBucket(amount) => limit.limit.div_ceil(amount.max(1)).saturating_add(1),
            RatePolicy::FixedWindow => 1,
            RatePolicy::SlidingWindow => 2,
        };
        limit.interval.saturating_mul(u32::try_from(intervals).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(limit: u64, policy: RatePolicy) -> RateLimit {
        RateLimit { name: "x".to_owned(), limit, interval: 10 * SECOND, policy }
    }

    /// Takes whatever is free, as soon as anything is. Returns how many permits were taken in each second.
    fn greedy(limit: &RateLimit, seconds: usize) -> Vec<u64> {
        let mut usage = Usage::default();
        (0..seconds)
            .map(|second| {
                usage = if second == 0 { usage } else { usage.after(SECOND, limit) };
                let free = usage.free(limit);
                usage = if free > 0 { usage.with(free) } else { usage };
                free
            })
            .collect()
    }

    #[test]
    fn a_fixed_window_has_its_permits_and_the_next_one_again() {
        let taken = greedy(&limit(5, RatePolicy::FixedWindow), 25);
        let at: Vec<(usize, u64)> = taken.into_iter().enumerate().filter(|(_, free)| *free > 0).collect();
        assert_eq!(at, [(0, 5), (10, 5), (20, 5)]);
    }

    #[test]
    fn a_bucket_is_emptied_at_once_and_filled_step_by_step() {
        let bucket = limit(5, RatePolicy::TokenBucket(2));
        let taken = greedy(&bucket, 31);
        let at: Vec<(usize, u64)> = taken.into_iter().enumerate().filter(|(_, free)| *free > 0).collect();
        assert_eq!(at, [(0, 5), (10, 2), (20, 2), (30, 2)]);
        let full = Usage::default().with(5).after(1000 * SECOND, &bucket);
        assert_eq!(full.free(&bucket), 5, "it never holds more");
    }

    #[test]
    fn a_sliding_window_counts_the_one_before_in_part() {
        let sliding = limit(10, RatePolicy::SlidingWindow);
        let usage = Usage::default().with(10).after(15 * SECOND, &sliding);
        assert_eq!((usage.previous, usage.free(&sliding)), (10, 5), "half of the window before still counts");
        let taken = greedy(&sliding, 60);
        for end in 20..60 {
            let in_interval: u64 = taken[end - 10..end].iter().sum();
            assert!(in_interval <= 10, "{in_interval} within ten seconds before {end}: {taken:?}");
        }
    }

    #[test]
    fn permits_are_given_back_to_the_window_that_they_were_taken_in() {
        for policy in [RatePolicy::FixedWindow, RatePolicy::TokenBucket(2), RatePolicy::SlidingWindow] {
            let limit = limit(4, policy);
            let taken = Usage::default().with(3);
            let within = taken.after(9 * SECOND, &limit).without(2, taken.window).unwrap();
            assert_eq!(within.free(&limit), 3, "{policy:?}");
            // Others have taken what the next one allows.
            let later = taken.after(11 * SECOND, &limit);
            let later = later.with(later.free(&limit));
            assert_eq!(later.without(2, taken.window), None, "{policy:?}");
        }
    }

    #[test]
    fn after_the_wait_a_permit_is_free_and_not_before() {
        for policy in [RatePolicy::FixedWindow, RatePolicy::TokenBucket(2), RatePolicy::SlidingWindow] {
            let limit = limit(4, policy);
            for usage in [
                Usage { used: 4, since: 3 * SECOND, ..Usage::default() },
                Usage {
                    used: 4,
                    previous: if policy == RatePolicy::SlidingWindow { 2 } else { 0 },
                    since: SECOND,
                    window: 7,
                },
            ] {
                assert_eq!(usage.free(&limit), 0, "{policy:?} {usage:?}");
                let wait = usage.wait(&limit);
                assert!(usage.after(wait + Duration::from_millis(1), &limit).free(&limit) > 0, "{policy:?} {usage:?}");
                assert_eq!(
                    usage.after(wait - Duration::from_millis(1), &limit).free(&limit),
                    0,
                    "{policy:?} {usage:?}"
                );
            }
        }
        let sliding = limit(4, RatePolicy::SlidingWindow);
        let usage = Usage { used: 2, previous: 4, since: 3 * SECOND, window: 0 };
        assert_eq!(usage.free(&sliding), 0);
        assert!(usage.after(usage.wait(&sliding), &sliding).free(&sliding) > 0);
    }
}

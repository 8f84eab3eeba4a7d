//! How long a failed message waits for its next try.

use std::time::Duration;

use crate::config::RetryStrategy;

/// No wait is longer than this, whatever the strategy's arithmetic says: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The wait before retry number `retries + 1`, as Symfony's `MultiplierRetryStrategy` has it (7.1, with its jitter):
/// `delay × multiplier^retries`, give or take up to `jitter` of it, at most `max_delay`. `random` is from 0 to 1.
pub fn waiting_time(strategy: &RetryStrategy, retries: u32, random: f64) -> Duration {
    let exponent = i32::try_from(retries).unwrap_or(i32::MAX);
    let delay = strategy.delay.as_secs_f64() * strategy.multiplier.powi(exponent);
    let wait = delay + delay * strategy.jitter * (2.0 * random - 1.0);
    let longest = if strategy.max_delay.is_zero() { LONGEST } else { strategy.max_delay.min(LONGEST) };
    // Also covers what is infinite, and what is no number: 0 × ∞.
    if wait >= 0.0 && wait < longest.as_secs_f64() { Duration::from_secs_f64(wait) } else { longest }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn the_defaults_wait_one_two_and_four_seconds() {
        let waits: Vec<u64> =
            (0..3).map(|retries| waiting_time(&RetryStrategy::default(), retries, MIDDLE).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4]);
    }

    #[test]
    fn jitter_goes_both_ways() {
        let strategy = RetryStrategy::default();
        assert_eq!(waiting_time(&strategy, 0, 0.0), Duration::from_millis(900));
        assert_eq!(waiting_time(&strategy, 0, 1.0), Duration::from_millis(1100));
    }

    #[test]
    fn the_longest_wait_is_kept_to() {
        let strategy = RetryStrategy { max_delay: Duration::from_secs(3), ..RetryStrategy::default() };
        assert_eq!(waiting_time(&strategy, 2, MIDDLE), Duration::from_secs(3));
    }

    proptest! {
        #[test]
        fn no_strategy_makes_a_wait_out_of_bounds(
            delay in 0u64..u64::MAX / 2_000, multiplier in 1.0f64..1e300, jitter in 0.0f64..=1.0,
            retries: u32, random in 0.0f64..=1.0,
        ) {
            let strategy = RetryStrategy {
                delay: Duration::from_millis(delay), multiplier, jitter, ..RetryStrategy::default()
            };
            prop_assert!(waiting_time(&strategy, retries, random) <= LONGEST);
        }
    }
}

//! The delay before a failed message is retried.

use std::time::Duration;

use crate::config::RetryStrategy;

/// The longest delay, whatever the strategy's arithmetic says: ten years.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The delay before retry number `retries + 1`, as in Symfony's `MultiplierRetryStrategy` (7.1, with its jitter):
/// `delay × multiplier^retries`, plus or minus up to the share `jitter` of it, at most `max_delay`. `random` is from 0
/// to 1.
pub(crate) fn retry_delay(strategy: &RetryStrategy, retries: u32, random: f64) -> Duration {
    let exponent = i32::try_from(retries).unwrap_or(i32::MAX);
    let delay = strategy.delay.as_secs_f64() * strategy.multiplier.powi(exponent);
    let jittered = delay + delay * strategy.jitter * (2.0 * random - 1.0);
    let longest = if strategy.max_delay.is_zero() { MAX_DELAY } else { strategy.max_delay.min(MAX_DELAY) };
    // Also covers results that are infinite or not a number (0 × ∞).
    if jittered >= 0.0 && jittered < longest.as_secs_f64() { Duration::from_secs_f64(jittered) } else { longest }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn the_default_delays_are_one_two_and_four_seconds() {
        let delays: Vec<u64> =
            (0..3).map(|retries| retry_delay(&RetryStrategy::default(), retries, MIDDLE).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4]);
    }

    #[test]
    fn jitter_goes_both_ways() {
        let strategy = RetryStrategy::default();
        assert_eq!(retry_delay(&strategy, 0, 0.0), Duration::from_millis(900));
        assert_eq!(retry_delay(&strategy, 0, 1.0), Duration::from_millis(1100));
    }

    #[test]
    fn no_delay_is_longer_than_max_delay() {
        let strategy = RetryStrategy { max_delay: Duration::from_secs(3), ..RetryStrategy::default() };
        assert_eq!(retry_delay(&strategy, 2, MIDDLE), Duration::from_secs(3));
    }

    proptest! {
        #[test]
        fn no_strategy_leads_to_a_delay_out_of_bounds(
            delay in 0u64..u64::MAX / 2_000, multiplier in 1.0f64..1e300, jitter in 0.0f64..=1.0,
            retries: u32, random in 0.0f64..=1.0,
        ) {
            let strategy = RetryStrategy {
                delay: Duration::from_millis(delay), multiplier, jitter, ..RetryStrategy::default()
            };
            prop_assert!(retry_delay(&strategy, retries, random) <= MAX_DELAY);
        }
    }
}

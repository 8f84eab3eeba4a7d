//! The time of day, according to tokio's clock.
//!
//! Deadlines and delays follow tokio's clock, which tests can pause and advance. Everything that is stored with a time
//! of day (the expiry of a cache entry, the stamp of a retry) has to follow it too. Otherwise an entry of ten seconds
//! would outlive an hour that a test has skipped.

use std::time::{self, SystemTime};

use tokio::time::Instant;

/// The time of day. If tokio's clock was paused or advanced, differs from the system's time as that clock does.
pub(crate) fn now() -> SystemTime {
    let (timers, real, day) = (Instant::now().into_std(), time::Instant::now(), SystemTime::now());
    let ahead = timers.saturating_duration_since(real);
    let behind = real.saturating_duration_since(timers);
    day.checked_add(ahead).and_then(|day| day.checked_sub(behind)).unwrap_or(day)
}

/// Whether tokio's clock is paused. It then stands still while the system's clock goes on.
#[cfg(feature = "testing")]
pub(crate) fn is_paused() -> bool {
    let (timers, real) = (Instant::now(), time::Instant::now());
    while time::Instant::now() == real {
        std::hint::spin_loop();
    }
    Instant::now() == timers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_running_clock_is_not_paused() {
        assert!(!is_paused());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_day_follows_tokios_clock() {
        let (hour, tolerance) = (Duration::from_secs(3600), Duration::from_secs(60));
        let before = now();
        assert!(is_paused());
        assert!(SystemTime::now().duration_since(before).unwrap_or_default() < tolerance);
        tokio::time::sleep(hour).await;
        let passed = now().duration_since(before).unwrap();
        assert!(passed > hour - tolerance && passed < hour + tolerance, "{passed:?}");
    }
}

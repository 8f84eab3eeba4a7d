//! When a supervisor under cron ends, and whether the next one waits for that: pure arithmetic on times of day.
//!
//! Cron starts a supervisor at about the beginning of each minute. The supervisor must be gone by the next minute: a
//! host may allow one job at a time, or guard the crontab line with `flock -n`, and a refused cron is missing for a
//! whole minute. So a supervisor that was started late ends at the same second of the minute as one that was started on
//! time. On some hosts (with a web cron, say) each one starts at the same later second of the minute: the start of the
//! previous one shows that.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// How long a supervisor runs that was started on time. A minute, less the time that its last tick may take.
pub(in crate::supervisor) const CRON_LIFETIME: Duration = Duration::from_secs(55);
/// A supervisor that would run for less than this runs until the end of the next minute.
const SHORTEST: Duration = Duration::from_secs(5);
/// How exactly two starts are one or more minutes apart if both are on time.
const PUNCTUAL: Duration = Duration::from_secs(2);
/// The longest time between two crons from which the next one's start is predicted.
const RECENT: Duration = Duration::from_secs(5 * 60 + 10);
/// A gap between two supervisors up to this is accepted.
const ACCEPTED_GAP: Duration = Duration::from_secs(8);
/// How much later than recorded a supervisor may end: its last tick is not interrupted.
pub(super) const OVERDUE: Duration = Duration::from_secs(10);

/// How long a single tick takes at most, as a rule. A cron that starts meanwhile waits for it.
pub(super) const ONE_TICK: TimeDelta = TimeDelta::seconds(10);

const MINUTE: Duration = Duration::from_secs(60);

/// When a supervisor ends that starts now, if the one before started at `previous`.
pub(super) fn end(now: DateTime<Utc>, previous: Option<DateTime<Utc>>) -> DateTime<Utc> {
    let into_minute = into_minute(now);
    let runs_for = if is_regular(now, previous) {
        CRON_LIFETIME
    } else if into_minute + SHORTEST <= CRON_LIFETIME {
        CRON_LIFETIME - into_minute
    } else {
        MINUTE + CRON_LIFETIME - into_minute
    };
    later(now, runs_for)
}

/// How long a cron that starts now waits for the supervisor that runs, which ends at `end`. `None` if it does not wait,
/// because another cron starts soon after that end.
pub(super) fn wait(now: DateTime<Utc>, end: DateTime<Utc>) -> Option<Duration> {
    // A supervisor whose end has passed is about to end.
    let end = end.max(now);
    let left = (end - now).to_std().unwrap_or_default();
    let until_next_minute = MINUTE - into_minute(end);
    let next_is_soon = until_next_minute <= ACCEPTED_GAP || left + ACCEPTED_GAP >= MINUTE;
    (!next_is_soon).then_some(left + OVERDUE)
}

/// Whether the previous supervisor started one or more minutes before, to the second.
fn is_regular(now: DateTime<Utc>, previous: Option<DateTime<Utc>>) -> bool {
    let Some(distance) = previous.and_then(|previous| (now - previous).to_std().ok()) else { return false };
    let remainder = Duration::from_millis(u64::try_from(distance.as_millis() % MINUTE.as_millis()).unwrap_or_default());
    let deviation = remainder.min(MINUTE.saturating_sub(remainder));
    distance > MINUTE / 2 && distance < RECENT && deviation <= PUNCTUAL
}

fn into_minute(time: DateTime<Utc>) -> Duration {
    Duration::from_millis(u64::try_from(time.timestamp_millis().rem_euclid(60_000)).unwrap_or_default())
}

fn later(time: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by).map_or(time, |by| time + by)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A time this many seconds after a full minute.
    fn at(seconds: f64) -> DateTime<Utc> {
        later(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), Duration::from_secs_f64(seconds))
    }

    /// When supervisors start and end whose crons are started at these times on one host, guarded by `flock -n` or not.
    fn runs(starts: &[f64], guarded: bool) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
        let mut runs: Vec<(DateTime<Utc>, DateTime<Utc>)> = vec![];
        for start in starts.iter().map(|start| at(*start)) {
            let last = runs.last().copied();
            let begin = match last {
                Some((_, last_end)) if last_end > start && guarded => continue,
                Some((_, last_end)) if last_end > start => match wait(start, last_end) {
                    Some(_) => last_end,
                    None => continue,
                },
                _ => start,
            };
            runs.push((begin, end(begin, last.map(|(begin, _)| begin))));
        }
        runs
    }

    fn gaps(runs: &[(DateTime<Utc>, DateTime<Utc>)]) -> Vec<f64> {
        runs.windows(2).map(|pair| (pair[1].0 - pair[0].1).as_seconds_f64()).collect()
    }

    #[test]
    fn a_late_supervisor_ends_at_the_same_second_as_one_on_time() {
        for start in [0.0, 0.4, 2.0, 12.0, 30.0, 50.0] {
            assert_eq!(end(at(start), None), at(55.0), "{start}");
        }
        assert_eq!(end(at(57.0), None), at(115.0));
    }

    #[test]
    fn a_late_cron_leaves_no_gap_before_the_next() {
        for late in 1..60 {
            for guarded in [true, false] {
                let runs = runs(&[f64::from(late), 60.0, 120.0, 180.0], guarded);
                assert!(gaps(&runs).iter().all(|gap| *gap <= 8.0), "{late} {guarded}: {runs:?}");
            }
        }
    }

    #[test]
    fn a_late_cron_after_one_on_time_leaves_a_gap_of_its_delay_and_five_seconds() {
        for late in 0..55 {
            for guarded in [true, false] {
                let late = f64::from(late);
                let runs = runs(&[0.0, 60.0, 120.0 + late, 180.0, 240.0], guarded);
                assert_eq!(gaps(&runs)[1], late + 5.0);
                assert!(gaps(&runs)[2..].iter().all(|gap| *gap <= 8.0), "{late} {guarded}: {runs:?}");
            }
        }
    }

    #[test]
    fn crons_that_always_start_at_the_same_second_leave_no_gap() {
        for start in 0..60 {
            for guarded in [true, false] {
                let starts: Vec<f64> = (0..5).map(|minute| f64::from(start + 60 * minute)).collect();
                let runs = runs(&starts, guarded);
                assert!(gaps(&runs)[1..].iter().all(|gap| *gap <= 8.0), "{start} {guarded}: {runs:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_cron_runs_or_waits_much_longer_than_a_minute(now in 0.0..600.0f64, before in 0.0..600.0f64) {
            let runs_for = end(at(now), Some(at(before))) - at(now);
            prop_assert!((5.0..=65.0).contains(&runs_for.as_seconds_f64()), "{}", runs_for);
            if let Some(wait) = wait(at(now), at(before)) {
                prop_assert!(wait <= MINUTE + OVERDUE);
            }
        }
    }
}

//! When a supervisor under cron ends, and whether the next one waits for that: pure arithmetic on times of day.
//!
//! Cron starts a supervisor at the beginning of each minute, more or less. It is to be gone by the next minute: a host may
//! allow one job at a time, or guard the line with `flock -n`, and one that is refused there is missing for a whole minute.
//! So a supervisor that was started late ends at the same time of the minute as one that was started in time. Where the
//! crontab's host starts them later in the minute every time (a web cron, say), the one before tells.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// How long a supervisor lives that is started in time. Less than a minute by as much as its last tick may take.
pub(super) const LIFETIME: Duration = Duration::from_secs(55);
/// One that has less time than this until its end goes on to the end of the next minute.
const SHORTEST: Duration = Duration::from_secs(5);
/// How exactly two starts are a minute apart, or some minutes.
const PUNCTUAL: Duration = Duration::from_secs(2);
/// Crons are started every so many minutes at most: further apart, the last start says nothing of the next.
const RECENT: Duration = Duration::from_secs(5 * 60 + 10);
/// For how long nobody needs to be at work.
const GAP: Duration = Duration::from_secs(8);
/// How much later than it said a supervisor may end: its last tick is not interrupted.
pub(super) const OVERDUE: Duration = Duration::from_secs(10);

const MINUTE: Duration = Duration::from_secs(60);

/// When a supervisor ends that is started now, the one before having been started at `previous`.
pub(super) fn end(now: DateTime<Utc>, previous: Option<DateTime<Utc>>) -> DateTime<Utc> {
    let into_minute = into_minute(now);
    let left = if is_regular(now, previous) {
        LIFETIME
    } else if into_minute + SHORTEST <= LIFETIME {
        LIFETIME - into_minute
    } else {
        MINUTE + LIFETIME - into_minute
    };
    later(now, left)
}

/// For how long a cron that is started now is to wait for the one at work, which has said when it ends. Not at all where
/// another cron is started soon after that end anyhow.
pub(super) fn wait(now: DateTime<Utc>, end: DateTime<Utc>) -> Option<Duration> {
    // One that should be gone is about to go.
    let end = end.max(now);
    let left = (end - now).to_std().unwrap_or_default();
    let until_next_minute = MINUTE - into_minute(end);
    let next_is_soon = until_next_minute <= GAP || left + GAP >= MINUTE;
    (!next_is_soon).then_some(left + OVERDUE)
}

/// Is it started a minute after the last one, or some minutes?
fn is_regular(now: DateTime<Utc>, previous: Option<DateTime<Utc>>) -> bool {
    let Some(apart) = previous.and_then(|previous| (now - previous).to_std().ok()) else { return false };
    let off = Duration::from_millis(u64::try_from(apart.as_millis() % MINUTE.as_millis()).unwrap_or_default());
    apart > MINUTE / 2 && apart < RECENT && off.min(MINUTE.saturating_sub(off)) <= PUNCTUAL
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

    /// So many seconds after some full minute.
    fn at(seconds: f64) -> DateTime<Utc> {
        later(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), Duration::from_secs_f64(seconds))
    }

    /// What supervisors do that are started at these times on one host, guarded by `flock -n` or not: from when to when
    /// each is at work.
    fn at_work(starts: &[f64], guarded: bool) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
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
    fn one_that_is_late_ends_when_one_in_time_would() {
        for start in [0.0, 0.4, 2.0, 12.0, 30.0, 50.0] {
            assert_eq!(end(at(start), None), at(55.0), "{start}");
        }
        assert_eq!(end(at(57.0), None), at(115.0));
    }

    #[test]
    fn a_late_cron_leaves_no_gap_before_the_next_guarded_or_not() {
        for late in 1..60 {
            for guarded in [true, false] {
                let runs = at_work(&[f64::from(late), 60.0, 120.0, 180.0], guarded);
                assert!(gaps(&runs).iter().all(|gap| *gap <= 8.0), "{late} {guarded}: {runs:?}");
            }
        }
    }

    #[test]
    fn after_a_late_cron_there_is_no_gap_but_its_own_delay() {
        for late in 0..55 {
            for guarded in [true, false] {
                let late = f64::from(late);
                let runs = at_work(&[0.0, 60.0, 120.0 + late, 180.0, 240.0], guarded);
                assert_eq!(gaps(&runs)[1], late + 5.0);
                assert!(gaps(&runs)[2..].iter().all(|gap| *gap <= 8.0), "{late} {guarded}: {runs:?}");
            }
        }
    }

    #[test]
    fn crons_that_always_start_within_the_minute_are_at_work_all_the_time() {
        for start in 0..60 {
            for guarded in [true, false] {
                let starts: Vec<f64> = (0..5).map(|minute| f64::from(start + 60 * minute)).collect();
                let runs = at_work(&starts, guarded);
                assert!(gaps(&runs)[1..].iter().all(|gap| *gap <= 8.0), "{start} {guarded}: {runs:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_lives_or_waits_much_longer_than_a_minute(now in 0.0..600.0f64, before in 0.0..600.0f64) {
            let lives = end(at(now), Some(at(before))) - at(now);
            prop_assert!((5.0..=65.0).contains(&lives.as_seconds_f64()), "{}", lives);
            if let Some(wait) = wait(at(now), at(before)) {
                prop_assert!(wait <= MINUTE + OVERDUE);
            }
        }
    }
}

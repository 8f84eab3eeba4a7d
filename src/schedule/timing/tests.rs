//! Schedules, beside Python's `croniter` and by their own rules.

use std::fs;
use std::path::Path;

use chrono::Timelike;
use proptest::prelude::*;

use super::*;

impl Schedule {
    /// Is the job due at this second? Says in another way what [`Schedule::next_after`] says.
    fn matches(&self, time: DateTime<Utc>) -> bool {
        if time.nanosecond() != 0 {
            return false;
        }
        match self {
            Self::Expression { expression, zone } => {
                let local = zone.local(time);
                if expression.has_wildcard_time {
                    return includes(expression, local);
                }
                let is_first = zone.first_moment(local) == Some(time);
                (includes(expression, local) && is_first) || includes_left_out(expression, *zone, time)
            }
            Self::Every(seconds) => time.timestamp().rem_euclid(*seconds) == 0,
            Self::At { time: at, .. } => *at == time,
            Self::Reboot => false,
        }
    }
}

/// Does the expression name this local time?
fn includes(expression: &Expression, time: NaiveDateTime) -> bool {
    expression.seconds.contains(time.second())
        && expression.minutes.contains(time.minute())
        && expression.hours.contains(time.hour())
        && expression.includes_day(time.date())
}

/// Is this the first moment after a clock change that has left out one of the times?
fn includes_left_out(expression: &Expression, zone: Zone, time: DateTime<Utc>) -> bool {
    let second = TimeDelta::seconds(1);
    let (mut local, now) = (zone.local(time - second) + second, zone.local(time));
    while local < now {
        if includes(expression, local) {
            return true;
        }
        local += second;
    }
    false
}

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn schedule(text: &str, zone: &str) -> Schedule {
    Schedule::parse(text, Zone::parse(zone).unwrap(), "backup").unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The next times, as they are in the zone.
fn nexts(text: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let (schedule, mut time) = (schedule(text, zone), utc(after));
    let next = |_| {
        time = schedule.next_after(time).unwrap();
        assert!(schedule.matches(time), "{text} {time}");
        schedule.zone().show(time)
    };
    (0..count).map(next).collect()
}

/// `scripts/croniter-table` has made it.
#[test]
fn expressions_mean_what_they_mean_to_croniter() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/croniter.tsv");
    let table = fs::read_to_string(table).unwrap();
    let mut pairs = 0;
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let [expression, zone, after, times] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (schedule, mut time) = (schedule(expression, zone), utc(after));
        for expected in times.split(' ') {
            let next = schedule.next_after(time);
            assert_eq!(next, Some(utc(expected)), "{expression} in {zone} after {time}");
            time = utc(expected);
            assert!(schedule.matches(time), "{expression} in {zone} at {time}");
            pairs += 1;
        }
    }
    assert!(pairs >= 2_000, "{pairs}");
}

#[test]
fn a_time_that_clocks_leave_out_comes_once_when_they_go_on() {
    let at = |text| nexts(text, "Europe/Vienna", "2026-03-28T12:00:00Z", 2);
    assert_eq!(at("30 2 * * *"), ["2026-03-29 03:00:00 +02:00", "2026-03-30 02:30:00 +02:00"]);
    assert_eq!(at("0,15,30 2 * * *"), ["2026-03-29 03:00:00 +02:00", "2026-03-30 02:00:00 +02:00"]);
    assert_eq!(at("0 2,3 * * *"), ["2026-03-29 03:00:00 +02:00", "2026-03-30 02:00:00 +02:00"]);
    // A wildcard goes by what clocks show.
    let minutes = nexts("*/30 * * * *", "Europe/Vienna", "2026-03-29T00:00:00Z", 3);
    assert_eq!(minutes, ["2026-03-29 01:30:00 +01:00", "2026-03-29 03:00:00 +02:00", "2026-03-29 03:30:00 +02:00"]);
    assert_eq!(at("30 2 29 3 *")[0], "2026-03-29 03:00:00 +02:00");
    // Samoa had no 30th of December 2011.
    assert_eq!(nexts("0 12 30 12 *", "Pacific/Apia", "2011-12-29T00:00:00Z", 1), ["2011-12-31 00:00:00 +14:00"]);
}

#[test]
fn a_time_that_comes_twice_counts_the_first_time() {
    let at = |text| nexts(text, "Europe/Vienna", "2026-10-24T12:00:00Z", 2);
    assert_eq!(at("30 2 * * *"), ["2026-10-25 02:30:00 +02:00", "2026-10-26 02:30:00 +01:00"]);
    // Asked between the two.
    let between = nexts("30 2 * * *", "Europe/Vienna", "2026-10-25T00:45:00Z", 1);
    assert_eq!(between, ["2026-10-26 02:30:00 +01:00"]);
    let minutes = nexts("*/30 * * * *", "Europe/Vienna", "2026-10-24T23:30:00Z", 6);
    let expected = ["02:00:00 +02:00", "02:30:00 +02:00", "02:00:00 +01:00", "02:30:00 +01:00", "03:00:00 +01:00"];
    assert_eq!(minutes[..5], expected.map(|time| format!("2026-10-25 {time}")));
    // Half an hour only.
    let lord_howe = nexts("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", 2);
    assert_eq!(lord_howe, ["2026-04-05 01:45:00 +11:00", "2026-04-06 01:45:00 +10:30"]);
}

#[test]
fn names_durations_and_dates_are_schedules() {
    for (text, words, next) in [
        ("minutely", "every minute", "2026-11-21T12:31:00Z"),
        ("@hourly", "at minute 0 of every hour", "2026-11-21T13:00:00Z"),
        ("Daily", "at 00:00", "2026-11-22T00:00:00Z"),
        ("weekly", "at 00:00 on every Sunday", "2026-11-22T00:00:00Z"),
        ("monthly", "at 00:00 on day 1 of the month", "2026-12-01T00:00:00Z"),
        ("@yearly", "at 00:00 on day 1 of the month in January", "2027-01-01T00:00:00Z"),
        ("every 90s", "every 90 seconds", "2026-11-21T12:31:30Z"),
        ("every 2h", "every 2 hours", "2026-11-21T14:00:00Z"),
        ("every 1m", "every minute", "2026-11-21T12:31:00Z"),
        ("at 2026-12-24 18:00", "once, at 2026-12-24 18:00:00 +00:00", "2026-12-24T18:00:00Z"),
        ("at 2026-12-24T18:00:30+01:00", "once, at 2026-12-24 17:00:30 +00:00", "2026-12-24T17:00:30Z"),
        ("at 2026-12-24 18:00Z", "once, at 2026-12-24 18:00:00 +00:00", "2026-12-24T18:00:00Z"),
        ("at 2026-12-24", "once, at 2026-12-24 00:00:00 +00:00", "2026-12-24T00:00:00Z"),
    ] {
        let schedule = schedule(text, "UTC");
        assert_eq!(schedule.to_string(), words, "{text}");
        assert_eq!(schedule.next_after(utc("2026-11-21T12:30:10Z")), Some(utc(next)), "{text}");
    }
    assert_eq!(schedule("at 2026-11-21", "UTC").next_after(utc("2026-11-21T00:00:00Z")), None);
    assert_eq!(schedule("@reboot", "UTC").to_string(), "once after each boot");
    let local = Schedule::parse("at 2026-12-24 18:00", Zone::parse("Europe/Vienna").unwrap(), "").unwrap();
    assert_eq!(local.next_after(utc("2026-11-21T12:30:10Z")), Some(utc("2026-12-24T17:00:00Z")));
}

#[test]
fn what_is_no_schedule_is_told() {
    for (text, expected) in [
        ("dialy", "\"dialy\" is no schedule; did you mean \"daily\"?"),
        ("@reboots", "did you mean \"reboot\"?"),
        ("", "\"\" is no schedule; write minutely, hourly"),
        ("every", "after `every` stands how often"),
        ("every 0s", "a whole number of seconds, one or more"),
        ("every 1.5s", "a whole number of seconds, one or more"),
        ("every fortnight", "after `every` stands how often"),
        ("at noon", "after `at` stands a date that exists"),
        ("at 2026-02-30 12:00", "after `at` stands a date that exists"),
        ("61 * * * *", "minute: \"61\" cannot be read"),
        ("* * *", "has 3 fields"),
    ] {
        let error = Schedule::parse(text, Zone::System, "").unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert_eq!(Zone::parse("Europe/Viena").unwrap_err(), "; did you mean \"Europe/Vienna\"?");
    assert!(Zone::parse("Middle/Earth").unwrap_err().contains("IANA"));
}

#[test]
fn the_last_time_within_a_period_is_found() {
    let last = |text, after, until| schedule(text, "UTC").last_within(utc(after), utc(until));
    let (before, now) = ("2020-01-01T00:00:00Z", "2026-11-21T12:30:10Z");
    assert_eq!(last("* * * * * *", before, now), Some(utc(now)));
    assert_eq!(last("daily", before, now), Some(utc("2026-11-21T00:00:00Z")));
    assert_eq!(last("0 0 29 2 *", before, now), Some(utc("2024-02-29T00:00:00Z")));
    assert_eq!(last("0 0 29 2 *", "2024-03-01T00:00:00Z", now), None);
    assert_eq!(last("daily", "2026-11-21T00:00:00Z", now), None);
    assert_eq!(last("minutely", now, before), None);
    assert_eq!(last("every 7s", before, now), Some(utc("2026-11-21T12:30:05Z")));
}

#[test]
fn the_last_of_millions_of_times_is_found_without_going_through_them() {
    let dense = schedule("* * * * 7 *", "Europe/Vienna");
    let begun = std::time::Instant::now();
    let last = dense.last_within(utc("2016-08-01T00:00:00Z"), utc("2026-06-30T00:00:00Z"));
    assert_eq!(last, Some(utc("2025-07-31T21:59:59Z")));
    // Hundreds of times what it takes; going through one July takes longer.
    assert!(begun.elapsed() < std::time::Duration::from_millis(500), "{:?}", begun.elapsed());
}

/// Fields of all kinds, most of which restrict little, so that times come often enough to be compared.
fn expressions() -> impl Strategy<Value = String> {
    let minute =
        prop_oneof![Just("*".to_owned()), (1..60u32).prop_map(|n| format!("*/{n}")), "[1-5]?[0-9](,[1-5]?[0-9])?"];
    let hour = prop_oneof![Just("*".to_owned()), (1..24u32).prop_map(|n| format!("*/{n}")), "1?[0-9]", "[0-3],1?[0-9]"];
    let day = prop_oneof![4 => Just("*".to_owned()), 1 => "[1-9]", 1 => "1?[1-9]W", 1 => Just("L".to_owned()), 1 => Just("*/3".to_owned())];
    let month = prop_oneof![4 => Just("*".to_owned()), 1 => Just("3,4,10,11".to_owned())];
    let weekday = prop_oneof![4 => Just("*".to_owned()), 1 => "[0-7]", 1 => "[0-6]#[1-4]", 1 => "[0-6]L"];
    let second = prop_oneof![4 => Just(String::new()), 1 => Just("*/20 ".to_owned()), 1 => Just("30 ".to_owned())];
    (second, minute, hour, day, month, weekday).prop_map(|(s, m, h, d, mo, w)| format!("{s}{m} {h} {d} {mo} {w}"))
}

fn zones() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("UTC"),
        Just("Europe/Vienna"),
        Just("America/New_York"),
        Just("Australia/Lord_Howe"),
        Just("Asia/Kathmandu"),
        Just("Pacific/Apia"),
    ]
}

/// Any second, or one within hours of a clock change in Vienna, New York or on Lord Howe Island.
fn times() -> impl Strategy<Value = DateTime<Utc>> {
    let change = prop_oneof![
        Just("2026-03-29T01:00:00Z"),
        Just("2026-10-25T01:00:00Z"),
        Just("2026-03-08T07:00:00Z"),
        Just("2026-11-01T06:00:00Z"),
        Just("2026-04-04T15:00:00Z"),
        Just("2026-10-03T15:30:00Z"),
        Just("2011-12-30T10:00:00Z"),
    ];
    let near = (change, -30_000..30_000i64).prop_map(|(change, seconds)| utc(change) + TimeDelta::seconds(seconds));
    let any = (1_000_000_000..2_500_000_000i64).prop_map(|seconds| DateTime::from_timestamp(seconds, 0).unwrap());
    prop_oneof![near, any]
}

proptest! {
    #[test]
    fn the_next_time_is_later_and_matches_and_none_before_it_does(
        text in expressions(), zone in zones(), time in times(), between in prop::collection::vec(0.0..1.0f64, 50),
    ) {
        let schedule = schedule(&text, zone);
        let Some(next) = schedule.next_after(time) else { return Ok(()) };
        prop_assert!(next > time);
        prop_assert!(schedule.matches(next), "{} in {zone}: {next}", text);
        // Minute by minute up to half a day, and some seconds far from there.
        let distance = (next - time).num_seconds();
        let minutes = (1..720).map(|minute| minute * 60 - time.timestamp().rem_euclid(60));
        let seconds = between.iter().map(|part| (*part * distance as f64) as i64);
        for seconds in minutes.chain(seconds).filter(|seconds| (1..distance).contains(seconds)) {
            let time = time + TimeDelta::seconds(seconds);
            prop_assert!(!schedule.matches(time), "{} in {zone}: {time} is before {next}", text);
        }
    }

    #[test]
    fn a_second_that_matches_is_the_next_one_after_the_second_before(
        text in expressions(), zone in zones(), time in times(),
    ) {
        let schedule = schedule(&text, zone);
        let before = time - TimeDelta::seconds(1);
        prop_assert_eq!(schedule.matches(time), schedule.next_after(before) == Some(time), "{} in {}: {}", text, zone, time);
    }

    #[test]
    fn the_last_time_within_a_period_is_the_last_of_all(
        text in expressions(), zone in zones(), until in times(), minutes in 1..3000i64,
    ) {
        let schedule = schedule(&text, zone);
        let after = until - TimeDelta::minutes(minutes);
        let all = std::iter::successors(schedule.next_after(after), |time| schedule.next_after(*time));
        let last = all.take_while(|time| *time <= until).last();
        prop_assert_eq!(schedule.last_within(after, until), last, "{} in {}", text, zone);
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,40}", fields in "[0-9*/,#LWH()@ -]{0,30}") {
        for text in [text, fields] {
            if let Ok(schedule) = Schedule::parse(&text, Zone::System, "job") {
                let _ = (schedule.to_string(), schedule.next_after(DateTime::UNIX_EPOCH));
            }
        }
    }
}

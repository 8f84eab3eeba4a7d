//! Dates, times and time zones in PHP's format, and how Symfony's JSON serializer writes them.

use chrono::{DateTime, FixedOffset, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

const FORMAT: &str = "%Y-%m-%d %H:%M:%S%.f";

/// The kinds of time zone that PHP tells apart.
const OFFSET: i64 = 1;
const ABBREVIATION: i64 = 2;
const IDENTIFIER: i64 = 3;

/// Abbreviations with one common meaning, and their offset in minutes, as in PHP's table.
const ABBREVIATIONS: [(&str, i32); 22] = [
    ("Z", 0),
    ("UTC", 0),
    ("GMT", 0),
    ("WET", 0),
    ("WEST", 60),
    ("BST", 60),
    ("CET", 60),
    ("CEST", 120),
    ("EET", 120),
    ("EEST", 180),
    ("MSK", 180),
    ("EDT", -240),
    ("EST", -300),
    ("CDT", -300),
    ("CST", -360),
    ("MDT", -360),
    ("MST", -420),
    ("PDT", -420),
    ("PST", -480),
    ("AKDT", -480),
    ("AKST", -540),
    ("HST", -600),
];

/// A date as RFC 3339 has it, without fractions of a second: what Symfony's `DateTimeNormalizer` writes. `None` if it is no
/// date, or if its zone is unknown.
pub(super) fn to_rfc3339(date: &str, zone_kind: i64, zone: &str) -> Option<String> {
    let local = NaiveDateTime::parse_from_str(date, FORMAT).ok()?;
    let time = match zone_kind {
        OFFSET => in_zone(&parse_offset(zone)?, local),
        ABBREVIATION => {
            let (_, minutes) = ABBREVIATIONS.iter().find(|(name, _)| name.eq_ignore_ascii_case(zone))?;
            in_zone(&FixedOffset::east_opt(minutes * 60)?, local)
        }
        IDENTIFIER => in_zone(&zone.parse::<Tz>().ok()?, local),
        _ => None,
    }?;
    // Early offsets have seconds, which PHP leaves out.
    let seconds = time.offset().local_minus_utc();
    let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.abs() / 60);
    Some(format!("{}{sign}{:02}:{:02}", time.format("%Y-%m-%dT%H:%M:%S"), minutes / 60, minutes % 60))
}

/// The first of two times that a clock shows. A time that the clock leaves out is as long after the change as the clock
/// says.
fn in_zone<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Option<DateTime<FixedOffset>> {
    let time = match zone.from_local_datetime(&local) {
        LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => time,
        LocalResult::None => {
            let before = local.checked_sub_signed(TimeDelta::days(1))?;
            let offset = zone.from_local_datetime(&before).earliest()?.offset().fix();
            let utc = local.checked_sub_offset(offset)?;
            zone.from_utc_datetime(&utc)
        }
    };
    Some(time.fixed_offset())
}

/// Such as `+02:00`.
fn parse_offset(text: &str) -> Option<FixedOffset> {
    text.parse().ok()
}

/// The parts of a `DateTimeInterval` object, as far as they are written.
#[derive(Default)]
pub(super) struct Interval {
    pub(super) years: i64,
    pub(super) months: i64,
    pub(super) days: i64,
    pub(super) hours: i64,
    pub(super) minutes: i64,
    pub(super) seconds: i64,
    pub(super) is_negative: bool,
}

impl Interval {
    /// What Symfony's `DateIntervalNormalizer` writes.
    pub(super) fn to_iso8601(&self) -> String {
        let Self { years, months, days, hours, minutes, seconds, is_negative } = self;
        let sign = if *is_negative { "-" } else { "" };
        format!("{sign}P{years}Y{months}M{days}DT{hours}H{minutes}M{seconds}S")
    }
}

/// The properties of a `DateTimeImmutable`: the date, the kind of its zone, the zone.
pub(super) fn from_rfc3339(text: &str) -> Option<(String, i64, String)> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some((time.format("%Y-%m-%d %H:%M:%S%.6f").to_string(), OFFSET, time.offset().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_symfony_does() {
        for (date, kind, zone, expected) in [
            ("2026-01-31 10:00:00.000000", IDENTIFIER, "UTC", "2026-01-31T10:00:00+00:00"),
            ("2026-07-31 10:00:00.123456", IDENTIFIER, "Europe/Berlin", "2026-07-31T10:00:00+02:00"),
            ("2026-01-31 10:00:00.000000", OFFSET, "-03:30", "2026-01-31T10:00:00-03:30"),
            ("2026-01-31 10:00:00.000000", ABBREVIATION, "EST", "2026-01-31T10:00:00-05:00"),
            // Twice on the clock, and never.
            ("2026-10-25 02:30:00.000000", IDENTIFIER, "Europe/Berlin", "2026-10-25T02:30:00+02:00"),
            ("2026-03-29 02:30:00.000000", IDENTIFIER, "Europe/Berlin", "2026-03-29T03:30:00+02:00"),
        ] {
            assert_eq!(to_rfc3339(date, kind, zone).as_deref(), Some(expected));
        }
        assert_eq!(to_rfc3339("2026-01-31 10:00:00.000000", ABBREVIATION, "XYZ"), None);
        assert_eq!(to_rfc3339("yesterday", IDENTIFIER, "UTC"), None);
    }

    #[test]
    fn a_date_for_php_says_the_same_time() {
        let (date, kind, zone) = from_rfc3339("2026-01-31T10:00:00+02:00").unwrap();
        assert_eq!((date.as_str(), kind, zone.as_str()), ("2026-01-31 10:00:00.000000", OFFSET, "+02:00"));
        assert_eq!(to_rfc3339(&date, kind, &zone).as_deref(), Some("2026-01-31T10:00:00+02:00"));
    }
}

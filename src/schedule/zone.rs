//! Time zones: which moments a local time is, also where clocks are changed.

use std::fs;
use std::path::Path;

use chrono::{DateTime, Local, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

use crate::config::nearest;

/// No clock change is longer: Samoa left a whole day out, and no zone is further than 14 hours from UTC.
const LONGEST_CHANGE: TimeDelta = TimeDelta::hours(26);

/// Where the system keeps its zones, as chrono looks for them.
const ZONE_FOLDERS: [&str; 4] = ["/usr/share/zoneinfo", "/share/zoneinfo", "/etc/zoneinfo", "/usr/share/lib/zoneinfo"];

/// A time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// The system's.
    System,
    /// One of the IANA database.
    Named(Tz),
}

impl Zone {
    /// The zone of this name, such as `Europe/Vienna`; else what is wrong with the name.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        if let Ok(zone) = name.parse() {
            return Ok(Self::Named(zone));
        }
        let names = || TZ_VARIANTS.iter().map(|zone| zone.name());
        let same = names().find(|known| known.eq_ignore_ascii_case(name));
        let hint = same.or_else(|| nearest(name, names())).map(|known| format!("; did you mean \"{known}\"?"));
        let ways = "; write one of the IANA database, such as Europe/Vienna or UTC".to_owned();
        Err(hint.unwrap_or(ways))
    }

    /// The system's: that of the variable `TZ`, else of `/etc/localtime`. A name in `TZ` needs no files of the system, which
    /// small containers lack: without them it would mean UTC.
    pub(crate) fn of_system() -> Self {
        let name = std::env::var("TZ").ok();
        let zone = name.and_then(|name| name.strip_prefix(':').unwrap_or(&name).parse().ok());
        zone.map_or(Self::System, Self::Named)
    }

    /// Its name; the system's zone may have none.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::System => None,
            Self::Named(zone) => Some(zone.name()),
        }
    }

    /// What clocks show at this moment.
    pub(crate) fn local(self, time: DateTime<Utc>) -> NaiveDateTime {
        match self {
            Self::System => time.with_timezone(&Local).naive_local(),
            Self::Named(zone) => time.with_timezone(&zone).naive_local(),
        }
    }

    /// A moment as people read it: local time, and how far it is from UTC.
    pub(crate) fn show(self, time: DateTime<Utc>) -> String {
        let offset = match self {
            Self::System => Local.offset_from_utc_datetime(&time.naive_utc()).fix(),
            Self::Named(zone) => zone.offset_from_utc_datetime(&time.naive_utc()).fix(),
        };
        time.with_timezone(&offset).format("%Y-%m-%d %H:%M:%S %:z").to_string()
    }

    /// The moments at which clocks show this: one, two, or none.
    pub(super) fn moments(self, local: NaiveDateTime) -> MappedLocalTime<DateTime<Utc>> {
        match self {
            Self::System => Local.from_local_datetime(&local).map(|time| time.to_utc()),
            Self::Named(zone) => zone.from_local_datetime(&local).map(|time| time.to_utc()),
        }
    }

    /// The moment at which clocks first show this, or, where they leave it out, go on after it.
    pub(super) fn first_moment(self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self.moments(local) {
            MappedLocalTime::Single(time) | MappedLocalTime::Ambiguous(time, _) => Some(time),
            MappedLocalTime::None => {
                let utc = local.and_utc();
                let (from, to) =
                    (utc.checked_sub_signed(LONGEST_CHANGE * 2)?, utc.checked_add_signed(LONGEST_CHANGE * 2)?);
                Some(first_where(from, to, |time| self.local(time) > local))
            }
        }
    }

    /// The first clock change within a day after this moment: the first moment by the changed clocks.
    pub(super) fn change_after(self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let ahead = |time: DateTime<Utc>| self.local(time) - time.naive_utc();
        let now = ahead(time);
        (1..=24).find_map(|hour| {
            let to = time.checked_add_signed(TimeDelta::hours(hour))?;
            (ahead(to) != now).then(|| first_where(to - TimeDelta::hours(1), to, |time| ahead(time) != now))
        })
    }
}

/// What is wrong with the variable `TZ`, if it names no zone.
pub(super) fn problem_of_tz() -> Option<String> {
    let value = std::env::var_os("TZ")?;
    let name = value.to_str().map(|text| text.strip_prefix(':').unwrap_or(text).trim());
    if name.is_some_and(is_zone) {
        return None;
    }
    let hint = name.and_then(|name| Zone::parse(name).err()).unwrap_or_default();
    let shown: String = value.to_string_lossy().chars().take(40).flat_map(char::escape_debug).collect();
    Some(format!(
        "the environment variable TZ is \"{shown}\", which is no time zone, so that the zone of /etc/localtime counts, or else UTC{hint}"
    ))
}

/// Can a value of `TZ` be read? See tzset(3).
fn is_zone(value: &str) -> bool {
    let is_file = |path: &Path| fs::read(path).is_ok_and(|content| content.starts_with(b"TZif"));
    let is_rule = || {
        let name = match value.strip_prefix('<') {
            Some(quoted) => quoted.find('>').map(|end| end + 2),
            None => Some(value.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(value.len())).filter(|end| *end >= 3),
        };
        let offset = name.and_then(|end| value.get(end..)).unwrap_or_default();
        offset.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit())
    };
    matches!(value, "" | "localtime")
        || value.parse::<Tz>().is_ok()
        || ZONE_FOLDERS.iter().any(|folder| is_file(&Path::new(folder).join(value)))
        || is_rule()
}

/// The first second for which something is true that is true for `to`, and stays so.
fn first_where(from: DateTime<Utc>, to: DateTime<Utc>, is_true: impl Fn(DateTime<Utc>) -> bool) -> DateTime<Utc> {
    let (mut not, mut yes) = (from.timestamp(), to.timestamp());
    while yes - not > 1 {
        let middle = not + (yes - not) / 2;
        match DateTime::from_timestamp(middle, 0) {
            Some(time) if is_true(time) => yes = middle,
            _ => not = middle,
        }
    }
    DateTime::from_timestamp(yes, 0).unwrap_or(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_variable_tz_may_be_is_told_from_what_it_may_not() {
        for value in ["", "UTC", "Europe/Vienna", "localtime", "CET-1CEST,M3.5.0,M10.5.0/3", "<+03>-3", "EST5EDT"] {
            assert!(is_zone(value), "{value}");
        }
        for value in
            ["Europe/Wien", "Vienna", "CE-1", "CEST", "/etc/passwd", "/no/such/file", "../../../etc/passwd", "<+03"]
        {
            assert!(!is_zone(value), "{value}");
        }
    }
}

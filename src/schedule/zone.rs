//! Time zones: which moments a local time is, also where clocks are changed.

use chrono::{DateTime, Local, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

use crate::config::nearest;

/// No clock change is longer: Samoa left a whole day out, and no zone is further than 14 hours from UTC.
const LONGEST_CHANGE: TimeDelta = TimeDelta::hours(26);

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

    /// Its name; the system's zone has none.
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

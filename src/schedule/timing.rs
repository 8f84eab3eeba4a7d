//! When a job is due: its schedule in its time zone.
//!
//! All times are whole seconds.
//!
//! Where clocks are changed, expressions follow `crontab(5)`: a job with a time of day runs once where the change leaves this
//! time out (as soon as it is over), and once where the time comes twice (the first time). A job whose minute or hour begins
//! with `*` follows the clock on the wall, whatever it shows.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Datelike, MappedLocalTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};

use super::describe::describe;
use super::expression::Expression;
use super::zone::Zone;
use crate::config::{nearest, parse_duration};

/// Names for expressions, as Contao and `crontab(5)` (with `@`) have them.
const NAMES: [(&str, &str); 8] = [
    ("minutely", "* * * * *"),
    ("hourly", "0 * * * *"),
    ("daily", "0 0 * * *"),
    ("midnight", "0 0 * * *"),
    ("weekly", "0 0 * * 0"),
    ("monthly", "0 0 1 * *"),
    ("yearly", "0 0 1 1 *"),
    ("annually", "0 0 1 1 *"),
];

/// A schedule is a part of names in the cache, and of lines in a terminal.
const LONGEST: usize = 200;

/// How dates are written after `at`, without and with a zone of their own.
const LOCAL_FORMATS: [&str; 4] = ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"];
const ZONED_FORMATS: [&str; 4] =
    ["%Y-%m-%d %H:%M%#z", "%Y-%m-%d %H:%M:%S%#z", "%Y-%m-%dT%H:%M%#z", "%Y-%m-%dT%H:%M:%S%#z"];

/// When a job is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// Whenever clocks in this zone show one of these times.
    Expression {
        /// The times.
        expression: Box<Expression>,
        /// Whose clocks.
        zone: Zone,
    },
    /// At all multiples of this many seconds since 1970, so that all hosts agree.
    Every(i64),
    /// Once.
    At {
        /// The moment.
        time: DateTime<Utc>,
        /// How it is shown.
        zone: Zone,
    },
    /// Once after each boot of each host.
    Reboot,
}

impl Schedule {
    /// Reads a schedule. `job` is the name that `H` in it is made from. An error says what is wrong, and where.
    pub(crate) fn parse(text: &str, zone: Zone, job: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(format!("has more than {LONGEST} characters"));
        }
        let lower = text.to_ascii_lowercase();
        let (word, rest) = lower.split_once(char::is_whitespace).unwrap_or((&lower, ""));
        match word {
            "@reboot" if rest.is_empty() => return Ok(Self::Reboot),
            "every" => return every(rest),
            // Not lower-case, as the T within a date.
            "at" => return at(text[word.len()..].trim(), zone),
            _ => {}
        }
        let name = lower.strip_prefix('@').unwrap_or(&lower);
        let expression = match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, expression)) => expression,
            None if rest.is_empty() => return Err(unknown(text)),
            None => text,
        };
        let expression = Expression::parse(expression, job).map_err(|error| error.to_string())?;
        Ok(Self::Expression { expression: Box::new(expression), zone })
    }

    /// The first time after this one. `None`: there is none, or it is not a matter of time.
    pub(crate) fn next_after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Expression { expression, zone } => next(expression, *zone, time),
            Self::Every(seconds) => {
                DateTime::from_timestamp((time.timestamp().div_euclid(*seconds) + 1).checked_mul(*seconds)?, 0)
            }
            Self::At { time: at, .. } => (*at > time).then_some(*at),
            Self::Reboot => None,
        }
    }

    /// The last time that is after the first of these and not after the second.
    pub(crate) fn last_within(&self, after: DateTime<Utc>, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Halves the time in which it is looked for, so that not all times of a year are gone through.
        let within = |after: DateTime<Utc>, end: DateTime<Utc>| self.next_after(after).filter(|time| *time <= end);
        let mut last = within(after, until)?;
        let mut end = until.timestamp();
        while last.timestamp() < end {
            let middle = last.timestamp() + (end - last.timestamp()) / 2;
            match within(DateTime::from_timestamp(middle, 0)?, until) {
                Some(time) => last = time,
                None => end = middle,
            }
        }
        Some(last)
    }

    /// Does it depend on what clocks in its zone show?
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Expression { .. } | Self::At { .. })
    }

    /// The zone in which its times are shown.
    pub(crate) fn zone(&self) -> Zone {
        match self {
            Self::Expression { zone, .. } | Self::At { zone, .. } => *zone,
            Self::Every(_) | Self::Reboot => Zone::of_system(),
        }
    }
}

impl fmt::Display for Schedule {
    /// In words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expression { expression, .. } => f.write_str(&describe(expression)),
            Self::Every(seconds) => {
                let units = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
                let (size, unit) = units.into_iter().find(|(size, _)| seconds % size == 0).unwrap_or((1, "second"));
                match seconds / size {
                    1 => write!(f, "every {unit}"),
                    count => write!(f, "every {count} {unit}s"),
                }
            }
            Self::At { time, zone } => write!(f, "once, at {}", zone.show(*time)),
            Self::Reboot => f.write_str("once after each boot"),
        }
    }
}

fn next(expression: &Expression, zone: Zone, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let local = zone.local(time);
    if !expression.has_wildcard_time {
        // Local times that come twice, and are over the first time, are skipped.
        let mut local = local;
        loop {
            local = expression.next(local)?;
            let moment = zone.first_moment(local)?;
            if moment > time {
                return Some(moment);
            }
        }
    }
    // Where clocks are put back soon, they will show times again that they have shown already.
    let back = zone.change_after(time).map(|change| zone.local(change)).filter(|then| *then <= local);
    let repeated = back.and_then(|then| next_shown(expression, zone, then - TimeDelta::seconds(1), time));
    let first = next_shown(expression, zone, local, time);
    first.into_iter().chain(repeated).min()
}

/// The first moment after `time` at which clocks show one of the local times after this one.
fn next_shown(
    expression: &Expression,
    zone: Zone,
    mut local: NaiveDateTime,
    time: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    loop {
        local = expression.next(local)?;
        let moments = match zone.moments(local) {
            MappedLocalTime::Single(moment) => [Some(moment), None],
            MappedLocalTime::Ambiguous(first, second) => [Some(first), Some(second)],
            MappedLocalTime::None => [None, None],
        };
        if let Some(moment) = moments.into_iter().flatten().find(|moment| *moment > time) {
            return Some(moment);
        }
    }
}

fn every(text: &str) -> Result<Schedule, String> {
    let how = "write every 90s, every 5m or every 2h";
    let duration = parse_duration(text).map_err(|error| format!("after `every` stands how often: {error}; {how}"))?;
    if duration.subsec_nanos() != 0 || duration < Duration::from_secs(1) {
        return Err(format!("after `every` stands a whole number of seconds, one or more; {how}"));
    }
    Ok(Schedule::Every(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)))
}

fn at(text: &str, zone: Zone) -> Result<Schedule, String> {
    let zoned = text.strip_suffix(['Z', 'z']).map_or_else(|| text.to_owned(), |text| format!("{text}+00:00"));
    let time = ZONED_FORMATS.iter().find_map(|format| DateTime::parse_from_str(&zoned.replace(" +", "+"), format).ok());
    let local = || LOCAL_FORMATS.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let date = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|date| date.and_hms_opt(0, 0, 0));
    let time = time.map(|time| time.to_utc()).or_else(|| zone.first_moment(local().or_else(date)?));
    let time = time.filter(|time| (1970..10_000).contains(&time.year()));
    let time = time.ok_or("after `at` stands a date that exists, such as at 2026-12-24 18:00")?;
    Ok(Schedule::At { time, zone })
}

fn unknown(text: &str) -> String {
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    let names = NAMES.iter().map(|(name, _)| *name).chain(["reboot", "every", "at"]);
    let hint = nearest(text.trim_start_matches('@'), names).map(|name| format!("; did you mean \"{name}\"?"));
    let forms = "; write minutely, hourly, daily, weekly, monthly, yearly, @reboot, every 90s, at a date, or an expression \
                 such as 5 4 * * 1";
    format!("\"{shown}\" is no schedule{}", hint.unwrap_or_else(|| forms.to_owned()))
}

#[cfg(test)]
mod tests;

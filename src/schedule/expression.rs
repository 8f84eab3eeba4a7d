//! Cron expressions, with the meaning of `crontab(5)`: which local times they name.
//!
//! The crate `cron` reads the same fields with Quartz's meaning. Its expressions could be written for the plain ones among
//! these, but not for what matters most: it requires both day fields to match where cron requires one, it knows neither `L`,
//! `#`, `W` nor `H`, and it skips the local times that a clock change leaves out, where cron makes up for them. So the
//! matching is minutely's own, and a table made with Python's `croniter` shows that its meaning is cron's
//! (`tests/fixtures/croniter.tsv`).

use std::ops::RangeInclusive;

use chrono::{Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike, Weekday};
use thiserror::Error;

use super::numbers::Numbers;

/// How many years ahead a time is looked for. A fifth Monday in February comes at least every 40 years.
const YEARS_AHEAD: i32 = 50;

/// What is wrong with an expression, and in which field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ExpressionError {
    /// A field that cannot be read.
    #[error("{field}: {why}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What was found, and what is allowed.
        why: String,
    },
    /// Not five or six fields.
    #[error(
        "has {0} fields, and an expression has five (minute, hour, day of month, month, day of week), or six with seconds first"
    )]
    Fields(usize),
    /// No time will ever match.
    #[error("{field}: {why}, so that it never comes")]
    Never {
        /// The field that rules all times out.
        field: &'static str,
        /// Why.
        why: String,
    },
}

/// One of the fields.
struct Field {
    name: &'static str,
    values: RangeInclusive<u32>,
    names: &'static [&'static str],
    /// The number of the first name.
    first_name: u32,
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const SECOND: Field = Field { name: "second", values: 0..=59, names: &[], first_name: 0 };
const MINUTE: Field = Field { name: "minute", values: 0..=59, names: &[], first_name: 0 };
const HOUR: Field = Field { name: "hour", values: 0..=23, names: &[], first_name: 0 };
const DAY: Field = Field { name: "day of month", values: 1..=31, names: &[], first_name: 0 };
const MONTH: Field = Field { name: "month", values: 1..=12, names: MONTHS, first_name: 1 };
/// 0 and 7 are Sunday.
const WEEKDAY: Field = Field { name: "day of week", values: 0..=7, names: WEEKDAYS, first_name: 0 };

/// The days of a month that a field names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct DaysOfMonth {
    /// `*` names all days and restricts nothing, nor does `*/2`: `crontab(5)` asks how the field begins.
    pub restricted: bool,
    pub days: Numbers,
    /// So many days before the last: `L` is 0, `L-3` is 3.
    pub before_last: Numbers,
    /// The day from Monday to Friday that is nearest to this one, in the same month: `15W`.
    pub nearest_workday: Numbers,
    /// The last day from Monday to Friday: `LW`.
    pub last_workday: bool,
}

/// The days of a week that a field names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct DaysOfWeek {
    pub restricted: bool,
    /// 0 is Sunday.
    pub days: Numbers,
    /// The last such day of the month: `5L`.
    pub last: Numbers,
    /// The n-th such day of the month: `1#2`, as 8 times the n less one, plus the day.
    pub nth: Numbers,
}

/// An expression of five or six fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(super) seconds: Numbers,
    pub(super) minutes: Numbers,
    pub(super) hours: Numbers,
    pub(super) days: DaysOfMonth,
    pub(super) months: Numbers,
    pub(super) weekdays: DaysOfWeek,
    /// Minute or hour begin with `*`: the job runs by the clock on the wall, whatever it shows, and not at a time of day.
    pub(super) has_wildcard_time: bool,
}

impl Expression {
    /// Reads an expression. `H` in it is a number made from `name`.
    pub(crate) fn parse(text: &str, name: &str) -> Result<Self, ExpressionError> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (seconds, fields) = match fields[..] {
            [second, ref rest @ ..] if rest.len() == 5 => (second, rest),
            _ if fields.len() == 5 => ("0", &fields[..]),
            _ => return Err(ExpressionError::Fields(fields.len())),
        };
        let numbers = |field: &Field, text: &str| items(text, field).map(|item| field.range(item, name)).sum_of();
        let expression = Self {
            seconds: numbers(&SECOND, seconds)?,
            minutes: numbers(&MINUTE, fields[0])?,
            hours: numbers(&HOUR, fields[1])?,
            days: days_of_month(fields[2], name)?,
            months: numbers(&MONTH, fields[3])?,
            weekdays: days_of_week(fields[4], name)?,
            has_wildcard_time: fields[0].starts_with('*') || fields[1].starts_with('*'),
        };
        expression.check()?;
        Ok(expression)
    }

    /// Refuses what never comes, such as the 31st of February.
    fn check(&self) -> Result<(), ExpressionError> {
        let start = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap_or_default().and_time(NaiveTime::MIN);
        if self.next(start).is_some() {
            return Ok(());
        }
        let months = self.months.as_months();
        let never = |field: &Field, why: String| Err(ExpressionError::Never { field: field.name, why });
        // A day of the week comes in every month, except a fifth one; so it is the day of month where that is restricted.
        if self.days.restricted {
            never(&DAY, format!("there is no such day in {months}"))
        } else {
            never(&WEEKDAY, format!("no such day in {months} is one of those days of the month"))
        }
    }

    /// The first local time after this one, to the second. `None`: not within 50 years.
    pub(super) fn next(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let start = after.with_nanosecond(0)?.checked_add_signed(TimeDelta::seconds(1))?;
        let (mut date, mut from) = (start.date(), start.time());
        while date.year() <= start.year() + YEARS_AHEAD {
            if !self.months.contains(date.month()) {
                date = date.with_day(1)?.checked_add_months(Months::new(1))?;
            } else {
                let time = if self.includes_day(date) { self.next_time(from) } else { None };
                if let Some(time) = time {
                    return Some(date.and_time(time));
                }
                date = date.checked_add_days(Days::new(1))?;
            }
            from = NaiveTime::MIN;
        }
        None
    }

    pub(super) fn includes_day(&self, date: NaiveDate) -> bool {
        let (by_month, by_week) = (self.days.include(date), self.weekdays.include(date));
        let either = self.days.restricted && self.weekdays.restricted;
        self.months.contains(date.month()) && if either { by_month || by_week } else { by_month && by_week }
    }

    /// The first time of day from this one on.
    fn next_time(&self, from: NaiveTime) -> Option<NaiveTime> {
        let (hour, minute, second) = (from.hour(), from.minute(), from.second());
        if self.hours.contains(hour) {
            if self.minutes.contains(minute)
                && let Some(second) = self.seconds.first_from(second)
            {
                return NaiveTime::from_hms_opt(hour, minute, second);
            }
            if let Some(minute) = self.minutes.first_from(minute + 1) {
                return NaiveTime::from_hms_opt(hour, minute, self.seconds.first_from(0)?);
            }
        }
        let hour = self.hours.first_from(hour + 1)?;
        NaiveTime::from_hms_opt(hour, self.minutes.first_from(0)?, self.seconds.first_from(0)?)
    }
}

impl DaysOfMonth {
    fn include(&self, date: NaiveDate) -> bool {
        let (day, last) = (date.day(), u32::from(date.num_days_in_month()));
        self.days.contains(day)
            || self.before_last.contains(last - day)
            || (self.last_workday && nearest_workday(date, last) == Some(day))
            || self.nearest_workday.iter().any(|wanted| nearest_workday(date, wanted) == Some(day))
    }
}

/// The day from Monday to Friday that is nearest to this day of the date's month, within that month.
fn nearest_workday(date: NaiveDate, day: u32) -> Option<u32> {
    let last = u32::from(date.num_days_in_month());
    Some(match date.with_day(day)?.weekday() {
        Weekday::Sat if day == 1 => 3,
        Weekday::Sat => day - 1,
        Weekday::Sun if day == last => day - 2,
        Weekday::Sun => day + 1,
        _ => day,
    })
}

impl DaysOfWeek {
    fn include(&self, date: NaiveDate) -> bool {
        let weekday = date.weekday().num_days_from_sunday();
        self.days.contains(weekday)
            || (self.last.contains(weekday) && date.day() + 7 > u32::from(date.num_days_in_month()))
            || self.nth.contains(8 * ((date.day() - 1) / 7) + weekday)
    }
}

/// Sums sets up, or returns the first error.
trait SumOf {
    fn sum_of(self) -> Result<Numbers, ExpressionError>;
}

impl<I: Iterator<Item = Result<Numbers, ExpressionError>>> SumOf for I {
    fn sum_of(mut self) -> Result<Numbers, ExpressionError> {
        self.try_fold(Numbers::default(), |sum, item| item.map(|item| sum.with(item)))
    }
}

/// The parts of a list. `?` is Quartz's `*`.
fn items<'a>(text: &'a str, field: &Field) -> impl Iterator<Item = &'a str> {
    let is_day = field.name == DAY.name || field.name == WEEKDAY.name;
    let text = if text == "?" && is_day { "*" } else { text };
    text.split(',')
}

fn days_of_month(text: &str, name: &str) -> Result<DaysOfMonth, ExpressionError> {
    let mut days = DaysOfMonth { restricted: !text.starts_with(['*', '?']), ..DaysOfMonth::default() };
    for item in items(text, &DAY) {
        let upper = item.to_ascii_uppercase();
        if upper == "LW" || upper == "WL" {
            days.last_workday = true;
        } else if upper == "L" {
            days.before_last.add(Numbers::of([0]));
        } else if let Some(before) = upper.strip_prefix("L-") {
            let before = before.parse().ok().filter(|before| (1..=30).contains(before));
            days.before_last.add(Numbers::of([before.ok_or_else(|| DAY.wrong(item, "L-1 to L-30 is possible"))?]));
        } else if let Some(day) = upper.strip_suffix('W') {
            days.nearest_workday.add(Numbers::of([DAY.number(day)?]));
        } else {
            days.days.add(DAY.range(item, name)?);
        }
    }
    Ok(days)
}

fn days_of_week(text: &str, name: &str) -> Result<DaysOfWeek, ExpressionError> {
    let mut days = DaysOfWeek { restricted: !text.starts_with(['*', '?']), ..DaysOfWeek::default() };
    for item in items(text, &WEEKDAY) {
        let last = item.strip_suffix(['L', 'l']);
        if let Some((day, nth)) = item.split_once('#') {
            let nth = nth.parse().ok().filter(|nth| (1..=5).contains(nth));
            let nth: u32 =
                nth.ok_or_else(|| WEEKDAY.wrong(item, "after # stands 1 to 5: the first to the fifth in the month"))?;
            days.nth.add(Numbers::of([8 * (nth - 1) + WEEKDAY.number(day)? % 7]));
        } else if last == Some("") {
            return Err(WEEKDAY.wrong(item, "write which day, such as 5L for the last Friday of the month"));
        } else if let Some(day) = last {
            days.last.add(Numbers::of([WEEKDAY.number(day)? % 7]));
        } else {
            days.days.add(Numbers::of(WEEKDAY.range(item, name)?.iter().map(|day| day % 7)));
        }
    }
    Ok(days)
}

impl Field {
    fn error(&self, why: String) -> ExpressionError {
        ExpressionError::Field { field: self.name, why }
    }

    fn wrong(&self, found: &str, advice: &str) -> ExpressionError {
        let found: String = found.chars().take(30).flat_map(char::escape_debug).collect();
        self.error(format!("\"{found}\" cannot be read; {advice}"))
    }

    /// `*`, `5`, `MON`, `1-5`, `H`, `H(0-29)`, each perhaps with a step: `/10`.
    fn range(&self, item: &str, name: &str) -> Result<Numbers, ExpressionError> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(self.step(step)?)),
            None => (item, None),
        };
        let (first, last) = (*self.values.start(), *self.values.end());
        if let Some(hashed) = range.strip_prefix(['H', 'h']) {
            let bounds = hashed.strip_prefix('(').and_then(|bounds| bounds.strip_suffix(')'));
            let (from, to) = match bounds.and_then(|bounds| bounds.split_once('-')) {
                Some((from, to)) => self.bounds(from, to)?,
                None if hashed.is_empty() => self.spread(),
                None => return Err(self.wrong(item, "write H, H/15 or H(0-29)")),
            };
            let hash = hash(name, self.name);
            return Ok(match step {
                Some(step) => {
                    Numbers::of((from..=to).skip((hash % step.min(to - from + 1)) as usize).step_by(step as usize))
                }
                None => Numbers::of([from + hash % (to - from + 1)]),
            });
        }
        let (from, to) = match range.split_once('-') {
            // Not both names of Sunday.
            _ if range == "*" => (first, if self.name == WEEKDAY.name { 6 } else { last }),
            Some((from, to)) => self.bounds(from, to)?,
            None => {
                let number = self.number(range)?;
                (number, if step.is_some() { last } else { number })
            }
        };
        Ok(Numbers::of((from..=to).step_by(step.unwrap_or(1) as usize)))
    }

    /// Where `H` falls: not on days that some months lack, and not on Sunday twice.
    fn spread(&self) -> (u32, u32) {
        match self.name {
            name if name == DAY.name => (1, 28),
            name if name == WEEKDAY.name => (0, 6),
            _ => (*self.values.start(), *self.values.end()),
        }
    }

    fn bounds(&self, from: &str, to: &str) -> Result<(u32, u32), ExpressionError> {
        let (from, mut to) = (self.number(from)?, self.number(to)?);
        // In `fri-sun`, Sunday is the end of the week.
        if self.name == WEEKDAY.name && to == 0 && from > 0 {
            to = 7;
        }
        if from > to {
            let (first, last) = (self.values.start(), if self.name == WEEKDAY.name { 6 } else { *self.values.end() });
            return Err(self.error(format!("{from}-{to} begins after its end; write {from}-{last},{first}-{to}")));
        }
        Ok((from, to))
    }

    fn step(&self, text: &str) -> Result<u32, ExpressionError> {
        let count = self.values.end() - self.values.start() + 1;
        let step = text.parse().ok().filter(|step| (1..=count).contains(step) && is_digits(text));
        step.ok_or_else(|| self.wrong(text, &format!("after / stands a step from 1 to {count}")))
    }

    fn number(&self, text: &str) -> Result<u32, ExpressionError> {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.first_name + at as u32);
        }
        let (first, last) = (self.values.start(), self.values.end());
        let number = text.parse().ok().filter(|number| self.values.contains(number) && is_digits(text));
        number.ok_or_else(|| {
            let or = self.names.first().zip(self.names.last()).map(|(first, last)| format!(", or {first} to {last}"));
            self.wrong(text, &format!("{first} to {last} is possible{}", or.unwrap_or_default()))
        })
    }
}

/// Not `+5`.
fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number from a job's name, the same on all hosts and in all versions: 32-bit FNV-1a, mixed.
pub(super) fn hash(name: &str, of: &str) -> u32 {
    let bytes = name.bytes().chain([0]).chain(of.bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nexts(text: &str, after: &str, count: usize) -> Vec<String> {
        let expression = Expression::parse(text, "backup").unwrap();
        let mut time = after.parse().unwrap();
        let next = |_| {
            time = expression.next(time).unwrap();
            time.format("%F %T").to_string()
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn either_day_field_matches_where_both_are_restricted() {
        // The 13th, and each Friday.
        assert_eq!(nexts("0 0 13 * 5", "2026-11-06T12:00:00", 2), ["2026-11-13 00:00:00", "2026-11-20 00:00:00"]);
        assert_eq!(nexts("0 0 13 * 5", "2026-12-11T12:00:00", 1), ["2026-12-13 00:00:00"]);
        // A field that begins with `*` restricts nothing, as crontab(5) has it: both must match.
        assert_eq!(nexts("0 0 */2 * 1", "2026-11-01T12:00:00", 2), ["2026-11-09 00:00:00", "2026-11-23 00:00:00"]);
    }

    #[test]
    fn seconds_come_first_where_there_are_six_fields() {
        assert_eq!(nexts("*/20 30 4 * * *", "2026-01-01T00:00:00", 2), ["2026-01-01 04:30:00", "2026-01-01 04:30:20"]);
    }

    #[test]
    fn last_days_workdays_and_numbered_weekdays() {
        assert_eq!(nexts("0 0 L * *", "2028-01-31T12:00:00", 2), ["2028-02-29 00:00:00", "2028-03-31 00:00:00"]);
        assert_eq!(nexts("0 0 L-2 * *", "2027-02-01T00:00:00", 1), ["2027-02-26 00:00:00"]);
        // 15 August 2026 is a Saturday, 1 August too; 31 January 2027 is a Sunday.
        assert_eq!(nexts("0 0 15W 8 *", "2026-08-01T00:00:00", 1), ["2026-08-14 00:00:00"]);
        assert_eq!(nexts("0 0 1W 8 *", "2026-07-31T00:00:00", 1), ["2026-08-03 00:00:00"]);
        assert_eq!(nexts("0 0 31W 1 *", "2027-01-01T00:00:00", 1), ["2027-01-29 00:00:00"]);
        assert_eq!(nexts("0 0 LW 1 *", "2027-01-01T00:00:00", 1), ["2027-01-29 00:00:00"]);
        assert_eq!(nexts("0 0 * * 5L", "2026-11-01T00:00:00", 2), ["2026-11-27 00:00:00", "2026-12-25 00:00:00"]);
        assert_eq!(nexts("0 0 * * mon#2", "2026-11-01T00:00:00", 2), ["2026-11-09 00:00:00", "2026-12-14 00:00:00"]);
    }

    #[test]
    fn sunday_is_0_and_7_and_ends_a_range() {
        for text in ["0 0 * * 0", "0 0 * * 7", "0 0 * * SUN", "0 0 * * 7-7"] {
            assert_eq!(nexts(text, "2026-11-21T00:00:00", 1), ["2026-11-22 00:00:00"], "{text}");
        }
        assert_eq!(Expression::parse("0 0 * * fri-sun", ""), Expression::parse("0 0 * * 5,6,0", ""));
        assert_eq!(Expression::parse("0 0 * * 5-7", ""), Expression::parse("0 0 * * 5,6,0", ""));
    }

    #[test]
    fn h_is_spread_by_the_jobs_name_and_stays_where_it_is() {
        let read = |text: &str, name: &str| Expression::parse(text, name).unwrap();
        assert_eq!(read("H H * * *", "backup"), read("H H * * *", "backup"));
        let minutes: std::collections::HashSet<u32> =
            (0..200).map(|n| read("H * * * *", &format!("job-{n}")).minutes.iter().next().unwrap()).collect();
        assert!(minutes.len() > 40, "{minutes:?}");
        for n in 0..50 {
            let name = format!("job-{n}");
            let every = read("H/15 * * * *", &name).minutes;
            assert_eq!((every.len(), every.first_from(0).unwrap() < 15), (4, true));
            assert!(read("H(10-19) * * * *", &name).minutes.first_from(0).is_some_and(|n| (10..20).contains(&n)));
            assert!(read("0 0 H * *", &name).days.days.first_from(0).unwrap() <= 28);
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        for (text, expected) in [
            ("61 * * * *", "minute: \"61\" cannot be read; 0 to 59 is possible"),
            ("* 24 * * *", "hour: \"24\" cannot be read; 0 to 23 is possible"),
            ("* * 0 * *", "day of month: \"0\" cannot be read; 1 to 31 is possible"),
            ("* * * foo *", "month: \"foo\" cannot be read; 1 to 12 is possible, or jan to dec"),
            ("* * * * 8", "day of week: \"8\" cannot be read; 0 to 7 is possible, or sun to sat"),
            ("*/0 * * * *", "minute: \"0\" cannot be read; after / stands a step from 1 to 60"),
            ("* 22-2 * * *", "hour: 22-2 begins after its end; write 22-23,0-2"),
            ("+5 * * * *", "minute: \"+5\" cannot be read; 0 to 59 is possible"),
            ("1, * * * *", "minute: \"\" cannot be read; 0 to 59 is possible"),
            (
                "* * * * 1#6",
                "day of week: \"1#6\" cannot be read; after # stands 1 to 5: the first to the fifth in the month",
            ),
            (
                "* * * * L",
                "day of week: \"L\" cannot be read; write which day, such as 5L for the last Friday of the month",
            ),
            ("0 0 31 2 *", "day of month: there is no such day in February, so that it never comes"),
            ("0 0 31 4,6 *", "day of month: there is no such day in April and June, so that it never comes"),
        ] {
            assert_eq!(Expression::parse(text, "").unwrap_err().to_string(), expected);
        }
        assert!(Expression::parse("* * * *", "").unwrap_err().to_string().starts_with("has 4 fields"));
        assert!(Expression::parse("", "").unwrap_err().to_string().starts_with("has 0 fields"));
        // With the day of week restricted too, either one is enough.
        assert!(Expression::parse("0 0 31 2 1", "").is_ok());
        assert!(Expression::parse("0 0 29 2 *", "").is_ok());
        assert!(Expression::parse("0 0 * 2 1#5", "").is_ok());
    }
}

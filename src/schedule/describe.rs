//! Expressions in words: `at 04:05 on every Monday`.

use super::expression::{DaysOfMonth, DaysOfWeek, Expression};
use super::numbers::{Numbers, listed};

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const ORDINALS: [&str; 5] = ["first", "second", "third", "fourth", "fifth"];

/// More times of day than this are not written one by one.
const MOST_TIMES: u32 = 6;

/// The expression in words.
pub(super) fn describe(expression: &Expression) -> String {
    let mut words = times(expression);
    if let Some(days) = days(expression) {
        words.push(' ');
        words.push_str(&days);
    }
    if expression.months.len() < 12 {
        words.push_str(&format!(" in {}", expression.months.as_months()));
    }
    words
}

fn times(expression: &Expression) -> String {
    let Expression { seconds, minutes, hours, .. } = *expression;
    if minutes.len() * hours.len() * seconds.len() <= MOST_TIMES {
        let with_seconds = seconds != Numbers::of([0]);
        let time = |hour, minute, second| {
            if with_seconds { format!("{hour:02}:{minute:02}:{second:02}") } else { format!("{hour:02}:{minute:02}") }
        };
        let times: Vec<String> = hours
            .iter()
            .flat_map(|hour| minutes.iter().map(move |minute| (hour, minute)))
            .flat_map(|(hour, minute)| seconds.iter().map(move |second| time(hour, minute, second)))
            .collect();
        return format!("at {}", listed(&times));
    }
    let minute = match every(minutes, 60) {
        Some(1) => "every minute".to_owned(),
        Some(step) => format!("every {step} minutes"),
        None => format!("at minute {}", numbers(minutes)),
    };
    let minute = match every(seconds, 60) {
        _ if seconds == Numbers::of([0]) => minute,
        Some(1) if every(minutes, 60) == Some(1) => "every second".to_owned(),
        Some(1) => format!("every second {}", within(&minute)),
        Some(step) if every(minutes, 60) == Some(1) => format!("every {step} seconds"),
        Some(step) => format!("every {step} seconds {}", within(&minute)),
        None => format!("at second {} {}", numbers(seconds), within(&minute)),
    };
    match every(hours, 24) {
        Some(1) if every(minutes, 60).is_some() => minute,
        Some(1) => format!("{minute} of every hour"),
        Some(step) => format!("{minute} of every {step} hours"),
        None => format!("{minute} of hour {}", numbers(hours)),
    }
}

/// `every minute` and `at minute 5` as the minutes of something: `of every minute`, `of minute 5`.
fn within(minute: &str) -> String {
    format!("of {}", minute.strip_prefix("at ").unwrap_or(minute))
}

fn days(expression: &Expression) -> Option<String> {
    let Expression { days, weekdays, .. } = expression;
    let of_month = (days.days != Numbers::of(1..=31)).then(|| days_of_month(days));
    let of_week = (weekdays.days != Numbers::of(0..=6)).then(|| days_of_week(weekdays));
    match (of_month, of_week) {
        (Some(month), Some(week)) if days.restricted && weekdays.restricted => Some(format!("on {month} or on {week}")),
        (Some(month), Some(week)) => Some(format!("on {week}, if it is {month}")),
        (Some(one), None) | (None, Some(one)) => {
            // A field of all days that does not begin with `*`: as either field is enough, it is every day.
            (!(days.restricted && weekdays.restricted)).then(|| format!("on {one}"))
        }
        (None, None) => None,
    }
}

fn days_of_month(days: &DaysOfMonth) -> String {
    let mut parts = days.days.in_words(|day| day.to_string());
    if let Some(first) = parts.first_mut() {
        first.insert_str(0, "day ");
    }
    parts.extend(days.nearest_workday.iter().map(|day| format!("the workday nearest to day {day}")));
    parts.extend(days.last_workday.then(|| "the last workday".to_owned()));
    parts.extend(days.before_last.iter().map(|before| match before {
        0 => "the last day".to_owned(),
        1 => "the last day but one".to_owned(),
        before => format!("the day {before} days before the last"),
    }));
    format!("{} of the month", listed(&parts))
}

fn days_of_week(days: &DaysOfWeek) -> String {
    let name = |day: u32| WEEKDAYS[day as usize % 7].to_owned();
    let mut parts = days.days.in_words(name);
    if let Some(first) = parts.first_mut() {
        first.insert_str(0, "every ");
    }
    let nth =
        days.nth.iter().map(|nth| format!("the {} {} of the month", ORDINALS[nth as usize / 8 % 5], name(nth % 8)));
    parts.extend(nth);
    parts.extend(days.last.iter().map(|day| format!("the last {} of the month", name(day))));
    listed(&parts)
}

/// The step of numbers that are all multiples of it.
fn every(numbers: Numbers, below: u32) -> Option<u32> {
    let step = numbers.iter().nth(1).filter(|_| numbers.contains(0))?;
    (below.is_multiple_of(step) && numbers == Numbers::of((0..below).step_by(step as usize))).then_some(step)
}

fn numbers(numbers: Numbers) -> String {
    listed(&numbers.in_words(|number| number.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_in_words() {
        for (expression, words) in [
            ("* * * * *", "every minute"),
            ("*/5 * * * *", "every 5 minutes"),
            ("5 4 * * *", "at 04:05"),
            ("5 4 * * 1", "at 04:05 on every Monday"),
            ("0 8,20 * * *", "at 08:00 and 20:00"),
            ("30 * * * *", "at minute 30 of every hour"),
            ("0 */2 * * *", "at minute 0 of every 2 hours"),
            ("*/15 9-17 * * mon-fri", "every 15 minutes of hour 9 to 17 on every Monday to Friday"),
            ("* 3 * * *", "every minute of hour 3"),
            ("0 0 1 1 *", "at 00:00 on day 1 of the month in January"),
            ("0 0 13 * 5", "at 00:00 on day 13 of the month or on every Friday"),
            ("0 0 */15 * 5", "at 00:00 on every Friday, if it is day 1, 16 and 31 of the month"),
            ("0 0 1,15,L * *", "at 00:00 on day 1, 15 and the last day of the month"),
            ("0 0 * * 5L", "at 00:00 on the last Friday of the month"),
            ("0 0 15W 3-5,7 *", "at 00:00 on the workday nearest to day 15 of the month in March to May and July"),
            ("0 0 * * 1#2", "at 00:00 on the second Monday of the month"),
            ("*/10 * * * * *", "every 10 seconds"),
            ("* * * * * *", "every second"),
            ("15 30 4 * * *", "at 04:30:15"),
            ("*/10 30 * * * *", "every 10 seconds of minute 30 of every hour"),
            ("0 0 1-31 * 5", "at 00:00"),
        ] {
            assert_eq!(describe(&Expression::parse(expression, "job").unwrap()), words, "{expression}");
        }
    }
}

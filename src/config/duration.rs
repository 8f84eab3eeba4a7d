//! Parses durations: `5`, `0.5`, `500ms`, `5s`, `2m`, `1h`.

use std::time::Duration;

use thiserror::Error;

/// The longest duration that is accepted: a hundred years. Adding it to the current time cannot overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Why a text is not a duration. Does not repeat the text, which may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DurationError {
    /// The format is wrong.
    #[error("a duration is a number of seconds, or a number with a unit: 500ms, 5s, 2m, 1h")]
    Form,
    /// The format is wrong, where a number without a unit means milliseconds.
    #[error("a number of milliseconds, or a number with a unit: 500ms, 5s, 2m, 1h")]
    FormMillis,
    /// The duration is too long.
    #[error("a duration is at most 100 years")]
    TooLong,
}

impl From<DurationError> for String {
    /// The error as text, for parsers of command-line arguments.
    fn from(error: DurationError) -> Self {
        error.to_string()
    }
}

/// The default unit of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Used everywhere, except where Symfony has milliseconds.
    Seconds,
    /// In `retry_strategy`, as in Symfony, and in some options of transports.
    Milliseconds,
}

/// Parses a duration: seconds, or a number with one of the units `ms`, `s`, `m`, `h`. Fractions are allowed (`0.5`,
/// `1.5h`); signs, exponents and more than a hundred years are not.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    parse(text, Unit::Seconds)
}

/// Parses a duration. A number without a unit has the unit `default`.
pub(super) fn parse(text: &str, default: Unit) -> Result<Duration, DurationError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    // Without this, the float parser would decide about ".", "5." and ".5".
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return Err(default.form());
    }
    let number: f64 = number.parse().map_err(|_| default.form())?;
    let seconds = match unit.trim_start() {
        "" => return from_number(number, default),
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(default.form()),
    };
    from_seconds(seconds, default)
}

/// A number without a unit as a duration.
pub(super) fn from_number(number: f64, unit: Unit) -> Result<Duration, DurationError> {
    match unit {
        Unit::Seconds => from_seconds(number, unit),
        Unit::Milliseconds => from_seconds(number / 1000.0, unit),
    }
}

fn from_seconds(seconds: f64, unit: Unit) -> Result<Duration, DurationError> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(unit.form());
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(DurationError::TooLong),
    }
}

impl Unit {
    /// Its name, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
        }
    }

    /// A duration of this many units.
    pub(super) fn of(self, number: u32) -> Duration {
        match self {
            Self::Seconds => Duration::from_secs(number.into()),
            Self::Milliseconds => Duration::from_millis(number.into()),
        }
    }

    fn form(self) -> DurationError {
        match self {
            Self::Seconds => DurationError::Form,
            Self::Milliseconds => DurationError::FormMillis,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        for (text, millis) in [
            ("0", 0),
            ("5", 5_000),
            ("0.5", 500),
            ("500ms", 500),
            ("700ms", 700),
            (" 5s ", 5_000),
            ("5 s", 5_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1.5h", 5_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_means_milliseconds_where_symfony_says_so() {
        assert_eq!(parse("1000", Unit::Milliseconds), Ok(Duration::from_secs(1)));
        assert_eq!(parse("2m", Unit::Milliseconds), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", " ", "s", "-5", "+5", "5x", "5S", "1e3", "nan", "inf", ".", ".5", "5.", "1.2.3", "5 5", "½"] {
            assert_eq!(parse_duration(text), Err(DurationError::Form), "{text}");
        }
        for text in ["99999999999999999999", "1000000h", &"9".repeat(400)] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text}");
        }
        for number in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(from_number(number, Unit::Seconds), Err(DurationError::Form));
        }
        assert_eq!(from_number(f64::INFINITY, Unit::Milliseconds), Err(DurationError::TooLong));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_exceed_its_bound(text in "\\PC*") {
            if let Ok(duration) = parse_duration(&text) {
                prop_assert!(duration <= LONGEST);
            }
        }

        #[test]
        fn whole_numbers_of_every_unit_are_exact(number in 0_u64..100_000) {
            for (unit, millis) in [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)] {
                let expected = Duration::from_millis(number * millis);
                if expected <= LONGEST {
                    prop_assert_eq!(parse_duration(&format!("{number}{unit}")), Ok(expected));
                }
            }
        }
    }
}

//! Values of options as Rust types: which values an option of some kind takes, and how each is read.

use std::collections::BTreeMap;
use std::time::Duration;

use regex_lite::Regex;
use serde_yaml::Value;

use super::definition::Kind;
use super::duration;

/// Why a value is not one of those an option takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// It is of another kind, or out of bounds: [`Kind::expected`] says what it must be.
    Kind,
    /// It is of the right kind, and wrong in a way that needs words of its own.
    Because(String),
}

/// A type that values of options are read as.
pub trait FromValue: Sized {
    /// Reads a value, with its placeholders filled in.
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch>;

    /// What is used where the option is missing; none if nothing can be.
    fn or_default(kind: &Kind, default: Option<&Value>) -> Option<Self> {
        Self::from_value(kind, default?).ok()
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        T::from_value(kind, value).map(Some)
    }

    fn or_default(kind: &Kind, default: Option<&Value>) -> Option<Self> {
        match default {
            Some(_) => T::or_default(kind, default).map(Some),
            None => Some(None),
        }
    }
}

impl FromValue for String {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        let text = plain_text(value).ok_or(Mismatch::Kind)?;
        let fits = match kind {
            Kind::Choice(values) => values.contains(&text.as_str()),
            Kind::Matching(_, pattern) => matches_whole(&text, pattern),
            _ => true,
        };
        if fits { Ok(text) } else { Err(Mismatch::Kind) }
    }
}

/// Whether a pattern matches the text from its start to its end.
fn matches_whole(text: &str, pattern: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|pattern| pattern.is_match(text))
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        let (Kind::List(item) | Kind::OneOrMore(item)) = kind else { return Err(Mismatch::Kind) };
        match value {
            Value::Sequence(items) => items.iter().map(|value| T::from_value(item, value)).collect(),
            // As a DSN has it: `tags[]=a&tags[]=b`, or with numbers in the brackets.
            Value::Mapping(items) if items.keys().all(is_position) => {
                items.values().map(|value| T::from_value(item, value)).collect()
            }
            one if matches!(kind, Kind::OneOrMore(_)) => Ok(vec![T::from_value(item, one)?]),
            _ => Err(Mismatch::Kind),
        }
    }

    fn or_default(kind: &Kind, default: Option<&Value>) -> Option<Self> {
        default.map_or_else(|| Some(Self::new()), |default| Self::from_value(kind, default).ok())
    }
}

fn is_position(key: &Value) -> bool {
    plain_text(key).is_some_and(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()))
}

impl<T: FromValue> FromValue for BTreeMap<String, T> {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        let Kind::Map(of) = kind else { return Err(Mismatch::Kind) };
        match value {
            Value::Mapping(entries) => entries
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| Ok((plain_text(key).ok_or(Mismatch::Kind)?, T::from_value(of, value)?)))
                .collect(),
            // In PHP, an empty list is also an empty map.
            Value::Sequence(none) if none.is_empty() => Ok(Self::new()),
            _ => Err(Mismatch::Kind),
        }
    }

    fn or_default(kind: &Kind, default: Option<&Value>) -> Option<Self> {
        default.map_or_else(|| Some(Self::new()), |default| Self::from_value(kind, default).ok())
    }
}

impl FromValue for bool {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        if let Value::Bool(flag) = value {
            return Ok(*flag);
        }
        let text = plain_text(value).filter(|_| matches!(kind, Kind::PhpFlag)).ok_or(Mismatch::Kind)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "on" | "yes" => Ok(true),
            "false" | "0" | "off" | "no" => Ok(false),
            _ => Err(Mismatch::Kind),
        }
    }
}

impl FromValue for u64 {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        let number = match value {
            // Symfony has PHP's integers, and `3.0` is none there either.
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let fits = |number: &Self| matches!(kind, Kind::Whole(min, max) if (min..=max).contains(&number));
        number.filter(fits).ok_or(Mismatch::Kind)
    }
}

impl FromValue for f64 {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        // NaN is within no bounds.
        let fits = |number: &Self| matches!(kind, Kind::Number(min, max) if (min..=max).contains(&number));
        number.filter(fits).ok_or(Mismatch::Kind)
    }
}

impl FromValue for Duration {
    fn from_value(kind: &Kind, value: &Value) -> Result<Self, Mismatch> {
        match kind {
            Kind::Duration(unit) => match value {
                Value::Number(number) => duration::from_number(number.as_f64().unwrap_or(f64::NAN), *unit),
                Value::String(text) => duration::parse(text, *unit),
                _ => return Err(Mismatch::Kind),
            }
            .map_err(|error| Mismatch::Because(error.to_string())),
            Kind::WholeDuration(unit) => {
                let number: u32 = plain_text(value).and_then(|text| text.parse().ok()).ok_or(Mismatch::Kind)?;
                Ok(unit.of(number))
            }
            Kind::Timeout => {
                let seconds = plain_text(value).and_then(|text| text.parse().ok()).ok_or(Mismatch::Kind)?;
                Self::try_from_secs_f64(seconds).map_err(|_| Mismatch::Kind)
            }
            _ => Err(Mismatch::Kind),
        }
    }
}

/// A value as text, as it is written; none for lists, mappings and null.
pub(crate) fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

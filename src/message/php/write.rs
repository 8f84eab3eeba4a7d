//! Writes a new message as PHP's `serialize()` would, where the properties of its class are known.

use serde_json::{Map, Value};

use super::super::headers::Headers;
use super::super::wire::{CONTENT_TYPE, Encoded, STAMP_PREFIX};
use super::classes::{PhpClasses, PhpProperty, PhpType, Visibility, is_identifier};
use super::stamps::{self, Serialized};
use super::text;

const ENVELOPE: &str = r"Symfony\Component\Messenger\Envelope";

/// Writes the envelope of Symfony Messenger around a message. Stamps that PHP could not read stay headers. The error says what
/// does not fit, and where, without the value.
pub(in crate::message) fn write(
    classes: &PhpClasses,
    message_type: &str,
    body: &[u8],
    headers: &Headers,
) -> Result<Encoded, String> {
    let message: Value = serde_json::from_slice(body).map_err(|_| "the message is not JSON".to_owned())?;
    let mut out = Serialized::default();
    let mut beside = Headers::new();
    let mut lists = Vec::new();
    for (name, value) in headers.iter().filter(|(name, _)| *name != CONTENT_TYPE) {
        let list = name.strip_prefix(STAMP_PREFIX).and_then(|class| Some((class, stamp_list(class, value)?)));
        match list {
            Some(list) => lists.push(list),
            None => drop(beside.insert(name, value)),
        }
    }
    out.open_object(ENVELOPE, 2);
    out.string(format!("\0{ENVELOPE}\0stamps").as_bytes());
    out.raw(&format!("a:{}:{{", lists.len()));
    for (class, list) in lists {
        out.string(class.as_bytes());
        out.raw(&format!("a:{}:{{", list.len()));
        for (n, stamp) in list.into_iter().enumerate() {
            out.raw(&format!("i:{n};"));
            out.text.extend_from_slice(&stamp.text);
        }
        out.raw("}");
    }
    out.raw("}");
    out.string(format!("\0{ENVELOPE}\0message").as_bytes());
    object(&mut out, classes, message_type, &message).map_err(|error| error.to_string(message_type))?;
    out.raw("}");
    Ok(Encoded { body: text::encode(&out.text), headers: beside })
}

/// The stamps of a class; `None` if PHP could not read one of them.
fn stamp_list(class: &str, value: &str) -> Option<Vec<Serialized>> {
    let stamps: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(value).ok()?;
    stamps.iter().map(|stamp| stamps::serialize(class, stamp.get())).collect()
}

/// What does not fit, and where, from the inside.
struct Misfit {
    what: String,
    path: Vec<String>,
}

impl Misfit {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), path: Vec::new() }
    }

    fn within(mut self, name: &str) -> Self {
        self.path.push(name.to_owned());
        self
    }

    fn to_string(&self, message_type: &str) -> String {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        let place = if path.is_empty() { String::new() } else { format!("{} ", path.join(".")) };
        format!("{place}{} (as PHP's serialize() writes \"{message_type}\", see `php: classes`)", self.what)
    }
}

fn object(out: &mut Serialized, classes: &PhpClasses, class: &str, value: &Value) -> Result<(), Misfit> {
    let Some(properties) = classes.0.get(class) else {
        return Err(Misfit::new(format!("cannot be written: the properties of \"{class}\" are not known")));
    };
    let empty = Map::new();
    let members = match value {
        Value::Object(members) => members,
        // PHP's empty object is an empty list in JSON where it was an array before.
        Value::Array(items) if items.is_empty() => &empty,
        _ => return Err(Misfit::new(format!("is no object of \"{class}\""))),
    };
    if let Some(unknown) = members.keys().find(|name| !properties.iter().any(|property| property.name == **name)) {
        let unknown: String = unknown.chars().take(100).flat_map(char::escape_debug).collect();
        return Err(Misfit::new(format!("is a property that \"{class}\" does not have")).within(&unknown));
    }
    out.open_object(class, properties.len());
    for property in properties {
        out.string(mangled(property, class).as_bytes());
        let member = members.get(&property.name).unwrap_or(&Value::Null);
        if member.is_null() && !property.is_nullable {
            let what = if members.contains_key(&property.name) { "must not be null" } else { "is missing" };
            return Err(Misfit::new(what).within(&property.name));
        }
        if member.is_null() {
            out.value(member);
        } else {
            typed(out, classes, &property.kind, member).map_err(|error| error.within(&property.name))?;
        }
    }
    out.raw("}");
    Ok(())
}

/// A property's name as `serialize()` has it: it says who may see it.
fn mangled(property: &PhpProperty, class: &str) -> String {
    let name = &property.name;
    match (&property.declared_in, property.visibility) {
        (Some(parent), _) => format!("\0{parent}\0{name}"),
        (None, Visibility::Private) => format!("\0{class}\0{name}"),
        (None, Visibility::Protected) => format!("\0*\0{name}"),
        (None, Visibility::Public) => name.clone(),
    }
}

fn typed(out: &mut Serialized, classes: &PhpClasses, kind: &PhpType, value: &Value) -> Result<(), Misfit> {
    let misfit = |expected: &str| Err(Misfit::new(format!("must be {expected}")));
    match (kind, value) {
        (PhpType::Text, Value::String(_)) | (PhpType::Bool, Value::Bool(_)) | (PhpType::Mixed, _) => out.value(value),
        (PhpType::Array, Value::Array(_) | Value::Object(_)) => out.value(value),
        (PhpType::Int, Value::Number(number)) => match number.as_i64() {
            Some(number) => out.int(number),
            None => return misfit("a whole number that PHP can hold"),
        },
        (PhpType::Float, Value::Number(number)) => out.float(number.as_f64().unwrap_or(f64::MAX)),
        (PhpType::Date(class), Value::String(date)) => {
            if out.date(class, date).is_none() {
                return misfit("a date such as 2026-01-31T10:00:00+01:00");
            }
        }
        (PhpType::Uid(class), Value::String(_)) => {
            out.open_object(class, 1);
            out.string(b"\0*\0uid");
            out.value(value);
            out.raw("}");
        }
        (PhpType::Enum(class), Value::String(case)) if is_identifier(case) => out.case(class, case),
        (PhpType::Object(class), _) => return object(out, classes, class, value),
        (PhpType::List(of), Value::Array(items)) => {
            out.open_array(items.len());
            for (n, item) in items.iter().enumerate() {
                out.raw(&format!("i:{n};"));
                typed(out, classes, of, item).map_err(|error| error.within(&n.to_string()))?;
            }
            out.raw("}");
        }
        (PhpType::Text | PhpType::Uid(_), _) => return misfit("text"),
        (PhpType::Bool, _) => return misfit("true or false"),
        (PhpType::Int | PhpType::Float, _) => return misfit("a number"),
        (PhpType::Date(_), _) => return misfit("a date, as text"),
        (PhpType::Enum(_), _) => return misfit("the name of a case, as text"),
        (PhpType::Array | PhpType::List(_), _) => return misfit("an array"),
    }
    Ok(())
}

//! Writes stamps as PHP's `serialize()` would: those of Symfony whose properties are known.

use serde_json::{Map, Value};

use super::dates;

/// The namespace of the stamps.
const NAMESPACE: &str = r"Symfony\Component\Messenger\Stamp\";

/// Symfony's stamps by the names of their private properties, which are the same from 5.4 to 7.4. Other stamps are not
/// written: PHP refuses a message with a class that it does not know.
const STAMPS: [(&str, &[(&str, Kind)]); 8] = [
    ("BusNameStamp", &[("busName", Kind::Text)]),
    ("DelayStamp", &[("delay", Kind::Int)]),
    // 5.4 has further properties, which are null by default, and later versions would refuse.
    ("RedeliveryStamp", &[("retryCount", Kind::Int), ("redeliveredAt", Kind::Date)]),
    ("TransportMessageIdStamp", &[("id", Kind::Any)]),
    ("SentToFailureTransportStamp", &[("originalReceiverName", Kind::Text)]),
    (
        "ErrorDetailsStamp",
        &[
            ("exceptionClass", Kind::Text),
            ("exceptionCode", Kind::Code),
            ("exceptionMessage", Kind::Text),
            ("flattenException", Kind::Null),
        ],
    ),
    ("HandledStamp", &[("result", Kind::Any), ("handlerName", Kind::Text)]),
    ("SerializerStamp", &[("context", Kind::Any)]),
];

/// What a property may hold.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int,
    /// An integer or a string.
    Code,
    /// A `DateTimeImmutable`, in JSON as RFC 3339 has it.
    Date,
    /// Only null, whatever JSON says: an object of PHP cannot be made from it.
    Null,
    Any,
}

/// A serialized value.
#[derive(Default)]
pub(super) struct Serialized {
    pub(super) text: Vec<u8>,
    /// How many values PHP counts in it, with itself.
    pub(super) values: u32,
}

fn properties(class: &str) -> Option<&'static [(&'static str, Kind)]> {
    let name = class.strip_prefix(NAMESPACE)?;
    STAMPS.iter().find(|(known, _)| *known == name).map(|(_, properties)| *properties)
}

/// Writes a stamp. `None` if its class is unknown or the JSON does not fit it.
pub(super) fn serialize(class: &str, json: &str) -> Option<Serialized> {
    let properties = properties(class)?;
    let values: Map<String, Value> = serde_json::from_str(json).ok()?;
    let mut out = Serialized::default();
    out.open_object(class, properties.len());
    for (name, kind) in properties {
        out.string(format!("\0{class}\0{name}").as_bytes());
        let value = values.get(*name)?;
        match (kind, value) {
            (Kind::Text, Value::String(_)) | (Kind::Code, Value::String(_)) | (Kind::Any, _) => out.value(value),
            (Kind::Int | Kind::Code, Value::Number(number)) => out.int(integer(number)?),
            (Kind::Date, Value::String(date)) => out.date("DateTimeImmutable", date)?,
            (Kind::Null, _) => out.value(&Value::Null),
            _ => return None,
        }
    }
    out.raw("}");
    Some(out)
}

fn integer(number: &serde_json::Number) -> Option<i64> {
    // A delay may be longer than PHP can count.
    number.as_i64().or_else(|| number.as_u64().map(|_| i64::MAX))
}

impl Serialized {
    pub(super) fn raw(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    /// A string, as key or value. Its length is in bytes.
    pub(super) fn string(&mut self, text: &[u8]) {
        self.raw(&format!("s:{}:\"", text.len()));
        self.text.extend_from_slice(text);
        self.raw("\";");
    }

    pub(super) fn int(&mut self, value: i64) {
        self.values += 1;
        self.raw(&format!("i:{value};"));
    }

    pub(super) fn open_object(&mut self, class: &str, properties: usize) {
        self.values += 1;
        self.raw(&format!("O:{}:\"{class}\":{properties}:{{", class.len()));
    }

    pub(super) fn date(&mut self, class: &str, text: &str) -> Option<()> {
        let (date, zone_kind, zone) = dates::from_rfc3339(text)?;
        self.open_object(class, 3);
        self.string(b"date");
        self.value(&date.into());
        self.string(b"timezone_type");
        self.int(zone_kind);
        self.string(b"timezone");
        self.value(&zone.into());
        self.raw("}");
        Some(())
    }

    pub(super) fn float(&mut self, value: f64) {
        self.values += 1;
        self.raw(&format!("d:{value};"));
    }

    /// A case of an enum.
    pub(super) fn case(&mut self, class: &str, case: &str) {
        self.values += 1;
        self.raw(&format!("E:{}:\"{class}:{case}\";", class.len() + 1 + case.len()));
    }

    pub(super) fn open_array(&mut self, items: usize) {
        self.values += 1;
        self.raw(&format!("a:{items}:{{"));
    }

    pub(super) fn value(&mut self, value: &Value) {
        self.values += 1;
        match value {
            Value::Null => self.raw("N;"),
            Value::Bool(value) => self.raw(if *value { "b:1;" } else { "b:0;" }),
            Value::Number(number) => match number.as_i64() {
                Some(number) => self.raw(&format!("i:{number};")),
                None => self.raw(&format!("d:{};", number.as_f64().unwrap_or(f64::MAX))),
            },
            Value::String(text) => self.string(text.as_bytes()),
            Value::Array(items) => {
                self.raw(&format!("a:{}:{{", items.len()));
                for (n, item) in items.iter().enumerate() {
                    self.raw(&format!("i:{n};"));
                    self.value(item);
                }
                self.raw("}");
            }
            Value::Object(members) => {
                self.raw(&format!("a:{}:{{", members.len()));
                for (name, member) in members {
                    self.string(name.as_bytes());
                    self.value(member);
                }
                self.raw("}");
            }
        }
    }
}

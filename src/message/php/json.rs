//! Writes PHP's values as JSON: as Symfony's JSON serializer would write the same object, as far as the text tells.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use indexmap::IndexMap;

use super::PhpError;
use super::dates::{self, Interval};
use super::parse::{Key, MAX_DEPTH, Node, Parsed, Value};

/// How many times longer than its source the JSON may be. Objects are repeated where they are referred to, so that a
/// short text could become an endless one.
const MAX_GROWTH: usize = 8;

/// What is always allowed, in bytes.
const MIN_LIMIT: usize = 64 * 1024;

/// What to do with what JSON cannot hold: a value that contains itself, NAN, an infinity.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Unrepresentable {
    /// It is an error.
    Refused,
    /// It is null.
    Null,
}

/// Writes values of one text.
pub(super) struct Writer<'p> {
    parsed: &'p Parsed<'p>,
    unrepresentable: Unrepresentable,
    out: Vec<u8>,
    /// How many bytes may still be written.
    limit: usize,
    /// How many values were passed over, because a later one has the same name. They count as bytes: an object of equal names
    /// that is referred to many times would take long without making the text longer.
    passed_over: usize,
    /// The containers that are being written, from the outermost.
    open: Vec<usize>,
    is_open: Vec<bool>,
}

/// A name in an object: whose property it is decides if there are several.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Visibility {
    /// Private to a parent class.
    OfParent,
    /// Public, protected, or private to the object's own class.
    Own,
}

impl<'p> Writer<'p> {
    pub(super) fn new(parsed: &'p Parsed<'p>, unrepresentable: Unrepresentable) -> Self {
        let limit = MIN_LIMIT.max(MAX_GROWTH.saturating_mul(parsed.text.len()));
        let is_open = vec![false; parsed.nodes.len()];
        Self { parsed, unrepresentable, out: Vec::new(), limit, passed_over: 0, open: Vec::new(), is_open }
    }

    /// The JSON of a value. All values that one writer writes share one limit.
    pub(super) fn write(&mut self, node: usize) -> Result<Vec<u8>, PhpError> {
        let result = self.value(node);
        let out = std::mem::take(&mut self.out);
        for node in self.open.drain(..) {
            self.is_open[node] = false;
        }
        self.limit = self.limit.saturating_sub(out.len());
        result.map(|()| out)
    }

    fn value(&mut self, node: usize) -> Result<(), PhpError> {
        if self.out.len() + self.passed_over > self.limit {
            return Err(PhpError::new("as JSON, it would be too long: objects are repeated too often"));
        }
        let node = self.parsed.resolve(node);
        match &self.parsed.nodes[node].value {
            Value::Null => self.raw("null"),
            Value::Bool(value) => self.raw(if *value { "true" } else { "false" }),
            Value::Int(value) => self.raw(&value.to_string()),
            Value::Float(value) => match serde_json::Number::from_f64(*value) {
                Some(number) => self.raw(&number.to_string()),
                None => return self.unrepresentable(&format!("{value} cannot be written as JSON")),
            },
            Value::Text(text) => self.text(text),
            Value::Enum { case } => self.text(case),
            Value::Custom { data } => match Parsed::parse_data(data) {
                Some(inner) => {
                    let mut writer = Writer::new(&inner, self.unrepresentable);
                    writer.limit = self.limit - self.out.len().min(self.limit);
                    let json = writer.write(0)?;
                    self.out.extend_from_slice(&json);
                }
                None => self.text(data),
            },
            Value::Array => return self.nested(node, Self::array),
            Value::Object { class } => match self.special(node, class) {
                Some(Special::Text(text)) => self.text(text.as_bytes()),
                Some(Special::Same(inner)) => return self.nested(node, |writer, _| writer.value(inner)),
                None => return self.nested(node, Self::object),
            },
            // Resolved above.
            Value::Reference { .. } => self.raw("null"),
        }
        Ok(())
    }

    /// Writes a container, unless it is one of those that are being written.
    fn nested(
        &mut self,
        node: usize,
        write: impl FnOnce(&mut Self, usize) -> Result<(), PhpError>,
    ) -> Result<(), PhpError> {
        if self.is_open[node] {
            return self.unrepresentable("it contains itself, which JSON cannot hold");
        }
        if self.open.len() >= MAX_DEPTH {
            return self.unrepresentable("as JSON, it would be nested too deep");
        }
        self.is_open[node] = true;
        self.open.push(node);
        write(self, node)?;
        self.open.pop();
        self.is_open[node] = false;
        Ok(())
    }

    fn array(&mut self, node: usize) -> Result<(), PhpError> {
        let keys = self.parsed.children(node).map(|child| &self.parsed.nodes[child].key);
        let is_list = keys.zip(0..).all(|(key, n)| matches!(key, Key::Int(key) if *key == n));
        if !is_list {
            return self.object(node);
        }
        self.raw("[");
        for (n, child) in self.parsed.children(node).enumerate() {
            if n > 0 {
                self.raw(",");
            }
            self.value(child).map_err(|error| error.within(&n.to_string()))?;
        }
        self.raw("]");
        Ok(())
    }

    fn object(&mut self, node: usize) -> Result<(), PhpError> {
        let class = match &self.parsed.nodes[node].value {
            Value::Object { class } => Some(*class),
            _ => None,
        };
        // Of equal names, PHP takes the last one, at the place of the first.
        let mut members: IndexMap<Cow<'p, str>, (Visibility, usize)> = IndexMap::new();
        let mut children = 0;
        for child in self.parsed.children(node) {
            children += 1;
            let (name, visibility) = name_of(&self.parsed.nodes[child], class);
            let member = members.entry(name).or_insert((visibility, child));
            if visibility >= member.0 {
                *member = (visibility, child);
            }
        }
        self.passed_over += children - members.len();
        self.raw("{");
        for (n, (name, (_, child))) in members.iter().enumerate() {
            if n > 0 {
                self.raw(",");
            }
            self.string(name);
            self.raw(":");
            self.value(*child).map_err(|error| error.within(name))?;
        }
        self.raw("}");
        Ok(())
    }

    /// What Symfony does not write by its properties.
    fn special(&self, node: usize, class: &[u8]) -> Option<Special> {
        let text = |name| match self.property(node, name)?.1 {
            Value::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        };
        let number = |name| match self.property(node, name)?.1 {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        // By what they contain, as applications derive their own classes from PHP's.
        if let (Some(kind), Some(zone)) = (number("timezone_type"), text("timezone")) {
            return match text("date") {
                Some(date) => dates::to_rfc3339(date, kind, zone).map(Special::Text),
                None if class == b"DateTimeZone" => Some(Special::Text(zone.to_owned())),
                None => None,
            };
        }
        if class == b"DateInterval" {
            let interval = Interval {
                years: number("y")?,
                months: number("m")?,
                days: number("d")?,
                hours: number("h")?,
                minutes: number("i")?,
                seconds: number("s")?,
                is_negative: number("invert")? != 0,
            };
            return Some(Special::Text(interval.to_iso8601()));
        }
        if class.starts_with(br"Symfony\Component\Uid\") {
            return text("uid").map(|uid| Special::Text(uid.to_owned()));
        }
        match class {
            br"Doctrine\Common\Collections\ArrayCollection" => Some(Special::Same(self.property(node, "elements")?.0)),
            b"ArrayObject" | b"ArrayIterator" => {
                let is_storage = |child: &usize| matches!(self.parsed.nodes[*child].key, Key::Int(1));
                self.parsed.children(node).find(is_storage).map(Special::Same)
            }
            _ => None,
        }
    }

    /// A property, if there are few enough of them to look for it.
    fn property(&self, node: usize, name: &str) -> Option<(usize, &'p Value<'p>)> {
        const FEW: usize = 32;
        let named = |child: &usize| matches!(self.parsed.nodes[*child].key, Key::Text(key) if unmangled(key).1 == name.as_bytes());
        let child = self.parsed.children(node).take(FEW).find(named)?;
        Some((child, &self.parsed.nodes[self.parsed.resolve(child)].value))
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// A string. What is not UTF-8 becomes a data URI, which is how Symfony writes binary data.
    fn text(&mut self, text: &[u8]) {
        match std::str::from_utf8(text) {
            Ok(text) => self.string(text),
            Err(_) => self.string(&format!("data:application/octet-stream;base64,{}", BASE64.encode(text))),
        }
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut self.out, text).expect("a string can be written to memory");
    }

    fn unrepresentable(&mut self, why: &str) -> Result<(), PhpError> {
        match self.unrepresentable {
            Unrepresentable::Refused => Err(PhpError::new(why)),
            Unrepresentable::Null => {
                self.raw("null");
                Ok(())
            }
        }
    }
}

/// An object that is not written by its properties.
enum Special {
    Text(String),
    /// As the value in it.
    Same(usize),
}

/// The name of a member, without what PHP adds to those that are not public: `\0*\0` or `\0Class\0`.
fn name_of<'p>(node: &Node<'p>, class: Option<&[u8]>) -> (Cow<'p, str>, Visibility) {
    match (node.key, class) {
        (Key::None, _) => ("".into(), Visibility::Own),
        (Key::Int(key), _) => (key.to_string().into(), Visibility::Own),
        (Key::Text(key), None) => (String::from_utf8_lossy(key), Visibility::Own),
        (Key::Text(key), Some(class)) => {
            let (owner, name) = unmangled(key);
            let is_own = owner.is_none_or(|owner| owner == b"*" || owner.eq_ignore_ascii_case(class));
            (String::from_utf8_lossy(name), if is_own { Visibility::Own } else { Visibility::OfParent })
        }
    }
}

/// A property's owner, if it is not public, and its name.
pub(super) fn unmangled(key: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let mangled = || {
        let rest = key.strip_prefix(b"\0")?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some((Some(&rest[..end]), &rest[end + 1..]))
    };
    mangled().unwrap_or((None, key))
}

//! Where the message and the stamps are in a serialized envelope.

use std::collections::HashSet;

use super::super::headers::Headers;
use super::json::{Unrepresentable, Writer, unmangled};
use super::parse::{Key, Parsed, Value};
use super::{PhpError, header};

const ENVELOPE: &[u8] = br"Symfony\Component\Messenger\Envelope";

/// The values of an envelope, by their index.
pub(super) struct Layout {
    pub(super) message: usize,
    /// The stamps: an array with an array for each class.
    pub(super) stamps: usize,
}

/// The stamps of one class.
pub(super) struct StampList<'p> {
    /// `None` if it is not UTF-8.
    pub(super) class: Option<&'p str>,
    /// The array that holds them.
    pub(super) node: usize,
    pub(super) items: Vec<StampItem>,
}

/// One stamp.
pub(super) struct StampItem {
    pub(super) node: usize,
    pub(super) json: String,
}

impl Layout {
    pub(super) fn of(parsed: &Parsed<'_>) -> Result<Self, PhpError> {
        let Value::Object { class: ENVELOPE } = parsed.nodes[0].value else {
            return Err(PhpError::new("it is no envelope of Symfony Messenger"));
        };
        let only = |wanted: &[u8]| {
            let is_wanted =
                |child: &usize| matches!(parsed.nodes[*child].key, Key::Text(key) if unmangled(key).1 == wanted);
            let mut found = parsed.children(0).filter(is_wanted);
            found.next().filter(|_| found.next().is_none())
        };
        let missing = |what| PhpError::new(&format!("the envelope has no {what}, or several"));
        let message = only(b"message").ok_or_else(|| missing("message"))?;
        let stamps = only(b"stamps").ok_or_else(|| missing("stamps"))?;
        let is_array = |node: usize| matches!(parsed.nodes[node].value, Value::Array);
        if !is_array(stamps) || !parsed.children(stamps).all(is_array) {
            return Err(PhpError::new("the envelope's stamps are not a list for each class"));
        }
        let mut classes = HashSet::new();
        let is_twice = |node: usize| matches!(parsed.nodes[node].key, Key::Text(class) if !classes.insert(class));
        if parsed.children(stamps).any(is_twice) {
            return Err(PhpError::new("the envelope has two lists of stamps of one class"));
        }
        Ok(Self { message, stamps })
    }

    /// All stamps, and their JSON. What JSON cannot hold is null there: the text keeps it.
    pub(super) fn stamps<'p>(&self, parsed: &'p Parsed<'p>) -> Vec<StampList<'p>> {
        let mut writer = Writer::new(parsed, Unrepresentable::Null);
        let mut item = |node| {
            let json = writer.write(node).ok().and_then(|json| String::from_utf8(json).ok());
            StampItem { node, json: json.unwrap_or_else(|| "null".to_owned()) }
        };
        let list = |node: usize| StampList {
            class: match parsed.nodes[node].key {
                Key::Text(class) => std::str::from_utf8(class).ok(),
                Key::Int(_) | Key::None => None,
            },
            node,
            items: parsed.children(node).map(&mut item).collect(),
        };
        parsed.children(self.stamps).map(list).collect()
    }

    /// All stamps, under the names that they have as headers.
    pub(super) fn headers(&self, parsed: &Parsed<'_>) -> Headers {
        let lists = self.stamps(parsed).into_iter();
        lists.filter_map(|list| Some((header(list.class?), list.to_json()))).collect()
    }
}

impl StampList<'_> {
    /// As in a header: a JSON array.
    pub(super) fn to_json(&self) -> String {
        let items: Vec<&str> = self.items.iter().map(|item| item.json.as_str()).collect();
        format!("[{}]", items.join(","))
    }
}

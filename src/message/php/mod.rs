//! Envelopes that PHP's `serialize()` has written, which is what Symfony does by default: the message and its stamps are in
//! the body.
//!
//! A body is read into what Symfony's JSON serializer would have sent for the same envelope: the class, the message as JSON,
//! and a header per stamp class. So everything else here works the same for both. The body itself is kept; when the envelope is sent
//! again, the stamps that have changed are changed in that text, and the rest of it stays as PHP wrote it. Nothing in it
//! is ever instantiated or run.

mod classes;
mod dates;
mod json;
mod layout;
mod parse;
mod splice;
mod stamps;
#[cfg(test)]
mod tests;
mod text;
mod write;

use std::fmt;

use bytes::Bytes;

use super::headers::Headers;
use super::wire::{Encoded, STAMP_PREFIX};
pub(crate) use classes::{PhpClass, PhpClasses, PhpProperty, class_name};
use json::{Unrepresentable, Writer};
use layout::Layout;
use parse::{Parsed, Value};
use splice::Change;
pub(in crate::message) use text::is_serialized;
pub(in crate::message) use write::write;

/// The longest name that is shown, in characters.
const MAX_SHOWN: usize = 100;

/// Why a body of PHP cannot be read.
#[derive(Debug)]
pub(super) struct PhpError {
    what: String,
    position: Option<usize>,
    /// Where in the message, from the inside.
    path: Vec<String>,
}

impl PhpError {
    fn new(what: &str) -> Self {
        Self { what: what.to_owned(), position: None, path: Vec::new() }
    }

    fn at(position: usize, what: &str) -> Self {
        Self { position: Some(position), ..Self::new(what) }
    }

    fn within(mut self, name: &str) -> Self {
        self.path.push(for_people(name.as_bytes()));
        self
    }
}

impl fmt::Display for PhpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// How many names of a path are shown.
        const SHOWN: usize = 8;
        f.write_str(&self.what)?;
        if let Some(position) = self.position {
            write!(f, ", at byte {position}")?;
        }
        if !self.path.is_empty() {
            let shown: Vec<&str> = self.path.iter().rev().take(SHOWN).map(String::as_str).collect();
            let more = if self.path.len() > SHOWN { " → …" } else { "" };
            write!(f, " (in {}{more})", shown.join(" → "))?;
        }
        Ok(())
    }
}

/// A name from a body, of any bytes and any length.
fn for_people(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect()
}

/// The body of a received envelope, as PHP wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PhpBody(Bytes);

/// What a body says.
pub(super) struct Decoded {
    /// The message's class.
    pub(super) message_type: String,
    /// The message as JSON.
    pub(super) json: Bytes,
    /// The stamps, under the names that they have as headers.
    pub(super) stamps: Headers,
}

impl PhpBody {
    /// A body for which [`is_serialized`] is true.
    pub(super) fn new(body: &Bytes) -> Self {
        Self(body.clone())
    }

    pub(super) fn decode(&self) -> Result<Decoded, PhpError> {
        let text = text::decode(&self.0).ok_or_else(|| PhpError::new("it is no object"))?;
        let parsed = Parsed::parse(&text)?;
        let layout = Layout::of(&parsed)?;
        let message = parsed.resolve(layout.message);
        let Value::Object { class } = parsed.nodes[message].value else {
            return Err(PhpError::new("the message is no object, or one with a format of its own"));
        };
        let message_type = std::str::from_utf8(class).map_err(|_| PhpError::new("the class's name is not UTF-8"))?;
        let json = Writer::new(&parsed, Unrepresentable::Refused).write(message)?;
        let stamps = layout.headers(&parsed);
        Ok(Decoded { message_type: message_type.to_owned(), json: json.into(), stamps })
    }

    /// The stamps, under the names that they have as headers, even if the message itself cannot be read.
    pub(super) fn stamps(&self) -> Result<Headers, PhpError> {
        let text = text::decode(&self.0).ok_or_else(|| PhpError::new("it is no object"))?;
        let parsed = Parsed::parse(&text)?;
        Ok(Layout::of(&parsed)?.headers(&parsed))
    }

    /// The body with the stamps that the headers say, and the headers that PHP finds no stamps in.
    pub(super) fn encode(&self, headers: &Headers) -> Encoded {
        let as_received = || Encoded { body: self.0.clone(), headers: headers.clone() };
        // It was read before, so that none of these is missing.
        let Some(text) = text::decode(&self.0) else { return as_received() };
        let Ok(parsed) = Parsed::parse(&text) else { return as_received() };
        let Ok(layout) = Layout::of(&parsed) else { return as_received() };
        let Change { text: changed, headers } = splice::splice(&parsed, &layout, headers);
        let body = changed.map_or_else(|| self.0.clone(), |text| text::encode(&text));
        Encoded { body, headers }
    }
}

/// The name of the header that holds the stamps of a class.
fn header(class: &str) -> String {
    format!("{STAMP_PREFIX}{class}")
}

//! Messages as Symfony writes them: as a field of a stream's entry, or a member of the set of delayed messages.
//!
//! Both are JSON, `{"body": …, "headers": …}`. A member also has a `uniqid`, because a set keeps equal members only
//! once. By default php-redis wraps the entries of a stream as PHP's serializer writes text: `s:LENGTH:"…";`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::{Damaged, MessageId, Receipt, Received, TransportError};
use crate::message::{Encoded, Envelope, Headers, UndecodableError, headers_from_json};

/// How php-redis wraps entries, by its option `serializer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapping {
    /// `0`: not at all.
    None,
    /// `1`: by PHP's serializer.
    Php,
}

#[derive(Serialize)]
struct Written<'a> {
    body: &'a str,
    headers: &'a Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    uniqid: Option<&'a str>,
}

#[derive(Deserialize)]
struct Read<'a> {
    body: String,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    #[serde(default)]
    uniqid: Option<String>,
}

/// The value of an entry.
pub(super) fn entry(transport: &str, message: &Encoded, wrapping: Wrapping) -> Result<Vec<u8>, TransportError> {
    Ok(wrap(json(transport, message, None)?, wrapping))
}

/// A member of the set of delayed messages. Never wrapped: Symfony bypasses php-redis there.
pub(super) fn member(transport: &str, message: &Encoded, uniqid: &str) -> Result<Vec<u8>, TransportError> {
    json(transport, message, Some(uniqid))
}

fn json(transport: &str, message: &Encoded, uniqid: Option<&str>) -> Result<Vec<u8>, TransportError> {
    let unstorable = |why: &str| TransportError::Unstorable { transport: transport.to_owned(), why: why.to_owned() };
    let body = std::str::from_utf8(&message.body)
        .map_err(|_| unstorable("the body is not UTF-8, which the JSON in a stream's entry cannot hold"))?;
    let written = Written { body, headers: &message.headers, uniqid };
    serde_json::to_vec(&written).map_err(|error| unstorable(&error.to_string()))
}

/// The entry that a delayed message becomes. A member that cannot be read is copied as it is, and received as damaged.
pub(super) fn entry_of_member(member: &[u8], wrapping: Wrapping) -> Vec<u8> {
    let content = match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(member) {
        Ok(mut content) => {
            content.shift_remove("uniqid");
            serde_json::to_vec(&content).unwrap_or_else(|_| member.to_vec())
        }
        Err(_) => member.to_vec(),
    };
    wrap(content, wrapping)
}

/// The message in an entry or a member.
pub(super) fn read(content: &[u8]) -> Result<Encoded, Damaged> {
    let json = unwrap(content);
    let damaged = |error| Damaged { body: Bytes::copy_from_slice(json), headers: Bytes::new(), error };
    let read: Read = serde_json::from_slice(json).map_err(|error| {
        let alone = Encoded { body: Bytes::copy_from_slice(json), ..Encoded::default() };
        damaged(match Envelope::decode(&alone) {
            Err(error @ UndecodableError::Php(_)) => error,
            _ => UndecodableError::Body(error.to_string()),
        })
    })?;
    match headers_from_json(read.headers.map_or("{}", RawValue::get)) {
        Ok(headers) => Ok(Encoded { body: read.body.into(), headers }),
        Err(error) => Err(Damaged {
            body: read.body.into(),
            headers: Bytes::copy_from_slice(read.headers.map_or("", RawValue::get).as_bytes()),
            error,
        }),
    }
}

/// An entry: its id, its fields and their values.
pub(super) type Entry = (String, Vec<Vec<u8>>);

/// The message in an entry. An entry without the field `message` is received as damaged, with everything it has.
pub(super) fn received((id, fields): Entry, receipt: Receipt) -> Received {
    let mut pairs = fields.chunks_exact(2);
    let message = pairs.find(|pair| pair[0] == b"message").map(|pair| read(&pair[1]));
    let message = message.unwrap_or_else(|| Err(without_message(&fields)));
    Received { id: MessageId(id), receipt, message }
}

/// An entry without the field `message`, with everything it has.
fn without_message(fields: &[Vec<u8>]) -> Damaged {
    let error = UndecodableError::Body("the entry has no field `message`".to_owned());
    Damaged { body: fields.join(&b' ').into(), headers: Bytes::new(), error }
}

/// The `uniqid` of a member, if it has one.
pub(super) fn uniqid(member: &[u8]) -> Option<String> {
    serde_json::from_slice::<Read>(member).ok()?.uniqid
}

fn wrap(json: Vec<u8>, wrapping: Wrapping) -> Vec<u8> {
    match wrapping {
        Wrapping::None => json,
        Wrapping::Php => [format!("s:{}:\"", json.len()).as_bytes(), &json, b"\";"].concat(),
    }
}

/// The content of a wrapped entry; of any other, the entry itself.
fn unwrap(content: &[u8]) -> &[u8] {
    let inner = || {
        let rest = content.strip_prefix(b"s:")?;
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let length: usize = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
        let inner = rest[colon + 1..].strip_prefix(b"\"")?.strip_suffix(b"\";")?;
        (inner.len() == length).then_some(inner)
    };
    inner().unwrap_or(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Encoded {
        let headers = Headers::from([("type", r"App\A")]);
        Encoded { body: "{\"a\":\"ä\"}".into(), headers }
    }

    #[test]
    fn an_entry_is_wrapped_as_by_php_redis() {
        let plain = r#"{"body":"{\"a\":\"ä\"}","headers":{"type":"App\\A"}}"#;
        assert_eq!(entry("t", &message(), Wrapping::None).unwrap(), plain.as_bytes());
        let wrapped = entry("t", &message(), Wrapping::Php).unwrap();
        assert_eq!(wrapped, format!("s:{}:\"{plain}\";", plain.len()).as_bytes());
        for content in [plain.as_bytes(), &wrapped] {
            assert_eq!(read(content).unwrap(), message());
        }
    }

    #[test]
    fn a_member_becomes_an_entry_without_its_uniqid() {
        let member = member("t", &message(), "17").unwrap();
        assert_eq!(uniqid(&member).as_deref(), Some("17"));
        assert_eq!(entry_of_member(&member, Wrapping::Php), entry("t", &message(), Wrapping::Php).unwrap());
        assert_eq!(entry_of_member(b"nonsense", Wrapping::None), b"nonsense");
    }

    #[test]
    fn content_that_is_not_a_message_is_damaged_and_kept() {
        for content in [&b"nonsense"[..], b"", b"[]", b"{}", b"\xff", br#"{"body":7,"headers":{}}"#, b"s:3:\"ab\";"] {
            let damaged = read(content).unwrap_err();
            assert_eq!(damaged.body, content);
            assert!(matches!(damaged.error, UndecodableError::Body(_) | UndecodableError::Php(_)));
        }
        let damaged = read(br#"{"body":"{}","headers":{"a":[]}}"#).unwrap_err();
        assert_eq!((&damaged.body[..], &damaged.headers[..]), (&b"{}"[..], &br#"{"a":[]}"#[..]));
        assert_eq!(read(br#"{"body":"{}","headers":[]}"#).unwrap().headers, Headers::new());
    }
}

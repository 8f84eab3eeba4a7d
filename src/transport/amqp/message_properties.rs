//! Messages as Symfony writes them: the body unchanged, `Content-Type` as a property, all other headers in a table.

use chrono::Utc;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::super::TransportError;
use crate::message::{AmqpAttributes, Encoded, Headers};

const CONTENT_TYPE: &str = "Content-Type";
/// Headers that the broker adds when a message has waited in a delay queue.
const BROKER_HEADERS: [&str; 3] = ["x-death", "x-first-death-", "x-last-death-"];
/// The largest size of all headers, in bytes: they travel in one frame, which is usually limited to 128 KiB.
const MAX_HEADERS: usize = 120 * 1024;

/// The properties of a message. A message that was received keeps those that it had, such as its priority.
pub(super) fn of(
    transport: &str,
    message: &Encoded,
    before: Option<&BasicProperties>,
) -> Result<BasicProperties, TransportError> {
    let unstorable = |why: &str| TransportError::Unstorable { transport: transport.to_owned(), why: why.to_owned() };
    let size: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    if size > MAX_HEADERS {
        return Err(unstorable("its headers are longer than 120 KiB, and must fit into one frame"));
    }
    let name =
        |text: &str| ShortString::try_new(text).map_err(|_| unstorable("a header's name is longer than 255 bytes"));
    let mut table = FieldTable::default();
    for (header, value) in message.headers.iter().filter(|(header, _)| *header != CONTENT_TYPE) {
        table.insert(name(header)?, AMQPValue::LongString(value.into()));
    }
    let mut properties = match before {
        Some(before) => kept(before),
        None => BasicProperties::default().with_timestamp(u64::try_from(Utc::now().timestamp()).unwrap_or(0)),
    };
    properties = properties.with_headers(table).with_delivery_mode(2);
    if let Some(content_type) = message.headers.get(CONTENT_TYPE) {
        properties = properties.with_content_type(name(content_type)?);
    }
    Ok(properties)
}

/// The properties that a stamp asks for.
pub(super) fn of_stamp(attributes: &AmqpAttributes, is_delayed: bool) -> Result<BasicProperties, String> {
    let text = |value: &Option<String>, name: &str| {
        let text = value.as_ref().map(ShortString::try_new).transpose();
        text.map_err(|_| format!("its {name} is longer than 255 bytes"))
    };
    let now = || u64::try_from(Utc::now().timestamp()).unwrap_or(0);
    let mut properties = BasicProperties::default().with_timestamp(attributes.timestamp.unwrap_or_else(now));
    if let Some(priority) = attributes.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(kind) = text(&attributes.content_type, "content_type")? {
        properties = properties.with_content_type(kind);
    }
    if let Some(encoding) = text(&attributes.content_encoding, "content_encoding")? {
        properties = properties.with_content_encoding(encoding);
    }
    if let Some(id) = text(&attributes.message_id, "message_id")? {
        properties = properties.with_message_id(id);
    }
    if let Some(id) = text(&attributes.correlation_id, "correlation_id")? {
        properties = properties.with_correlation_id(id);
    }
    if let Some(to) = text(&attributes.reply_to, "reply_to")? {
        properties = properties.with_reply_to(to);
    }
    // In a delay queue it would end the delay.
    if let Some(expiration) = text(&attributes.expiration, "expiration")?.filter(|_| !is_delayed) {
        properties = properties.with_expiration(expiration);
    }
    if let Some(kind) = text(&attributes.kind, "type")? {
        properties = properties.with_type(kind);
    }
    if let Some(id) = text(&attributes.app_id, "app_id")? {
        properties = properties.with_app_id(id);
    }
    Ok(properties)
}

/// The properties that a message keeps when it is sent again. Not `expiration`, which would cut its delay short, and
/// not `user_id`, which is another user's.
fn kept(before: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    if let Some(priority) = before.priority() {
        kept = kept.with_priority(*priority);
    }
    if let Some(timestamp) = before.timestamp() {
        kept = kept.with_timestamp(*timestamp);
    }
    if let Some(encoding) = before.content_encoding() {
        kept = kept.with_content_encoding(encoding.clone());
    }
    if let Some(id) = before.correlation_id() {
        kept = kept.with_correlation_id(id.clone());
    }
    if let Some(to) = before.reply_to() {
        kept = kept.with_reply_to(to.clone());
    }
    if let Some(id) = before.message_id() {
        kept = kept.with_message_id(id.clone());
    }
    if let Some(kind) = before.kind() {
        kept = kept.with_type(kind.clone());
    }
    if let Some(id) = before.app_id() {
        kept = kept.with_app_id(id.clone());
    }
    kept
}

/// The message in a delivery.
pub(super) fn to_message(data: Vec<u8>, properties: &BasicProperties) -> Encoded {
    let mut headers = Headers::new();
    let table = properties.headers().iter().flat_map(|table| table.inner());
    for (name, value) in table.filter(|(name, _)| !is_broker_header(name.as_str())) {
        if let Some(text) = text_of(value) {
            headers.insert(name.as_str(), text);
        }
    }
    if let Some(content_type) = properties.content_type() {
        headers.insert(CONTENT_TYPE, content_type.as_str());
    }
    Encoded { body: data.into(), headers }
}

fn is_broker_header(name: &str) -> bool {
    BROKER_HEADERS.iter().any(|own| name.starts_with(own))
}

/// A header's value as text; `None` for lists and tables, which are never stamps.
fn text_of(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::Boolean(flag) => flag.to_string(),
        AMQPValue::ShortShortInt(number) => number.to_string(),
        AMQPValue::ShortShortUInt(number) => number.to_string(),
        AMQPValue::ShortInt(number) => number.to_string(),
        AMQPValue::ShortUInt(number) => number.to_string(),
        AMQPValue::LongInt(number) => number.to_string(),
        AMQPValue::LongUInt(number) => number.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::Timestamp(number) => number.to_string(),
        AMQPValue::Float(number) => number.to_string(),
        AMQPValue::Double(number) => number.to_string(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        AMQPValue::DecimalValue(_) | AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => {
            return None;
        }
    })
}

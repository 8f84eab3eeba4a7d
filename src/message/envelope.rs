//! A message with its stamps and headers.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::body::BodyError;
use super::headers::Headers;
use super::php::{self, Decoded, PhpBody, PhpClasses, PhpError};
use super::wire::{CONTENT_TYPE, Encoded, STAMP_PREFIX, TYPE, UndecodableError};
use super::{Message, Stamp};

/// The maximum number of stamps of one class. As in Symfony, the first and the latest are kept.
const STAMP_HISTORY: usize = 10;

/// A message in transit: its type, body and stamps.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    message_type: String,
    interfaces: &'static [&'static str],
    body: Bytes,
    /// All headers that are sent, including stamps, except `type` and `Content-Type`.
    headers: Headers,
    /// Stamps that are not sent, in the same form.
    local: Headers,
    /// Where it came from, if PHP's serializer wrote it. It goes back there, and body and headers are what it says.
    php: Option<PhpBody>,
    /// The body in its store, if that is another one: what a serializer of another form has received.
    stored_body: Option<Bytes>,
}

impl Envelope {
    /// Puts a message into an envelope.
    ///
    /// Fails if the message cannot be serialized as JSON (for example, a map whose keys are not strings).
    pub fn new<M: Message>(message: &M) -> Result<Self, BodyError> {
        let body = Bytes::from(serde_json::to_vec(message).map_err(BodyError::unwritable::<M>)?);
        Ok(Self { interfaces: M::INTERFACES, ..Self::from_json(M::TYPE, body) })
    }

    /// An envelope around a body that is already JSON text. The body is not checked; a caller that gets it from outside
    /// must check it first.
    pub fn from_json(message_type: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            message_type: message_type.into(),
            interfaces: &[],
            body: body.into(),
            headers: Headers::new(),
            local: Headers::new(),
            php: None,
            stored_body: None,
        }
    }

    /// The type's name on the wire.
    pub fn message_type(&self) -> &str {
        &self.message_type
    }

    /// The message's interfaces ([`Message::INTERFACES`]). Empty for a received message, because they are not sent.
    pub fn interfaces(&self) -> &'static [&'static str] {
        self.interfaces
    }

    /// The body: JSON text, byte for byte as it was received. That of a message from PHP's serializer is the JSON that
    /// Symfony would have sent.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Deserializes the message.
    pub fn message<M: Message>(&self) -> Result<M, BodyError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| BodyError::unreadable::<M>(&self.message_type, &self.body, error))
    }

    /// The headers that are sent, including stamps, except `type` and `Content-Type`.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// This envelope with a header, in place of one of that name. For serializers that read another form: stamps are
    /// added with [`Envelope::with`].
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The body as its store has it, if a serializer has noted that it is another one than [`Envelope::body`].
    pub fn stored_body(&self) -> Option<&Bytes> {
        self.stored_body.as_ref()
    }

    /// This envelope with the body that its store has, for a serializer that sends a received message back as it came.
    #[must_use]
    pub fn with_stored_body(self, body: impl Into<Bytes>) -> Self {
        Self { stored_body: Some(body.into()), ..self }
    }

    /// Adds headers of a message: stamps after the others of their class.
    pub(crate) fn join_headers(&mut self, headers: &Headers) {
        join(&mut self.headers, headers);
    }

    /// What this process has noted about the message under a name that no stamp has. It is not sent.
    #[cfg(feature = "signing")]
    pub(crate) fn note(&self, name: &str) -> Option<&str> {
        self.local.get(name)
    }

    /// This envelope with a note.
    #[cfg(feature = "signing")]
    pub(crate) fn with_note(mut self, name: &str, value: &str) -> Self {
        self.local.insert(name, value);
        self
    }

    /// This envelope with one more stamp.
    #[must_use]
    pub fn with<S: Stamp>(mut self, stamp: &S) -> Self {
        self.add(stamp);
        self
    }

    /// Adds a stamp after the others of its class. Of more than ten, the first and the latest nine are kept, or all of
    /// them with [`Stamp::ALL_KEPT`].
    pub fn add<S: Stamp>(&mut self, stamp: &S) {
        let Ok(stamp) = serde_json::value::to_raw_value(stamp) else {
            // Stamps are plain structs of strings and numbers; this is a bug in the stamp's type.
            tracing::error!(class = S::CLASS, "a stamp could not be serialized as JSON and is left out");
            return;
        };
        let header = header::<S>();
        let map = self.map_mut::<S>();
        let mut stamps = map.get(&header).map(raw_stamps).unwrap_or_default();
        stamps.push(stamp);
        if stamps.len() > STAMP_HISTORY && !S::ALL_KEPT {
            stamps.drain(1..=stamps.len() - STAMP_HISTORY);
        }
        map.insert(header, stamps_to_header(&stamps));
    }

    /// Adds a stamp of any class by its JSON.
    pub(super) fn add_raw(&mut self, class: &str, stamp: Box<RawValue>) {
        let header = format!("{STAMP_PREFIX}{class}");
        let mut stamps = self.headers.get(&header).map(raw_stamps).unwrap_or_default();
        stamps.push(stamp);
        self.headers.insert(header, stamps_to_header(&stamps));
    }

    /// Sets a header that is sent with the message, and is no stamp.
    pub(crate) fn set_header(&mut self, name: &str, value: &str) {
        self.headers.insert(name, value);
    }

    /// Removes a header.
    pub(crate) fn remove_header(&mut self, name: &str) {
        self.headers.remove(name);
    }

    /// This envelope without any stamp of the class.
    #[must_use]
    pub fn without<S: Stamp>(mut self) -> Self {
        self.map_mut::<S>().remove(&header::<S>());
        self
    }

    /// All stamps of a class, oldest first. A stamp that cannot be deserialized (of another version, for example) is
    /// skipped.
    pub fn all<S: Stamp>(&self) -> Vec<S> {
        let map = if S::SENDABLE { &self.headers } else { &self.local };
        let stamps = map.get(&header::<S>()).map(raw_stamps).unwrap_or_default();
        stamps.iter().filter_map(|stamp| serde_json::from_str(stamp.get()).ok()).collect()
    }

    /// The latest stamp of a class.
    pub fn last<S: Stamp>(&self) -> Option<S> {
        self.all().pop()
    }

    /// The message in the wire format that it came in; a new one as JSON.
    pub fn encode(&self) -> Encoded {
        match &self.php {
            Some(php) => php.encode(&self.headers),
            None => Encoded { body: self.body.clone(), headers: self.json_headers() },
        }
    }

    /// The message as PHP's `serialize()` would write it, if the properties of its class are known. One that PHP has written stays
    /// as it came. The error says what does not fit.
    pub(crate) fn encode_php(&self, classes: &PhpClasses) -> Result<Encoded, String> {
        match &self.php {
            Some(_) => Ok(self.encode()),
            None => php::write(classes, &self.message_type, &self.body, &self.headers),
        }
    }

    /// All headers of the message as JSON, with its type and stamps, whatever its wire format is.
    pub(crate) fn json_headers(&self) -> Headers {
        let mut headers = Headers::from([(TYPE, self.message_type.as_str())]);
        headers.extend(self.headers.iter());
        if !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, "application/json");
        }
        headers
    }

    /// Reads a message in its wire format. The error says why it cannot be read: written by another serializer, or
    /// damaged.
    pub fn decode(encoded: &Encoded) -> Result<Self, UndecodableError> {
        if php::is_serialized(&encoded.body) {
            return Self::decode_php(encoded).map_err(|error| UndecodableError::Php(error.to_string()));
        }
        let message_type = encoded.json_type()?.to_owned();
        let mut headers = encoded.headers.clone();
        headers.remove(TYPE);
        if headers.get(CONTENT_TYPE) == Some("application/json") {
            headers.remove(CONTENT_TYPE);
        }
        Ok(Self { headers, ..Self::from_json(message_type, encoded.body.clone()) })
    }

    /// Whether PHP's `serialize()` has written it.
    pub(crate) fn is_of_php(encoded: &Encoded) -> bool {
        php::is_serialized(&encoded.body)
    }

    fn decode_php(encoded: &Encoded) -> Result<Self, PhpError> {
        let body = PhpBody::new(&encoded.body);
        let Decoded { message_type, json, stamps: mut headers } = body.decode()?;
        join(&mut headers, &encoded.headers);
        Ok(Self { headers, php: Some(body), ..Self::from_json(message_type, json) })
    }

    /// A message, which need not be one that can be decoded, with the stamps of this envelope after its own.
    pub(crate) fn stamp(&self, encoded: &Encoded) -> Encoded {
        if php::is_serialized(&encoded.body) {
            let body = PhpBody::new(&encoded.body);
            if let Ok(mut headers) = body.stamps() {
                join(&mut headers, &encoded.headers);
                join(&mut headers, &self.headers);
                return body.encode(&headers);
            }
        }
        let mut encoded = encoded.clone();
        join(&mut encoded.headers, &self.headers);
        encoded
    }

    /// The headers and stamps of a message that need not be one that can be decoded, without its type and body.
    pub(crate) fn stamps_of(encoded: &Encoded) -> Self {
        let mut headers = Headers::new();
        if php::is_serialized(&encoded.body) {
            headers = PhpBody::new(&encoded.body).stamps().unwrap_or_default();
        }
        join(&mut headers, &encoded.headers);
        Self { headers, ..Self::from_json("", "") }
    }

    fn map_mut<S: Stamp>(&mut self) -> &mut Headers {
        if S::SENDABLE { &mut self.headers } else { &mut self.local }
    }
}

fn header<S: Stamp>() -> String {
    format!("{STAMP_PREFIX}{}", S::CLASS)
}

/// The stamps of one header, each as its original text. A header that is not an array counts as empty.
fn raw_stamps(value: &str) -> Vec<Box<RawValue>> {
    serde_json::from_str(value).unwrap_or_default()
}

/// Adds headers to those of a body of PHP: stamps after the others of their class.
fn join(headers: &mut Headers, added: &Headers) {
    for (name, value) in added.iter() {
        let before = headers.get(name).filter(|_| name.starts_with(STAMP_PREFIX)).map(raw_stamps);
        let value = match before {
            Some(stamps) => stamps_to_header(&[stamps, raw_stamps(value)].concat()),
            None => value.to_owned(),
        };
        headers.insert(name, value);
    }
}

fn stamps_to_header(stamps: &[Box<RawValue>]) -> String {
    let texts: Vec<&str> = stamps.iter().map(|stamp| stamp.get()).collect();
    format!("[{}]", texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::{
        BusNameStamp, DelayStamp, ErrorDetailsStamp, HandledStamp, ReceivedStamp, RedeliveryStamp,
        SentToFailureTransportStamp, TransportMessageIdStamp, TransportNamesStamp,
    };
    use super::*;

    fn encoded(body: &str, headers: &[(&str, &str)]) -> Encoded {
        let headers = headers.iter().copied().collect();
        Encoded { body: Bytes::copy_from_slice(body.as_bytes()), headers }
    }

    #[test]
    fn unknown_parts_survive_a_round_trip_byte_for_byte() {
        let body = "{ \"n\": 1.0, \"text\": \"\\u00e9\" }";
        let foreign = [
            ("type", r"App\Message\SendEmail"),
            (r"X-Message-Stamp-App\Stamp\Tenant", r#"[{"id": 7 , "x":null}]"#),
            ("X-Trace", "abc"),
            ("Content-Type", "application/json"),
        ];
        let wire = encoded(body, &foreign);
        let envelope = Envelope::decode(&wire).unwrap();
        let again = envelope.with(&DelayStamp { delay: 500 }).without::<DelayStamp>().encode();
        assert_eq!(again.body, wire.body);
        for (name, value) in foreign {
            assert_eq!(again.headers.get(name), Some(value));
        }
        assert_eq!(again.headers.len(), foreign.len());
    }

    #[test]
    fn stamps_are_kept_in_order_up_to_a_limit() {
        let mut envelope = Envelope::from_json("a", "{}");
        for delay in 0..25 {
            envelope.add(&DelayStamp { delay });
        }
        let delays: Vec<u64> = envelope.all::<DelayStamp>().iter().map(|stamp| stamp.delay).collect();
        assert_eq!(delays, [0, 16, 17, 18, 19, 20, 21, 22, 23, 24]);
        assert_eq!(envelope.last::<DelayStamp>().unwrap().delay, 24);
    }

    #[test]
    fn non_sendable_stamps_are_not_sent() {
        let envelope = Envelope::from_json("a", "{}").with(&ReceivedStamp { transport_name: "async".into() });
        assert!(envelope.last::<ReceivedStamp>().is_some());
        assert_eq!(envelope.encode().headers.len(), 2);
    }

    #[test]
    fn symfonys_transport_names_are_read_and_passed_on_unchanged() {
        let header = r"X-Message-Stamp-Symfony\Component\Messenger\Stamp\TransportNamesStamp";
        for (value, read) in [
            (r#"[{"transportNames": ["a","b"], "later": 1}]"#, Some(vec!["a".to_owned(), "b".to_owned()])),
            (r#"[{"transportNames":{"0":"a"}}]"#, None),
        ] {
            let envelope = Envelope::decode(&encoded("{}", &[("type", "a"), (header, value)])).unwrap();
            assert_eq!(envelope.last::<TransportNamesStamp>().map(|stamp| stamp.transport_names), read);
            assert_eq!(envelope.encode().headers.get(header), Some(value));
        }
    }

    /// The names of the arguments of the constructors of Symfony 5.4 to 7.4, which refuses a message without them.
    #[test]
    fn stamps_are_written_under_the_names_that_symfony_reads() {
        let text = || "x".to_owned();
        let envelope = Envelope::from_json("a", "{}")
            .with(&BusNameStamp { bus_name: text() })
            .with(&DelayStamp { delay: 1 })
            .with(&RedeliveryStamp { retry_count: 1, redelivered_at: text() })
            .with(&TransportMessageIdStamp { id: 1.into() })
            .with(&SentToFailureTransportStamp { original_receiver_name: text() })
            .with(&ErrorDetailsStamp {
                exception_class: text(),
                exception_code: 1.into(),
                exception_message: text(),
                flatten_exception: serde_json::Value::Null,
            })
            .with(&HandledStamp { result: serde_json::Value::Null, handler_name: text() })
            .with(&TransportNamesStamp { transport_names: vec![text()] });
        let written: Vec<(&str, &str)> =
            envelope.headers().iter().map(|(name, value)| (name.rsplit('\\').next().unwrap(), value)).collect();
        assert_eq!(
            written,
            [
                ("BusNameStamp", r#"[{"busName":"x"}]"#),
                ("DelayStamp", r#"[{"delay":1}]"#),
                ("RedeliveryStamp", r#"[{"retryCount":1,"redeliveredAt":"x"}]"#),
                ("TransportMessageIdStamp", r#"[{"id":1}]"#),
                ("SentToFailureTransportStamp", r#"[{"originalReceiverName":"x"}]"#),
                (
                    "ErrorDetailsStamp",
                    r#"[{"exceptionClass":"x","exceptionCode":1,"exceptionMessage":"x","flattenException":null}]"#
                ),
                ("HandledStamp", r#"[{"result":null,"handlerName":"x"}]"#),
                ("TransportNamesStamp", r#"[{"transportNames":["x"]}]"#),
            ]
        );
    }

    #[test]
    fn stamps_that_symfony_wrote_are_read() {
        let wire = encoded(
            "{}",
            &[
                ("type", "a"),
                (
                    r"X-Message-Stamp-Symfony\Component\Messenger\Stamp\RedeliveryStamp",
                    r#"[{"retryCount":2,"redeliveredAt":"2026-01-31T10:00:00+00:00","exceptionMessage":null,"flattenException":null}]"#,
                ),
            ],
        );
        let envelope = Envelope::decode(&wire).unwrap();
        assert_eq!(envelope.last::<RedeliveryStamp>().unwrap().retry_count, 2);
    }
}

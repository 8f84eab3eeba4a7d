//! The wire format in every store: that of Symfony Messenger's JSON serializer, or of its PHP serializer.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::headers::Headers;

pub(crate) const TYPE: &str = "type";
pub(crate) const CONTENT_TYPE: &str = "Content-Type";
pub(crate) const STAMP_PREFIX: &str = "X-Message-Stamp-";

/// A message as transports carry it: body and headers, not parsed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// JSON text, if minutely or Symfony's JSON serializer wrote it; otherwise the output of PHP's `serialize()`.
    pub body: Bytes,
    /// The type, the stamps, and any other headers of the sender.
    pub headers: Headers,
}

/// Why a queued message cannot be decoded. Such a message is kept, and never lost by acknowledging it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UndecodableError {
    /// PHP's own serializer wrote it, and it holds something that has no counterpart here.
    #[error(
        "the body was written by PHP's serialize(), and cannot be read: {0}. With `serializer: \
         messenger.transport.symfony_serializer` on the transport in the Symfony application, it is sent as JSON"
    )]
    Php(String),
    /// No `type` header.
    #[error("the `type` header is missing, so the message's type is unknown")]
    NoType,
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    Body(String),
    /// The headers are neither a map of strings nor empty.
    #[error("the headers are not a JSON object of strings: {0}")]
    Headers(String),
    /// It has not the form that its serializer reads.
    #[error("{0}")]
    Form(String),
    /// It is encrypted, and cannot be read here; or it is not, and should be.
    #[error("{0}")]
    Encryption(String),
    /// It must be signed, and has no valid signature.
    #[error("{0}")]
    Signature(String),
}

impl Encoded {
    /// Checks that the message can be decoded as JSON, and returns its type.
    pub(super) fn json_type(&self) -> Result<&str, UndecodableError> {
        let json = serde_json::from_slice::<&RawValue>(&self.body);
        let message_type = self.headers.get(TYPE).ok_or(UndecodableError::NoType)?;
        json.map_err(|error| UndecodableError::Body(error.to_string()))?;
        Ok(message_type)
    }
}

/// Headers as stored: one JSON object.
pub(crate) fn headers_to_json(headers: &Headers) -> String {
    serde_json::to_string(headers).expect("a map of strings to strings is always JSON")
}

/// Parses the output of [`headers_to_json`]. PHP writes an empty map as `[]`. Numbers and booleans, which a
/// hand-written producer may send, are converted to text.
pub(crate) fn headers_from_json(text: &str) -> Result<Headers, UndecodableError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Map(indexmap::IndexMap<String, Scalar>),
        Empty([(); 0]),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(serde_json::Number),
        Bool(bool),
    }
    let stored = serde_json::from_str(text).map_err(|error| UndecodableError::Headers(error.to_string()))?;
    Ok(match stored {
        Stored::Empty(_) => Headers::new(),
        Stored::Map(map) => map
            .into_iter()
            .map(|(name, value)| {
                let value = match value {
                    Scalar::Text(text) => text,
                    Scalar::Number(number) => number.to_string(),
                    Scalar::Bool(flag) => flag.to_string(),
                };
                (name, value)
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: &'static str, headers: &str) -> Encoded {
        Encoded { body: Bytes::from_static(body.as_bytes()), headers: headers_from_json(headers).unwrap() }
    }

    #[test]
    fn a_missing_type_and_a_broken_body_are_distinguished() {
        assert_eq!(encoded("{}", "{}").json_type(), Err(UndecodableError::NoType));
        assert!(matches!(encoded("{", r#"{"type":"a"}"#).json_type(), Err(UndecodableError::Body(_))));
        assert_eq!(encoded("{}", r#"{"type":"a"}"#).json_type(), Ok("a"));
    }

    #[test]
    fn headers_that_are_not_a_map_are_refused() {
        for text in ["", "nonsense", "7", r#"["a"]"#, r#"{"a":{"b":1}}"#] {
            assert!(matches!(headers_from_json(text), Err(UndecodableError::Headers(_))), "{text}");
        }
        assert_eq!(headers_from_json(r#"{"n":1,"b":true}"#).unwrap().get("n"), Some("1"));
    }
}

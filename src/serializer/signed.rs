//! Signs messages, and refuses those of certain types without a valid signature, as Symfony's `SigningSerializer` does.
//!
//! There are two kinds of signatures, both by HMAC-SHA256, and both in the header `Body-Sign`:
//!
//! - of the first releases of Symfony 7.4: of the body alone, in hexadecimal.
//! - of later ones: `v2:` before the hexadecimal digits. It covers the body and the headers that decide what becomes of it:
//!   the type, all stamps and `Sign-Trust`. What is signed is PHP's `serialize()` of both, and the key is an HMAC of `v2:`.
//!
//! Both are verified. A message of such a type without one goes to the failure transport, where Symfony deletes it.

use std::fmt::Write;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::{Interfaces, Serializer, SerializerError};
use crate::config::{Secret, SigningConfig};
use crate::message::{Encoded, Envelope, STAMP_PREFIX, TYPE, UndecodableError};

const SIGNATURE: &str = "Body-Sign";
const ALGORITHM_HEADER: &str = "Sign-Algo";
const ALGORITHM: &str = "sha256";

/// The header of a message that Symfony has signed without knowing where it came from.
const UNVERIFIED: &str = "Sign-Trust";

/// Begins a signature that covers headers.
const COVERS_HEADERS: &str = "v2:";

/// Notes what kind of signature a received message had, which was valid.
const VERIFIED: &str = "minutely.signature";

pub(super) struct Signed {
    inner: Arc<dyn Serializer>,
    keys: Vec<Secret>,
    types: Vec<String>,
    new: Kind,
    interfaces: Arc<Interfaces>,
}

/// What a signature covers.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Body,
    BodyAndHeaders,
}

impl Kind {
    const ALL: [(Self, &'static str); 2] = [(Self::Body, "body"), (Self::BodyAndHeaders, "headers")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

impl Signed {
    pub(super) fn new(inner: Arc<dyn Serializer>, config: &SigningConfig, interfaces: Arc<Interfaces>) -> Self {
        let new = if config.cover_headers { Kind::BodyAndHeaders } else { Kind::Body };
        Self { inner, keys: config.keys.clone(), types: config.types.clone(), new, interfaces }
    }

    /// Whether messages of this type must be signed.
    fn is_signed(&self, message_type: &str, own: &[&str]) -> bool {
        let known = self.interfaces.get(message_type).into_iter().flatten().map(String::as_str);
        let names: Vec<&str> = known.chain(own.iter().copied()).chain([message_type]).collect();
        self.types.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(namespace) => message_type.starts_with(namespace),
            None => names.contains(&pattern.as_str()),
        })
    }

    fn sign(&self, encoded: &mut Encoded, kind: Kind) {
        // Its configuration has at least one.
        if let Some(key) = self.keys.first() {
            let signature = signature(encoded, key, kind);
            encoded.headers.insert(SIGNATURE, signature);
            encoded.headers.insert(ALGORITHM_HEADER, ALGORITHM);
        }
    }

    /// What a valid signature covers; `None` if there is no valid one.
    fn verify(&self, encoded: &Encoded) -> Option<Kind> {
        let found = encoded.headers.get(SIGNATURE)?;
        let kind = if found.starts_with(COVERS_HEADERS) { Kind::BodyAndHeaders } else { Kind::Body };
        let is_of = |key: &Secret| bool::from(signature(encoded, key, kind).as_bytes().ct_eq(found.as_bytes()));
        (self.keys.iter().any(is_of) && !encoded.headers.contains_key(UNVERIFIED)).then_some(kind)
    }

    /// Why a message that must be signed is refused.
    fn refusal(encoded: &Encoded, message_type: &str) -> UndecodableError {
        let headers = &encoded.headers;
        let why = match (headers.get(SIGNATURE), headers.get(ALGORITHM_HEADER)) {
            (None, _) => "has none".to_owned(),
            (Some(_), _) if headers.contains_key(UNVERIFIED) => "has one that says nobody has verified it".to_owned(),
            (Some(_), Some(other)) if other != ALGORITHM => {
                let other: String = other.chars().take(20).flat_map(char::escape_debug).collect();
                format!("has one by \"{other}\", and only {ALGORITHM} is known")
            }
            (Some(_), _) => "has one that is not valid: the key differs, or the message was changed".to_owned(),
        };
        UndecodableError::Signature(format!(
            "messages of type \"{message_type}\" must be signed (`signing`), and this one {why}"
        ))
    }
}

impl Serializer for Signed {
    /// A message that came with a valid signature gets one again, also where its type needs none here.
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
        let mut encoded = self.inner.encode(envelope)?;
        let verified = envelope.note(VERIFIED).and_then(Kind::by_name);
        if verified.is_some() || self.is_signed(envelope.message_type(), envelope.interfaces()) {
            self.sign(&mut encoded, verified.unwrap_or(self.new));
        }
        Ok(encoded)
    }

    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
        if let Some(kind) = self.verify(encoded) {
            return Ok(self.inner.decode(&without_signature(encoded))?.with_note(VERIFIED, kind.name()));
        }
        let envelope = self.inner.decode(encoded)?;
        if self.is_signed(envelope.message_type(), envelope.interfaces()) {
            return Err(Self::refusal(encoded, envelope.message_type()));
        }
        Ok(envelope)
    }

    fn stamp(&self, encoded: &Encoded, stamps: &Envelope) -> Encoded {
        let Some(kind) = self.verify(encoded) else { return self.inner.stamp(encoded, stamps) };
        let mut stamped = self.inner.stamp(&without_signature(encoded), stamps);
        self.sign(&mut stamped, kind);
        stamped
    }
}

fn without_signature(encoded: &Encoded) -> Encoded {
    let mut encoded = encoded.clone();
    for name in [SIGNATURE, ALGORITHM_HEADER] {
        encoded.headers.remove(name);
    }
    encoded
}

fn signature(encoded: &Encoded, key: &Secret, kind: Kind) -> String {
    match kind {
        Kind::Body => hmac(key.0.as_bytes(), &encoded.body),
        Kind::BodyAndHeaders => {
            let key = hmac(key.0.as_bytes(), COVERS_HEADERS.as_bytes());
            format!("{COVERS_HEADERS}{}", hmac(key.as_bytes(), &covered(encoded)))
        }
    }
}

/// Body and headers, as PHP's `serialize()` writes them. Nothing reads it again.
fn covered(encoded: &Encoded) -> Vec<u8> {
    let is_covered = |name: &str| name == TYPE || name == UNVERIFIED || name.starts_with(STAMP_PREFIX);
    let mut headers: Vec<(&str, &str)> = encoded.headers.iter().filter(|(name, _)| is_covered(name)).collect();
    headers.sort_unstable();
    let mut out = Vec::with_capacity(encoded.body.len() + 64);
    let string = |out: &mut Vec<u8>, text: &[u8]| {
        out.extend_from_slice(format!("s:{}:\"", text.len()).as_bytes());
        out.extend_from_slice(text);
        out.extend_from_slice(b"\";");
    };
    out.extend_from_slice(b"a:2:{i:0;");
    string(&mut out, &encoded.body);
    out.extend_from_slice(format!("i:1;a:{}:{{", headers.len()).as_bytes());
    for (name, value) in headers {
        string(&mut out, name.as_bytes());
        string(&mut out, value.as_bytes());
    }
    out.extend_from_slice(b"}}");
    out
}

/// In hexadecimal.
fn hmac(key: &[u8], data: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::super::json::Json;
    use super::*;
    use crate::message::{Headers, RedeliveryStamp};

    fn signed(keys: &[&str], types: &[&str], cover_headers: bool) -> Signed {
        let keys = keys.iter().map(|key| Secret((*key).to_owned())).collect();
        let types = types.iter().map(|name| (*name).to_owned()).collect();
        let interfaces = Interfaces::from([("App\\Report".to_owned(), vec!["App\\Trusted".to_owned()])]);
        Signed::new(Arc::new(Json), &SigningConfig { keys, types, cover_headers }, Arc::new(interfaces))
    }

    fn retry(envelope: Envelope) -> Envelope {
        envelope.with(&RedeliveryStamp::now(1, chrono::Utc::now()))
    }

    #[test]
    fn types_that_must_be_signed_are_signed_and_refused_without() {
        for (types, needs) in [
            (&["App\\Report"][..], true),
            (&["App\\Trusted"], true),
            (&["App\\*"], true),
            (&["*"], true),
            (&["App\\Other", "Report", "App\\Rep"], false),
        ] {
            for cover_headers in [false, true] {
                let serializer = signed(&["secret"], types, cover_headers);
                let message = Envelope::from_json("App\\Report", "{}");
                let encoded = serializer.encode(&message).unwrap();
                assert_eq!(encoded.headers.contains_key(SIGNATURE), needs, "{types:?}");
                let received = serializer.decode(&encoded).unwrap();
                assert!(!received.headers().contains_key(SIGNATURE));
                assert_eq!(serializer.decode(&message.encode()).is_err(), needs);
                // For a retry it is signed again; and so it is where it came signed without need.
                let again = serializer.encode(&retry(received)).unwrap();
                assert!(serializer.decode(&again).is_ok());
                let elsewhere = signed(&["secret"], &["B"], !cover_headers);
                let passed_on = elsewhere.encode(&retry(elsewhere.decode(&encoded).unwrap())).unwrap();
                assert_eq!(serializer.decode(&passed_on).map(|_| ()), Ok(()), "{passed_on:?}");
            }
        }
    }

    #[test]
    fn what_was_changed_or_signed_by_another_is_refused_with_the_reason() {
        let serializer = signed(&["new", "old"], &["*"], false);
        let message = Envelope::from_json("App\\Report", "{}");
        let by = |key: &str, cover_headers| signed(&[key], &["*"], cover_headers).encode(&message).unwrap();
        assert!(serializer.decode(&by("old", false)).is_ok());
        let with = |mut encoded: Encoded, name: &str, value: &str| {
            encoded.headers.insert(name, value);
            encoded
        };
        let mut empty = by("new", false);
        empty.headers.insert(SIGNATURE, "");
        for (encoded, why) in [
            (message.encode(), "has none"),
            (by("other", false), "not valid"),
            (Encoded { body: "{ }".into(), ..by("new", false) }, "not valid"),
            (with(by("new", true), TYPE, "App\\Worse"), "not valid"),
            (with(by("new", true), "X-Message-Stamp-A", "[]"), "not valid"),
            (with(by("new", true), UNVERIFIED, "unverified"), "nobody has verified"),
            (with(by("other", false), ALGORITHM_HEADER, "md5"), "by \"md5\""),
            (empty, "not valid"),
        ] {
            let error = serializer.decode(&encoded).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("new"), "{error}");
            // It stays as it is, and stays refused.
            let stamps = retry(Envelope::from_json("", ""));
            assert!(serializer.decode(&serializer.stamp(&encoded, &stamps)).is_err());
        }
        let stamped = serializer.stamp(&by("new", true), &retry(Envelope::from_json("", "")));
        assert!(serializer.decode(&stamped).is_ok());
    }

    /// What PHP's `hash_hmac` says of the same.
    #[test]
    fn signatures_are_those_of_php() {
        let headers = Headers::from([("X-Message-Stamp-B", "[{}]"), ("type", "App\\É"), ("Content-Type", "x")]);
        let encoded = Encoded { body: "{\"a\":\"é\"}".into(), headers };
        let of = |kind| signature(&encoded, &Secret("s3cret".into()), kind);
        assert_eq!(of(Kind::Body), "ccdac8c4d6b9cf327a99d5ee0e7c2cda90a1c5171738a6a00fa4caa5ea459a0e");
        assert_eq!(of(Kind::BodyAndHeaders), "v2:60a101cc1492baa4f6afc1cb4b38a9fa16aee5c114ad5ea9cbb05c76c8a6fc2e");
    }
}

//! Encrypts messages while they are in their queue, with XChaCha20-Poly1305.
//!
//! What is encrypted is the whole message as the serializer below writes it: its headers (the type and the stamps) as a
//! line of JSON, then the body. What is stored is, in base64, a nonce at random and the ciphertext with its tag. A header
//! names the key, and the tag covers that name too.
//!
//! Beside it stay the stamps that say where the message is on its way ([`OUTSIDE`]): they are about the delivery and not the
//! message, and a failed message that nobody here can read must still be able to get them. They are not covered by the
//! tag. All other headers beside the ciphertext are ignored.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use super::{ENCRYPTED, Serializer, SerializerError};
use crate::config::EncryptionConfig;
use crate::message::{
    DelayStamp, Encoded, Envelope, ErrorDetailsStamp, Headers, RedeliveryStamp, STAMP_PREFIX,
    SentToFailureTransportStamp, Stamp, UndecodableError, headers_from_json, headers_to_json,
};

/// The form, before the key's name.
const VERSION: &str = "v1";

const NONCE: usize = 24;

/// Stamps that stay readable.
const OUTSIDE: [&str; 3] = [DelayStamp::CLASS, RedeliveryStamp::CLASS, SentToFailureTransportStamp::CLASS];

/// Headers that minutely writes for itself stay readable too.
const OWN: &str = "X-Minutely-";

pub(super) struct Encrypted {
    inner: Arc<dyn Serializer>,
    /// Reads messages that are not encrypted. They may need a signature, which others do not: nobody else has the key.
    plain: Arc<dyn Serializer>,
    /// At least one. The first one encrypts.
    keys: Vec<Key>,
    accept_plain: bool,
}

struct Key {
    name: String,
    cipher: XChaCha20Poly1305,
}

impl Encrypted {
    pub(super) fn new(inner: Arc<dyn Serializer>, plain: Arc<dyn Serializer>, config: &EncryptionConfig) -> Self {
        let keys =
            config.keys.iter().map(|key| Key { name: name_of(&key.0), cipher: XChaCha20Poly1305::new(&key.0.into()) });
        Self { inner, plain, keys: keys.collect(), accept_plain: config.accept_plain }
    }

    /// Whether one of its keys has encrypted this message.
    pub(super) fn has_key_of(&self, encoded: &Encoded) -> bool {
        encoded.headers.get(ENCRYPTED).is_some_and(|header| self.key(header).is_some())
    }

    fn key(&self, header: &str) -> Option<&Key> {
        let name = header.strip_prefix(VERSION)?.strip_prefix(' ')?;
        self.keys.iter().find(|key| key.name == name)
    }

    fn seal(&self, message: Encoded) -> Result<Encoded, SerializerError> {
        let Encoded { body, headers } = message;
        let (outside, inside) = headers.iter().partition::<Vec<_>, _>(|(name, _)| is_outside(name));
        let mut outside: Headers = outside.into_iter().collect();
        let inside: Headers = inside.into_iter().collect();
        let mut plain = headers_to_json(&inside).into_bytes();
        plain.push(b'\n');
        plain.extend_from_slice(&body);
        let key = &self.keys[0];
        let header = format!("{VERSION} {}", key.name);
        let nonce = <[u8; NONCE]>::try_generate()
            .map_err(|error| SerializerError::new(format!("the system gives no random numbers: {error}")))?;
        let payload = Payload { msg: &plain, aad: header.as_bytes() };
        let ciphertext = key
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SerializerError::new("the message is too long to be encrypted"))?;
        outside.insert(ENCRYPTED, header);
        Ok(Encoded { body: BASE64.encode([&nonce[..], &ciphertext].concat()).into(), headers: outside })
    }

    /// The message as the serializer below has written it. `None` if it is plain, and may be.
    fn open(&self, encoded: &Encoded) -> Result<Option<Encoded>, UndecodableError> {
        let error = |why: String| Err(UndecodableError::Encryption(why));
        let Some(header) = encoded.headers.get(ENCRYPTED) else {
            if self.accept_plain {
                return Ok(None);
            }
            return error(
                "the message is not encrypted, and its transport is for encrypted messages alone (`accept_plain` changes that)"
                    .to_owned(),
            );
        };
        let Some(key) = self.key(header) else {
            let known: Vec<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
            let header: String = header.chars().take(40).flat_map(char::escape_debug).collect();
            return error(format!(
                "the message is encrypted with a key that is not here: \"{header}\"; known: {}. Keys stay under `encrypt.keys` for as \
                 long as there are messages of theirs",
                known.join(", ")
            ));
        };
        let damaged =
            || UndecodableError::Encryption("the encrypted message was changed after it had been written".to_owned());
        let sealed = BASE64.decode(&encoded.body).map_err(|_| damaged())?;
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE>().ok_or_else(damaged)?;
        let payload = Payload { msg: ciphertext, aad: header.as_bytes() };
        let plain = key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| damaged())?;
        let line = plain.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let headers = std::str::from_utf8(&plain[..line]).map_err(|_| damaged())?;
        let headers = headers_from_json(headers)?;
        Ok(Some(Encoded { body: Bytes::from(plain).slice(line + 1..), headers }))
    }
}

impl Serializer for Encrypted {
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
        self.seal(self.inner.encode(envelope)?)
    }

    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
        let Some(opened) = self.open(encoded)? else { return self.plain.decode(encoded) };
        let mut envelope = self.inner.decode(&opened)?;
        envelope.join_headers(&accepted(&encoded.headers));
        Ok(envelope)
    }

    /// Stamps with details of an error go inside, if the message can be opened.
    fn stamp(&self, encoded: &Encoded, stamps: &Envelope) -> Encoded {
        let opened = self.open(encoded).ok().flatten();
        let stamped = opened.and_then(|mut opened| {
            let inside = accepted(&encoded.headers);
            let mut outside = Envelope::from_json("", "");
            outside.join_headers(&inside);
            opened = self.inner.stamp(&opened, &outside);
            self.seal(self.inner.stamp(&opened, stamps)).ok()
        });
        stamped.unwrap_or_else(|| stamps.stamp(encoded))
    }
}

/// The headers beside a ciphertext that count. Of the errors, those that were added where the message could not be opened.
fn accepted(headers: &Headers) -> Headers {
    let counts = |name: &str| is_outside(name) || name.strip_prefix(STAMP_PREFIX) == Some(ErrorDetailsStamp::CLASS);
    headers.iter().filter(|(name, _)| *name != ENCRYPTED && counts(name)).collect()
}

fn is_outside(header: &str) -> bool {
    header.starts_with(OWN) || header.strip_prefix(STAMP_PREFIX).is_some_and(|class| OUTSIDE.contains(&class))
}

/// What a message names its key by: it says nothing about the key.
fn name_of(key: &[u8]) -> String {
    let hash = Sha256::new().chain_update(b"minutely key").chain_update(key).finalize();
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::json::Json;
    use super::*;
    use crate::config::EncryptionConfig;

    fn with(keys: &[u8], accept_plain: bool) -> Encrypted {
        let keys = keys.iter().map(|key| crate::config::EncryptionKey([*key; 32])).collect();
        Encrypted::new(Arc::new(Json), Arc::new(Json), &EncryptionConfig { keys, accept_plain })
    }

    fn message() -> Envelope {
        Envelope::from_json(r"App\Secret", r#"{"iban":"DE00 1234"}"#)
            .with_header(r"X-Message-Stamp-App\Tenant", r#"[{"id":4711}]"#)
            .with(&DelayStamp { delay: 5 })
    }

    fn error_of(serializer: &Encrypted, encoded: &Encoded) -> String {
        match serializer.decode(encoded) {
            Err(error @ UndecodableError::Encryption(_)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_but_the_delivery_is_readable_and_all_of_it_comes_back() {
        let sealed = with(&[1], false).encode(&message()).unwrap();
        let readable = format!("{sealed:?}");
        for secret in ["IBAN", "iban", "DE00", "Secret", "Tenant", "4711"] {
            assert!(!readable.contains(secret), "{readable}");
        }
        let names: Vec<&str> = sealed.headers.names().map(|name| name.rsplit('\\').next().unwrap()).collect();
        assert_eq!(names, ["DelayStamp", ENCRYPTED]);
        let opened = with(&[1], false).decode(&sealed).unwrap();
        assert_eq!(opened.body(), message().body());
        assert_eq!(opened.message_type(), r"App\Secret");
        assert_eq!(opened.headers().get(r"X-Message-Stamp-App\Tenant"), Some(r#"[{"id":4711}]"#));
        assert_eq!(opened.all::<DelayStamp>().len(), 1);
        // Each time with another nonce.
        assert_ne!(with(&[1], false).encode(&message()).unwrap().body, sealed.body);
    }

    #[test]
    fn keys_are_changed_while_messages_of_the_old_one_wait() {
        let old = with(&[1], false).encode(&message()).unwrap();
        let both = with(&[2, 1], false);
        assert_eq!(both.decode(&old).unwrap().body(), message().body());
        let new = both.encode(&message()).unwrap();
        assert!(error_of(&with(&[1], false), &new).contains("a key that is not here"));
        assert_eq!(with(&[2], false).decode(&new).unwrap().body(), message().body());
    }

    #[test]
    fn a_changed_or_plain_message_is_refused_and_no_stamp_can_be_slipped_in() {
        let serializer = with(&[1, 2], false);
        let sealed = serializer.encode(&message()).unwrap();
        let mut bytes = BASE64.decode(&sealed.body).unwrap();
        let last = bytes.len() - 1;
        for position in [0, NONCE, last] {
            bytes[position] ^= 1;
            let changed = Encoded { body: BASE64.encode(&bytes).into(), ..sealed.clone() };
            bytes[position] ^= 1;
            assert!(error_of(&serializer, &changed).contains("was changed"));
        }
        for body in ["", "AAAA", "no base64!"] {
            let cut = Encoded { body: body.into(), ..sealed.clone() };
            assert!(error_of(&serializer, &cut).contains("was changed"));
        }
        // The other key's name.
        let header = with(&[2], false).encode(&message()).unwrap().headers.get(ENCRYPTED).unwrap().to_owned();
        let mut renamed = sealed.clone();
        renamed.headers.insert(ENCRYPTED, header);
        assert!(error_of(&serializer, &renamed).contains("was changed"));
        let plain = message().encode();
        assert!(error_of(&serializer, &plain).contains("is not encrypted"));
        assert_eq!(with(&[1], true).decode(&plain).unwrap().body(), message().body());
        let mut slipped = sealed;
        slipped.headers.insert(
            r"X-Message-Stamp-Symfony\Component\Messenger\Stamp\HandledStamp",
            r#"[{"handlerName":"a","result":null}]"#,
        );
        assert_eq!(serializer.decode(&slipped).unwrap().headers(), message().headers());
    }

    #[test]
    fn the_error_of_a_message_goes_inside_where_its_key_is_known() {
        let serializer = with(&[1], false);
        let sealed = serializer.encode(&message()).unwrap();
        let details: ErrorDetailsStamp = serde_json::from_str(
            r#"{"exceptionClass":"E","exceptionCode":0,"exceptionMessage":"no handler for App\\Secret"}"#,
        )
        .unwrap();
        let failed = SentToFailureTransportStamp { original_receiver_name: "secret".into() };
        let stamps = Envelope::from_json("", "").with(&failed).with(&details);
        let inside = serializer.stamp(&sealed, &stamps);
        assert!(!format!("{inside:?}").contains("no handler"));
        let outside = with(&[2], false).stamp(&sealed, &stamps);
        assert_eq!(outside.body, sealed.body);
        for stamped in [inside, outside] {
            let envelope = serializer.decode(&stamped).unwrap();
            assert_eq!(envelope.all::<ErrorDetailsStamp>(), std::slice::from_ref(&details));
            assert_eq!(envelope.all::<SentToFailureTransportStamp>(), std::slice::from_ref(&failed));
            assert_eq!(envelope.all::<DelayStamp>().len(), 1);
        }
    }
}

//! The default: Symfony's JSON. A message that PHP's `serialize()` has written is read too, and goes back as what it was.

use super::{Serializer, SerializerError};
use crate::message::{Encoded, Envelope, UndecodableError};

pub(super) struct Json;

impl Serializer for Json {
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
        Ok(envelope.encode())
    }

    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
        Envelope::decode(encoded)
    }
}

//! What PHP's `serialize()` writes, for consumers in Symfony with its default serializer.

use super::json::Json;
use super::{Serializer, SerializerError};
use crate::message::{Encoded, Envelope, PhpClasses, UndecodableError};

/// Knows the properties of classes, which `serialize()` writes with who may see them.
pub(super) struct Php(pub(super) PhpClasses);

impl Serializer for Php {
    fn encode(&self, envelope: &Envelope) -> Result<Encoded, SerializerError> {
        envelope.encode_php(&self.0).map_err(SerializerError::new)
    }

    fn decode(&self, encoded: &Encoded) -> Result<Envelope, UndecodableError> {
        Json.decode(encoded)
    }
}

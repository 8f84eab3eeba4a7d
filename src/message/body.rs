//! What a message says when its body is not the JSON of its type.

use std::any::type_name;

use thiserror::Error;

use super::Message;

/// Why a message cannot be written as JSON, or not be read from it.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct BodyError {
    what: String,
    source: serde_json::Error,
}

impl BodyError {
    pub(super) fn unwritable<M: Message>(source: serde_json::Error) -> Self {
        Self { what: format!("a message of type \"{}\" cannot be written as JSON", M::TYPE), source }
    }

    pub(super) fn unreadable<M: Message>(message_type: &str, source: serde_json::Error) -> Self {
        Self { what: format!("the body of \"{message_type}\" cannot be read as {}", type_name::<M>()), source }
    }
}

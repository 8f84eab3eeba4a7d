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

    /// Names the field that is wrong.
    pub(super) fn unreadable<M: Message>(message_type: &str, body: &[u8], source: serde_json::Error) -> Self {
        let mut what = format!("the body of \"{message_type}\" cannot be read as {}", type_name::<M>());
        // Read once more, as looking after the path takes time.
        let with_path = serde_path_to_error::deserialize::<_, M>(&mut serde_json::Deserializer::from_slice(body));
        if let Some(error) = with_path.err().filter(|_| source.is_data()) {
            let path = error.path().to_string();
            if path != "." {
                what = format!("{what}: {path}");
            }
        }
        Self { what, source }
    }
}

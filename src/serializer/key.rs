//! Makes keys.

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use chacha20poly1305::aead::Generate;

use crate::config::KEY_LENGTH;

/// A new key at random, in the form that a configuration has. Fails if the system has no random numbers.
pub(crate) fn new_key() -> Result<String, String> {
    let key =
        <[u8; KEY_LENGTH]>::try_generate().map_err(|error| format!("the system gives no random numbers: {error}"))?;
    Ok(BASE64.encode(key))
}

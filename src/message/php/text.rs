//! The form in which Symfony's `PhpSerializer` stores the output of `serialize()`: with `addslashes()`, and in base64 where
//! that is not UTF-8.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;

/// How base64 of a serialized object begins.
const IN_BASE64: &[u8] = b"Tzo";

/// Has PHP's `serialize()` written it? JSON never begins like that.
pub(in crate::message) fn is_serialized(body: &[u8]) -> bool {
    let is_other = matches!(body, [b'a' | b's' | b'C', b':', digit, ..] if digit.is_ascii_digit());
    is_other || decode(body).is_some()
}

/// The output of `serialize()` in a body; `None` if there is no object in it.
pub(super) fn decode(body: &[u8]) -> Option<Cow<'_, [u8]>> {
    if is_object(body) {
        return Some(strip_slashes(body));
    }
    let body = BASE64.decode(body.starts_with(IN_BASE64).then_some(body)?).ok()?;
    is_object(&body).then(|| Cow::Owned(strip_slashes(&body).into_owned()))
}

fn is_object(text: &[u8]) -> bool {
    matches!(text, [b'O', b':', digit, ..] if digit.is_ascii_digit())
}

/// The body for an output of `serialize()`.
pub(super) fn encode(text: &[u8]) -> Bytes {
    let slashed = add_slashes(text);
    match std::str::from_utf8(&slashed) {
        Ok(_) => slashed.into(),
        Err(_) => BASE64.encode(slashed).into(),
    }
}

/// PHP's `stripslashes()`.
fn strip_slashes(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut stripped = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => stripped.extend(bytes.next().map(|escaped| if *escaped == b'0' { 0 } else { *escaped })),
            byte => stripped.push(*byte),
        }
    }
    Cow::Owned(stripped)
}

/// PHP's `addslashes()`.
fn add_slashes(text: &[u8]) -> Vec<u8> {
    let mut slashed = Vec::with_capacity(text.len() + text.len() / 8);
    for byte in text {
        match byte {
            0 => slashed.extend_from_slice(b"\\0"),
            b'\'' | b'"' | b'\\' => slashed.extend_from_slice(&[b'\\', *byte]),
            byte => slashed.push(*byte),
        }
    }
    slashed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_is_the_same_after_being_stored(rest: Vec<u8>) {
            let text = [b"O:1", &rest[..]].concat();
            let stored = encode(&text);
            prop_assert!(std::str::from_utf8(&stored).is_ok_and(|stored| !stored.contains('\0')));
            prop_assert!(is_serialized(&stored));
            prop_assert_eq!(&*decode(&stored).unwrap(), &text[..]);
        }
    }

    #[test]
    fn json_and_other_texts_are_not_taken_for_php() {
        for body in ["{}", "[]", "\"O:1\"", "", "Tzo", "Tzo=", "O", "O:x", "s:"] {
            assert!(!is_serialized(body.as_bytes()), "{body}");
        }
    }
}

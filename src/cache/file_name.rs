//! Names of files for texts of any kind and length.
//!
//! Letters and digits stay readable, everything else is percent-encoded. If the result is too long for a file's name,
//! it is cut, and a checksum of the whole text keeps it distinct.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::bounded_text::bounded;

/// What is encoded in a file name. Dots are encoded too, so that no file is hidden, and no name is `..`.
const READABLE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// The longest name of a file in bytes, on all common file systems.
const MAX_LENGTH: usize = 255;

/// Suffix of the names of lock files.
const LOCK: &str = ".lock";

/// A file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileName {
    /// The name.
    pub(super) text: String,
    /// The text that it stands for, if the name was cut.
    pub(super) unreadable: Option<String>,
}

impl FileName {
    /// The name for a text.
    pub(super) fn of(text: &str) -> Self {
        let whole = utf8_percent_encode(text, READABLE).to_string();
        if whole.len() <= MAX_LENGTH {
            return Self { text: whole, unreadable: None };
        }
        Self { text: bounded(whole, MAX_LENGTH), unreadable: Some(text.to_owned()) }
    }
}

/// The text that a name stands for, if the name was not cut.
pub(super) fn text_of(name: &str) -> String {
    percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// The name of the lock file for the folder with this name.
pub(super) fn lock_of(name: &str) -> String {
    bounded(name.to_owned(), MAX_LENGTH - LOCK.len()) + LOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_can_be_read_from_their_names() {
        for (text, name) in [("a", "a"), ("../x", "%2E%2E%2Fx"), ("prio-high_1", "prio-high_1")] {
            assert_eq!(FileName::of(text), FileName { text: name.into(), unreadable: None });
            assert_eq!(text_of(name), text);
        }
        assert_eq!(FileName::of(&"x".repeat(MAX_LENGTH)).text, "x".repeat(MAX_LENGTH));
    }

    #[test]
    fn long_texts_have_distinct_names_of_limited_length() {
        let (one, two) = ("/folder".repeat(80) + "1", "/folder".repeat(80) + "2");
        let [first, second] = [&one, &two].map(|text| FileName::of(text));
        assert_eq!(first.text.len(), MAX_LENGTH);
        assert!(first.text.starts_with("%2Ffolder%2Ffolder"), "{first:?}");
        assert_ne!(first.text, second.text);
        assert_eq!(first.unreadable.as_ref(), Some(&one));
        assert_eq!(FileName::of(&one), first);
    }

    #[test]
    fn the_name_of_a_lock_file_has_a_limited_length_too() {
        assert_eq!(lock_of("places"), "places.lock");
        assert_eq!(lock_of(&"x".repeat(MAX_LENGTH)).len(), MAX_LENGTH);
        assert_eq!(lock_of(&"x".repeat(MAX_LENGTH - 5)), "x".repeat(MAX_LENGTH - 5) + ".lock");
    }
}

//! Names of files for texts of any kind and length.
//!
//! Letters and digits stay readable, everything else is percent-encoded. Where that is longer than a file's name may be,
//! the beginning stays, and a checksum of the whole text keeps it apart from others.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::bounded_text::bounded;

/// What stays readable in a file name. A dot does not: no entry is hidden, and no name is `..`.
const READABLE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// How long a file's name may be in bytes, on every file system in use.
const LONGEST: usize = 255;

/// What the names of locks end with.
const LOCK: &str = ".lock";

/// A file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileName {
    /// The name.
    pub(super) text: String,
    /// What it stands for, where the name does not tell.
    pub(super) unreadable: Option<String>,
}

impl FileName {
    /// The name for a text.
    pub(super) fn of(text: &str) -> Self {
        let whole = utf8_percent_encode(text, READABLE).to_string();
        if whole.len() <= LONGEST {
            return Self { text: whole, unreadable: None };
        }
        Self { text: bounded(whole, LONGEST), unreadable: Some(text.to_owned()) }
    }
}

/// The text that a name stands for which is whole.
pub(super) fn text_of(name: &str) -> String {
    percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// The name of the lock that belongs to a folder of this name.
pub(super) fn lock_of(name: &str) -> String {
    bounded(name.to_owned(), LONGEST - LOCK.len()) + LOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_are_names_that_tell_them() {
        for (text, name) in [("a", "a"), ("../x", "%2E%2E%2Fx"), ("prio-high_1", "prio-high_1")] {
            assert_eq!(FileName::of(text), FileName { text: name.into(), unreadable: None });
            assert_eq!(text_of(name), text);
        }
        assert_eq!(FileName::of(&"x".repeat(LONGEST)).text, "x".repeat(LONGEST));
    }

    #[test]
    fn long_texts_are_names_of_bounded_length_that_differ() {
        let (one, two) = ("/folder".repeat(80) + "1", "/folder".repeat(80) + "2");
        let [first, second] = [&one, &two].map(|text| FileName::of(text));
        assert_eq!(first.text.len(), LONGEST);
        assert!(first.text.starts_with("%2Ffolder%2Ffolder"), "{first:?}");
        assert_ne!(first.text, second.text);
        assert_eq!(first.unreadable.as_ref(), Some(&one));
        assert_eq!(FileName::of(&one), first);
    }

    #[test]
    fn a_lock_has_a_name_of_bounded_length_too() {
        assert_eq!(lock_of("places"), "places.lock");
        assert_eq!(lock_of(&"x".repeat(LONGEST)).len(), LONGEST);
        assert_eq!(lock_of(&"x".repeat(LONGEST - 5)), "x".repeat(LONGEST - 5) + ".lock");
    }
}

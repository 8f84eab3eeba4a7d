//! Names of files for texts of any kind and length.
//!
//! Letters and digits stay readable, everything else is percent-encoded. Where that is longer than a file's name may be,
//! the beginning stays, and a checksum of the whole text keeps it apart from others.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What stays readable in a file name. A dot does not: no fact is hidden, and no name is `..`.
const READABLE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// How long a file's name may be in bytes, on every file system in use.
const LONGEST: usize = 255;

/// Comes before the checksum; never part of a name that is whole.
const CUT: char = '~';

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
        Self { text: cut(&whole, LONGEST), unreadable: Some(text.to_owned()) }
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

/// A text of at most `most` bytes (at least 40) for a text of any length: itself, or its beginning and its checksum.
pub(crate) fn bounded(text: String, most: usize) -> String {
    if text.len() <= most { text } else { cut(&text, most) }
}

/// The beginning of a name and its checksum.
fn cut(name: &str, most: usize) -> String {
    let checksum = format!("{CUT}{:032x}", checksum(name.as_bytes()));
    let end = name.floor_char_boundary(most - checksum.len());
    format!("{}{checksum}", &name[..end])
}

/// 128-bit FNV-1a: the same in every version of this program, and wide enough that two names do not meet by chance.
fn checksum(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
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

    #[test]
    fn the_checksum_is_fnv_1a() {
        // http://www.isthe.com/chongo/tech/comp/fnv/: the test vectors for "" and "a".
        assert_eq!(checksum(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(checksum(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}

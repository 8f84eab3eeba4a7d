//! Shortens names to a maximum length: keeps the beginning, and adds a checksum of the whole.

/// Separates the beginning from the checksum.
const CUT: char = '~';

/// Shortens a text to at most `most` bytes (40 or more): returns it unchanged, or its beginning and a checksum.
pub(crate) fn bounded(text: String, most: usize) -> String {
    if text.len() <= most { text } else { cut(&text, most) }
}

/// The beginning of a text and its checksum.
fn cut(name: &str, most: usize) -> String {
    let checksum = format!("{CUT}{:032x}", checksum(name.as_bytes()));
    let end = name.floor_char_boundary(most - checksum.len());
    format!("{}{checksum}", &name[..end])
}

/// 128-bit FNV-1a: the same in every version of this program, and wide enough to exclude collisions.
fn checksum(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        // http://www.isthe.com/chongo/tech/comp/fnv/: the test vectors for "" and "a".
        assert_eq!(checksum(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(checksum(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}

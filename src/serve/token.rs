//! The token that requests must show.

use subtle::ConstantTimeEq;

use crate::config::Secret;

/// The scheme in the header `Authorization`. Its case does not matter (RFC 9110).
const SCHEME: &[u8] = b"bearer ";

/// The token. Has no `Debug` that shows it.
pub(super) struct Token(Secret);

impl Token {
    pub(super) fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// Whether the value of a header `Authorization` shows it. How long this takes tells nothing about the token but its
    /// length.
    pub(super) fn is_shown_by(&self, header: &[u8]) -> bool {
        let Some((scheme, shown)) = header.split_at_checked(SCHEME.len()) else { return false };
        scheme.eq_ignore_ascii_case(SCHEME) && bool::from(shown.trim_ascii().ct_eq(self.0.0.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_after_bearer_is_right() {
        let token = Token::new(Secret("correct-horse-battery".to_owned()));
        for right in ["Bearer correct-horse-battery", "bearer  correct-horse-battery "] {
            assert!(token.is_shown_by(right.as_bytes()), "{right}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer correct-horse-batter",
            "Bearer correct-horse-battery1",
            "Bearer Correct-horse-battery",
            "Basic correct-horse-battery",
            "correct-horse-battery",
            "Bearer \u{fc}",
        ] {
            assert!(!token.is_shown_by(wrong.as_bytes()), "{wrong}");
        }
    }
}

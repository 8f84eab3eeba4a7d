//! Keeps the login out of what a server says: some repeat the line that they refuse.

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;

/// What is shown in place of a secret.
const HIDDEN: &str = "***";

/// From how many characters on a part of a secret in base64 is hidden too, as a server may have cut the line.
const MIN_PART: usize = 8;

/// The forms in which a login is sent.
pub(super) struct Secrets {
    plain: Vec<String>,
    encoded: Vec<String>,
}

impl Secrets {
    pub(super) fn of(user: &str, password: &str) -> Self {
        // At some services the user name is a secret too. An address is none, and errors need it.
        let is_plain = user.contains('@') && user != password;
        let secret_user = if is_plain { "" } else { user };
        let mut plain: Vec<String> = [password, secret_user].map(str::to_owned).into();
        plain.retain(|text| !text.is_empty());
        plain.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let whole = format!("\0{user}\0{password}");
        let encoded = [whole.as_str(), password, user].into_iter().filter(|text| !text.is_empty());
        Self { plain, encoded: encoded.map(|text| BASE64.encode(text)).collect() }
    }

    /// The text without them.
    pub(super) fn hide(&self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            match self.at_start_of(rest) {
                0 => {
                    shown.push(first);
                    rest = &rest[first.len_utf8()..];
                }
                length => {
                    shown.push_str(HIDDEN);
                    rest = &rest[length..];
                }
            }
        }
        shown
    }

    /// How many bytes of a secret the text begins with.
    fn at_start_of(&self, text: &str) -> usize {
        let plain = self.plain.iter().filter(|secret| text.starts_with(secret.as_str())).map(String::len);
        let encoded = self.encoded.iter().map(|secret| {
            let same = |(a, b): &(u8, u8)| a.eq_ignore_ascii_case(b);
            let length = secret.bytes().zip(text.bytes()).take_while(same).count();
            if length >= MIN_PART.min(secret.len()) { length } else { 0 }
        });
        plain.chain(encoded).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_hidden_in_every_form_it_is_sent_in() {
        let secrets = Secrets::of("ada", "hunter2");
        let whole = BASE64.encode("\0ada\0hunter2");
        for said in [
            format!("535 unknown command AUTH PLAIN {whole}"),
            format!("535 unknown command auth plain {}", whole.to_lowercase()),
            format!("535 too long: AUTH PLAIN {}…", &whole[..whole.len() - 5]),
            format!("535 {} {}", BASE64.encode("ada"), BASE64.encode("hunter2")),
            "535 not hunter2, ada".to_owned(),
        ] {
            let shown = secrets.hide(&said);
            assert!(shown.contains("535 ") && shown.contains("***"), "{shown}");
            let lower = shown.to_lowercase();
            for part in ["hunter2", "ada", &whole[..8].to_lowercase(), &BASE64.encode("hunter2").to_lowercase()] {
                assert!(!lower.contains(part), "{part} in {shown}");
            }
        }
        assert_eq!(secrets.hide("550 5.1.1 no such üser"), "550 5.1.1 no such üser");
    }

    #[test]
    fn an_address_is_no_secret_unless_it_is_the_password() {
        let said = "550 <shop@example.com> is not yours";
        assert_eq!(Secrets::of("shop@example.com", "x1").hide(said), said);
        assert_eq!(Secrets::of("a@b.c", "a@b.c").hide("550 a@b.c"), "550 ***");
        assert_eq!(Secrets::of("", "").hide(said), said);
    }
}

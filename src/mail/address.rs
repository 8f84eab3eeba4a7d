//! Addresses of mail.

use lettre::Address;
use lettre::message::Mailbox;

use super::error::MailError;

/// The longest address that an error shows, in characters.
const MAX_SHOWN: usize = 100;

/// An address as people write it, `ada@example.com` or `Ada <ada@example.com>`.
pub(super) fn mailbox(text: &str, what: &str) -> Result<Mailbox, MailError> {
    text.trim().parse().map_err(|_| MailError::permanent(format!("{what}: \"{}\" is no address", shown(text))))
}

/// An address with a name beside it, which may be empty.
pub(super) fn named(address: &str, name: &str, what: &str) -> Result<Mailbox, MailError> {
    let parsed: Address = address
        .trim()
        .parse()
        .map_err(|_| MailError::permanent(format!("{what}: \"{}\" is no address", shown(address))))?;
    Ok(Mailbox::new(Some(one_line(name)).filter(|name| !name.is_empty()), parsed))
}

/// Text for a header, which a line break would end.
pub(super) fn one_line(text: &str) -> String {
    text.split(['\r', '\n', '\0']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect()
}

//! Why a mail could not be sent.

use std::fmt;

use crate::handler::HandlerError;

/// Why a mail could not be sent. Says nothing of its content, and nothing of the password.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MailError {
    why: String,
    /// Another attempt would fail in the same way.
    is_permanent: bool,
    /// The server's code, or the program's exit code.
    code: i64,
}

impl MailError {
    /// The mail itself is the reason, so that another attempt would fail in the same way.
    pub(super) fn permanent(why: impl fmt::Display) -> Self {
        Self { why: why.to_string(), is_permanent: true, code: 0 }
    }

    /// Another attempt may succeed.
    pub(super) fn temporary(why: impl fmt::Display) -> Self {
        Self { is_permanent: false, ..Self::permanent(why) }
    }

    /// Whether the server, or the program, has said so.
    pub(super) fn is_answer(&self) -> bool {
        self.code != 0
    }

    /// With a text after its own.
    pub(super) fn and(self, more: &str) -> Self {
        Self { why: self.why + more, ..self }
    }

    pub(super) fn with_code(self, code: i64) -> Self {
        Self { code, ..self }
    }
}

impl fmt::Display for MailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<MailError> for HandlerError {
    fn from(error: MailError) -> Self {
        let failed = if error.is_permanent { Self::unrecoverable(&error) } else { Self::failed(&error) };
        Self { class: "minutely::mail::MailError".to_owned(), code: error.code, ..failed }
    }
}

//! The answer to a request: a status, and JSON.

use serde_json::{Value, json};

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    /// The status code.
    pub(crate) status: u16,
    /// Headers besides those of the content.
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    body: Value,
}

impl Reply {
    /// An answer with this content.
    pub(crate) fn new(status: u16, body: Value) -> Self {
        // A proxy or a browser must not answer in place of this program.
        Self { status, headers: vec![("Cache-Control", "no-store")], body }
    }

    /// An answer that says what is wrong, and what to do.
    pub(crate) fn error(status: u16, what: impl Into<String>) -> Self {
        Self::new(status, json!({ "error": what.into() }))
    }

    /// The same, with another header.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The content: one line of JSON.
    pub(crate) fn text(&self) -> String {
        format!("{}\n", self.body)
    }

    /// The status in words.
    pub(crate) fn reason(&self) -> &'static str {
        match self.status {
            200 => "OK",
            202 => "Accepted",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            413 => "Content Too Large",
            422 => "Unprocessable Content",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            _ => "Internal Server Error",
        }
    }
}

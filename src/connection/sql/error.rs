//! Errors of SQL databases: they name the server or file, and say what to do.

use std::borrow::Cow;

use thiserror::Error;

/// Why a request to a database failed. Names the server and the database, or the file, without secrets.
#[derive(Debug, Clone, Error)]
#[error("{location}: {reason}{advice}")]
pub(crate) struct SqlError {
    location: String,
    reason: Cow<'static, str>,
    fault: Fault,
    advice: Cow<'static, str>,
}

/// What an error means for the request and the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The table or its schema is missing.
    Missing,
    /// The database is a file that does not exist.
    NoFile,
    /// Another connection has a lock, so trying again helps. Nothing was changed.
    Busy,
    /// The statement was refused. The connection is still usable.
    Refused,
    /// The state of the connection is unknown.
    Broken,
}

impl SqlError {
    /// `advice` says what to do. Starts with `; ` unless it is empty.
    pub(super) fn new(
        location: &str,
        reason: impl Into<Cow<'static, str>>,
        fault: Fault,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { location: location.to_owned(), reason: reason.into(), fault, advice: advice.into() }
    }

    pub(crate) fn fault(&self) -> Fault {
        self.fault
    }

    /// Whether the table is missing, or the file that it would be in.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self.fault, Fault::Missing | Fault::NoFile)
    }
}

//! Errors of SQL servers: they name the server, and say what to do.

use std::sync::Arc;

use thiserror::Error;

use super::session::Session;
use crate::connection::Location;

/// Why a request to a server failed. Names the server and the database, without secrets.
#[derive(Debug, Clone, Error)]
#[error("{location}: {reason}{advice}")]
pub(crate) struct ServerError {
    /// `host:port/database`
    location: Location,
    reason: Reason,
    fault: Fault,
    advice: &'static str,
}

#[derive(Debug, Clone, Error)]
enum Reason {
    #[error("{}", plainly(.0))]
    Driver(#[source] Arc<sqlx::Error>),
    #[error("{0}")]
    Own(&'static str),
}

/// What an error means for the request and the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The table or its schema is missing.
    Missing,
    /// Another connection has a lock, so trying again helps. Nothing was changed.
    Busy,
    /// The statement was refused. The connection is still usable.
    Refused,
    /// The state of the connection is unknown.
    Broken,
}

impl ServerError {
    pub(crate) fn new<S: Session>(location: &Location, error: sqlx::Error) -> Self {
        let (fault, advice) = (S::fault(&error), S::advice(&error));
        Self { location: location.clone(), reason: Reason::Driver(Arc::new(error)), fault, advice }
    }

    pub(crate) fn own(location: &Location, reason: &'static str) -> Self {
        Self { location: location.clone(), reason: Reason::Own(reason), fault: Fault::Broken, advice: "" }
    }

    pub(crate) fn fault(&self) -> Fault {
        self.fault
    }
}

/// An error without the text that sqlx adds to each.
fn plainly(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} ({code})", error.message()),
            None => error.message().to_owned(),
        },
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Configuration(error) => error.to_string(),
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        error => error.to_string(),
    }
}

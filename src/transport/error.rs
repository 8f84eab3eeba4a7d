//! Errors of transports.

use thiserror::Error;

/// Why a call to a transport failed. Names the transport. Never contains a password.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The store responded with an error, or did not respond.
    #[error("transport \"{transport}\": {action} failed: {source}")]
    Store {
        /// The transport's name.
        transport: String,
        /// What was being done: `sending`, `receiving`, ….
        action: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The table, stream or exchange is missing and may not be created.
    #[error(
        "transport \"{transport}\": {what} does not exist; create it with the command `setup`, or set auto_setup=true"
    )]
    NotSetUp {
        /// The transport's name.
        transport: String,
        /// What is missing, and where.
        what: String,
    },
    /// The store can never hold this message.
    #[error("transport \"{transport}\" cannot hold this message: {why}")]
    Unstorable {
        /// The transport's name.
        transport: String,
        /// The reason.
        why: String,
    },
    /// The transport's serializer cannot write this message.
    #[error("a message for transport \"{transport}\" cannot be written: {why}")]
    Unwritable {
        /// The transport's name.
        transport: String,
        /// The reason.
        why: String,
    },
    /// The transport can never do this.
    #[error("transport \"{transport}\" cannot {what}: {why}")]
    Unsupported {
        /// The transport's name.
        transport: String,
        /// What was asked.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The transport is not one of the configuration's.
    #[error("there is no transport \"{0}\"")]
    Unknown(String),
}

impl TransportError {
    /// A store's error, with the transport and the action.
    pub(crate) fn store(
        transport: &str,
        action: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Store { transport: transport.to_owned(), action, source: Box::new(source) }
    }
}

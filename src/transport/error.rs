//! What a transport says when it could not do what it was asked.

use thiserror::Error;

/// Why a transport could not do what it was asked. Names the transport; never contains a password.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The store answered with an error, or did not answer.
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
    #[error("transport \"{transport}\": {what} does not exist; run `minutely setup`, or set auto_setup=true")]
    NotSetUp {
        /// The transport's name.
        transport: String,
        /// What is missing, with its place.
        what: String,
    },
    /// The store cannot hold this message, ever.
    #[error("transport \"{transport}\" cannot hold this message: {why}")]
    Unstorable {
        /// The transport's name.
        transport: String,
        /// What is in the way.
        why: String,
    },
    /// The transport cannot do this, ever.
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
    /// What a store answered, with the transport and the action.
    pub(crate) fn store(
        transport: &str,
        action: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Store { transport: transport.to_owned(), action, source: Box::new(source) }
    }
}

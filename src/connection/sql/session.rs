//! One open connection, as every kind of SQL server implements it.

use super::error::Fault;
use super::statement::{Row, Statement};

/// An open connection.
pub(crate) trait Session: Sized + Send + 'static {
    /// The address and login.
    type Settings: Send + Sync + 'static;
    /// A request; at least a statement, which is a transaction by itself.
    type Request: From<Statement> + Send + Sync + 'static;

    /// A statement that returns how many connections this user may have.
    const CONNECTION_LIMIT: &'static str;

    /// Connects. Refuses a server that is too old.
    fn connect(settings: &Self::Settings) -> impl Future<Output = Result<Self, sqlx::Error>> + Send;

    /// Performs a request completely, or not at all.
    fn perform(&mut self, request: &Self::Request) -> impl Future<Output = Result<Vec<Row>, sqlx::Error>> + Send;

    /// Whether a request may take any time, as creating an index does.
    fn takes_long(_request: &Self::Request) -> bool {
        false
    }

    /// Checks the connection. Fails if the server is gone.
    fn ping(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Reads what the server sends on its own. Returns when the connection is lost. Cancel safe.
    fn idle(&mut self) -> impl Future<Output = ()> + Send;

    /// Whether there is still a connection. A request that replaces the connection may have failed in between.
    fn is_open(&self) -> bool {
        true
    }

    /// Closes the connection cleanly.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// What an error means.
    fn fault(error: &sqlx::Error) -> Fault;

    /// What to do about an error. Starts with `; ` unless it is empty.
    fn advice(error: &sqlx::Error) -> &'static str;
}

//! What every kind of SQL server has its own way for: one open connection.

use super::error::Fault;
use super::statement::{Row, Statement};

/// An open connection.
pub(crate) trait Session: Sized + Send + 'static {
    /// Where to connect, and as whom.
    type Settings: Send + Sync + 'static;
    /// What can be asked of it; a statement at least, which is a transaction by itself.
    type Request: From<Statement> + Send + Sync + 'static;

    /// Connects. Refuses a server that is too old.
    fn connect(settings: &Self::Settings) -> impl Future<Output = Result<Self, sqlx::Error>> + Send;

    /// Does all of a request or nothing of it.
    fn perform(&mut self, request: &Self::Request) -> impl Future<Output = Result<Vec<Row>, sqlx::Error>> + Send;

    /// Fails when the server is not there any more.
    fn ping(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Reads what the server sends without being asked; returns when the connection is gone. Safe to cancel.
    fn idle(&mut self) -> impl Future<Output = ()> + Send;

    /// Is there still a connection? A request that replaces the connection may fail in between.
    fn is_open(&self) -> bool {
        true
    }

    /// Says goodbye.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// What an error means.
    fn fault(error: &sqlx::Error) -> Fault;

    /// What to do about an error; begins with `; ` where it is not empty.
    fn advice(error: &sqlx::Error) -> &'static str;
}

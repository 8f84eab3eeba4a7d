//! A connection to a database, on a server or in a file, as queues and caches in tables use it.

use super::error::SqlError;
use super::statement::{Row, Statement};

/// The one connection that a process has to an SQL database. Opens with the first request.
pub(crate) trait SqlConnection: Send + Sync + 'static {
    /// A request; at least a statement, which is a transaction by itself.
    type Request: From<Statement> + Send + Sync + 'static;

    /// Performs a request completely, or not at all. Waits for the locks of other connections.
    fn perform(&self, request: Self::Request) -> impl Future<Output = Result<Vec<Row>, SqlError>> + Send;

    /// The request for a statement that creates a table. Creates the database first, if it is a file.
    fn to_create(statement: Statement) -> Self::Request {
        statement.into()
    }

    /// Where it is, as errors name it: `host:port/database`, or a path. Equal for all connections to the same database.
    fn location(&self) -> &str;

    /// An error of this database that the driver found in a response.
    fn error(&self, error: sqlx::Error) -> SqlError;

    /// Closes the connection after the requests made before. The next request opens it again. A file stays open.
    fn close_idle(&self) {}
}

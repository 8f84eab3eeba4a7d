//! A connection of the application's own, on which it has begun a transaction.

use sqlx::SqliteConnection;

/// A connection that belongs to the caller.
pub(crate) enum CallersConnection<'c> {
    Sqlite(&'c mut SqliteConnection),
    #[cfg(feature = "postgres")]
    Postgres(&'c mut sqlx::PgConnection),
    #[cfg(feature = "mysql")]
    Mysql(&'c mut sqlx::MySqlConnection),
}

impl CallersConnection<'_> {
    /// The same connection, for a shorter time.
    pub(crate) fn reborrow(&mut self) -> CallersConnection<'_> {
        match self {
            Self::Sqlite(connection) => CallersConnection::Sqlite(connection),
            #[cfg(feature = "postgres")]
            Self::Postgres(connection) => CallersConnection::Postgres(connection),
            #[cfg(feature = "mysql")]
            Self::Mysql(connection) => CallersConnection::Mysql(connection),
        }
    }
}

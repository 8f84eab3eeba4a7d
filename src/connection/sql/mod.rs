//! Connections to SQL databases.
//!
//! Queues and caches use every connection as an [`SqlConnection`]: it takes [`Statement`]s and returns [`Row`]s or an
//! [`SqlError`]. A [`SharedConnection`] is one to a server, and holds a [`Session`] in a task of its own. SQLite has no
//! server: its [`Database`](sqlite::Database) is a file.

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod address;
mod callers;
mod connection;
mod error;
#[cfg(all(test, any(feature = "postgres", feature = "mysql")))]
pub(crate) mod live;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
mod patience;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod session;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod shared;
pub(crate) mod sqlite;
mod statement;

pub(crate) use self::callers::CallersConnection;
pub(crate) use self::connection::SqlConnection;
pub(crate) use self::error::{Fault, SqlError};
pub(crate) use self::statement::{Row, Statement, Value, sql};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use self::{address::Address, session::Session, shared::SharedConnection};

/// Whether a name needs no quoting: it has only letters, digits and `_`, and is not reserved by SQLite.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !text.to_ascii_lowercase().starts_with("sqlite_")
}

#[cfg(test)]
mod tests {
    use super::is_identifier;

    #[test]
    fn only_plain_names_are_identifiers() {
        assert!(["messenger_messages", "_t", "T1"].iter().all(|name| is_identifier(name)));
        assert!(["", "1t", "a.b", "a\"b", "a b", "sqlite_master", "é"].iter().all(|name| !is_identifier(name)));
    }
}

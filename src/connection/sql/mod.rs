//! Connections to SQL databases.
//!
//! A [`SharedConnection`] holds one connection to a server, a [`Session`], in a task of its own. [`Statement`] and
//! [`Row`] have the same form for every server. SQLite has no server: its [`Database`](sqlite::Database) is a file.

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod address;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod error;
#[cfg(all(test, any(feature = "postgres", feature = "mysql")))]
pub(crate) mod live;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod session;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod shared;
pub(crate) mod sqlite;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod statement;

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use self::{
    address::Address,
    error::{Fault, ServerError},
    session::Session,
    shared::SharedConnection,
    statement::{Row, Statement, Value},
};

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

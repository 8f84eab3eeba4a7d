//! How the databases differ in storing the cache.

use crate::connection::sql::Value;

/// Parts of statements.
pub(super) struct SqlDialect {
    /// Now, in milliseconds since 1970.
    pub(super) now: &'static str,
    /// The type of the columns for groups and keys.
    pub(super) key: &'static str,
    /// The type of the column for values.
    pub(super) value: &'static str,
    /// A text as the argument for these columns.
    pub(super) text: fn(&str) -> Value,
    /// The type of the columns for times.
    pub(super) time: &'static str,
    /// Whether arguments are numbered (`$1`). Otherwise they are question marks.
    pub(super) numbered: bool,
    /// Whether it has `ON CONFLICT … DO UPDATE`. Otherwise it has MySQL's `ON DUPLICATE KEY UPDATE`.
    pub(super) on_conflict: bool,
    /// The character that names are quoted with.
    pub(super) quote: char,
}

pub(super) const SQLITE: SqlDialect = SqlDialect {
    now: "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    key: "TEXT",
    value: "TEXT",
    text: |text| Value::from(text),
    time: "INTEGER",
    numbered: true,
    on_conflict: true,
    quote: '"',
};

#[cfg(feature = "postgres")]
pub(super) const POSTGRES: SqlDialect = SqlDialect {
    now: "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint",
    // Bytes: any text can be stored, whatever the encoding of the database.
    key: "BYTEA",
    value: "BYTEA",
    text: as_bytes,
    time: "BIGINT",
    numbered: true,
    on_conflict: true,
    quote: '"',
};

#[cfg(feature = "mysql")]
pub(super) const MYSQL: SqlDialect = SqlDialect {
    now: "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    // Bytes: keys that differ only in case or accents are distinct. The length is what MySQL 5.6 can index.
    key: "VARBINARY(767)",
    value: "LONGBLOB",
    text: as_bytes,
    time: "BIGINT",
    numbered: false,
    on_conflict: false,
    quote: '`',
};

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn as_bytes(text: &str) -> Value {
    Value::Bytes(text.as_bytes().to_vec())
}

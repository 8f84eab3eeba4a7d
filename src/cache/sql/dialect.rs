//! Where the databases differ in how they keep the cache.

/// Parts of statements.
pub(super) struct SqlDialect {
    /// Now, in milliseconds since 1970.
    pub(super) now: &'static str,
    /// The type of the columns for groups and keys.
    pub(super) key: &'static str,
    /// The type of the column for values.
    pub(super) value: &'static str,
    /// The type of the columns for times.
    pub(super) time: &'static str,
    /// Are arguments numbered (`$1`)? Otherwise they are question marks.
    pub(super) numbered: bool,
    /// `ON CONFLICT … DO UPDATE`, or MySQL's `ON DUPLICATE KEY UPDATE`.
    pub(super) on_conflict: bool,
    /// What a name is quoted with.
    pub(super) quote: char,
}

pub(super) const SQLITE: SqlDialect = SqlDialect {
    now: "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    key: "TEXT",
    value: "TEXT",
    time: "INTEGER",
    numbered: true,
    on_conflict: true,
    quote: '"',
};

#[cfg(feature = "postgres")]
pub(super) const POSTGRES: SqlDialect = SqlDialect {
    now: "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint",
    // Bytes: any text, whatever the encoding of the database.
    key: "BYTEA",
    value: "BYTEA",
    time: "BIGINT",
    numbered: true,
    on_conflict: true,
    quote: '"',
};

#[cfg(feature = "mysql")]
pub(super) const MYSQL: SqlDialect = SqlDialect {
    now: "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    // Bytes: keys that differ in an accent or in case are two. As long as MySQL 5.6 can have it in an index.
    key: "VARBINARY(767)",
    value: "LONGBLOB",
    time: "BIGINT",
    numbered: false,
    on_conflict: false,
    quote: '`',
};

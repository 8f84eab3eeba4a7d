//! The kinds of stores, and their DSN schemes.

/// A kind of store for messages or cache entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// An SQLite file.
    Sqlite,
    /// A PostgreSQL server.
    Postgres,
    /// A MySQL or MariaDB server.
    Mysql,
    /// A Redis or Valkey server.
    Redis,
    /// A broker that speaks AMQP 0-9-1.
    Amqp,
}

impl StoreKind {
    const ALL: [Self; 5] = [Self::Sqlite, Self::Postgres, Self::Mysql, Self::Redis, Self::Amqp];

    /// The kind of store for DSNs with this scheme, even if this build does not support it.
    pub(crate) fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.schemes().contains(&scheme))
    }

    /// The schemes of its DSNs, in lower case.
    pub(crate) const fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &["sqlite", "sqlite3", "pdo-sqlite"],
            Self::Postgres => &["postgres", "postgresql", "pgsql", "pdo-pgsql"],
            Self::Mysql => &["mysql", "mariadb", "mysql2", "pdo-mysql"],
            Self::Redis => &["redis", "rediss", "valkey", "valkeys"],
            Self::Amqp => &["amqp", "amqps"],
        }
    }

    /// Whether this build supports it.
    pub(crate) fn is_in_this_build(self) -> bool {
        match self {
            Self::Sqlite => true,
            Self::Postgres => cfg!(feature = "postgres"),
            Self::Mysql => cfg!(feature = "mysql"),
            Self::Redis => cfg!(feature = "redis"),
            Self::Amqp => cfg!(feature = "amqp"),
        }
    }
}

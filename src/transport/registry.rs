//! The transports that come with this crate: one line each.

use std::sync::Arc;

use super::Factory;

/// Makes the table from its lines: `NAME: schemes => factory`, and the cargo feature that it needs, if any.
macro_rules! registry {
    ($($name:ident: $schemes:expr => $factory:ty $(, feature = $feature:literal)?;)+) => {
        $(
            /// The DSN schemes of this transport.
            pub(super) const $name: &[&str] = &$schemes;
        )+

        /// Every scheme, also those that this build comes without.
        pub(super) fn known_schemes() -> impl Iterator<Item = &'static str> {
            [$($name),+].into_iter().flatten().copied()
        }

        /// The factories that come with this build, for [`Transports::new`](super::Transports::new). `auto-fallback` needs
        /// none.
        pub fn built_in_factories() -> Vec<Arc<dyn Factory>> {
            vec![$(
                $(#[cfg(feature = $feature)])?
                Arc::new(<$factory>::default()),
            )+]
        }
    };
}

registry! {
    SYNC: ["sync"] => super::sync::SyncFactory;
    IN_MEMORY: ["in-memory"] => super::in_memory::InMemoryFactory;
    SQLITE: ["sqlite", "sqlite3", "pdo-sqlite"] => super::sqlite::SqliteFactory;
    POSTGRES: ["postgres", "postgresql", "pgsql", "pdo-pgsql"] => super::postgres::PostgresFactory, feature = "postgres";
    MYSQL: ["mysql", "mariadb", "mysql2", "pdo-mysql"] => super::mysql::MysqlFactory, feature = "mysql";
    REDIS: ["redis", "rediss", "valkey", "valkeys"] => super::redis::RedisFactory, feature = "redis";
    AMQP: ["amqp", "amqps"] => super::amqp::AmqpFactory, feature = "amqp";
}

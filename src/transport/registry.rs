//! The transports that come with this crate: one line each.

use std::sync::Arc;

use super::Factory;
use super::in_memory::InMemoryFactory;
use super::sync::SyncFactory;
use crate::connection::{Connections, StoreKind};

/// Generates the table from its lines: `NAME: schemes => factory`, and the cargo feature that it needs, if any. All
/// factories share the same connections.
macro_rules! registry {
    ($($name:ident: $schemes:expr => $factory:expr $(, feature = $feature:literal)?;)+) => {
        $(
            /// The DSN schemes of this transport.
            pub(super) const $name: &[&str] = $schemes;
        )+

        /// Every scheme, including those that are not in this build.
        pub(super) fn known_schemes() -> impl Iterator<Item = &'static str> {
            [$($name),+].into_iter().flatten().copied()
        }

        /// The factories in this build, for [`Transports::new`](super::Transports::new). `auto-fallback` needs none.
        pub fn built_in_factories() -> Vec<Arc<dyn Factory>> {
            built_in_factories_on(&Connections::default())
        }

        /// The same, sharing connections with the application's cache.
        pub(crate) fn built_in_factories_on(connections: &Connections) -> Vec<Arc<dyn Factory>> {
            vec![$(
                $(#[cfg(feature = $feature)])?
                Arc::new(($factory as fn(&Connections) -> _)(connections)),
            )+]
        }
    };
}

registry! {
    SYNC: &["sync"] => |_: &Connections| SyncFactory;
    IN_MEMORY: &["in-memory"] => |_: &Connections| InMemoryFactory::default();
    SQLITE: StoreKind::Sqlite.schemes() => super::sql::SqliteFactory::new;
    POSTGRES: StoreKind::Postgres.schemes() => super::sql::PostgresFactory::new, feature = "postgres";
    MYSQL: StoreKind::Mysql.schemes() => super::sql::MysqlFactory::new, feature = "mysql";
    REDIS: StoreKind::Redis.schemes() => super::redis::RedisFactory::new, feature = "redis";
    AMQP: StoreKind::Amqp.schemes() => super::amqp::AmqpFactory::new, feature = "amqp";
}

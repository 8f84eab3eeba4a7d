//! The transports that come with this crate: one line each.

use std::sync::Arc;

use super::Factory;
use super::in_memory::{self, InMemoryFactory};
use super::sync::{self, SyncFactory};
use crate::connection::{Connections, StoreKind};

/// Generates the table from its lines: `schemes => factory`, and the cargo feature that it needs, if any. All
/// factories share the same connections.
macro_rules! registry {
    ($($schemes:expr => $factory:expr $(, feature = $feature:literal)?;)+) => {
        /// Every scheme, including those that are not in this build.
        pub(super) fn known_schemes() -> impl Iterator<Item = &'static str> {
            [$($schemes),+].into_iter().flatten().copied()
        }

        /// The factories in this build, for [`Transports::new`](super::Transports::new). `auto-fallback` needs none.
        pub(crate) fn built_in_factories() -> Vec<Arc<dyn Factory>> {
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
    sync::SCHEMES => |_: &Connections| SyncFactory;
    in_memory::SCHEMES => |_: &Connections| InMemoryFactory::default();
    StoreKind::Sqlite.schemes() => super::sql::SqliteFactory::new;
    StoreKind::Postgres.schemes() => super::sql::PostgresFactory::new, feature = "postgres";
    StoreKind::Mysql.schemes() => super::sql::MysqlFactory::new, feature = "mysql";
    StoreKind::Redis.schemes() => super::redis::RedisFactory::new, feature = "redis";
    StoreKind::Amqp.schemes() => super::amqp::AmqpFactory::new, feature = "amqp";
}

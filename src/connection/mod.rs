//! One connection per server and process, shared by all transports and caches there: addresses, TLS, reconnecting,
//! errors.
//!
//! A connection is identified by its address: server, database and login. [`Connections`] returns the same connection
//! for the same address. Nothing is opened before its first use. An idle connection can be closed (`close_idle`); the
//! next request opens it again. Requests that were in progress when a connection broke fail, because it is not known
//! whether the server has executed them.
//!
//! This module does not know how queues and cache entries are stored on a server. `transport` and `cache` do, and send
//! statements, commands or messages.

#[cfg(feature = "amqp")]
pub(crate) mod amqp;
mod file_watch;
mod kind;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "redis", feature = "amqp"))]
mod location;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod notifier;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod registry;
pub(crate) mod sql;
#[cfg(any(feature = "redis", feature = "amqp"))]
mod tls;
#[cfg(any(feature = "amqp", feature = "http"))]
pub(crate) mod trust;

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "mysql")]
pub(crate) use self::file_watch::Changes;
pub(crate) use self::file_watch::FileWatch;
pub(crate) use self::kind::StoreKind;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "redis", feature = "amqp"))]
pub(crate) use self::location::Location;
use self::registry::Registry;

/// The connections of one application in one process. Clones share them.
///
/// It does not keep them open: a connection is closed when the last transport or cache that uses it is dropped.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Registries>);

/// One registry for each kind of connection.
#[derive(Default)]
struct Registries {
    sqlite: Registry<PathBuf, sql::sqlite::Database>,
    #[cfg(feature = "postgres")]
    postgres: Registry<sql::Address, sql::SharedConnection<sql::postgres::PostgresSession>>,
    #[cfg(feature = "mysql")]
    mysql: Registry<sql::Address, sql::SharedConnection<sql::mysql::MysqlSession>>,
    #[cfg(feature = "redis")]
    redis: Registry<redis::Address, redis::RedisConnection>,
    #[cfg(feature = "amqp")]
    amqp: Registry<amqp::Address, amqp::AmqpConnection>,
}

impl Connections {
    /// The SQLite file at this path.
    pub(crate) fn sqlite(&self, path: PathBuf) -> Arc<sql::sqlite::Database> {
        self.0.sqlite.get_or_create(path, |path| sql::sqlite::Database::new(path.clone()))
    }

    /// The connection to a PostgreSQL server. Fails if the address cannot be used.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(
        &self,
        address: sql::Address,
    ) -> Result<Arc<sql::SharedConnection<sql::postgres::PostgresSession>>, sqlx::Error> {
        self.0.postgres.get_or_try_create(address, |address| {
            let settings = sql::postgres::Settings::new(address)?;
            let location = settings.location(address);
            Ok(sql::SharedConnection::new(settings, location))
        })
    }

    /// The connection to a MySQL or MariaDB server. Fails if the address cannot be used.
    #[cfg(feature = "mysql")]
    pub(crate) fn mysql(
        &self,
        address: sql::Address,
    ) -> Result<Arc<sql::SharedConnection<sql::mysql::MysqlSession>>, sqlx::Error> {
        self.0.mysql.get_or_try_create(address, |address| {
            let settings = sql::mysql::Settings::new(address)?;
            Ok(sql::SharedConnection::new(settings, address.location("localhost", sql::mysql::PORT)))
        })
    }

    /// The connection to a Redis server. Fails if the address cannot be used.
    #[cfg(feature = "redis")]
    pub(crate) fn redis(&self, address: redis::Address) -> ::redis::RedisResult<Arc<redis::RedisConnection>> {
        self.0.redis.get_or_try_create(address, redis::RedisConnection::new)
    }

    /// The connection to an AMQP broker.
    #[cfg(feature = "amqp")]
    pub(crate) fn amqp(&self, address: amqp::Address) -> Arc<amqp::AmqpConnection> {
        self.0.amqp.get_or_create(address, |address| amqp::AmqpConnection::new(address.clone()))
    }
}

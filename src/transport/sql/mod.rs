//! Queues in tables: `sqlite`, `postgres` and `mysql`. They share the transport (`table`), the options of a queue
//! (`options`), and the format of messages and times (`row`, `timestamp`). What differs between them is their dialect
//! (`dialect`), of which SQLite and PostgreSQL share the larger part (`numbered`).

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod connecting;
mod dialect;
mod enlisting;
#[cfg(feature = "mysql")]
mod mysql;
mod numbered;
mod options;
#[cfg(feature = "postgres")]
mod postgres;
mod row;
mod schema;
mod sending;
mod sqlite;
mod table;
mod timestamp;

use std::time::Duration;

use self::enlisting::NotEnlisted;
#[cfg(feature = "mysql")]
pub(super) use self::mysql::MysqlFactory;
use self::numbered::Numbered;
use self::options::QueueOptions;
#[cfg(feature = "postgres")]
pub(super) use self::postgres::PostgresFactory;
use self::row::{Content, in_few_widths, text};
use self::schema::Part;
pub(super) use self::sqlite::SqliteFactory;
use self::table::Table;
use self::timestamp::{RECEIPT_REPEATS, Timestamp, by_receipt, time_from_text};

/// Stands for a time that never comes.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

//! Queues in tables: `sqlite`, `postgres` and `mysql`, and what they have in common: the options of a queue in a table
//! (`options`), and how times are written there (`timestamp`). The servers have the transport in common (`table`); what
//! each has its own way for is its dialect (`dialect`).

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod dialect;
#[cfg(feature = "mysql")]
mod mysql;
mod options;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod row;
mod sqlite;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod table;
mod timestamp;

use std::time::Duration;

#[cfg(feature = "mysql")]
pub use self::mysql::MysqlFactory;
use self::options::QueueOptions;
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresFactory;
pub use self::sqlite::SqliteFactory;
use self::timestamp::{RECEIPT_REPEATS, Timestamp, by_receipt, time_from_text};
#[cfg(any(feature = "postgres", feature = "mysql"))]
use self::{dialect::Dialect, row::Content, table::Table};

/// Stands in for a time that never comes.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

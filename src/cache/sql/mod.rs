//! The cache in a table of an SQL database: one store for SQLite, PostgreSQL and MySQL.
//!
//! Each row is an entry. All times are the server's, so that hosts whose clocks differ agree on what has expired; what
//! is read is translated to this host's clock.

mod dialect;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server;
mod sqlite;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use self::dialect::SqlDialect;
use super::{CLOCK_TOLERANCE, CacheEntry, CacheError, CacheStore};
use crate::config::{Options, Problem, Setting, TransportSpec};
use crate::connection::Connections;
use crate::connection::sql as connect;

/// An entry is removed this long after it has expired, in milliseconds.
const SWEEP_AFTER: u64 = 3_600_000;
/// The most entries removed at once: a caller waits for it.
const SWEPT_AT_ONCE: u32 = 1000;
/// Every 64th write removes expired entries.
const SWEEP_EVERY: u32 = 64;

/// An argument of a statement.
enum Argument {
    Text(String),
    Number(i64),
}

/// A row: key, value, how many milliseconds ago it was written, and in how many it expires.
struct EntryRow {
    pub key: String,
    pub value: String,
    pub age: i64,
    pub left: i64,
}

/// Why a statement failed.
enum Failed {
    /// The table does not exist.
    Missing,
    Otherwise(Box<dyn std::error::Error + Send + Sync>),
}

/// A database that executes the statements.
#[async_trait]
trait SqlDatabase: Send + Sync + 'static {
    /// Where it is, as errors name it.
    fn location(&self) -> String;
    async fn run(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<EntryRow>, Failed>;
    /// Executes a statement that creates the table. Creates the database first, where that is possible.
    async fn create(&self, sql: &str) -> Result<(), Failed>;
    fn close_idle(&self) {}
}

/// The cache in a table.
struct SqlStore<S> {
    database: S,
    create: String,
    put: String,
    remove: String,
    list: String,
    /// Replaces an expired claim, on databases where `claim` alone cannot do that.
    take_over: Option<String>,
    claim: String,
    holder: String,
    unclaim: String,
    sweep: String,
}

/// A cache in an SQLite file, or all mistakes in its description.
pub(super) fn on_sqlite(
    spec: &TransportSpec,
    project_dir: &Path,
    connections: &Connections,
) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let table = table_name(&mut options);
    let path = connect::sqlite::path(spec, project_dir);
    if let Err(problem) = &path {
        options.push(problem.clone());
    }
    options.finish()?;
    let database = connections.sqlite(path.map_err(|problem| vec![problem])?);
    let database = sqlite::SqliteFile { database, table: table.clone() };
    Ok(Arc::new(SqlStore::new(database, &table, &dialect::SQLITE)))
}

/// A cache on a PostgreSQL server, or all mistakes in its description.
#[cfg(feature = "postgres")]
pub(super) fn on_postgres(
    spec: &TransportSpec,
    connections: &Connections,
) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let table = table_name(&mut options);
    let address = connect::postgres::read_address(spec, &mut options);
    options.finish()?;
    let connection = connections.postgres(address).map_err(|error| vec![spec.dsn_problem(error.to_string())])?;
    Ok(Arc::new(SqlStore::new(server::Server { connection }, &table, &dialect::POSTGRES)))
}

/// A cache on a MySQL or MariaDB server, or all mistakes in its description.
#[cfg(feature = "mysql")]
pub(super) fn on_mysql(spec: &TransportSpec, connections: &Connections) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let table = table_name(&mut options);
    let address = connect::mysql::read_address(spec, &mut options);
    options.finish()?;
    let connection = connections.mysql(address).map_err(|error| vec![spec.dsn_problem(error.to_string())])?;
    Ok(Arc::new(SqlStore::new(server::Server { connection }, &table, &dialect::MYSQL)))
}

/// The table; created when the first entry is written, or by `minutely setup`.
pub(super) const TABLE_NAME: Setting<String> = Setting::text(
    "table_name",
    "minutely_cache",
    "the table; created when the first entry is written, or by `minutely setup`",
);

/// Reads the option `table_name`.
fn table_name(options: &mut Options<'_>) -> String {
    let table = options.get(&TABLE_NAME);
    if !connect::is_identifier(&table) {
        options.refuse("table_name", format!("table_name is a name of letters, digits and _; found \"{table}\""));
    }
    table
}

impl<S: SqlDatabase> SqlStore<S> {
    fn new(database: S, table: &str, dialect: &SqlDialect) -> Self {
        let SqlDialect { now, key, value, time, .. } = dialect;
        let t = format!("{0}{table}{0}", dialect.quote);
        let [a, b, c, d] = if dialect.numbered { ["$1", "$2", "$3", "$4"] } else { ["?"; 4] };
        // An entry from further in the future was written before the clock was set back, and is ignored.
        let tolerance = CLOCK_TOLERANCE.as_millis();
        let one = format!("WHERE entry_group = {a} AND entry_key = {b}");
        let insert = format!(
            "INTO {t} (entry_group, entry_key, value, written_at, expires_at) \
             VALUES ({a}, {b}, {c}, {now}, {now} + {d})"
        );
        let (put, take_over, claim) = if dialect.on_conflict {
            let update = "ON CONFLICT (entry_group, entry_key) DO UPDATE SET value = excluded.value, \
                          written_at = excluded.written_at, expires_at = excluded.expires_at";
            let free = format!(
                "{t}.value = excluded.value OR {t}.expires_at <= excluded.written_at \
                 OR {t}.written_at > excluded.written_at + {tolerance}"
            );
            (format!("INSERT {insert} {update}"), None, format!("INSERT {insert} {update} WHERE {free}"))
        } else {
            let update = "ON DUPLICATE KEY UPDATE value = VALUES(value), written_at = VALUES(written_at), \
                          expires_at = VALUES(expires_at)";
            // ON DUPLICATE KEY UPDATE has no condition, and an IF() that assigns a BLOB its own value confuses MariaDB:
            // the column then compares equal to a value that it does not have. So there are two steps, each safe by
            // itself.
            let take_over = format!(
                "UPDATE {t} SET value = ?, expires_at = {now} + ?, written_at = {now} {one} \
                 AND (value = ? OR expires_at <= {now} OR written_at > {now} + {tolerance})"
            );
            (format!("INSERT {insert} {update}"), Some(take_over), format!("INSERT IGNORE {insert}"))
        };
        let over = format!("expires_at < {now} - {SWEEP_AFTER}");
        let sweep = if dialect.on_conflict {
            // The condition is repeated, because an entry that was written again meanwhile is no longer expired.
            let some = format!("SELECT entry_group, entry_key FROM {t} WHERE {over} LIMIT {SWEPT_AT_ONCE}");
            format!("DELETE FROM {t} WHERE {over} AND (entry_group, entry_key) IN ({some})")
        } else {
            format!("DELETE FROM {t} WHERE {over} LIMIT {SWEPT_AT_ONCE}")
        };
        let columns = format!("SELECT entry_key, value, {now} - written_at, expires_at - {now} FROM {t}");
        Self {
            create: format!(
                "CREATE TABLE IF NOT EXISTS {t} (entry_group {key} NOT NULL, entry_key {key} NOT NULL, \
                 value {value} NOT NULL, written_at {time} NOT NULL, expires_at {time} NOT NULL, \
                 PRIMARY KEY (entry_group, entry_key))"
            ),
            remove: format!("DELETE FROM {t} {one}"),
            list: format!(
                "{columns} WHERE entry_group = {a} AND expires_at > {now} AND written_at <= {now} + {tolerance}"
            ),
            holder: format!("{columns} {one}"),
            unclaim: format!("DELETE FROM {t} {one} AND value = {c}"),
            sweep,
            put,
            take_over,
            claim,
            database,
        }
    }

    fn error(&self, action: &'static str, source: Box<dyn std::error::Error + Send + Sync>) -> CacheError {
        CacheError { location: self.database.location(), action, known: false, source }
    }

    /// Reads rows. A missing table has none.
    async fn read(&self, sql: &str, arguments: Vec<Argument>) -> Result<Vec<EntryRow>, CacheError> {
        match self.database.run(sql, arguments).await {
            Ok(rows) => Ok(rows),
            Err(Failed::Missing) => Ok(Vec::new()),
            Err(Failed::Otherwise(error)) => Err(self.error("read", error)),
        }
    }

    /// Writes an entry. Creates the table if it is missing.
    async fn write(&self, sql: &str, texts: [&str; 3], ttl: Duration) -> Result<(), CacheError> {
        let arguments = || {
            let mut arguments: Vec<Argument> = texts.iter().map(|text| Argument::Text((*text).to_owned())).collect();
            arguments.push(ttl_argument(ttl));
            arguments
        };
        let written = match self.database.run(sql, arguments()).await {
            Err(Failed::Missing) => {
                self.set_up().await?;
                self.database.run(sql, arguments()).await
            }
            written => written,
        };
        written.map_err(|failed| self.failed("written", failed))?;
        if fastrand::u32(..SWEEP_EVERY) == 0
            && let Err(Failed::Otherwise(error)) = self.database.run(&self.sweep, Vec::new()).await
        {
            tracing::debug!(%error, "expired entries could not be removed");
        }
        Ok(())
    }

    async fn change(&self, sql: &str, texts: &[&str]) -> Result<(), CacheError> {
        let arguments = texts.iter().map(|text| Argument::Text((*text).to_owned())).collect();
        match self.database.run(sql, arguments).await {
            Ok(_) | Err(Failed::Missing) => Ok(()),
            Err(Failed::Otherwise(error)) => Err(self.error("written", error)),
        }
    }

    fn failed(&self, action: &'static str, failed: Failed) -> CacheError {
        let error = match failed {
            Failed::Missing => "the table is missing, and is missing again after it was created".into(),
            Failed::Otherwise(error) => error,
        };
        self.error(action, error)
    }
}

#[async_trait]
impl<S: SqlDatabase> CacheStore for SqlStore<S> {
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        self.write(&self.put, [group, key, value], ttl).await
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.change(&self.remove, &[group, key]).await
    }

    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let rows = self.read(&self.list, vec![Argument::Text(group.to_owned())]).await?;
        let now = SystemTime::now();
        let mut entries: Vec<CacheEntry> = rows
            .into_iter()
            .map(|row| CacheEntry {
                key: row.key,
                value: row.value,
                written_at: now.checked_sub(millis(row.age)).unwrap_or(now),
                expires_at: now + millis(row.left),
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        if let Some(take_over) = &self.take_over {
            let text = |text: &str| Argument::Text(text.to_owned());
            let arguments = vec![text(owner), ttl_argument(ttl), text(group), text(key), text(owner)];
            match self.database.run(take_over, arguments).await {
                Ok(_) | Err(Failed::Missing) => {}
                Err(failed) => return Err(self.failed("written", failed)),
            }
        }
        self.write(&self.claim, [group, key, owner], ttl).await?;
        // It is not too late to check: an owner keeps a claim until it expires or is given up.
        let key = vec![Argument::Text(group.to_owned()), Argument::Text(key.to_owned())];
        Ok(self.read(&self.holder, key).await?.iter().any(|row| row.value == owner))
    }

    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        self.change(&self.unclaim, &[group, key, owner]).await
    }

    async fn set_up(&self) -> Result<(), CacheError> {
        let created = self.database.create(&self.create).await;
        // If two processes create it at once, one may fail, but then it exists. And an existing table of this name may
        // be another application's.
        let works = self.database.run(&self.list, vec![Argument::Text(String::new())]).await;
        match (created, works) {
            (_, Ok(_)) => Ok(()),
            (Err(failed), Err(_)) | (Ok(()), Err(failed)) => Err(self.failed("created", failed)),
        }
    }

    fn location(&self) -> String {
        self.database.location()
    }

    fn close_idle(&self) {
        self.database.close_idle();
    }
}

fn ttl_argument(ttl: Duration) -> Argument {
    Argument::Number(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4))
}

fn millis(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

//! The cache in a table of an SQL database: one store for SQLite, PostgreSQL and MySQL.
//!
//! Each row is an entry. All times are the server's, so that hosts whose clocks differ agree on what has expired; what
//! is read is translated to this host's clock.

mod dialect;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::SqlStr;

use self::dialect::SqlDialect;
use super::{CLOCK_TOLERANCE, CacheEntry, CacheError, CacheStore};
use crate::config::{OptionReader, Problem, Setting, TransportSpec};
use crate::connection::Connections;
use crate::connection::sql::{self as connect, Row, SqlConnection, SqlError, Statement, Value, sql};

/// An entry is removed this long after it has expired, in milliseconds.
const SWEEP_AFTER: u64 = 3_600_000;
/// The most entries removed at once: a caller waits for it.
const SWEPT_AT_ONCE: u32 = 1000;
/// Every 64th write removes expired entries.
const SWEEP_EVERY: u32 = 64;

/// The cache in a table.
struct SqlStore<C> {
    connection: Arc<C>,
    text: fn(&str) -> Value,
    create: SqlStr,
    put: SqlStr,
    remove: SqlStr,
    list: SqlStr,
    /// Replaces an expired claim, on databases where `claim` alone cannot do that.
    take_over: Option<SqlStr>,
    claim: SqlStr,
    holder: SqlStr,
    unclaim: SqlStr,
    sweep: SqlStr,
}

/// A cache in an SQLite file, or all mistakes in its description.
pub(super) fn on_sqlite(spec: &TransportSpec, connections: &Connections) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let table = table_name(&mut options);
    let path = connect::sqlite::path(spec).map_err(|problem| options.push(problem)).unwrap_or_default();
    options.finish()?;
    let connection = connections.sqlite(path);
    Ok(Arc::new(SqlStore::new(connection, &table, &dialect::SQLITE)))
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
    Ok(Arc::new(SqlStore::new(connection, &table, &dialect::POSTGRES)))
}

/// A cache on a MySQL or MariaDB server, or all mistakes in its description.
#[cfg(feature = "mysql")]
pub(super) fn on_mysql(spec: &TransportSpec, connections: &Connections) -> Result<Arc<dyn CacheStore>, Vec<Problem>> {
    let mut options = spec.options();
    let table = table_name(&mut options);
    let address = connect::mysql::read_address(spec, &mut options);
    options.finish()?;
    let connection = connections.mysql(address).map_err(|error| vec![spec.dsn_problem(error.to_string())])?;
    Ok(Arc::new(SqlStore::new(connection, &table, &dialect::MYSQL)))
}

/// The table; created when the first entry is written, or by the command `setup`.
pub(super) const TABLE_NAME: Setting<String> = Setting::text(
    "table_name",
    "minutely_cache",
    "the table; created when the first entry is written, or by the command `setup`",
)
.matching("[A-Za-z_][A-Za-z0-9_]*", "a name of letters, digits and _");

/// Reads the option `table_name`.
fn table_name(options: &mut OptionReader<'_>) -> String {
    let table = options.get(&TABLE_NAME);
    if !connect::is_identifier(&table) {
        options.refuse("table_name", format!("table_name does not begin with \"sqlite_\"; found \"{table}\""));
    }
    table
}

impl<C: SqlConnection> SqlStore<C> {
    fn new(connection: Arc<C>, table: &str, dialect: &SqlDialect) -> Self {
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
            create: sql(format!(
                "CREATE TABLE IF NOT EXISTS {t} (entry_group {key} NOT NULL, entry_key {key} NOT NULL, \
                 value {value} NOT NULL, written_at {time} NOT NULL, expires_at {time} NOT NULL, \
                 PRIMARY KEY (entry_group, entry_key))"
            )),
            remove: sql(format!("DELETE FROM {t} {one}")),
            list: sql(format!(
                "{columns} WHERE entry_group = {a} AND expires_at > {now} AND written_at <= {now} + {tolerance}"
            )),
            holder: sql(format!("{columns} {one}")),
            unclaim: sql(format!("DELETE FROM {t} {one} AND value = {c}")),
            sweep: sql(sweep),
            put: sql(put),
            take_over: take_over.map(sql),
            claim: sql(claim),
            text: dialect.text,
            connection,
        }
    }

    /// A statement whose first arguments are these texts.
    fn statement(&self, sql: &SqlStr, texts: &[&str]) -> Statement {
        texts.iter().fold(Statement::of(sql), |statement, text| statement.bind((self.text)(text)))
    }

    /// Reads rows. A missing table has none.
    async fn read(&self, sql: &SqlStr, texts: &[&str]) -> Result<Vec<EntryRow>, CacheError> {
        let rows = match self.connection.perform(self.statement(sql, texts).into()).await {
            Ok(rows) => rows,
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            Err(error) => return Err(self.error("read", error)),
        };
        let rows = rows.into_iter().map(EntryRow::read).collect::<Result<_, _>>();
        rows.map_err(|error| self.error("read", self.connection.error(error)))
    }

    /// Writes an entry. Creates the table if it is missing.
    async fn write(&self, sql: &SqlStr, texts: [&str; 3], ttl: Duration) -> Result<(), CacheError> {
        let statement = self.statement(sql, &texts).bind(ttl_argument(ttl));
        let written = match self.connection.perform(statement.clone().into()).await {
            Err(error) if error.is_missing() => {
                self.set_up().await?;
                self.connection.perform(statement.into()).await
            }
            written => written,
        };
        written.map_err(|error| self.error("written", error))?;
        if fastrand::u32(..SWEEP_EVERY) == 0
            && let Err(error) = self.connection.perform(Statement::of(&self.sweep).into()).await
        {
            tracing::debug!(%error, "expired entries could not be removed");
        }
        Ok(())
    }

    /// Changes entries. A missing table has none.
    async fn change(&self, statement: Statement) -> Result<(), CacheError> {
        match self.connection.perform(statement.into()).await {
            Err(error) if !error.is_missing() => Err(self.error("written", error)),
            _ => Ok(()),
        }
    }

    fn error(&self, action: &'static str, error: SqlError) -> CacheError {
        let source = if error.is_missing() {
            "the table is missing, and is missing again after it was created".into()
        } else {
            error.into()
        };
        CacheError { location: self.connection.location().to_owned(), action, known: false, source }
    }
}

#[async_trait]
impl<C: SqlConnection> CacheStore for SqlStore<C> {
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        self.write(&self.put, [group, key, value], ttl).await
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.change(self.statement(&self.remove, &[group, key])).await
    }

    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let rows = self.read(&self.list, &[group]).await?;
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
            let taken = self.statement(take_over, &[owner]).bind(ttl_argument(ttl));
            let texts = [group, key, owner].map(self.text);
            self.change(texts.into_iter().fold(taken, Statement::bind)).await?;
        }
        self.write(&self.claim, [group, key, owner], ttl).await?;
        // It is not too late to check: an owner keeps a claim until it expires or is given up.
        Ok(self.read(&self.holder, &[group, key]).await?.iter().any(|row| row.value == owner))
    }

    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        self.change(self.statement(&self.unclaim, &[group, key, owner])).await
    }

    async fn set_up(&self) -> Result<(), CacheError> {
        let created = self.connection.perform(C::to_create(Statement::of(&self.create))).await;
        // If two processes create it at once, one may fail, but then it exists. And an existing table of this name may
        // be another application's.
        let works = self.connection.perform(self.statement(&self.list, &[""]).into()).await;
        match (created, works) {
            (_, Ok(_)) => Ok(()),
            (Err(error), Err(_)) | (Ok(_), Err(error)) => Err(self.error("created", error)),
        }
    }

    fn schema(&self) -> Vec<String> {
        vec![self.create.as_str().to_owned()]
    }

    async fn is_set_up(&self) -> Result<bool, CacheError> {
        match self.connection.perform(self.statement(&self.list, &[""]).into()).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(self.error("read", error)),
        }
    }

    fn location(&self) -> String {
        self.connection.location().to_owned()
    }

    fn close_idle(&self) {
        self.connection.close_idle();
    }
}

/// A row: key, value, how many milliseconds ago it was written, and in how many it expires.
struct EntryRow {
    key: String,
    value: String,
    age: i64,
    left: i64,
}

impl EntryRow {
    fn read(mut row: Row) -> Result<Self, sqlx::Error> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (key, value) = (text(row.take_text(0)?), text(row.take_text(1)?));
        Ok(Self { key, value, age: row.number(2)?, left: row.number(3)? })
    }
}

fn ttl_argument(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

fn millis(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

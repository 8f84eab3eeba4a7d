//! The requests of a queue to a MySQL connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, SqlSafeStr, SqlStr};

use super::queries::{PURGE, Queries};
use crate::connection::sql::mysql::{MysqlSession, Request, Steps, execute, rows};
use crate::connection::sql::{Fault, Row, Session, Statement, Value};

/// A busy consumer deletes finished rows when there are this many. An idle one deletes them earlier.
const PURGE_AFTER: u64 = 500;

/// How many seconds a change of the table waits for those who use it.
const ALTER_LOCK_TIMEOUT: u32 = 3;

/// How far apart the ids are that the server gives to rows.
const INCREMENT: &str = "SELECT CAST(@@SESSION.auto_increment_increment AS SIGNED)";

/// The most ids in one statement.
const MAX_IDS: usize = 1024;

/// Requests of several statements, or whose result is not rows.
pub(super) enum QueueSteps {
    /// A statement that inserts a row. Returns its id.
    Insert(Statement),
    /// Statements that insert these numbers of rows, in one transaction. Returns their ids.
    InsertAll(Vec<(Statement, usize)>),
    /// Statements that can be repeated if not all of them were executed.
    Change(Vec<Statement>),
    /// Marks messages as finished, and deletes finished rows when there are enough.
    Finish { finish: Vec<Statement>, purge: Purge },
    /// Locks a row. If it exists, inserts another and finishes the first, in one transaction. Returns the new row's id.
    Move { lock: Statement, insert: Statement, finish: Statement },
    /// Marks a row as received, and returns it, in one transaction.
    TakeOne { mark: Statement, read: Statement },
    /// Receives messages.
    Take(Take),
    /// Statements that change the table.
    Alter(Vec<String>),
}

impl From<QueueSteps> for Request {
    fn from(steps: QueueSteps) -> Self {
        Self::Steps(Box::new(steps))
    }
}

#[async_trait]
impl Steps for QueueSteps {
    async fn perform(&self, session: &mut MysqlSession) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Self::Insert(statement) => insert(session.connection(), statement).await,
            Self::InsertAll(inserts) => insert_all(session, inserts).await,
            Self::Change(statements) => {
                for statement in statements {
                    execute(session.connection(), statement).await?;
                }
                Ok(vec![])
            }
            Self::Finish { finish, purge } => {
                for statement in finish {
                    let finished = execute(session.connection(), statement).await?.rows_affected();
                    purge.count(finished);
                }
                if purge.is_due() { purge.delete_finished(session).await } else { Ok(vec![]) }
            }
            Self::Move { lock, insert, finish } => move_over(session, lock, insert, finish).await,
            Self::TakeOne { mark, read } => take_one(session, mark, read).await,
            Self::Take(take) => take.perform(session).await,
            Self::Alter(statements) => alter(session, statements).await,
        }
    }

    fn takes_long(&self) -> bool {
        matches!(self, Self::Alter(_))
    }
}

/// Changes a table. At its beginning and its end, a change waits for the transactions that use the table, and all others
/// wait behind it. So it gives way after some seconds, and is repeated.
async fn alter(session: &mut MysqlSession, statements: &[String]) -> Result<Vec<Row>, sqlx::Error> {
    let connection = session.connection();
    let set = format!("SET SESSION lock_wait_timeout = {ALTER_LOCK_TIMEOUT}");
    connection.execute(AssertSqlSafe(set)).await?;
    for statement in statements {
        connection.execute(AssertSqlSafe(statement.as_str())).await?;
    }
    connection.execute("SET SESSION lock_wait_timeout = DEFAULT").await?;
    Ok(vec![])
}

/// Inserts a row. Returns its id.
pub(super) async fn insert(connection: &mut MySqlConnection, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
    let id = execute(connection, statement).await?.last_insert_id();
    Ok(vec![id_row(id)])
}

/// A server gives the rows of one such statement consecutive ids, apart by the increment that a cluster may have, and tells
/// the first.
async fn insert_all(session: &mut MysqlSession, inserts: &[(Statement, usize)]) -> Result<Vec<Row>, sqlx::Error> {
    let mut transaction = session.connection().begin().await?;
    let increment = rows(&mut transaction, &Statement::of(&INCREMENT.into_sql_str())).await?;
    let increment = increment.first().map_or(Ok(1), |row| row.number(0))?;
    let mut ids = Vec::new();
    for (insert, number) in inserts {
        let inserted = execute(&mut transaction, insert).await;
        let first = match inserted {
            Ok(inserted) => inserted.last_insert_id(),
            Err(error) => {
                // What is only dropped is rolled back with the connection's next statement, and holds locks until then.
                let _ = transaction.rollback().await;
                return Err(error);
            }
        };
        ids.extend((0..*number as u64).map(|n| id_row(first.saturating_add(n * increment.unsigned_abs()))));
    }
    transaction.commit().await?;
    Ok(ids)
}

async fn move_over(
    session: &mut MysqlSession,
    lock: &Statement,
    insert: &Statement,
    finish: &Statement,
) -> Result<Vec<Row>, sqlx::Error> {
    let mut transaction = session.connection().begin().await?;
    if rows(&mut transaction, lock).await?.is_empty() {
        transaction.rollback().await?;
        return Ok(vec![]);
    }
    let id = execute(&mut transaction, insert).await?.last_insert_id();
    execute(&mut transaction, finish).await?;
    transaction.commit().await?;
    Ok(vec![id_row(id)])
}

/// A transaction that is dropped ends with the connection's next statement, and keeps others from its rows until then. So
/// each is ended here.
async fn take_one(session: &mut MysqlSession, mark: &Statement, read: &Statement) -> Result<Vec<Row>, sqlx::Error> {
    let mut transaction = session.connection().begin().await?;
    if execute(&mut transaction, mark).await?.rows_affected() == 0 {
        transaction.rollback().await?;
        return Ok(vec![]);
    }
    let found = rows(&mut transaction, read).await?;
    transaction.commit().await?;
    Ok(found)
}

fn id_row(id: u64) -> Row {
    Row::of(vec![Value::Number(i64::try_from(id).unwrap_or(i64::MAX))])
}

/// Receives messages.
pub(super) struct Take {
    pub(super) queries: Arc<Queries>,
    pub(super) queue: String,
    pub(super) now: String,
    pub(super) cutoff: String,
    pub(super) up_to: i64,
    pub(super) purge: Purge,
}

impl Take {
    async fn perform(&self, session: &mut MysqlSession) -> Result<Vec<Row>, sqlx::Error> {
        let skip_locked = session.has_skip_locked();
        let due = rows(session.connection(), &self.any_due()).await?;
        let is_due = |half: usize| due.first().map_or(Ok(0), |row| row.number(half)).map(|due| due != 0);
        let (new, late) = (is_due(0)?, is_due(1)?);
        if !new && !late {
            return if self.purge.has_work() { self.purge.delete_finished(session).await } else { Ok(vec![]) };
        }
        let mut transaction = session.connection().begin().await?;
        let mut found = Vec::new();
        if late {
            found = rows(&mut transaction, &self.in_flight_too_long(skip_locked)).await?;
        }
        if new && found.len() < self.up_to() {
            found.extend(rows(&mut transaction, &self.never_received(skip_locked)).await?);
            found.truncate(self.up_to());
        }
        let ids = found.iter().map(|row| row.number(0)).collect::<Result<Vec<_>, _>>()?;
        for statement in self.mark(&ids) {
            execute(&mut transaction, &statement).await?;
        }
        transaction.commit().await?;
        Ok(found)
    }

    fn up_to(&self) -> usize {
        usize::try_from(self.up_to).unwrap_or(usize::MAX)
    }

    fn any_due(&self) -> Statement {
        let statement = Statement::of(&self.queries.any_due).bind(self.queue.as_str()).bind(self.now.as_str());
        statement.bind(self.queue.as_str()).bind(self.cutoff.as_str()).bind(self.now.as_str())
    }

    fn never_received(&self, skip_locked: bool) -> Statement {
        let sql = self.queries.take_new.on(skip_locked);
        Statement::of(sql).bind(self.queue.as_str()).bind(self.now.as_str()).bind(self.up_to)
    }

    fn in_flight_too_long(&self, skip_locked: bool) -> Statement {
        let sql = self.queries.take_late.on(skip_locked);
        let statement = Statement::of(sql).bind(self.queue.as_str()).bind(self.cutoff.as_str());
        statement.bind(self.now.as_str()).bind(self.up_to)
    }

    fn mark(&self, ids: &[i64]) -> Vec<Statement> {
        for_ids(ids, |number| self.queries.mark(number), |statement| statement.bind(self.now.as_str()))
    }
}

/// Deletes finished rows from time to time.
#[derive(Clone)]
pub(super) struct Purge {
    statement: Statement,
    /// How many rows may be finished and not yet deleted.
    finished: Arc<AtomicU64>,
}

impl Purge {
    /// The first purge is due at once, because other processes may have left finished rows.
    pub(super) fn new(statement: Statement) -> Self {
        Self { statement, finished: Arc::new(AtomicU64::new(PURGE_AFTER)) }
    }

    /// Deletes finished rows. If another connection locks them, they are left until the next time, as with Symfony.
    async fn delete_finished(&self, session: &mut MysqlSession) -> Result<Vec<Row>, sqlx::Error> {
        match execute(session.connection(), &self.statement).await {
            Ok(deleted) => self.done(deleted.rows_affected() >= PURGE),
            Err(error) if MysqlSession::fault(&error) == Fault::Broken => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "finished rows could not be deleted");
                self.done(false);
            }
        }
        Ok(vec![])
    }

    /// Adds to the number of finished rows.
    fn count(&self, finished: u64) {
        self.finished.fetch_add(finished, Ordering::Relaxed);
    }

    fn is_due(&self) -> bool {
        self.finished.load(Ordering::Relaxed) >= PURGE_AFTER
    }

    fn has_work(&self) -> bool {
        self.finished.load(Ordering::Relaxed) > 0
    }

    /// Rows have been deleted. `more` says whether others may be left.
    fn done(&self, more: bool) {
        self.finished.store(if more { PURGE_AFTER } else { 0 }, Ordering::Relaxed);
    }
}

/// Statements for all of these ids. Their arguments are those that `bind` adds, and the ids.
///
/// The lists are padded to powers of two by repeating the last id, so that a connection prepares and caches only few
/// statements.
pub(super) fn for_ids(
    ids: &[i64],
    sql: impl Fn(usize) -> SqlStr,
    bind: impl Fn(Statement) -> Statement,
) -> Vec<Statement> {
    let statement = |ids: &[i64]| {
        let width = ids.len().next_power_of_two();
        let filling = ids.last().into_iter().cycle();
        let ids = ids.iter().chain(filling).take(width);
        ids.fold(bind(Statement::of(&sql(width))), |statement, id| statement.bind(*id))
    };
    ids.chunks(MAX_IDS).map(statement).collect()
}

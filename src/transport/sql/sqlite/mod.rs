//! `sqlite:`: a queue in a table of an SQLite file, the same table that Symfony Messenger's Doctrine transport uses.
//!
//! Any number of processes may send and receive at once. A message is received by marking its row (`delivered_at`), and
//! acknowledged by deleting it. Both are single statements, so a killed process leaves nothing half done. Messages in
//! flight at a killed consumer are pending again after `redeliver_timeout`.

mod queries;
mod waking;

use std::sync::Arc;

use sqlx::SqlStr;

use self::queries::Queries;
use super::super::{Factory, FactoryContext, Transport, TransportSpec};
use super::{Content, Dialect, QueueOptions, Table, Timestamp, text};
use crate::config::{Definition, Problem};
use crate::connection::sql::sqlite::{Database, Request, path};
use crate::connection::sql::{Statement, Value};
use crate::connection::{Connections, StoreKind};

/// A queue in an SQLite table.
pub(crate) struct Sqlite {
    table: String,
    queue: String,
    queries: Queries,
}

impl Sqlite {
    fn new(options: &QueueOptions) -> Self {
        let queries = Queries::new(&options.table);
        Self { table: options.table.clone(), queue: options.queue.clone(), queries }
    }

    /// Body, headers, queue: `?1` to `?3`.
    fn with_content(&self, sql: &SqlStr, content: Content) -> Statement {
        Statement::of(sql).bind(content.body).bind(content.headers).bind(self.queue.as_str())
    }

    /// Queue, now, cutoff: `?1` to `?3`.
    fn at(&self, sql: &SqlStr, now: Timestamp, cutoff: Timestamp) -> Statement {
        Statement::of(sql).bind(self.queue.as_str()).bind(now.text()).bind(cutoff.text())
    }

    /// Ids, queue: `?1` and `?2`.
    fn of(&self, sql: &SqlStr, ids: &[i64]) -> Statement {
        Statement::of(sql).bind(ids).bind(self.queue.as_str())
    }
}

impl Dialect for Sqlite {
    type Connection = Database;

    fn is_set_up(&self) -> Request {
        Request::Run(Statement::of(&self.queries.is_set_up).bind(self.table.as_str()))
    }

    fn set_up(&self) -> Request {
        Request::Create(self.queries.set_up.iter().map(Statement::of).collect())
    }

    fn send(&self, content: Content, now: Timestamp, due: Timestamp) -> Request {
        Request::Run(self.with_content(&self.queries.send, content).bind(now.text()).bind(due.text()))
    }

    /// Checks first, so that idle workers do not take the write lock, which others may need.
    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request {
        let receive = self.at(&self.queries.receive, now, cutoff).bind(up_to);
        Request::RunIfAny(self.at(&self.queries.any_due, now, cutoff), receive)
    }

    fn count(&self, cap: i64, all: bool, now: Timestamp, cutoff: Timestamp) -> Request {
        let sql = if all { &self.queries.count_all } else { &self.queries.count_pending };
        Request::Run(self.at(sql, now, cutoff).bind(cap))
    }

    fn next_due(&self, now: Timestamp, cutoff: Timestamp) -> Request {
        Request::Run(self.at(&self.queries.next_due, now, cutoff))
    }

    fn list(&self, after: i64, limit: i64, cutoff: Timestamp) -> Request {
        let statement = Statement::of(&self.queries.list).bind(self.queue.as_str()).bind(cutoff.text());
        Request::Run(statement.bind(after).bind(limit))
    }

    fn find(&self, id: i64, cutoff: Timestamp) -> Request {
        let statement = Statement::of(&self.queries.find).bind(self.queue.as_str()).bind(cutoff.text());
        Request::Run(statement.bind(id))
    }

    fn finish(&self, ids: &[i64]) -> Request {
        Request::Run(self.of(&self.queries.delete, ids))
    }

    fn release(&self, ids: &[i64], received_at: &str) -> Request {
        Request::Run(self.of(&self.queries.release, ids).bind(received_at))
    }

    fn keep_alive(&self, ids: &[i64], received_at: &str, now: Timestamp) -> Request {
        Request::Run(self.of(&self.queries.keep_alive, ids).bind(received_at).bind(now.text()))
    }

    fn resume(&self, now: Timestamp) -> Request {
        Request::Run(Statement::of(&self.queries.resume).bind(self.queue.as_str()).bind(now.text()))
    }

    fn retry(&self, id: i64, content: Content, due: Timestamp) -> Request {
        Request::Run(self.with_content(&self.queries.retry, content).bind(id).bind(due.text()))
    }

    fn move_within(&self, id: i64, content: Content, now: Timestamp, queue: &str) -> Request {
        Request::Run(self.with_content(&self.queries.move_within, content).bind(id).bind(now.text()).bind(queue))
    }

    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request {
        let copy = self.with_content(&self.queries.copy_into(table), content).bind(id).bind(now.text()).bind(queue);
        Request::Together(vec![copy, self.of(&self.queries.delete, &[id])])
    }

    /// A body that is not text is stored as bytes.
    fn body(body: &[u8]) -> Result<Value, &'static str> {
        Ok(text(body).map_or_else(|_| Value::Bytes(body.to_vec()), Value::from))
    }
}

/// Creates the transports of `sqlite:`. Those on one file share one connection.
#[derive(Default)]
pub(crate) struct SqliteFactory {
    connections: Connections,
}

impl SqliteFactory {
    pub(in crate::transport) fn new(connections: &Connections) -> Self {
        Self { connections: connections.clone() }
    }
}

impl Factory for SqliteFactory {
    fn schemes(&self) -> &'static [&'static str] {
        StoreKind::Sqlite.schemes()
    }

    fn options(&self) -> Vec<Definition> {
        super::options::OPTIONS.to_vec()
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let queue = QueueOptions::read(&mut options);
        let path = path(spec).map_err(|problem| options.push(problem)).unwrap_or_default();
        options.finish()?;
        let dialect = Sqlite::new(&queue);
        let table = Arc::new(Table::new(&spec.name, queue, self.connections.sqlite(path), dialect));
        let mut transport = table.transport();
        transport.waking = Some(table);
        Ok(transport)
    }
}

//! `sqlite:`: a queue in a table of an SQLite file, the same table that Symfony Messenger's Doctrine transport uses.
//!
//! Any number of processes may send and receive at once. A message is received by marking its row (`delivered_at`), and
//! acknowledged by deleting it. Both are single statements, so a killed process leaves nothing half done. Messages in
//! flight at a killed consumer are pending again after `redeliver_timeout`.

mod queries;
mod waking;

use std::sync::Arc;

use self::queries::Queries;
use super::super::{Factory, FactoryContext, Transport, TransportSpec};
use super::numbered;
use super::{Content, Numbered, Part, QueueOptions, Table, Timestamp, text};
use crate::config::{Definition, Problem};
use crate::connection::sql::sqlite::{Database, Request, path};
use crate::connection::sql::{Statement, Value, sql};
use crate::connection::{Connections, StoreKind};

/// A queue in an SQLite table.
pub(crate) struct Sqlite {
    queue: String,
    queries: Queries,
}

impl Numbered for Sqlite {
    type Connection = Database;

    fn queries(&self) -> &numbered::Queries {
        &self.queries.numbered
    }

    fn queue(&self) -> &str {
        &self.queue
    }

    fn set_up(&self) -> Request {
        Request::Create(self.queries.set_up.iter().map(Statement::of).collect())
    }

    fn schema(&self) -> Vec<String> {
        self.queries.set_up.iter().map(|statement| statement.as_str().to_owned()).collect()
    }

    fn parts(&self) -> Vec<Part> {
        vec![self.queries.index()]
    }

    fn alter(&self, step: &[String]) -> Request {
        Request::Together(step.iter().map(|statement| Statement::of(&sql(statement.as_str()))).collect())
    }

    /// Checks first, so that idle workers do not take the write lock, which others may need.
    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request {
        let receive = self.at(&self.queries().receive, now, cutoff).bind(up_to);
        Request::RunIfAny(self.at(&self.queries.any_due, now, cutoff), receive)
    }

    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request {
        let copy = self.with_content(&self.queries.copy_into(table), content).bind(id).bind(now.text()).bind(queue);
        Request::Together(vec![copy, self.of(&self.queries().delete, &[id])])
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
        let dialect = Sqlite { queue: queue.queue.clone(), queries: Queries::new(&queue.table) };
        let table = Arc::new(Table::new(&spec.name, queue, self.connections.sqlite(path), dialect));
        let mut transport = table.transport();
        transport.waking = Some(table);
        Ok(transport)
    }
}

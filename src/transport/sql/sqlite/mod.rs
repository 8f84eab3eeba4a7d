//! `sqlite:`: a queue in a table of an SQLite file, the same table that Symfony Messenger's Doctrine transport uses.
//!
//! Any number of processes may send and receive at once. A message is received by marking its row (`delivered_at`), and
//! acknowledged by deleting it. Both are single statements, so a killed process leaves nothing half done. Messages in
//! flight at a killed consumer are pending again after `redeliver_timeout`.

mod queries;
mod waking;

use std::path::PathBuf;
use std::sync::Arc;

use self::queries::Queries;
use super::super::{Factory, FactoryContext, Transport, TransportSpec};
use super::numbered;
use super::{Content, NotEnlisted, Numbered, Part, QueueOptions, Table, Timestamp, in_few_widths, text};
use crate::config::{Definition, Problem};
use crate::connection::sql::sqlite::{Database, Request, is_missing, other_file, path, run};
use crate::connection::sql::{CallersConnection, Row, Statement, Value, sql};
use crate::connection::{Connections, StoreKind};

/// A queue in an SQLite table.
pub(crate) struct Sqlite {
    path: PathBuf,
    queue: String,
    queries: Queries,
}

impl Numbered for Sqlite {
    type Connection = Database;

    /// A transaction of the caller's keeps every other connection from writing.
    const IS_CREATED_APART: bool = false;

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

    fn send_all(&self, messages: Vec<(Content, Timestamp)>, now: Timestamp) -> Request {
        Request::Together(in_few_widths(messages, |messages| {
            let statement = Statement::of(&self.queries.send_all(messages.len())).bind(self.queue()).bind(now.text());
            messages.into_iter().fold(statement, |statement, (content, due)| {
                statement.bind(content.body).bind(content.headers).bind(due.text())
            })
        }))
    }

    async fn send_in(
        &self,
        connection: CallersConnection<'_>,
        send: Statement,
        create: bool,
    ) -> Result<Vec<Row>, NotEnlisted> {
        #[allow(irrefutable_let_patterns, reason = "without the features for servers, there is no other kind")]
        let CallersConnection::Sqlite(connection) = connection else { return Err(NotEnlisted::OtherKind) };
        if let Some(other) = other_file(connection, &self.path).await? {
            return Err(NotEnlisted::OtherDatabase(if other.is_empty() { "no file".to_owned() } else { other }));
        }
        match run(connection, &send).await {
            Err(error) if create && is_missing(&error) => {
                for statement in &self.queries.set_up {
                    run(connection, &Statement::of(statement)).await?;
                }
                Ok(run(connection, &send).await?)
            }
            result => Ok(result?),
        }
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
        let dialect = Sqlite { path: path.clone(), queue: queue.queue.clone(), queries: Queries::new(&queue.table) };
        let table = Arc::new(Table::new(&spec.name, queue, self.connections.sqlite(path), dialect));
        let mut transport = table.transport();
        transport.waking = Some(table);
        Ok(transport)
    }
}

//! `mysql:`: a queue in a table of a MySQL or MariaDB database, the same table that Symfony Messenger's Doctrine
//! transport uses.
//!
//! Receiving a batch is one transaction, at READ COMMITTED: rows are locked, then marked. `SKIP LOCKED` keeps consumers
//! from waiting for each other. MySQL before 8.0 and MariaDB before 10.6 do not support it. There, consumers wait for
//! each other for the few milliseconds that receiving a batch takes, and then find the rows marked.
//!
//! As with Symfony, a finished message is marked first and deleted later (see [`queries`]), by a consumer that is idle
//! or has finished some hundreds. Every other operation is one statement.

#[cfg(test)]
mod old_servers;
#[cfg(test)]
mod plans;
mod queries;
mod request;
mod waking;

use std::sync::Arc;

use sqlx::SqlStr;

use self::queries::Queries;
use self::request::{Purge, QueueSteps, Take, for_ids, insert};
use self::waking::{WakeFile, WakeFiles};
use super::super::{Factory, FactoryContext, Transport, TransportSpec};
use super::dialect::Dialect;
use super::{Content, NotEnlisted, Part, QueueOptions, Table, Timestamp, in_few_widths};
use crate::config::{Definition, Problem};
use crate::connection::sql::mysql::{MysqlSession, Request, read_address};
use crate::connection::sql::{CallersConnection, Row, SharedConnection, SqlConnection, Statement, Value};
use crate::connection::{self, Connections, StoreKind};

/// MySQL's limit for the name of a table, in characters.
const MAX_NAME: usize = 64;

/// A queue in a MySQL table.
pub(crate) struct Mysql {
    table: String,
    queue: String,
    queries: Arc<Queries>,
    purge: Purge,
    wake_files: WakeFiles,
    wake_file: WakeFile,
}

impl Mysql {
    /// A statement about the table whose arguments are the table and its database, or NULL.
    fn about_table(&self, sql: &SqlStr) -> Statement {
        let (schema, table) = match self.table.split_once('.') {
            Some((schema, table)) => (Value::from(schema), table),
            None => (Value::Null, self.table.as_str()),
        };
        Statement::of(sql).bind(table).bind(schema)
    }

    fn new(table: &str, queue: &str, wake_files: WakeFiles) -> Self {
        let queries = Arc::new(Queries::new(table));
        let purge = Purge::new(Statement::of(&queries.purge).bind(queue));
        Self {
            table: table.to_owned(),
            queue: queue.to_owned(),
            queries,
            purge,
            wake_file: WakeFile::new(&wake_files, table, queue),
            wake_files,
        }
    }
}

impl Mysql {
    /// The statement that stores a message.
    fn send_statement(&self, content: Content, now: Timestamp, due: Timestamp) -> Statement {
        let statement = Statement::of(&self.queries.send).bind(content.body).bind(content.headers);
        statement.bind(self.queue.as_str()).bind(now.text()).bind(due.text())
    }
}

impl Dialect for Mysql {
    type Connection = SharedConnection<MysqlSession>;

    const IS_CREATED_APART: bool = true;

    fn is_set_up(&self) -> Request {
        Request::Run(self.about_table(&self.queries.is_set_up))
    }

    fn set_up(&self) -> Request {
        Request::Run(Statement::of(&self.queries.set_up))
    }

    fn schema(&self) -> Vec<String> {
        // In an empty database, it need not be asked whether the table is there.
        vec![self.queries.set_up.as_str().replacen(" IF NOT EXISTS", "", 1)]
    }

    fn columns(&self) -> Request {
        Request::Run(self.about_table(&self.queries.columns))
    }

    fn parts(&self) -> Vec<Part> {
        let (name, create) = queries::index(&self.table);
        let state = self.about_table(&self.queries.has_index);
        vec![Part { name: format!("index \"{name}\""), state, create: vec![vec![create]], replace: Vec::new() }]
    }

    /// InnoDB creates an index beside other statements.
    fn alter(&self, step: &[String]) -> Request {
        QueueSteps::Alter(step.to_vec()).into()
    }

    fn send(&self, content: Content, now: Timestamp, due: Timestamp) -> Request {
        QueueSteps::Insert(self.send_statement(content, now, due)).into()
    }

    async fn send_in(
        &self,
        connection: CallersConnection<'_>,
        content: Content,
        now: Timestamp,
        due: Timestamp,
        _create: bool,
    ) -> Result<Vec<Row>, NotEnlisted> {
        match connection {
            CallersConnection::Mysql(connection) => {
                Ok(insert(connection, &self.send_statement(content, now, due)).await?)
            }
            _ => Err(NotEnlisted::OtherKind),
        }
    }

    fn send_all(&self, messages: Vec<(Content, Timestamp)>, now: Timestamp) -> Request {
        let inserts = in_few_widths(messages, |messages| {
            let number = messages.len();
            let statement = Statement::of(&self.queries.send_all(number));
            let insert = messages.into_iter().fold(statement, |statement, (content, due)| {
                let statement = statement.bind(content.body).bind(content.headers).bind(self.queue.as_str());
                statement.bind(now.text()).bind(due.text())
            });
            (insert, number)
        });
        QueueSteps::InsertAll(inserts).into()
    }

    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request {
        self.wake_file.before_poll();
        QueueSteps::Take(Take {
            queries: Arc::clone(&self.queries),
            queue: self.queue.clone(),
            now: now.text(),
            cutoff: cutoff.text(),
            up_to,
            purge: self.purge.clone(),
        })
        .into()
    }

    fn count(&self, cap: i64, all: bool, now: Timestamp, cutoff: Timestamp) -> Request {
        let (now, cutoff) = (now.text(), cutoff.text());
        let sql = if all { &self.queries.count_all } else { &self.queries.count_pending };
        let queue = || Value::from(self.queue.as_str());
        let mut statement = Statement::of(sql).bind(queue()).bind(now.as_str()).bind(cap);
        statement = statement.bind(queue()).bind(cutoff.as_str()).bind(now.as_str()).bind(cap);
        if all {
            statement = statement.bind(queue()).bind(now).bind(cap);
            statement = statement.bind(queue()).bind(cutoff).bind(cap);
        }
        Request::Run(statement)
    }

    fn next_due(&self, now: Timestamp, cutoff: Timestamp) -> Request {
        let queue = || Value::from(self.queue.as_str());
        let statement = Statement::of(&self.queries.next_due).bind(queue()).bind(now.text());
        Request::Run(statement.bind(queue()).bind(cutoff.text()))
    }

    fn list(&self, after: i64, limit: i64, cutoff: Timestamp) -> Request {
        let statement = Statement::of(&self.queries.list).bind(cutoff.text()).bind(self.queue.as_str());
        Request::Run(statement.bind(after).bind(limit))
    }

    fn find(&self, id: i64, cutoff: Timestamp) -> Request {
        Request::Run(Statement::of(&self.queries.find).bind(cutoff.text()).bind(self.queue.as_str()).bind(id))
    }

    fn take(&self, id: i64, now: Timestamp, cutoff: Timestamp) -> Request {
        let mark = Statement::of(&self.queries.mark_one).bind(now.text()).bind(self.queue.as_str());
        let mark = mark.bind(id).bind(cutoff.text());
        let read = Statement::of(&self.queries.read_one).bind(self.queue.as_str()).bind(id);
        QueueSteps::TakeOne { mark, read }.into()
    }

    fn finish(&self, ids: &[i64]) -> Request {
        let finish =
            for_ids(ids, |number| self.queries.finish(number), |statement| statement.bind(self.queue.as_str()));
        QueueSteps::Finish { finish, purge: self.purge.clone() }.into()
    }

    fn release(&self, ids: &[i64], received_at: &str) -> Request {
        let bind = |statement: Statement| statement.bind(self.queue.as_str()).bind(received_at);
        QueueSteps::Change(for_ids(ids, |number| self.queries.release(number), bind)).into()
    }

    fn keep_alive(&self, ids: &[i64], received_at: &str, now: Timestamp) -> Request {
        let bind = |statement: Statement| statement.bind(now.text()).bind(self.queue.as_str()).bind(received_at);
        QueueSteps::Change(for_ids(ids, |number| self.queries.keep_alive(number), bind)).into()
    }

    fn resume(&self, now: Timestamp) -> Request {
        let (now, queue) = (now.text(), self.queue.as_str());
        let resume = Statement::of(&self.queries.resume).bind(now.as_str()).bind(queue).bind(now.as_str());
        QueueSteps::Change(vec![resume]).into()
    }

    fn retry(&self, id: i64, content: Content, due: Timestamp) -> Request {
        let statement = Statement::of(&self.queries.retry).bind(content.body).bind(content.headers);
        Request::Run(statement.bind(due.text()).bind(due.text()).bind(id).bind(self.queue.as_str()))
    }

    fn move_within(&self, id: i64, content: Content, now: Timestamp, queue: &str) -> Request {
        let statement = Statement::of(&self.queries.move_within).bind(content.body).bind(content.headers);
        Request::Run(statement.bind(now.text()).bind(queue).bind(id).bind(self.queue.as_str()))
    }

    fn move_to(&self, id: i64, content: Content, now: Timestamp, table: &str, queue: &str) -> Request {
        let insert = Statement::of(&self.queries.send_to(table)).bind(content.body).bind(content.headers);
        QueueSteps::Move {
            lock: Statement::of(&self.queries.lock).bind(id).bind(self.queue.as_str()),
            insert: insert.bind(queue).bind(now.text()).bind(now.text()),
            finish: Statement::of(&self.queries.finish(1)).bind(self.queue.as_str()).bind(id),
        }
        .into()
    }

    fn notify(&self, table: &str, queue: &str) {
        self.wake_files.notify(table, queue);
    }
}

/// Creates the transports of `mysql:`. Those on one database share one connection.
#[derive(Default)]
pub(crate) struct MysqlFactory {
    connections: Connections,
}

impl MysqlFactory {
    pub(in crate::transport) fn new(connections: &Connections) -> Self {
        Self { connections: connections.clone() }
    }
}

impl Factory for MysqlFactory {
    fn schemes(&self) -> &'static [&'static str] {
        StoreKind::Mysql.schemes()
    }

    fn options(&self) -> Vec<Definition> {
        [&super::options::OPTIONS[..], &connection::sql::mysql::OPTIONS].concat()
    }

    fn create(&self, spec: &TransportSpec, context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let queue = QueueOptions::read_with_schema(&mut options);
        if queue.table.split('.').any(|part| part.len() > MAX_NAME) {
            let message = format!("table_name has at most {MAX_NAME} characters in MySQL; this one has more");
            options.refuse("table_name", message);
        }
        let address = read_address(spec, &mut options);
        let connection = self.connections.mysql(address).map_err(|error| spec.dsn_problem(error.to_string()));
        if let Err(problem) = &connection {
            options.push(problem.clone());
        }
        options.finish()?;
        let connection = connection.map_err(|problem| vec![problem])?;
        let wake_files = WakeFiles::new(&context.state_dir, connection.location());
        let dialect = Mysql::new(&queue.table, &queue.queue, wake_files);
        let table = Arc::new(Table::new(&spec.name, queue, connection, dialect));
        let mut transport = table.transport();
        transport.waking = Some(table.clone());
        transport.connecting = Some(table);
        Ok(transport)
    }
}

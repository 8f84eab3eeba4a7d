//! `postgres:`: a queue in a table of a PostgreSQL database, the same table that Symfony Messenger's Doctrine transport
//! uses, with the same notifications, which wake waiting consumers.
//!
//! Every operation is one statement, even receiving a batch, so a killed process leaves nothing half done.
//! `SKIP LOCKED` keeps consumers from waiting for each other.

#[cfg(test)]
mod plans;
mod queries;
mod waking;

use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlStr;

use self::queries::Queries;
use self::waking::Notifications;
use super::super::{Factory, FactoryContext, Transport, TransportSpec};
use super::{Content, Dialect, QueueOptions, Table, Timestamp, text};
use crate::config::{Definition, OptionReader, Problem, Setting};
use crate::connection::sql::postgres::{PostgresSession, Request, read_address};
use crate::connection::sql::{SharedConnection, Statement, Value};
use crate::connection::{self, Connections, StoreKind};

/// PostgreSQL's limit for the names of tables and channels, in bytes.
const MAX_NAME: usize = 63;

/// A queue in a PostgreSQL table.
pub(crate) struct Postgres {
    queue: String,
    queries: Queries,
    /// `None` if `use_notify` is off.
    notifications: Option<Notifications>,
}

impl Postgres {
    /// Body, headers, queue: `$1` to `$3`.
    fn with_content(&self, sql: &SqlStr, content: Content) -> Statement {
        Statement::of(sql).bind(content.body).bind(content.headers).bind(self.queue.as_str())
    }

    /// Queue, now, cutoff: `$1` to `$3`.
    fn at(&self, sql: &SqlStr, now: Timestamp, cutoff: Timestamp) -> Statement {
        Statement::of(sql).bind(self.queue.as_str()).bind(now.text()).bind(cutoff.text())
    }

    /// Ids, queue: `$1` and `$2`.
    fn of(&self, sql: &SqlStr, ids: &[i64]) -> Statement {
        Statement::of(sql).bind(ids).bind(self.queue.as_str())
    }
}

impl Dialect for Postgres {
    type Connection = SharedConnection<PostgresSession>;

    fn is_set_up(&self) -> Request {
        Request::Run(Statement::of(&self.queries.is_set_up).bind(self.queries.table.as_str()))
    }

    fn set_up(&self) -> Request {
        Request::Together(self.queries.set_up.clone())
    }

    fn send(&self, content: Content, now: Timestamp, due: Timestamp) -> Request {
        Request::Run(self.with_content(&self.queries.send, content).bind(now.text()).bind(due.text()))
    }

    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request {
        if let Some(notifications) = &self.notifications {
            notifications.before_poll();
        }
        Request::Run(self.at(&self.queries.receive, now, cutoff).bind(up_to))
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
        let statement = self.with_content(&self.queries.move_to(table), content);
        Request::Run(statement.bind(id).bind(now.text()).bind(queue))
    }

    fn body(body: &[u8]) -> Result<Value, &'static str> {
        match text(body)? {
            text if text.contains('\0') => Err("has a NUL byte in it"),
            text => Ok(text.into()),
        }
    }
}

/// Creates the transports of `postgres:`. Those on one database share one connection.
#[derive(Default)]
pub(crate) struct PostgresFactory {
    connections: Connections,
}

impl PostgresFactory {
    pub(in crate::transport) fn new(connections: &Connections) -> Self {
        Self { connections: connections.clone() }
    }
}

/// The options that only queues on PostgreSQL have.
const OPTIONS: [Definition; 3] = [
    USE_NOTIFY.definition,
    CHECK_DELAYED_INTERVAL.definition,
    Definition::ignored(
        "get_notify_timeout",
        &["0"],
        "it says how long PHP's consumer stands still to wait for a message, and ours does other things meanwhile",
    ),
];
const USE_NOTIFY: Setting<bool> =
    Setting::php_flag("use_notify", "true", "be woken by new messages, and wake others (`LISTEN`/`NOTIFY`)");
const CHECK_DELAYED_INTERVAL: Setting<Duration> = Setting::millis(
    "check_delayed_interval",
    "60000",
    "milliseconds after which a waiting worker looks all the same; 0: never",
);

impl Factory for PostgresFactory {
    fn schemes(&self) -> &'static [&'static str] {
        StoreKind::Postgres.schemes()
    }

    fn options(&self) -> Vec<Definition> {
        [&super::options::OPTIONS[..], &OPTIONS, &connection::sql::postgres::OPTIONS].concat()
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let queue = QueueOptions::read_with_schema(&mut options);
        if queue.table.len() > MAX_NAME {
            let message = format!("table_name has at most {MAX_NAME} characters in PostgreSQL; this one has more");
            options.refuse("table_name", message);
        }
        let interval = check_interval(&mut options);
        let notify = options.get(&USE_NOTIFY);
        let address = read_address(spec, &mut options);
        let connection = self.connections.postgres(address).map_err(|error| spec.dsn_problem(error.to_string()));
        if let Err(problem) = &connection {
            options.push(problem.clone());
        }
        options.finish()?;
        let connection = connection.map_err(|problem| vec![problem])?;
        let channels = connection.settings().channels();
        let notifications =
            notify.then(|| Notifications::new(Arc::clone(channels), &queue.table, &queue.queue, interval));
        let dialect =
            Postgres { queue: queue.queue.clone(), queries: Queries::new(&queue.table, notify), notifications };
        let table = Arc::new(Table::new(&spec.name, queue, connection, dialect));
        let mut transport = table.transport();
        if notify {
            transport.waking = Some(table.clone());
        }
        transport.connecting = Some(table);
        Ok(transport)
    }
}

/// Reads `check_delayed_interval`; 0 means never.
fn check_interval(options: &mut OptionReader<'_>) -> Option<Duration> {
    Some(options.get(&CHECK_DELAYED_INTERVAL)).filter(|interval| !interval.is_zero())
}

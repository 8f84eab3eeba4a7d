//! `postgres:`: a queue in a table of a PostgreSQL database, the same table that Symfony Messenger's Doctrine transport
//! uses, with the same notifications, which wake waiting consumers.
//!
//! Every operation is one statement, even receiving a batch, so a killed process leaves nothing half done.
//! `SKIP LOCKED` keeps consumers from waiting for each other.

#[cfg(test)]
mod plans;
mod queries;
mod schema;
mod waking;

use std::sync::Arc;
use std::time::Duration;

use self::queries::Queries;
use self::waking::Notifications;
use super::super::{Factory, FactoryContext, Transport, TransportSpec};
use super::numbered;
use super::{Content, NotEnlisted, Numbered, Part, QueueOptions, Table, Timestamp, text};
use crate::config::{Definition, OptionReader, Problem, Setting};
use crate::connection::sql::postgres::{PostgresSession, Request, read_address, run};
use crate::connection::sql::{CallersConnection, Row, SharedConnection, Statement, Value};
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

impl Numbered for Postgres {
    type Connection = SharedConnection<PostgresSession>;

    const IS_CREATED_APART: bool = true;

    fn queries(&self) -> &numbered::Queries {
        &self.queries.numbered
    }

    fn queue(&self) -> &str {
        &self.queue
    }

    fn set_up(&self) -> Request {
        Request::Together(self.queries.set_up.clone())
    }

    fn schema(&self) -> Vec<String> {
        self.queries.schema.all()
    }

    fn parts(&self) -> Vec<Part> {
        self.queries.schema.parts()
    }

    fn alter(&self, step: &[String]) -> Request {
        match step {
            [alone] => Request::Alone(alone.clone()),
            // All others wait behind a change that waits for a transaction. So it gives way, and is repeated.
            together => Request::Together([&["SET LOCAL lock_timeout = '2s'".to_owned()], together].concat()),
        }
    }

    fn send_all(&self, messages: Vec<(Content, Timestamp)>, now: Timestamp) -> Request {
        let (mut bodies, mut headers, mut dues) = (Vec::new(), Vec::new(), Vec::new());
        for (content, due) in messages {
            bodies.push(content.body.into_text());
            headers.push(content.headers);
            dues.push(due.text());
        }
        let statement = Statement::of(&self.queries.send_all).bind(bodies).bind(headers).bind(self.queue());
        Request::Run(statement.bind(now.text()).bind(dues))
    }

    async fn send_in(
        &self,
        connection: CallersConnection<'_>,
        send: Statement,
        _create: bool,
    ) -> Result<Vec<Row>, NotEnlisted> {
        match connection {
            CallersConnection::Postgres(connection) => Ok(run(connection, &send).await?),
            _ => Err(NotEnlisted::OtherKind),
        }
    }

    fn receive(&self, up_to: i64, now: Timestamp, cutoff: Timestamp) -> Request {
        if let Some(notifications) = &self.notifications {
            notifications.before_poll();
        }
        Request::Run(self.at(&self.queries().receive, now, cutoff).bind(up_to))
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
        "it says how long PHP's consumer blocks while it waits for a message; a worker here does not block",
    ),
];
const USE_NOTIFY: Setting<bool> = Setting::php_flag(
    "use_notify",
    "true",
    "notify waiting workers of new messages, and be notified (`LISTEN`/`NOTIFY`)",
);
const CHECK_DELAYED_INTERVAL: Setting<Duration> = Setting::millis(
    "check_delayed_interval",
    "60000",
    "milliseconds after which a waiting worker polls even without a notification; 0: never",
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

//! `mysql:`: a queue in a table of a MySQL or MariaDB database, the same table that Symfony Messenger's Doctrine
//! transport uses.
//!
//! Receiving a batch is one transaction, at READ COMMITTED: rows are locked, then marked. `SKIP LOCKED` keeps consumers
//! from waiting for each other. MySQL before 8.0 and MariaDB before 10.6 do not have it; there consumers wait for each
//! other for the few milliseconds that taking a batch lasts, and then find the rows marked.
//!
//! As with Symfony, a message that is done with is marked first and deleted later (see [`queries`]), by whoever has
//! nothing better to do, or has finished some hundreds. All else is one statement each.

#[cfg(test)]
mod old_servers;
#[cfg(test)]
mod plans;
mod queries;
mod request;
mod session;
mod version;
mod waking;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sqlx::SqlSafeStr;

use self::queries::{CONNECTION_LIMIT, Queries};
use self::request::{Purge, Request, Take, for_ids};
use self::session::{MysqlSession, PARAMETERS, Settings};
use self::waking::{WakeFile, WakeFiles};
use super::rdbms::{Address, Content, Dialect, Facts, Link, Statement, Table, Value};
use super::sql::{Moment, QueueOptions};
use super::sql_facts::{self, SqlFacts, Words};
use super::{Context, Factory, Transport, TransportSpec, Waking, registry};
use crate::cache::Store;
use crate::config::Problem;

/// What MySQL allows for the name of a table.
const LONGEST_NAME: usize = 64;
const PORT: u16 = 3306;

/// How the cache is kept here.
const WORDS: Words = Words {
    now: "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    // Bytes: keys that differ in an accent or in case are two.
    // As long as MySQL 5.6 can have it in an index.
    key: "VARBINARY(767)",
    value: "LONGBLOB",
    time: "BIGINT",
    numbered: false,
    on_conflict: false,
    quote: '`',
};

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

impl Dialect for Mysql {
    type Session = MysqlSession;

    fn is_set_up(&self) -> Request {
        let (schema, table) = match self.table.split_once('.') {
            Some((schema, table)) => (Value::from(schema), table),
            None => (Value::Null, self.table.as_str()),
        };
        Request::Run(Statement::of(&self.queries.is_set_up).bind(table).bind(schema))
    }

    fn set_up(&self) -> Request {
        Request::Run(Statement::of(&self.queries.set_up))
    }

    fn send(&self, content: Content, now: Moment, due: Moment) -> Request {
        let statement = Statement::of(&self.queries.send).bind(content.body).bind(content.headers);
        Request::Insert(statement.bind(self.queue.as_str()).bind(now.text()).bind(due.text()))
    }

    fn receive(&self, up_to: i64, now: Moment, cutoff: Moment) -> Request {
        self.wake_file.look();
        Request::Take(Take {
            queries: Arc::clone(&self.queries),
            queue: self.queue.clone(),
            now: now.text(),
            cutoff: cutoff.text(),
            up_to,
            purge: self.purge.clone(),
        })
    }

    fn count(&self, cap: i64, all: bool, now: Moment, cutoff: Moment) -> Request {
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

    fn next_due(&self, now: Moment, cutoff: Moment) -> Request {
        let queue = || Value::from(self.queue.as_str());
        let statement = Statement::of(&self.queries.next_due).bind(queue()).bind(now.text());
        Request::Run(statement.bind(queue()).bind(cutoff.text()))
    }

    fn list(&self, after: i64, limit: i64, cutoff: Moment) -> Request {
        let statement = Statement::of(&self.queries.list).bind(cutoff.text()).bind(self.queue.as_str());
        Request::Run(statement.bind(after).bind(limit))
    }

    fn find(&self, id: i64, cutoff: Moment) -> Request {
        Request::Run(Statement::of(&self.queries.find).bind(cutoff.text()).bind(self.queue.as_str()).bind(id))
    }

    fn finish(&self, ids: &[i64]) -> Request {
        let finish =
            for_ids(ids, |number| self.queries.finish(number), |statement| statement.bind(self.queue.as_str()));
        Request::Finish { finish, purge: self.purge.clone() }
    }

    fn release(&self, ids: &[i64], received_at: &str) -> Request {
        let bind = |statement: Statement| statement.bind(self.queue.as_str()).bind(received_at);
        Request::Change(for_ids(ids, |number| self.queries.release(number), bind))
    }

    fn keep_alive(&self, ids: &[i64], received_at: &str, now: Moment) -> Request {
        let bind = |statement: Statement| statement.bind(now.text()).bind(self.queue.as_str()).bind(received_at);
        Request::Change(for_ids(ids, |number| self.queries.keep_alive(number), bind))
    }

    fn resume(&self, now: Moment) -> Request {
        let (now, queue) = (now.text(), self.queue.as_str());
        Request::Change(vec![Statement::of(&self.queries.resume).bind(now.as_str()).bind(queue).bind(now.as_str())])
    }

    fn retry(&self, id: i64, content: Content, due: Moment) -> Request {
        let statement = Statement::of(&self.queries.retry).bind(content.body).bind(content.headers);
        Request::Run(statement.bind(due.text()).bind(due.text()).bind(id).bind(self.queue.as_str()))
    }

    fn move_within(&self, id: i64, content: Content, now: Moment, queue: &str) -> Request {
        let statement = Statement::of(&self.queries.move_within).bind(content.body).bind(content.headers);
        Request::Run(statement.bind(now.text()).bind(queue).bind(id).bind(self.queue.as_str()))
    }

    fn move_to(&self, id: i64, content: Content, now: Moment, table: &str, queue: &str) -> Request {
        let insert = Statement::of(&self.queries.send_to(table)).bind(content.body).bind(content.headers);
        Request::Move {
            lock: Statement::of(&self.queries.lock).bind(id).bind(self.queue.as_str()),
            insert: insert.bind(queue).bind(now.text()).bind(now.text()),
            finish: Statement::of(&self.queries.finish(1)).bind(self.queue.as_str()).bind(id),
        }
    }

    fn connection_limit(&self) -> Request {
        Request::Run(Statement::of(&CONNECTION_LIMIT.into_sql_str()))
    }

    fn refuses(_body: &str) -> Option<&'static str> {
        None
    }

    fn notify(&self, table: &str, queue: &str) {
        self.wake_files.notify(table, queue);
    }

    fn waking(table: &Arc<Table<Self>>) -> Option<Arc<dyn Waking>> {
        Some(table.clone())
    }
}

/// Makes the transports of `mysql:`. Those on one database share one connection.
#[derive(Default)]
pub struct MysqlFactory {
    links: Mutex<HashMap<Address, Weak<Link<MysqlSession>>>>,
}

impl MysqlFactory {
    fn link(&self, address: Address) -> Result<Arc<Link<MysqlSession>>, sqlx::Error> {
        // A panic while the lock is held leaves at worst an entry out.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&address).and_then(Weak::upgrade) {
            return Ok(link);
        }
        let link = Arc::new(Link::new(Settings::new(&address)?, address.place("localhost", PORT)));
        links.insert(address, Arc::downgrade(&link));
        Ok(link)
    }
}

impl Factory for MysqlFactory {
    fn schemes(&self) -> &'static [&'static str] {
        registry::MYSQL
    }

    fn create(&self, spec: &TransportSpec, context: &Context) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let queue = QueueOptions::read_with_schema(&mut options);
        if queue.table.split('.').any(|part| part.len() > LONGEST_NAME) {
            let message = format!("table_name has at most {LONGEST_NAME} characters in MySQL; this one has more");
            options.refuse("table_name", message);
        }
        let address = Address::read(spec, &mut options, &PARAMETERS);
        if address.database.is_none() {
            options.push(spec.dsn_problem("it names no database: write mysql://user:password@host/database"));
        }
        let link = self.link(address).map_err(|error| spec.dsn_problem(error.to_string()));
        if let Err(problem) = &link {
            options.push(problem.clone());
        }
        options.finish()?;
        let link = link.map_err(|problem| vec![problem])?;
        let wake_files = WakeFiles::new(&context.state_dir, link.place());
        let dialect = Mysql::new(&queue.table, &queue.queue, wake_files);
        Ok(Table::new(&spec.name, queue, link, dialect).into_transport())
    }

    fn cache(&self, spec: &TransportSpec, _project_dir: &Path) -> Option<Result<Arc<dyn Store>, Vec<Problem>>> {
        let mut options = spec.options();
        let table = sql_facts::table_name(&mut options);
        let address = Address::read(spec, &mut options, &PARAMETERS);
        if address.database.is_none() {
            options.push(spec.dsn_problem("it names no database: write mysql://user:password@host/database"));
        }
        let made = options.finish().and_then(|()| {
            let link = self.link(address).map_err(|error| vec![spec.dsn_problem(error.to_string())])?;
            let facts = SqlFacts::new(Facts { link, request: Request::Run }, &table, &WORDS);
            Ok(Arc::new(facts) as Arc<dyn Store>)
        });
        Some(made)
    }
}

//! Databases of a test's own on the servers that are there.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::skip;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection};

/// The servers that tests use where they find them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Server {
    Postgres,
    Mysql,
}

/// A database of its own. Dropped on the server when it goes.
pub struct Database {
    server: Server,
    name: String,
}

impl Server {
    fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "MINUTELY_TEST_POSTGRES_URL",
            Self::Mysql => "MINUTELY_TEST_MYSQL_URL",
        }
    }

    /// The URL of a database on this server.
    fn url(self, database: &str) -> String {
        let default = match self {
            Self::Postgres => "postgres://postgres@127.0.0.1:5432/postgres",
            Self::Mysql => "mysql://root@127.0.0.1:3306/",
        };
        let url = std::env::var(self.variable()).unwrap_or_else(|_| default.to_owned());
        let mut url = url::Url::parse(&url).unwrap();
        if !database.is_empty() {
            url.set_path(database);
        }
        url.into()
    }

    /// Does the server at this URL answer? One that asks for a password does.
    pub async fn is_ready(self, url: &str) -> bool {
        let refused = match self {
            Self::Postgres => PgConnection::connect(url).await.err(),
            Self::Mysql => MySqlConnection::connect(url).await.err(),
        };
        match refused {
            None => true,
            Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| code.starts_with("28")),
            Some(_) => false,
        }
    }

    async fn execute(self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres => PgConnection::connect(&self.url("")).await?.execute(sql).await.map(drop),
            Self::Mysql => MySqlConnection::connect(&self.url("")).await?.execute(sql).await.map(drop),
        }
    }
}

impl Database {
    /// An empty database, or none where the server is not there: then the test is over, and says that it was skipped.
    pub async fn create(server: Server) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("minutely_test_{}_{number}", std::process::id());
        let sql = format!("CREATE DATABASE {name}");
        let reason = match tokio::time::timeout(Duration::from_secs(30), server.execute(&sql)).await {
            Ok(Ok(())) => return Some(Self { server, name }),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        skip(&format!("no {server:?} server ({reason}); {} says where one is", server.variable()));
        None
    }

    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    pub fn server(&self) -> Server {
        self.server
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let force = if self.server == Server::Postgres { " WITH (FORCE)" } else { "" };
        let (server, sql) = (self.server, format!("DROP DATABASE {}{force}", self.name));
        // The test's runtime may be in the middle of ending.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.execute(&sql))
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("{} stays behind: {error}", self.name);
        }
    }
}

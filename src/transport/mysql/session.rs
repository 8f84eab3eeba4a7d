//! A connection to a MySQL or MariaDB server.

use std::io;
use std::path::Path;

use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlDatabaseError, MySqlQueryResult, MySqlRow, MySqlSslMode};
use sqlx::{
    Arguments, AssertSqlSafe, Column, ConnectOptions, Connection, Executor, MySqlConnection, Row as _, TypeInfo,
    ValueRef,
};

use super::super::rdbms::{Address, Fault, Names, Row, Session, Statement, Value};
use super::queries::PURGE;
use super::request::{Purge, Request, Take};
use super::version::Version;
use crate::threads;

/// How many seconds the server itself waits for a lock.
const LOCK_TIMEOUT: u32 = 5;
/// Where the Unix socket is that PHP means by `localhost`.
const SOCKETS: [&str; 4] =
    ["/run/mysqld/mysqld.sock", "/var/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"];

/// What to do when the connection cannot be encrypted as wanted.
const ENCRYPTION: &str = "; the DSN's ssl-mode and ssl-ca say how to encrypt";

/// What a connection's URL may say.
pub(super) const PARAMETERS: Names = Names {
    used: &["unix_socket", "ssl-mode", "sslmode"],
    files: &["ssl-ca", "ssl-cert", "ssl-key"],
    hints: &["serverVersion", "server_version", "driver"],
    without_effect: &[
        ("charset", &["utf8mb4", "utf8"], "connections are always utf8mb4"),
        ("collation", &[], "the table's own is used"),
    ],
};

/// Where to connect.
pub(crate) struct Settings {
    options: MySqlConnectOptions,
    is_localhost: bool,
    /// Is encryption for a server that asks for it? The default on this host.
    plain_first: bool,
}

impl Settings {
    pub(super) fn new(address: &Address) -> Result<Self, sqlx::Error> {
        let host = address.host.as_deref().unwrap_or("localhost");
        let mut options = MySqlConnectOptions::new()
            .host(host)
            .username(address.user.as_deref().unwrap_or("root"))
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .disable_statement_logging();
        let socket = address.parameter("unix_socket").or(Some(host).filter(|host| host.starts_with('/')));
        if let Some(socket) = socket {
            options = options.socket(socket);
        }
        if let Some(port) = address.port {
            options = options.port(port);
        }
        if let Some(password) = &address.password {
            options = options.password(password);
        }
        if let Some(database) = &address.database {
            options = options.database(database);
        }
        if let Some(mode) = address.parameter("ssl-mode").or(address.parameter("sslmode")) {
            options = options.ssl_mode(mode.replace('-', "_").parse::<MySqlSslMode>()?);
        }
        if let Some(file) = address.parameter("ssl-ca") {
            options = options.ssl_ca(file);
        }
        if let Some(file) = address.parameter("ssl-cert") {
            options = options.ssl_client_cert(file);
        }
        if let Some(file) = address.parameter("ssl-key") {
            options = options.ssl_client_key(file);
        }
        let said = ["ssl-mode", "sslmode", "ssl-ca", "ssl-cert", "ssl-key"];
        let plain_first = said.iter().all(|name| address.parameter(name).is_none()) && address.is_this_host(host);
        Ok(Self { options, is_localhost: host == "localhost" && socket.is_none(), plain_first })
    }

    async fn open(&self) -> Result<MySqlConnection, sqlx::Error> {
        let options = self.options();
        if options.get_socket().is_none() {
            threads::for_lookup(options.get_host()).await?;
        }
        if self.plain_first {
            match options.clone().ssl_mode(MySqlSslMode::Disabled).connect().await {
                Err(sqlx::Error::Io(error)) => return Err(sqlx::Error::Io(error)),
                // Logins that are there for encrypted connections alone, and passwords that the server only takes so.
                Err(_) => {}
                connected => return connected,
            }
        }
        options.connect().await
    }

    /// As they are for connecting now. `localhost` is the server's Unix socket where there is one, as it is for PHP:
    /// logins for `user@localhost` may work only there.
    fn options(&self) -> MySqlConnectOptions {
        match SOCKETS.into_iter().find(|socket| self.is_localhost && Path::new(socket).exists()) {
            Some(socket) => self.options.clone().socket(socket),
            None => self.options.clone(),
        }
    }
}

pub(crate) struct MysqlSession {
    connection: MySqlConnection,
    pub(super) skip_locked: bool,
}

impl Session for MysqlSession {
    type Settings = Settings;
    type Request = Request;

    async fn connect(settings: &Settings) -> Result<Self, sqlx::Error> {
        let mut connection = settings.open().await?;
        let (mut version, mut log, mut log_format) = (String::new(), String::new(), String::new());
        let variables = "SHOW VARIABLES WHERE Variable_name IN ('version', 'log_bin', 'binlog_format')";
        for row in connection.fetch_all(variables).await? {
            let value = row.try_get(1)?;
            match row.try_get::<&str, _>(0)? {
                "version" => version = value,
                "log_bin" => log = value,
                _ => log_format = value,
            }
        }
        let known = Version::parse(&version);
        if known.is_some_and(|version| !version.is_recent_enough()) {
            let message =
                format!("this server ({version}) is too old: MySQL 5.6 and MariaDB 10.0 are the oldest that work");
            return Err(sqlx::Error::Configuration(message.into()));
        }
        // Strict: otherwise what does not fit into a column is cut off without a word.
        let strict = "sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";
        let set = format!("SET SESSION {strict}, SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT}");
        connection.execute(AssertSqlSafe(set)).await?;
        // Locks rows alone, and not the gaps between them, into which others insert. A server that logs statements
        // refuses it.
        if log != "ON" || log_format != "STATEMENT" {
            connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        }
        Ok(Self { connection, skip_locked: known.is_some_and(Version::has_skip_locked) })
    }

    async fn perform(&mut self, request: &Request) -> Result<Vec<Row>, sqlx::Error> {
        match request {
            Request::Run(statement) => rows(&mut self.connection, statement).await,
            Request::Insert(statement) => {
                let id = execute(&mut self.connection, statement).await?.last_insert_id();
                Ok(vec![id_row(id)])
            }
            Request::Change(statements) => {
                for statement in statements {
                    execute(&mut self.connection, statement).await?;
                }
                Ok(vec![])
            }
            Request::Finish { finish, purge } => {
                for statement in finish {
                    let finished = execute(&mut self.connection, statement).await?.rows_affected();
                    purge.count(finished);
                }
                if purge.is_due() { self.delete_finished(purge).await } else { Ok(vec![]) }
            }
            Request::Move { lock, insert, finish } => self.move_over(lock, insert, finish).await,
            Request::Take(take) => self.take(take).await,
        }
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }

    async fn idle(&mut self) {
        // A closed connection is found out when it is used next.
        std::future::pending().await
    }

    async fn close(self) {
        let _ = self.connection.close().await;
    }

    fn fault(error: &sqlx::Error) -> Fault {
        let Some((number, state)) = code(error) else { return Fault::Broken };
        match number {
            // ER_NO_SUCH_TABLE
            1146 => Fault::Missing,
            // ER_CHECKREAD (in MariaDB, the row has changed since the transaction began), ER_LOCK_WAIT_TIMEOUT,
            // ER_LOCK_DEADLOCK
            1020 | 1205 | 1213 => Fault::Busy,
            // ER_NO_DEFAULT_FOR_FIELD, ER_TRUNCATED_WRONG_VALUE_FOR_FIELD
            1364 | 1366 => Fault::Refused,
            // Data, constraints, syntax and permissions.
            _ if ["22", "23", "42"].iter().any(|class| state.starts_with(class)) => Fault::Refused,
            _ => Fault::Broken,
        }
    }

    fn advice(error: &sqlx::Error) -> &'static str {
        match error {
            sqlx::Error::Tls(_) => ENCRYPTION,
            // What is wrong with a certificate comes as bad data.
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => ENCRYPTION,
            sqlx::Error::Io(_) => "; check that the server runs, and host and port in the DSN",
            _ => code(error).map_or("", |(number, _)| advice(number)),
        }
    }
}

/// What to do about an error, by its number.
fn advice(number: u16) -> &'static str {
    match number {
        1045 | 1698 => "; check user name and password in the DSN",
        1044 => "; grant this user access to the database, or correct its name in the DSN",
        1049 => "; create the database, or correct its name in the DSN",
        1040 | 1203 | 1226 => "; the server allows no more connections: run fewer workers, or raise its limits",
        1142 | 1143 => "; grant this user what is missing, or let another create the table with `minutely setup`",
        1054 | 1292 | 1364 => {
            "; the table there has other columns than it should have: choose another table_name, or move it away"
        }
        1366 => "; the table's character set is not utf8mb4: convert it, or it loses such messages",
        1153 => "; the message is longer than the server's max_allowed_packet",
        1290 | 1836 => "; the server is a replica, or set to read only: name the primary in the DSN",
        1021 | 1114 => "; there is no space left on the server's disk",
        _ => "",
    }
}

fn code(error: &sqlx::Error) -> Option<(u16, String)> {
    let error = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some((error.number(), error.code().unwrap_or_default().to_owned()))
}

impl MysqlSession {
    async fn take(&mut self, take: &Take) -> Result<Vec<Row>, sqlx::Error> {
        let due = rows(&mut self.connection, &take.any_due()).await?;
        let is_due = |half: usize| due.first().map_or(Ok(0), |row| row.number(half)).map(|due| due != 0);
        let (new, late) = (is_due(0)?, is_due(1)?);
        if !new && !late {
            return if take.purge.has_work() { self.delete_finished(&take.purge).await } else { Ok(vec![]) };
        }
        let mut transaction = self.connection.begin().await?;
        let mut found = Vec::new();
        if late {
            found = rows(&mut transaction, &take.in_flight_too_long(self.skip_locked)).await?;
        }
        if new && found.len() < take.up_to() {
            found.extend(rows(&mut transaction, &take.never_received(self.skip_locked)).await?);
            found.truncate(take.up_to());
        }
        let ids = found.iter().map(|row| row.number(0)).collect::<Result<Vec<_>, _>>()?;
        for statement in take.mark(&ids) {
            execute(&mut transaction, &statement).await?;
        }
        transaction.commit().await?;
        Ok(found)
    }

    /// Deletes finished rows. Where somebody stands in the way they wait for the next time, as Symfony has it too.
    async fn delete_finished(&mut self, purge: &Purge) -> Result<Vec<Row>, sqlx::Error> {
        match execute(&mut self.connection, purge.statement()).await {
            Ok(deleted) => purge.done(deleted.rows_affected() >= PURGE),
            Err(error) if Self::fault(&error) == Fault::Broken => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "finished rows could not be deleted");
                purge.done(false);
            }
        }
        Ok(vec![])
    }

    async fn move_over(
        &mut self,
        lock: &Statement,
        insert: &Statement,
        finish: &Statement,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let mut transaction = self.connection.begin().await?;
        if rows(&mut transaction, lock).await?.is_empty() {
            return Ok(vec![]);
        }
        let id = execute(&mut transaction, insert).await?.last_insert_id();
        execute(&mut transaction, finish).await?;
        transaction.commit().await?;
        Ok(vec![id_row(id)])
    }
}

pub(super) async fn rows(connection: &mut MySqlConnection, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
    let query = sqlx::query_with(statement.sql.clone(), arguments(statement)?);
    query.fetch_all(connection).await?.iter().map(read).collect()
}

async fn execute(connection: &mut MySqlConnection, statement: &Statement) -> Result<MySqlQueryResult, sqlx::Error> {
    sqlx::query_with(statement.sql.clone(), arguments(statement)?).execute(connection).await
}

fn arguments(statement: &Statement) -> Result<MySqlArguments, sqlx::Error> {
    let mut arguments = MySqlArguments::default();
    for value in &statement.arguments {
        match value {
            Value::Null => arguments.add(None::<&str>),
            Value::Number(number) => arguments.add(number),
            Value::Numbers(_) => Err("MySQL has no arrays".into()),
            Value::Text(text) => arguments.add(text),
            Value::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn read(row: &MySqlRow) -> Result<Row, sqlx::Error> {
    let field = |index: usize| {
        if row.try_get_raw(index)?.is_null() {
            return Ok(Value::Null);
        }
        let kind = row.column(index).type_info().name();
        if kind.contains("INT") || kind == "BOOLEAN" {
            Ok(Value::Number(row.try_get_unchecked(index)?))
        } else {
            // As bytes: a table of another character set may hold any.
            Ok(Value::Bytes(row.try_get_unchecked(index)?))
        }
    };
    (0..row.len()).map(field).collect::<Result<_, _>>().map(Row)
}

fn id_row(id: u64) -> Row {
    Row(vec![Value::Number(i64::try_from(id).unwrap_or(i64::MAX))])
}

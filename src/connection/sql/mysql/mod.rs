//! A connection to a MySQL or MariaDB server.

mod version;

use std::io;
use std::path::Path;

use async_trait::async_trait;
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlDatabaseError, MySqlQueryResult, MySqlRow, MySqlSslMode};
use sqlx::{
    Arguments, AssertSqlSafe, Column, ConnectOptions, Connection, Executor, MySqlConnection, Row as _, TypeInfo,
    ValueRef,
};

use self::version::Version;
use super::address::{Address, file, hint, parameter};
use super::error::Fault;
use super::session::Session;
use super::statement::{Row, Statement, Value};
use crate::config::{Definition, OptionReader, TransportSpec};
use crate::threads;

/// How many seconds the server itself waits for a lock.
const LOCK_TIMEOUT: u32 = 5;
/// MySQL's default port.
pub(in crate::connection) const PORT: u16 = 3306;
/// The Unix socket that PHP uses for `localhost`.
const SOCKETS: [&str; 4] =
    ["/run/mysqld/mysqld.sock", "/var/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"];

/// What to do if the connection cannot be encrypted as configured.
const ENCRYPTION: &str = "; the DSN's ssl-mode and ssl-ca say how to encrypt";

/// The options of a connection, in the DSN or in the URL under `connections:`.
pub(crate) const OPTIONS: [Definition; 11] = [
    parameter("unix_socket", "the socket's path").or("for `localhost`, the usual one"),
    parameter("ssl-mode", "`disabled`, `preferred`, `required`, `verify_ca` or `verify_identity`")
        .or("`preferred`; on this host only if the server or the login insists"),
    parameter("sslmode", "the same as `ssl-mode`, as PostgreSQL names it"),
    file("ssl-ca", "the authorities to trust").or("the system's"),
    file("ssl-cert", "the client's certificate"),
    file("ssl-key", "the key of `ssl-cert`"),
    hint("serverVersion"),
    hint("server_version"),
    hint("driver"),
    Definition::ignored("charset", &["utf8mb4", "utf8"], "connections are always utf8mb4").of_connection(),
    Definition::ignored("collation", &[], "the table's own is used").of_connection(),
];

/// Reads the address from the description of a transport or cache. It has to name a database.
pub(crate) fn read_address(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Address {
    let address = Address::read(spec, options, &OPTIONS);
    if address.database.is_none() {
        options.push(spec.dsn_problem("it names no database: write mysql://user:password@host/database"));
    }
    address
}

/// Where to connect.
pub(crate) struct Settings {
    options: MySqlConnectOptions,
    is_localhost: bool,
    /// Whether to encrypt only if the server demands it. The default for servers on this host.
    plain_first: bool,
}

impl Settings {
    pub(crate) fn new(address: &Address) -> Result<Self, sqlx::Error> {
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
            threads::wait_for_lookup_thread(options.get_host()).await?;
        }
        if self.plain_first {
            match options.clone().ssl_mode(MySqlSslMode::Disabled).connect().await {
                Err(sqlx::Error::Io(error)) => return Err(sqlx::Error::Io(error)),
                // Some logins are only allowed on encrypted connections, and some passwords only accepted there.
                Err(_) => {}
                connected => return connected,
            }
        }
        options.connect().await
    }

    /// The driver's options for connecting now. As in PHP, `localhost` means the server's Unix socket if there is one:
    /// logins for `user@localhost` may work only there.
    fn options(&self) -> MySqlConnectOptions {
        match SOCKETS.into_iter().find(|socket| self.is_localhost && Path::new(socket).exists()) {
            Some(socket) => self.options.clone().socket(socket),
            None => self.options.clone(),
        }
    }
}

/// A request to a connection.
pub(crate) enum Request {
    /// One statement, which is a transaction by itself.
    Run(Statement),
    /// Several statements, some of which depend on the results of others.
    Steps(Box<dyn Steps>),
}

/// Statements that belong together.
#[async_trait]
pub(crate) trait Steps: Send + Sync {
    /// Performs all of them, or leaves a state in which they can be repeated.
    async fn perform(&self, session: &mut MysqlSession) -> Result<Vec<Row>, sqlx::Error>;

    /// Whether it may take any time.
    fn takes_long(&self) -> bool {
        false
    }
}

impl From<Statement> for Request {
    fn from(statement: Statement) -> Self {
        Self::Run(statement)
    }
}

/// An open connection.
pub(crate) struct MysqlSession {
    connection: MySqlConnection,
    has_skip_locked: bool,
}

impl Session for MysqlSession {
    type Settings = Settings;
    type Request = Request;

    /// The session's value is the account's own limit, if it has one.
    const CONNECTION_LIMIT: &str = "SELECT CAST(IF(@@max_user_connections > 0, \
         LEAST(@@max_user_connections, @@max_connections), @@max_connections) AS SIGNED)";

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
        // Strict: otherwise a value that is too long for a column is cut silently.
        let strict = "sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";
        let set = format!("SET SESSION {strict}, SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT}");
        connection.execute(AssertSqlSafe(set)).await?;
        // Locks only rows, and not the gaps between them, where others insert. A server with statement-based logging
        // refuses it.
        if log != "ON" || log_format != "STATEMENT" {
            connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        }
        Ok(Self { connection, has_skip_locked: known.is_some_and(Version::has_skip_locked) })
    }

    async fn perform(&mut self, request: &Request) -> Result<Vec<Row>, sqlx::Error> {
        match request {
            Request::Run(statement) => rows(&mut self.connection, statement).await,
            Request::Steps(steps) => steps.perform(self).await,
        }
    }

    fn takes_long(request: &Request) -> bool {
        matches!(request, Request::Steps(steps) if steps.takes_long())
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }

    async fn idle(&mut self) {
        // A closed connection is noticed by its next use.
        std::future::pending::<()>().await;
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
            // Problems with certificates are reported as bad data.
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
        1142 | 1143 => "; grant this user what is missing, or let a user who may create tables run the command `setup`",
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
    /// The driver's connection, for [`Steps`].
    pub(crate) fn connection(&mut self) -> &mut MySqlConnection {
        &mut self.connection
    }

    /// Whether the server supports `SKIP LOCKED`.
    pub(crate) fn has_skip_locked(&self) -> bool {
        self.has_skip_locked
    }

    /// Acts as if the server did not support `SKIP LOCKED`.
    #[cfg(test)]
    pub(crate) fn without_skip_locked(self) -> Self {
        Self { has_skip_locked: false, ..self }
    }
}

/// Runs a statement, and returns its rows.
pub(crate) async fn rows(connection: &mut MySqlConnection, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
    let query = sqlx::query_with(statement.sql.clone(), arguments(statement)?);
    query.fetch_all(connection).await?.iter().map(read).collect()
}

/// Runs a statement that changes rows.
pub(crate) async fn execute(
    connection: &mut MySqlConnection,
    statement: &Statement,
) -> Result<MySqlQueryResult, sqlx::Error> {
    sqlx::query_with(statement.sql.clone(), arguments(statement)?).execute(connection).await
}

fn arguments(statement: &Statement) -> Result<MySqlArguments, sqlx::Error> {
    let mut arguments = MySqlArguments::default();
    for value in &statement.arguments {
        match value {
            Value::Null => arguments.add(None::<&str>),
            Value::Number(number) => arguments.add(number),
            Value::Numbers(_) | Value::Texts(_) => Err("MySQL has no arrays".into()),
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
            // As bytes: in a table with another character set, these may be any.
            Ok(Value::Bytes(row.try_get_unchecked(index)?))
        }
    };
    (0..row.len()).map(field).collect::<Result<_, _>>().map(Row::of)
}

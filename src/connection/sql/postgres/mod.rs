//! A connection to a PostgreSQL server. It also listens for notifications, once a consumer waits for them.

mod channels;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPoolOptions, PgRow, PgSslMode};
use sqlx::{
    Arguments, AssertSqlSafe, Column, ConnectOptions, Connection, Executor, PgConnection, Row as _, TypeInfo, ValueRef,
};

pub(crate) use self::channels::Channels;
use super::address::{Address, file, hint, parameter};
use super::error::Fault;
use super::session::Session;
use super::statement::{Row, Statement, Value};
use crate::config::{Definition, OptionReader, TransportSpec};
use crate::connection::Location;
use crate::threads;

/// 9.6: `SKIP LOCKED` exists since 9.5, and looking a table up by name, as here, since 9.6.
const OLDEST_VERSION: u32 = 90_600;
/// How long opening the connection that listens may take.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do if the connection cannot be encrypted as configured.
const ENCRYPTION: &str = "; the DSN's sslmode and sslrootcert say how to encrypt";

/// The options of a connection, in the DSN or in the URL under `connections:`.
pub(crate) const OPTIONS: [Definition; 13] = [
    parameter("sslmode", "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`")
        .or("`allow` on this host, else `prefer`"),
    file("sslrootcert", "the authorities to trust").or("the system's"),
    file("sslcert", "the client's certificate"),
    file("sslkey", "the key of `sslcert`"),
    parameter("host", "the folder of the Unix socket, if the DSN names no host").or("the usual one"),
    parameter("application_name", "what `pg_stat_activity` shows").or("`minutely`"),
    hint("serverVersion"),
    hint("server_version"),
    hint("driver"),
    Definition::ignored("charset", &["utf8", "utf-8"], "connections are always UTF8").of_connection(),
    Definition::ignored("gssencmode", &["disable", "prefer"], "connections are encrypted with TLS, or not at all")
        .of_connection(),
    Definition::ignored("sslcrl", &[], "lists of revoked certificates are not read").of_connection(),
    Definition::ignored("connect_timeout", &["0"], "connecting has a time limit of its own").of_connection(),
];

/// Reads the address from the description of a transport or cache.
pub(crate) fn read_address(spec: &TransportSpec, options: &mut OptionReader<'_>) -> Address {
    Address::read(spec, options, &OPTIONS)
}

/// Where to connect, and the tasks to notify.
pub(crate) struct Settings {
    options: PgConnectOptions,
    /// Whether to encrypt only if the server demands it.
    plain_first: bool,
    channels: Arc<Channels>,
}

/// A request to a connection.
pub(crate) enum Request {
    /// One statement, which is a transaction by itself.
    Run(Statement),
    /// Statements without arguments, in one transaction.
    Together(Vec<String>),
    /// One statement without arguments that cannot be in a transaction, and may take any time.
    Alone(String),
    /// Listen for notifications on a channel.
    Listen(String),
}

impl From<Statement> for Request {
    fn from(statement: Statement) -> Self {
        Self::Run(statement)
    }
}

/// An open connection.
pub(crate) struct PostgresSession {
    connection: Open,
    options: PgConnectOptions,
    channels: Arc<Channels>,
}

enum Open {
    Plain(PgConnection),
    /// sqlx only delivers notifications from this type, which opens its own connection.
    Listening(PgListener),
    /// While one is replaced by the other.
    Closed,
}

/// Whether to encrypt only if the server demands it. libpq calls that `allow`; sqlx treats `allow` as `disable`. It is
/// the default for servers on this host, unless an option about encryption is set.
fn is_plain_first(address: &Address, options: &PgConnectOptions) -> bool {
    let unsaid = ["sslmode", "sslrootcert", "sslcert", "sslkey"].iter().all(|name| address.parameter(name).is_none());
    match options.get_ssl_mode() {
        PgSslMode::Allow => true,
        PgSslMode::Prefer => unsaid && address.parameter("host").is_none() && address.is_this_host(options.get_host()),
        _ => false,
    }
}

/// How to connect.
fn connect_options(address: &Address) -> Result<PgConnectOptions, sqlx::Error> {
    let mut options = PgConnectOptions::new_without_pgpass()
        .application_name(address.parameter("application_name").unwrap_or("minutely"))
        // PgBouncer refuses unknown parameters.
        .extra_float_digits(None)
        .disable_statement_logging();
    if let Some(host) = address.host.as_deref().or(address.parameter("host")) {
        options = if host.starts_with('/') { options.socket(host) } else { options.host(host) };
    }
    if let Some(port) = address.port {
        options = options.port(port);
    }
    if let Some(user) = &address.user {
        options = options.username(user);
    }
    if let Some(password) = &address.password {
        options = options.password(password);
    }
    if let Some(database) = &address.database {
        options = options.database(database);
    }
    if let Some(mode) = address.parameter("sslmode") {
        options = options.ssl_mode(mode.parse::<PgSslMode>()?);
    }
    if let Some(file) = address.parameter("sslrootcert") {
        options = options.ssl_root_cert(file);
    }
    if let Some(file) = address.parameter("sslcert") {
        options = options.ssl_client_cert(file);
    }
    if let Some(file) = address.parameter("sslkey") {
        options = options.ssl_client_key(file);
    }
    Ok(options)
}

impl Settings {
    pub(in crate::connection) fn new(address: &Address) -> Result<Self, sqlx::Error> {
        let options = connect_options(address)?;
        Ok(Self { plain_first: is_plain_first(address, &options), options, channels: Arc::default() })
    }

    /// The server and the database.
    pub(in crate::connection) fn location(&self, address: &Address) -> Location {
        address.location(self.options.get_host(), self.options.get_port())
    }

    /// The notifications of these connections.
    pub(crate) fn channels(&self) -> &Arc<Channels> {
        &self.channels
    }

    /// Connects. Returns the connection and the options that worked.
    async fn open(&self) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        if self.options.get_socket().is_none() {
            threads::wait_for_lookup_thread(self.options.get_host()).await?;
        }
        if self.plain_first {
            let plain = self.options.clone().ssl_mode(PgSslMode::Disable);
            match plain.connect().await {
                // Some logins are only allowed on encrypted connections.
                Err(error) if code(&error).is_some_and(|code| code.starts_with("28")) => {}
                result => return Ok((result?, plain)),
            }
        }
        let options = match self.options.get_ssl_mode() {
            PgSslMode::Allow => self.options.clone().ssl_mode(PgSslMode::Prefer),
            _ => self.options.clone(),
        };
        Ok((options.connect().await?, options))
    }
}

impl Session for PostgresSession {
    type Settings = Settings;
    type Request = Request;

    /// The lowest of the server's, the role's and the database's limits. NULL means no limit.
    const CONNECTION_LIMIT: &str = "SELECT LEAST( \
         current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint, \
         (SELECT NULLIF(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user)::bigint, \
         (SELECT NULLIF(datconnlimit, -1) FROM pg_database WHERE datname = current_database())::bigint)";

    async fn connect(settings: &Settings) -> Result<Self, sqlx::Error> {
        let (connection, options) = settings.open().await?;
        match connection.server_version_num() {
            Some(version) if version < OLDEST_VERSION => {
                Err(sqlx::Error::Configuration("this PostgreSQL is too old: 9.6 is the oldest that works".into()))
            }
            _ => Ok(Self { connection: Open::Plain(connection), options, channels: Arc::clone(&settings.channels) }),
        }
    }

    async fn perform(&mut self, request: &Request) -> Result<Vec<Row>, sqlx::Error> {
        let result = match request {
            Request::Run(statement) => run(self.connection().await?, statement).await,
            Request::Together(statements) => together(self.connection().await?, statements).await,
            Request::Alone(statement) => {
                self.connection().await?.execute(AssertSqlSafe(statement.as_str())).await.map(|_| vec![])
            }
            Request::Listen(channel) => self.listen(channel).await,
        };
        self.notify_of_buffered();
        result
    }

    fn takes_long(request: &Request) -> bool {
        matches!(request, Request::Alone(_))
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection().await?.ping().await
    }

    async fn idle(&mut self) {
        match &mut self.connection {
            Open::Listening(listener) => {
                while let Ok(Some(notification)) = listener.try_recv().await {
                    self.channels.notify(notification.channel(), notification.payload());
                }
            }
            // A closed plain connection is noticed by its next use.
            Open::Plain(_) | Open::Closed => std::future::pending().await,
        }
    }

    fn is_open(&self) -> bool {
        !matches!(self.connection, Open::Closed)
    }

    async fn close(mut self) {
        if let Open::Plain(connection) = std::mem::replace(&mut self.connection, Open::Closed) {
            let _ = connection.close().await;
        }
    }

    fn fault(error: &sqlx::Error) -> Fault {
        let Some(code) = code(error) else { return Fault::Broken };
        match code.as_str() {
            // undefined_table, invalid_schema_name
            "42P01" | "3F000" => Fault::Missing,
            // serialization_failure, deadlock_detected, lock_not_available
            "40001" | "40P01" | "55P03" => Fault::Busy,
            // Data, constraints, syntax and permissions.
            code if ["22", "23", "42"].iter().any(|class| code.starts_with(class)) => Fault::Refused,
            _ => Fault::Broken,
        }
    }

    fn advice(error: &sqlx::Error) -> &'static str {
        match error {
            sqlx::Error::Tls(_) => ENCRYPTION,
            // Problems with certificates are reported as bad data.
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => ENCRYPTION,
            sqlx::Error::Io(_) => "; check that the server runs, and host and port in the DSN",
            _ => code(error).as_deref().map_or("", advice),
        }
    }
}

/// What to do about an error, by its SQLSTATE.
fn advice(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => "; check user name and password in the DSN, and pg_hba.conf on the server",
        "3D000" => "; create the database, or correct its name in the DSN",
        "3F000" => "; create the schema, or correct its name in table_name",
        "53300" => "; the server allows no more connections: run fewer workers, or raise max_connections",
        "42501" => "; grant this user what is missing, or let a user who may create tables run the command `setup`",
        "42703" | "42804" | "42883" | "23502" | "22P02" => {
            "; the table there has other columns than it should have: choose another table_name, or move it away"
        }
        "25006" => "; the server is a standby, or set to read only: name the primary in the DSN",
        "53100" => "; there is no space left on the server's disk",
        "57P03" => "; the server is starting or stopping: try again",
        "22021" => "; the database's encoding is not UTF8",
        _ => "",
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

impl PostgresSession {
    async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match &mut self.connection {
            Open::Plain(connection) => Ok(connection),
            Open::Listening(listener) => sqlx::Acquire::acquire(listener).await,
            Open::Closed => Err(sqlx::Error::PoolClosed),
        }
    }

    /// Listens on a channel. The first call replaces the connection by a new one; there are never two at a time.
    async fn listen(&mut self, channel: &str) -> Result<Vec<Row>, sqlx::Error> {
        if !matches!(self.connection, Open::Listening(_)) {
            if let Open::Plain(connection) = std::mem::replace(&mut self.connection, Open::Closed) {
                let _ = connection.close().await;
            }
            self.connection = Open::Listening(listener(&self.options).await?);
        }
        if let Open::Listening(listener) = &mut self.connection
            && !self.channels.is_listening_on(channel)
        {
            listener.listen(channel).await?;
            self.channels.listen_on(channel);
        }
        Ok(vec![])
    }

    /// Passes on notifications that arrived during a request.
    fn notify_of_buffered(&mut self) {
        if let Open::Listening(listener) = &mut self.connection {
            while let Some(notification) = listener.next_buffered() {
                self.channels.notify(notification.channel(), notification.payload());
            }
        }
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        self.channels.disconnected();
    }
}

async fn listener(options: &PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(LISTEN_TIMEOUT)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.ignore_pool_close_event(true);
    // The end of this connection wakes waiting consumers, which then poll for what they may have missed.
    listener.eager_reconnect(false);
    Ok(listener)
}

/// Runs a statement, and returns its rows.
pub(crate) async fn run(connection: &mut PgConnection, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
    let mut arguments = PgArguments::default();
    for value in &statement.arguments {
        match value {
            Value::Null => arguments.add(None::<&str>),
            Value::Number(number) => arguments.add(number),
            Value::Numbers(numbers) => arguments.add(numbers),
            Value::Text(text) => arguments.add(text),
            Value::Texts(texts) => arguments.add(texts),
            Value::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    let rows = sqlx::query_with(statement.sql.clone(), arguments).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

async fn together(connection: &mut PgConnection, statements: &[String]) -> Result<Vec<Row>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    for statement in statements {
        transaction.execute(AssertSqlSafe(statement.as_str())).await?;
    }
    transaction.commit().await?;
    Ok(vec![])
}

fn read(row: &PgRow) -> Result<Row, sqlx::Error> {
    let field = |index: usize| {
        if row.try_get_raw(index)?.is_null() {
            return Ok(Value::Null);
        }
        Ok(match row.column(index).type_info().name() {
            "INT8" => Value::Number(row.try_get(index)?),
            "INT4" => Value::Number(row.try_get::<i32, _>(index)?.into()),
            "BOOL" => Value::Number(row.try_get::<bool, _>(index)?.into()),
            // In a database with another encoding than UTF8, this may be any bytes.
            _ => Value::Bytes(row.try_get_unchecked(index)?),
        })
    };
    (0..row.len()).map(field).collect::<Result<_, _>>().map(Row::of)
}

//! One SQLite file: opens it, runs statements on it, and waits for locks of other processes.
//!
//! SQLite lets one process write at a time and reports to others that the database is locked. It waits by itself
//! (`busy_timeout`), but not in every situation: switching to WAL, recovering the WAL of a killed process, and losing a
//! race to write after reading are reported at once. So a statement that meets a lock is run again with random pauses,
//! up to a time limit that dozens of busy processes do not reach. That is safe because such a statement has changed
//! nothing.
//!
//! Each process has one connection per file, shared by all its transports: writes are serial in any case, and reads
//! take microseconds.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments, ConnectOptions, Connection, Row as _, TypeInfo, ValueRef};
use tokio::sync::Mutex;

use super::connection::SqlConnection;
use super::error::{Fault, SqlError};
use super::is_identifier;
use super::patience::Patience;
use super::statement::{Row, Statement, Value};
use crate::config::{Problem, TransportSpec};
use crate::connection::FileWatch;
use crate::threads;

/// How long SQLite itself waits for a lock, at each attempt.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database file. Opened on first use.
pub(crate) struct Database {
    path: PathBuf,
    /// The path, as errors name it.
    location: String,
    connection: Mutex<Option<Open>>,
    watch: FileWatch,
}

struct Open {
    connection: SqliteConnection,
    file: FileId,
}

/// Tells whether a path still leads to the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// A request to a file.
pub(crate) enum Request {
    /// One statement, which is a transaction by itself.
    Run(Statement),
    /// The second statement, if the first returns a row. Only the second waits for other writers.
    RunIfAny(Statement, Statement),
    /// Statements in one transaction. Returns the rows of all.
    Together(Vec<Statement>),
    /// Statements in one transaction. Creates the file and its folder if they are missing.
    Create(Vec<Statement>),
}

impl From<Statement> for Request {
    fn from(statement: Statement) -> Self {
        Self::Run(statement)
    }
}

/// The path in the description of a transport or cache: absolute, and spelled the same way for the same file.
pub(crate) fn path(spec: &TransportSpec) -> Result<PathBuf, Problem> {
    let store = &spec.store;
    if store.path().contains(":memory:") || store.host().contains(":memory:") {
        return Err(spec.dsn_problem("SQLite in memory is seen by no other process: use in-memory://, or a file"));
    }
    // `a//b` and `a/./b` become `a/b`. `..` stays, because of symbolic links.
    Ok(spec.path()?.components().filter(|component| *component != Component::CurDir).collect())
}

// Primary result codes, https://www.sqlite.org/rescode.html. SQLITE_PROTOCOL occurs when many processes open one WAL,
// SQLITE_SCHEMA when many change tables.
const ERROR: u32 = 1;
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const READONLY: u32 = 8;
const IOERR: u32 = 10;
const CORRUPT: u32 = 11;
const FULL: u32 = 13;
const CANTOPEN: u32 = 14;
const PROTOCOL: u32 = 15;
const SCHEMA: u32 = 17;
const NOTADB: u32 = 26;

fn primary_code(error: &sqlx::Error) -> Option<u32> {
    // The code is an extended one (such as SQLITE_BUSY_SNAPSHOT), whose low byte is the primary code.
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
}

/// The file, or a folder of its path, cannot be accessed, created or watched.
fn path_error(path: &Path, error: &io::Error) -> SqlError {
    let advice = "; check the path and the permissions of its folders";
    SqlError::new(&path.display().to_string(), error.to_string(), Fault::Broken, advice)
}

/// What an error means.
fn fault(error: &sqlx::Error) -> Fault {
    match primary_code(error) {
        Some(BUSY | LOCKED | PROTOCOL | SCHEMA) => Fault::Busy,
        Some(ERROR) if is_missing_table(error) => Fault::Missing,
        // The result of invalid SQL.
        Some(ERROR) => Fault::Refused,
        // Each open file needs a thread of the driver, and the system refuses one at the moment.
        None if matches!(error, sqlx::Error::Io(error) if threads::is_refusal(error)) => Fault::Busy,
        _ => Fault::Broken,
    }
}

/// Whether an error says that the table is missing.
pub(crate) fn is_missing(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(ERROR) && is_missing_table(error)
}

/// Whether the table of a statement is missing. A missing table of a view or a trigger is reported with its schema.
fn is_missing_table(error: &sqlx::Error) -> bool {
    let message = error.as_database_error().map_or("", |error| error.message());
    message.strip_prefix("no such table: ").is_some_and(is_identifier)
}

/// What to do about an error.
fn advice(error: &sqlx::Error) -> Cow<'static, str> {
    if let sqlx::Error::Io(error) = error {
        return threads::advice(error).into();
    }
    Cow::Borrowed(match primary_code(error) {
        Some(BUSY | LOCKED) => {
            "; another connection has kept the file locked for a minute: that of another program, or one on which this program \
             has a transaction open itself, within which a message can be dispatched with `dispatch_in`"
        }
        Some(READONLY) => "; this user must be allowed to write the file and its folder",
        Some(IOERR) => "; the disk failed, or a quota or limit is used up: see the system's log",
        Some(FULL) => "; there is no space left on the disk: make some, and try again",
        Some(CANTOPEN) => {
            "; this user must be allowed to write to the folder, the path must be a file's, and the process must have \
             descriptors left (`ulimit -n`)"
        }
        Some(CORRUPT) => "; the file is damaged: move it away, and rescue what it holds with `sqlite3 FILE .recover`",
        Some(NOTADB) => "; the file is no SQLite database: correct the path, or move the file away",
        _ => "",
    })
}

/// The file of a connection of the caller's, if it is another one than that at this path. Empty for one that is no file.
pub(crate) async fn other_file(connection: &mut SqliteConnection, path: &Path) -> Result<Option<String>, sqlx::Error> {
    let databases = sqlx::query("SELECT file FROM pragma_database_list WHERE name = 'main'");
    let file: String = databases.fetch_one(connection).await?.try_get(0)?;
    let id = |path: &Path| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let is_same = id(Path::new(&file)).is_some_and(|there| id(path) == Some(there));
    Ok((!is_same).then_some(file))
}

impl Database {
    /// A file that is not open yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        let (watched, location) = (path.clone(), path.display().to_string());
        Self { path, location, connection: Mutex::new(None), watch: FileWatch::new(move || written_files(&watched)) }
    }

    /// Watches for writes. A transaction is noticed before it is committed: its pages are written, then synced to disk,
    /// and only then can others read them.
    pub(crate) fn watch(&self) -> &FileWatch {
        &self.watch
    }

    /// The error if the file cannot be watched.
    pub(crate) fn unwatched(&self, error: &io::Error) -> SqlError {
        path_error(&self.path, error)
    }

    fn no_file(&self) -> SqlError {
        SqlError::new(&self.location, "there is no such file", Fault::NoFile, "")
    }

    fn create_folder(&self) -> Result<(), SqlError> {
        let Some(folder) = self.path.parent() else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(|error| path_error(folder, &error))
    }

    async fn attempt(&self, request: &Request) -> Result<Vec<Row>, SqlError> {
        let mut slot = self.connection.lock().await;
        let connection = self.open(&mut slot, matches!(request, Request::Create(_))).await?;
        let result = perform(connection, request).await.map_err(|error| self.error(error));
        if result.as_ref().is_err_and(|error| error.fault() == Fault::Broken) {
            *slot = None;
        }
        result
    }

    /// The connection. It is opened again if the path no longer leads to the open file: otherwise messages would go
    /// into a deleted file.
    async fn open<'s>(&self, slot: &'s mut Option<Open>, create: bool) -> Result<&'s mut SqliteConnection, SqlError> {
        let file = self.file()?;
        if file.is_none() && !create {
            *slot = None;
            return Err(self.no_file());
        }
        let open = match slot.take() {
            Some(open) if Some(open.file) == file => open,
            _ => self.connect(create).await?,
        };
        Ok(&mut slot.insert(open).connection)
    }

    async fn connect(&self, create: bool) -> Result<Open, SqlError> {
        if create {
            self.create_file();
        }
        let connection = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(create)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode, anything less could lose the last messages in a power failure.
            .synchronous(SqliteSynchronous::Full)
            // Waiting for a lock would be logged as a slow statement.
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|error| self.error(error))?;
        let file = self.file()?.ok_or_else(|| self.no_file())?;
        Ok(Open { connection, file })
    }

    /// Creates the file, if there is none, with mode 0600: it contains messages. SQLite gives its other files the same
    /// mode. If this fails, SQLite tries again and reports why.
    fn create_file(&self) {
        let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
    }

    /// The file at the path, if there is one. Only reads its metadata: opening and closing the file beside SQLite would
    /// drop SQLite's locks, see "How To Corrupt An SQLite Database File", 2.2.
    fn file(&self) -> Result<Option<FileId>, SqlError> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(FileId { device: metadata.dev(), inode: metadata.ino() })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(path_error(&self.path, &error)),
        }
    }
}

impl SqlConnection for Database {
    type Request = Request;

    async fn perform(&self, request: Request) -> Result<Vec<Row>, SqlError> {
        if matches!(request, Request::Create(_)) {
            self.create_folder()?;
        }
        let patience = Patience::new();
        loop {
            let result = self.attempt(&request).await;
            if !patience.tries_again(&result).await {
                return result;
            }
        }
    }

    fn to_create(statement: Statement) -> Request {
        Request::Create(vec![statement])
    }

    fn location(&self) -> &str {
        &self.location
    }

    fn error(&self, error: sqlx::Error) -> SqlError {
        SqlError::new(&self.location, error.to_string(), fault(&error), advice(&error))
    }
}

/// The files that a transaction writes to: the WAL, or the database itself in other journal modes. They are beside the
/// target of a symbolic link.
fn written_files(path: &Path) -> Vec<PathBuf> {
    let database = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut wal = database.clone().into_os_string();
    wal.push("-wal");
    vec![database, wal.into()]
}

async fn perform(connection: &mut SqliteConnection, request: &Request) -> Result<Vec<Row>, sqlx::Error> {
    match request {
        Request::Run(statement) => run(connection, statement).await,
        Request::RunIfAny(any, statement) => {
            if run(connection, any).await?.is_empty() {
                return Ok(vec![]);
            }
            run(connection, statement).await
        }
        Request::Together(statements) | Request::Create(statements) => together(connection, statements).await,
    }
}

/// Reads all rows: only then has the statement been committed.
pub(crate) async fn run(connection: &mut SqliteConnection, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
    let query = sqlx::query_with(statement.sql.clone(), arguments(statement)?);
    query.fetch_all(connection).await?.iter().map(read).collect()
}

async fn together(connection: &mut SqliteConnection, statements: &[Statement]) -> Result<Vec<Row>, sqlx::Error> {
    // IMMEDIATE takes the write lock first: a transaction that begins by reading can lose the race to write.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut rows = Vec::new();
    for statement in statements {
        rows.extend(run(&mut transaction, statement).await?);
    }
    transaction.commit().await?;
    Ok(rows)
}

fn arguments(statement: &Statement) -> Result<SqliteArguments, sqlx::Error> {
    let mut arguments = SqliteArguments::default();
    for value in &statement.arguments {
        match value {
            Value::Null => arguments.add(None::<&str>),
            Value::Number(number) => arguments.add(number),
            Value::Numbers(numbers) => arguments.add(serde_json::Value::from(numbers.as_slice()).to_string()),
            Value::Text(text) => arguments.add(text),
            Value::Texts(_) => Err("SQLite has no arrays".into()),
            Value::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn read(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let field = |index: usize| {
        let raw = row.try_get_raw(index)?;
        if raw.is_null() {
            return Ok(Value::Null);
        }
        if raw.type_info().name() == "INTEGER" {
            Ok(Value::Number(row.try_get_unchecked(index)?))
        } else {
            // As bytes: another program may have written text that is not UTF-8.
            Ok(Value::Bytes(row.try_get_unchecked(index)?))
        }
    };
    (0..row.len()).map(field).collect::<Result<_, _>>().map(Row::of)
}

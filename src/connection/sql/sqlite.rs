//! One SQLite file: opening it, running statements on it, and outlasting everybody else who uses it.
//!
//! SQLite lets one process write at a time and tells the others that the database is locked. It waits by itself
//! (`busy_timeout`), but not in every situation: switching to WAL, recovering the WAL of a killed process, and losing a
//! race to write after reading are reported at once. So a statement that met a lock is run again, with random pauses,
//! until a patience runs out that dozens of busy processes do not use up. That is safe because a statement that is told
//! "locked" has changed nothing.
//!
//! Each process has one connection per file, shared by all of its transports: writing is serial in any case, and
//! reading takes microseconds.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Encode, SqlSafeStr, SqlStr, Sqlite, Type};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::config::{Problem, TransportSpec};
use crate::connection::FileWatch;
use crate::threads;

/// How long SQLite itself waits for a lock, at each try.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lock is waited for in all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries there is a random pause of up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A database file. Opened when it is first used.
pub(crate) struct Database {
    path: PathBuf,
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

/// SQL with its arguments.
#[derive(Clone)]
pub(crate) struct Statement {
    sql: SqlStr,
    arguments: SqliteArguments,
}

impl Statement {
    /// A statement without arguments yet. Its text is made of constants and quoted identifiers alone.
    pub(crate) fn new(sql: impl Into<String>) -> Self {
        Self { sql: AssertSqlSafe(sql.into()).into_sql_str(), arguments: SqliteArguments::default() }
    }

    /// Adds the next argument (`?1`, `?2`, …).
    pub(crate) fn bind<'t>(mut self, value: impl Encode<'t, Sqlite> + Type<Sqlite>) -> Self {
        self.arguments.add(value).expect("numbers, texts and bytes can always be arguments");
        self
    }
}

/// Why statements could not be run. Names the file.
#[derive(Debug, Error)]
pub(crate) enum DatabaseError {
    /// There is no such file.
    #[error("{} does not exist", .0.display())]
    NoFile(PathBuf),
    /// The file, or its folder, cannot be reached or made.
    #[error("{}: {source}; check the path and the permissions of its folders", .path.display())]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("{}: {source}{}", .path.display(), advice(.source))]
    Sqlite {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
}

/// The path in the description of a transport or cache: absolute, and spelled the same way for the same file.
pub(crate) fn path(spec: &TransportSpec, project_dir: &Path) -> Result<PathBuf, Problem> {
    let store = &spec.store;
    let ways = "write sqlite:relative/path.db or sqlite:///absolute/path.db";
    if store.path().contains(":memory:") || store.host().contains(":memory:") {
        return Err(spec.dsn_problem("SQLite in memory is seen by no other process: use in-memory://, or a file"));
    }
    if !store.hosts().is_empty() {
        return Err(spec.dsn_problem(format!("\"{}\" stands where a host stands: {ways}", store.host())));
    }
    if store.path().trim_matches('/').is_empty() {
        return Err(spec.dsn_problem(format!("it names no file: {ways}")));
    }
    let path = project_dir.join(store.path());
    // `a//b` and `a/./b` are `a/b`. `..` stays, as it does not lead back over a symbolic link.
    Ok(path.components().filter(|component| *component != Component::CurDir).collect())
}

impl DatabaseError {
    /// Is it that the table, or the whole file, is not there?
    pub(crate) fn is_missing(&self, table: &str) -> bool {
        match self {
            Self::NoFile(_) => true,
            Self::Sqlite { source: sqlx::Error::Database(error), .. } => {
                error.message().strip_prefix("no such table: ").is_some_and(|missing| missing == table)
            }
            _ => false,
        }
    }

    fn result_code(&self) -> Option<u32> {
        match self {
            Self::Sqlite { source, .. } => primary_code(source),
            _ => None,
        }
    }

    /// Does another connection stand in the way, or is there no thread to open the file with, so that trying again helps?
    fn is_busy(&self) -> bool {
        matches!(self.result_code(), Some(BUSY | LOCKED | PROTOCOL | SCHEMA)) || self.is_refused_thread()
    }

    /// Each open file has a thread of the driver's.
    fn is_refused_thread(&self) -> bool {
        matches!(self, Self::Sqlite { source: sqlx::Error::Io(error), .. } if threads::is_refusal(error))
    }

    /// Does the connection do its work still, in spite of the error? SQLITE_ERROR is what bad SQL gives.
    fn leaves_connection_usable(&self) -> bool {
        self.is_busy() || self.result_code() == Some(ERROR)
    }
}

// Primary result codes, https://www.sqlite.org/rescode.html. SQLITE_PROTOCOL is many processes starting on one WAL,
// SQLITE_SCHEMA many changing tables.
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
    // The code is the extended one (SQLITE_BUSY_SNAPSHOT and its like), whose low byte is the primary one.
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
}

/// What to do about an error.
fn advice(error: &sqlx::Error) -> Cow<'static, str> {
    if let sqlx::Error::Io(error) = error {
        return threads::advice(error).into();
    }
    Cow::Borrowed(match primary_code(error) {
        Some(BUSY | LOCKED) => "; another program has kept the file locked for a minute: end it, or its transaction",
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

impl Database {
    /// A file that is not opened yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        let watched = path.clone();
        Self { path, connection: Mutex::new(None), watch: FileWatch::new(move || written_files(&watched)) }
    }

    /// Sees when anybody writes to it. A transaction is seen before it is committed: its pages are written, then the disk is
    /// waited for, and only then do others read them.
    pub(crate) fn watch(&self) -> &FileWatch {
        &self.watch
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a statement to its end and returns its rows. The file must exist.
    pub(crate) async fn run(&self, statement: Statement) -> Result<Vec<SqliteRow>, DatabaseError> {
        self.attempt(&[statement], false).await
    }

    /// Runs statements in one transaction, and returns all their rows. The file must exist.
    pub(crate) async fn run_together(&self, statements: &[Statement]) -> Result<Vec<SqliteRow>, DatabaseError> {
        self.attempt(statements, false).await
    }

    /// Runs statements in one transaction, in a file that is created, with its folder, where there is none.
    pub(crate) async fn create(&self, statements: &[Statement]) -> Result<Vec<SqliteRow>, DatabaseError> {
        if let Some(folder) = self.path.parent() {
            let path = folder.to_owned();
            std::fs::create_dir_all(folder).map_err(|source| DatabaseError::Path { path, source })?;
        }
        self.attempt(statements, true).await
    }

    /// Tries until it works, fails for a reason other than a lock, or has taken too long.
    async fn attempt(&self, statements: &[Statement], create: bool) -> Result<Vec<SqliteRow>, DatabaseError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_once(statements, create).await {
                Err(error) if error.is_busy() && Instant::now() < deadline => {
                    tokio::time::sleep(LONGEST_PAUSE.mul_f64(fastrand::f64())).await;
                }
                result => return result,
            }
        }
    }

    async fn try_once(&self, statements: &[Statement], create: bool) -> Result<Vec<SqliteRow>, DatabaseError> {
        let mut slot = self.connection.lock().await;
        let connection = self.open(&mut slot, create).await?;
        let result = match statements {
            [statement] => execute(connection, statement).await,
            statements => execute_together(connection, statements).await,
        };
        let result = result.map_err(|source| DatabaseError::Sqlite { path: self.path.clone(), source });
        if result.as_ref().is_err_and(|error| !error.leaves_connection_usable()) {
            *slot = None;
        }
        result
    }

    /// The connection, opened anew when the path does not lead to the file it has open any more. Otherwise messages would
    /// go on into a deleted file.
    async fn open<'s>(
        &self,
        slot: &'s mut Option<Open>,
        create: bool,
    ) -> Result<&'s mut SqliteConnection, DatabaseError> {
        let file = self.file()?;
        if file.is_none() && !create {
            *slot = None;
            return Err(DatabaseError::NoFile(self.path.clone()));
        }
        let open = match slot.take() {
            Some(open) if Some(open.file) == file => open,
            _ => self.connect(create).await?,
        };
        Ok(&mut slot.insert(open).connection)
    }

    async fn connect(&self, create: bool) -> Result<Open, DatabaseError> {
        if create {
            self.create_file();
        }
        let connection = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(create)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode anything less leaves the last messages unwritten when the machine goes down.
            .synchronous(SqliteSynchronous::Full)
            // Waiting for a lock would be logged as a slow statement.
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|source| DatabaseError::Sqlite { path: self.path.clone(), source })?;
        let file = self.file()?.ok_or_else(|| DatabaseError::NoFile(self.path.clone()))?;
        Ok(Open { connection, file })
    }

    /// Creates the file, if there is none, with mode 0600: it holds what is in messages. SQLite gives its other files the
    /// same mode. Where this fails SQLite tries, and says why it fails.
    fn create_file(&self) {
        let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
    }

    /// The file at the path, if there is one. Asks for its metadata alone: opening and closing the file beside SQLite
    /// would drop the locks that SQLite holds on it, see "How To Corrupt An SQLite Database File", 2.2.
    fn file(&self) -> Result<Option<FileId>, DatabaseError> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(FileId { device: metadata.dev(), inode: metadata.ino() })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(DatabaseError::Path { path: self.path.clone(), source }),
        }
    }
}

/// The files that a transaction writes to: the WAL, or the database itself in other journal modes. They stand where the path
/// leads to, and not where a symbolic link does.
fn written_files(path: &Path) -> Vec<PathBuf> {
    let database = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut wal = database.clone().into_os_string();
    wal.push("-wal");
    vec![database, wal.into()]
}

/// One statement is a transaction by itself. Its rows are taken to the last: only then has it been committed.
async fn execute(connection: &mut SqliteConnection, statement: &Statement) -> Result<Vec<SqliteRow>, sqlx::Error> {
    sqlx::query_with(statement.sql.clone(), statement.arguments.clone()).fetch_all(connection).await
}

async fn execute_together(
    connection: &mut SqliteConnection,
    statements: &[Statement],
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    // IMMEDIATE takes the write lock first: a transaction that begins by reading can lose the race to write.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut rows = Vec::new();
    for statement in statements {
        rows.extend(execute(&mut transaction, statement).await?);
    }
    transaction.commit().await?;
    Ok(rows)
}

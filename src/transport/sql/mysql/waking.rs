//! Wakes waiting consumers on the same host. A MySQL server has no notifications, so each queue has a file in the state
//! directory. It is written to when a message becomes pending or delayed, and consumers watch it. Messages from other
//! hosts and other programs are found by polling.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::super::{TransportError, Waking};
use super::super::Table;
use super::Mysql;
use crate::bounded_text::bounded;
use crate::connection::{Changes, FileWatch};

/// The folder in the state directory.
const FOLDER: &str = "wake";
/// The longest name of a file, in bytes.
const MAX_NAME: usize = 200;

/// The files of the queues in one database.
pub(super) struct WakeFiles {
    dir: PathBuf,
    /// The server and the database.
    location: String,
}

impl WakeFiles {
    pub(super) fn new(state_dir: &Path, location: &str) -> Self {
        Self { dir: state_dir.join(FOLDER), location: location.to_owned() }
    }

    /// Wakes consumers that wait for messages in this queue. If none ever has, there is no file to write to.
    pub(super) fn notify(&self, table: &str, queue: &str) {
        let path = self.path(table, queue);
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"\n"));
        match written {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), %error, "waiting consumers are not woken");
            }
            _ => {}
        }
    }

    fn path(&self, table: &str, queue: &str) -> PathBuf {
        let name = format!("{}/{table}/{queue}", self.location);
        self.dir.join(bounded(utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string(), MAX_NAME))
    }
}

/// The file of the queue that is consumed.
pub(super) struct WakeFile {
    path: PathBuf,
    watch: FileWatch,
    /// The number of changes at the last poll; `None` if the file was not watched then.
    seen: Mutex<Option<u64>>,
}

impl WakeFile {
    pub(super) fn new(files: &WakeFiles, table: &str, queue: &str) -> Self {
        let path = files.path(table, queue);
        let watched = vec![path.clone()];
        Self { path, watch: FileWatch::new(move || watched.clone()), seen: Mutex::new(None) }
    }

    /// Called before a poll, which finds all messages that were notified so far.
    pub(super) fn before_poll(&self) {
        *self.seen() = self.changes().ok().map(|changes| changes.count);
    }

    fn changes(&self) -> io::Result<Changes> {
        if !self.path.exists() {
            self.create()?;
        }
        self.watch.look()
    }

    fn create(&self) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).map(drop)
    }

    fn seen(&self) -> MutexGuard<'_, Option<u64>> {
        // A panic cannot leave it half changed.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Waking for Table<Mysql> {
    async fn wake(&self) -> Result<(), TransportError> {
        let (action, file) = ("waiting for messages", &self.dialect.wake_file);
        let unwatched = |error: io::Error| {
            tracing::debug!(path = %file.path.display(), %error, "the file cannot be watched for new messages");
            TransportError::store(&self.name, action, error)
        };
        let changes = file.changes().map_err(unwatched)?;
        if *file.seen() != Some(changes.count) {
            // Messages that arrived since the last poll have to be polled for.
            return Ok(());
        }
        let next = self.time_to_next_due(action).await?;
        tokio::select! {
            changed = file.watch.changed(changes) => changed.map_err(unwatched),
            () = tokio::time::sleep(next) => Ok(()),
        }
    }
}

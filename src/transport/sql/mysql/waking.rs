//! Wakes waiting consumers on the same host. A MySQL server tells nothing, so each queue has a file in the state directory,
//! which whoever makes a message pending or delayed writes to, and consumers watch. Messages of other hosts, and of other
//! programs, are found by looking.

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
/// How long a file's name may be.
const LONGEST_NAME: usize = 200;

/// The files of the queues in one database.
pub(super) struct WakeFiles {
    dir: PathBuf,
    /// The server and the database.
    place: String,
}

impl WakeFiles {
    pub(super) fn new(state_dir: &Path, place: &str) -> Self {
        Self { dir: state_dir.join(FOLDER), place: place.to_owned() }
    }

    /// Wakes those who wait for messages in this queue. Where nobody has ever waited there is no file to write to.
    pub(super) fn notify(&self, table: &str, queue: &str) {
        let path = self.path(table, queue);
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"\n"));
        match written {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), %error, "those who wait are not woken");
            }
            _ => {}
        }
    }

    fn path(&self, table: &str, queue: &str) -> PathBuf {
        let name = format!("{}/{table}/{queue}", self.place);
        self.dir.join(bounded(utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string(), LONGEST_NAME))
    }
}

/// The file of the queue that is consumed.
pub(super) struct WakeFile {
    path: PathBuf,
    watch: FileWatch,
    /// How many changes there had been when messages were last looked for; none where they were not watched then.
    seen: Mutex<Option<u64>>,
}

impl WakeFile {
    pub(super) fn new(files: &WakeFiles, table: &str, queue: &str) -> Self {
        let path = files.path(table, queue);
        let watched = vec![path.clone()];
        Self { path, watch: FileWatch::new(move || watched.clone()), seen: Mutex::new(None) }
    }

    /// Messages are going to be looked for: what has been told up to now is found by that.
    pub(super) fn look(&self) {
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
        // It is one value, replaced at once.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Waking for Table<Mysql> {
    async fn wake(&self) -> Result<(), TransportError> {
        let (action, file) = ("waiting for messages", &self.dialect.wake_file);
        let unwatched = |error: io::Error| {
            tracing::debug!(path = %file.path.display(), %error, "not watched for new messages");
            TransportError::store(&self.name, action, error)
        };
        let changes = file.changes().map_err(unwatched)?;
        if *file.seen() != Some(changes.count) {
            // What came since the last look has to be looked for.
            return Ok(());
        }
        let next = self.time_to_next_due(action).await?;
        tokio::select! {
            changed = file.watch.changed(changes) => changed.map_err(unwatched),
            () = tokio::time::sleep(next) => Ok(()),
        }
    }
}

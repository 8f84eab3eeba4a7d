//! The file that says which lines of a stream were dispatched, so that a run that was ended can be continued.
//!
//! Each group of lines adds a line of JSON when all of it was dispatched, and that is on the disk before the next group
//! is begun: a run that is killed has dispatched at most one group more than its report says. `through` is the last line that
//! was looked at, `last` tells it apart from the line of another stream, and `failed` are those before it that were not
//! accepted. They are tried again by the next run, and are then under `accepted_now`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::{Failure, Result};

/// The lines that are done with.
#[derive(Clone, Default)]
pub(super) struct Done {
    through: u64,
    /// What `through` is known again by, if there is anything.
    last: Option<String>,
    /// Those before that were not accepted.
    failed: BTreeSet<u64>,
}

/// One line of the report.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) through: u64,
    pub(super) last: String,
    pub(super) queued: u64,
    pub(super) handled: u64,
    pub(super) duplicates: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) failed: BTreeMap<u64, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) accepted_now: Vec<u64>,
}

impl Entry {
    /// How each line begins.
    const BEGINS: &str = r#"{"through":"#;
}

/// The report of a run.
pub(super) struct Report {
    file: File,
    path: PathBuf,
}

/// What a line is known again by.
pub(super) fn fingerprint(text: Option<&[u8]>) -> String {
    Sha256::digest(text.unwrap_or_default()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Done {
    /// Everything before this line.
    pub(super) fn before(line: u64) -> Self {
        Self { through: line.saturating_sub(1), ..Self::default() }
    }

    pub(super) fn through(&self) -> u64 {
        self.through
    }

    /// What the last line is known again by; empty if that is not known.
    pub(super) fn last(&self) -> String {
        self.last.clone().unwrap_or_default()
    }

    pub(super) fn has(&self, line: u64) -> bool {
        line <= self.through && !self.failed.contains(&line)
    }

    /// Whether this may be that line of the same stream.
    pub(super) fn fits(&self, line: u64, fingerprint: impl FnOnce() -> String) -> bool {
        match &self.last {
            Some(last) if line == self.through && !self.failed.contains(&line) => *last == fingerprint(),
            _ => true,
        }
    }

    pub(super) fn add(&mut self, entry: &Entry) {
        if entry.through >= self.through {
            self.through = entry.through;
            self.last = Some(entry.last.clone()).filter(|last| !last.is_empty());
        }
        self.failed.extend(entry.failed.keys());
        for line in &entry.accepted_now {
            self.failed.remove(line);
        }
    }
}

impl Report {
    /// Opens the report, and says what it says. It is created if there is none. Fails while another run writes it.
    pub(super) fn open(path: &Path) -> Result<(Self, Done)> {
        let failed = |what: &str| Failure::Failed(format!("the report {} {what}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| failed(&format!("cannot be opened: {error}")))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(failed("is being written by another run")),
            Err(TryLockError::Error(error)) => return Err(failed(&format!("cannot be locked: {error}"))),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(|error| failed(&format!("cannot be read: {error}")))?;
        // What follows the last end of a line was being written when the run was killed.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut done = Done::default();
        for (n, line) in text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let entry: Entry = serde_json::from_slice(line)
                .map_err(|error| failed(&format!("is none: line {} cannot be read: {error}", n + 1)))?;
            done.add(&entry);
        }
        // The beginning of a report's line, and not a file that was named by mistake.
        let (cut, begins) = (&text[whole..], Entry::BEGINS.as_bytes());
        if !(cut.starts_with(begins) || begins.starts_with(cut)) {
            return Err(failed("is none: its last line is that of another file"));
        }
        let report = Self { file, path: path.to_owned() };
        report.shorten(whole as u64).map_err(|error| failed(&format!("cannot be written: {error}")))?;
        Ok((report, done))
    }

    fn shorten(&self, length: u64) -> std::io::Result<()> {
        if self.file.metadata()?.len() != length {
            self.file.set_len(length)?;
            (&self.file).seek(SeekFrom::End(0))?;
        }
        self.file.sync_all()?;
        // The file's name, too, has to outlast a crash.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Writes down what became of lines, to the disk.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|error| {
            let (path, through) = (self.path.display(), entry.through);
            Failure::Failed(format!(
                "the report {path} cannot be written: {error}; the lines up to {through} were dispatched, and those that it \
                 does not tell of are dispatched again by a run that goes on from it"
            ))
        })
    }
}

//! What a slot's file says about its worker.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::super::process::ProcessId;

/// A longer file (in bytes) was not written by [`WorkerRecord::write`], and is not read to its end.
const MAX_BYTES: u64 = 4 << 20;

/// A worker, as recorded in the file of its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerRecord {
    /// The worker definition's name.
    pub definition: String,
    /// The slot's number.
    pub slot: u32,
    /// The worker's process.
    #[serde(flatten)]
    pub process: ProcessId,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When the supervisor started it.
    pub started_at: DateTime<Utc>,
}

impl WorkerRecord {
    /// Reads a file that was just opened. `None` if it is empty.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        if text.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&text)?)) }
    }

    /// Writes to the start of an empty file. With one write, so that a reader sees all of the record or nothing. The file's
    /// position is not used: the child shares it.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&serde_json::to_vec(self)?, 0)
    }
}

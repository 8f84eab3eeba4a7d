//! A worker's record of the messages it has in flight. After the worker's death, whoever finds the record can put the
//! messages back at once, instead of leaving them until `redeliver_timeout`.
//!
//! The file is replaced as a whole, by renaming, and not synced: it has to survive the worker, not the machine.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::transport::{Delivery, MessageId, Receipt};

/// Prefix of files that are still being written. One that is older than a few seconds was left by a worker that was
/// killed while writing it.
pub(crate) const UNFINISHED: &str = ".note-";

/// The messages that a worker has in flight, by transport.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InFlight {
    /// By the name of the transport that is really read (an auto-fallback's target).
    pub transports: IndexMap<String, Vec<InFlightBatch>>,
    /// The worker is dead, and everything that its handlers had started has been ended.
    #[serde(default)]
    pub left_nothing_running: bool,
}

/// Messages that a worker has received from a transport, and that have the same receipts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InFlightBatch {
    /// The messages' ids.
    pub ids: Vec<String>,
    /// Their receipts, one of which is valid.
    pub receipts: Vec<String>,
}

impl InFlightBatch {
    /// The messages as their transport identifies them.
    pub(crate) fn deliveries(&self) -> impl Iterator<Item = Delivery> {
        let receipts: Vec<Receipt> = self.receipts.iter().cloned().map(Receipt).collect();
        self.ids.iter().map(move |id| Delivery { id: MessageId(id.clone()), receipts: receipts.clone() })
    }
}

/// The file with a worker's record.
#[derive(Debug, Clone)]
pub(crate) struct InFlightFile {
    path: PathBuf,
}

impl InFlightFile {
    /// The file at this path. Its folder must exist.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Reads the record. It is empty if there is no file.
    pub(crate) fn read(&self) -> io::Result<InFlight> {
        match std::fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(InFlight::default()),
            text => Ok(serde_json::from_slice(&text?)?),
        }
    }

    /// Replaces the record.
    pub(crate) fn write(&self, in_flight: &InFlight) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
        file.write_all(&serde_json::to_vec(in_flight)?)?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// Removes the file. It is no error if there is none.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_returns_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = InFlightFile::new(dir.path().join("0.7-1.work"));
        assert_eq!(file.read().unwrap(), InFlight::default());
        let batch = InFlightBatch { ids: vec!["1".into(), "2".into()], receipts: vec!["5".into()] };
        let in_flight = InFlight { transports: [("mail".to_owned(), vec![batch])].into(), left_nothing_running: false };
        file.write(&InFlight::default()).unwrap();
        file.write(&in_flight).unwrap();
        assert_eq!(file.read().unwrap(), in_flight);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = InFlightFile::new(dir.path().join("in-flight"));
        std::fs::write(dir.path().join("in-flight"), "{\"transp").unwrap();
        assert!(file.read().is_err());
    }
}

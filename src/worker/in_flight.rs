//! A worker's note of what it has in flight: whoever finds it after the worker's death can put the messages back at once,
//! instead of leaving them to `redeliver_timeout`.
//!
//! The note is replaced whole, by renaming, and not synced: it is to survive the worker, not the machine.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::transport::{Delivery, MessageId, Receipt};

/// How the name begins of a file that is not a note yet. One that is older than some seconds is of a worker that was
/// killed while it wrote it.
pub(crate) const UNFINISHED: &str = ".note-";

/// What a worker has in flight, by transport.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// The transports that are really read, by name.
    pub transports: IndexMap<String, Vec<Taken>>,
    /// The worker is dead, and what its handlers had started has been ended.
    #[serde(default)]
    pub left_nothing_running: bool,
}

/// Messages that a worker has taken from a transport, and that have their receipts in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The messages' ids.
    pub ids: Vec<String>,
    /// Their receipts, of which one is valid.
    pub receipts: Vec<String>,
}

impl Taken {
    /// The messages, as their transport knows them.
    pub fn deliveries(&self) -> impl Iterator<Item = Delivery> {
        let receipts: Vec<Receipt> = self.receipts.iter().cloned().map(Receipt).collect();
        self.ids.iter().map(move |id| Delivery { id: MessageId(id.clone()), receipts: receipts.clone() })
    }
}

/// Where a worker keeps its note.
#[derive(Debug, Clone)]
pub struct Note {
    path: PathBuf,
}

impl Note {
    /// A note at this path, in a folder that is there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// What the note says; nothing when there is none.
    pub fn read(&self) -> io::Result<InFlight> {
        match std::fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(InFlight::default()),
            text => Ok(serde_json::from_slice(&text?)?),
        }
    }

    /// Replaces what the note says.
    pub fn write(&self, in_flight: &InFlight) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
        file.write_all(&serde_json::to_vec(in_flight)?)?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// Removes the note. One that is not there is no error.
    pub fn remove(&self) -> io::Result<()> {
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
    fn a_note_says_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let note = Note::new(dir.path().join("0.7-1.work"));
        assert_eq!(note.read().unwrap(), InFlight::default());
        let taken = Taken { ids: vec!["1".into(), "2".into()], receipts: vec!["5".into()] };
        let in_flight = InFlight { transports: [("mail".to_owned(), vec![taken])].into(), left_nothing_running: false };
        note.write(&InFlight::default()).unwrap();
        note.write(&in_flight).unwrap();
        assert_eq!(note.read().unwrap(), in_flight);
        note.remove().unwrap();
        note.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_note_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let note = Note::new(dir.path().join("note"));
        std::fs::write(dir.path().join("note"), "{\"transp").unwrap();
        assert!(note.read().is_err());
    }
}

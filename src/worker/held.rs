//! What a worker holds in flight: taken from a transport, and neither acknowledged nor put anywhere else.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexSet;

use super::Source;
use super::in_flight::{InFlight, Note, Taken};
use crate::transport::MessageId;

/// The messages of each source that this worker holds, and its note of them.
pub(super) struct Held {
    by_source: Vec<OfSource>,
    note: Option<Note>,
    /// What cannot be noted is said once.
    complained: bool,
}

struct OfSource {
    source: Arc<Source>,
    ids: IndexSet<MessageId>,
    since: SystemTime,
}

impl Held {
    pub(super) fn new(sources: &[Arc<Source>], note: Option<Note>) -> Self {
        let nothing = |source: &Arc<Source>| OfSource {
            source: Arc::clone(source),
            ids: IndexSet::new(),
            since: SystemTime::now(),
        };
        Self { by_source: sources.iter().map(nothing).collect(), note, complained: false }
    }

    /// These were taken. To be called before anything is done with them.
    pub(super) fn take(&mut self, source: &Arc<Source>, ids: impl Iterator<Item = MessageId>) {
        if let Some(held) = self.of(source) {
            if held.ids.is_empty() {
                held.since = SystemTime::now();
            }
            held.ids.extend(ids);
        }
        self.write();
    }

    /// These are somewhere else now, or gone.
    pub(super) fn let_go(&mut self, source: &Arc<Source>, ids: &[MessageId]) {
        if let Some(held) = self.of(source) {
            for id in ids {
                held.ids.swap_remove(id);
            }
        }
        self.write();
    }

    /// Starts the `redeliver_timeout` of everything held anew. The note says so only where it worked.
    pub(super) async fn keep_alive(&mut self) {
        for held in self.by_source.iter_mut().filter(|held| !held.ids.is_empty()) {
            let Some(keeping) = held.source.transport.keeping_alive() else { continue };
            let ids: Vec<MessageId> = held.ids.iter().cloned().collect();
            let now = SystemTime::now();
            match keeping.keep_alive(&ids).await {
                Ok(()) => held.since = now,
                Err(error) => tracing::warn!(%error, messages = ids.len(), "messages could not be kept alive"),
            }
        }
        self.write();
    }

    fn of(&mut self, source: &Arc<Source>) -> Option<&mut OfSource> {
        self.by_source.iter_mut().find(|held| Arc::ptr_eq(&held.source, source))
    }

    fn write(&mut self) {
        let Some(note) = &self.note else { return };
        let with_some = self.by_source.iter().filter(|held| !held.ids.is_empty());
        let transports = with_some.map(|held| {
            let since = held.since.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
            let taken = Taken { ids: held.ids.iter().map(|id| id.0.clone()).collect(), since };
            (held.source.transport.name().to_owned(), taken)
        });
        let Err(error) = note.write(&InFlight { transports: transports.collect() }) else { return };
        // What it said before may be somebody else's by now, and no note is better than a wrong one.
        let _ = note.remove();
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "what is in flight cannot be noted; after a crash it comes again after redeliver_timeout");
        }
    }

    /// The end: a worker that holds nothing leaves no note.
    pub(super) fn finish(&mut self) {
        if let Some(note) = &self.note
            && self.by_source.iter().all(|held| held.ids.is_empty())
            && let Err(error) = note.remove()
        {
            tracing::warn!(%error, "the note of what was in flight could not be removed");
        }
    }
}

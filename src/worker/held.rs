//! What a worker holds in flight: taken from a transport, and neither acknowledged nor put anywhere else.

use std::sync::Arc;
use std::time::SystemTime;

use indexmap::IndexMap;
use tokio::time::Instant;

use super::Source;
use super::in_flight::{InFlight, Note, Taken};
use crate::transport::{Delivery, MessageId, Receipt};

/// The messages of each source that this worker holds, and its note of them.
pub(super) struct Held {
    by_source: Vec<OfSource>,
    note: Option<Note>,
    /// What cannot be noted is said once.
    complained: bool,
}

struct OfSource {
    source: Arc<Source>,
    messages: IndexMap<MessageId, Holding>,
}

struct Holding {
    receipts: Vec<Receipt>,
    /// When the last receipt was given.
    since: Instant,
    /// It is being released, and not kept alive any more: on a store that knows it by its consumer alone, that would take it
    /// in hand again.
    is_leaving: bool,
    /// Another consumer may have the message by now, by a receipt that looks like this one.
    in_doubt: bool,
}

impl Held {
    pub(super) fn new(sources: &[Arc<Source>], note: Option<Note>) -> Self {
        let nothing = |source: &Arc<Source>| OfSource { source: Arc::clone(source), messages: IndexMap::new() };
        Self { by_source: sources.iter().map(nothing).collect(), note, complained: false }
    }

    /// These were taken. To be called before anything is done with them.
    pub(super) fn take(&mut self, source: &Arc<Source>, deliveries: impl Iterator<Item = Delivery>) {
        let since = Instant::now();
        if let Some(held) = self.of(source) {
            held.messages.extend(deliveries.map(|Delivery { id, receipts }| {
                let holding = Holding { receipts, since, is_leaving: false, in_doubt: false };
                (id, holding)
            }));
        }
        self.write();
    }

    /// These are somewhere else now, or gone.
    pub(super) fn let_go(&mut self, source: &Arc<Source>, ids: &[MessageId]) {
        if let Some(held) = self.of(source) {
            for id in ids {
                held.messages.swap_remove(id);
            }
        }
        self.write();
    }

    /// These are about to be released. The next consumer may get a receipt that looks like this one's, where they are noted
    /// by the second: such messages leave the note first. A crash in between leaves them to `redeliver_timeout`, and not to
    /// two consumers.
    ///
    /// Followed by [`Held::let_go`], or by [`Held::keep`] where they could not be released.
    pub(super) fn release(&mut self, source: &Arc<Source>, ids: &[MessageId]) -> Vec<Delivery> {
        let repeats = source.transport.releasing.as_ref().map(|releasing| releasing.receipt_repeats_within());
        let repeats = repeats.unwrap_or_default();
        let mut deliveries = Vec::new();
        let mut is_any_in_doubt = false;
        if let Some(held) = self.of(source) {
            for id in ids {
                let Some(holding) = held.messages.get_mut(id) else { continue };
                holding.is_leaving = true;
                holding.in_doubt = holding.since.elapsed() < repeats;
                is_any_in_doubt |= holding.in_doubt;
                deliveries.push(Delivery { id: id.clone(), receipts: holding.receipts.clone() });
            }
        }
        if is_any_in_doubt {
            self.write();
        }
        deliveries
    }

    /// These could not be released.
    pub(super) fn keep(&mut self, source: &Arc<Source>, ids: &[MessageId]) {
        if let Some(held) = self.of(source) {
            for id in ids {
                if let Some(holding) = held.messages.get_mut(id) {
                    (holding.is_leaving, holding.in_doubt) = (false, false);
                }
            }
        }
        self.write();
    }

    /// What is held of this source is about to be kept alive, by the receipts that it has. Receipts that change by that are
    /// noted before, so that a crash at any point leaves a note with the valid one.
    ///
    /// Followed by [`Held::kept_alive`], if it was.
    pub(super) fn renew(&mut self, source: &Arc<Source>, now: SystemTime) -> Vec<Delivery> {
        let deliveries = self.of(source).map(|held| held.renew(now)).unwrap_or_default();
        if !deliveries.is_empty() {
            self.write();
        }
        deliveries
    }

    /// What is held of this source has been kept alive.
    pub(super) fn kept_alive(&mut self, source: &Arc<Source>) {
        if let Some(held) = self.of(source) {
            held.renewed();
        }
        self.write();
    }

    fn of(&mut self, source: &Arc<Source>) -> Option<&mut OfSource> {
        self.by_source.iter_mut().find(|held| Arc::ptr_eq(&held.source, source))
    }

    fn write(&mut self) {
        let Some(note) = &self.note else { return };
        let transports = self.by_source.iter().filter_map(|held| {
            let taken = held.noted();
            (!taken.is_empty()).then(|| (held.source.transport.name().to_owned(), taken))
        });
        let in_flight = InFlight { transports: transports.collect(), left_nothing_running: false };
        let Err(error) = note.write(&in_flight) else { return };
        // No note is better than one that is out of date.
        let _ = note.remove();
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "what is in flight cannot be noted; after a crash it comes again after redeliver_timeout");
        }
    }

    /// The end: a worker that holds nothing leaves no note.
    pub(super) fn finish(&mut self) {
        if let Some(note) = &self.note
            && self.by_source.iter().all(|held| held.messages.is_empty())
            && let Err(error) = note.remove()
        {
            tracing::warn!(%error, "the note of what was in flight could not be removed");
        }
    }
}

impl OfSource {
    /// What is about to be kept alive, by the receipts that it has. From here on also the one is held that it gets.
    fn renew(&mut self, now: SystemTime) -> Vec<Delivery> {
        let Some(keeping) = &self.source.transport.keeping_alive else { return Vec::new() };
        let next = keeping.receipt_at(now);
        let renew = |(id, holding): (&MessageId, &mut Holding)| {
            let delivery = Delivery { id: id.clone(), receipts: holding.receipts.clone() };
            if let Some(next) = &next {
                holding.receipts.retain(|receipt| receipt != next);
                holding.receipts.push(next.clone());
            }
            delivery
        };
        self.messages.iter_mut().filter(|(_, holding)| !holding.is_leaving).map(renew).collect()
    }

    /// What was held has been kept alive: only the last receipt is valid.
    fn renewed(&mut self) {
        for holding in self.messages.values_mut().filter(|holding| !holding.is_leaving) {
            holding.receipts.drain(..holding.receipts.len().saturating_sub(1));
            holding.since = Instant::now();
        }
    }

    /// As the note has it: what came together has one receipt, as a rule.
    fn noted(&self) -> Vec<Taken> {
        let mut by_receipts: IndexMap<&[Receipt], Vec<String>> = IndexMap::new();
        for (id, holding) in self.messages.iter().filter(|(_, holding)| !holding.in_doubt) {
            by_receipts.entry(&holding.receipts).or_default().push(id.0.clone());
        }
        let taken = by_receipts.into_iter().map(|(receipts, ids)| {
            let receipts = receipts.iter().map(|receipt| receipt.0.clone()).collect();
            Taken { ids, receipts }
        });
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::OnFailure;
    use super::*;
    use crate::config;
    use crate::transport::Transports;

    /// A transport, consumed by a worker that keeps a note.
    fn held(dir: &Path, dsn: &str) -> (Arc<Source>, Held, Note) {
        let file = dir.join("config.yaml");
        std::fs::write(&file, format!("transports: {{mail: '{dsn}'}}\nrouting: {{}}\nworkers: []\n")).unwrap();
        let app = crate::app::App::builder().config_file(file).build().unwrap();
        let transport = Transports::clone(&app.transports).get("mail").unwrap();
        let (name, retry) = ("mail".to_owned(), config::RetryStrategy::default());
        let receiver = transport.receiver.clone().unwrap();
        let source = Arc::new(Source { name, transport, receiver, retry, on_failure: OnFailure::Discard });
        let note = Note::new(dir.join("note"));
        (Arc::clone(&source), Held::new(&[source], Some(note.clone())), note)
    }

    fn delivery(receipts: &[&str]) -> Delivery {
        let receipts = receipts.iter().map(|receipt| Receipt((*receipt).to_owned())).collect();
        Delivery { id: MessageId("7".to_owned()), receipts }
    }

    fn noted(note: &Note) -> Vec<Delivery> {
        let transports = note.read().unwrap().transports;
        transports.values().flatten().flat_map(Taken::deliveries).collect()
    }

    #[tokio::test]
    async fn what_is_about_to_be_released_is_noted_only_where_its_receipt_is_good_for_one_delivery() {
        let dir = tempfile::tempdir().unwrap();
        for (dsn, stays) in [("in-memory://", true), ("sqlite:q.db", false)] {
            let (source, mut held, note) = held(dir.path(), dsn);
            let taken = [delivery(&["2026-01-01 00:00:00"])];
            held.take(&source, taken.iter().cloned());
            assert_eq!(noted(&note), taken, "{dsn}");
            let id = std::slice::from_ref(&taken[0].id);
            assert_eq!(held.release(&source, id), taken);
            assert_eq!(noted(&note).len(), usize::from(stays), "{dsn}");
            held.keep(&source, id);
            assert_eq!(noted(&note), taken, "{dsn}: it could not be released");
            held.release(&source, id);
            held.let_go(&source, id);
            held.finish();
            assert!(!dir.path().join("note").exists());
        }
    }

    #[tokio::test]
    async fn what_is_being_released_is_not_kept_alive() {
        let dir = tempfile::tempdir().unwrap();
        for dsn in ["in-memory://", "sqlite:q.db"] {
            let (source, mut held, _) = held(dir.path(), dsn);
            let taken = [delivery(&["2026-01-01 00:00:00"])];
            held.take(&source, taken.iter().cloned());
            let id = std::slice::from_ref(&taken[0].id);
            held.release(&source, id);
            assert_eq!(held.renew(&source, SystemTime::now()), [], "{dsn}");
            held.kept_alive(&source);
            held.keep(&source, id);
            assert_eq!(held.renew(&source, SystemTime::now()), taken, "{dsn}: it could not be released");
        }
    }

    #[tokio::test]
    async fn the_receipts_of_before_and_after_keeping_alive_are_noted_until_it_has_worked() {
        let dir = tempfile::tempdir().unwrap();
        let (source, mut held, _) = held(dir.path(), "sqlite:q.db");
        held.take(&source, [delivery(&["2026-01-01 00:00:00"])].into_iter());
        let receipts = |held: &Held| held.by_source[0].messages[0].receipts.clone();
        let of_source = &mut held.by_source[0];
        let now = SystemTime::now();
        assert_eq!(of_source.renew(now), [delivery(&["2026-01-01 00:00:00"])]);
        let new = source.transport.keeping_alive.as_ref().unwrap().receipt_at(now).unwrap();
        assert_eq!(receipts(&held), [Receipt("2026-01-01 00:00:00".into()), new.clone()]);
        held.by_source[0].renewed();
        assert_eq!(receipts(&held), [new]);
    }
}

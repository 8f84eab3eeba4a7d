//! Tracks which messages this worker has in flight: received from a transport, and neither acknowledged nor stored
//! elsewhere.

use std::sync::Arc;
use std::time::SystemTime;

use indexmap::IndexMap;
use tokio::time::Instant;

use super::Source;
use super::in_flight::{InFlight, InFlightBatch, InFlightFile};
use crate::transport::{Delivery, MessageId, Receipt};

/// The messages of each source that this worker has in flight. Writes every change to the file from which the
/// supervisor puts them back after a crash.
pub(super) struct InFlightTracker {
    sources: Vec<TrackedSource>,
    file: Option<InFlightFile>,
    /// A file that cannot be written is logged only once.
    has_warned: bool,
}

struct TrackedSource {
    source: Arc<Source>,
    messages: IndexMap<MessageId, Tracked>,
}

struct Tracked {
    receipts: Vec<Receipt>,
    /// When the last receipt was issued.
    since: Instant,
    /// The message is being released, and must not be kept alive: a store that identifies a delivery by its consumer
    /// alone would put it in flight again.
    is_releasing: bool,
    /// Another consumer may have received the message with a receipt that looks the same. Such a message is not written
    /// to the file.
    in_doubt: bool,
}

impl InFlightTracker {
    pub(super) fn new(sources: &[Arc<Source>], file: Option<InFlightFile>) -> Self {
        let empty = |source: &Arc<Source>| TrackedSource { source: Arc::clone(source), messages: IndexMap::new() };
        Self { sources: sources.iter().map(empty).collect(), file, has_warned: false }
    }

    /// Adds messages that were received. Call it before anything is done with them.
    pub(super) fn add(&mut self, source: &Arc<Source>, deliveries: impl Iterator<Item = Delivery>) {
        let since = Instant::now();
        if let Some(tracked) = self.of(source) {
            tracked.messages.extend(deliveries.map(|Delivery { id, receipts }| {
                let message = Tracked { receipts, since, is_releasing: false, in_doubt: false };
                (id, message)
            }));
        }
        self.write();
    }

    /// Removes messages that are stored elsewhere by now, or gone.
    pub(super) fn remove(&mut self, source: &Arc<Source>, ids: &[MessageId]) {
        if let Some(tracked) = self.of(source) {
            for id in ids {
                tracked.messages.swap_remove(id);
            }
        }
        self.write();
    }

    /// Prepares messages for release. Where receipts are only accurate to the second, the next consumer may get a
    /// receipt that looks like this worker's: such messages leave the file first. After a crash in between they are
    /// delivered again after `redeliver_timeout`, and not to two consumers.
    ///
    /// Followed by [`InFlightTracker::remove`] when they were released, or [`InFlightTracker::cancel_release`] when
    /// not.
    pub(super) fn begin_release(&mut self, source: &Arc<Source>, ids: &[MessageId]) -> Vec<Delivery> {
        let repeats = source.transport.releasing.as_ref().map(|releasing| releasing.receipt_repeats_within());
        let repeats = repeats.unwrap_or_default();
        let mut deliveries = Vec::new();
        let mut is_any_in_doubt = false;
        if let Some(tracked) = self.of(source) {
            for id in ids {
                let Some(message) = tracked.messages.get_mut(id) else { continue };
                message.is_releasing = true;
                message.in_doubt = message.since.elapsed() < repeats;
                is_any_in_doubt |= message.in_doubt;
                deliveries.push(Delivery { id: id.clone(), receipts: message.receipts.clone() });
            }
        }
        if is_any_in_doubt {
            self.write();
        }
        deliveries
    }

    /// The messages could not be released.
    pub(super) fn cancel_release(&mut self, source: &Arc<Source>, ids: &[MessageId]) {
        if let Some(tracked) = self.of(source) {
            for id in ids {
                if let Some(message) = tracked.messages.get_mut(id) {
                    (message.is_releasing, message.in_doubt) = (false, false);
                }
            }
        }
        self.write();
    }

    /// Prepares the messages of a source for being kept alive. Returns them with their present receipts. Where keeping
    /// alive changes a receipt, the file gets the new one too, so that it has the valid one after a crash at any point.
    ///
    /// Followed by [`InFlightTracker::finish_keepalive`] if that succeeded.
    pub(super) fn begin_keepalive(&mut self, source: &Arc<Source>, now: SystemTime) -> Vec<Delivery> {
        let deliveries = self.of(source).map(|tracked| tracked.begin_keepalive(now)).unwrap_or_default();
        if !deliveries.is_empty() {
            self.write();
        }
        deliveries
    }

    /// The messages of this source have been kept alive.
    pub(super) fn finish_keepalive(&mut self, source: &Arc<Source>) {
        if let Some(tracked) = self.of(source) {
            tracked.finish_keepalive();
        }
        self.write();
    }

    fn of(&mut self, source: &Arc<Source>) -> Option<&mut TrackedSource> {
        self.sources.iter_mut().find(|tracked| Arc::ptr_eq(&tracked.source, source))
    }

    fn write(&mut self) {
        let Some(file) = &self.file else { return };
        let transports = self.sources.iter().filter_map(|tracked| {
            let batches = tracked.batches();
            (!batches.is_empty()).then(|| (tracked.source.transport.name().to_owned(), batches))
        });
        let in_flight = InFlight { transports: transports.collect(), left_nothing_running: false };
        let Err(error) = file.write(&in_flight) else { return };
        // No file is better than one that is out of date.
        let _ = file.remove();
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                %error,
                "the messages in flight cannot be recorded; after a crash they are delivered again only after redeliver_timeout"
            );
        }
    }

    /// Called when the worker ends. If nothing is in flight, the file is removed.
    pub(super) fn finish(&mut self) {
        if let Some(file) = &self.file
            && self.sources.iter().all(|tracked| tracked.messages.is_empty())
            && let Err(error) = file.remove()
        {
            tracing::warn!(%error, "the record of messages in flight could not be removed");
        }
    }
}

impl TrackedSource {
    /// Returns the messages with their present receipts, and adds the receipts that keeping alive gives them.
    fn begin_keepalive(&mut self, now: SystemTime) -> Vec<Delivery> {
        let Some(keeping) = &self.source.transport.keeping_alive else { return Vec::new() };
        let next = keeping.receipt_at(now);
        let begin = |(id, message): (&MessageId, &mut Tracked)| {
            let delivery = Delivery { id: id.clone(), receipts: message.receipts.clone() };
            if let Some(next) = &next {
                message.receipts.retain(|receipt| receipt != next);
                message.receipts.push(next.clone());
            }
            delivery
        };
        self.messages.iter_mut().filter(|(_, message)| !message.is_releasing).map(begin).collect()
    }

    /// Keeping alive has succeeded: only the last receipt is valid.
    fn finish_keepalive(&mut self) {
        for message in self.messages.values_mut().filter(|message| !message.is_releasing) {
            message.receipts.drain(..message.receipts.len().saturating_sub(1));
            message.since = Instant::now();
        }
    }

    /// The messages as the file has them, grouped by receipts: messages that were received together usually share one.
    fn batches(&self) -> Vec<InFlightBatch> {
        let mut by_receipts: IndexMap<&[Receipt], Vec<String>> = IndexMap::new();
        for (id, message) in self.messages.iter().filter(|(_, message)| !message.in_doubt) {
            by_receipts.entry(&message.receipts).or_default().push(id.0.clone());
        }
        let batches = by_receipts.into_iter().map(|(receipts, ids)| {
            let receipts = receipts.iter().map(|receipt| receipt.0.clone()).collect();
            InFlightBatch { ids, receipts }
        });
        batches.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::OnFailure;
    use super::*;
    use crate::config;
    use crate::transport::Transports;

    /// A transport, and the tracker of a worker that consumes it.
    fn tracker(dir: &Path, dsn: &str) -> (Arc<Source>, InFlightTracker, InFlightFile) {
        let file = dir.join("config.yaml");
        std::fs::write(&file, format!("transports: {{mail: '{dsn}'}}\nrouting: {{}}\nworkers: []\n")).unwrap();
        let app = crate::app::App::builder().config_file(file).build().unwrap();
        let transport = Transports::clone(&app.transports).get("mail").unwrap();
        let (name, retry) = ("mail".to_owned(), super::super::strategy::Retrial::by(config::RetryStrategy::default()));
        let receiver = transport.receiver.clone().unwrap();
        let source = Arc::new(Source {
            name,
            transport,
            receiver,
            serializers: Arc::default(),
            retry,
            limiter: None,
            on_failure: OnFailure::Discard,
        });
        let file = InFlightFile::new(dir.join("in-flight"));
        (Arc::clone(&source), InFlightTracker::new(&[source], Some(file.clone())), file)
    }

    fn delivery(receipts: &[&str]) -> Delivery {
        let receipts = receipts.iter().map(|receipt| Receipt((*receipt).to_owned())).collect();
        Delivery { id: MessageId("7".to_owned()), receipts }
    }

    fn recorded(file: &InFlightFile) -> Vec<Delivery> {
        let transports = file.read().unwrap().transports;
        transports.values().flatten().flat_map(InFlightBatch::deliveries).collect()
    }

    #[tokio::test]
    async fn a_message_being_released_stays_recorded_only_if_its_receipt_is_unique() {
        let dir = tempfile::tempdir().unwrap();
        for (dsn, stays) in [("in-memory://", true), ("sqlite:q.db", false)] {
            let (source, mut tracker, file) = tracker(dir.path(), dsn);
            let received = [delivery(&["2026-01-01 00:00:00"])];
            tracker.add(&source, received.iter().cloned());
            assert_eq!(recorded(&file), received, "{dsn}");
            let id = std::slice::from_ref(&received[0].id);
            assert_eq!(tracker.begin_release(&source, id), received);
            assert_eq!(recorded(&file).len(), usize::from(stays), "{dsn}");
            tracker.cancel_release(&source, id);
            assert_eq!(recorded(&file), received, "{dsn}: it could not be released");
            tracker.begin_release(&source, id);
            tracker.remove(&source, id);
            tracker.finish();
            assert!(!dir.path().join("in-flight").exists());
        }
    }

    #[tokio::test]
    async fn a_message_being_released_is_not_kept_alive() {
        let dir = tempfile::tempdir().unwrap();
        for dsn in ["in-memory://", "sqlite:q.db"] {
            let (source, mut tracker, _) = tracker(dir.path(), dsn);
            let received = [delivery(&["2026-01-01 00:00:00"])];
            tracker.add(&source, received.iter().cloned());
            let id = std::slice::from_ref(&received[0].id);
            tracker.begin_release(&source, id);
            assert_eq!(tracker.begin_keepalive(&source, SystemTime::now()), [], "{dsn}");
            tracker.finish_keepalive(&source);
            tracker.cancel_release(&source, id);
            let kept = tracker.begin_keepalive(&source, SystemTime::now());
            assert_eq!(kept, received, "{dsn}: it could not be released");
        }
    }

    #[tokio::test]
    async fn old_and_new_receipts_are_recorded_until_keeping_alive_has_succeeded() {
        let dir = tempfile::tempdir().unwrap();
        let (source, mut tracker, _) = tracker(dir.path(), "sqlite:q.db");
        tracker.add(&source, [delivery(&["2026-01-01 00:00:00"])].into_iter());
        let receipts = |tracker: &InFlightTracker| tracker.sources[0].messages[0].receipts.clone();
        let now = SystemTime::now();
        assert_eq!(tracker.sources[0].begin_keepalive(now), [delivery(&["2026-01-01 00:00:00"])]);
        let new = source.transport.keeping_alive.as_ref().unwrap().receipt_at(now).unwrap();
        assert_eq!(receipts(&tracker), [Receipt("2026-01-01 00:00:00".into()), new.clone()]);
        tracker.sources[0].finish_keepalive();
        assert_eq!(receipts(&tracker), [new]);
    }
}

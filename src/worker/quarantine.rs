//! Messages that no handler here can handle, held back until it is clear whether they are strays or all that a source
//! has.
//!
//! A stray goes to the failure transport. A source that has nothing else belongs to another application (PHP writes
//! bodies in its own serialization there). Moving its messages would empty a queue that the other application can
//! handle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Unhandleable;
use super::{OnFailure, Source};
use crate::transport::MessageId;

/// After this many in a row, with no other message before them, they are no strays: the queue is another application's.
const FOREIGN_QUEUE_THRESHOLD: usize = 10;

/// If no further unhandleable message arrives for this long, those that have arrived are strays.
const STRAY_TIMEOUT: Duration = Duration::from_secs(10);

/// A message that no handler here can handle. It is still in its store, in flight.
pub(super) struct Quarantined {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    pub(super) message: Unhandleable,
}

/// The quarantined messages, and what is known about their sources.
pub(super) struct Quarantine {
    /// Every unhandleable message counts as a stray, also where a source has nothing else.
    all_are_strays: bool,
    /// Sources that have had a message for which a handler was called. Their unhandleable messages are strays.
    confirmed: Vec<Arc<Source>>,
    /// Each message, with the time from which it counts as a stray.
    messages: Vec<(Quarantined, Instant)>,
    /// How many unhandleable messages each other source has had.
    counts: Vec<(Arc<Source>, usize)>,
}

impl Quarantine {
    pub(super) fn new(all_are_strays: bool) -> Self {
        Self { all_are_strays, confirmed: Vec::new(), messages: Vec::new(), counts: Vec::new() }
    }

    /// A handler was called for a message of this source. Returns the quarantined messages of the source: they are
    /// strays.
    pub(super) fn confirm(&mut self, source: &Arc<Source>) -> Vec<Quarantined> {
        if self.is_confirmed(source) {
            return Vec::new();
        }
        self.confirmed.push(Arc::clone(source));
        self.take_if(|message, _| Arc::ptr_eq(&message.source, source))
    }

    /// Quarantines a message. Returns it if it is known to be a stray, or belongs where it is.
    pub(super) fn add(&mut self, message: Quarantined) -> Option<Quarantined> {
        // On the failure transport, messages that nothing here can handle are expected, and stay there.
        if self.is_confirmed(&message.source) || matches!(message.source.on_failure, OnFailure::Park) {
            return Some(message);
        }
        match self.counts.iter_mut().find(|(source, _)| Arc::ptr_eq(source, &message.source)) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((Arc::clone(&message.source), 1)),
        }
        // On a busy machine, the messages of one queue may arrive slowly.
        let until = Instant::now() + STRAY_TIMEOUT;
        let same_source = self.messages.iter_mut().filter(|(other, _)| Arc::ptr_eq(&other.source, &message.source));
        same_source.for_each(|(_, stray_at)| *stray_at = until);
        self.messages.push((message, until));
        None
    }

    /// Why the worker must stop: a source has nothing but messages that no handler here can handle. `None` if there is
    /// no such source.
    pub(super) fn foreign_queue(&self) -> Option<String> {
        let (source, count) = self
            .counts
            .iter()
            .find(|(source, count)| *count >= FOREIGN_QUEUE_THRESHOLD && !self.is_confirmed(source))?;
        let last = self.messages.iter().rfind(|(message, _)| Arc::ptr_eq(&message.source, source));
        let error = last.map(|(message, _)| format!(": {}", message.message.error)).unwrap_or_default();
        let name = &source.name;
        Some(format!(
            "nothing here can handle the messages of \"{name}\" ({count} in a row, and no other before them){error}; they stay \
             in their queue, and the worker stops (`consume --move-unhandleable` moves them to the failure transport)"
        ))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Takes all messages out.
    pub(super) fn take_all(&mut self) -> Vec<Quarantined> {
        self.take_if(|_, _| true)
    }

    /// Takes out the messages that count as strays by now.
    pub(super) fn take_strays(&mut self) -> Vec<Quarantined> {
        let now = Instant::now();
        self.take_if(|_, stray_at| stray_at <= now)
    }

    /// When the next message counts as a stray.
    pub(super) fn next_stray_at(&self) -> Option<Instant> {
        self.messages.iter().map(|(_, stray_at)| *stray_at).min()
    }

    fn take_if(&mut self, is_taken: impl Fn(&Quarantined, Instant) -> bool) -> Vec<Quarantined> {
        let taken = self.messages.extract_if(.., |(message, stray_at)| is_taken(message, *stray_at));
        taken.map(|(message, _)| message).collect()
    }

    fn is_confirmed(&self, source: &Arc<Source>) -> bool {
        self.all_are_strays || self.confirmed.iter().any(|confirmed| Arc::ptr_eq(confirmed, source))
    }
}

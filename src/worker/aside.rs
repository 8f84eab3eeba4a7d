//! Messages that nobody here can handle, set aside until it is clear whether they are strays or all that a source has.
//!
//! A stray goes to the failure transport. A source that has nothing else is another application's (PHP writes its own
//! serializer's bodies there), and moving its messages would empty a queue that somebody else can handle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Unhandleable;
use super::{OnFailure, Source};
use crate::transport::MessageId;

/// So many in a row, with nothing else before them, are no strays.
const ALL_THERE_IS: usize = 10;

/// When no other has come for so long, the last one was not the beginning of a queue of such messages.
const LONGEST: Duration = Duration::from_secs(10);

/// A message that nobody here can handle, still in its store.
pub(super) struct Waiting {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    pub(super) message: Unhandleable,
}

/// What is known of the sources, and what waits for more to be known.
pub(super) struct Aside {
    /// All messages that nobody here can handle are put away, also when there is nothing else.
    always: bool,
    /// Sources that have had a message which a handler here was called for.
    trusted: Vec<Arc<Source>>,
    /// With the time at which each has waited long enough.
    waiting: Vec<(Waiting, Instant)>,
    /// How many each other source has had so far.
    seen: Vec<(Arc<Source>, usize)>,
}

impl Aside {
    pub(super) fn new(always: bool) -> Self {
        Self { always, trusted: Vec::new(), waiting: Vec::new(), seen: Vec::new() }
    }

    /// A handler was called for a message of this source. Returns what waited for that, to be put away.
    pub(super) fn trust(&mut self, source: &Arc<Source>) -> Vec<Waiting> {
        if self.is_trusted(source) {
            return Vec::new();
        }
        self.trusted.push(Arc::clone(source));
        self.take_if(|waiting, _| Arc::ptr_eq(&waiting.source, source))
    }

    /// Nobody here can handle this one. Returns it when it is to be put away at once.
    pub(super) fn add(&mut self, waiting: Waiting) -> Option<Waiting> {
        // On the failure transport such messages are at home, and stay there.
        if self.is_trusted(&waiting.source) || matches!(waiting.source.on_failure, OnFailure::Stay) {
            return Some(waiting);
        }
        match self.seen.iter_mut().find(|(source, _)| Arc::ptr_eq(source, &waiting.source)) {
            Some((_, seen)) => *seen += 1,
            None => self.seen.push((Arc::clone(&waiting.source), 1)),
        }
        // On a busy machine many may come one after the other and slowly.
        let until = Instant::now() + LONGEST;
        let of_the_same = self.waiting.iter_mut().filter(|(other, _)| Arc::ptr_eq(&other.source, &waiting.source));
        of_the_same.for_each(|(_, waits_until)| *waits_until = until);
        self.waiting.push((waiting, until));
        None
    }

    /// Why to stop, when a source has nothing but messages that nobody here can handle.
    pub(super) fn why_stop(&self) -> Option<String> {
        let (source, seen) =
            self.seen.iter().find(|(source, seen)| *seen >= ALL_THERE_IS && !self.is_trusted(source))?;
        let last = self.waiting.iter().rfind(|(waiting, _)| Arc::ptr_eq(&waiting.source, source));
        let error = last.map(|(waiting, _)| format!(": {}", waiting.message.error)).unwrap_or_default();
        let name = &source.name;
        Some(format!(
            "nothing here can handle the messages of \"{name}\" ({seen} in a row, and none before them){error}; they stay \
             where they are, and the worker stops (`consume --move-unhandleable` moves them to the failure transport)"
        ))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out all that waits.
    pub(super) fn take(&mut self) -> Vec<Waiting> {
        self.take_if(|_, _| true)
    }

    /// Takes out what has waited long enough.
    pub(super) fn take_overdue(&mut self) -> Vec<Waiting> {
        let now = Instant::now();
        self.take_if(|_, until| until <= now)
    }

    /// When something will have waited long enough.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        self.waiting.iter().map(|(_, until)| *until).min()
    }

    fn take_if(&mut self, is_taken: impl Fn(&Waiting, Instant) -> bool) -> Vec<Waiting> {
        self.waiting.extract_if(.., |(waiting, until)| is_taken(waiting, *until)).map(|(waiting, _)| waiting).collect()
    }

    fn is_trusted(&self, source: &Arc<Source>) -> bool {
        self.always || self.trusted.iter().any(|trusted| Arc::ptr_eq(trusted, source))
    }
}

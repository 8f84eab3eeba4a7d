//! Messages to be checked by a test.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use super::journal::Entry;
use crate::message::{Envelope, Message};

/// Messages of one type, as a slice, with assertions that print everything that happened when they fail.
pub struct Messages<M> {
    /// What happened to them, for the texts of panics: `was sent`.
    what: &'static str,
    list: Vec<Recorded<M>>,
    /// Everything that happened, for the texts of panics.
    happened: String,
}

/// A message with its metadata. It derefs to the message.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Recorded<M> {
    /// The message.
    pub message: M,
    /// The message with its stamps.
    pub envelope: Envelope,
    /// The queue it was sent to, or came from; `None` if it was handled without one.
    pub transport: Option<String>,
    /// The delay with which it was sent.
    pub delay: Duration,
    /// Why it failed.
    pub error: Option<String>,
}

impl<M: Message> Messages<M> {
    pub(super) fn new(what: &'static str, entries: Vec<Entry>, happened: String) -> Self {
        let of_type = entries.into_iter().filter(|entry| entry.envelope.message_type() == M::TYPE);
        let list = of_type
            .map(|entry| Recorded {
                message: entry
                    .envelope
                    .message::<M>()
                    .unwrap_or_else(|error| panic!("a message that {what} cannot be read: {error}\n{entry}")),
                transport: entry.transport.clone(),
                delay: entry.delay(),
                error: entry.error,
                envelope: entry.envelope,
            })
            .collect();
        Self { what, list, happened }
    }

    /// The only one.
    ///
    /// # Panics
    ///
    /// If there is none, or several.
    #[track_caller]
    pub fn only(mut self) -> Recorded<M> {
        self.assert_count(1);
        self.list.remove(0)
    }

    /// Checks how many there are.
    ///
    /// # Panics
    ///
    /// If there are more or fewer.
    #[track_caller]
    pub fn assert_count(&self, count: usize) {
        assert!(self.list.len() == count, "{}", self.unlike(&format!("{count} of type {}", M::TYPE)));
    }

    /// Checks that there are none.
    ///
    /// # Panics
    ///
    /// If there is any.
    #[track_caller]
    pub fn assert_none(&self) {
        self.assert_count(0);
    }

    /// Checks that at least one meets a condition.
    ///
    /// # Panics
    ///
    /// If there is none that `is_wanted`.
    #[track_caller]
    pub fn assert_any(&self, is_wanted: impl Fn(&Recorded<M>) -> bool) {
        let found = self.list.iter().any(is_wanted);
        assert!(found, "{}", self.unlike(&format!("one of type {} that meets the condition", M::TYPE)));
    }

    fn unlike(&self, expected: &str) -> String {
        let happened = if self.happened.is_empty() { "nothing" } else { &self.happened };
        format!("{}: expected {expected}, found {}. This is what happened:\n{happened}", self.what, self.list.len())
    }
}

impl<M> Deref for Messages<M> {
    type Target = [Recorded<M>];

    fn deref(&self) -> &[Recorded<M>] {
        &self.list
    }
}

impl<M> IntoIterator for Messages<M> {
    type Item = Recorded<M>;
    type IntoIter = std::vec::IntoIter<Recorded<M>>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<M> fmt::Debug for Messages<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").field("what", &self.what).field("count", &self.list.len()).finish_non_exhaustive()
    }
}

impl<M> Deref for Recorded<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

//! The notifications of a PostgreSQL server, and the tasks that wait for them.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::connection::notifier::Notifier;

/// The channels that the connection listens on, and the tasks that wait for a payload on a channel.
#[derive(Default)]
pub(crate) struct Channels {
    notifier: Notifier<(String, String)>,
    listening: Mutex<HashSet<String>>,
}

impl Channels {
    /// The count of all notifications with this payload.
    pub(crate) fn subscribe(&self, channel: &str, payload: &str) -> watch::Receiver<u64> {
        self.notifier.subscribe([(channel.to_owned(), payload.to_owned())])
    }

    /// Whether the connection listens on this channel.
    pub(crate) fn is_listening_on(&self, channel: &str) -> bool {
        self.listening().contains(channel)
    }

    /// Counts a notification.
    pub(super) fn notify(&self, channel: &str, payload: &str) {
        self.notifier.notify(&(channel.to_owned(), payload.to_owned()));
    }

    /// The connection listens on this channel from now on.
    pub(super) fn listen_on(&self, channel: &str) {
        self.listening().insert(channel.to_owned());
    }

    /// The connection is gone. Wakes all waiters: notifications are missed until it listens again.
    pub(super) fn disconnected(&self) {
        self.listening().clear();
        self.notifier.notify_all();
    }

    fn listening(&self) -> MutexGuard<'_, HashSet<String>> {
        // At worst, a panic while the lock is held loses a channel.
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Who is to be woken by which notification.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The queues of a server that somebody waits for. A bell counts how often it was rung, so that nobody misses what came
/// while he was not waiting.
#[derive(Default)]
pub(crate) struct Bells {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The channels the connection listens on.
    heard: HashSet<String>,
    /// By channel (the table) and payload (the queue).
    bells: HashMap<String, HashMap<String, watch::Sender<u64>>>,
}

impl Bells {
    /// The bell of a queue.
    pub(super) fn bell(&self, channel: &str, queue: &str) -> watch::Receiver<u64> {
        let mut state = self.state();
        let bells = state.bells.entry(channel.to_owned()).or_default();
        bells.entry(queue.to_owned()).or_default().subscribe()
    }

    /// Rings the bell of a queue, if it has one.
    pub(super) fn ring(&self, channel: &str, queue: &str) {
        if let Some(bell) = self.state().bells.get(channel).and_then(|bells| bells.get(queue)) {
            bell.send_modify(|rung| *rung += 1);
        }
    }

    /// Does the connection listen on this channel?
    pub(super) fn are_heard_on(&self, channel: &str) -> bool {
        self.state().heard.contains(channel)
    }

    /// The connection listens on this channel from now on.
    pub(super) fn hear(&self, channel: &str) {
        self.state().heard.insert(channel.to_owned());
    }

    /// The connection is gone. Everybody is woken, to see for himself what has come meanwhile.
    pub(super) fn lose(&self) {
        let mut state = self.state();
        state.heard.clear();
        for bell in state.bells.values().flat_map(HashMap::values) {
            bell.send_modify(|rung| *rung += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under the lock panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

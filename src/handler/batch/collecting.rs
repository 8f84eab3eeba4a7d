//! The messages that a worker collects for a handler of several at once.

use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::BatchOptions;
use super::places::Place;
use crate::handler::HandlerError;
use crate::message::Envelope;

/// A batch with messages of this size is complete, in bytes of their bodies.
const MAX_BYTES: usize = 8 << 20;

/// The messages of one worker that wait for a handler of several at once.
pub(super) struct Batch {
    options: BatchOptions,
    waiting: Mutex<Waiting>,
    /// Tells those that wait that nobody else comes.
    flush: Notify,
}

/// The batch that is not complete yet.
#[derive(Default)]
struct Waiting {
    /// How many batches were complete before.
    number: u64,
    /// How many messages have joined, those of earlier batches included.
    joined: u64,
    entries: Vec<Entry>,
    /// The size of their bodies.
    bytes: usize,
}

/// A message that waits, and where its result goes.
pub(super) struct Entry {
    id: u64,
    pub(super) message: Envelope,
    pub(super) answer: oneshot::Sender<Answered>,
}

/// What the handler says about a message, and the message's share of the time that it has taken for all of them.
pub(super) struct Answered {
    pub(super) result: Result<Value, HandlerError>,
    pub(super) took: Duration,
}

type Answer = oneshot::Receiver<Answered>;

/// What became of a message that has waited.
pub(super) enum Joined {
    /// Another one of its batch has had it handled.
    Answered(Result<Answered, oneshot::error::RecvError>),
    /// These are for the caller to have handled. The answer to its own message is there after that.
    Leads(Vec<Entry>, Answer),
}

impl Batch {
    pub(super) fn new(options: BatchOptions) -> Self {
        Self { options, waiting: Mutex::default(), flush: Notify::new() }
    }

    /// How many messages wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().entries.len()
    }

    /// How many messages are missing until it is complete; none if it has not begun.
    pub(super) fn missing(&self) -> usize {
        match self.waiting() {
            0 => 0,
            waiting => self.options.size.saturating_sub(waiting),
        }
    }

    /// Lets the messages that wait be handled now.
    pub(super) fn flush(&self) {
        self.flush.notify_waiters();
    }

    /// Adds a message, and waits until its batch is complete, and unless the caller is to have it handled, until it was. The
    /// message has no place meanwhile.
    pub(super) async fn join(&self, message: &Envelope, place: &Place) -> Joined {
        let (sender, mut answer) = oneshot::channel();
        // Before the message is there, so that no flush is missed.
        let flushed = self.flush.notified();
        let membership = {
            let mut waiting = self.lock();
            let (number, id) = (waiting.number, waiting.joined);
            waiting.joined += 1;
            waiting.bytes = waiting.bytes.saturating_add(message.body().len());
            waiting.entries.push(Entry { id, message: message.clone(), answer: sender });
            if waiting.entries.len() >= self.options.size || waiting.bytes >= MAX_BYTES {
                return Joined::Leads(waiting.complete(), answer);
            }
            // Made last: dropping it locks as well.
            Membership { batch: self, number, id }
        };
        let away = place.leave();
        let deadline = Instant::now() + self.options.wait;
        let known = tokio::select! {
            answer = &mut answer => Some(answer),
            () = sleep_until(deadline) => None,
            () = flushed => None,
        };
        let entries = if known.is_some() { Vec::new() } else { membership.complete() };
        let joined = match known {
            Some(answer) => Joined::Answered(answer),
            None if entries.is_empty() => Joined::Answered(answer.await),
            None => Joined::Leads(entries, answer),
        };
        away.come_back().await;
        joined
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Takes the batch as it is. The next message begins another one.
    fn complete(&mut self) -> Vec<Entry> {
        self.number += 1;
        self.bytes = 0;
        take(&mut self.entries)
    }
}

/// A message in a batch that is not complete. When this is dropped, the message waits no more.
struct Membership<'a> {
    batch: &'a Batch,
    number: u64,
    id: u64,
}

impl Membership<'_> {
    /// Takes the batch, unless another one of its messages has.
    fn complete(&self) -> Vec<Entry> {
        let mut waiting = self.batch.lock();
        if waiting.number == self.number { waiting.complete() } else { Vec::new() }
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        let mut waiting = self.batch.lock();
        if waiting.number == self.number
            && let Some(at) = waiting.entries.iter().position(|entry| entry.id == self.id)
        {
            let entry = waiting.entries.remove(at);
            waiting.bytes = waiting.bytes.saturating_sub(entry.message.body().len());
        }
    }
}

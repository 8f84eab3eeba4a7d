//! Records what happened to each message of a test.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::bus::{DispatchError, Middleware, Next};
use crate::message::{DelayStamp, Envelope, ErrorDetailsStamp, HandledNowStamp, ReceivedStamp, SentStamp};

/// How much of a message's body is shown, in characters.
const SHOWN: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    /// It was queued.
    Sent,
    /// All its handlers have handled it.
    Handled,
    /// A handler failed in a worker, which retries the message or gives it up.
    Tried,
    /// It failed during its dispatch, or a worker has given it up.
    Failed,
    /// It is in a queue.
    Waits,
}

/// A message, and what happened to it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) happened: Happened,
    pub(super) envelope: Envelope,
    /// The queue it was sent to or came from, if any.
    pub(super) transport: Option<String>,
    pub(super) error: Option<String>,
}

impl Entry {
    /// A message on a queue.
    pub(super) fn queued(envelope: Envelope, transport: &str) -> Self {
        Self { happened: Happened::Waits, envelope, transport: Some(transport.to_owned()), error: None }
    }

    /// A message that a failure transport keeps.
    pub(super) fn given_up(envelope: Envelope, transport: &str) -> Self {
        let error = envelope.last::<ErrorDetailsStamp>().map(|stamp| stamp.exception_message);
        Self { happened: Happened::Failed, envelope, transport: Some(transport.to_owned()), error }
    }

    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.envelope.last::<DelayStamp>().map_or(0, |stamp| stamp.delay))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(self.envelope.body());
        let shown: String = body.chars().take(SHOWN).collect();
        let more = if shown.len() < body.len() { "…" } else { "" };
        let happened = match self.happened {
            Happened::Sent => "sent",
            Happened::Handled => "handled",
            Happened::Tried => "tried",
            Happened::Failed => "failed",
            Happened::Waits => "waits",
        };
        write!(f, "{happened:8} {} {shown}{more}", self.envelope.message_type())?;
        if let Some(transport) = &self.transport {
            write!(f, " ({transport})")?;
        }
        if self.happened == Happened::Sent && !self.delay().is_zero() {
            write!(f, ", due after {} s", self.delay().as_secs_f64())?;
        }
        match &self.error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

/// Everything that happened so far, in order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: Mutex<Vec<Entry>>,
}

impl Journal {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // A panic while the lock is held leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, happened: Happened, envelope: &Envelope, transport: Option<String>, error: Option<String>) {
        self.entries().push(Entry { happened, envelope: envelope.clone(), transport, error });
    }

    pub(super) fn find(&self, happened: Happened) -> Vec<Entry> {
        self.entries().iter().filter(|entry| entry.happened == happened).cloned().collect()
    }

    pub(super) fn all(&self) -> Vec<Entry> {
        self.entries().clone()
    }

    /// How often messages have been handled, well or not.
    pub(super) fn tries(&self) -> usize {
        self.entries().iter().filter(|entry| entry.happened != Happened::Sent).count()
    }
}

/// The first middleware of all: it sees what the others and the handlers make of a message.
pub(crate) struct Recorder(pub(super) Arc<Journal>);

#[async_trait]
impl Middleware for Recorder {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let from = envelope.last::<ReceivedStamp>().map(|stamp| stamp.transport_name);
        let dispatched = envelope.clone();
        let result = next.run(envelope).await;
        let journal = &self.0;
        // With what other middleware has added.
        let as_sent = result.as_ref().unwrap_or(&dispatched);
        for stamp in sent(&result) {
            journal.add(Happened::Sent, as_sent, Some(stamp.queued_on), None);
        }
        match &result {
            Ok(envelope) => {
                let now = envelope.last::<HandledNowStamp>();
                if from.is_some() || now.is_some() {
                    let transport = from.or(now.and_then(|stamp| stamp.transport_name));
                    journal.add(Happened::Handled, envelope, transport, None);
                }
            }
            Err(error) => {
                let happened = if from.is_some() { Happened::Tried } else { Happened::Failed };
                journal.add(happened, &dispatched, from, Some(error.to_string()));
            }
        }
        result
    }
}

/// The queues that have taken a message, whatever became of it else.
fn sent(result: &Result<Envelope, DispatchError>) -> Vec<SentStamp> {
    match result {
        Ok(envelope) => envelope.all(),
        Err(DispatchError::Sending { sent, .. }) => sent.clone(),
        Err(DispatchError::Handling(failed)) => failed.envelope.all(),
        Err(_) => Vec::new(),
    }
}

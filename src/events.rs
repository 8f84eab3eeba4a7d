//! What happens to messages and workers, for code of the application that wants to know (Symfony's events).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Envelope, ErrorDetailsStamp, RedeliveryStamp, SentStamp};

/// Something that has happened. Passed to the functions that [`AppBuilder::on`](crate::AppBuilder::on) has added.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A message was stored on a transport by its dispatch (Symfony: `SendMessageToTransportsEvent`, which comes before that;
    /// middleware is called before).
    #[non_exhaustive]
    MessageSent {
        /// The message.
        envelope: &'a Envelope,
        /// Where it is.
        sent: &'a SentStamp,
    },
    /// A worker begins (`WorkerStartedEvent`).
    #[non_exhaustive]
    WorkerStarted {
        /// The transports that it consumes.
        transports: &'a [String],
    },
    /// A worker has finished a message, or has found that there is none (`WorkerRunningEvent`).
    #[non_exhaustive]
    WorkerRunning {
        /// Whether it waits for messages. This is said once, until there is a message again.
        is_idle: bool,
    },
    /// A message was received, and its handlers are called next (`WorkerMessageReceivedEvent`).
    #[non_exhaustive]
    MessageReceived {
        /// The message.
        message: &'a EventMessage,
    },
    /// All handlers have succeeded (`WorkerMessageHandledEvent`).
    #[non_exhaustive]
    MessageHandled {
        /// The message.
        message: &'a EventMessage,
    },
    /// An attempt has failed (`WorkerMessageFailedEvent`).
    #[non_exhaustive]
    MessageFailed {
        /// The message, as it was received.
        message: &'a EventMessage,
        /// What went wrong.
        error: &'a ErrorDetailsStamp,
        /// Whether it is tried again. Otherwise it is given up.
        will_retry: bool,
    },
    /// A message that has failed is stored, and will be tried again (`WorkerMessageRetriedEvent`).
    #[non_exhaustive]
    MessageRetried {
        /// The message, as it was received.
        message: &'a EventMessage,
        /// What went wrong.
        error: &'a ErrorDetailsStamp,
        /// How long it waits.
        delay: Duration,
    },
    /// A message that has failed for good is kept on a failure transport, or was discarded because there is none.
    #[non_exhaustive]
    MessageGivenUp {
        /// The message, as it was received.
        message: &'a EventMessage,
        /// What went wrong.
        error: &'a ErrorDetailsStamp,
        /// The failure transport that has it now. `None`: it was discarded.
        kept_on: Option<&'a str>,
    },
    /// A transport's rate limit is reached (`WorkerRateLimitedEvent`).
    #[non_exhaustive]
    RateLimited {
        /// The transport.
        transport: &'a str,
        /// How long nothing is received from it.
        wait: Duration,
    },
    /// A worker has ended (`WorkerStoppedEvent`).
    #[non_exhaustive]
    WorkerStopped {
        /// How many messages it has handled.
        handled: u64,
        /// How many attempts have failed.
        failed: u64,
        /// Why it has ended, as [`StopReason`](crate::StopReason) says it.
        reason: &'a str,
    },
}

/// A message that a worker has received.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EventMessage {
    /// Its id on its transport.
    pub id: String,
    /// The transport that it was received from.
    pub transport: String,
    /// The message with its stamps. Of a message that cannot be read, only the stamps.
    pub envelope: Envelope,
}

impl EventMessage {
    /// The number of this attempt to handle it, starting at 1.
    pub fn attempt(&self) -> u32 {
        self.envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count).saturating_add(1)
    }
}

type Listener = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// The functions that want to know.
#[derive(Clone, Default)]
pub(crate) struct Listeners(Vec<Listener>);

impl Listeners {
    pub(crate) fn add(&mut self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) {
        self.0.push(Arc::new(listener));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls all of them. One that panics is no reason to fail a message.
    pub(crate) fn tell(&self, event: &Event<'_>) {
        for listener in &self.0 {
            if catch_unwind(AssertUnwindSafe(|| listener(event))).is_err() {
                tracing::error!("a function that listens to events has panicked");
            }
        }
    }
}

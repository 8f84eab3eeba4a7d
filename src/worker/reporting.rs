//! Tells what happens: the application's functions, and the hooks of the configuration.

use std::time::Duration;

use super::StopReason;
use super::hooks::RunningHooks;
use crate::events::{Event, EventMessage, Listeners};
use crate::message::ErrorDetailsStamp;
use crate::transport::TransportError;

/// Who is told what a worker does.
pub(super) struct Reporter {
    listeners: Listeners,
    hooks: RunningHooks,
}

/// A failed message, and what becomes of it. It is told twice: when it has failed, and when it is stored.
pub(super) struct FailedMessage {
    pub(super) message: Box<EventMessage>,
    pub(super) error: ErrorDetailsStamp,
    pub(super) fate: Fate,
}

/// What becomes of a failed message.
pub(super) enum Fate {
    /// It is tried again after this time.
    Retried(Duration),
    /// It is kept on this failure transport.
    Kept(String),
    /// It is gone.
    Discarded,
}

impl Reporter {
    pub(super) fn new(listeners: Listeners, hooks: RunningHooks) -> Self {
        Self { listeners, hooks }
    }

    /// Whether anyone may want to know about messages.
    pub(super) fn wants_messages(&self) -> bool {
        !self.listeners.is_empty() || !self.hooks.is_empty()
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        self.listeners.tell(event);
        self.hooks.tell(event);
    }

    /// A message has failed, and is not stored yet.
    pub(super) fn failed(&self, failed: &FailedMessage) {
        let FailedMessage { message, error, fate } = failed;
        let will_retry = matches!(fate, Fate::Retried(_));
        self.tell(&Event::MessageFailed { message, error, will_retry });
    }

    /// What was to become of a failed message has happened.
    pub(super) fn settled(&self, failed: &FailedMessage) {
        let FailedMessage { message, error, fate } = failed;
        let kept_on = match fate {
            Fate::Retried(delay) => return self.tell(&Event::MessageRetried { message, error, delay: *delay }),
            Fate::Kept(transport) => Some(transport.as_str()),
            Fate::Discarded => None,
        };
        self.tell(&Event::MessageGivenUp { message, error, kept_on });
    }

    /// The worker ends.
    pub(super) fn stopped(&self, handled: u64, failed: u64, result: &Result<StopReason, TransportError>) {
        let reason = match result {
            Ok(reason) => reason.to_string(),
            Err(error) => error.to_string(),
        };
        self.tell(&Event::WorkerStopped { handled, failed, reason: &reason });
    }

    /// Waits for the last calls of hooks.
    pub(super) async fn finish(&self) {
        self.hooks.finish().await;
    }
}

//! Settles failed messages: stores them for a retry, moves them to the failure transport, or discards them. A message
//! leaves its queue only when it is stored elsewhere.

use std::sync::Arc;
use std::time::Duration;

use super::shrink::Shrinker;
use super::{Source, StopToken};
use crate::message::Encoded;
use crate::transport::{MessageId, PARKED_FOR, Sent, Transport, TransportError};

/// The pause between two attempts to store a message. It doubles with each attempt, from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What to do with a failed message. `as_received` is the message as its transport has it.
pub(super) enum FailureAction {
    /// Handle it again after `delay`, as `message`.
    Retry { message: Encoded, delay: Duration, as_received: Encoded },
    /// Move it to the failure transport, as `message`.
    MoveTo { message: Encoded, failure: Arc<Transport>, as_received: Encoded },
    /// Give it up.
    Discard,
}

/// The result of settling a message.
pub(super) struct Settled {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    /// Whether the action was carried out. Otherwise the message is still in flight.
    pub(super) stored: bool,
}

/// Carries out the action for a failed message. Tries again until that succeeds or the worker has to stop. Then the
/// message stays in flight, and is delivered again after `redeliver_timeout`.
///
/// A message that its destination cannot hold with everything that its sender wrote is parked in its queue, as it was
/// received: handling it again soon would only end the same way. A message that its queue cannot hold either (a broker
/// may deliver more than it accepts) is stored without its largest headers.
pub(super) async fn settle(source: Arc<Source>, id: MessageId, action: FailureAction, stop: StopToken) -> Settled {
    let settler = Settler { source: &source, id: &id, stop: &stop };
    let result = match &action {
        FailureAction::Retry { message, delay, as_received } => {
            settler.store_or_park(message, &Operation::Retry(*delay), as_received).await
        }
        FailureAction::MoveTo { message, failure, as_received } => {
            settler.store_or_park(message, &Operation::MoveTo(Arc::clone(failure)), as_received).await
        }
        FailureAction::Discard => settler.persist(&Encoded::default(), &Operation::Discard).await,
    };
    let stored = result.unwrap_or_else(|unstorable| {
        tracing::error!(%id, transport = source.name, error = %unstorable, "left in flight");
        false
    });
    Settled { source, id, stored }
}

/// Settles one message.
struct Settler<'a> {
    source: &'a Source,
    id: &'a MessageId,
    stop: &'a StopToken,
}

/// Whether an operation was carried out. An error means that the store cannot hold the message in any form.
type Stored = Result<bool, TransportError>;

/// How a message leaves the state of being in flight.
enum Operation {
    Retry(Duration),
    MoveTo(Arc<Transport>),
    Discard,
}

impl Settler<'_> {
    /// Tries the operation and parking with everything that the sender wrote, before any of it is left out.
    async fn store_or_park(&self, message: &Encoded, operation: &Operation, as_received: &Encoded) -> Stored {
        let (mut message, mut parked) = (Shrinker::new(message), Shrinker::new(as_received));
        loop {
            let unstorable = match self.store(&mut message, operation).await {
                Err(unstorable) => unstorable,
                stored => return stored,
            };
            match self.store(&mut parked, &Operation::Retry(PARKED_FOR)).await {
                Ok(stored) => {
                    if stored {
                        let (transport, hours) = (&self.source.name, PARKED_FOR.as_secs() / 3600);
                        tracing::error!(id = %self.id, transport, error = %unstorable, "parked on its transport for {hours} h");
                    }
                    return Ok(stored);
                }
                Err(unstorable) => {
                    if !(message.allow_dropping_headers() | parked.allow_dropping_headers()) {
                        return Err(unstorable);
                    }
                }
            }
        }
    }

    /// Stores a message as completely as the store can hold it.
    async fn store(&self, message: &mut Shrinker, operation: &Operation) -> Stored {
        loop {
            match self.persist(message.current(), operation).await {
                Err(error) => {
                    if !message.shrink() {
                        return Err(error);
                    }
                }
                Ok(stored) => {
                    if stored && !message.left_out().is_empty() {
                        tracing::warn!(
                            id = %self.id, transport = self.source.name, left_out = message.left_out().len(),
                            "stored without some of its stamps or headers, which were too large; X-Minutely-Left-Out names them"
                        );
                    }
                    return Ok(stored);
                }
            }
        }
    }

    /// Tries an operation until it succeeds or the worker has to stop. Fails only with [`TransportError::Unstorable`],
    /// which another attempt would not change.
    async fn persist(&self, message: &Encoded, operation: &Operation) -> Stored {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.attempt(message, operation).await {
                Ok(()) => return Ok(true),
                Err(error @ TransportError::Unstorable { .. }) => return Err(error),
                Err(error) => {
                    let name = match operation {
                        Operation::Retry(_) => "retrying",
                        Operation::MoveTo(_) => "moving to the failure transport",
                        Operation::Discard => "discarding",
                    };
                    tracing::error!(id = %self.id, transport = self.source.name, %error, "{name} failed");
                }
            }
            if !self.stop.may_retry() {
                tracing::error!(
                    id = %self.id, transport = self.source.name,
                    "left in flight; it is delivered again after redeliver_timeout"
                );
                return Ok(false);
            }
            tokio::time::sleep(backoff).await;
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
    }

    async fn attempt(&self, message: &Encoded, operation: &Operation) -> Result<(), TransportError> {
        let transport = &self.source.transport;
        match operation {
            Operation::Discard => self.source.receiver.reject(std::slice::from_ref(self.id)).await,
            Operation::Retry(delay) => match &transport.retrying {
                Some(retrying) => retrying.retry(self.id, message, *delay).await,
                None => self.send_then_reject(transport, message, *delay).await,
            },
            Operation::MoveTo(destination) => {
                let place = destination.moving.as_ref().map(|moving| moving.place());
                if let (Some(moving), Some(place)) = (&transport.moving, place)
                    && moving.move_to(self.id, message, &place).await?.is_some()
                {
                    return Ok(());
                }
                self.send_then_reject(destination, message, Duration::ZERO).await
            }
        }
    }

    /// For stores that cannot do it in one step. A crash in between duplicates the message, and never loses it.
    async fn send_then_reject(&self, to: &Transport, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        match to.sender.send(message, delay).await? {
            Sent::Queued { .. } => self.source.receiver.reject(std::slice::from_ref(self.id)).await,
            Sent::HandleNow { .. } => Err(TransportError::Unsupported {
                transport: to.name().to_owned(),
                what: "keep messages",
                why: "it handles them while they are dispatched",
            }),
        }
    }
}

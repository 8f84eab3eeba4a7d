//! Sees to it that what is to become of a message that failed is stored. Nothing here lets go of a message before it is
//! somewhere else.

use std::sync::Arc;
use std::time::Duration;

use super::forms::Forms;
use super::{Source, Stop};
use crate::message::Encoded;
use crate::transport::{MessageId, REST, Sent, Transport, TransportError};

/// The waits between attempts to store what becomes of a message.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What is to become of a message that failed. `as_received` is the message as its transport has it.
pub(super) enum Fate {
    /// It is handled again after `delay`, as `message`.
    Retry { message: Encoded, delay: Duration, as_received: Encoded },
    /// It goes to the failure transport, as `message`.
    MoveTo { message: Encoded, failure: Arc<Transport>, as_received: Encoded },
    /// It is given up.
    Discard,
}

/// A message whose fate was seen to, as far as that was possible.
pub(super) struct Settled {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    /// Whether it is stored. Otherwise the message is still in flight.
    pub(super) stored: bool,
}

/// Sees to a message's fate. Tries again until that succeeds, or the worker has to stop: then the message is still in
/// flight, and comes again after `redeliver_timeout`.
///
/// A message that its new place cannot hold with all that its sender wrote is parked where it is: it rests there as it was
/// received. Handling it again at once would only end here again. Where it cannot be stored again at all as it came (a
/// broker may deliver more than it takes back), it goes on without its largest headers.
pub(super) async fn settle(source: Arc<Source>, id: MessageId, fate: Fate, stop: Stop) -> Settled {
    let settling = Settling { source: &source, id: &id, stop: &stop };
    let result = match &fate {
        Fate::Retry { message, delay, as_received } => {
            settling.store_or_park(message, &Way::Retry(*delay), as_received).await
        }
        Fate::MoveTo { message, failure, as_received } => {
            settling.store_or_park(message, &Way::MoveTo(Arc::clone(failure)), as_received).await
        }
        Fate::Discard => settling.persist(&Encoded::default(), &Way::Discard).await,
    };
    let stored = result.unwrap_or_else(|unstorable| {
        tracing::error!(%id, transport = source.name, error = %unstorable, "left in flight");
        false
    });
    Settled { source, id, stored }
}

struct Settling<'a> {
    source: &'a Source,
    id: &'a MessageId,
    stop: &'a Stop,
}

/// Whether it was done; or the store can hold the message in no form.
type Stored = Result<bool, TransportError>;

/// How a message leaves where it is.
enum Way {
    Retry(Duration),
    MoveTo(Arc<Transport>),
    Discard,
}

impl Settling<'_> {
    /// Both places are tried with everything that the sender wrote, before any of it is left out.
    async fn store_or_park(&self, message: &Encoded, way: &Way, as_received: &Encoded) -> Stored {
        let (mut going, mut resting) = (Forms::of(message), Forms::of(as_received));
        loop {
            let unstorable = match self.store(&mut going, way).await {
                Err(unstorable) => unstorable,
                stored => return stored,
            };
            match self.store(&mut resting, &Way::Retry(REST)).await {
                Ok(stored) => {
                    if stored {
                        let (transport, hours) = (&self.source.name, REST.as_secs() / 3600);
                        tracing::error!(id = %self.id, transport, error = %unstorable, "parked on its transport for {hours} h");
                    }
                    return Ok(stored);
                }
                Err(unstorable) => {
                    if !(going.leave_out_headers() | resting.leave_out_headers()) {
                        return Err(unstorable);
                    }
                }
            }
        }
    }

    /// Stores a message in the fullest form that the store can hold: better in part than not at all.
    async fn store(&self, forms: &mut Forms, way: &Way) -> Stored {
        loop {
            match self.persist(forms.current(), way).await {
                Err(error) => {
                    if !forms.shrink() {
                        return Err(error);
                    }
                }
                Ok(stored) => {
                    if stored && !forms.left_out().is_empty() {
                        tracing::warn!(
                            id = %self.id, transport = self.source.name, left_out = forms.left_out().len(),
                            "stored without some of its stamps or headers, which were too large; X-Minutely-Left-Out names them"
                        );
                    }
                    return Ok(stored);
                }
            }
        }
    }

    /// Does something that must not be left undone. Fails with [`TransportError::Unstorable`] alone, which no further
    /// attempt would change.
    async fn persist(&self, form: &Encoded, way: &Way) -> Stored {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.attempt(form, way).await {
                Ok(()) => return Ok(true),
                Err(error @ TransportError::Unstorable { .. }) => return Err(error),
                Err(error) => {
                    let what = match way {
                        Way::Retry(_) => "retrying",
                        Way::MoveTo(_) => "moving to the failure transport",
                        Way::Discard => "discarding",
                    };
                    tracing::error!(id = %self.id, transport = self.source.name, %error, "{what} failed");
                }
            }
            if !self.stop.is_patient() {
                tracing::error!(id = %self.id, transport = self.source.name, "left in flight; it comes again after redeliver_timeout");
                return Ok(false);
            }
            tokio::time::sleep(backoff).await;
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
    }

    async fn attempt(&self, form: &Encoded, way: &Way) -> Result<(), TransportError> {
        let transport = &self.source.transport;
        match way {
            Way::Discard => self.source.receiver.reject(std::slice::from_ref(self.id)).await,
            Way::Retry(delay) => match &transport.retrying {
                Some(retrying) => retrying.retry(self.id, form, *delay).await,
                None => self.send_then_reject(transport, form, *delay).await,
            },
            Way::MoveTo(destination) => {
                let place = destination.moving.as_ref().map(|moving| moving.place());
                if let (Some(moving), Some(place)) = (&transport.moving, place)
                    && moving.move_to(self.id, form, &place).await?.is_some()
                {
                    return Ok(());
                }
                self.send_then_reject(destination, form, Duration::ZERO).await
            }
        }
    }

    /// Where a store cannot do it in one step: a crash in between leaves the message twice, and never not at all.
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

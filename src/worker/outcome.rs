//! Handles one message, and if that fails, decides what to do with it: retry it later, or move it to the failure
//! transport. [`super::settle`] carries that out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::reporting::{Fate, Reporter};
use super::settle::FailureAction;
use super::shrink::encode_damaged;
use super::strategy::FailedAttempt;
use super::{OnFailure, Source, StopToken};
use crate::bus::{Bus, DispatchError};
use crate::clock;
use crate::events::{Event, EventMessage};
use crate::handler::{Place, Verdict};
use crate::message::{
    DelayStamp, Encoded, Envelope, ErrorDetailsStamp, ReceivedStamp, RedeliveryStamp, SentToFailureTransportStamp,
    TransportMessageIdStamp,
};
use crate::serializer::{Serializer, SerializerError};
use crate::transport::{MessageId, PARKED_FOR, Received};

/// The delay before a message that nothing here can handle is tried again, if there is no failure transport.
const UNHANDLEABLE_DELAY: Duration = Duration::from_secs(3600);

/// Marks a message on a failure transport that has had all its retries there. From then on it is tried once and parked
/// again. A header and not a stamp: Symfony reads from the stamps how often a message was retried, and would delete one
/// that has no retry left.
const PARKED: &str = "X-Minutely-Parked";

/// How often in a row the message's handler was ended from outside. A header and not a stamp, for the same reason.
const INTERRUPTED: &str = "X-Minutely-Interrupted";

/// How many interruptions in a row use up no retry. A handler that is ended more often is ended for what it does: by a
/// watchdog, for example, that ends processes with too much memory.
const FREE_INTERRUPTIONS: u32 = 3;

/// If the worker is asked to stop this soon after a handler was ended from outside, both were stopped together.
const STOPPED_TOGETHER: Duration = Duration::from_secs(1);

pub(super) enum Outcome {
    /// The message is still in its store, and has to be acknowledged.
    Handled,
    /// A handler was called, and failed with this error.
    Failed(FailureAction, Box<ErrorDetailsStamp>),
    /// Nothing here can handle the message. The worker decides what to do with it.
    Unhandleable(Unhandleable),
}

/// A message that nothing here can handle, and why.
pub(super) struct Unhandleable {
    as_received: Encoded,
    class: String,
    pub(super) error: String,
}

impl Unhandleable {
    /// What those get who want to know about it.
    pub(super) fn told(
        &self,
        is_wanted: bool,
        source: &Source,
        id: &MessageId,
    ) -> Option<(Box<EventMessage>, ErrorDetailsStamp)> {
        let message = || {
            let read = source.serializers.decode(&source.name, &self.as_received).map(|(envelope, _)| envelope);
            event_message(source, id, read.unwrap_or_else(|_| Envelope::stamps_of(&self.as_received)))
        };
        is_wanted.then(|| (message(), details(&self.class, &self.error)))
    }
}

/// A message whose handling has ended.
pub(super) struct Finished {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    pub(super) took: Duration,
    pub(super) outcome: Outcome,
    /// The message, if anyone wants to know about it.
    pub(super) message: Option<Box<EventMessage>>,
}

pub(super) async fn handle(
    bus: Bus,
    source: Arc<Source>,
    received: Received,
    stop: StopToken,
    reporter: Arc<Reporter>,
    place: Arc<Place>,
) -> Finished {
    let id = received.id;
    let mut message = None;
    let outcome = match received.message {
        Err(damaged) => undecodable(encode_damaged(&damaged), damaged.error.to_string()),
        Ok(encoded) => match source.serializers.decode(&source.name, &encoded) {
            Err(error) => undecodable(encoded, error.to_string()),
            Ok((envelope, serializer)) => {
                if reporter.wants_messages() {
                    let received = event_message(&source, &id, envelope.clone());
                    reporter.tell(&Event::MessageReceived { message: &received });
                    message = Some(received);
                }
                Handling { source: &source, id: &id, stop: &stop, place: &place, serializer: &*serializer }
                    .handle(&bus, envelope, encoded)
                    .await
            }
        },
    };
    Finished { took: place.worked(), outcome, source, id, message }
}

fn event_message(source: &Source, id: &MessageId, envelope: Envelope) -> Box<EventMessage> {
    Box::new(EventMessage { id: id.0.clone(), transport: source.name.clone(), envelope })
}

/// What becomes of a failed message by this action.
pub(super) fn fate(source: &Source, action: &FailureAction) -> Fate {
    match action {
        // One that was parked before, and is retried now, has the header too.
        FailureAction::Retry { message, delay, .. } if *delay == PARKED_FOR && message.headers.contains_key(PARKED) => {
            Fate::Kept(source.name.clone())
        }
        FailureAction::Retry { delay, .. } => Fate::Retried(*delay),
        FailureAction::MoveTo { failure, .. } => Fate::Kept(failure.name().to_owned()),
        FailureAction::Discard => Fate::Discarded,
    }
}

fn undecodable(as_received: Encoded, error: String) -> Outcome {
    Outcome::Unhandleable(Unhandleable { as_received, class: "minutely::Undecodable".to_owned(), error })
}

/// What to do with a message that nothing here can handle, and that a retry does not help. Another application may be
/// able to handle it, so it is always kept: on the failure transport, or parked in its queue.
pub(super) fn action_for_unhandleable(source: &Source, id: &MessageId, message: Unhandleable) -> FailureAction {
    let Unhandleable { as_received, class, error } = message;
    tracing::error!(%id, transport = source.name, error, "cannot be handled");
    let known = Envelope::stamps_of(&as_received);
    let stamped = || {
        let details = details(&class, &error);
        let added = Envelope::from_json("", "");
        let is_known = known.last::<ErrorDetailsStamp>().as_ref() == Some(&details);
        if is_known { added } else { added.with(&details) }
    };
    let serializer = source.serializers.for_message(&source.name, &as_received);
    let stamp = |stamps: &Envelope| serializer.stamp(&as_received, stamps);
    match &source.on_failure {
        OnFailure::MoveTo(failure) => {
            let added = if origin(&known).is_some() { stamped() } else { with_origin(stamped(), source) };
            let message = stamp(&added.with(&RedeliveryStamp::now(0, clock::now().into())));
            FailureAction::MoveTo { message, failure: Arc::clone(failure), as_received }
        }
        OnFailure::Park => park(source, id, stamp(&stamped()), as_received),
        OnFailure::Discard => {
            let hours = UNHANDLEABLE_DELAY.as_secs() / 3600;
            tracing::warn!(%id, transport = source.name, "kept on its transport, because there is no failure transport; tried again in {hours} h");
            FailureAction::Retry { message: as_received.clone(), delay: UNHANDLEABLE_DELAY, as_received }
        }
    }
}

/// Parks a message that failed for good on the failure transport: it stays there, delayed.
fn park(source: &Source, id: &MessageId, mut message: Encoded, as_received: Encoded) -> FailureAction {
    let (name, hours) = (&source.name, PARKED_FOR.as_secs() / 3600);
    tracing::warn!(
        %id, transport = name,
        "parked on the failure transport; tried again in {hours} h, or by `consume {name}`"
    );
    message.headers.insert(PARKED, "1");
    FailureAction::Retry { message, delay: PARKED_FOR, as_received }
}

/// The handling of one message.
struct Handling<'a> {
    source: &'a Source,
    id: &'a MessageId,
    stop: &'a StopToken,
    place: &'a Arc<Place>,
    /// What has read the message. It writes it again.
    serializer: &'a dyn Serializer,
}

impl Handling<'_> {
    /// `as_received` is the message as its transport has it.
    async fn handle(&self, bus: &Bus, envelope: Envelope, as_received: Encoded) -> Outcome {
        let mut received = envelope
            .clone()
            .without::<TransportMessageIdStamp>()
            .with(&TransportMessageIdStamp { id: id_value(self.id) })
            .with(&ReceivedStamp { transport_name: self.source.name.clone() });
        // To its handlers, one that had failed for good comes from its own transport (as Symfony's
        // `FailedMessageProcessingMiddleware` has it). To the worker it comes from where it was received.
        if let Some(transport_name) = origin(&envelope) {
            received.add(&ReceivedStamp { transport_name });
        }
        let message_type = envelope.message_type().to_owned();
        match bus.handle_received(received, self.stop.cancellation(), Arc::clone(self.place)).await {
            Ok(_) => {
                tracing::debug!(id = %self.id, message_type, transport = self.source.name, "handled");
                Outcome::Handled
            }
            Err(DispatchError::Handling(failed)) => {
                let failed = *failed;
                if failed.stops_worker() {
                    self.stop.cancellation().want_stop();
                }
                let details = ErrorDetailsStamp {
                    exception_class: failed.class().to_owned(),
                    exception_code: failed.code().into(),
                    exception_message: failed.message(),
                    flatten_exception: serde_json::Value::Null,
                };
                let verdict = failed.verdict();
                if let Some(action) = self.retry_for_free(&failed.envelope, verdict, &details, &as_received).await {
                    return Outcome::Failed(action, Box::new(details));
                }
                let action = self.on_failure(failed.envelope, verdict, details.clone(), as_received);
                Outcome::Failed(action, Box::new(details))
            }
            Err(error) if error.is_unhandleable() => {
                let (class, error) = (error.class().to_owned(), error.to_string());
                Outcome::Unhandleable(Unhandleable { as_received, class, error })
            }
            Err(error) => {
                let details = details(error.class(), &error.to_string());
                let action = self.on_failure(envelope, error.verdict(), details.clone(), as_received);
                Outcome::Failed(action, Box::new(details))
            }
        }
    }

    /// A retry that does not count, for a handler that was ended from outside or could not start: that is not the
    /// message's fault. `None` if the attempt counts.
    async fn retry_for_free(
        &self,
        envelope: &Envelope,
        verdict: Verdict,
        details: &ErrorDetailsStamp,
        as_received: &Encoded,
    ) -> Option<FailureAction> {
        if !matches!(verdict, Verdict::Interrupted { .. } | Verdict::NotBegun) {
            return None;
        }
        let mut stop = self.stop.clone();
        let is_stopping = timeout(STOPPED_TOGETHER, stop.wait()).await.is_ok();
        let (retries, before) = (retries(envelope), interruptions(envelope));
        let (delay, interruptions) = match verdict {
            _ if is_stopping => (Duration::ZERO, before),
            Verdict::NotBegun => (self.source.retry.delay_by_numbers(retries), before),
            Verdict::Interrupted { if_stopping: false } if before < FREE_INTERRUPTIONS => {
                (self.source.retry.delay_by_numbers(retries.max(before)), before + 1)
            }
            _ => return None,
        };
        tracing::warn!(
            id = %self.id, message_type = envelope.message_type(), transport = self.source.name,
            error = details.exception_message,
            "interrupted; tried again in {:.1} s without using up a retry", delay.as_secs_f64()
        );
        let message = with_interruptions(self.serializer.encode(envelope).ok()?, interruptions);
        Some(FailureAction::Retry { message, delay, as_received: as_received.clone() })
    }

    /// What to do after a failure that counts: retry, or give up.
    fn on_failure(
        &self,
        envelope: Envelope,
        verdict: Verdict,
        details: ErrorDetailsStamp,
        as_received: Encoded,
    ) -> FailureAction {
        let retries = retries(&envelope);
        // After the free interruptions, the delays continue to grow from theirs.
        let (interruptions, delay_step) = match verdict {
            Verdict::Interrupted { if_stopping: false } => {
                (interruptions(&envelope).saturating_add(1), retries.saturating_add(FREE_INTERRUPTIONS))
            }
            _ => (0, retries),
        };
        let was_parked = self.is_failure_transport() && envelope.headers().contains_key(PARKED);
        let attempt = FailedAttempt { envelope: &envelope, transport: &self.source.name, retries, error: &details };
        let retry = &self.source.retry;
        let delay = match verdict {
            Verdict::RetryAlways(delay) => Some(delay.unwrap_or_else(|| retry.delay(&attempt, retries))),
            Verdict::Retry | Verdict::Skipped | Verdict::Interrupted { .. }
                if !was_parked && retry.is_retryable(&attempt) =>
            {
                Some(retry.delay(&attempt, delay_step))
            }
            Verdict::Retry
            | Verdict::Skipped
            | Verdict::Interrupted { .. }
            | Verdict::NotBegun
            | Verdict::Unrecoverable => None,
        };
        let message_type = envelope.message_type().to_owned();
        let error = details.exception_message.clone();
        let envelope = with_details(envelope, details);
        let Some(delay) = delay else {
            tracing::error!(id = %self.id, message_type, transport = self.source.name, retries, error, "failed for good");
            return self.give_up(envelope, as_received);
        };
        tracing::warn!(
            id = %self.id, message_type, transport = self.source.name, error,
            "failed; retry {} in {:.1} s", retries.saturating_add(1), delay.as_secs_f64()
        );
        let message = match self.serializer.encode(&with_redelivery(envelope, retries.saturating_add(1), delay)) {
            Ok(message) => with_interruptions(message, interruptions),
            Err(error) => return self.unwritable(&error, as_received),
        };
        FailureAction::Retry { message, delay, as_received }
    }

    /// What to do when there is no retry left.
    fn give_up(&self, envelope: Envelope, as_received: Encoded) -> FailureAction {
        match &self.source.on_failure {
            OnFailure::MoveTo(failure) => {
                let envelope = with_origin(with_redelivery(envelope, 0, Duration::ZERO), self.source);
                let message = match self.serializer.encode(&envelope) {
                    Ok(message) => with_interruptions(message, 0),
                    Err(error) => return self.unwritable(&error, as_received),
                };
                FailureAction::MoveTo { message, failure: Arc::clone(failure), as_received }
            }
            OnFailure::Park => {
                let message = match self.serializer.encode(&with_redelivery(envelope, 0, PARKED_FOR)) {
                    Ok(message) => with_interruptions(message, 0),
                    Err(error) => return self.unwritable(&error, as_received),
                };
                park(self.source, self.id, message, as_received)
            }
            OnFailure::Discard => {
                tracing::error!(
                    id = %self.id, message_type = envelope.message_type(), transport = self.source.name,
                    "discarded, because its transport has no failure_transport"
                );
                FailureAction::Discard
            }
        }
    }

    /// What to do with a message that its serializer cannot write again: it is kept as it was received.
    fn unwritable(&self, error: &SerializerError, as_received: Encoded) -> FailureAction {
        let error = format!("it cannot be written again: {error}");
        let message = Unhandleable { as_received, class: "minutely::Unwritable".to_owned(), error };
        action_for_unhandleable(self.source, self.id, message)
    }

    fn is_failure_transport(&self) -> bool {
        matches!(self.source.on_failure, OnFailure::Park)
    }
}

/// The transport on which a message failed for good.
fn origin(envelope: &Envelope) -> Option<String> {
    let origin = envelope.last::<SentToFailureTransportStamp>().map(|stamp| stamp.original_receiver_name);
    // No transport has such a name, and it could not be passed to a program.
    origin.filter(|name| !name.is_empty() && !name.contains('\0'))
}

/// Says where a message failed for good, unless it says so already: one that fails again elsewhere keeps its origin.
fn with_origin(envelope: Envelope, source: &Source) -> Envelope {
    match origin(&envelope) {
        Some(_) => envelope,
        None => envelope.with(&SentToFailureTransportStamp { original_receiver_name: source.name.clone() }),
    }
}

fn retries(envelope: &Envelope) -> u32 {
    envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count)
}

/// How often in a row the message's handler was ended from outside.
fn interruptions(envelope: &Envelope) -> u32 {
    envelope.headers().get(INTERRUPTED).and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn with_interruptions(mut message: Encoded, count: u32) -> Encoded {
    match count {
        0 => message.headers.remove(INTERRUPTED),
        count => message.headers.insert(INTERRUPTED, count.to_string()),
    };
    message
}

fn with_redelivery(envelope: Envelope, retries: u32, delay: Duration) -> Envelope {
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    envelope.with(&DelayStamp { delay }).with(&RedeliveryStamp::now(retries, clock::now().into()))
}

/// Adds the error, unless it is the same as the last one (as Symfony does).
fn with_details(envelope: Envelope, details: ErrorDetailsStamp) -> Envelope {
    if envelope.last::<ErrorDetailsStamp>().as_ref() == Some(&details) { envelope } else { envelope.with(&details) }
}

fn details(class: &str, message: &str) -> ErrorDetailsStamp {
    ErrorDetailsStamp {
        exception_class: class.to_owned(),
        exception_code: 0.into(),
        exception_message: message.to_owned(),
        flatten_exception: serde_json::Value::Null,
    }
}

fn id_value(id: &MessageId) -> serde_json::Value {
    id.0.parse::<i64>().map_or_else(|_| id.0.clone().into(), Into::into)
}

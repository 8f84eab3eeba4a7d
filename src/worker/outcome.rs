//! Has one message handled, and decides what is to become of it when that fails: retried later, or put where failed
//! messages are kept. [`super::settle`] does it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::forms::repacked;
use super::settle::Fate;
use super::{OnFailure, Source, Stop, waiting_time};
use crate::bus::{Bus, DispatchError};
use crate::clock;
use crate::handler::Verdict;
use crate::message::{
    DelayStamp, Encoded, Envelope, ErrorDetailsStamp, ReceivedStamp, RedeliveryStamp, SentToFailureTransportStamp,
    TransportMessageIdStamp,
};
use crate::transport::{MessageId, REST, Received};

/// How long a message waits that nobody can handle and that has no failure transport to go to, before it is tried again.
const UNHANDLED_REST: Duration = Duration::from_secs(3600);

/// Marks a message on a failure transport that has had all its retries there: from then on it is tried once and rests
/// again. No stamp: those say to Symfony how often it was retried, and Symfony would delete what has no retry left.
const RESTED: &str = "X-Minutely-Rested";

/// On a message whose handler was ended from outside: how often in a row. No stamp, for the same reason.
const INTERRUPTED: &str = "X-Minutely-Interrupted";

/// So many interruptions in a row use up no retry. Whoever ends a handler more often than that, ends it for what it does:
/// a watchdog, for example, that ends what takes too much memory.
const FREE_INTERRUPTIONS: u32 = 3;

/// For how long a program that was ended from outside is believed to have been so together with its worker, which hears
/// of it a moment later.
const STOPPED_TOGETHER: Duration = Duration::from_secs(1);

pub(super) enum Outcome {
    /// It is still in its store, to be acknowledged.
    Handled,
    /// A handler was called, and failed; what is to become of it.
    Failed(Fate),
    /// Nobody here can handle it. What is to become of it is for the worker to decide.
    Unhandleable(Unhandleable),
}

/// A message that nobody here can handle, and why.
pub(super) struct Unhandleable {
    as_received: Encoded,
    class: &'static str,
    pub(super) error: String,
}

/// A message that was handled, or was not.
pub(super) struct Finished {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    pub(super) took: Duration,
    pub(super) outcome: Outcome,
}

pub(super) async fn handle(bus: Bus, source: Arc<Source>, received: Received, stop: Stop) -> Finished {
    let started = Instant::now();
    let id = received.id;
    let case = Case { source: &source, id: &id, stop: &stop };
    let outcome = match received.message {
        Err(damaged) => undecodable(repacked(&damaged), damaged.error.to_string()),
        Ok(encoded) => match Envelope::decode(&encoded) {
            Err(error) => undecodable(encoded, error.to_string()),
            Ok(envelope) => case.handle(&bus, envelope, encoded).await,
        },
    };
    Finished { took: started.elapsed(), outcome, source, id }
}

fn undecodable(as_received: Encoded, error: String) -> Outcome {
    Outcome::Unhandleable(Unhandleable { as_received, class: "minutely::Undecodable", error })
}

/// Where a message goes that nobody here can handle, and that no retry makes better. Somebody else may handle it, so it is
/// kept in any case: on the failure transport, or at rest where it is.
pub(super) fn put_away(source: &Source, id: &MessageId, message: Unhandleable) -> Fate {
    let Unhandleable { as_received, class, error } = message;
    tracing::error!(%id, transport = source.name, error, "cannot be handled");
    let mut message = as_received.clone();
    match &source.on_failure {
        OnFailure::SendTo(failure) => {
            let stamp = SentToFailureTransportStamp { original_receiver_name: source.name.clone() };
            let stamps = Envelope::from_json("", "").with(&stamp).with(&details(class, &error));
            message.headers.extend(stamps.headers().clone());
            Fate::MoveTo { message, failure: Arc::clone(failure), as_received }
        }
        OnFailure::Stay => rest(source, id, message, as_received),
        OnFailure::Discard => {
            let hours = UNHANDLED_REST.as_secs() / 3600;
            tracing::warn!(%id, transport = source.name, "kept on its transport; tried again in {hours} h");
            Fate::Retry { message, delay: UNHANDLED_REST, as_received }
        }
    }
}

/// What failed for good on the failure transport stays there, out of the way.
fn rest(source: &Source, id: &MessageId, mut message: Encoded, as_received: Encoded) -> Fate {
    let (name, hours) = (&source.name, REST.as_secs() / 3600);
    tracing::warn!(
        %id, transport = name,
        "rests on the failure transport; tried again in {hours} h, or by `minutely consume {name}`"
    );
    message.headers.insert(RESTED.to_owned(), "1".to_owned());
    Fate::Retry { message, delay: REST, as_received }
}

/// A message in hand.
struct Case<'a> {
    source: &'a Source,
    id: &'a MessageId,
    stop: &'a Stop,
}

impl Case<'_> {
    /// `as_received` is the message in the form in which its transport has it.
    async fn handle(&self, bus: &Bus, envelope: Envelope, as_received: Encoded) -> Outcome {
        let received = envelope
            .clone()
            .without::<TransportMessageIdStamp>()
            .with(&TransportMessageIdStamp { id: id_value(self.id) })
            .with(&ReceivedStamp { transport_name: self.source.name.clone() });
        let message_type = envelope.message_type().to_owned();
        match bus.handle_received(received, self.stop.cancellation()).await {
            Ok(_) => {
                tracing::debug!(id = %self.id, message_type, transport = self.source.name, "handled");
                Outcome::Handled
            }
            Err(DispatchError::Handling(failed)) => {
                let failed = *failed;
                let details = ErrorDetailsStamp {
                    exception_class: failed.class().to_owned(),
                    exception_code: failed.code().into(),
                    exception_message: failed.message(),
                    flatten_exception: serde_json::Value::Null,
                };
                let verdict = failed.verdict();
                if let Some(fate) = self.again_for_free(&failed.envelope, verdict, &details, &as_received).await {
                    return Outcome::Failed(fate);
                }
                Outcome::Failed(self.failed(failed.envelope, verdict, details, as_received))
            }
            Err(error @ DispatchError::NoHandler { .. }) => {
                let (class, error) = ("minutely::NoHandler", error.to_string());
                Outcome::Unhandleable(Unhandleable { as_received, class, error })
            }
            Err(error) => {
                let details = details("minutely::DispatchError", &error.to_string());
                Outcome::Failed(self.failed(envelope, Verdict::Retry, details, as_received))
            }
        }
    }

    /// The handler was ended from outside or could not begin, which is not the message's fault: the try does not count.
    /// None where it counts all the same.
    async fn again_for_free(
        &self,
        envelope: &Envelope,
        verdict: Verdict,
        details: &ErrorDetailsStamp,
        as_received: &Encoded,
    ) -> Option<Fate> {
        if !matches!(verdict, Verdict::Interrupted { .. } | Verdict::NotBegun) {
            return None;
        }
        let mut stop = self.stop.clone();
        let stopping = timeout(STOPPED_TOGETHER, stop.wait()).await.is_ok();
        let (retries, before) = (retries(envelope), interruptions(envelope));
        let (delay, interruptions) = match verdict {
            _ if stopping => (Duration::ZERO, before),
            Verdict::NotBegun => (self.usual_wait(retries), before),
            Verdict::Interrupted { if_stopping: false } if before < FREE_INTERRUPTIONS => {
                (self.usual_wait(retries.max(before)), before + 1)
            }
            _ => return None,
        };
        tracing::warn!(
            id = %self.id, message_type = envelope.message_type(), transport = self.source.name,
            error = details.exception_message,
            "interrupted; handled again in {:.1} s without using up a retry", delay.as_secs_f64()
        );
        let message = with_interruptions(envelope.encode(), interruptions);
        Some(Fate::Retry { message, delay, as_received: as_received.clone() })
    }

    /// A handler failed: retry, or give up.
    fn failed(&self, envelope: Envelope, verdict: Verdict, details: ErrorDetailsStamp, as_received: Encoded) -> Fate {
        let retries = retries(&envelope);
        // After the interruptions that were free, with waits that go on from theirs.
        let (interruptions, waits) = match verdict {
            Verdict::Interrupted { if_stopping: false } => {
                (interruptions(&envelope).saturating_add(1), retries.saturating_add(FREE_INTERRUPTIONS))
            }
            _ => (0, retries),
        };
        let has_rested = self.stays() && envelope.headers().contains_key(RESTED);
        let delay = match verdict {
            Verdict::RetryAlways(delay) => Some(delay.unwrap_or_else(|| self.usual_wait(retries))),
            Verdict::Retry | Verdict::Interrupted { .. } if retries < self.source.retry.max_retries && !has_rested => {
                Some(self.usual_wait(waits))
            }
            Verdict::Retry | Verdict::Interrupted { .. } | Verdict::NotBegun | Verdict::Unrecoverable => None,
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
        let message = again(envelope, retries.saturating_add(1), delay).encode();
        let message = with_interruptions(message, interruptions);
        Fate::Retry { message, delay, as_received }
    }

    /// No further retry.
    fn give_up(&self, envelope: Envelope, as_received: Encoded) -> Fate {
        match &self.source.on_failure {
            OnFailure::SendTo(failure) => {
                let stamp = SentToFailureTransportStamp { original_receiver_name: self.source.name.clone() };
                let message = with_interruptions(again(envelope, 0, Duration::ZERO).with(&stamp).encode(), 0);
                Fate::MoveTo { message, failure: Arc::clone(failure), as_received }
            }
            OnFailure::Stay => {
                let message = with_interruptions(again(envelope, 0, REST).encode(), 0);
                rest(self.source, self.id, message, as_received)
            }
            OnFailure::Discard => {
                tracing::error!(
                    id = %self.id, message_type = envelope.message_type(), transport = self.source.name,
                    "discarded, because its transport has no failure_transport"
                );
                Fate::Discard
            }
        }
    }

    fn stays(&self) -> bool {
        matches!(self.source.on_failure, OnFailure::Stay)
    }

    fn usual_wait(&self, retries: u32) -> Duration {
        waiting_time(&self.source.retry, retries, fastrand::f64())
    }
}

fn retries(envelope: &Envelope) -> u32 {
    envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count)
}

/// How often in a row its handler has been ended from outside.
fn interruptions(envelope: &Envelope) -> u32 {
    envelope.headers().get(INTERRUPTED).and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn with_interruptions(mut message: Encoded, count: u32) -> Encoded {
    match count {
        0 => message.headers.shift_remove(INTERRUPTED),
        count => message.headers.insert(INTERRUPTED.to_owned(), count.to_string()),
    };
    message
}

fn again(envelope: Envelope, retries: u32, delay: Duration) -> Envelope {
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    envelope.with(&DelayStamp { delay }).with(&RedeliveryStamp::now(retries, clock::now().into()))
}

/// Adds what went wrong, unless it is what went wrong the last time (as Symfony does).
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

//! Has one message handled, and sees to what becomes of it when that fails: retried later, or put where failed messages
//! are kept. Nothing here lets go of a message before it is somewhere else.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::Utc;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use tokio::time::Instant;

use super::{OnFailure, Source, Stop, waiting_time};
use crate::bus::{Bus, DispatchError};
use crate::handler::Verdict;
use crate::message::{
    DelayStamp, Encoded, Envelope, ErrorDetailsStamp, Headers, ReceivedStamp, RedeliveryStamp,
    SentToFailureTransportStamp, TransportMessageIdStamp,
};
use crate::transport::{Damaged, MessageId, Received, Sent, Transport, TransportError};

/// How long a message rests that nobody can handle and that has no failure transport to go to, before it is tried again.
const REST: Duration = Duration::from_secs(3600);

/// What is encoded in them: what is not text, and the sign that says so.
const RAW: &AsciiSet = &CONTROLS.add(b'%');

/// Holds the headers of a message whose headers cannot be read, as they were stored but for percent-encoding.
const DAMAGED_HEADERS: &str = "X-Minutely-Damaged-Headers";

/// Says that a body could not be stored as it was, and is percent-encoded.
const DAMAGED_BODY: &str = "X-Minutely-Damaged-Body";

/// The waits between attempts to store what becomes of a message.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Handled,
    Failed,
}

/// A message that is done with, for this time.
pub(super) struct Finished {
    pub(super) source: Arc<Source>,
    pub(super) id: MessageId,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    /// Whether it is still in its store, to be acknowledged.
    pub(super) to_acknowledge: bool,
    /// Whether what is to become of it is stored.
    pub(super) settled: bool,
}

pub(super) async fn handle(bus: Bus, source: Arc<Source>, received: Received, stop: Stop) -> Finished {
    let started = Instant::now();
    let id = received.id.clone();
    let case = Case { source: &source, id: &id, stop: &stop, settled: AtomicBool::new(false) };
    let outcome = match received.message {
        Err(damaged) => case.undecodable(repack(&damaged), &damaged.error.to_string()).await,
        Ok(encoded) => match Envelope::decode(&encoded) {
            Err(error) => case.undecodable(encoded, &error.to_string()).await,
            Ok(envelope) => case.handle(&bus, envelope).await,
        },
    };
    let settled = case.settled.load(Ordering::Relaxed);
    Finished { outcome, took: started.elapsed(), to_acknowledge: outcome == Outcome::Handled, settled, source, id }
}

/// A message in hand.
struct Case<'a> {
    source: &'a Source,
    id: &'a MessageId,
    stop: &'a Stop,
    settled: AtomicBool,
}

impl Case<'_> {
    async fn handle(&self, bus: &Bus, envelope: Envelope) -> Outcome {
        let received = envelope
            .clone()
            .without::<TransportMessageIdStamp>()
            .with(&TransportMessageIdStamp { id: id_value(self.id) })
            .with(&ReceivedStamp { transport_name: self.source.name.clone() });
        let message_type = envelope.message_type().to_owned();
        match bus.handle_received(received).await {
            Ok(_) => {
                tracing::debug!(id = %self.id, message_type, transport = self.source.name, "handled");
                return Outcome::Handled;
            }
            Err(DispatchError::Handling(failed)) => {
                let failed = *failed;
                let details = ErrorDetailsStamp {
                    exception_class: failed.class().to_owned(),
                    exception_code: failed.code().into(),
                    exception_message: failed.message(),
                    flatten_exception: serde_json::Value::Null,
                };
                self.failed(failed.envelope.clone(), failed.verdict(), details).await;
            }
            Err(error @ DispatchError::NoHandler { .. }) => {
                self.unhandleable(envelope.encode(), "minutely::NoHandler", &error.to_string()).await;
            }
            Err(error) => {
                let details = details("minutely::DispatchError", &error.to_string());
                self.failed(envelope, Verdict::Retry, details).await;
            }
        }
        Outcome::Failed
    }

    /// A handler failed: retry, or give up.
    async fn failed(&self, envelope: Envelope, verdict: Verdict, details: ErrorDetailsStamp) {
        let retries = envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count);
        let usual = || waiting_time(&self.source.retry, retries, fastrand::f64());
        let delay = match verdict {
            Verdict::RetryAlways(delay) => Some(delay.unwrap_or_else(usual)),
            Verdict::Retry if retries < self.source.retry.max_retries => Some(usual()),
            Verdict::Retry | Verdict::Unrecoverable => None,
        };
        let message_type = envelope.message_type().to_owned();
        let error = details.exception_message.clone();
        let envelope = with_details(envelope, details);
        let Some(delay) = delay else {
            tracing::error!(id = %self.id, message_type, transport = self.source.name, retries, error, "failed for good");
            return self.give_up(envelope, retries).await;
        };
        tracing::warn!(
            id = %self.id, message_type, transport = self.source.name, error,
            "failed; retry {} in {:.1} s", retries.saturating_add(1), delay.as_secs_f64()
        );
        self.retry(&again(envelope, retries.saturating_add(1), delay).encode(), delay).await;
    }

    /// No further retry.
    async fn give_up(&self, envelope: Envelope, retries: u32) {
        match &self.source.on_failure {
            OnFailure::SendTo(failure) => {
                let stamp = SentToFailureTransportStamp { original_receiver_name: self.source.name.clone() };
                let encoded = again(envelope, 0, Duration::ZERO).with(&stamp).encode();
                self.move_to(failure, &encoded).await;
            }
            OnFailure::Stay => {
                let delay = waiting_time(&self.source.retry, retries, fastrand::f64()).min(REST);
                self.retry(&again(envelope, retries.saturating_add(1), delay).encode(), delay).await;
            }
            OnFailure::Discard => {
                tracing::error!(
                    id = %self.id, message_type = envelope.message_type(), transport = self.source.name,
                    "discarded, because its transport has no failure_transport"
                );
                self.persist("discarding", || self.source.transport.reject(std::slice::from_ref(self.id))).await;
            }
        }
    }

    async fn undecodable(&self, encoded: Encoded, error: &str) -> Outcome {
        self.unhandleable(encoded, "minutely::Undecodable", error).await;
        Outcome::Failed
    }

    /// Nobody here can handle the message, and no retry changes that. Somebody else may, so it is kept in any case.
    async fn unhandleable(&self, mut encoded: Encoded, class: &str, error: &str) {
        tracing::error!(id = %self.id, transport = self.source.name, error, "cannot be handled");
        if let OnFailure::SendTo(failure) = &self.source.on_failure {
            let stamp = SentToFailureTransportStamp { original_receiver_name: self.source.name.clone() };
            let stamps = Envelope::from_json("", "").with(&stamp).with(&details(class, error));
            encoded.headers.extend(stamps.headers().clone());
            self.move_to(failure, &encoded).await;
        } else {
            tracing::warn!(id = %self.id, transport = self.source.name, "kept on its transport for {} s", REST.as_secs());
            self.retry(&encoded, REST).await;
        }
    }

    async fn retry(&self, message: &Encoded, delay: Duration) {
        let transport = &self.source.transport;
        match transport.moving() {
            Some(moving) => self.persist("retrying", || moving.retry(self.id, message, delay)).await,
            None => {
                let again = || async {
                    transport.send_again(self.id, message, delay).await?;
                    transport.reject(std::slice::from_ref(self.id)).await
                };
                self.persist("retrying", again).await;
            }
        }
    }

    async fn move_to(&self, destination: &Arc<dyn Transport>, message: &Encoded) {
        self.persist("moving to the failure transport", || async {
            match self.try_to_move(destination, message).await {
                // Better in another form than not at all.
                Err(TransportError::Unstorable { .. }) => self.try_to_move(destination, &as_text(message)).await,
                result => result,
            }
        })
        .await;
    }

    async fn try_to_move(&self, destination: &Arc<dyn Transport>, message: &Encoded) -> Result<(), TransportError> {
        let transport = &self.source.transport;
        if let (Some(moving), Some(place)) = (transport.moving(), destination.moving().map(|to| to.place()))
            && moving.move_to(self.id, message, &place).await?.is_some()
        {
            return Ok(());
        }
        send_then_reject(transport, self.id, destination, message, Duration::ZERO).await
    }

    /// Does something that must not be left undone; tries again until it succeeds, or the worker has to stop. Then the
    /// message is still in flight, and comes again after `redeliver_timeout`.
    async fn persist<F: Future<Output = Result<(), TransportError>>>(&self, what: &str, attempt: impl Fn() -> F) {
        let mut backoff = FIRST_BACKOFF;
        while let Err(error) = attempt().await {
            tracing::error!(id = %self.id, transport = self.source.name, %error, "{what} failed");
            if !self.stop.is_patient() {
                tracing::error!(id = %self.id, transport = self.source.name, "left in flight; it comes again after redeliver_timeout");
                return;
            }
            tokio::time::sleep(backoff).await;
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
        self.settled.store(true, Ordering::Relaxed);
    }
}

/// Where a store cannot move messages itself: a crash in between leaves the message twice, and never not at all.
async fn send_then_reject(
    from: &Arc<dyn Transport>,
    id: &MessageId,
    to: &Arc<dyn Transport>,
    message: &Encoded,
    delay: Duration,
) -> Result<(), TransportError> {
    match to.send(message, delay).await? {
        Sent::Queued { .. } => from.reject(std::slice::from_ref(id)).await,
        Sent::HandleNow { .. } => Err(TransportError::Unsupported {
            transport: to.name().to_owned(),
            what: "keep messages",
            why: "it handles them while they are dispatched",
        }),
    }
}

fn again(envelope: Envelope, retries: u32, delay: Duration) -> Envelope {
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    envelope.with(&DelayStamp { delay }).with(&RedeliveryStamp::now(retries, Utc::now()))
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

/// A damaged message in a form that can be stored again, with nothing lost.
fn repack(damaged: &Damaged) -> Encoded {
    let raw = percent_encode(&damaged.headers, RAW).to_string();
    Encoded { body: damaged.body.clone(), headers: Headers::from([(DAMAGED_HEADERS.to_owned(), raw)]) }
}

/// A message whose body is text, for stores that hold nothing else.
fn as_text(message: &Encoded) -> Encoded {
    let mut headers = message.headers.clone();
    headers.insert(DAMAGED_BODY.to_owned(), "percent-encoded".to_owned());
    Encoded { body: percent_encode(&message.body, RAW).to_string().into(), headers }
}

fn id_value(id: &MessageId) -> serde_json::Value {
    id.0.parse::<i64>().map_or_else(|_| id.0.clone().into(), Into::into)
}

//! The client of one source: the calls to its store that are in progress, and whether the store is healthy.
//!
//! Each call to a store is a future that its client keeps and polls. A store that hangs thus delays nothing but its own
//! messages, and a response that comes late is still used.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use super::Source;
use super::rate_limit::{Permits, Taken};
use super::tracker::InFlightTracker;
use crate::transport::{MessageId, Received, TransportError};

/// How long a store may take to respond before the sources after it are polled.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a source may fail, or not respond, before its heartbeat is withdrawn.
const UNHEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How long a rate limit is believed to be reached without another look.
const LOOK_FOR_PERMITS: Duration = Duration::from_secs(5);

/// How long a store may take to respond when the worker is ending.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after a store failed. It doubles with each failure, from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What a store responds to a call.
pub(super) enum Response {
    /// The messages that were received.
    Received(Result<Vec<Received>, TransportError>),
    /// The same, and what was not needed of the permits to receive them.
    Permitted(Result<Vec<Received>, TransportError>, Option<Taken>),
    /// Permits that were not needed are given back.
    GivenBack,
    /// The rate limit is reached: there is no permit for this time.
    NoPermit(Duration),
    /// Prefetching was stopped, and nothing was prefetched. Tells nothing about the store: it may not even be connected.
    NothingPrefetched,
    /// Whether these messages were acknowledged.
    Acknowledged(Vec<MessageId>, Result<(), TransportError>),
    /// Whether these messages were released.
    Released(Vec<ToRelease>, Result<(), TransportError>),
    /// Whether this number of messages was kept alive.
    KeptAlive(usize, Result<(), TransportError>),
}

/// A message to be released.
pub(super) struct ToRelease {
    pub(super) id: MessageId,
    /// The message itself if it was not started: should releasing fail, it can be handled here after all.
    pub(super) received: Option<Received>,
}

/// A call to a store that is in progress, and since when.
struct Call {
    since: Instant,
    response: BoxFuture<'static, Response>,
}

impl Call {
    fn new(response: impl Future<Output = Response> + Send + 'static) -> Option<Self> {
        Some(Self { since: Instant::now(), response: response.boxed() })
    }
}

pub(super) struct SourceClient {
    pub(super) source: Arc<Source>,
    /// The pause after its last failure. `None`: it is healthy.
    backoff: Option<Duration>,
    /// Nothing is received before this time.
    pub(super) next_receive: Instant,
    /// Its rate limit is reached until this time, whatever else happens.
    no_permit_until: Option<Instant>,
    /// Whether the last look found its rate limit reached.
    is_limit_reached: bool,
    /// Nothing is acknowledged or released before this time, because that has just failed.
    next_flush: Instant,
    /// Its last response took long: the other sources do not wait for the next one.
    is_slow: bool,
    receive_call: Option<Call>,
    /// With a rate limit: whether to count before permits are taken, as the last look has found no message.
    counts_first: bool,
    /// Gives back permits.
    permit_call: Option<Call>,
    /// Acknowledges or releases messages.
    flush_call: Option<Call>,
    keepalive_call: Option<Call>,
    /// Handled messages that are to be acknowledged.
    to_acknowledge: Vec<MessageId>,
    to_release: Vec<ToRelease>,
    /// How many of its messages have failed and are being settled, and since when.
    settling: usize,
    settling_since: Option<Instant>,
    /// Since when it has failed, or not responded.
    failing_since: Option<Instant>,
    /// The size of its largest recent message, in bytes.
    pub(super) largest: usize,
}

impl SourceClient {
    pub(super) fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            backoff: None,
            next_receive: Instant::now(),
            no_permit_until: None,
            is_limit_reached: false,
            next_flush: Instant::now(),
            is_slow: false,
            receive_call: None,
            counts_first: true,
            permit_call: None,
            flush_call: None,
            keepalive_call: None,
            to_acknowledge: Vec::new(),
            to_release: Vec::new(),
            settling: 0,
            settling_since: None,
            failing_since: None,
            largest: 0,
        }
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.receive_call.is_some()
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.backoff.is_none()
    }

    /// Whether its last calls have succeeded, and none is in progress.
    pub(super) fn has_answered(&self) -> bool {
        self.backoff.is_none() && self.failing_since.is_none()
    }

    /// Starts to receive messages, if it is time to. What is left to do for the last batch comes first. So at most one
    /// batch is handled and not acknowledged, and a crash repeats no more than that.
    pub(super) fn start_receive(&mut self, up_to: usize, tracker: &mut InFlightTracker) {
        if self.next_due() > Instant::now() {
            return;
        }
        self.flush(tracker);
        if self.receive_call.is_some() || self.flush_call.is_some() || self.settling > 0 {
            return;
        }
        let source = Arc::clone(&self.source);
        self.failing_since.get_or_insert_with(Instant::now);
        let counts_first = self.counts_first;
        self.receive_call = Call::new(async move { receive(&source, up_to, counts_first).await });
    }

    /// When messages may be received again.
    pub(super) fn next_due(&self) -> Instant {
        self.no_permit_until.map_or(self.next_receive, |until| until.max(self.next_receive))
    }

    /// Whether its rate limit is reached.
    pub(super) fn is_limited(&self) -> bool {
        self.no_permit_until.is_some_and(|until| until > Instant::now())
    }

    /// Its rate limit is reached for this time. Returns until when nothing is received, and whether that is new. Other workers
    /// give back permits that they do not need, so the next look may come before the time is over.
    pub(super) fn limit_for(&mut self, time: Duration) -> (Instant, bool) {
        let until = Instant::now() + time.min(LOOK_FOR_PERMITS);
        self.no_permit_until = Some(until);
        (until, !std::mem::replace(&mut self.is_limit_reached, true))
    }

    /// There was a permit.
    pub(super) fn limit_ended(&mut self) {
        self.is_limit_reached = false;
    }

    /// Stops prefetching, and receives what was prefetched.
    pub(super) fn stop_prefetching(&mut self) {
        let Some(prefetching) = self.source.transport.prefetching.clone() else { return };
        let before = self.receive_call.take();
        self.receive_call = Call::new(async move {
            let before = match before {
                Some(call) => match call.response.await {
                    // One whose permits are not needed is rare here, and they are free again with the next window.
                    Response::Received(received) | Response::Permitted(received, _) => Some(received),
                    _ => None,
                },
                None => None,
            };
            let prefetched = prefetching.stop_fetching().await;
            if before.is_none() && matches!(&prefetched, Ok(messages) if messages.is_empty()) {
                return Response::NothingPrefetched;
            }
            let received = before.unwrap_or_else(|| Ok(Vec::new()));
            // If only one of the two calls failed, the messages of the other are still here.
            Response::Received(match (received, prefetched) {
                (Ok(received), Ok(prefetched)) => Ok(received.into_iter().chain(prefetched).collect()),
                (Ok(messages), Err(error)) | (Err(error), Ok(messages)) if !messages.is_empty() => {
                    tracing::error!(%error, "some prefetched messages could not be received; they are delivered again later");
                    Ok(messages)
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            })
        });
    }

    /// Until when an ending worker waits for prefetched messages; `None` when they have been received.
    pub(super) fn prefetched_until(&self) -> Option<Instant> {
        self.source.transport.prefetching.as_ref()?;
        self.receive_call.as_ref().map(|call| call.since + SHUTDOWN_TIMEOUT).filter(|until| *until > Instant::now())
    }

    /// Until when the sources after this one wait for its response; `None` when they do not wait.
    pub(super) fn blocks_others_until(&self) -> Option<Instant> {
        let calls = [&self.receive_call, &self.flush_call].into_iter().flatten().map(|call| call.since);
        let since = calls.chain(self.settling_since).min()?;
        (self.backoff.is_none() && !self.is_slow).then_some(since + RESPONSE_TIMEOUT)
    }

    /// It did not respond in time: the other sources no longer wait for it.
    pub(super) fn mark_slow(&mut self) {
        self.is_slow = true;
    }

    /// When its heartbeat is to be withdrawn, unless a call succeeds before.
    pub(super) fn unhealthy_at(&self) -> Option<Instant> {
        // Nothing is received while a failed message cannot be settled.
        let since = [self.failing_since, self.settling_since].into_iter().flatten().min();
        since.map(|since| since + UNHEALTHY_AFTER)
    }

    /// A call succeeded.
    pub(super) fn mark_healthy(&mut self) {
        self.backoff = None;
        self.next_flush = Instant::now();
        let calls = [&self.receive_call, &self.flush_call].into_iter().flatten();
        self.failing_since = calls.map(|call| call.since).min();
    }

    /// A call failed.
    pub(super) fn back_off(&mut self) {
        let backoff = self.backoff.map_or(FIRST_BACKOFF, |last| (2 * last).min(LONGEST_BACKOFF));
        self.backoff = Some(backoff);
        self.next_receive = Instant::now() + backoff;
        self.next_flush = self.next_receive;
    }

    /// No message was pending.
    pub(super) fn was_empty(&mut self) {
        // A source that wakes its consumers needs to be polled less often.
        let interval = self.source.transport.waking.as_ref().and_then(|waking| waking.poll_interval());
        self.next_receive = Instant::now() + interval.unwrap_or_default();
    }

    /// A message failed, and is being settled.
    pub(super) fn start_settling(&mut self) {
        self.settling += 1;
        self.settling_since.get_or_insert_with(Instant::now);
    }

    /// One of the failed messages is settled. Returns whether it was the last.
    pub(super) fn finish_settling(&mut self) -> bool {
        self.settling -= 1;
        if self.settling == 0 {
            self.settling_since = None;
        }
        self.settling == 0
    }

    /// Adds a handled message to those that the next [`SourceClient::flush`] acknowledges. Returns how many they are.
    pub(super) fn acknowledge(&mut self, id: MessageId) -> usize {
        self.to_acknowledge.push(id);
        self.to_acknowledge.len()
    }

    /// Adds messages to those that [`SourceClient::flush`] releases.
    pub(super) fn release(&mut self, messages: impl IntoIterator<Item = ToRelease>) {
        self.to_release.extend(messages);
    }

    /// When to acknowledge and release what is left. `None` when there is nothing to do, or a call is in progress.
    pub(super) fn flush_at(&self) -> Option<Instant> {
        let is_needed = !self.to_acknowledge.is_empty() || !self.to_release.is_empty();
        (is_needed && self.flush_call.is_none()).then_some(self.next_flush)
    }

    /// Starts to acknowledge what was handled, or if there is nothing to acknowledge, to release messages. One call at
    /// a time, and none directly after a failure.
    pub(super) fn flush(&mut self, tracker: &mut InFlightTracker) {
        if self.flush_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.failing_since.get_or_insert_with(Instant::now);
        let source = Arc::clone(&self.source);
        if !self.to_acknowledge.is_empty() {
            let ids = std::mem::take(&mut self.to_acknowledge);
            self.flush_call = Call::new(async move {
                let result = source.receiver.ack(&ids).await;
                Response::Acknowledged(ids, result)
            });
        } else if !self.to_release.is_empty() {
            let messages = std::mem::take(&mut self.to_release);
            let ids: Vec<MessageId> = messages.iter().map(|message| message.id.clone()).collect();
            let deliveries = tracker.begin_release(&source, &ids);
            self.flush_call = Call::new(async move {
                let result = match &source.transport.releasing {
                    Some(releasing) => releasing.release(&deliveries).await,
                    None => Ok(()),
                };
                Response::Released(messages, result)
            });
        }
    }

    /// Messages could not be acknowledged: the next [`SourceClient::flush`] tries again.
    pub(super) fn acknowledge_again(&mut self, ids: Vec<MessageId>) {
        self.to_acknowledge.splice(0..0, ids);
    }

    /// Starts to keep the messages in flight alive, which restarts their `redeliver_timeout`. Does nothing if the store
    /// has not responded to the last call yet.
    pub(super) fn keep_alive(&mut self, tracker: &mut InFlightTracker) {
        if self.keepalive_call.is_some() {
            return;
        }
        let source = Arc::clone(&self.source);
        let now = SystemTime::now();
        let deliveries = tracker.begin_keepalive(&source, now);
        if deliveries.is_empty() {
            return;
        }
        self.keepalive_call = Call::new(async move {
            let result = match &source.transport.keeping_alive {
                Some(keeping) => keeping.keep_alive(&deliveries, now).await,
                None => Ok(()),
            };
            Response::KeptAlive(deliveries.len(), result)
        });
    }

    /// Gives back permits that were not needed. Nothing waits for that.
    fn give_back(&mut self, unneeded: Taken) {
        let (source, before) = (Arc::clone(&self.source), self.permit_call.take());
        let give_back = async move {
            if let Some(before) = before {
                before.response.await;
            }
            if let Some(limiter) = &source.limiter {
                limiter.give_back(unneeded).await;
            }
            Response::GivenBack
        };
        self.permit_call = Call::new(give_back);
    }

    /// Polls the calls in progress for the next response.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Response> {
        self.poll_calls(context).map(|response| match response {
            Response::Permitted(received, unneeded) => {
                self.counts_first = received.as_ref().is_ok_and(Vec::is_empty);
                if let Some(unneeded) = unneeded {
                    self.give_back(unneeded);
                }
                Response::Received(received)
            }
            other => other,
        })
    }

    fn poll_calls(&mut self, context: &mut Context<'_>) -> Poll<Response> {
        for call in [&mut self.flush_call, &mut self.receive_call, &mut self.keepalive_call, &mut self.permit_call] {
            let Some(Call { since, response }) = call else { continue };
            if let Poll::Ready(response) = response.poll_unpin(context) {
                if !matches!(response, Response::KeptAlive(..) | Response::GivenBack) {
                    self.is_slow = since.elapsed() > RESPONSE_TIMEOUT;
                }
                *call = None;
                return Poll::Ready(response);
            }
        }
        Poll::Pending
    }

    /// Until when an ending worker waits for calls that are in progress or still to be made; `None` when there are
    /// none. A store that has been hanging for long is not waited for. One that is about to respond is: the messages
    /// that it has handed out would otherwise stay in flight without a consumer.
    pub(super) fn busy_until(&self) -> Option<Instant> {
        let calls = [&self.receive_call, &self.flush_call, &self.permit_call].into_iter().flatten();
        calls.map(|call| call.since).chain(self.flush_at()).max().map(|since| since + SHUTDOWN_TIMEOUT)
    }
}

/// Receives messages: with a rate limit, no more than there are permits for. `counts_first` looks whether there are any, where
/// the store can count, before permits are taken in vain.
async fn receive(source: &Source, up_to: usize, counts_first: bool) -> Response {
    let Some(limiter) = &source.limiter else { return Response::Received(source.receiver.receive(up_to).await) };
    if counts_first
        && let Some(counting) = &source.transport.counting
        && let Ok(0) = counting.pending(1).await
    {
        return Response::Received(Ok(Vec::new()));
    }
    match limiter.take(up_to).await {
        Permits::Wait(time) => Response::NoPermit(time),
        Permits::Taken(taken) => {
            let received = source.receiver.receive(taken.permits).await;
            let needed = received.as_ref().map_or(0, Vec::len);
            Response::Permitted(received, taken.without_needed(needed))
        }
    }
}

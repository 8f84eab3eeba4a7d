//! Receives messages from the sources in the order of their priority, and acknowledges or releases them.
//!
//! Messages are received in batches. The size of a batch follows from how long handlers take: it is at most
//! [`BATCH_WORK`] of work. So slow handlers get one message at a time and share a queue fairly, and fast ones are not
//! limited by round trips. Messages that were received and could not be started in time are released for other workers.
//!
//! A poll asks one source after the other, each after the one before has responded that it has no messages. A source
//! that fails, or does not respond in time, loses its turn. Its messages are still used when they come.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{self, BoxFuture, FutureExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::reporting::Reporter;
use super::source_client::{Response, SourceClient, ToRelease};
use super::tracker::InFlightTracker;
use super::{InFlightFile, Source, far_future};
use crate::events;
use crate::heartbeat::SourceReporter;
use crate::transport::{MessageId, Received, TransportError};

/// How much work a batch is at most, as estimated from the last messages.
const BATCH_WORK: Duration = Duration::from_millis(20);

/// A message that was not started within this time is released: handlers take longer than estimated.
const START_TIMEOUT: Duration = Duration::from_millis(100);

/// The same for prefetched messages, whose release counts as a failure. Longer than a busy machine stalls.
const PREFETCHED_START_TIMEOUT: Duration = Duration::from_millis(500);

/// How many messages in a row must have been quick before a batch is larger than what can start at once, on a transport
/// where a release counts as a failure.
const QUICK_BEFORE_PREFETCH: u32 = 1000;

/// The most messages in a batch.
const MAX_BATCH: usize = 200;

/// The largest size of a batch in bytes, as estimated from the last messages.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// The shortest pause after a poll that found nothing.
const MIN_SLEEP: Duration = Duration::from_millis(1);

pub(super) struct Intake {
    clients: Vec<SourceClient>,
    reporter: Option<SourceReporter>,
    /// Who is told what happens.
    told: Arc<Reporter>,
    sleep: Duration,
    concurrency: usize,
    /// Notified when this process has queued a message.
    dispatched: Arc<Notify>,
    /// Messages that were received and not started.
    received: VecDeque<(Arc<Source>, Received)>,
    received_at: Instant,
    tracker: InFlightTracker,
    /// During a poll: the index of the source whose turn it is.
    turn: Option<usize>,
    next_poll: Instant,
    /// How long handling a message usually takes; `None` until one has been handled.
    usual_duration: Option<Duration>,
    /// How many messages have been handled since the last slow one.
    since_slow: u32,
    /// The worker is ending, and nothing is to be prefetched.
    is_stopping: bool,
}

/// Something that the worker has to react to.
pub(super) enum Event {
    /// The store of the client with this index has responded.
    Response(usize, Response),
    /// New messages may be pending.
    Woken,
    /// A deadline has passed.
    Timeout,
}

impl Intake {
    pub(super) fn new(
        sources: Vec<Arc<Source>>,
        sleep: Duration,
        concurrency: usize,
        file: Option<InFlightFile>,
        dispatched: Arc<Notify>,
        told: Arc<Reporter>,
    ) -> Self {
        let now = Instant::now();
        Self {
            tracker: InFlightTracker::new(&sources, file),
            clients: sources.into_iter().map(SourceClient::new).collect(),
            reporter: None,
            told,
            sleep,
            concurrency,
            dispatched,
            received: VecDeque::new(),
            received_at: now,
            turn: None,
            next_poll: now,
            usual_duration: None,
            since_slow: u32::MAX,
            is_stopping: false,
        }
    }

    /// From now on, reports which sources messages can be received from.
    pub(super) fn report_to(&mut self, reporter: SourceReporter) {
        self.reporter = Some(reporter);
    }

    /// The next message to start.
    pub(super) fn next(&mut self) -> Option<(Arc<Source>, Received)> {
        self.received.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Whether a poll is in progress, or due.
    pub(super) fn is_polling(&self) -> bool {
        self.turn.is_some() || Instant::now() >= self.next_poll
    }

    /// Whether all sources have answered the last time, and no call to them is in progress.
    pub(super) fn have_answered(&self) -> bool {
        self.clients.iter().all(SourceClient::has_answered)
    }

    /// Starts a poll if one is due, or continues the one in progress. Never waits. `at_most` is how many messages the
    /// limits allow, `running` how many are being handled, `missing` how many batches of handlers wait for.
    pub(super) fn poll_sources(&mut self, at_most: u64, running: usize, missing: usize) {
        if !self.is_polling() {
            return;
        }
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        let free = self.concurrency.saturating_sub(running).max(1);
        let mut turn = self.turn.unwrap_or(0);
        while let Some(client) = self.clients.get_mut(turn) {
            let can_release = client.source.transport.releasing.is_some();
            let mut size = if can_release {
                // Those that batches wait for start at once too. Where a release counts as a failure, they must be sure to.
                let missing = if client.source.transport.prefetching.is_some() { 0 } else { missing };
                batch_size(self.usual_duration, free, missing, self.concurrency, client.largest)
            } else {
                free
            };
            if let Some(prefetching) = &client.source.transport.prefetching {
                if self.is_stopping || self.since_slow < QUICK_BEFORE_PREFETCH {
                    size = free;
                }
                // As many again may be prefetched meanwhile, and all of them must be within the limit.
                let is_limited = client.source.limiter.is_some();
                prefetching.fetch_ahead(size > free && size.saturating_mul(2) <= at_most && !is_limited);
            }
            client.start_receive(size.min(at_most), &mut self.tracker);
            match client.blocks_others_until() {
                Some(until) if Instant::now() < until => {
                    self.turn = Some(turn);
                    return;
                }
                Some(_) => client.mark_slow(),
                None => {}
            }
            turn += 1;
        }
        self.turn = None;
        let now = Instant::now();
        // A source that has failed, or that wakes its consumers, has a time of its own, and does not delay the others.
        let idle = self.clients.iter().filter(|client| !client.is_receiving());
        let next = idle.map(|client| if client.next_due() > now { client.next_due() } else { now + self.sleep });
        self.next_poll = next.min().unwrap_or(now + self.sleep).max(now + MIN_SLEEP);
    }

    /// New messages may be pending. Polls all healthy sources again, starting at the first, which has priority.
    pub(super) fn poll_now(&mut self) {
        self.turn = None;
        self.next_poll = Instant::now();
        for client in self.clients.iter_mut().filter(|client| client.is_healthy()) {
            client.next_receive = self.next_poll;
        }
    }

    /// Waits for the next event. Waits for new messages only if `wants_messages`. Cancel safe.
    pub(super) async fn next_event(&mut self, wants_messages: bool) -> Event {
        let is_idle = wants_messages && self.turn.is_none();
        let turn = self.turn.filter(|_| wants_messages).and_then(|turn| self.clients[turn].blocks_others_until());
        let unhealthy = self.clients.iter().filter_map(SourceClient::unhealthy_at).filter(|at| *at > Instant::now());
        let times = [turn, is_idle.then_some(self.next_poll), self.next_deadline(), unhealthy.min()];
        let until = times.into_iter().flatten().min().unwrap_or_else(far_future);
        let wakes = if is_idle { self.wakes() } else { Vec::new() };
        let woken = async { if wakes.is_empty() { future::pending().await } else { future::select_all(wakes).await } };
        let dispatched = Arc::clone(&self.dispatched);
        let dispatched = async { if is_idle { dispatched.notified().await } else { future::pending().await } };
        tokio::select! {
            (client, response) = poll_fn(|context| self.poll_responses(context)) => Event::Response(client, response),
            _ = woken => Event::Woken,
            () = dispatched => Event::Woken,
            () = tokio::time::sleep_until(until) => Event::Timeout,
        }
    }

    /// Futures that become ready when their source has new messages.
    fn wakes(&self) -> Vec<BoxFuture<'static, ()>> {
        let healthy =
            self.clients.iter().filter(|client| client.is_healthy() && !client.is_receiving() && !client.is_limited());
        let sources =
            healthy.map(|client| Arc::clone(&client.source)).filter(|source| source.transport.waking.is_some());
        let wake = |source: Arc<Source>| async move {
            // If waking fails, the source is polled after the sleep.
            match &source.transport.waking {
                Some(waking) if waking.wake().await.is_ok() => {}
                _ => future::pending().await,
            }
        };
        sources.map(|source| wake(source).boxed()).collect()
    }

    fn poll_responses(&mut self, context: &mut Context<'_>) -> Poll<(usize, Response)> {
        for (index, client) in self.clients.iter_mut().enumerate() {
            if let Poll::Ready(response) = client.poll(context) {
                return Poll::Ready((index, response));
            }
        }
        Poll::Pending
    }

    /// When received messages should have started, or handled ones should be acknowledged.
    fn next_deadline(&self) -> Option<Instant> {
        let earliest = self.received_at + START_TIMEOUT;
        let flushes = self.clients.iter().filter_map(SourceClient::flush_at).map(|at| at.max(earliest));
        flushes.chain(self.start_deadline()).min()
    }

    /// When received messages should have started.
    fn start_deadline(&self) -> Option<Instant> {
        let is_prefetched = self.received.iter().any(|(source, _)| source.transport.prefetching.is_some());
        let timeout = if is_prefetched { PREFETCHED_START_TIMEOUT } else { START_TIMEOUT };
        (!self.received.is_empty()).then_some(self.received_at + timeout)
    }

    /// Reacts to an event. Fails only with errors that trying again cannot remedy.
    pub(super) fn handle_event(&mut self, event: Event) -> Result<(), TransportError> {
        match event {
            Event::Response(client, response) => return self.handle_response(client, response),
            Event::Woken => self.poll_now(),
            Event::Timeout => {
                let now = Instant::now();
                if self.start_deadline().is_some_and(|at| at <= now) {
                    self.release_unstarted();
                } else if self.next_deadline().is_some_and(|at| at <= now) {
                    self.flush();
                }
                for index in 0..self.clients.len() {
                    self.report_health(index);
                }
            }
        }
        Ok(())
    }

    fn handle_response(&mut self, index: usize, response: Response) -> Result<(), TransportError> {
        let client = &mut self.clients[index];
        match response {
            Response::Received(Ok(messages)) => {
                client.mark_healthy();
                client.limit_ended();
                self.add_received(index, messages);
            }
            Response::NothingPrefetched | Response::GivenBack => {}
            // The client has taken the permits out.
            Response::Permitted(received, _) => return self.handle_response(index, Response::Received(received)),
            Response::NoPermit(time) => {
                client.mark_healthy();
                let (until, is_new) = client.limit_for(time);
                if is_new {
                    let (transport, seconds) = (&client.source.name, time.as_secs_f64());
                    tracing::info!(
                        transport,
                        "its rate limit is reached; nothing is received from it for {seconds:.1} s"
                    );
                    self.told.tell(&events::Event::RateLimited { transport: &client.source.name, wait: time });
                }
                if self.turn == Some(index) {
                    self.turn = Some(index + 1);
                } else {
                    self.next_poll = self.next_poll.min(until);
                }
            }
            Response::Received(Err(error @ (TransportError::NotSetUp { .. } | TransportError::Unsupported { .. }))) => {
                return Err(error);
            }
            Response::Received(Err(error)) => {
                tracing::error!(%error, "messages cannot be received; trying again");
                client.back_off();
            }
            Response::Acknowledged(ids, Ok(())) => {
                client.mark_healthy();
                self.tracker.remove(&client.source, &ids);
                client.flush(&mut self.tracker);
            }
            Response::Acknowledged(ids, Err(error)) => {
                tracing::error!(
                    %error, messages = ids.len(),
                    "handled messages could not be acknowledged; trying again, otherwise they are delivered again"
                );
                client.acknowledge_again(ids);
                client.back_off();
            }
            Response::Released(messages, Ok(())) => {
                client.mark_healthy();
                let ids: Vec<MessageId> = messages.into_iter().map(|message| message.id).collect();
                self.tracker.remove(&client.source, &ids);
                client.flush(&mut self.tracker);
            }
            Response::Released(messages, Err(error)) => {
                tracing::error!(%error, messages = messages.len(), "messages could not be released");
                client.back_off();
                let ids: Vec<MessageId> = messages.iter().map(|message| message.id.clone()).collect();
                self.tracker.cancel_release(&client.source, &ids);
                // Those that were not started are handled here after all.
                let source = Arc::clone(&client.source);
                let messages = messages.into_iter().filter_map(|message| message.received);
                self.received.extend(messages.map(|message| (Arc::clone(&source), message)));
            }
            Response::KeptAlive(_, Ok(())) => self.tracker.finish_keepalive(&client.source),
            Response::KeptAlive(messages, Err(error)) => {
                tracing::warn!(%error, messages, "messages could not be kept alive");
            }
        }
        self.report_health(index);
        Ok(())
    }

    fn add_received(&mut self, index: usize, messages: Vec<Received>) {
        let client = &mut self.clients[index];
        if messages.is_empty() {
            client.was_empty();
            if self.turn == Some(index) {
                self.turn = Some(index + 1);
            }
            return;
        }
        // The estimate follows a large message at once, and small ones gradually.
        client.largest = messages.iter().map(size_of).max().unwrap_or(0).max(client.largest / 4 * 3);
        let source = Arc::clone(&client.source);
        self.tracker.add(&source, messages.iter().map(Received::delivery));
        self.received.extend(messages.into_iter().map(|message| (Arc::clone(&source), message)));
        self.received_at = Instant::now();
        self.poll_now();
    }

    /// Reports whether a source can be received from, if that is known.
    fn report_health(&self, index: usize) {
        let Some(reporter) = &self.reporter else { return };
        match self.clients[index].unhealthy_at() {
            None => reporter.report(index, true),
            Some(at) if at <= Instant::now() => reporter.report(index, false),
            Some(_) => {}
        }
    }

    /// Acknowledges what was handled, and releases what was not started. If that fails, it is handled here after all.
    pub(super) fn release_unstarted(&mut self) {
        self.received_at = Instant::now();
        self.release_unstarted_of(|_| true);
    }

    /// Stops prefetching. What was prefetched is received, to be handled.
    pub(super) fn stop_prefetching(&mut self) {
        self.is_stopping = true;
        self.clients.iter_mut().for_each(SourceClient::stop_prefetching);
    }

    /// Until when to wait for prefetched messages; `None` when all have been received.
    pub(super) fn prefetched_until(&self) -> Option<Instant> {
        self.clients.iter().filter_map(SourceClient::prefetched_until).max()
    }

    /// Like [`Intake::release_unstarted`], except for prefetched messages.
    pub(super) fn release_unprefetched(&mut self) {
        self.release_unstarted_of(|client| client.source.transport.prefetching.is_none());
    }

    fn release_unstarted_of(&mut self, is_included: impl Fn(&SourceClient) -> bool) {
        for client in &mut self.clients {
            if client.source.transport.releasing.is_some() && is_included(client) {
                let of_client = |(source, _): &(Arc<Source>, Received)| Arc::ptr_eq(source, &client.source);
                let (unstarted, others) = std::mem::take(&mut self.received).into_iter().partition(of_client);
                self.received = others;
                let unstarted: VecDeque<(Arc<Source>, Received)> = unstarted;
                client.release(
                    unstarted
                        .into_iter()
                        .map(|(_, message)| ToRelease { id: message.id.clone(), received: Some(message) }),
                );
            }
            client.flush(&mut self.tracker);
        }
    }

    /// Releases messages that no handler could handle.
    pub(super) fn release(&mut self, messages: impl Iterator<Item = (Arc<Source>, MessageId)>) {
        for (source, id) in messages {
            if let Some(client) = self.client(&source).filter(|client| client.source.transport.releasing.is_some()) {
                client.release([ToRelease { id, received: None }]);
            }
        }
        self.flush();
    }

    /// Adds to the estimate how long handling a message took.
    pub(super) fn record_duration(&mut self, took: Duration) {
        self.since_slow = if took > START_TIMEOUT { 0 } else { self.since_slow.saturating_add(1) };
        // The estimate follows a slow message at once, and fast ones gradually. Receiving too few messages costs a
        // round trip; receiving too many keeps them from workers that are free.
        self.usual_duration = Some(match self.usual_duration {
            Some(usual) if took < usual => (usual * 4 + took) / 5,
            _ => took,
        });
    }

    /// A message was handled. The next [`Intake::flush`] acknowledges it, or this call where a batch is complete.
    pub(super) fn acknowledge(&mut self, source: &Arc<Source>, id: MessageId) {
        let is_slow = self.usual_duration.is_none_or(|usual| usual >= BATCH_WORK);
        let Some(client) = self.clients.iter_mut().find(|client| Arc::ptr_eq(&client.source, source)) else { return };
        if client.acknowledge(id) >= MAX_BATCH || is_slow {
            client.flush(&mut self.tracker);
        }
    }

    /// A message failed, and is being settled.
    pub(super) fn start_settling(&mut self, source: &Arc<Source>) {
        if let Some(client) = self.client(source) {
            client.start_settling();
        }
    }

    /// A failed message is settled. If it is not `stored`, it is still in flight.
    pub(super) fn finish_settling(&mut self, source: &Arc<Source>, id: MessageId, stored: bool) {
        // A poll meanwhile has skipped the source, so that its pending messages have not been seen.
        if self.client(source).is_some_and(SourceClient::finish_settling) && self.turn.is_none() {
            self.next_poll = Instant::now();
        }
        if stored {
            self.tracker.remove(source, &[id]);
        }
        if let Some(index) = self.clients.iter().position(|client| Arc::ptr_eq(&client.source, source)) {
            self.report_health(index);
        }
    }

    /// Restarts the `redeliver_timeout` of all messages in flight.
    pub(super) fn keep_alive(&mut self) {
        for client in &mut self.clients {
            client.keep_alive(&mut self.tracker);
        }
    }

    /// Acknowledges what was handled.
    pub(super) fn flush(&mut self) {
        self.clients.iter_mut().for_each(|client| client.flush(&mut self.tracker));
    }

    /// Until when an ending worker waits for its stores; `None` when there is nothing to wait for.
    pub(super) fn busy_until(&self) -> Option<Instant> {
        self.clients.iter().filter_map(SourceClient::busy_until).max()
    }

    /// Called when the worker ends. Messages that are still in flight stay recorded, for the supervisor to put back.
    pub(super) fn finish(&mut self) {
        self.tracker.finish();
    }

    fn client(&mut self, source: &Arc<Source>) -> Option<&mut SourceClient> {
        self.clients.iter_mut().find(|client| Arc::ptr_eq(&client.source, source))
    }
}

/// How many messages to receive: `free` is how many can start at once, `missing` how many batches of handlers wait for,
/// `usual` how long one usually takes, and `largest` the bytes of the largest.
fn batch_size(usual: Option<Duration>, free: usize, missing: usize, concurrency: usize, largest: usize) -> usize {
    let each = usual.map_or(1, |usual| BATCH_WORK.as_nanos() / usual.as_nanos().max(1));
    let each = usize::try_from(each).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH);
    let more = (each - 1).saturating_mul(concurrency).max(missing);
    let most = MAX_BATCH.min(MAX_BATCH_BYTES / largest.max(1));
    free.saturating_add(more).min(most.max(free))
}

/// About how much memory a message takes, in bytes.
fn size_of(received: &Received) -> usize {
    match &received.message {
        Ok(message) => {
            message.body.len() + message.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        }
        Err(damaged) => damaged.body.len() + damaged.headers.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_at_most_some_milliseconds_of_work() {
        let size =
            |micros, concurrency| batch_size(Some(Duration::from_micros(micros)), concurrency, 0, concurrency, 1);
        assert_eq!(batch_size(None, 1, 0, 1, 1), 1, "nothing is known yet");
        assert_eq!(size(1_000_000, 1), 1, "slow handlers share fairly");
        assert_eq!(size(5_000, 1), 4);
        assert_eq!(size(5_000, 3), 12);
        assert_eq!(size(1, 1), MAX_BATCH);
        assert_eq!(batch_size(Some(Duration::ZERO), 500, 0, 500, 1), 500, "never fewer than can start at once");
    }

    #[test]
    fn what_batches_of_handlers_wait_for_is_received_at_once_however_slow_they_are() {
        assert_eq!(batch_size(None, 1, 49, 1, 1), 50);
        assert_eq!(batch_size(Some(Duration::from_secs(5)), 1, 49, 1, 1), 50);
        assert_eq!(batch_size(Some(Duration::from_secs(5)), 1, 9_999, 1, 1), MAX_BATCH);
        assert_eq!(batch_size(None, 1, 49, 1, 1 << 20), 8);
    }

    #[test]
    fn a_batch_of_large_messages_is_small() {
        let size = |largest, concurrency| batch_size(Some(Duration::ZERO), concurrency, 0, concurrency, largest);
        assert_eq!(size(0, 1), MAX_BATCH);
        assert_eq!(size(1 << 20, 1), 8);
        assert_eq!(size(1 << 30, 1), 1);
        assert_eq!(size(1 << 20, 20), 20, "never fewer than can start at once");
    }
}

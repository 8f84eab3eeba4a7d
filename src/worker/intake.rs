//! Takes messages from the sources in the order of their priority, and tells them when messages were handled.
//!
//! Messages move in batches, whose size follows from how long handlers take: a batch is at most [`BATCH_WORK`] of work.
//! Slow handlers thus get one message each and share a queue fairly; fast ones are not bound by round trips. What was
//! taken and could not begin in time is given back for others to take.
//!
//! A look asks one source after the other, each once the one before has said that it has nothing. One that does not
//! answer in time, or that fails, loses its turn: it is asked all the same, and its messages are taken when they come.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{self, BoxFuture, FutureExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::held::Held;
use super::lane::{Answer, Lane, Unwanted};
use super::{Note, Source, far_future};
use crate::heartbeat::SourceReporter;
use crate::transport::{MessageId, Received, TransportError};

/// How much work is taken at once, as far as the past tells.
const BATCH_WORK: Duration = Duration::from_millis(20);

/// What has not begun after this time is given back: the past told wrong.
const BATCH_PATIENCE: Duration = Duration::from_millis(100);

/// The same for what a broker has pushed, where giving back counts as a failure: longer than a busy machine stands still.
const FETCHED_PATIENCE: Duration = Duration::from_millis(500);

/// How many messages must have been quick since the last one that was not, for more than can begin at once to be taken from
/// a transport where giving back counts as a failure.
const AFTER_SLOW: u32 = 1000;

/// The most messages taken at once.
const BATCH_MOST: usize = 200;

/// How large a batch may become, in bytes, as far as the past tells.
const BATCH_BYTES: usize = 8 << 20;

/// Between two looks that found nothing, at least.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

pub(super) struct Intake {
    lanes: Vec<Lane>,
    reporter: Option<SourceReporter>,
    sleep: Duration,
    concurrency: usize,
    /// Tells of messages that this process has queued.
    dispatched: Arc<Notify>,
    /// Taken and not begun.
    taken: VecDeque<(Arc<Source>, Received)>,
    taken_at: Instant,
    held: Held,
    /// During a look: whose turn it is.
    turn: Option<usize>,
    next_look: Instant,
    /// How long a message takes, if any has been handled.
    usual: Option<Duration>,
    /// How many messages ago one took longer than others may have to wait.
    since_slow: u32,
    /// Nothing is to be fetched ahead any more.
    is_stopping: bool,
}

/// Something that a waiting worker has to see to.
pub(super) enum Event {
    /// The store of this lane has said something.
    Said(usize, Answer),
    /// A source says that something came.
    Woken,
    /// Some time is over.
    Time,
}

impl Intake {
    pub(super) fn new(
        sources: Vec<Arc<Source>>,
        sleep: Duration,
        concurrency: usize,
        note: Option<Note>,
        dispatched: Arc<Notify>,
    ) -> Self {
        let now = Instant::now();
        Self {
            held: Held::new(&sources, note),
            lanes: sources.into_iter().map(Lane::new).collect(),
            reporter: None,
            sleep,
            concurrency,
            dispatched,
            taken: VecDeque::new(),
            taken_at: now,
            turn: None,
            next_look: now,
            usual: None,
            since_slow: u32::MAX,
            is_stopping: false,
        }
    }

    /// Reports from now on which sources can be received from.
    pub(super) fn report_to(&mut self, reporter: SourceReporter) {
        self.reporter = Some(reporter);
    }

    /// The next message to begin with.
    pub(super) fn next(&mut self) -> Option<(Arc<Source>, Received)> {
        self.taken.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Is a look under way, or due?
    pub(super) fn is_looking(&self) -> bool {
        self.turn.is_some() || Instant::now() >= self.next_look
    }

    /// Begins a look when one is due, and goes on with the one that is under way. Never waits.
    pub(super) fn look(&mut self, at_most: u64, in_hand: usize) {
        if !self.is_looking() {
            return;
        }
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        let free = self.concurrency.saturating_sub(in_hand).max(1);
        let mut turn = self.turn.unwrap_or(0);
        while let Some(lane) = self.lanes.get_mut(turn) {
            let can_give_back = lane.source.transport.releasing.is_some();
            let mut size =
                if can_give_back { batch_size(self.usual, free, self.concurrency, lane.largest) } else { free };
            if let Some(prefetching) = &lane.source.transport.prefetching {
                if self.is_stopping || self.since_slow < AFTER_SLOW {
                    size = free;
                }
                // As many again may be fetched meanwhile, and all of these are to be within the limit.
                prefetching.fetch_ahead(size > free && size.saturating_mul(2) <= at_most);
            }
            lane.ask(size.min(at_most), &mut self.held);
            match lane.waited_for_until() {
                Some(until) if Instant::now() < until => {
                    self.turn = Some(turn);
                    return;
                }
                Some(_) => lane.is_slow(),
                None => {}
            }
            turn += 1;
        }
        self.turn = None;
        let now = Instant::now();
        // One in trouble, or that tells of what comes, is asked again in its own time, without making the others wait.
        let asked = self.lanes.iter().filter(|lane| !lane.is_asked());
        let looks = asked.map(|lane| if lane.next > now { lane.next } else { now + self.sleep });
        self.next_look = looks.min().unwrap_or(now + self.sleep).max(now + SHORTEST_SLEEP);
    }

    /// Something came: look at once, at all that are well, as the first ones come first.
    pub(super) fn look_now(&mut self) {
        self.turn = None;
        self.next_look = Instant::now();
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_well()) {
            lane.next = self.next_look;
        }
    }

    /// Waits for something to see to. New messages are waited for only where they are `wanted`. Safe to cancel.
    pub(super) async fn event(&mut self, wanted: bool) -> Event {
        let idle = wanted && self.turn.is_none();
        let turn = self.turn.filter(|_| wanted).and_then(|turn| self.lanes[turn].waited_for_until());
        let silent = self.lanes.iter().filter_map(Lane::silent_from).filter(|at| *at > Instant::now());
        let times = [turn, idle.then_some(self.next_look), self.overdue_at(), silent.min()];
        let until = times.into_iter().flatten().min().unwrap_or_else(far_future);
        let wakes = if idle { self.wakes() } else { Vec::new() };
        let woken = async { if wakes.is_empty() { future::pending().await } else { future::select_all(wakes).await } };
        let dispatched = Arc::clone(&self.dispatched);
        let dispatched = async { if idle { dispatched.notified().await } else { future::pending().await } };
        tokio::select! {
            (lane, answer) = poll_fn(|context| self.poll(context)) => Event::Said(lane, answer),
            _ = woken => Event::Woken,
            () = dispatched => Event::Woken,
            () = tokio::time::sleep_until(until) => Event::Time,
        }
    }

    /// Each ends when its source says that something came.
    fn wakes(&self) -> Vec<BoxFuture<'static, ()>> {
        let well = self.lanes.iter().filter(|lane| lane.is_well() && !lane.is_asked());
        let sources = well.map(|lane| Arc::clone(&lane.source)).filter(|source| source.transport.waking.is_some());
        let wake = |source: Arc<Source>| async move {
            // A source that cannot wake leaves it to the sleep.
            match &source.transport.waking {
                Some(waking) if waking.wake().await.is_ok() => {}
                _ => future::pending().await,
            }
        };
        sources.map(|source| wake(source).boxed()).collect()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(usize, Answer)> {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if let Poll::Ready(answer) = lane.poll(context) {
                return Poll::Ready((number, answer));
            }
        }
        Poll::Pending
    }

    /// When what was taken should have begun, and what was handled should be acknowledged.
    fn overdue_at(&self) -> Option<Instant> {
        let patience = self.taken_at + BATCH_PATIENCE;
        let told = self.lanes.iter().filter_map(Lane::to_tell_at).map(|at| at.max(patience));
        told.chain(self.taken_overdue_at()).min()
    }

    /// When what was taken should have begun.
    fn taken_overdue_at(&self) -> Option<Instant> {
        let is_fetched = self.taken.iter().any(|(source, _)| source.transport.prefetching.is_some());
        let patience = if is_fetched { FETCHED_PATIENCE } else { BATCH_PATIENCE };
        (!self.taken.is_empty()).then_some(self.taken_at + patience)
    }

    /// Sees to an event. Fails only with what cannot get better by itself.
    pub(super) fn hear(&mut self, event: Event) -> Result<(), TransportError> {
        match event {
            Event::Said(lane, answer) => return self.answered(lane, answer),
            Event::Woken => self.look_now(),
            Event::Time => {
                let now = Instant::now();
                if self.taken_overdue_at().is_some_and(|at| at <= now) {
                    self.give_back();
                } else if self.overdue_at().is_some_and(|at| at <= now) {
                    self.flush();
                }
                for number in 0..self.lanes.len() {
                    self.say_whether_it_works(number);
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, number: usize, answer: Answer) -> Result<(), TransportError> {
        let lane = &mut self.lanes[number];
        match answer {
            Answer::Received(Ok(messages)) => {
                lane.works();
                self.take(number, messages);
            }
            Answer::Received(Err(error @ (TransportError::NotSetUp { .. } | TransportError::Unsupported { .. }))) => {
                return Err(error);
            }
            Answer::Received(Err(error)) => {
                tracing::error!(%error, "nothing can be received; trying again");
                lane.failed();
            }
            Answer::Acknowledged(ids, Ok(())) => {
                lane.works();
                self.held.let_go(&lane.source, &ids);
                lane.tell(&mut self.held);
            }
            Answer::Acknowledged(ids, Err(error)) => {
                tracing::error!(
                    %error, messages = ids.len(),
                    "handled messages could not be acknowledged; unless that gets better they are delivered again"
                );
                lane.acknowledge_later(ids);
                lane.failed();
            }
            Answer::GivenBack(messages, Ok(())) => {
                lane.works();
                let ids: Vec<MessageId> = messages.into_iter().map(|message| message.id).collect();
                self.held.let_go(&lane.source, &ids);
                lane.tell(&mut self.held);
            }
            Answer::GivenBack(messages, Err(error)) => {
                tracing::error!(%error, messages = messages.len(), "messages could not be given back");
                lane.failed();
                let ids: Vec<MessageId> = messages.iter().map(|message| message.id.clone()).collect();
                self.held.keep(&lane.source, &ids);
                // They are handled here after all.
                let source = Arc::clone(&lane.source);
                let messages = messages.into_iter().filter_map(|message| message.received);
                self.taken.extend(messages.map(|message| (Arc::clone(&source), message)));
            }
            Answer::KeptAlive(_, Ok(())) => self.held.kept_alive(&lane.source),
            Answer::KeptAlive(messages, Err(error)) => {
                tracing::warn!(%error, messages, "messages could not be kept alive");
            }
        }
        self.say_whether_it_works(number);
        Ok(())
    }

    fn take(&mut self, number: usize, messages: Vec<Received>) {
        let lane = &mut self.lanes[number];
        if messages.is_empty() {
            lane.had_nothing();
            if self.turn == Some(number) {
                self.turn = Some(number + 1);
            }
            return;
        }
        // Believes a large message at once and small ones only by and by.
        lane.largest = messages.iter().map(size_of).max().unwrap_or(0).max(lane.largest / 4 * 3);
        let source = Arc::clone(&lane.source);
        self.held.take(&source, messages.iter().map(Received::delivery));
        self.taken.extend(messages.into_iter().map(|message| (Arc::clone(&source), message)));
        self.taken_at = Instant::now();
        self.look_now();
    }

    /// Tells of a source that has not worked for a while, and of one that does.
    fn say_whether_it_works(&self, number: usize) {
        let Some(reporter) = &self.reporter else { return };
        match self.lanes[number].silent_from() {
            None => reporter.report(number, true),
            Some(at) if at <= Instant::now() => reporter.report(number, false),
            Some(_) => {}
        }
    }

    /// Acknowledges what was handled, and gives back what has not begun. What cannot be given back is handled here after
    /// all.
    pub(super) fn give_back(&mut self) {
        self.taken_at = Instant::now();
        self.give_back_from(|_| true);
    }

    /// From now on nothing is fetched ahead. What has been is taken, to be handled.
    pub(super) fn stop_fetching(&mut self) {
        self.is_stopping = true;
        self.lanes.iter_mut().for_each(Lane::stop_fetching);
    }

    /// Until when what was fetched ahead is waited for; none when all of it is there.
    pub(super) fn fetching_until(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::fetching_until).max()
    }

    /// The same as [`Intake::give_back`], save for what was fetched ahead.
    pub(super) fn give_back_unfetched(&mut self) {
        self.give_back_from(|lane| lane.source.transport.prefetching.is_none());
    }

    fn give_back_from(&mut self, wanted: impl Fn(&Lane) -> bool) {
        for lane in &mut self.lanes {
            if lane.source.transport.releasing.is_some() && wanted(lane) {
                let of_lane = |(source, _): &(Arc<Source>, Received)| Arc::ptr_eq(source, &lane.source);
                let (unwanted, others) = std::mem::take(&mut self.taken).into_iter().partition(of_lane);
                self.taken = others;
                let unwanted: VecDeque<(Arc<Source>, Received)> = unwanted;
                lane.unwanted(
                    unwanted
                        .into_iter()
                        .map(|(_, message)| Unwanted { id: message.id.clone(), received: Some(message) }),
                );
            }
            lane.tell(&mut self.held);
        }
    }

    /// Gives back messages that were begun, and left as they are.
    pub(super) fn put_back(&mut self, messages: impl Iterator<Item = (Arc<Source>, MessageId)>) {
        for (source, id) in messages {
            if let Some(lane) = self.lane(&source).filter(|lane| lane.source.transport.releasing.is_some()) {
                lane.unwanted([Unwanted { id, received: None }]);
            }
        }
        self.flush();
    }

    /// A message took so long.
    pub(super) fn learn(&mut self, took: Duration) {
        self.since_slow = if took > BATCH_PATIENCE { 0 } else { self.since_slow.saturating_add(1) };
        // Believes a slow message at once and a fast one only by and by: taking too few costs a round trip, taking too
        // many keeps messages from workers that are free.
        self.usual = Some(match self.usual {
            Some(usual) if took < usual => (usual * 4 + took) / 5,
            _ => took,
        });
    }

    /// A message was handled, and is to leave its store with the next [`Intake::flush`].
    pub(super) fn acknowledge(&mut self, source: &Arc<Source>, id: MessageId) {
        let at_once = self.usual.is_none_or(|usual| usual >= BATCH_WORK);
        let Some(lane) = self.lanes.iter_mut().find(|lane| Arc::ptr_eq(&lane.source, source)) else { return };
        if lane.handled(id) >= BATCH_MOST || at_once {
            lane.tell(&mut self.held);
        }
    }

    /// A message failed, and what becomes of it is about to be stored.
    pub(super) fn settling(&mut self, source: &Arc<Source>) {
        if let Some(lane) = self.lane(source) {
            lane.settles();
        }
    }

    /// That is over. The message is somewhere else now if it was `stored`, and else is still in flight.
    pub(super) fn settled(&mut self, source: &Arc<Source>, id: MessageId, stored: bool) {
        // A look that passed over it meanwhile has not seen what it has.
        if self.lane(source).is_some_and(Lane::has_settled) && self.turn.is_none() {
            self.next_look = Instant::now();
        }
        if stored {
            self.held.let_go(source, &[id]);
        }
        if let Some(number) = self.lanes.iter().position(|lane| Arc::ptr_eq(&lane.source, source)) {
            self.say_whether_it_works(number);
        }
    }

    /// Starts the `redeliver_timeout` of everything in hand anew.
    pub(super) fn keep_alive(&mut self) {
        for lane in &mut self.lanes {
            lane.keep_alive(&mut self.held);
        }
    }

    /// Acknowledges what was handled.
    pub(super) fn flush(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.tell(&mut self.held));
    }

    /// Until when a worker that ends waits for its stores; none when there is nothing to wait for.
    pub(super) fn under_way_until(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::under_way_until).max()
    }

    /// The end. What is still held is left noted for the supervisor to put back.
    pub(super) fn finish(&mut self) {
        self.held.finish();
    }

    fn lane(&mut self, source: &Arc<Source>) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| Arc::ptr_eq(&lane.source, source))
    }
}

/// How many messages to take when one usually takes so long, and is so large.
fn batch_size(usual: Option<Duration>, free: usize, concurrency: usize, largest: usize) -> usize {
    let Some(usual) = usual else { return free };
    let each = BATCH_WORK.as_nanos() / usual.as_nanos().max(1);
    let each = usize::try_from(each).unwrap_or(BATCH_MOST).clamp(1, BATCH_MOST);
    let more = (each - 1).saturating_mul(concurrency);
    let most = BATCH_MOST.min(BATCH_BYTES / largest.max(1));
    free.saturating_add(more).min(most.max(free))
}

/// What a message takes in memory, in bytes, as far as it matters.
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
        let size = |micros, concurrency| batch_size(Some(Duration::from_micros(micros)), concurrency, concurrency, 1);
        assert_eq!(batch_size(None, 1, 1, 1), 1, "nothing is known yet");
        assert_eq!(size(1_000_000, 1), 1, "slow handlers share fairly");
        assert_eq!(size(5_000, 1), 4);
        assert_eq!(size(5_000, 3), 12);
        assert_eq!(size(1, 1), BATCH_MOST);
        assert_eq!(batch_size(Some(Duration::ZERO), 500, 500, 1), 500, "never fewer than can begin at once");
    }

    #[test]
    fn a_batch_of_large_messages_is_small() {
        let size = |largest, concurrency| batch_size(Some(Duration::ZERO), concurrency, concurrency, largest);
        assert_eq!(size(0, 1), BATCH_MOST);
        assert_eq!(size(1 << 20, 1), 8);
        assert_eq!(size(1 << 30, 1), 1);
        assert_eq!(size(1 << 20, 20), 20, "never fewer than can begin at once");
    }
}

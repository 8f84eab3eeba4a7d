//! Takes messages from the sources in the order of their priority, and tells them when messages were handled.
//!
//! Messages move in batches, whose size follows from how long handlers take: a batch is at most [`BATCH_WORK`] of work.
//! Slow handlers thus get one message each and share a queue fairly; fast ones are not bound by round trips. What was
//! taken and could not begin in time is given back for others to take.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{self, FutureExt};
use tokio::time::Instant;

use super::held::Held;
use super::{Note, Source, far_future};
use crate::transport::{MessageId, Received, TransportError};

/// How much work is taken at once, as far as the past tells.
const BATCH_WORK: Duration = Duration::from_millis(20);

/// What has not begun after this time is given back: the past told wrong.
const BATCH_PATIENCE: Duration = Duration::from_millis(100);

/// The most messages taken at once.
const BATCH_MOST: usize = 200;

/// The waits after a store failed: doubled each time, from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Between two looks that found nothing, at least.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

pub(super) struct Intake {
    sources: Vec<Tried>,
    sleep: Duration,
    concurrency: usize,
    /// Taken and not begun.
    taken: VecDeque<(Arc<Source>, Received)>,
    taken_at: Instant,
    held: Held,
    /// Handled, and still in the store.
    handled: Vec<(Arc<Source>, Vec<MessageId>)>,
    next_look: Instant,
    /// How long a message takes, if any has been handled.
    usual: Option<Duration>,
}

/// A source, and how it went when it was last asked.
struct Tried {
    source: Arc<Source>,
    /// The wait after its last failure; none when it is well.
    backoff: Option<Duration>,
    /// It is not asked before.
    next: Instant,
}

impl Tried {
    fn failed(&mut self) {
        let backoff = self.backoff.map_or(FIRST_BACKOFF, |last| (2 * last).min(LONGEST_BACKOFF));
        self.backoff = Some(backoff);
        self.next = Instant::now() + backoff;
    }

    fn had_nothing(&mut self) {
        self.backoff = None;
        // One that tells of what comes need not be asked as often as others.
        let quiet = self.source.transport.waking().and_then(|waking| waking.poll_interval());
        self.next = Instant::now() + quiet.unwrap_or_default();
    }
}

impl Intake {
    pub(super) fn new(sources: Vec<Arc<Source>>, sleep: Duration, concurrency: usize, note: Option<Note>) -> Self {
        let now = Instant::now();
        let handled = sources.iter().map(|source| (Arc::clone(source), Vec::new())).collect();
        Self {
            held: Held::new(&sources, note),
            sources: sources.into_iter().map(|source| Tried { source, backoff: None, next: now }).collect(),
            sleep,
            concurrency,
            taken: VecDeque::new(),
            taken_at: now,
            handled,
            next_look: now,
            usual: None,
        }
    }

    /// The next message to begin with.
    pub(super) fn next(&mut self) -> Option<(Arc<Source>, Received)> {
        self.taken.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Is it time to look for messages?
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.next_look
    }

    /// Looks for messages, in the order of priority, and takes some from the first source that has any.
    ///
    /// Fails only with what cannot get better by itself.
    pub(super) async fn take(&mut self, at_most: u64, in_hand: usize) -> Result<(), TransportError> {
        // One batch at most is handled and not acknowledged: a crash repeats no more than that.
        self.flush().await;
        let free = self.concurrency.saturating_sub(in_hand).max(1);
        for tried in self.sources.iter_mut().filter(|tried| tried.next <= Instant::now()) {
            let source = &tried.source;
            let can_give_back = source.transport.releasing().is_some();
            let size = if can_give_back { batch_size(self.usual, free, self.concurrency) } else { free };
            let size = size.min(usize::try_from(at_most).unwrap_or(usize::MAX));
            match source.transport.receive(size).await {
                Ok(messages) if messages.is_empty() => tried.had_nothing(),
                Ok(messages) => {
                    tried.backoff = None;
                    self.held.take(source, messages.iter().map(|message| message.id.clone()));
                    self.taken.extend(messages.into_iter().map(|message| (Arc::clone(source), message)));
                    self.taken_at = Instant::now();
                    self.look_now();
                    return Ok(());
                }
                Err(error @ (TransportError::NotSetUp { .. } | TransportError::Unsupported { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::error!(%error, "nothing can be received; trying again");
                    tried.failed();
                }
            }
        }
        let now = Instant::now();
        // One in trouble, or that tells of what comes, is asked again in its own time, without making the others wait.
        let looks = self.sources.iter().map(|tried| if tried.next > now { tried.next } else { now + self.sleep });
        self.next_look = looks.min().unwrap_or(now + self.sleep).max(now + SHORTEST_SLEEP);
        Ok(())
    }

    /// Returns when it is time to look again: after the sleep, or, with `true`, when a source says that something came.
    pub(super) async fn ripe(&self) -> bool {
        let well = self.sources.iter().filter(|tried| tried.backoff.is_none());
        let wakes = well.filter_map(|tried| tried.source.transport.waking()).map(|waking| {
            async move {
                // A source that cannot wake leaves it to the sleep.
                if waking.wake().await.is_err() {
                    future::pending::<()>().await;
                }
            }
            .boxed()
        });
        let wakes: Vec<_> = wakes.collect();
        let woken = async { if wakes.is_empty() { future::pending().await } else { future::select_all(wakes).await } };
        tokio::select! {
            _ = woken => true,
            () = tokio::time::sleep_until(self.next_look) => false,
        }
    }

    /// Something came: look at once, at all that are well, as the first ones come first.
    pub(super) fn look_now(&mut self) {
        self.next_look = Instant::now();
        for tried in self.sources.iter_mut().filter(|tried| tried.backoff.is_none()) {
            tried.next = self.next_look;
        }
    }

    /// Returns when what was taken should have begun, and what was handled should be acknowledged, by now.
    pub(super) async fn overdue(&self) {
        let anything = !self.taken.is_empty() || self.handled.iter().any(|(_, ids)| !ids.is_empty());
        let until = if anything { self.taken_at + BATCH_PATIENCE } else { far_future() };
        tokio::time::sleep_until(until).await;
    }

    /// Acknowledges what was handled, and gives back what has not begun. What cannot be given back is handled here after
    /// all.
    pub(super) async fn give_back(&mut self) {
        self.flush().await;
        self.taken_at = Instant::now();
        for tried in &self.sources {
            let source = &tried.source;
            let of_source = |(of, _): &(Arc<Source>, Received)| Arc::ptr_eq(of, source);
            let ids: Vec<MessageId> =
                self.taken.iter().filter(|taken| of_source(taken)).map(|(_, received)| received.id.clone()).collect();
            let Some(releasing) = source.transport.releasing().filter(|_| !ids.is_empty()) else { continue };
            match releasing.release(&ids).await {
                Ok(()) => {
                    self.held.let_go(source, &ids);
                    self.taken.retain(|taken| !of_source(taken));
                }
                Err(error) => tracing::error!(%error, messages = ids.len(), "messages could not be given back"),
            }
        }
    }

    /// A message took so long.
    pub(super) fn learn(&mut self, took: Duration) {
        // Believes a slow message at once and a fast one only by and by: taking too few costs a round trip, taking too
        // many keeps messages from workers that are free.
        self.usual = Some(match self.usual {
            Some(usual) if took < usual => (usual * 4 + took) / 5,
            _ => took,
        });
    }

    /// A message was handled, and is to leave its store with the next [`Intake::flush`].
    pub(super) async fn acknowledge(&mut self, source: &Arc<Source>, id: MessageId) {
        let Some((_, ids)) = self.handled.iter_mut().find(|(of, _)| Arc::ptr_eq(of, source)) else { return };
        ids.push(id);
        if self.usual.is_none_or(|usual| usual >= BATCH_WORK) || ids.len() >= BATCH_MOST {
            self.flush().await;
        }
    }

    /// A message failed, and is somewhere else now.
    pub(super) fn let_go(&mut self, source: &Arc<Source>, id: MessageId) {
        self.held.let_go(source, &[id]);
    }

    /// Starts the `redeliver_timeout` of everything in hand anew.
    pub(super) async fn keep_alive(&mut self) {
        self.held.keep_alive().await;
    }

    /// The end. What is still held is left noted for the supervisor to put back.
    pub(super) fn finish(&mut self) {
        self.held.finish();
    }

    /// Acknowledges what was handled. What cannot be acknowledged now is kept for the next time.
    pub(super) async fn flush(&mut self) {
        for (source, ids) in &mut self.handled {
            if ids.is_empty() {
                continue;
            }
            match source.transport.ack(ids).await {
                Ok(()) => {
                    self.held.let_go(source, ids);
                    ids.clear();
                }
                Err(error) => tracing::error!(
                    %error, messages = ids.len(),
                    "handled messages could not be acknowledged; unless that gets better they are delivered again"
                ),
            }
        }
    }
}

/// How many messages to take when one usually takes so long.
fn batch_size(usual: Option<Duration>, free: usize, concurrency: usize) -> usize {
    let Some(usual) = usual else { return free };
    let each = BATCH_WORK.as_nanos() / usual.as_nanos().max(1);
    let each = usize::try_from(each).unwrap_or(BATCH_MOST).clamp(1, BATCH_MOST);
    let more = (each - 1).saturating_mul(concurrency);
    free.saturating_add(more).min(BATCH_MOST.max(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_at_most_some_milliseconds_of_work() {
        let size = |micros: u64, concurrency| batch_size(Some(Duration::from_micros(micros)), concurrency, concurrency);
        assert_eq!(batch_size(None, 1, 1), 1, "nothing is known yet");
        assert_eq!(size(1_000_000, 1), 1, "slow handlers share fairly");
        assert_eq!(size(5_000, 1), 4);
        assert_eq!(size(5_000, 3), 12);
        assert_eq!(size(1, 1), BATCH_MOST);
        assert_eq!(batch_size(Some(Duration::ZERO), 500, 500), 500, "never fewer than can begin at once");
    }
}

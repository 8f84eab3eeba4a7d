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

pub(super) struct Intake {
    sources: Vec<Arc<Source>>,
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
    /// The last wait after a failure of a store; none when the stores are well.
    backoff: Option<Duration>,
}

impl Intake {
    pub(super) fn new(sources: Vec<Arc<Source>>, sleep: Duration, concurrency: usize, note: Option<Note>) -> Self {
        let now = Instant::now();
        let handled = sources.iter().map(|source| (Arc::clone(source), Vec::new())).collect();
        Self {
            held: Held::new(&sources, note),
            sources,
            sleep,
            concurrency,
            taken: VecDeque::new(),
            taken_at: now,
            handled,
            next_look: now,
            usual: None,
            backoff: None,
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
        let mut trouble = false;
        for source in &self.sources {
            let can_give_back = source.transport.releasing().is_some();
            let size = if can_give_back { self.batch_size(free) } else { free };
            let size = size.min(usize::try_from(at_most).unwrap_or(usize::MAX));
            match source.transport.receive(size).await {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => {
                    self.held.take(source, messages.iter().map(|message| message.id.clone()));
                    self.taken.extend(messages.into_iter().map(|message| (Arc::clone(source), message)));
                    self.taken_at = Instant::now();
                    self.next_look = self.taken_at;
                    self.backoff = None;
                    return Ok(());
                }
                Err(error @ (TransportError::NotSetUp { .. } | TransportError::Unsupported { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::error!(%error, "nothing can be received; trying again");
                    trouble = true;
                }
            }
        }
        self.backoff = trouble.then(|| self.backoff.map_or(FIRST_BACKOFF, |last| (2 * last).min(LONGEST_BACKOFF)));
        self.next_look = Instant::now() + self.backoff.unwrap_or(self.sleep);
        Ok(())
    }

    /// Returns when it is time to look again: after the sleep, or when a source says that something came.
    pub(super) async fn ripe(&self) {
        let wakes = self.sources.iter().filter_map(|source| source.transport.waking()).map(|waking| {
            async move {
                // A source that cannot wake leaves it to the sleep.
                if waking.wake().await.is_err() {
                    future::pending::<()>().await;
                }
            }
            .boxed()
        });
        let wakes: Vec<_> = if self.backoff.is_none() { wakes.collect() } else { Vec::new() };
        let woken = async { if wakes.is_empty() { future::pending().await } else { future::select_all(wakes).await } };
        tokio::select! {
            _ = woken => {}
            () = tokio::time::sleep_until(self.next_look) => {}
        }
    }

    /// Something came: look at once.
    pub(super) fn look_now(&mut self) {
        if self.backoff.is_none() {
            self.next_look = Instant::now();
        }
    }

    /// Returns when what was taken should have begun by now.
    pub(super) async fn overdue(&self) {
        let until = if self.taken.is_empty() { far_future() } else { self.taken_at + BATCH_PATIENCE };
        tokio::time::sleep_until(until).await;
    }

    /// Gives back what has not begun.
    pub(super) async fn give_back(&mut self) {
        for source in &self.sources {
            let ids: Vec<MessageId> = self
                .taken
                .iter()
                .filter(|(of, _)| Arc::ptr_eq(of, source))
                .map(|(_, received)| received.id.clone())
                .collect();
            let Some(releasing) = source.transport.releasing().filter(|_| !ids.is_empty()) else { continue };
            match releasing.release(&ids).await {
                Ok(()) => self.held.let_go(source, &ids),
                Err(error) => tracing::error!(
                    %error, messages = ids.len(),
                    "messages could not be given back; they come again after redeliver_timeout"
                ),
            }
        }
        self.taken.clear();
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

    fn batch_size(&self, free: usize) -> usize {
        let Some(usual) = self.usual else { return free };
        let each = BATCH_WORK.as_nanos() / usual.as_nanos().max(1);
        let each = usize::try_from(each).unwrap_or(BATCH_MOST).clamp(1, BATCH_MOST);
        let more = (each - 1).saturating_mul(self.concurrency);
        free.saturating_add(more).min(BATCH_MOST.max(free))
    }
}

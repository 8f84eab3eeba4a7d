//! The places of a worker: on how many messages its handlers work at once.
//!
//! A message has a [`Place`] from its start to its end. It leaves the place while it waits for its batch, so that another
//! message can be started, and waits for a free one when its handling goes on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::BatchOptions;
use super::collecting::Batch;

/// The places of one worker, and the batches that its messages wait for.
pub(crate) struct Places {
    concurrency: usize,
    state: Mutex<State>,
    /// A place was left.
    freed: Notify,
    /// Tells the worker that a message waits for its batch.
    left: Notify,
}

#[derive(Default)]
struct State {
    taken: usize,
    /// How many messages have left their places, and do not want them back yet.
    away: usize,
    /// Those of each handler.
    batches: HashMap<HandlerId, Arc<Batch>>,
}

/// Tells the handlers of batches apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HandlerId(u64);

impl HandlerId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Places {
    /// The places of a worker that handles this many messages at once.
    pub(crate) fn new(concurrency: usize) -> Arc<Self> {
        Arc::new(Self { concurrency, state: Mutex::default(), freed: Notify::new(), left: Notify::new() })
    }

    /// A place for a message that is started. The caller sees to it that one is free.
    pub(crate) fn take(self: &Arc<Self>) -> Arc<Place> {
        self.state().taken += 1;
        Arc::new(Place { places: Arc::clone(self), begun: Instant::now(), excluded: Mutex::default() })
    }

    /// How many messages are in the hands of the worker, and occupy no place: they wait for their batch.
    pub(crate) fn away(&self) -> usize {
        self.state().away
    }

    /// How many messages wait in batches that are not complete.
    pub(crate) fn collecting(&self) -> usize {
        self.batches().iter().map(|batch| batch.waiting()).sum()
    }

    /// How many messages are missing in the batches that have begun.
    pub(crate) fn missing(&self) -> usize {
        self.batches().iter().map(|batch| batch.missing()).sum()
    }

    /// Lets the messages that wait be handled now.
    pub(crate) fn flush(&self) {
        self.batches().iter().for_each(|batch| batch.flush());
    }

    /// Returns when a message has left its place.
    pub(crate) async fn left(&self) {
        self.left.notified().await;
    }

    fn batches(&self) -> Vec<Arc<Batch>> {
        self.state().batches.values().map(Arc::clone).collect()
    }

    /// Waits for a free place, and takes it.
    async fn retake(&self) {
        loop {
            // Before the look, so that no place that is left after it is missed.
            let freed = self.freed.notified();
            {
                let mut state = self.state();
                if state.taken < self.concurrency {
                    state.taken += 1;
                    return;
                }
            }
            freed.await;
        }
    }

    fn free(&self) {
        self.state().taken -= 1;
        self.freed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a message, and how long the message has been handled.
pub(crate) struct Place {
    places: Arc<Places>,
    begun: Instant,
    /// What of the time since then does not count.
    excluded: Mutex<Duration>,
}

impl Place {
    /// How long the message has been handled, without the time that it has waited. Of the time that its batch has taken,
    /// its share.
    pub(crate) fn worked(&self) -> Duration {
        self.begun.elapsed().saturating_sub(*self.excluded())
    }

    /// The batch that this worker collects for a handler.
    pub(super) fn batch(&self, handler: HandlerId, options: BatchOptions) -> Arc<Batch> {
        let mut state = self.places.state();
        let batch = state.batches.entry(handler).or_insert_with(|| Arc::new(Batch::new(options)));
        Arc::clone(batch)
    }

    /// Lets another message have the place.
    pub(super) fn leave(&self) -> Away<'_> {
        self.places.state().away += 1;
        self.places.free();
        self.places.left.notify_one();
        Away { place: self, since: Instant::now(), state: AwayState::Waits }
    }

    /// This much of the time was spent for several messages.
    pub(super) fn exclude(&self, time: Duration) {
        *self.excluded() += time;
    }

    /// This much of the excluded time was spent for this message.
    pub(super) fn include(&self, time: Duration) {
        let mut excluded = self.excluded();
        *excluded = excluded.saturating_sub(time);
    }

    fn excluded(&self) -> MutexGuard<'_, Duration> {
        self.excluded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.free();
    }
}

/// A message that has left its place.
pub(super) struct Away<'a> {
    place: &'a Place,
    since: Instant,
    state: AwayState,
}

#[derive(PartialEq, Eq)]
enum AwayState {
    Waits,
    WantsBack,
    IsBack,
}

impl Away<'_> {
    /// Waits for a free place.
    pub(super) async fn come_back(mut self) {
        // From now on it comes before messages that are not started yet.
        self.place.places.state().away -= 1;
        self.state = AwayState::WantsBack;
        self.place.places.retake().await;
        self.state = AwayState::IsBack;
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.place.exclude(self.since.elapsed());
        let mut state = self.place.places.state();
        // One that was given up while it waited counts until its worker knows that.
        match self.state {
            AwayState::Waits => {
                state.away -= 1;
                state.taken += 1;
            }
            AwayState::WantsBack => state.taken += 1,
            AwayState::IsBack => {}
        }
    }
}

//! `dispatch_after_current_bus`: messages with a [`DispatchAfterCurrentBusStamp`] that a handler dispatches wait until the
//! message that is being handled was handled well. If it fails, they are dropped.
//!
//! They wait in memory, for no longer than the message's own handling, and are dispatched before it is acknowledged. So a
//! crash repeats the message and with it the dispatches.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::error::DelayedFailed;
use super::{DispatchError, Middleware, Next};
use crate::message::{DispatchAfterCurrentBusStamp, Envelope};

pub(super) struct DispatchAfterCurrentBus;

/// Messages that wait for the end of the outermost dispatch or handling.
#[derive(Default)]
pub(super) struct Deferred {
    /// `None`: it has ended, and nothing waits for it any more.
    waiting: Mutex<Option<Waiting>>,
}

type Waiting = VecDeque<(Envelope, Next)>;

/// The outermost dispatch or handling. When it ends, whatever still waits is dropped: also when it is broken off.
struct Outermost(Arc<Deferred>);

impl Deferred {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // A panic while the lock is held leaves nothing half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.waiting().is_some()
    }

    /// Keeps a message, unless the outermost dispatch has ended: a task may outlive the handler that has started it.
    fn keep(&self, envelope: Envelope, next: Next) -> Result<(), Next> {
        match &mut *self.waiting() {
            Some(waiting) => {
                // What stores the messages that are dispatched now may be gone by then.
                waiting.push_back((envelope, next.with_outlet(None)));
                Ok(())
            }
            None => Err(next),
        }
    }

    fn take(&self) -> Option<(Envelope, Next)> {
        self.waiting().as_mut()?.pop_front()
    }

    fn len(&self) -> usize {
        self.waiting().as_ref().map_or(0, VecDeque::len)
    }

    /// Drops those after the first `len`.
    fn truncate(&self, len: usize) {
        let dropped = self.waiting().as_mut().map(|waiting| waiting.split_off(len.min(waiting.len())));
        // Without the lock: what is dropped may hold anything.
        drop(dropped);
    }
}

impl Drop for Outermost {
    fn drop(&mut self) {
        // Each of those that wait refers to the list that it is in.
        let dropped = self.0.waiting().take();
        drop(dropped);
    }
}

#[async_trait]
impl Middleware for DispatchAfterCurrentBus {
    async fn handle(&self, envelope: Envelope, mut next: Next) -> Result<Envelope, DispatchError> {
        let is_stamped = envelope.last::<DispatchAfterCurrentBusStamp>().is_some();
        if is_stamped && next.is_in_transaction() {
            let message_type = envelope.message_type().to_owned();
            let why = "its DispatchAfterCurrentBusStamp says that it waits, and the transaction may have ended then"
                .to_owned();
            return Err(DispatchError::NotInTransaction { message_type, why });
        }
        let plain =
            if is_stamped { envelope.clone().without::<DispatchAfterCurrentBusStamp>() } else { envelope.clone() };
        if let Some(current) = next.scope().deferred.clone() {
            if is_stamped {
                match current.keep(plain.clone(), next) {
                    Ok(()) => return Ok(envelope),
                    Err(too_late) => next = too_late,
                }
            } else if current.is_open() {
                return next.run(plain).await;
            }
        }
        let outermost = Outermost(Arc::new(Deferred { waiting: Mutex::new(Some(VecDeque::new())) }));
        next.scope_mut().deferred = Some(Arc::clone(&outermost.0));
        let handled = next.run(plain).await?;
        outermost.dispatch_all(handled).await
    }
}

impl Outermost {
    /// Dispatches what waits, in order. An error of one does not hold up the others, and drops only those that it has
    /// added.
    async fn dispatch_all(self, handled: Envelope) -> Result<Envelope, DispatchError> {
        let mut failures = Vec::new();
        while let Some((envelope, next)) = self.0.take() {
            let before = self.0.len();
            let message_type = envelope.message_type().to_owned();
            if let Err(error) = next.run(envelope).await {
                self.0.truncate(before);
                failures.push((message_type, error));
            }
        }
        if failures.is_empty() {
            return Ok(handled);
        }
        Err(DispatchError::Delayed(Box::new(DelayedFailed { envelope: handled, failures })))
    }
}

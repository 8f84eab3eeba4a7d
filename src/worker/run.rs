//! One run of a worker: receives messages, has them handled, and settles them, until something stops it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::intake::Intake;
use super::limits::LimitTracker;
use super::outcome::{self, Finished, Outcome};
use super::quarantine::{Quarantine, Quarantined};
use super::reporting::{FailedMessage, Reporter};
use super::settle::{FailureAction, Settled, settle};
use super::source::Source;
use super::{StopReason, StopToken, Worker, far_future};
use crate::events::{Event, EventMessage};
use crate::handler::Places;
use crate::message::ErrorDetailsStamp;
use crate::transport::{MessageId, TransportError};

/// One run of a worker: what it is doing, and what it has done.
pub(super) struct Run<'a> {
    pub(super) worker: &'a Worker,
    pub(super) intake: Intake,
    pub(super) limits: LimitTracker,
    /// The messages that are being handled.
    pub(super) running: FuturesUnordered<BoxFuture<'static, Option<Finished>>>,
    /// On how many of them handlers work.
    pub(super) places: Arc<Places>,
    pub(super) quarantine: Quarantine,
    /// The failed messages that are being settled.
    pub(super) settling: FuturesUnordered<BoxFuture<'static, (Settled, Option<FailedMessage>)>>,
    pub(super) next_keepalive: Instant,
    pub(super) reporter: Arc<Reporter>,
    /// Whether it was told that there is no message.
    pub(super) is_idle: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(worker: &'a Worker, reporter: Arc<Reporter>) -> Self {
        Self {
            worker,
            is_idle: false,
            intake: Intake::new(
                worker.sources.clone(),
                worker.options.sleep,
                worker.options.concurrency,
                worker.in_flight.clone(),
                worker.dispatched.clone(),
                Arc::clone(&reporter),
            ),
            reporter,
            limits: LimitTracker::new(worker.options.clone()),
            running: FuturesUnordered::new(),
            places: Places::new(worker.options.concurrency),
            quarantine: Quarantine::new(worker.options.move_unhandleable),
            settling: FuturesUnordered::new(),
            next_keepalive: next_keepalive(worker.options.keepalive),
        }
    }

    pub(super) async fn until_stopped(&mut self, stop: &StopToken) -> Result<StopReason, TransportError> {
        let mut stopping = stop.clone();
        loop {
            if let Some(reason) = stop.requested().or_else(|| self.limits.reached()) {
                return Ok(reason);
            }
            if self.quarantine.foreign_queue().is_some() {
                return Ok(StopReason::Unhandleable);
            }
            // A busy worker is never idle, as below.
            let strays = self.quarantine.take_strays();
            self.settle_unhandleable(strays, stop);
            self.work(stop);
            if let Some(finished) = self.running.next().now_or_never().flatten() {
                self.finished(finished, stop);
                continue;
            }
            // The last poll found nothing more, so the quarantined messages are not the start of a queue.
            self.flush_batches();
            let is_idle = self.running.is_empty() && self.intake.is_empty() && !self.intake.is_polling();
            if is_idle && !self.quarantine.is_empty() {
                let strays = self.quarantine.take_all();
                self.settle_unhandleable(strays, stop);
            }
            if is_idle && !std::mem::replace(&mut self.is_idle, true) {
                self.reporter.tell(&Event::WorkerRunning { is_idle });
            }
            if is_idle && self.worker.is_brief && self.intake.have_answered() {
                return Ok(StopReason::Idle);
            }
            let until = self.limits.deadline().min(self.quarantine.next_stray_at().unwrap_or_else(far_future));
            tokio::select! {
                result = self.step(stop, true) => result?,
                () = stopping.wait() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Starts to handle received messages, as far as the concurrency allows, and polls for more.
    pub(super) fn work(&mut self, stop: &StopToken) {
        self.start_handling(stop);
        if self.may_start_more() {
            let (at_most, missing) = (self.limits.remaining(self.running.len()), self.places.missing());
            self.intake.poll_sources(at_most, self.busy(), missing);
        }
    }

    pub(super) fn start_handling(&mut self, stop: &StopToken) {
        while self.may_start_more() {
            let Some((source, received)) = self.intake.next() else { break };
            let (bus, reporter) = (self.worker.bus.clone(), Arc::clone(&self.reporter));
            let handling = outcome::handle(bus, source, received, stop.clone(), reporter, self.places.take());
            let handling = self.worker.then_reset(handling, stop.clone());
            self.running.push(if self.uses_tasks() { in_task(handling).boxed() } else { handling.map(Some).boxed() });
        }
    }

    /// Lets batches be handled as they are, if this worker has nothing to add to them: everything that is being handled waits in
    /// one, and there are no further messages, or none that may be started.
    pub(super) fn flush_batches(&mut self) {
        let waiting = self.places.collecting();
        let is_done = !self.may_start_more() || (self.intake.is_empty() && !self.intake.is_polling());
        if waiting > 0 && waiting >= self.running.len() && is_done {
            self.places.flush();
        }
    }

    /// Whether handlers run in tasks of their own. Otherwise a handler that computes without a pause would delay the
    /// other handlers and the keepalive. A task costs more than a quick handler, so there is none where it is not
    /// needed.
    fn uses_tasks(&self) -> bool {
        self.worker.options.concurrency > 1 || self.worker.options.keepalive.is_some()
    }

    pub(super) fn may_start_more(&self) -> bool {
        self.busy() < self.worker.options.concurrency && self.limits.remaining(self.running.len()) > 0
    }

    /// How many messages occupy a place. Those that wait for a batch leave theirs to others.
    fn busy(&self) -> usize {
        self.running.len().saturating_sub(self.places.away())
    }

    /// Waits for the next thing to do, and does it: a message is finished, a store has responded, or if
    /// `wants_messages`, new ones may be pending. Cancel safe.
    pub(super) async fn step(&mut self, stop: &StopToken, wants_messages: bool) -> Result<(), TransportError> {
        let wants_messages = wants_messages && self.may_start_more();
        tokio::select! {
            Some(finished) = self.running.next() => self.finished(finished, stop),
            Some(settled) = self.settling.next() => self.settled(settled),
            event = self.intake.next_event(wants_messages) => self.intake.handle_event(event)?,
            () = tokio::time::sleep_until(self.next_keepalive) => self.keep_alive(),
            // The caller looks whether others can be started, or the batch is complete.
            () = self.places.left() => {}
        }
        Ok(())
    }

    fn keep_alive(&mut self) {
        self.intake.keep_alive();
        self.next_keepalive = next_keepalive(self.worker.options.keepalive);
    }

    fn finished(&mut self, finished: Option<Finished>, stop: &StopToken) {
        // The bus catches panics of handlers. A missing result was aborted by a runtime that shuts down.
        let Some(Finished { source, id, took, outcome, message }) = finished else { return };
        stop.heed_handlers();
        self.limits.count(matches!(outcome, Outcome::Handled));
        // How quickly it is clear that there is no handler says nothing about handlers.
        if !matches!(outcome, Outcome::Unhandleable(_)) {
            self.intake.record_duration(took);
            let strays = self.quarantine.confirm(&source);
            self.settle_unhandleable(strays, stop);
        }
        match outcome {
            Outcome::Handled => {
                self.intake.acknowledge(&source, id);
                if let Some(message) = &message {
                    self.reporter.tell(&Event::MessageHandled { message });
                }
            }
            Outcome::Failed(action, error) => self.settle(source, id, action, message.map(|it| (it, *error)), stop),
            Outcome::Unhandleable(message) => {
                let stray = self.quarantine.add(Quarantined { source, id, message });
                self.settle_unhandleable(stray, stop);
            }
        }
        self.is_idle = false;
        self.reporter.tell(&Event::WorkerRunning { is_idle: false });
        // When nothing more is being handled, nothing would complete the batch of acknowledgements.
        if self.running.is_empty() && self.intake.is_empty() {
            self.intake.flush();
        }
    }

    pub(super) fn settle_unhandleable(&mut self, messages: impl IntoIterator<Item = Quarantined>, stop: &StopToken) {
        for Quarantined { source, id, message } in messages {
            let told = message.told(self.reporter.wants_messages(), &source, &id);
            let action = outcome::action_for_unhandleable(&source, &id, message);
            self.settle(source, id, action, told, stop);
        }
    }

    /// `told` is what those get who want to know.
    fn settle(
        &mut self,
        source: Arc<Source>,
        id: MessageId,
        action: FailureAction,
        told: Option<(Box<EventMessage>, ErrorDetailsStamp)>,
        stop: &StopToken,
    ) {
        self.intake.start_settling(&source);
        let failed = told.map(|(message, error)| {
            let fate = outcome::fate(&source, &action);
            FailedMessage { message, error, fate }
        });
        if let Some(failed) = &failed {
            self.reporter.failed(failed);
        }
        let settled = settle(source, id, action, stop.clone());
        self.settling.push(settled.map(|settled| (settled, failed)).boxed());
    }

    pub(super) fn settled(&mut self, (settled, failed): (Settled, Option<FailedMessage>)) {
        self.intake.finish_settling(&settled.source, settled.id, settled.stored);
        if let Some(failed) = failed.filter(|_| settled.stored) {
            self.reporter.settled(&failed);
        }
    }
}

impl Worker {
    /// What is done for one message: it is handled, and then what handlers share is reset.
    fn then_reset(
        &self,
        handling: impl Future<Output = Finished> + Send + 'static,
        stop: StopToken,
    ) -> impl Future<Output = Finished> + Send + 'static {
        let parts = (!self.options.no_reset && !self.parts.resets.is_empty()).then(|| Arc::clone(&self.parts));
        async move {
            let finished = handling.await;
            if let Some(parts) = parts
                && !parts.resets.run(&parts.handlers).await
            {
                stop.request(StopReason::NotReset);
            }
            finished
        }
    }
}

/// Runs in a task of its own, which is aborted when this future is dropped.
async fn in_task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    task.join_next().await?.ok()
}

fn next_keepalive(every: Option<Duration>) -> Instant {
    every.and_then(|every| Instant::now().checked_add(every)).unwrap_or_else(far_future)
}

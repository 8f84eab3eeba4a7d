//! How a worker ends: it finishes what it has begun, gives back what it has not, and tells everyone who has to know.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use tokio::time::Instant;

use super::run::Run;
use super::{StopReason, StopToken, Worker, far_future};
use crate::cache::READ_TTL;
use crate::heartbeat::WorkerHeartbeat;
use crate::transport::TransportError;

/// How long a worker at its time limit goes on with messages that arrived after its last poll.
const FINAL_POLL: Duration = Duration::from_secs(2);

/// How long an ending worker waits until its stores have taken the failed messages.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an ending worker waits until its servers have confirmed the last acknowledgements.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Run<'_> {
    /// Ends the run, which was stopped with this result. Returns what is wrong where the next worker would meet it again.
    pub(super) async fn end(
        &mut self,
        stop: &StopToken,
        result: &Result<StopReason, TransportError>,
        heartbeat: Option<WorkerHeartbeat>,
    ) -> Option<String> {
        let is_brief = self.worker.is_brief;
        // Nothing new is started from here on, so producers must not rely on this worker, however long it takes to
        // finish.
        stop.stop_retrying();
        let withdraw = async {
            if let Some(heartbeat) = heartbeat {
                heartbeat.stop().await;
            }
        };
        tokio::join!(withdraw, self.finish_running(stop));
        // What producers have queued because of the heartbeat.
        if !is_brief && result.as_ref().is_ok_and(|reason| *reason == StopReason::TimeLimit) {
            self.poll_once_more(stop).await;
        }
        let is_stuck = result.as_ref().is_ok_and(|reason| *reason == StopReason::Unhandleable);
        let mut problem = if is_stuck { self.quarantine.foreign_queue() } else { None };
        self.close(stop, problem.is_some()).await;
        if is_brief && problem.is_none() && !self.intake.have_answered() {
            problem = Some("its store does not answer; the log says why".to_owned());
        }
        let worker = self.worker;
        worker.close_connections().await;
        stop.finished();
        // Last, as handlers may take their time.
        worker.parts.handlers.worker_stopped().await;
        problem
    }

    /// Handles messages that were queued since the last poll, because producers saw this worker's heartbeat. That poll
    /// may be as long ago as the sleep, or as the last handler has taken. Goes on only for a moment: under load there
    /// are always more.
    async fn poll_once_more(&mut self, stop: &StopToken) {
        tokio::time::sleep(READ_TTL).await;
        self.intake.poll_now();
        let end = Instant::now() + FINAL_POLL;
        let mut stopping = stop.clone();
        while Instant::now() < end && stop.requested().is_none() {
            self.work(stop);
            self.flush_batches();
            let is_done = !self.may_start_more() || !self.intake.is_polling();
            if self.running.is_empty() && self.intake.is_empty() && is_done {
                break;
            }
            tokio::select! {
                result = self.step(stop, true) => if result.is_err() { break },
                () = stopping.wait() => {}
                () = tokio::time::sleep_until(end) => {}
            }
        }
        self.finish_running(stop).await;
    }

    /// Finishes the messages that are being handled, and handles those that were prefetched, as far as the message
    /// limit allows. Releases all others that were received.
    async fn finish_running(&mut self, stop: &StopToken) {
        self.intake.release_unprefetched();
        self.intake.stop_prefetching();
        self.start_handling(stop);
        if !self.running.is_empty() {
            tracing::info!(messages = self.running.len(), "finishing the current messages");
        }
        loop {
            let prefetched = self.intake.prefetched_until();
            if prefetched.is_none() {
                self.places.flush();
            }
            if self.running.is_empty() && prefetched.is_none() {
                break;
            }
            tokio::select! {
                // Errors of receiving no longer matter.
                _ = self.step(stop, false) => {}
                () = tokio::time::sleep_until(prefetched.unwrap_or_else(far_future)) => {}
            }
            self.intake.release_unprefetched();
            self.start_handling(stop);
        }
    }

    /// Called when the worker ends. A worker that `is_stuck` releases the quarantined messages for others; any other
    /// settles them. Waits for the stores to respond, but not for those that hang.
    async fn close(&mut self, stop: &StopToken, is_stuck: bool) {
        let quarantined = self.quarantine.take_all();
        if is_stuck {
            // They have not failed: nothing here has tried them.
            self.limits.failed = self.limits.failed.saturating_sub(quarantined.len() as u64);
            self.intake.release(quarantined.into_iter().map(|message| (message.source, message.id)));
        } else {
            self.settle_unhandleable(quarantined, stop);
        }
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            self.intake.release_unstarted();
            let stores = self.intake.busy_until();
            let Some(until) = stores.into_iter().chain((!self.settling.is_empty()).then_some(deadline)).max() else {
                break;
            };
            tokio::select! {
                Some(settled) = self.settling.next() => self.settled(settled),
                event = self.intake.next_event(false) => if self.intake.handle_event(event).is_err() { break },
                () = tokio::time::sleep_until(until.min(deadline)) => break,
            }
        }
        self.intake.finish();
    }
}

impl Worker {
    /// Waits until the servers have confirmed the last acknowledgements.
    async fn close_connections(&self) {
        let connections = self.sources.iter().filter_map(|source| source.transport.connecting.as_ref());
        let closing = join_all(connections.map(|connecting| connecting.close()));
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!(
                "a server did not confirm the last acknowledgements; messages whose acknowledgement it has not received are delivered again"
            );
        }
    }
}

//! Consumes: receives messages from transports in the order of their priority, handles them, and then acknowledges
//! them, retries them later, or moves them to the failure transport.
//!
//! The order is that of Symfony's worker: the first transport is polled first, and again after every message. A worker
//! stops at a limit, at a signal, or when it is asked to. It always finishes the messages that it has started, and
//! releases those that it has received and not started.

mod hooks;
mod in_flight;
mod intake;
mod limits;
mod outcome;
mod presence;
mod quarantine;
mod rate_limit;
mod reporting;
mod reset;
mod retry;
mod settle;
mod shrink;
mod source_client;
mod stop;
mod strategy;
mod taken;
#[cfg(test)]
mod tests;
mod tracker;

pub(crate) use hooks::Hooks;
pub(crate) use in_flight::UNFINISHED;
pub(crate) use in_flight::{InFlight, InFlightBatch, InFlightFile};
pub use limits::StopReason;
pub(crate) use presence::Presence;
pub(crate) use presence::{InProcessWorker, in_process_workers};
pub(crate) use rate_limit::RateLimiters;
pub(crate) use reset::Resets;
pub(crate) use stop::{StopBroadcast, StopToken};
pub(crate) use strategy::{ALL as ALL_TRANSPORTS, RetryStrategies};
pub use strategy::{FailedAttempt, RetryStrategy};
pub(crate) use taken::{Taken, only};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::{self, BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::cache::READ_TTL;
use crate::config::{Config, ConsumeOptions, SHORTEST_INTERVAL};
use crate::events::{Event, EventMessage, Listeners};
use crate::handler::{Batch, Handler, Handlers};
use crate::heartbeat::{Heartbeats, WorkerHeartbeat};
use crate::message::ErrorDetailsStamp;
use crate::serializer::Serializers;
use crate::transport::{MessageId, Receiver, Transport, TransportError, Transports};

use intake::Intake;
use limits::LimitTracker;
use outcome::{Finished, Outcome};
use quarantine::{Quarantine, Quarantined};
use rate_limit::RateLimiter;
use reporting::{FailedMessage, Reporter};
use settle::{FailureAction, Settled, settle};
use strategy::Retrial;

/// How long a worker at its time limit goes on with messages that arrived after its last poll.
const FINAL_POLL: Duration = Duration::from_secs(2);

/// How long a store may take to make its parked messages due.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an ending worker waits until its stores have taken the failed messages.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an ending worker waits until its servers have confirmed the last acknowledgements.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a worker has done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerSummary {
    /// Messages handled successfully.
    pub handled: u64,
    /// Failed attempts to handle messages.
    pub failed: u64,
    /// Why it stopped.
    pub reason: StopReason,
    /// With [`StopReason::Unhandleable`]: what is wrong, and what to do before such a worker is started again.
    pub problem: Option<String>,
}

/// A transport that is consumed, and what to do with its messages when they fail.
pub(crate) struct Source {
    /// The name under which it is consumed, which may be an auto-fallback's.
    name: String,
    /// The transport that is really read: an auto-fallback's target.
    transport: Arc<Transport>,
    receiver: Arc<dyn Receiver>,
    serializers: Arc<Serializers>,
    retry: Retrial,
    limiter: Option<Arc<RateLimiter>>,
    on_failure: OnFailure,
}

/// What to do with messages that failed for good.
enum OnFailure {
    /// Move them to the failure transport.
    MoveTo(Arc<Transport>),
    /// Park them where they are: this is the failure transport.
    Park,
    /// Discard them: there is no failure transport.
    Discard,
}

/// What an application gives its workers, besides the bus.
#[derive(Default)]
pub(crate) struct WorkerParts {
    /// When failed messages are tried again, where code says so.
    pub(crate) strategies: RetryStrategies,
    /// What is called between messages.
    pub(crate) resets: Resets,
    /// How many messages are begun in a time.
    pub(crate) limiters: RateLimiters,
    /// The application's functions that want to know what happens.
    pub(crate) listeners: Listeners,
    /// The configuration's programs and URLs that do.
    pub(crate) hooks: Hooks,
    /// They have the states that are reset.
    pub(crate) handlers: Arc<Handlers>,
}

/// Consumes transports until something stops it.
pub(crate) struct Worker {
    bus: Bus,
    parts: Arc<WorkerParts>,
    sources: Vec<Arc<Source>>,
    /// Each name that was asked for, with the name of the transport that is really read.
    names: Vec<(String, String)>,
    heartbeats: Heartbeats,
    heartbeat_ttl: Duration,
    options: ConsumeOptions,
    /// Whether to make parked messages due before anything else, instead of leaving them parked.
    resume: bool,
    /// Whether to stop when no message is pending. Such a worker is gone in a moment and has no heartbeat: producers must
    /// not rely on it.
    is_brief: bool,
    /// Where to record which messages are in flight.
    in_flight: Option<InFlightFile>,
    /// Notified when this process has queued a message for this worker.
    dispatched: Arc<Notify>,
    /// Told when the worker ends.
    handlers: Option<Arc<Handlers>>,
    /// Those of them that collect messages.
    batching: Vec<Arc<dyn Handler>>,
}

impl Worker {
    /// A worker that consumes the given transports, the first one before all others. Fails if one does not exist or
    /// cannot be consumed. If `options` names queues, `transports` must already be limited to these.
    pub(crate) fn new(
        config: &Config,
        bus: Bus,
        transports: &Transports,
        parts: &Arc<WorkerParts>,
        heartbeats: Heartbeats,
        consumed: &[String],
        options: ConsumeOptions,
    ) -> Result<Self, TransportError> {
        let mut sources: Vec<Arc<Source>> = Vec::new();
        let mut names = Vec::new();
        for name in consumed {
            let source = source(config, transports, parts, name)?;
            names.push((name.clone(), source.transport.name().to_owned()));
            if sources.iter().all(|other| other.transport.name() != source.transport.name()) {
                sources.push(Arc::new(source));
            }
        }
        let dispatched = bus.notify_of(sources.iter().map(|source| source.transport.name().to_owned()));
        // The command line enforces these minimums, but code may not.
        let options = ConsumeOptions {
            concurrency: options.concurrency.max(1),
            sleep: options.sleep.max(SHORTEST_INTERVAL),
            keepalive: options.keepalive.map(|every| keepalive_interval(every, &sources)),
            ..options
        };
        let heartbeat_ttl = config.heartbeat_ttl;
        Ok(Self {
            bus,
            parts: Arc::clone(parts),
            sources,
            names,
            heartbeats,
            heartbeat_ttl,
            options,
            resume: false,
            is_brief: false,
            in_flight: None,
            dispatched,
            handlers: None,
            batching: Vec::new(),
        })
    }

    /// The same worker, which makes parked messages due before anything else if `resume` is set.
    #[must_use]
    pub(crate) fn resuming(self, resume: bool) -> Self {
        Self { resume, ..self }
    }

    /// The same worker, which stops when no message is pending, and has no heartbeat.
    #[must_use]
    pub(crate) fn brief(self, is_brief: bool) -> Self {
        Self { is_brief, ..self }
    }

    /// The same worker, which records in this file which messages are in flight, for the supervisor to find after a
    /// crash.
    #[must_use]
    pub(crate) fn recording(self, in_flight: Option<InFlightFile>) -> Self {
        Self { in_flight, ..self }
    }

    /// The same worker, which tells these handlers when it has handled its last message.
    #[must_use]
    pub(crate) fn telling(self, handlers: Arc<Handlers>) -> Self {
        Self { batching: handlers.batching(), handlers: Some(handlers), ..self }
    }

    fn batches(&self) -> impl Iterator<Item = &Batch> {
        self.batching.iter().filter_map(|handler| handler.batch())
    }

    /// How many messages wait in the batches of handlers.
    fn waiting(&self) -> usize {
        self.batches().map(Batch::waiting).sum()
    }

    /// Returns when a message has begun to wait in a batch.
    async fn batch_grows(&self) {
        if self.batching.is_empty() {
            return future::pending().await;
        }
        future::select_all(self.batches().map(|batch| batch.added().boxed())).await;
    }

    /// Makes parked messages due.
    async fn resume(&self, stop: &StopToken) {
        let mut stopping = stop.clone();
        for source in &self.sources {
            let Some(parking) = &source.transport.parking else { continue };
            let resumed = tokio::select! {
                resumed = tokio::time::timeout(RESUME_TIMEOUT, parking.resume()) => resumed,
                () = stopping.wait() => return,
            };
            match resumed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "messages stay parked"),
                Err(_) => tracing::error!(transport = source.name, "messages stay parked: no answer"),
            }
        }
    }

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

    /// The names under which producers ask whether a source is consumed: its own, and those of its auto-fallbacks.
    fn names_of(&self, source: &Source) -> Vec<String> {
        let own = source.transport.name();
        let others = self.names.iter().filter(|(_, target)| target == own).map(|(name, _)| name.as_str());
        let names: BTreeSet<&str> = others.chain([own]).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Consumes until a limit is reached or `stop` is requested. `owner` identifies this worker's heartbeats.
    ///
    /// If a store fails, the error is logged, and the worker tries again for as long as it runs. An error that trying
    /// again cannot remedy (a table that is missing and may not be created) ends the worker.
    pub(crate) async fn run(&self, owner: &str, stop: &mut StopToken) -> Result<WorkerSummary, TransportError> {
        let names = self.sources.iter().map(|source| self.names_of(source)).collect();
        let (heartbeats, name) = (self.heartbeats.clone(), owner.to_owned());
        let heartbeat = (!self.is_brief).then(|| WorkerHeartbeat::start(heartbeats, names, name, self.heartbeat_ttl));
        if self.resume {
            self.resume(stop).await;
        }
        let reporter = Arc::new(Reporter::new(self.parts.listeners.clone(), self.parts.hooks.start(owner)));
        if !self.is_brief {
            let transports: Vec<String> = self.names.iter().map(|(name, _)| name.clone()).collect();
            reporter.tell(&Event::WorkerStarted { transports: &transports });
        }
        let mut run = Run::new(self, Arc::clone(&reporter));
        if let Some(heartbeat) = &heartbeat {
            run.intake.report_to(heartbeat.reporter());
        }
        let result = run.until_stopped(stop).await;
        // Nothing new is started from here on, so producers must not rely on this worker, however long it takes to
        // finish.
        stop.stop_retrying();
        let withdraw = async {
            if let Some(heartbeat) = heartbeat {
                heartbeat.stop().await;
            }
        };
        tokio::join!(withdraw, run.finish_running(stop));
        // What producers have queued because of the heartbeat.
        if !self.is_brief && result.as_ref().is_ok_and(|reason| *reason == StopReason::TimeLimit) {
            run.poll_once_more(stop).await;
        }
        let is_stuck = result.as_ref().is_ok_and(|reason| *reason == StopReason::Unhandleable);
        let mut problem = if is_stuck { run.quarantine.foreign_queue() } else { None };
        run.close(stop, problem.is_some()).await;
        if self.is_brief && problem.is_none() && !run.intake.have_answered() {
            problem = Some("its store does not answer; the log says why".to_owned());
        }
        if let Some(handlers) = &self.handlers {
            handlers.worker_stopped().await;
        }
        let connections = self.sources.iter().filter_map(|source| source.transport.connecting.as_ref());
        let closing = join_all(connections.map(|connecting| connecting.close()));
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!(
                "a server did not confirm the last acknowledgements; messages whose acknowledgement it has not received are delivered again"
            );
        }
        let (handled, failed) = (run.limits.handled, run.limits.failed);
        if !self.is_brief {
            reporter.stopped(handled, failed, &result);
        }
        reporter.finish().await;
        result.map(|reason| WorkerSummary { handled, failed, reason, problem })
    }
}

/// A unique name for a worker: its host, its process, and a number within the process.
pub(crate) fn owner() -> String {
    static WORKERS: AtomicU32 = AtomicU32::new(0);
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let number = WORKERS.fetch_add(1, Ordering::Relaxed);
    format!("worker-{host}-{}-{started}-{number}", std::process::id())
}

fn source(config: &Config, transports: &Transports, parts: &WorkerParts, name: &str) -> Result<Source, TransportError> {
    let transport = transports.target(name)?;
    let receiver = transport.receiver.clone().ok_or_else(|| TransportError::Unsupported {
        transport: name.to_owned(),
        what: "be consumed",
        why: "its messages are handled while they are dispatched",
    })?;
    // The settings of an auto-fallback come before those of its target.
    let configs = [config.transports.get(name), config.transports.get(transport.name())];
    let retry = parts.strategies.of(config, [name, transport.name()]);
    let limiter = parts.limiters.of_transport(config, [name, transport.name()]);
    let own = configs.into_iter().flatten().find_map(|config| config.failure_transport.as_ref());
    let on_failure = match own.or(config.failure_transport.as_ref()).map(|name| transports.target(name)).transpose()? {
        Some(failure) if failure.name() == transport.name() => OnFailure::Park,
        // Messages stay on a failure transport, unless it has a failure transport of its own.
        _ if own.is_none() && is_failure_transport(config, transports, transport.name()) => OnFailure::Park,
        Some(failure) => OnFailure::MoveTo(failure),
        None => OnFailure::Discard,
    };
    Ok(Source {
        name: name.to_owned(),
        transport,
        receiver,
        serializers: transports.serializers(),
        retry,
        limiter,
        on_failure,
    })
}

/// Whether messages that failed for good are moved to this transport.
pub(crate) fn is_failure_transport(config: &Config, transports: &Transports, transport: &str) -> bool {
    let own = config.transports.values().filter_map(|transport| transport.failure_transport.as_ref());
    let mut names = own.chain(&config.failure_transport);
    names.any(|name| transports.target(name).is_ok_and(|failure| failure.name() == transport))
}

/// One run of a worker: what it is doing, and what it has done.
struct Run<'a> {
    worker: &'a Worker,
    intake: Intake,
    limits: LimitTracker,
    /// The messages that are being handled.
    running: FuturesUnordered<BoxFuture<'static, Option<Finished>>>,
    quarantine: Quarantine,
    /// The failed messages that are being settled.
    settling: FuturesUnordered<BoxFuture<'static, (Settled, Option<FailedMessage>)>>,
    next_keepalive: Instant,
    reporter: Arc<Reporter>,
    /// Whether it was told that there is no message.
    is_idle: bool,
}

impl<'a> Run<'a> {
    fn new(worker: &'a Worker, reporter: Arc<Reporter>) -> Self {
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
            quarantine: Quarantine::new(worker.options.move_unhandleable),
            settling: FuturesUnordered::new(),
            next_keepalive: next_keepalive(worker.options.keepalive),
        }
    }

    async fn until_stopped(&mut self, stop: &StopToken) -> Result<StopReason, TransportError> {
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

    /// Starts to handle received messages, as far as the concurrency allows, and polls for more.
    fn work(&mut self, stop: &StopToken) {
        self.start_handling(stop);
        if self.may_start_more() {
            let busy = self.running.len().saturating_sub(self.worker.waiting());
            self.intake.poll_sources(self.limits.remaining(self.running.len()), busy);
        }
    }

    fn start_handling(&mut self, stop: &StopToken) {
        while self.may_start_more() {
            let Some((source, received)) = self.intake.next() else { break };
            let handling =
                outcome::handle(self.worker.bus.clone(), source, received, stop.clone(), Arc::clone(&self.reporter));
            let handling = self.worker.then_reset(handling, stop.clone());
            self.running.push(if self.uses_tasks() { in_task(handling).boxed() } else { handling.map(Some).boxed() });
        }
    }

    /// Lets batches be handled as they are, if this worker has nothing to add to them: everything that is being handled waits in
    /// one, and there are no further messages, or none that may be started.
    fn flush_batches(&mut self) {
        let waiting = self.worker.waiting();
        let is_done = !self.may_start_more() || (self.intake.is_empty() && !self.intake.is_polling());
        if waiting > 0 && waiting >= self.running.len() && is_done {
            self.worker.batches().for_each(Batch::flush);
        }
    }

    /// Whether handlers run in tasks of their own. Otherwise a handler that computes without a pause would delay the
    /// other handlers and the keepalive. A task costs more than a quick handler, so there is none where it is not
    /// needed.
    fn uses_tasks(&self) -> bool {
        self.worker.options.concurrency > 1 || self.worker.options.keepalive.is_some()
    }

    fn may_start_more(&self) -> bool {
        // What waits in a batch leaves room for the others.
        let busy = self.running.len().saturating_sub(self.worker.waiting());
        busy < self.worker.options.concurrency && self.limits.remaining(self.running.len()) > 0
    }

    /// Waits for the next thing to do, and does it: a message is finished, a store has responded, or if
    /// `wants_messages`, new ones may be pending. Cancel safe.
    async fn step(&mut self, stop: &StopToken, wants_messages: bool) -> Result<(), TransportError> {
        let wants_messages = wants_messages && self.may_start_more();
        tokio::select! {
            Some(finished) = self.running.next() => self.finished(finished, stop),
            Some(settled) = self.settling.next() => self.settled(settled),
            event = self.intake.next_event(wants_messages) => self.intake.handle_event(event)?,
            () = tokio::time::sleep_until(self.next_keepalive) => self.keep_alive(),
            // The caller looks whether others can be started, or the batch is complete.
            () = self.worker.batch_grows() => {}
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

    fn settle_unhandleable(&mut self, messages: impl IntoIterator<Item = Quarantined>, stop: &StopToken) {
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

    fn settled(&mut self, (settled, failed): (Settled, Option<FailedMessage>)) {
        self.intake.finish_settling(&settled.source, settled.id, settled.stored);
        if let Some(failed) = failed.filter(|_| settled.stored) {
            self.reporter.settled(&failed);
        }
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
                self.worker.batches().for_each(Batch::flush);
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

/// Runs in a task of its own, which is aborted when this future is dropped.
async fn in_task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    task.join_next().await?.ok()
}

/// How often messages are kept alive: as asked for, but at least three times before any of these sources would deliver
/// them again.
fn keepalive_interval(asked: Duration, sources: &[Arc<Source>]) -> Duration {
    let keeping = sources.iter().filter_map(|source| source.transport.keeping_alive.as_ref());
    let shortest = keeping.map(|keeping| keeping.redeliver_timeout() / 3).min();
    asked.min(shortest.unwrap_or(asked)).max(SHORTEST_INTERVAL)
}

fn next_keepalive(every: Option<Duration>) -> Instant {
    every.and_then(|every| Instant::now().checked_add(every)).unwrap_or_else(far_future)
}

/// A point in time that never comes in practice.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

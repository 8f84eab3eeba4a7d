//! Consumes: takes messages from transports in the order of their priority, has them handled, and sees to what becomes
//! of each: acknowledged, retried later, or put on the failure transport.
//!
//! The order is that of Symfony's worker: the first transport is asked first, and after every message that came from
//! anywhere the asking starts at the first again. A worker stops at a limit, at a signal, or when workers were asked to
//! stop; it always finishes the messages it has in hand, and gives back those it has taken but not begun.

mod held;
mod in_flight;
mod intake;
mod limits;
mod outcome;
mod retry;
mod stop;

pub use in_flight::{InFlight, Note, Taken};
pub use limits::{Limits, StopReason};
pub use retry::waiting_time;
pub use stop::{Stop, StopSignal};

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::cache::RECENT;
use crate::config::Config;
use crate::heartbeat::{Heartbeats, Pulse};
use crate::transport::{Transport, TransportError, Transports};

use intake::Intake;
use limits::Watch;
use outcome::{Finished, Outcome};

/// For how long a worker at its time limit goes on with what came after its last look.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// How long a store may take to answer when it is time to stop.
const TAKE_PATIENCE: Duration = Duration::from_secs(5);

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to consume, in order of priority.
    pub transports: Vec<String>,
    /// When to stop.
    pub limits: Limits,
    /// How long to wait before asking again when nothing was pending.
    pub sleep: Duration,
    /// How many messages to handle at once; at least 1.
    pub concurrency: usize,
    /// How often to tell the transports that messages are still being handled; `None`: not at all.
    pub keepalive: Option<Duration>,
    /// Where to note what is in flight, for the supervisor to find after a crash.
    pub note: Option<Note>,
}

/// What a worker has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Messages handled successfully.
    pub handled: u64,
    /// Messages whose handling failed, each try counted.
    pub failed: u64,
    /// Why it stopped.
    pub reason: StopReason,
}

/// A transport that is consumed, with what its messages need when they fail.
pub(crate) struct Source {
    /// The name it is consumed by: an auto-fallback's, where that is what was asked for.
    name: String,
    /// The transport that is really read.
    transport: Arc<dyn Transport>,
    retry: crate::config::RetryStrategy,
    on_failure: OnFailure,
}

/// Where messages go that failed for good.
enum OnFailure {
    /// To the failure transport.
    SendTo(Arc<dyn Transport>),
    /// They came from the failure transport, and stay there.
    Stay,
    /// There is no failure transport.
    Discard,
}

/// Consumes transports until something stops it.
pub struct Worker {
    bus: Bus,
    sources: Vec<Arc<Source>>,
    heartbeats: Heartbeats,
    heartbeat_ttl: Duration,
    options: Options,
}

impl Worker {
    /// A worker for the transports that `options` name. Fails on one that does not exist or cannot be consumed.
    pub fn new(
        config: &Config,
        bus: Bus,
        transports: &Transports,
        heartbeats: Heartbeats,
        options: Options,
    ) -> Result<Self, TransportError> {
        let mut sources: Vec<Arc<Source>> = Vec::new();
        for name in &options.transports {
            let source = source(config, transports, name)?;
            if sources.iter().all(|other| other.transport.name() != source.transport.name()) {
                sources.push(Arc::new(source));
            }
        }
        Ok(Self { bus, sources, heartbeats, heartbeat_ttl: config.heartbeat_ttl, options })
    }

    /// Consumes until a limit is reached or `stop` says so. `owner` is this worker's name among all that ping.
    ///
    /// Errors of a store are logged and tried again, for as long as the worker runs; what cannot get better by itself
    /// (a table that is missing and may not be created) ends the worker.
    pub async fn run(&self, owner: &str, stop: &mut Stop) -> Result<Summary, TransportError> {
        let mut names: Vec<String> = self.options.transports.clone();
        names.extend(self.sources.iter().map(|source| source.transport.name().to_owned()));
        names.sort();
        names.dedup();
        let pulse = Pulse::start(self.heartbeats.clone(), names, owner.to_owned(), self.heartbeat_ttl).await;
        let mut run = Run::new(self);
        let result = run.until_stopped(stop).await;
        // From here on nothing new is begun, so producers must not count on this worker, however long it takes to finish.
        pulse.stop().await;
        stop.no_more_patience();
        run.finish_what_is_in_hand().await;
        if result.as_ref().is_ok_and(|reason| *reason == StopReason::TimeLimit) {
            run.look_once_more(stop).await;
        }
        run.close().await;
        let (handled, failed) = (run.watch.handled, run.watch.failed);
        result.map(|reason| Summary { handled, failed, reason })
    }
}

fn source(config: &Config, transports: &Transports, name: &str) -> Result<Source, TransportError> {
    let transport = transports.target(name)?;
    if !transport.consumable() {
        return Err(TransportError::Unsupported {
            transport: name.to_owned(),
            what: "be consumed",
            why: "its messages are handled while they are dispatched",
        });
    }
    // What an auto-fallback says of its own counts before what its target says.
    let configs = [config.transports.get(name), config.transports.get(transport.name())];
    let mut configs = configs.into_iter().flatten();
    let retry = configs.clone().find_map(|config| config.retry.as_ref());
    let failure = configs.find_map(|config| config.failure_transport.as_ref()).or(config.failure_transport.as_ref());
    let on_failure = match failure.map(|name| transports.target(name)).transpose()? {
        None => OnFailure::Discard,
        Some(failure) if failure.name() == transport.name() => OnFailure::Stay,
        Some(failure) => OnFailure::SendTo(failure),
    };
    Ok(Source { name: name.to_owned(), retry: retry.cloned().unwrap_or_default(), transport, on_failure })
}

/// One run of a worker: what it has in hand and has done so far.
struct Run<'a> {
    worker: &'a Worker,
    intake: Intake,
    watch: Watch,
    in_hand: FuturesUnordered<BoxFuture<'static, Option<Finished>>>,
    next_keepalive: Instant,
}

impl<'a> Run<'a> {
    fn new(worker: &'a Worker) -> Self {
        Self {
            worker,
            intake: Intake::new(
                worker.sources.clone(),
                worker.options.sleep,
                worker.options.concurrency,
                worker.options.note.clone(),
            ),
            watch: Watch::new(worker.options.limits.clone()),
            in_hand: FuturesUnordered::new(),
            next_keepalive: next_keepalive(worker.options.keepalive),
        }
    }

    async fn until_stopped(&mut self, stop: &mut Stop) -> Result<StopReason, TransportError> {
        loop {
            if let Some(reason) = stop.requested().or_else(|| self.watch.reached()) {
                return Ok(reason);
            }
            self.begin(stop);
            if let Some(finished) = self.in_hand.next().now_or_never().flatten() {
                self.settle(finished).await;
                continue;
            }
            if self.may_take_more() && self.intake.is_due() {
                self.take(stop).await?;
                continue;
            }
            self.wait(stop).await;
        }
    }

    /// Takes messages. A store that is locked or hangs does not keep a worker that is to end; but one that is about to
    /// answer is waited for, because what it has handed out would otherwise be in flight for nobody.
    async fn take(&mut self, stop: &mut Stop) -> Result<(), TransportError> {
        let (deadline, at_most) = (self.watch.deadline(), self.watch.remaining(self.in_hand.len()));
        let out_of_patience = async {
            tokio::select! {
                () = stop.wait() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
            tokio::time::sleep(TAKE_PATIENCE).await;
        };
        tokio::select! {
            taken = self.intake.take(at_most, self.in_hand.len()) => taken,
            () = out_of_patience => Ok(()),
        }
    }

    /// Messages may have come since the last look, sent in the belief that this worker would see them; that look is as long
    /// ago as the sleep, or as the message in hand has taken. Handles them, for a moment: where there are many, there are
    /// others to come.
    async fn look_once_more(&mut self, stop: &mut Stop) {
        tokio::time::sleep(RECENT).await;
        self.intake.look_now();
        let end = Instant::now() + LAST_LOOK;
        while Instant::now() < end && stop.requested().is_none() && self.watch.remaining(0) > 0 {
            if self.intake.is_empty() && (self.take(stop).await.is_err() || self.intake.is_empty()) {
                return;
            }
            self.begin(stop);
            self.drain().await;
        }
    }

    /// Begins to handle what has been taken, as far as the concurrency allows.
    fn begin(&mut self, stop: &Stop) {
        while self.in_hand.len() < self.worker.options.concurrency {
            let Some((source, received)) = self.intake.next() else { break };
            let handling = outcome::handle(self.worker.bus.clone(), source, received, stop.clone());
            self.in_hand.push(if self.apart() { apart(handling).boxed() } else { handling.map(Some).boxed() });
        }
    }

    /// Are handlers to run as tasks of their own? One that computes without a pause would otherwise hold up the others, and
    /// the keepalive. A task costs more than a quick handler does, so without need there is none.
    fn apart(&self) -> bool {
        self.worker.options.concurrency > 1 || self.worker.options.keepalive.is_some()
    }

    fn may_take_more(&self) -> bool {
        self.in_hand.len() < self.worker.options.concurrency && self.watch.remaining(self.in_hand.len()) > 0
    }

    /// Waits until there is something to do: a message is finished, messages may have come, or it is time to stop.
    async fn wait(&mut self, stop: &mut Stop) {
        let until = self.watch.deadline();
        let may_take_more = self.may_take_more();
        tokio::select! {
            Some(finished) = self.in_hand.next() => self.settle(finished).await,
            woken = self.intake.ripe(), if may_take_more => if woken { self.intake.look_now() },
            () = self.intake.overdue() => self.intake.give_back().await,
            () = tokio::time::sleep_until(self.next_keepalive) => self.keep_alive().await,
            () = stop.wait() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }

    async fn keep_alive(&mut self) {
        self.intake.keep_alive().await;
        self.next_keepalive = next_keepalive(self.worker.options.keepalive);
    }

    async fn settle(&mut self, finished: Option<Finished>) {
        // Handlers' panics are caught by the bus; what is missing was broken off by a runtime that shuts down.
        let Some(finished) = finished else { return };
        self.watch.count(matches!(finished.outcome, Outcome::Handled));
        self.intake.learn(finished.took);
        if finished.to_acknowledge {
            self.intake.acknowledge(&finished.source, finished.id).await;
        } else if finished.settled {
            self.intake.let_go(&finished.source, finished.id);
        }
        // Where nothing more is in hand, nothing would make the batch complete.
        if self.in_hand.is_empty() && self.intake.is_empty() {
            self.intake.flush().await;
        }
    }

    /// Gives back what has not begun, finishes what has.
    async fn finish_what_is_in_hand(&mut self) {
        self.intake.give_back().await;
        if !self.in_hand.is_empty() {
            tracing::info!(in_hand = self.in_hand.len(), "finishing what is in hand");
        }
        self.drain().await;
    }

    async fn drain(&mut self) {
        while !self.in_hand.is_empty() {
            tokio::select! {
                Some(finished) = self.in_hand.next() => self.settle(finished).await,
                () = tokio::time::sleep_until(self.next_keepalive) => self.keep_alive().await,
            }
        }
    }

    async fn close(&mut self) {
        self.intake.give_back().await;
        self.intake.finish();
    }
}

/// Runs as a task of its own, which ends when this future is dropped.
async fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    task.join_next().await?.ok()
}

fn next_keepalive(every: Option<Duration>) -> Instant {
    every.and_then(|every| Instant::now().checked_add(every)).unwrap_or_else(far_future)
}

/// A point in time that never comes in practice.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

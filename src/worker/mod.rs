//! Consumes: takes messages from transports in the order of their priority, has them handled, and sees to what becomes
//! of each: acknowledged, retried later, or put on the failure transport.
//!
//! The order is that of Symfony's worker: the first transport is asked first, and after every message that came from
//! anywhere the asking starts at the first again. A worker stops at a limit, at a signal, or when workers were asked to
//! stop; it always finishes the messages it has in hand, and gives back those it has taken but not begun.

mod aside;
mod forms;
mod held;
mod in_flight;
mod intake;
mod lane;
mod limits;
mod outcome;
mod presence;
mod retry;
mod settle;
mod stop;
#[cfg(test)]
mod tests;

pub(crate) use in_flight::UNFINISHED;
pub use in_flight::{InFlight, Note, Taken};
pub use limits::{Limits, StopReason};
pub(crate) use presence::Presence;
pub use presence::{InProcessWorker, in_process_workers};
pub use retry::waiting_time;
pub use stop::{Stop, StopSignal};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::cache::RECENT;
use crate::config::Config;
use crate::heartbeat::{Heartbeats, WorkerHeartbeat};
use crate::transport::{MessageId, Receiver, Transport, TransportError, Transports};

use aside::{Aside, Waiting};
use intake::Intake;
use limits::Watch;
use outcome::{Finished, Outcome};
use settle::{Fate, Settled, settle};

/// For how long a worker at its time limit goes on with what came after its last look.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// How long a store may take to end the rest of its messages.
const RESUME_PATIENCE: Duration = Duration::from_secs(30);

/// For how long a worker that ends waits for its stores to take what failed.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// For how long a worker that ends waits for its servers to confirm what they were told last.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

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
    /// Whether messages that nobody here can handle go to the failure transport also when a transport has nothing else,
    /// instead of ending the worker.
    pub move_unhandleable: bool,
    /// Whether to begin with what rests on the transports, instead of leaving it there.
    pub resume: bool,
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
    /// What a person has to mend before workers like this one can do anything; with [`StopReason::Unhandleable`].
    pub to_mend: Option<String>,
}

/// A transport that is consumed, with what its messages need when they fail.
pub(crate) struct Source {
    /// The name it is consumed by: an auto-fallback's, where that is what was asked for.
    name: String,
    /// The transport that is really read.
    transport: Arc<Transport>,
    receiver: Arc<dyn Receiver>,
    retry: crate::config::RetryStrategy,
    on_failure: OnFailure,
}

/// Where messages go that failed for good.
enum OnFailure {
    /// To the failure transport.
    SendTo(Arc<Transport>),
    /// They came from the failure transport, and stay there.
    Stay,
    /// There is no failure transport.
    Discard,
}

/// Consumes transports until something stops it.
pub struct Worker {
    bus: Bus,
    sources: Vec<Arc<Source>>,
    /// What was asked for, by name, with the transport that is really read.
    names: Vec<(String, String)>,
    heartbeats: Heartbeats,
    heartbeat_ttl: Duration,
    options: Options,
    /// Wakes this worker when this process has queued a message for it.
    dispatched: Arc<Notify>,
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
        let mut names = Vec::new();
        for name in &options.transports {
            let source = source(config, transports, name)?;
            names.push((name.clone(), source.transport.name().to_owned()));
            if sources.iter().all(|other| other.transport.name() != source.transport.name()) {
                sources.push(Arc::new(source));
            }
        }
        let dispatched = bus.notify_of(sources.iter().map(|source| source.transport.name().to_owned()));
        Ok(Self { bus, sources, names, heartbeats, heartbeat_ttl: config.heartbeat_ttl, options, dispatched })
    }

    /// Ends the rest of what rests.
    async fn resume(&self, stop: &Stop) {
        let mut stopping = stop.clone();
        for source in &self.sources {
            let Some(resting) = &source.transport.resting else { continue };
            let resumed = tokio::select! {
                resumed = tokio::time::timeout(RESUME_PATIENCE, resting.resume()) => resumed,
                () = stopping.wait() => return,
            };
            match resumed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "what rests is left at rest"),
                Err(_) => tracing::error!(transport = source.name, "what rests is left at rest: no answer"),
            }
        }
    }

    /// The names under which producers ask whether a source is being consumed: its own, and those of auto-fallbacks to it.
    fn names_of(&self, source: &Source) -> Vec<String> {
        let own = source.transport.name();
        let others = self.names.iter().filter(|(_, target)| target == own).map(|(name, _)| name.as_str());
        let names: BTreeSet<&str> = others.chain([own]).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Consumes until a limit is reached or `stop` says so. `owner` is this worker's name among all that ping.
    ///
    /// Errors of a store are logged and tried again, for as long as the worker runs; what cannot get better by itself
    /// (a table that is missing and may not be created) ends the worker.
    pub async fn run(&self, owner: &str, stop: &mut Stop) -> Result<Summary, TransportError> {
        let names = self.sources.iter().map(|source| self.names_of(source)).collect();
        let (heartbeats, owner) = (self.heartbeats.clone(), owner.to_owned());
        let heartbeat = WorkerHeartbeat::start(heartbeats, names, owner, self.heartbeat_ttl);
        if self.options.resume {
            self.resume(stop).await;
        }
        let mut run = Run::new(self);
        run.intake.report_to(heartbeat.reporter());
        let result = run.until_stopped(stop).await;
        // From here on nothing new is begun, so producers must not count on this worker, however long it takes to finish.
        stop.no_more_patience();
        tokio::join!(heartbeat.stop(), run.finish_what_is_in_hand(stop));
        if result.as_ref().is_ok_and(|reason| *reason == StopReason::TimeLimit) {
            run.look_once_more(stop).await;
        }
        let stuck = result.as_ref().is_ok_and(|reason| *reason == StopReason::Unhandleable);
        let to_mend = if stuck { run.aside.why_stop() } else { None };
        run.close(stop, to_mend.is_some()).await;
        let connections = self.sources.iter().filter_map(|source| source.transport.connecting.as_ref());
        let closing = join_all(connections.map(|connecting| connecting.close()));
        if tokio::time::timeout(CLOSE_PATIENCE, closing).await.is_err() {
            tracing::warn!(
                "a server did not confirm the last acknowledgements; what it has not received is delivered again"
            );
        }
        let (handled, failed) = (run.watch.handled, run.watch.failed);
        result.map(|reason| Summary { handled, failed, reason, to_mend })
    }
}

/// A worker's name among all that ping: this process on this host, and no other worker in it.
pub(crate) fn owner() -> String {
    static WORKERS: AtomicU32 = AtomicU32::new(0);
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let number = WORKERS.fetch_add(1, Ordering::Relaxed);
    format!("worker-{host}-{}-{started}-{number}", std::process::id())
}

fn source(config: &Config, transports: &Transports, name: &str) -> Result<Source, TransportError> {
    let transport = transports.target(name)?;
    let receiver = transport.receiver.clone().ok_or_else(|| TransportError::Unsupported {
        transport: name.to_owned(),
        what: "be consumed",
        why: "its messages are handled while they are dispatched",
    })?;
    // What an auto-fallback says of its own counts before what its target says.
    let configs = [config.transports.get(name), config.transports.get(transport.name())];
    let mut configs = configs.into_iter().flatten();
    let retry = configs.clone().find_map(|config| config.retry.as_ref());
    let own = configs.find_map(|config| config.failure_transport.as_ref());
    let on_failure = match own.or(config.failure_transport.as_ref()).map(|name| transports.target(name)).transpose()? {
        Some(failure) if failure.name() == transport.name() => OnFailure::Stay,
        // What failed is kept where it is sent when it fails, unless the configuration says that it goes on from there.
        _ if own.is_none() && keeps_failed(config, transports, transport.name()) => OnFailure::Stay,
        Some(failure) => OnFailure::SendTo(failure),
        None => OnFailure::Discard,
    };
    let retry = retry.cloned().unwrap_or_default();
    Ok(Source { name: name.to_owned(), transport, receiver, retry, on_failure })
}

/// Is this transport one to which messages go that failed for good?
pub fn keeps_failed(config: &Config, transports: &Transports, transport: &str) -> bool {
    let own = config.transports.values().filter_map(|transport| transport.failure_transport.as_ref());
    let mut names = own.chain(&config.failure_transport);
    names.any(|name| transports.target(name).is_ok_and(|failure| failure.name() == transport))
}

/// One run of a worker: what it has in hand and has done so far.
struct Run<'a> {
    worker: &'a Worker,
    intake: Intake,
    watch: Watch,
    in_hand: FuturesUnordered<BoxFuture<'static, Option<Finished>>>,
    aside: Aside,
    /// Messages that failed, and what becomes of them on its way to a store.
    settling: FuturesUnordered<BoxFuture<'static, Settled>>,
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
                worker.dispatched.clone(),
            ),
            watch: Watch::new(worker.options.limits.clone()),
            in_hand: FuturesUnordered::new(),
            aside: Aside::new(worker.options.move_unhandleable),
            settling: FuturesUnordered::new(),
            next_keepalive: next_keepalive(worker.options.keepalive),
        }
    }

    async fn until_stopped(&mut self, stop: &Stop) -> Result<StopReason, TransportError> {
        let mut stopping = stop.clone();
        loop {
            if let Some(reason) = stop.requested().or_else(|| self.watch.reached()) {
                return Ok(reason);
            }
            if self.aside.why_stop().is_some() {
                return Ok(StopReason::Unhandleable);
            }
            // A busy worker always has something in hand, and is not idle as below.
            let strays = self.aside.take_overdue();
            self.put_away(strays, stop);
            self.work(stop);
            if let Some(finished) = self.in_hand.next().now_or_never().flatten() {
                self.finished(finished, stop);
                continue;
            }
            // The last look found nothing more: what is set aside is not the beginning of a queue.
            if self.in_hand.is_empty() && self.intake.is_empty() && !self.intake.is_looking() && !self.aside.is_empty()
            {
                let strays = self.aside.take();
                self.put_away(strays, stop);
            }
            let until = self.watch.deadline().min(self.aside.overdue_at().unwrap_or_else(far_future));
            tokio::select! {
                result = self.step(stop, true) => result?,
                () = stopping.wait() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Messages may have come since the last look, sent in the belief that this worker would see them; that look is as long
    /// ago as the sleep, or as the message in hand has taken. Handles them, for a moment: where there are many, there are
    /// others to come.
    async fn look_once_more(&mut self, stop: &Stop) {
        tokio::time::sleep(RECENT).await;
        self.intake.look_now();
        let end = Instant::now() + LAST_LOOK;
        let mut stopping = stop.clone();
        while Instant::now() < end && stop.requested().is_none() {
            self.work(stop);
            let is_done = !self.may_take_more() || !self.intake.is_looking();
            if self.in_hand.is_empty() && self.intake.is_empty() && is_done {
                break;
            }
            tokio::select! {
                result = self.step(stop, true) => if result.is_err() { break },
                () = stopping.wait() => {}
                () = tokio::time::sleep_until(end) => {}
            }
        }
        self.finish_what_is_in_hand(stop).await;
    }

    /// Begins to handle what has been taken, as far as the concurrency allows, and looks for more.
    fn work(&mut self, stop: &Stop) {
        self.begin(stop);
        if self.may_take_more() {
            self.intake.look(self.watch.remaining(self.in_hand.len()), self.in_hand.len());
        }
    }

    fn begin(&mut self, stop: &Stop) {
        while self.may_take_more() {
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

    /// Waits until there is something to do, and does it: a message is finished, a store has answered, messages may have
    /// come where they are `wanted`. Safe to cancel.
    async fn step(&mut self, stop: &Stop, wanted: bool) -> Result<(), TransportError> {
        let wanted = wanted && self.may_take_more();
        tokio::select! {
            Some(finished) = self.in_hand.next() => self.finished(finished, stop),
            Some(settled) = self.settling.next() => self.intake.settled(&settled.source, settled.id, settled.stored),
            event = self.intake.event(wanted) => self.intake.hear(event)?,
            () = tokio::time::sleep_until(self.next_keepalive) => self.keep_alive(),
        }
        Ok(())
    }

    fn keep_alive(&mut self) {
        self.intake.keep_alive();
        self.next_keepalive = next_keepalive(self.worker.options.keepalive);
    }

    fn finished(&mut self, finished: Option<Finished>, stop: &Stop) {
        // Handlers' panics are caught by the bus; what is missing was broken off by a runtime that shuts down.
        let Some(Finished { source, id, took, outcome }) = finished else { return };
        self.watch.count(matches!(outcome, Outcome::Handled));
        // How soon it is clear that there is no handler says nothing of handlers.
        if !matches!(outcome, Outcome::Unhandleable(_)) {
            self.intake.learn(took);
            let strays = self.aside.trust(&source);
            self.put_away(strays, stop);
        }
        match outcome {
            Outcome::Handled => self.intake.acknowledge(&source, id),
            Outcome::Failed(fate) => self.settle(source, id, fate, stop),
            Outcome::Unhandleable(message) => {
                let at_once = self.aside.add(Waiting { source, id, message });
                self.put_away(at_once, stop);
            }
        }
        // Where nothing more is in hand, nothing would make the batch complete.
        if self.in_hand.is_empty() && self.intake.is_empty() {
            self.intake.flush();
        }
    }

    /// Puts messages away that nobody here can handle.
    fn put_away(&mut self, waiting: impl IntoIterator<Item = Waiting>, stop: &Stop) {
        for Waiting { source, id, message } in waiting {
            let fate = outcome::put_away(&source, &id, message);
            self.settle(source, id, fate, stop);
        }
    }

    fn settle(&mut self, source: Arc<Source>, id: MessageId, fate: Fate, stop: &Stop) {
        self.intake.settling(&source);
        self.settling.push(settle(source, id, fate, stop.clone()).boxed());
    }

    /// Finishes what is in hand, and handles what was fetched ahead, as far as the limit of messages allows. Gives back
    /// what else has not begun.
    async fn finish_what_is_in_hand(&mut self, stop: &Stop) {
        self.intake.give_back_unfetched();
        self.intake.stop_fetching();
        self.begin(stop);
        if !self.in_hand.is_empty() {
            tracing::info!(in_hand = self.in_hand.len(), "finishing what is in hand");
        }
        loop {
            let fetching = self.intake.fetching_until();
            if self.in_hand.is_empty() && fetching.is_none() {
                break;
            }
            tokio::select! {
                // What cannot be received any more does not matter any more.
                _ = self.step(stop, false) => {}
                () = tokio::time::sleep_until(fetching.unwrap_or_else(far_future)) => {}
            }
            self.intake.give_back_unfetched();
            self.begin(stop);
        }
    }

    /// The end. A worker that is `stuck` leaves what is set aside to others; any other puts it away. Waits for what the
    /// stores have to say, for a while: those that hang are not waited for.
    async fn close(&mut self, stop: &Stop, stuck: bool) {
        let aside = self.aside.take();
        if stuck {
            // They have not failed: nobody here has tried them.
            self.watch.failed = self.watch.failed.saturating_sub(aside.len() as u64);
            self.intake.put_back(aside.into_iter().map(|waiting| (waiting.source, waiting.id)));
        } else {
            self.put_away(aside, stop);
        }
        let patience = Instant::now() + LAST_PATIENCE;
        loop {
            self.intake.give_back();
            let stores = self.intake.under_way_until();
            let Some(until) = stores.into_iter().chain((!self.settling.is_empty()).then_some(patience)).max() else {
                break;
            };
            tokio::select! {
                Some(settled) = self.settling.next() => {
                    self.intake.settled(&settled.source, settled.id, settled.stored);
                }
                event = self.intake.event(false) => if self.intake.hear(event).is_err() { break },
                () = tokio::time::sleep_until(until.min(patience)) => break,
            }
        }
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

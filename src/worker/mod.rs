//! Consumes: receives messages from transports in the order of their priority, handles them, and then acknowledges
//! them, retries them later, or moves them to the failure transport.
//!
//! The order is that of Symfony's worker: the first transport is polled first, and again after every message. A worker
//! stops at a limit, at a signal, or when it is asked to. It always finishes the messages that it has started, and
//! releases those that it has received and not started.

mod ending;
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
mod run;
mod settle;
mod shrink;
mod source;
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
pub(crate) use source::is_failure_transport;
pub(crate) use stop::{StopBroadcast, StopToken};
pub(crate) use strategy::{ALL as ALL_TRANSPORTS, RetryStrategies};
pub use strategy::{FailedAttempt, RetryStrategy};
pub(crate) use taken::{Taken, only};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::config::{Config, ConsumeOptions, SHORTEST_INTERVAL};
use crate::events::{Event, Listeners};
use crate::handler::Handlers;
use crate::heartbeat::{Heartbeats, WorkerHeartbeat};
use crate::transport::{TransportError, Transports};

use reporting::Reporter;
use run::Run;
use source::{OnFailure, Source, keepalive_interval, source};

/// How long a store may take to make its parked messages due.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// They have the states that are reset, and are told when a worker ends.
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
        let problem = run.end(stop, &result, heartbeat).await;
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

/// A point in time that never comes in practice.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

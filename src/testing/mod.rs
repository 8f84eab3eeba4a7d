//! Tools for tests of applications and transports: queues in memory, a record of what happened to each message, and the
//! [`conformance`] suite.
//!
//! [`AppBuilder::test`] builds the application with its own configuration, handlers and middleware, but with all queues
//! and the cache in memory. A test then dispatches messages, runs workers, and checks what happened:
//!
//! ```
//! use minutely::App;
//! use minutely::handler::HandlerError;
//! use minutely::message::Message;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct SendEmail { to: String }
//!
//! impl Message for SendEmail {
//!     const TYPE: &'static str = r"App\Message\SendEmail";
//! }
//!
//! async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
//!     println!("to {}", message.to);
//!     Ok(())
//! }
//!
//! const CONFIG: &str = r"
//!     transports: {mail: 'redis://localhost/mail'}
//!     routing: {'*': mail}
//! ";
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let app = App::builder().config_text(CONFIG).handle(send_email).test()?;
//!
//! app.dispatch(&SendEmail { to: "ada@example.com".into() }).await?;
//! assert_eq!(app.sent::<SendEmail>().only().to, "ada@example.com");
//!
//! app.work_until_idle().await;
//! app.handled::<SendEmail>().assert_count(1);
//! app.failed::<SendEmail>().assert_none();
//! # Ok::<(), minutely::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Time
//!
//! Delays, retries, limits and heartbeats follow tokio's clock. Under `#[tokio::test(start_paused = true)]`, that clock
//! stands still while there is something to do, and jumps to the next deadline when there is nothing. So a message with
//! a delay of an hour, or a retry in ten minutes, is handled at once, and `tokio::time::Instant` shows that the time
//! has passed. A program or a real server that a handler waits for cannot be paused: the clock jumps during the wait,
//! and timeouts expire. Do not pause the clock in such tests.

pub mod conformance;
mod journal;
mod messages;

pub use messages::{Messages, Recorded};

use std::fmt;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_yaml::Mapping;
use tempfile::TempDir;

use crate::app::{App, AppBuilder};
use crate::clock;
use crate::config::{Config, ConsumeOptions, Secret, TransportConfig};
use crate::error::Error;
use crate::message::{Encoded, Envelope, Message};
use crate::transport::InMemoryFactory;
use crate::worker::{StopReason, StopToken, Worker, WorkerSummary, is_failure_transport};

use journal::{Entry, Happened, Journal, Recorder};

/// After this many messages, [`TestApp::work_until_idle`] assumes that there is no end to them.
const MOST: usize = 10_000;

/// The owner of the heartbeats of a test's workers.
const WORKER: &str = "worker";

/// The owner of the heartbeats of an assumed worker.
const ASSUMED: &str = "assumed";

/// The failure transport that a test adds if the configuration has none, so that no message is discarded unnoticed.
const FAILED: &str = "minutely.testing.failed";

const IN_MEMORY: &str = "in-memory://";

/// The schemes of transports that store no messages.
const SENDERS: [&str; 3] = ["sync", "auto-fallback", "contao-auto-fallback"];

/// The poll interval. Queues in memory wake their workers, which hardly need to poll.
const SLEEP: Duration = Duration::from_secs(86_400);

/// How long an assumed worker counts as running.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// An application whose queues and cache are in memory, with a record of what happened to each message. It derefs to an
/// [`App`]. Clones share everything.
///
/// Created by [`AppBuilder::test`].
#[derive(Clone)]
pub struct TestApp {
    app: App,
    queues: Arc<InMemoryFactory>,
    journal: Arc<Journal>,
    // Goes with the application.
    _state_dir: Arc<TempDir>,
}

/// What workers did during [`TestApp::work_until_idle`] or [`TestApp::work_for`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Worked {
    /// Messages handled successfully.
    pub handled: u64,
    /// Failed attempts.
    pub failed: u64,
}

impl AppBuilder {
    /// Builds the application for a test. Every transport except `sync://` and auto-fallbacks becomes a queue in
    /// memory, whatever its DSN and options say. The cache is in memory too, and the state directory is temporary.
    /// Everything else is as configured, and mistakes are errors as in [`AppBuilder::build`]. Only the DSNs and options
    /// of transports are not checked; `config check` does that.
    ///
    /// If the configuration has no failure transport, the test adds one, so that [`TestApp::failed`] shows messages
    /// that the application would discard.
    ///
    /// # Panics
    ///
    /// If no temporary folder can be created.
    pub fn test(self) -> Result<TestApp, Error> {
        let (queues, journal) = (Arc::new(InMemoryFactory::default()), Arc::new(Journal::default()));
        let state_dir =
            tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder can be created: {error}"));
        let app = self.build_in_memory(Arc::clone(&queues), Recorder(Arc::clone(&journal)), |config| {
            state_dir.path().clone_into(&mut config.state_dir);
            put_in_memory(config);
        })?;
        Ok(TestApp { app, queues, journal, _state_dir: Arc::new(state_dir) })
    }
}

/// Replaces every transport that stores messages by a queue in memory, and adds a failure transport if there is none.
fn put_in_memory(config: &mut Config) {
    for transport in config.transports.values_mut() {
        let scheme = transport.dsn.0.split_once(':').map_or("", |(scheme, _)| scheme);
        if !SENDERS.contains(&scheme) {
            transport.dsn = Secret(IN_MEMORY.to_owned());
            transport.options = Mapping::new();
        }
    }
    if config.failure_transport.is_none() {
        config.failure_transport = Some(FAILED.to_owned());
        let failed = TransportConfig {
            name: FAILED.to_owned(),
            path: "failure_transport".to_owned(),
            dsn: Secret(IN_MEMORY.to_owned()),
            options: Mapping::new(),
            retry: None,
            failure_transport: None,
            rate_limit: None,
            serializer: None,
        };
        config.transports.insert(FAILED.to_owned(), failed);
    }
}

impl Deref for TestApp {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl TestApp {
    /// The messages of type `M` that were sent to queues so far, by the test or by handlers, in order. Once for each
    /// queue, and whether or not they have been handled since.
    pub fn sent<M: Message>(&self) -> Messages<M> {
        self.messages("was sent", self.journal.find(Happened::Sent))
    }

    /// The messages of type `M` that are in queues now, due or delayed.
    pub fn queued<M: Message>(&self) -> Messages<M> {
        self.messages("waits on a queue", self.queued_anywhere())
    }

    /// The messages of type `M` that all their handlers have handled, by a worker or during their dispatch, in order.
    pub fn handled<M: Message>(&self) -> Messages<M> {
        self.messages("was handled", self.journal.find(Happened::Handled))
    }

    /// The messages of type `M` that failed for good: those that a worker has moved to a failure transport, and those
    /// that failed during their dispatch.
    pub fn failed<M: Message>(&self) -> Messages<M> {
        self.messages("failed for good", self.failed_for_good())
    }

    /// Runs workers on all queues except failure transports, in the order of the configuration, until nothing is due.
    /// Returns when the last message has been acknowledged.
    ///
    /// With a [paused clock](self#time), delayed messages and retries are handled too, each when it is due, until the
    /// queues are empty. With a running clock, they stay in their queues.
    ///
    /// # Panics
    ///
    /// After 10 000 messages: handlers that dispatch a new message for each one would keep it busy for ever. Test such
    /// an application with [`TestApp::work_for`].
    pub async fn work_until_idle(&self) -> Worked {
        let queues = self.queues();
        let idle = self.idle(&queues, clock::is_paused());
        self.work(queues.clone(), idle).await
    }

    /// Runs workers on all queues except failure transports for this long, and lets them finish their current messages.
    /// Takes no time with a [paused clock](self#time).
    pub async fn work_for(&self, time: Duration) -> Worked {
        self.work(self.queues(), tokio::time::sleep(time)).await
    }

    /// Makes producers assume from now on that a worker consumes this transport, so that an auto-fallback queues its
    /// messages. Otherwise they assume so only while workers run.
    pub async fn assume_worker(&self, transport: &str) -> Result<(), Error> {
        let target = self.app.transports.target(transport)?;
        for name in [transport, target.name()] {
            // The cache is in memory and cannot fail.
            let _ = self.app.heartbeats.beat(name, ASSUMED, FOR_EVER).await;
        }
        Ok(())
    }

    fn messages<M: Message>(&self, what: &'static str, of_all_types: Vec<Entry>) -> Messages<M> {
        Messages::new(what, of_all_types, self.to_string())
    }

    /// All messages in queues, of all types.
    fn queued_anywhere(&self) -> Vec<Entry> {
        let mut waiting = Vec::new();
        for queue in self.queues() {
            let messages = self.queues.messages(&queue);
            let messages = messages.iter().filter_map(|message| self.decode(&queue, message));
            waiting.extend(messages.map(|envelope| Entry::queued(envelope, &queue)));
        }
        waiting
    }

    fn failed_for_good(&self) -> Vec<Entry> {
        let mut failed = self.journal.find(Happened::Failed);
        for transport in self.failure_transports() {
            let kept = self.queues.messages(&transport);
            let kept = kept.iter().filter_map(|message| self.decode(&transport, message));
            failed.extend(kept.map(|envelope| Entry::given_up(envelope, &transport)));
        }
        failed
    }

    fn decode(&self, transport: &str, message: &Encoded) -> Option<Envelope> {
        self.app.transports.serializers().decode(transport, message).ok().map(|(envelope, _)| envelope)
    }

    /// All queues except failure transports.
    fn queues(&self) -> Vec<String> {
        self.all_queues().filter(|name| !self.is_failure_transport(name)).collect()
    }

    fn failure_transports(&self) -> Vec<String> {
        self.all_queues().filter(|name| self.is_failure_transport(name)).collect()
    }

    fn all_queues(&self) -> impl Iterator<Item = String> {
        let transports = self.app.config.transports.values().filter(|transport| transport.dsn.0 == IN_MEMORY);
        transports.map(|transport| transport.name.clone())
    }

    fn is_failure_transport(&self, transport: &str) -> bool {
        is_failure_transport(&self.app.config, &self.app.transports, transport)
    }

    /// Runs a worker until `end`.
    async fn work(&self, queues: Vec<String>, end: impl Future<Output = ()>) -> Worked {
        if queues.is_empty() {
            return Worked { handled: 0, failed: 0 };
        }
        let app = &self.app;
        let options = ConsumeOptions { sleep: SLEEP, move_unhandleable: true, ..ConsumeOptions::default() };
        let (bus, heartbeats) = (app.bus.clone(), app.heartbeats.clone());
        let worker = Worker::new(&app.config, bus, &app.transports, &app.worker_parts, heartbeats, &queues, options);
        let worker = worker.unwrap_or_else(|error| panic!("no worker can run: {error}"));
        let mut stop = StopToken::new();
        let stopper = stop.clone();
        let mut run = pin!(worker.run(WORKER, &mut stop));
        let result = tokio::select! {
            result = &mut run => result,
            () = end => {
                stopper.request(StopReason::Requested);
                run.await
            }
        };
        let WorkerSummary { handled, failed, .. } = result.unwrap_or_else(|error| panic!("the worker ended: {error}"));
        Worked { handled, failed }
    }

    /// Returns when no message in these queues is due or in flight; with `and_later`, when they are empty.
    async fn idle(&self, queues: &[String], and_later: bool) {
        let before = self.journal.tries();
        loop {
            let mut left = pin!(self.queues.left());
            // Created before the queues are checked below, so that no change is missed.
            left.as_mut().enable();
            let backlog = self.queues.backlog(queues);
            if backlog.now == 0 && (backlog.later == 0 || !and_later) {
                return;
            }
            let handled = self.journal.tries() - before;
            assert!(handled < MOST, "there is no end: {handled} messages were handled, and there are more\n{self}");
            left.await;
        }
    }
}

/// Everything that happened so far, one message in each line, and the messages in queues.
impl fmt::Display for TestApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.failed_for_good().into_iter().filter(|entry| entry.transport.is_some());
        for entry in self.journal.all().into_iter().chain(kept).chain(self.queued_anywhere()) {
            writeln!(f, "  {entry}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! What applications, and authors of transports, test with: queues in memory, what became of each message, and the
//! [`conformance`] suite.
//!
//! [`AppBuilder::test`] builds the application as it is, with its own configuration, handlers and middleware, except that
//! every queue and the cache are in memory. Then a test dispatches, lets workers run, and looks at what happened:
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
//! Delays, retries, limits and heartbeats follow tokio's clock. Under `#[tokio::test(start_paused = true)]` that clock
//! stands still while something is to be done, and jumps to the next deadline when there is nothing: a message with a
//! delay of an hour, or a retry in ten minutes, is handled at once, and `tokio::time::Instant` says that the time has
//! passed. A program that a handler starts, or a real server that it asks, cannot be paused: to such a test the clock
//! jumps while it waits, and every timeout strikes. Use an ordinary clock there.

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
use crate::config::{Config, Secret, TransportConfig};
use crate::error::Error;
use crate::message::{Envelope, Message};
use crate::transport::InMemoryFactory;
use crate::worker::{Limits, Options, Stop, StopReason, Summary, Worker, is_failure_transport};

use journal::{Entry, Happened, Journal, Recorder};

/// After so many messages in one [`TestApp::work_until_idle`] there will be no end to them.
const MOST: usize = 10_000;

/// The name under which the workers of a test ping.
const WORKER: &str = "worker";

/// The name under which an assumed worker pings.
const ASSUMED: &str = "assumed";

/// The failure transport of a configuration that has none: in a test nothing is discarded unseen.
const FAILED: &str = "minutely.testing.failed";

const IN_MEMORY: &str = "in-memory://";

/// The schemes of transports that pass messages on and keep none.
const SENDERS: [&str; 3] = ["sync", "auto-fallback", "contao-auto-fallback"];

/// Workers in memory are told of what comes, and need not look.
const SLEEP: Duration = Duration::from_secs(86_400);

/// For how long an assumed worker is believed to run.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// An application whose queues and cache are in memory, with a record of what became of each message. It is used like an
/// [`App`]. Clones are one application.
///
/// Made by [`AppBuilder::test`].
#[derive(Clone)]
pub struct TestApp {
    app: App,
    queues: Arc<InMemoryFactory>,
    journal: Arc<Journal>,
    // Goes with the application.
    _state_dir: Arc<TempDir>,
}

/// What workers did, in [`TestApp::work_until_idle`] and its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Worked {
    /// Messages handled successfully.
    pub handled: u64,
    /// Tries that failed.
    pub failed: u64,
}

impl AppBuilder {
    /// Builds the application for a test: every transport but `sync://` and auto-fallbacks becomes a queue in memory,
    /// whatever its DSN and options say. The cache is in memory too, and the state directory a temporary one. Everything else is as
    /// the configuration and the code say; what is wrong with it is an error as in [`AppBuilder::build`]. Only DSNs and
    /// options of transports are not looked at; `config check` does that.
    ///
    /// Where the configuration has no failure transport, the test has one, so that [`TestApp::failed`] shows what an
    /// application would discard.
    ///
    /// # Panics
    ///
    /// Where no temporary folder can be made.
    pub fn test(self) -> Result<TestApp, Error> {
        let (queues, journal) = (Arc::new(InMemoryFactory::default()), Arc::new(Journal::default()));
        let state_dir = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder can be made: {error}"));
        let app = self.build_in_memory(Arc::clone(&queues), Recorder(Arc::clone(&journal)), |config| {
            state_dir.path().clone_into(&mut config.state_dir);
            put_in_memory(config);
        })?;
        Ok(TestApp { app, queues, journal, _state_dir: Arc::new(state_dir) })
    }
}

/// Makes every transport that keeps messages a queue in memory, and gives what fails for good a place.
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
    /// Messages of type `M` that were sent to a queue so far, in order, by the test or by handlers: once for each queue, and
    /// whether they have been handled since or not.
    pub fn sent<M: Message>(&self) -> Messages<M> {
        self.messages("was sent", self.journal.find(Happened::Sent))
    }

    /// Messages of type `M` that wait on a queue now, due or delayed.
    pub fn queued<M: Message>(&self) -> Messages<M> {
        self.messages("waits on a queue", self.queued_anywhere())
    }

    /// Messages of type `M` that all of their handlers have handled, in order: by a worker, or while they were dispatched.
    pub fn handled<M: Message>(&self) -> Messages<M> {
        self.messages("was handled", self.journal.find(Happened::Handled))
    }

    /// Messages of type `M` that failed for good: those that a worker has put on a failure transport, and those that failed
    /// while they were dispatched.
    pub fn failed<M: Message>(&self) -> Messages<M> {
        self.messages("failed for good", self.failed_for_good())
    }

    /// Lets workers run on all queues but failure transports, in the order of the configuration, until nothing is due.
    /// Returns once the last message has been acknowledged.
    ///
    /// Under a [paused clock](self#time), what is delayed or waits for a retry is handled too, each in its time, until the
    /// queues are empty. Under an ordinary clock it stays where it is.
    ///
    /// # Panics
    ///
    /// After 10 000 messages: handlers that dispatch anew whatever they handle would keep it busy for ever. Such an
    /// application is tested with [`TestApp::work_for`].
    pub async fn work_until_idle(&self) -> Worked {
        let queues = self.queues();
        let idle = self.idle(&queues, clock::is_paused());
        self.work(queues.clone(), idle).await
    }

    /// Lets workers run on all queues but failure transports for this long, and finish what they have in hand. Under a
    /// [paused clock](self#time) this takes no time.
    pub async fn work_for(&self, time: Duration) -> Worked {
        self.work(self.queues(), tokio::time::sleep(time)).await
    }

    /// From now on producers believe that a worker consumes this transport, so that an auto-fallback queues its messages.
    /// Else they do so only while workers run.
    pub async fn assume_worker(&self, transport: &str) -> Result<(), Error> {
        let target = self.app.transports.target(transport)?;
        for name in [transport, target.name()] {
            // The cache is in memory, and never down.
            let _ = self.app.heartbeats.beat(name, ASSUMED, FOR_EVER).await;
        }
        Ok(())
    }

    fn messages<M: Message>(&self, what: &'static str, of_all_types: Vec<Entry>) -> Messages<M> {
        Messages::new(what, of_all_types, self.to_string())
    }

    /// All messages on queues, of all types.
    fn queued_anywhere(&self) -> Vec<Entry> {
        let mut waiting = Vec::new();
        for queue in self.queues() {
            let messages = self.queues.messages(&queue);
            let messages = messages.iter().filter_map(|message| Envelope::decode(message).ok());
            waiting.extend(messages.map(|envelope| Entry::queued(envelope, &queue)));
        }
        waiting
    }

    fn failed_for_good(&self) -> Vec<Entry> {
        let mut failed = self.journal.find(Happened::Failed);
        for transport in self.failure_transports() {
            let kept = self.queues.messages(&transport);
            let kept = kept.iter().filter_map(|message| Envelope::decode(message).ok());
            failed.extend(kept.map(|envelope| Entry::given_up(envelope, &transport)));
        }
        failed
    }

    /// The queues that messages wait on to be handled.
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

    /// Lets a worker run until `end`.
    async fn work(&self, queues: Vec<String>, end: impl Future<Output = ()>) -> Worked {
        if queues.is_empty() {
            return Worked { handled: 0, failed: 0 };
        }
        let options = Options {
            transports: queues,
            limits: Limits::default(),
            sleep: SLEEP,
            concurrency: 1,
            keepalive: None,
            move_unhandleable: true,
            resume: false,
            in_flight: None,
        };
        let app = &self.app;
        let worker = Worker::new(&app.config, app.bus.clone(), &app.transports, app.heartbeats.clone(), options);
        let worker = worker.unwrap_or_else(|error| panic!("no worker can run: {error}"));
        let mut stop = Stop::new();
        let stopper = stop.clone();
        let mut run = pin!(worker.run(WORKER, &mut stop));
        let result = tokio::select! {
            result = &mut run => result,
            () = end => {
                stopper.request(StopReason::Asked);
                run.await
            }
        };
        let Summary { handled, failed, .. } = result.unwrap_or_else(|error| panic!("the worker ended: {error}"));
        Worked { handled, failed }
    }

    /// Returns when nothing is due on these queues, or in hand; `and_later`, when there is nothing left on them at all.
    async fn idle(&self, queues: &[String], and_later: bool) {
        let before = self.journal.tries();
        loop {
            let mut left = pin!(self.queues.left());
            // From here on nothing is missed; what has left already is seen below.
            left.as_mut().enable();
            let backlog = self.queues.backlog(queues);
            if backlog.now == 0 && (backlog.later == 0 || !and_later) {
                return;
            }
            let handled = self.journal.tries() - before;
            assert!(handled < MOST, "there is no end: {handled} messages were handled, and more are there\n{self}");
            left.await;
        }
    }
}

/// All that happened so far, one message in each line, and what waits.
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

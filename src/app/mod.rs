//! An application: builds it from configuration, transports, middleware and handlers, and uses it to dispatch and to
//! work.

mod assembly;
mod builder;
mod checks;
mod job;
mod jobs;
mod outgoing;
mod source;
mod supervise;
mod work;

pub use builder::AppBuilder;
pub(crate) use builder::CONFIG_FILE;
pub(crate) use checks::NO_HANDLER;
pub use job::Job;
pub(crate) use jobs::with_jobs;
pub(crate) use outgoing::{Outgoing, OutgoingError, dispatch_report};
pub use supervise::{SupervisorBuilder, SupervisorHandle};
pub(crate) use supervise::{WorkerProgram, explain};
pub use work::{WorkerBuilder, WorkerHandle};

use std::sync::Arc;

use crate::bus::{Bus, Dispatch, DispatchAll, DispatchIn, OpenTransaction, Routing};
use crate::cache::{Cache, cache_options};
use crate::config::{self, Config, Problem, Problems, SchemeOptions, WorkerDefinition};
use crate::error::Error;
use crate::handler::Handlers;
use crate::heartbeat::Heartbeats;
use crate::message::{Envelope, Message};
use crate::schedule::{self, Functions};
use crate::transport::{TransportError, Transports};
use crate::worker::{StopBroadcast, WorkerParts, is_failure_transport};

/// An application, ready to dispatch and to consume. Clones share everything. Nothing is opened before its first use.
///
/// ```
/// use minutely::App;
/// use minutely::config::Config;
/// use minutely::handler::HandlerError;
/// use minutely::message::Message;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct SendEmail { to: String }
///
/// impl Message for SendEmail {
///     const TYPE: &'static str = r"App\Message\SendEmail";
/// }
///
/// async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
///     println!("to {}", message.to);
///     Ok(())
/// }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let config = Config::builder().transport("mail", "in-memory://").route(SendEmail::TYPE, ["mail"]);
/// let app = App::builder().config(config).handle(send_email).build()?;
///
/// let dispatched = app.dispatch(&SendEmail { to: "ada@example.com".into() }).await?;
/// assert!(dispatched.is_queued());
/// # Ok::<(), minutely::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct App {
    pub(crate) config: Arc<Config>,
    /// The warnings about the configuration. (Mistakes are errors of the builder.)
    pub(crate) warnings: Arc<Problems>,
    pub(crate) transports: Arc<Transports>,
    pub(crate) bus: Bus,
    pub(crate) handlers: Arc<Handlers>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) cache: Arc<Cache>,
    /// What runs by a schedule.
    pub(crate) jobs: Arc<[schedule::Job]>,
    /// The functions of jobs.
    pub(crate) functions: Functions,
    pub(crate) heartbeats: Heartbeats,
    /// Asks workers of all processes to stop.
    pub(crate) stop_broadcast: StopBroadcast,
    /// How the supervisor starts this program as a worker, if that is known.
    pub(crate) worker_program: Option<Arc<WorkerProgram>>,
    handles_messages: bool,
    /// What code gives workers.
    pub(crate) worker_parts: Arc<WorkerParts>,
    /// The options of all transports, by scheme.
    transport_options: Arc<[SchemeOptions]>,
}

impl App {
    /// A builder for an application.
    pub fn builder() -> AppBuilder {
        AppBuilder::default()
    }

    /// The JSON schema of the configuration: all keys, with the options of all transports.
    pub fn config_schema(&self) -> serde_json::Value {
        config::schema(&self.transport_options, &cache_options())
    }

    /// Sends a message to the transports that the routing names, or handles it at once if there are none, on the default
    /// bus. Nothing happens until the [`Dispatch`] is awaited; before that it takes a delay, transports and stamps:
    /// `app.dispatch(&message).delay(minutes).to(["mail"]).await?`.
    pub fn dispatch<M: Message>(&self, message: &M) -> Dispatch {
        self.bus.dispatch(message)
    }

    /// Dispatches messages of one type at once, on the default bus: see [`DispatchAll`].
    pub fn dispatch_all<'m, M: Message>(&self, messages: impl IntoIterator<Item = &'m M>) -> DispatchAll {
        self.bus.dispatch_all(messages)
    }

    /// Stores a message in a transaction that the caller has begun, on the default bus: see [`DispatchIn`].
    pub fn dispatch_in<'t, M: Message>(
        &self,
        transaction: impl Into<OpenTransaction<'t>>,
        message: &M,
    ) -> DispatchIn<'t> {
        self.bus.dispatch_in(transaction, message)
    }

    /// Dispatches a message that is in its envelope already.
    pub fn dispatch_envelope(&self, envelope: Envelope) -> Dispatch {
        self.bus.dispatch_envelope(envelope)
    }

    /// The default bus, for code that only dispatches messages.
    pub fn bus(&self) -> Bus {
        self.bus.clone()
    }

    /// One of the buses that the configuration names. Fails if there is no such bus.
    pub fn bus_named(&self, name: &str) -> Result<Bus, Error> {
        Ok(self.bus.named(name)?)
    }

    /// Warnings about the configuration.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.warnings.warnings()
    }

    /// All transports.
    pub fn transports(&self) -> &Transports {
        &self.transports
    }

    /// Whether anything here could handle a message: a handler, or middleware of the application.
    pub(crate) fn handles_messages(&self) -> bool {
        self.handles_messages
    }

    /// All transports that a worker can consume, in the order of the file, and failure transports after the others.
    /// Without those in `excluded`, or the same queues under other names. Fails if one of `excluded` does not exist.
    pub(crate) fn consumable(&self, excluded: &[String]) -> Result<Vec<String>, TransportError> {
        let excluded = excluded.iter().map(|name| Ok(self.transports.target(name)?.name().to_owned()));
        let excluded: Vec<String> = excluded.collect::<Result<_, TransportError>>()?;
        let is_wanted = |name: &&String| {
            let target = self.transports.target(name);
            target.is_ok_and(|to| to.receiver.is_some() && excluded.iter().all(|other| other != to.name()))
        };
        let mut names: Vec<String> = self.config.transports.keys().filter(is_wanted).cloned().collect();
        let keeps_failed = |name: &String| {
            let target = self.transports.target(name);
            target.is_ok_and(|to| is_failure_transport(&self.config, &self.transports, to.name()))
        };
        names.sort_by_key(keeps_failed);
        Ok(names)
    }

    /// Why workers of a definition could not handle anything: they are this program's own, and it has no handler.
    pub(crate) fn why_idle(&self, worker: &WorkerDefinition) -> Option<String> {
        (worker.command.is_none() && !self.handles_messages).then(|| NO_HANDLER.to_owned())
    }
}

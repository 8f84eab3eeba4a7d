//! Builds an application: its configuration, and the handlers, middleware and transports that it adds in code.

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::source::{Source, in_folder};
use super::{App, Job, WorkerProgram};
use crate::bus::{Checks, Middleware, Violation};
use crate::cache::cache_options;
use crate::config::{self, ConfigBuilder};
use crate::error::Error;
use crate::events::{Event, Listeners};
use crate::handler::{
    BatchOptions, BatchReturn, FunctionHandler, Handler, HandlerError, HandlerFn, HandlerOptions, Handlers, States,
    from_batch_fn, from_fn,
};
use crate::message::Message;
use crate::serializer::Serializer;
use crate::transport::{Factory, built_in_factories, scheme_options};
use crate::worker::{Resets, RetryStrategies, RetryStrategy};

/// The default configuration file.
pub(crate) const CONFIG_FILE: &str = "config.yaml";

/// Builds an [`App`].
#[derive(Default)]
pub struct AppBuilder {
    pub(super) source: Source,
    pub(super) dir: Option<PathBuf>,
    pub(super) handlers: Handlers,
    pub(super) jobs: Vec<Job>,
    pub(super) middleware: Vec<Arc<dyn Middleware>>,
    pub(super) named_middleware: IndexMap<String, Arc<dyn Middleware>>,
    pub(super) checks: Checks,
    pub(super) factories: Vec<Arc<dyn Factory>>,
    pub(super) retry_strategies: RetryStrategies,
    pub(super) serializers: IndexMap<String, Arc<dyn Serializer>>,
    pub(super) resets: Resets,
    pub(super) listeners: Listeners,
    pub(super) worker_program: Option<WorkerProgram>,
    pub(crate) program: Option<Program>,
    /// The program has only minutely's commands.
    pub(crate) is_whole_program: bool,
}

/// The program's name and version, for `--help` and `--version`.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl AppBuilder {
    /// Reads the configuration from a file. The default is `config.yaml` in the current folder.
    #[must_use]
    pub fn config_file(self, file: impl Into<PathBuf>) -> Self {
        Self { source: Source::File(file.into()), ..self }
    }

    /// Reads the configuration from a text such as `include_str!("config.yaml")`.
    #[must_use]
    pub fn config_text(self, yaml: impl Into<String>) -> Self {
        Self { source: Source::Text(yaml.into()), ..self }
    }

    /// Uses a configuration made in code, with [`Config::builder`](crate::config::Config::builder).
    #[must_use]
    pub fn config(self, config: ConfigBuilder) -> Self {
        Self { source: Source::Code(config), ..self }
    }

    /// Sets the folder for relative paths and `.env`, for a configuration that is not a file. The default is the
    /// current folder. A file has its own folder.
    #[must_use]
    pub fn dir(self, dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), ..self }
    }

    /// Sets the program's name and version for `--help` and `--version` of [`cli::main`](crate::cli::main): usually
    /// `env!("CARGO_PKG_NAME")` and `env!("CARGO_PKG_VERSION")`.
    #[must_use]
    pub fn program(self, name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { program: Some(Program { name: name.into(), version: version.into() }), ..self }
    }

    /// Sets the arguments with which this program becomes a worker, including the name of the command:
    /// `["queue", "consume"]` if the commands are under `myapp queue`. The supervisor adds transports and options.
    ///
    /// A supervisor that runs as a command knows them: they are the arguments before its own name. Set them if a
    /// supervisor runs inside the application, or if workers need others.
    #[must_use]
    pub fn worker_arguments<T: Into<OsString>>(self, arguments: impl IntoIterator<Item = T>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { worker_program: Some(WorkerProgram { arguments, dir: None }), ..self }
    }

    /// Adds a handler: an async function whose arguments are its message and what else it needs, in any order. A
    /// message may have several handlers.
    ///
    /// ```
    /// use minutely::App;
    /// use minutely::bus::Bus;
    /// use minutely::handler::{Attempt, HandlerError, State};
    /// # use minutely::message::Message;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct SendEmail { to: String }
    /// # impl Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct EmailSent { to: String }
    /// # impl Message for EmailSent { const TYPE: &'static str = r"App\Message\EmailSent"; }
    ///
    /// #[derive(Clone)]
    /// struct Mailer { sender: String }
    ///
    /// async fn send_email(
    ///     message: SendEmail,
    ///     State(mailer): State<Mailer>,
    ///     bus: Bus,
    ///     Attempt(attempt): Attempt,
    /// ) -> Result<(), HandlerError> {
    ///     println!("{} writes to {}, try {attempt}", mailer.sender, message.to);
    ///     bus.dispatch(&EmailSent { to: message.to }).await?;
    ///     Ok(())
    /// }
    ///
    /// let app = App::builder().state(Mailer { sender: "shop@example.com".into() }).handle(send_email);
    /// ```
    ///
    /// [`Argument`](crate::handler::Argument) lists the possible arguments, and
    /// [`HandlerFn`](crate::handler::HandlerFn) the possible results. The handler's name is the function's path
    /// (`shop::mail::send_email`), by which a retry knows which handlers have succeeded. Add functions that may be
    /// moved, and closures, with [`AppBuilder::handle_named`].
    #[must_use]
    pub fn handle<F: HandlerFn<Args>, Args: 'static>(self, handler: F) -> Self {
        self.function(HandlerOptions::new(), from_fn(handler))
    }

    /// Like [`AppBuilder::handle`], for a handler that is only called for messages of some transports, or before or after
    /// others.
    #[must_use]
    pub fn handle_with<F: HandlerFn<Args>, Args: 'static>(self, options: HandlerOptions, handler: F) -> Self {
        self.function(options, from_fn(handler))
    }

    /// Adds a handler that gets several messages at once: an async function of a list of them. It returns `()`, a `Result` for
    /// all of them, or a list with a `Result` for each, by which each is acknowledged or retried by itself.
    ///
    /// ```
    /// # use minutely::App;
    /// # use minutely::message::Message;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Index { page: u32 }
    /// # impl Message for Index { const TYPE: &'static str = r"App\Message\Index"; }
    /// use minutely::handler::{BatchOptions, HandlerError};
    ///
    /// async fn index(pages: Vec<Index>) -> Vec<Result<(), HandlerError>> {
    ///     pages.iter().map(|index| Ok(println!("page {}", index.page))).collect()
    /// }
    ///
    /// let app = App::builder().handle_batch("index", BatchOptions::new(50), index);
    /// ```
    #[must_use]
    pub fn handle_batch<M, F, R>(mut self, name: impl Into<String>, options: BatchOptions, handler: F) -> Self
    where
        M: Message + Send + Sync + 'static,
        F: Fn(Vec<M>) -> R + Send + Sync + 'static,
        R: Future + Send + 'static,
        R::Output: BatchReturn + Send,
    {
        self.handlers.add_type::<M>();
        self.handlers.register(M::TYPE, HandlerOptions::new(), Arc::new(from_batch_fn(name, options, handler)));
        self
    }

    /// Adds a handler under a name of your choice. Keep the name when the code changes. A closure needs one, because
    /// the compiler's name for it changes with the code around it.
    #[must_use]
    pub fn handle_named<F: HandlerFn<Args>, Args: 'static>(self, name: impl Into<String>, handler: F) -> Self {
        self.function(HandlerOptions::new(), from_fn(handler).named(name))
    }

    fn function<F: HandlerFn<Args>, Args: 'static>(
        mut self,
        options: HandlerOptions,
        handler: FunctionHandler<F, Args>,
    ) -> Self {
        const {
            assert!(
                F::MESSAGES == 1,
                "a handler has exactly one argument that is a message; add a handler for any message with `handler(pattern, …)`"
            );
            assert!(!F::NEEDS_JOB, "only a job has a time when it was due (`Due`), and this is a handler of messages");
        }
        if let Some(message) = F::message() {
            self.handlers.add_interfaces(message.name, message.interfaces.iter().map(|name| (*name).to_owned()));
            self.handlers.register(message.name, options, Arc::new(handler));
        }
        self
    }

    /// Adds a value that handlers share, such as a connection pool. A handler gets a clone of it by its type:
    /// `State(pool): State<PgPool>`. There is one value of each type; a later one replaces it.
    #[must_use]
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, state: T) -> Self {
        self.handlers.states.insert(state);
        self
    }

    /// Like [`AppBuilder::state`], for a value that is created when a handler first needs it: commands without handlers
    /// do not wait for it, and it is created inside the runtime. If that fails, the handler fails, and the next message
    /// tries again.
    ///
    /// ```
    /// # use minutely::App;
    /// # #[derive(Clone)] struct Pool;
    /// # impl Pool { async fn connect(_: &str) -> Result<Self, std::io::Error> { Ok(Self) } }
    /// let app = App::builder().lazy_state(|| Pool::connect("postgres://localhost/shop"));
    /// ```
    #[must_use]
    pub fn lazy_state<T, F, R, E>(mut self, make: F) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<HandlerError> + 'static,
    {
        self.handlers.states.insert_lazy(make);
        self
    }

    /// Adds a scheduled job that is an async function, besides those that the configuration lists under `cron`.
    ///
    /// ```
    /// use minutely::{App, Job};
    ///
    /// async fn clean_up() {
    ///     println!("all is clean");
    /// }
    ///
    /// let app = App::builder().job(Job::new("clean-up", "hourly", clean_up));
    /// ```
    #[must_use]
    pub fn job(mut self, job: Job) -> Self {
        self.jobs.push(job);
        self
    }

    /// Adds a message type that is only handled by handlers for its [interfaces](Message::INTERFACES).
    #[must_use]
    pub fn message<M: Message>(mut self) -> Self {
        self.handlers.add_type::<M>();
        self
    }

    /// Adds a handler for a type, an interface, or for a wildcard such as `App\Message\*`: a type that implements
    /// [`Handler`], or a function by [`handler::from_fn`](crate::handler::from_fn).
    #[must_use]
    pub fn handler(self, pattern: &str, handler: Arc<dyn Handler>) -> Self {
        self.handler_with(pattern, HandlerOptions::new(), handler)
    }

    /// Like [`AppBuilder::handler`], with options. One handler may be added several times, with different options.
    #[must_use]
    pub fn handler_with(mut self, pattern: &str, options: HandlerOptions, handler: Arc<dyn Handler>) -> Self {
        self.handlers.register(pattern, options, handler);
        self
    }

    /// Adds a check of messages of a type, which they must pass when they are dispatched and again when they are received. An
    /// invalid message is refused ([`DispatchError::Invalid`](crate::bus::DispatchError::Invalid)); in a worker it goes to the
    /// failure transport without a retry. The configuration has JSON schemas for the same, under `validation`.
    ///
    /// ```
    /// use minutely::App;
    /// use minutely::bus::Violation;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct SendEmail { to: String }
    /// # impl minutely::message::Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
    ///
    /// let app = App::builder().validate(|mail: &SendEmail| {
    ///     if mail.to.contains('@') { Ok(()) } else { Err(Violation::at("/to", "must be an address")) }
    /// });
    /// ```
    #[must_use]
    pub fn validate<M: Message, V: Into<Violation>>(
        mut self,
        check: impl Fn(&M) -> Result<(), V> + Send + Sync + 'static,
    ) -> Self {
        self.handlers.add_type::<M>();
        self.checks.add(check);
        self
    }

    /// Adds middleware to all buses. Messages pass it after the middleware that was added before. An async function becomes
    /// middleware with [`bus::from_fn`](crate::bus::from_fn).
    #[must_use]
    pub fn middleware(mut self, middleware: impl Middleware + 'static) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// Decides in code when failed messages are tried again. `name` is one of these, the first of which counts for a
    /// transport:
    ///
    /// - a name of your choice, which the configuration mentions: `retry_strategy: {service: NAME}`;
    /// - a transport's name, whatever `retry_strategy` it has in the configuration;
    /// - `*`, for all transports without a `retry_strategy` of their own.
    ///
    /// [`RetryStrategy`] has an example. A later strategy of the same name replaces an earlier one.
    #[must_use]
    pub fn retry_strategy(mut self, name: impl Into<String>, strategy: impl RetryStrategy + 'static) -> Self {
        self.retry_strategies.insert(name.into(), Arc::new(strategy));
        self
    }

    /// Calls this when something happens to a message or a worker: see [`Event`]. It must return at once, because the worker waits
    /// for it. Functions are called in the order in which they were added.
    ///
    /// ```
    /// use minutely::{App, Event};
    ///
    /// let app = App::builder().on(|event: &Event<'_>| {
    ///     if let Event::MessageGivenUp { message, error, .. } = event {
    ///         eprintln!("{} has failed for good: {}", message.envelope.message_type(), error.exception_message);
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn on(mut self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.listeners.add(listener);
        self
    }

    /// Calls this after each message that a worker has tried to handle, before the next one: to empty what must not pass from one
    /// message to another (Symfony resets its services then). The function gets the application's states;
    /// [`States::created`] leaves lazy ones alone that nobody has needed yet.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use minutely::App;
    /// use minutely::handler::{HandlerError, States};
    ///
    /// #[derive(Clone, Default)]
    /// struct Identities(Arc<Mutex<Vec<u64>>>);
    ///
    /// async fn forget(states: States) -> Result<(), HandlerError> {
    ///     if let Some(Identities(known)) = states.created() {
    ///         known.lock().map_err(|_| "a handler panicked")?.clear();
    ///     }
    ///     Ok(())
    /// }
    ///
    /// let app = App::builder().state(Identities::default()).reset(forget);
    /// ```
    ///
    /// A message is acknowledged whatever comes of the call. If it fails or panics, the worker finishes its other messages and stops,
    /// for a new one to begin afresh. With `--concurrency`, other messages may be handled at the same time. `--no-reset`,
    /// or [`WorkerBuilder::no_reset`](crate::WorkerBuilder::no_reset), leaves it out.
    #[must_use]
    pub fn reset<F, R, E>(mut self, reset: F) -> Self
    where
        F: Fn(States) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError> + 'static,
    {
        self.resets.add(reset);
        self
    }

    /// Adds middleware for the buses that name it: `buses: {command.bus: {middleware: [tenant]}}`. It takes the place of one
    /// of minutely's of this name.
    #[must_use]
    pub fn named_middleware(mut self, name: impl Into<String>, middleware: impl Middleware + 'static) -> Self {
        self.named_middleware.insert(name.into(), Arc::new(middleware));
        self
    }

    /// Adds a serializer, by the name that `serializer` in the configuration has for it.
    #[must_use]
    pub fn serializer(mut self, name: impl Into<String>, serializer: impl Serializer + 'static) -> Self {
        self.serializers.insert(name.into(), Arc::new(serializer));
        self
    }

    /// Adds a kind of transport with its own DSN schemes.
    #[must_use]
    pub fn transport(mut self, factory: Arc<dyn Factory>) -> Self {
        self.factories.push(factory);
        self
    }

    /// Reads the configuration and builds the application, or reports all mistakes. Opens nothing and needs no runtime:
    /// transports connect when they are first used.
    pub fn build(self) -> Result<App, Error> {
        Ok(self.build_checked()?)
    }

    /// The program has only minutely's commands.
    pub(crate) fn into_whole_program(self) -> Self {
        Self { is_whole_program: true, ..self }
    }

    /// How a program that has only minutely's commands becomes a worker: with `--config FILE consume`, in the
    /// configuration's folder.
    pub(super) fn whole_program_as_worker(&self) -> WorkerProgram {
        let file = self.file().and_then(|file| std::path::absolute(file).ok());
        let dir = file.as_deref().and_then(Path::parent).map(Path::to_owned);
        let config = file.into_iter().flat_map(|file| ["--config".into(), file.into()]);
        WorkerProgram { arguments: config.chain(["consume".into()]).collect(), dir }
    }

    /// The JSON schema of the configuration: all keys, with the options of all transports.
    pub fn config_schema(&self) -> serde_json::Value {
        let factories = [built_in_factories(), self.factories.clone()].concat();
        config::schema(&scheme_options(&factories), &cache_options())
    }

    /// Whether handlers or middleware are Rust code of the application, and not only programs.
    pub(crate) fn has_code(&self) -> bool {
        self.handlers.iter().next().is_some() || self.has_middleware() || !self.factories.is_empty()
    }

    pub(super) fn has_middleware(&self) -> bool {
        !self.middleware.is_empty() || !self.named_middleware.is_empty()
    }

    /// Whether a job of this name is a function.
    pub(crate) fn has_function(&self, job: &str) -> bool {
        self.jobs.iter().any(|known| known.name == job)
    }

    /// The configuration's file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(file) => Some(file),
            Source::Text(_) | Source::Code(_) => None,
        }
    }

    /// What distinguishes its configuration from others, as [`Config::file`](crate::config::Config::file) says when it is built.
    pub(crate) fn identity(&self) -> std::io::Result<PathBuf> {
        match self.file() {
            Some(file) => std::path::absolute(file),
            None => in_folder(self.dir.clone()),
        }
    }

    /// How the supervisor starts this program as a worker, if the application has said so.
    pub(crate) fn worker_program(&self) -> Option<&WorkerProgram> {
        self.worker_program.as_ref()
    }
}

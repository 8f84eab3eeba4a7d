//! Puts an application together: configuration, transports, middleware, handlers.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexSet;

use crate::bus::{Bus, Middleware, Routing};
use crate::cache::{Cache, FileStore, Store, open_store_on};
use crate::config::{self, Config, Problem, Problems, Scope, WorkerDefinition};
use crate::connection::Connections;
use crate::handler::{Exec, Handler, HandlerError, Handlers, Typed};
use crate::heartbeat::Heartbeats;
use crate::message::Message;
use crate::transport::{Context, Factory, Transports, built_in_factories_on};
use crate::worker::StopSignal;

/// An application, ready to dispatch and to consume. Nothing is opened before it is used.
pub struct App {
    /// What the file says.
    pub config: Config,
    /// What is doubtful in it. Mistakes do not get this far.
    pub warnings: Problems,
    /// All transports.
    pub transports: Arc<Transports>,
    /// Dispatches messages.
    pub bus: Bus,
    /// Finds handlers.
    pub handlers: Arc<Handlers>,
    /// Finds transports.
    pub routing: Arc<Routing>,
    /// What processes, and hosts, share.
    pub cache: Arc<Cache>,
    /// Who consumes what.
    pub heartbeats: Heartbeats,
    /// Asks workers to stop.
    pub stop_signal: StopSignal,
    handles_messages: bool,
}

/// What an application adds to its configuration file: handlers, middleware and transports in code.
#[derive(Default)]
pub struct AppBuilder {
    handlers: Handlers,
    middleware: Vec<Arc<dyn Middleware>>,
    factories: Vec<Arc<dyn Factory>>,
}

impl App {
    /// An application with nothing but what its configuration says.
    pub fn builder() -> AppBuilder {
        AppBuilder::default()
    }

    /// Is there anything here that could handle a message: a handler, or middleware of the application's own?
    pub fn handles_messages(&self) -> bool {
        self.handles_messages
    }

    /// Why workers of a definition could do nothing: they are this program's own, which has no handler.
    pub fn why_idle(&self, worker: &WorkerDefinition) -> Option<String> {
        (worker.command.is_none() && !self.handles_messages).then(|| NO_HANDLER.to_owned())
    }
}

/// What is doubtful about a transport of a Symfony application that is consumed here.
const PHP_SERIALIZED: &str = "is consumed here, but Symfony writes there what only PHP can read; add \
     `serializer: messenger.transport.symfony_serializer` to it, also in the Symfony application, or let that one handle the \
     messages with `command: php bin/console messenger:consume {transports} {options}` in the worker";

/// What is wrong with a worker of this program's own in an application without handlers, and what to do about it.
pub(crate) const NO_HANDLER: &str = "there is no handler for messages here; name programs under `handlers`, or, where a \
     Symfony application handles them, add `command: php bin/console messenger:consume {transports} {options}` to the worker";

impl AppBuilder {
    /// Adds a handler for messages of type `M`. A message may have several.
    #[must_use]
    pub fn handle<M, F, R>(mut self, handler: F) -> Self
    where
        M: Message,
        F: Fn(M) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.handlers.know::<M>();
        self.handler(M::TYPE, Arc::new(Typed::new(handler)))
    }

    /// Makes a message known that only handlers for one of its [interfaces](Message::INTERFACES) handle.
    #[must_use]
    pub fn message<M: Message>(mut self) -> Self {
        self.handlers.know::<M>();
        self
    }

    /// Adds a handler for a type, an interface, or for a wildcard such as `App\Message\*`.
    #[must_use]
    pub fn handler(mut self, pattern: &str, handler: Arc<dyn Handler>) -> Self {
        self.handlers.register(pattern, handler);
        self
    }

    /// Adds middleware, which sees each message after the middleware added before it.
    #[must_use]
    pub fn middleware(mut self, middleware: Arc<dyn Middleware>) -> Self {
        self.middleware.push(middleware);
        self
    }

    /// Adds a kind of transport, for DSN schemes of its own.
    #[must_use]
    pub fn transport(mut self, factory: Arc<dyn Factory>) -> Self {
        self.factories.push(factory);
        self
    }

    /// Does it run code of the application's own, and not only programs?
    pub(crate) fn has_code(&self) -> bool {
        self.handlers.iter().next().is_some() || !self.middleware.is_empty() || !self.factories.is_empty()
    }

    /// Reads the configuration and builds the application, or says all that is wrong. `check` adds problems that only
    /// the caller knows of.
    pub fn load(mut self, file: &Path, check: impl Fn(&Config) -> Vec<Problem>) -> Result<App, Problems> {
        let (config, mut problems) = config::read(file)?;
        // A cache and transports on one server share a connection.
        let connections = Connections::default();
        let factories = [built_in_factories_on(&connections), self.factories].concat();
        let in_files = || Arc::new(FileStore::new(config.state_dir.join("cache"))) as Arc<dyn Store>;
        let mut doubts = Vec::new();
        let store = config
            .cache
            .as_ref()
            .map(|cache| open_store_on(&connections, cache, &config.dir, &config.connections, &mut doubts));
        let store = store.unwrap_or_else(|| Ok(in_files())).unwrap_or_else(|wrong| {
            problems.list.extend(wrong);
            in_files()
        });
        problems.list.extend(doubts);
        let cache = Arc::new(Cache::new(store));
        let heartbeats = Heartbeats::new(Arc::clone(&cache));
        let context = Context {
            project_dir: config.dir.clone(),
            state_dir: config.state_dir.clone(),
            connections: config.connections.clone(),
            liveness: Arc::new(heartbeats.clone()),
        };
        problems.list.extend(Transports::check(&config.transports, &factories, &context));
        problems.list.extend(check(&config));
        problems.list.extend(lossy_transports(&config));
        problems.list.extend(lonely_clusters(&config));
        let in_code = self.handlers.iter().next().is_some() || !self.middleware.is_empty();
        let handles_messages = in_code || !config.handlers.is_empty();
        if !handles_messages {
            problems.list.extend(idle_workers(&config));
        }
        if problems.any_error() {
            return Err(problems);
        }
        let transports = Transports::new(&config.transports, &factories, &context)
            .map_err(|list| Problems { file: problems.file.clone(), list })?;
        if handles_messages {
            problems.list.extend(readable_by_php_alone(&config, &transports));
        }

        for (message_type, interfaces) in &config.interfaces {
            self.handlers.know_interfaces(message_type, interfaces.iter().cloned());
        }
        for (pattern, handlers) in &config.handlers {
            for handler in handlers {
                self.handlers.register(pattern, Arc::new(Exec::new(handler, &config.dir)));
            }
        }
        let (transports, handlers) = (Arc::new(transports), Arc::new(self.handlers));
        let routing = Arc::new(Routing::new(config.routing.clone()));
        let bus = Bus::new(self.middleware, Arc::clone(&routing), Arc::clone(&transports), Arc::clone(&handlers));
        let stop_signal = StopSignal::new(Arc::clone(&cache));
        Ok(App {
            config,
            warnings: problems,
            transports,
            bus,
            handlers,
            routing,
            cache,
            heartbeats,
            stop_signal,
            handles_messages,
        })
    }
}

/// Bounds over all hosts with a cache that no other host sees.
fn lonely_clusters(config: &Config) -> Vec<Problem> {
    let shared = config.workers.iter().filter(|_| config.cache.is_none());
    let shared = shared.filter(|worker| worker.autoscale.scope == Scope::Cluster);
    let message =
        "holds for this host alone, because the cache is in its state_dir; set `cache` to one that hosts share";
    shared.map(|worker| Problem::warning(format!("{}.autoscale.scope", worker.path), message)).collect()
}

/// This program's own workers in an application that has no handler.
fn idle_workers(config: &Config) -> Vec<Problem> {
    let own = config.workers.iter().filter(|worker| worker.command.is_none());
    own.map(|worker| Problem::warning(&worker.path, format!("is not started: {NO_HANDLER}"))).collect()
}

/// What this program's own workers consume although, as far as the file says, only PHP can read it.
fn readable_by_php_alone(config: &Config, transports: &Transports) -> Vec<Problem> {
    let own = config.workers.iter().filter(|worker| worker.command.is_none());
    let consumed = own.flat_map(|worker| &worker.transports).filter_map(|name| transports.target(name).ok());
    let consumed: IndexSet<String> = consumed.map(|transport| transport.name().to_owned()).collect();
    let php = config.php_serialized.iter().filter(|(name, _)| consumed.contains(*name));
    php.map(|(_, path)| Problem::warning(path, PHP_SERIALIZED)).collect()
}

/// Consumed transports whose messages nothing keeps when they fail for good.
fn lossy_transports(config: &Config) -> Vec<Problem> {
    let keeps = |name: &String| {
        let transport = config.transports.get(name);
        config.failure_transport.is_some() || transport.is_some_and(|transport| transport.failure_transport.is_some())
    };
    let consumed = config.workers.iter().flat_map(|worker| {
        worker.transports.iter().enumerate().map(|(n, name)| (format!("{}.transports[{n}]", worker.path), name))
    });
    consumed
        .filter(|(_, name)| !keeps(name))
        .map(|(path, name)| {
            let message =
                format!("messages of \"{name}\" that fail for good are discarded; set failure_transport to keep them");
            Problem::warning(path, message)
        })
        .collect()
}

//! Builds an application from what its builder has been given: reads the configuration, and puts the parts together.

use std::collections::HashMap;
use std::mem::take;
use std::sync::Arc;

use super::source::read;
use super::{App, AppBuilder, Job, checks};
use crate::bus::{Bus, Checks, Parts, Routing};
use crate::cache::{Cache, CacheStore, FileStore, open_store_on};
use crate::config::{self, Config, Problem, Problems};
use crate::connection::Connections;
use crate::handler::{HandlerOptions, from_config};
use crate::heartbeat::Heartbeats;
#[cfg(feature = "mail")]
use crate::mail::{MailHandler, Mailer};
use crate::schedule::{self, Functions};
use crate::serializer::{Interfaces, Serializers};
use crate::transport::{FactoryContext, Transports, built_in_factories_on, scheme_options};
use crate::worker::{Hooks, RateLimiters, StopBroadcast, WorkerParts};

impl AppBuilder {
    /// Like [`AppBuilder::build`], for callers that show each problem separately.
    pub(crate) fn build_checked(mut self) -> Result<App, Problems> {
        if self.is_whole_program && self.worker_program.is_none() {
            self.worker_program = Some(self.whole_program_as_worker());
        }
        let (config, problems) = read(take(&mut self.source), self.dir.take())?;
        self.assemble(config, problems, None)
    }

    /// Like [`AppBuilder::build`], for a test: all queues and the cache are in memory, and messages pass `first` before
    /// the application's middleware.
    #[cfg(feature = "testing")]
    pub(crate) fn build_in_memory(
        mut self,
        queues: Arc<crate::transport::InMemoryFactory>,
        first: impl crate::bus::Middleware + 'static,
        adjust: impl FnOnce(&mut Config),
    ) -> Result<App, Problems> {
        let (mut config, problems) = read(take(&mut self.source), self.dir.take())?;
        adjust(&mut config);
        // Of two factories for a scheme, the later one wins.
        self.factories = vec![queues];
        self.middleware.insert(0, Arc::new(first));
        self.assemble(config, problems, Some(Arc::new(crate::cache::MemoryStore::default())))
    }

    /// The interfaces of all types, as far as they are known before a message comes.
    fn interfaces(&self, config: &Config) -> Interfaces {
        let in_code = self.handlers.known_types().map(|name| (name, self.handlers.interfaces(name, &[])));
        let mut interfaces = Interfaces::new();
        for (message_type, names) in in_code {
            interfaces.entry(message_type.to_owned()).or_default().extend(names.into_iter().map(str::to_owned));
        }
        for (message_type, names) in &config.interfaces {
            interfaces.entry(message_type.clone()).or_default().extend(names.iter().cloned());
        }
        interfaces
    }

    fn assemble(
        mut self,
        mut config: Config,
        mut problems: Problems,
        store: Option<Arc<dyn CacheStore>>,
    ) -> Result<App, Problems> {
        let has_middleware = self.has_middleware();
        let mut functions = HashMap::new();
        for Job { name, settings, problems: found, function } in take(&mut self.jobs) {
            problems.list.extend(found);
            problems.list.extend(checks::job(&name, &*function, &self.handlers));
            config::add_job(&name, settings, &mut config, &mut problems);
            functions.insert(name, function);
        }
        let (serializers, wrong_serializers) = Serializers::new(&config, &self.serializers, self.interfaces(&config));
        // A cache and transports on one server share a connection.
        let connections = Connections::default();
        let factories = [built_in_factories_on(&connections), self.factories].concat();
        let in_files = || Arc::new(FileStore::new(config.state_dir.join("cache"))) as Arc<dyn CacheStore>;
        let mut doubts = Vec::new();
        let configured = || {
            let cache = config.cache.as_ref()?;
            Some(open_store_on(&connections, cache, &config.dir, &config.connections, &mut doubts))
        };
        let store = store.map(Ok).or_else(configured).unwrap_or_else(|| Ok(in_files())).unwrap_or_else(|wrong| {
            problems.list.extend(wrong);
            in_files()
        });
        problems.list.extend(doubts);
        let cache = Arc::new(Cache::new(store));
        let heartbeats = Heartbeats::new(Arc::clone(&cache));
        let context = FactoryContext {
            project_dir: config.dir.clone(),
            state_dir: config.state_dir.clone(),
            connections: config.connections.clone(),
            liveness: Arc::new(heartbeats.clone()),
        };
        let (transports, found) = Transports::build(&config.transports, &factories, &context, serializers);
        problems.list.extend(wrong_serializers);
        problems.list.extend(found);
        let (jobs, found) = schedule::jobs(&config, chrono::Utc::now());
        problems.list.extend(found);
        problems.list.extend(checks::handlers(&self.handlers));
        problems.list.extend(checks::retry_strategies(&config, &self.retry_strategies));
        problems.list.extend(checks::transports_of_handlers(&self.handlers, &transports));
        problems.list.extend(checks::buses_of_handlers(&self.handlers, &config));
        problems.list.extend(checks::lossy_transports(&config));
        problems.list.extend(checks::lonely_clusters(&config));
        let in_code = self.handlers.iter().next().is_some() || has_middleware;
        #[cfg(feature = "mail")]
        let mailer = config.mailer.as_ref().and_then(|settings| {
            let made = Mailer::new(settings, &config.dir, &mut problems.list);
            made.map_err(|found| problems.list.extend(found)).ok()
        });
        let handles_messages = in_code || !config.handlers.is_empty() || config.mailer.is_some();
        if !handles_messages {
            problems.list.extend(checks::idle_workers(&config));
        }
        for (message_type, interfaces) in &config.interfaces {
            self.handlers.add_interfaces(message_type, interfaces.iter().cloned());
        }
        for (pattern, handlers) in &config.handlers {
            for handler in handlers {
                let options = handler.from_transports.iter().cloned();
                let options = options.fold(HandlerOptions::new(), HandlerOptions::from_transport);
                let options = HandlerOptions { bus: handler.bus.clone(), ..options.priority(handler.priority) };
                self.handlers.register(pattern, options, from_config(handler, &config.dir));
            }
        }
        self.handlers.add_names_of_transports(|name| transports.same_queue(name));
        #[cfg(feature = "mail")]
        if let Some(mailer) = mailer {
            for (message_type, handler) in MailHandler::all(&mailer) {
                // The application may send them itself.
                if !self.handlers.iter().any(|(pattern, _)| pattern == message_type) {
                    self.handlers.register(message_type, HandlerOptions::default(), handler);
                }
            }
        }
        let (transports, handlers) = (Arc::new(transports), Arc::new(self.handlers));
        let functions = Functions::new(functions, Arc::clone(&handlers));
        let routing = Arc::new(Routing::new(config.routing.clone()));
        // Middleware may take a message itself.
        if !has_middleware {
            problems.list.extend(checks::messages_of_jobs(&jobs, &routing, &handlers));
        }
        let mut checks = self.checks;
        add_schemas(&config, &mut checks, &mut problems.list);
        let parts = Parts {
            cache: Arc::clone(&cache),
            checks: Arc::new(checks),
            routing: Arc::clone(&routing),
            transports: Arc::clone(&transports),
            handlers: Arc::clone(&handlers),
            listeners: self.listeners.clone(),
            own: self.middleware,
            named: self.named_middleware,
        };
        let bus = Bus::of(&config.buses, &parts, &mut problems.list);
        if problems.any_error() {
            return Err(problems);
        }
        let worker_parts = WorkerParts {
            strategies: self.retry_strategies,
            resets: self.resets,
            limiters: RateLimiters::of(&config, &cache),
            listeners: self.listeners,
            hooks: Hooks::of(&config),
            handlers: Arc::clone(&handlers),
        };
        let stop_broadcast = StopBroadcast::new(Arc::clone(&cache));
        Ok(App {
            config: Arc::new(config),
            warnings: Arc::new(problems),
            transports,
            bus,
            handlers,
            routing,
            cache,
            jobs: jobs.into(),
            functions,
            heartbeats,
            stop_broadcast,
            worker_program: self.worker_program.map(Arc::new),
            transport_options: scheme_options(&factories).into(),
            handles_messages,
            worker_parts: Arc::new(worker_parts),
        })
    }
}

/// Adds what the configuration says that messages must be like.
fn add_schemas(config: &Config, checks: &mut Checks, problems: &mut Vec<Problem>) {
    #[cfg(feature = "validation")]
    crate::bus::add_schemas(&config.validation, &config.dir, checks, problems);
    #[cfg(not(feature = "validation"))]
    {
        let _ = checks;
        let message = "this program was built without JSON Schema (the cargo feature `validation`)";
        problems.extend(config.validation.iter().map(|schema| Problem::error(&schema.path, message)));
    }
}

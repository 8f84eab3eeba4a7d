//! Warnings about an application as a whole.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::bus::Routing;
use crate::config::{Config, JobAction, Problem, Scope};
use crate::handler::{Handler, Handlers};
use crate::schedule::Job;
use crate::transport::Transports;
use crate::worker::{ALL_TRANSPORTS, RetryStrategies};

/// What is wrong with this program's own workers if there are no handlers, and what to do about it.
pub(crate) const NO_HANDLER: &str = "there is no handler for messages here; name programs under `handlers`, or, where a \
     Symfony application handles them, add `command: php bin/console messenger:consume {transports} {options}` to the worker";

/// Problems of handlers in code.
pub(super) fn handlers(handlers: &Handlers) -> Vec<Problem> {
    let all: IndexMap<&str, &Arc<dyn Handler>> = handlers
        .iter()
        .flat_map(|(_, handlers)| handlers)
        .map(|known| (known.handler.name(), &known.handler))
        .collect();
    let problems = all.into_iter().flat_map(|(name, handler)| {
        let problems = handler.problems(&handlers.states).into_iter();
        problems.map(move |problem| Problem::error(format!("handler {name}"), problem))
    });
    problems.collect()
}

/// Transports that handlers in code name, and that do not exist.
pub(super) fn transports_of_handlers(handlers: &Handlers, transports: &Transports) -> Vec<Problem> {
    let all = handlers.iter().flat_map(|(_, handlers)| handlers);
    let named = all.flat_map(|known| known.options.from_transports.iter().map(|name| (known.handler.name(), name)));
    let unknown = named.filter(|(_, name)| transports.get(name).is_err());
    unknown
        .map(|(handler, name)| Problem::unknown(format!("handler {handler}"), "transport", name, transports.names()))
        .collect()
}

/// Buses that handlers in code name, and that do not exist.
pub(super) fn buses_of_handlers(handlers: &Handlers, config: &Config) -> Vec<Problem> {
    let buses = config.buses.names();
    let all = handlers.iter().flat_map(|(_, handlers)| handlers);
    let named = all.filter_map(|known| Some((known.handler.name(), known.options.bus.as_deref()?)));
    let unknown = named.filter(|(_, bus)| !buses.contains(bus));
    unknown
        .map(|(handler, bus)| Problem::unknown(format!("handler {handler}"), "bus", bus, buses.iter().copied()))
        .collect()
}

/// Problems of a job that is a function.
pub(super) fn job(name: &str, function: &dyn Handler, handlers: &Handlers) -> Vec<Problem> {
    let problems = function.problems(&handlers.states).into_iter();
    problems.map(|problem| Problem::error(format!("job {}", name.escape_debug()), problem)).collect()
}

/// Retry strategies that the configuration names and code does not have, and the other way round.
pub(super) fn retry_strategies(config: &Config, strategies: &RetryStrategies) -> Vec<Problem> {
    let named = || {
        let transports = config.transports.values();
        transports.filter_map(|transport| Some((transport, transport.retry.as_ref()?.service.as_ref()?)))
    };
    let mut problems = Vec::new();
    for (transport, service) in named().filter(|(_, service)| strategies.names().all(|name| name != *service)) {
        let path = format!("{}.retry_strategy.service", transport.path);
        problems.push(if strategies.names().next().is_none() {
            // The file may be a PHP application's too.
            let message = "is ignored: a PHP service cannot be asked here, and this program has no strategy in code; give \
                           max_retries, delay, …";
            Problem::warning(path, message)
        } else {
            Problem::unknown(&path, "retry strategy", service, strategies.names())
        });
    }
    for name in strategies.names().filter(|name| *name != ALL_TRANSPORTS && !config.transports.contains_key(*name)) {
        if named().all(|(_, service)| service != name) {
            let known = config.transports.keys().map(String::as_str);
            let path = format!("retry strategy {}", name.escape_debug());
            let problem = Problem::unknown(&path, "transport", name, known);
            let message = format!("{}, and no `retry_strategy.service` names it", problem.message);
            problems.push(Problem::error(path, message));
        }
    }
    problems
}

/// Warnings about `scope: cluster` with a cache that other hosts do not share.
pub(super) fn lonely_clusters(config: &Config) -> Vec<Problem> {
    let shared = config.workers.iter().filter(|_| config.cache.is_none());
    let shared = shared.filter(|worker| worker.autoscale.scope == Scope::Cluster);
    let message =
        "holds only for this host, because the cache is in its state_dir; set `cache` to one that the hosts share";
    shared.map(|worker| Problem::warning(format!("{}.autoscale.scope", worker.path), message)).collect()
}

/// Warnings about this program's own workers in an application without handlers.
pub(super) fn idle_workers(config: &Config) -> Vec<Problem> {
    let own = config.workers.iter().filter(|worker| worker.command.is_none());
    own.map(|worker| Problem::warning(&worker.path, format!("is not started: {NO_HANDLER}"))).collect()
}

/// Messages that jobs dispatch, and that nothing here takes.
pub(super) fn messages_of_jobs(jobs: &[Job], routing: &Routing, handlers: &Handlers) -> Vec<Problem> {
    let is_taken = |message_type: &str| {
        let interfaces = handlers.interfaces(message_type, &[]);
        !routing.transports(message_type, &interfaces).is_empty() || !handlers.for_type(message_type, &[]).is_empty()
    };
    let untaken = jobs.iter().filter_map(|job| match &job.config.action {
        JobAction::Dispatch { message_type, .. } if !is_taken(message_type) => {
            let message =
                format!("messages of type \"{message_type}\" are not routed, and there is no handler for them");
            Some(Problem::warning(format!("{}.dispatch.type", job.config.path), message))
        }
        _ => None,
    });
    untaken.collect()
}

/// Warnings about consumed transports without a failure transport.
pub(super) fn lossy_transports(config: &Config) -> Vec<Problem> {
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

//! What is doubtful about an application as a whole.

use std::sync::Arc;

use indexmap::{IndexMap, IndexSet};

use crate::config::{Config, Problem, Scope};
use crate::handler::{Handler, Handlers};
use crate::transport::Transports;

/// What is doubtful about a transport of a Symfony application that is consumed here.
const PHP_SERIALIZED: &str = "is consumed here, but Symfony writes there what only PHP can read; add \
     `serializer: messenger.transport.symfony_serializer` to it, also in the Symfony application, or let that one handle the \
     messages with `command: php bin/console messenger:consume {transports} {options}` in the worker";

/// What is wrong with a worker of this program's own in an application without handlers, and what to do about it.
pub(crate) const NO_HANDLER: &str = "there is no handler for messages here; name programs under `handlers`, or, where a \
     Symfony application handles them, add `command: php bin/console messenger:consume {transports} {options}` to the worker";

/// What keeps handlers in code from working.
pub(super) fn handlers(handlers: &Handlers) -> Vec<Problem> {
    let all: IndexMap<&str, &Arc<dyn Handler>> =
        handlers.iter().flat_map(|(_, handlers)| handlers).map(|handler| (handler.name(), handler)).collect();
    let problems = all.into_iter().flat_map(|(name, handler)| {
        let problems = handler.problems(&handlers.states).into_iter();
        problems.map(move |problem| Problem::error(format!("handler {name}"), problem))
    });
    problems.collect()
}

/// Bounds over all hosts with a cache that no other host sees.
pub(super) fn lonely_clusters(config: &Config) -> Vec<Problem> {
    let shared = config.workers.iter().filter(|_| config.cache.is_none());
    let shared = shared.filter(|worker| worker.autoscale.scope == Scope::Cluster);
    let message =
        "holds for this host alone, because the cache is in its state_dir; set `cache` to one that hosts share";
    shared.map(|worker| Problem::warning(format!("{}.autoscale.scope", worker.path), message)).collect()
}

/// This program's own workers in an application that has no handler.
pub(super) fn idle_workers(config: &Config) -> Vec<Problem> {
    let own = config.workers.iter().filter(|worker| worker.command.is_none());
    own.map(|worker| Problem::warning(&worker.path, format!("is not started: {NO_HANDLER}"))).collect()
}

/// What this program's own workers consume although, as far as the file says, only PHP can read it.
pub(super) fn readable_by_php_alone(config: &Config, transports: &Transports) -> Vec<Problem> {
    let own = config.workers.iter().filter(|worker| worker.command.is_none());
    let consumed = own.flat_map(|worker| &worker.transports).filter_map(|name| transports.target(name).ok());
    let consumed: IndexSet<String> = consumed.map(|transport| transport.name().to_owned()).collect();
    let php = config.php_serialized.iter().filter(|(name, _)| consumed.contains(*name));
    php.map(|(_, path)| Problem::warning(path, PHP_SERIALIZED)).collect()
}

/// Consumed transports whose messages nothing keeps when they fail for good.
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

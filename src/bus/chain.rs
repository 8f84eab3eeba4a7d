//! Puts the buses together: which middleware messages pass on each, in which order.
//!
//! Order and names are Symfony's. What an application adds in code comes after the first of the usual ones, and before what
//! the bus names itself.

use std::sync::Arc;

use async_trait::async_trait;
use indexmap::{IndexMap, IndexSet};

use super::bus_name::AddBusName;
use super::buses::{Buses, Chain};
use super::deduplicate::Deduplicate;
use super::deferred::DispatchAfterCurrentBus;
use super::handle::HandleMiddleware;
use super::notify::LocalWorkers;
use super::router_context::RouterContext;
use super::send::SendMiddleware;
use super::traceable::Traceable;
use super::validation::Validation;
use super::{Bus, Checks, DispatchError, Middleware, Next, Routing, Scope};
use crate::cache::Cache;
use crate::config::{BusConfig, BusesConfig, MiddlewareConfig, Problem};
use crate::events::Listeners;
use crate::handler::Handlers;
use crate::message::Envelope;
use crate::transport::Transports;

/// The usual middleware, before and after that of the bus.
const BEFORE: &[&str] = &[ADD_BUS_NAME, REJECT_REDELIVERED, AFTER_CURRENT_BUS, FAILED_MESSAGES, DEDUPLICATE];
const AFTER: &[&str] = &[SEND, HANDLE];

const ADD_BUS_NAME: &str = "add_bus_name_stamp_middleware";
const REJECT_REDELIVERED: &str = "reject_redelivered_message_middleware";
const AFTER_CURRENT_BUS: &str = "dispatch_after_current_bus";
const FAILED_MESSAGES: &str = "failed_message_processing_middleware";
const DEDUPLICATE: &str = "deduplicate_middleware";
const SEND: &str = "send_message";
const HANDLE: &str = "handle_message";
const TRACEABLE: &str = "traceable";
const ROUTER_CONTEXT: &str = "router_context";
const VALIDATION: &str = "validation";

/// Middleware of Symfony's whose work is done without them.
const DONE_ANYWAY: &[&str] = &[
    // A worker here counts how often a handler was ended from outside, and does not fail messages that were only released.
    REJECT_REDELIVERED,
    // The worker does it.
    FAILED_MESSAGES,
    // Connections are opened again when they break, and closed when they are idle.
    "doctrine_ping_connection",
    "doctrine_close_connection",
    "doctrine_open_transaction_logger",
];

const TRANSACTION: &str = "doctrine_transaction";
const NO_TRANSACTION: &str = "has no effect: handlers here have connections of their own; in Rust, \
     `named_middleware(\"doctrine_transaction\", bus::transaction(pool))` gives them a transaction";

/// What buses are made of.
pub(crate) struct Parts {
    pub(crate) routing: Arc<Routing>,
    pub(crate) transports: Arc<Transports>,
    pub(crate) handlers: Arc<Handlers>,
    /// The application's functions that want to know what happens.
    pub(crate) listeners: Listeners,
    /// Where the keys of messages are claimed.
    pub(crate) cache: Arc<Cache>,
    /// What messages must be like.
    pub(crate) checks: Arc<Checks>,
    /// The application's middleware for all buses.
    pub(crate) own: Vec<Arc<dyn Middleware>>,
    /// The application's middleware for the buses that name it.
    pub(crate) named: IndexMap<String, Arc<dyn Middleware>>,
}

/// What a name stands for.
enum Found {
    Middleware(Arc<dyn Middleware>),
    Nothing,
}

impl Bus {
    /// The default bus of an application, which leads to the others.
    pub(crate) fn of(config: &BusesConfig, parts: &Parts, problems: &mut Vec<Problem>) -> Self {
        let local_workers = LocalWorkers::default();
        let usual = [BusConfig::usual(&config.default)];
        let all = if config.all.is_empty() { &usual[..] } else { &config.all };
        let chains: Vec<Chain> = all.iter().map(|bus| parts.chain(bus, &local_workers, problems)).collect();
        for name in parts.named.keys() {
            if !all.iter().any(|bus| bus.middleware.iter().any(|middleware| middleware.id == *name)) {
                let message = format!("no bus names the middleware \"{name}\", which the program has");
                problems.push(Problem::warning("buses", message));
            }
        }
        let default = all.iter().position(|bus| bus.name == config.default).unwrap_or_default();
        let buses = Buses { all: chains, default, are_named: !config.all.is_empty(), local_workers };
        Self { buses: Arc::new(buses), index: default, scope: Scope::default() }
    }
}

impl Parts {
    fn chain(&self, bus: &BusConfig, local_workers: &LocalWorkers, problems: &mut Vec<Problem>) -> Chain {
        let usual = |ids: &[&str]| -> Vec<Arc<dyn Middleware>> {
            let ids = ids.iter().filter(|_| bus.default_middleware);
            ids.filter_map(|id| self.built_in(id, bus, local_workers)).filter_map(Found::middleware).collect()
        };
        let mut middleware = usual(BEFORE);
        middleware.extend(self.own.iter().cloned());
        // Checks that an application has are meant: no bus need name them.
        if !self.checks.is_empty() && !bus.middleware.iter().any(|named| named.id == VALIDATION) {
            middleware.extend(usual(&[VALIDATION]));
        }
        let mut is_taken = bus.default_middleware || !self.own.is_empty();
        for named in &bus.middleware {
            let is_usual = BEFORE.contains(&named.id.as_str()) || AFTER.contains(&named.id.as_str());
            if bus.default_middleware && is_usual {
                let message = format!(
                    "\"{}\" is there already; `default_middleware: false` leaves out all that is usual",
                    named.id
                );
                problems.push(Problem::error(&named.path, message));
                continue;
            }
            is_taken |= named.id == HANDLE || named.id == SEND || self.named.contains_key(&named.id);
            middleware.extend(self.find(named, bus, local_workers, problems).and_then(Found::middleware));
        }
        middleware.extend(usual(AFTER));
        if !bus.default_middleware && !bus.middleware.iter().any(|named| named.id == HANDLE) {
            middleware.push(Arc::new(NotTaken));
        }
        if !is_taken {
            let message = "messages on this bus are neither sent nor handled here, and fail: it lacks send_message and \
                           handle_message, which `default_middleware: true` adds";
            problems.push(Problem::warning(&bus.path, message));
        }
        Chain { name: bus.name.clone(), middleware }
    }

    /// What a bus names: the application's own wins.
    fn find(
        &self,
        named: &MiddlewareConfig,
        bus: &BusConfig,
        local_workers: &LocalWorkers,
        problems: &mut Vec<Problem>,
    ) -> Option<Found> {
        let MiddlewareConfig { id, path, is_symfonys } = named;
        if let Some(own) = self.named.get(id) {
            return Some(Found::Middleware(Arc::clone(own)));
        }
        if id == TRANSACTION {
            problems.push(Problem::warning(path, NO_TRANSACTION));
            return None;
        }
        let built_in = self.built_in(id, bus, local_workers);
        if built_in.is_none() && *is_symfonys {
            let message =
                format!("is ignored: \"{id}\" is a service in PHP, which sees only what PHP dispatches and handles");
            problems.push(Problem::warning(path, message));
        } else if built_in.is_none() {
            let own = self.named.keys().map(String::as_str);
            let known = [BEFORE, AFTER, &[TRACEABLE, ROUTER_CONTEXT, VALIDATION, TRANSACTION], DONE_ANYWAY].concat();
            let known: IndexSet<&str> = known.into_iter().collect();
            problems.push(Problem::unknown(path, "middleware", id, own.chain(known)));
        }
        built_in
    }

    fn built_in(&self, id: &str, bus: &BusConfig, local_workers: &LocalWorkers) -> Option<Found> {
        Some(Found::Middleware(match id {
            ADD_BUS_NAME => Arc::new(AddBusName),
            AFTER_CURRENT_BUS => Arc::new(DispatchAfterCurrentBus),
            DEDUPLICATE => Arc::new(Deduplicate { cache: Arc::clone(&self.cache) }),
            TRACEABLE => Arc::new(Traceable),
            VALIDATION => {
                Arc::new(Validation { checks: Arc::clone(&self.checks), handlers: Arc::clone(&self.handlers) })
            }
            ROUTER_CONTEXT => Arc::new(RouterContext),
            SEND => Arc::new(SendMiddleware {
                routing: Arc::clone(&self.routing),
                transports: Arc::clone(&self.transports),
                handlers: Arc::clone(&self.handlers),
                local_workers: local_workers.clone(),
                listeners: self.listeners.clone(),
                allow_no_senders: bus.allow_no_senders,
            }),
            HANDLE => Arc::new(HandleMiddleware {
                handlers: Arc::clone(&self.handlers),
                allow_no_handlers: bus.allow_no_handlers,
            }),
            _ if DONE_ANYWAY.contains(&id) => return Some(Found::Nothing),
            _ => return None,
        }))
    }
}

impl Found {
    fn middleware(self) -> Option<Arc<dyn Middleware>> {
        match self {
            Self::Middleware(middleware) => Some(middleware),
            Self::Nothing => None,
        }
    }
}

/// The end of a bus that handles nothing. What comes here would be acknowledged, and lost.
struct NotTaken;

#[async_trait]
impl Middleware for NotTaken {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let (bus, message_type) = (next.bus().name().to_owned(), envelope.message_type().to_owned());
        Err(DispatchError::NotTaken { bus, message_type })
    }
}

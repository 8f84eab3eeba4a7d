//! How many connections a configuration's workers may open at once: pure arithmetic.
//!
//! A process opens one connection to each database (or the like) that it uses, whatever the number of its transports
//! there. The supervisor's connections are open during a tick.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{Config, WorkerDefinition};
use crate::transport::{Transport, Transports};

/// The connections from this host to one server.
#[derive(Clone)]
pub(crate) struct ServerConnections {
    /// The server: `host:port`, or its socket.
    pub server: String,
    /// Those of all workers together, if each definition has `max` workers.
    pub workers: u64,
    /// Those of the supervisor.
    pub supervisor: u64,
    /// A transport on this server, which can ask it for its limit.
    pub transport: Arc<Transport>,
}

impl ServerConnections {
    /// All of them. Programs that dispatch need further ones.
    pub(crate) fn total(&self) -> u64 {
        self.workers.saturating_add(self.supervisor)
    }
}

/// The connections to each server that workers use.
pub(crate) fn connections(config: &Config, transports: &Transports) -> Vec<ServerConnections> {
    let mut servers: BTreeMap<String, ServerConnections> = BTreeMap::new();
    let mut supervised: BTreeSet<String> = BTreeSet::new();
    for definition in &config.workers {
        // The databases that this worker's process connects to, each once.
        let mut connected: BTreeSet<String> = BTreeSet::new();
        let consumed = definition.transports.iter().filter_map(|name| transports.target(name).ok());
        let consumed: Vec<_> = consumed.collect();
        for transport in consumed.iter().cloned().chain(failure_transports(config, transports, definition)) {
            let Some(connecting) = &transport.connecting else { continue };
            let server = servers.entry(connecting.server().to_owned()).or_insert_with(|| ServerConnections {
                server: connecting.server().to_owned(),
                workers: 0,
                supervisor: 0,
                transport: Arc::clone(&transport),
            });
            if connected.insert(connecting.connection().to_owned()) {
                server.workers = server.workers.saturating_add(definition.autoscale.max.into());
            }
        }
        for connecting in consumed.iter().filter_map(|transport| transport.connecting.as_ref()) {
            if supervised.insert(connecting.connection().to_owned())
                && let Some(server) = servers.get_mut(connecting.server())
            {
                server.supervisor += 1;
            }
        }
    }
    servers.into_values().collect()
}

/// The transports to which a definition's messages go when they fail for good.
fn failure_transports(config: &Config, transports: &Transports, definition: &WorkerDefinition) -> Vec<Arc<Transport>> {
    let of = |name: &String| config.transports.get(name)?.failure_transport.as_ref();
    let names = definition.transports.iter().filter_map(|name| of(name).or(config.failure_transport.as_ref()));
    names.filter_map(|name| transports.target(name).ok()).collect()
}

//! A transport that a worker consumes, and what becomes of its messages when they fail.

use std::sync::Arc;
use std::time::Duration;

use super::WorkerParts;
use super::rate_limit::RateLimiter;
use super::strategy::Retrial;
use crate::config::{Config, SHORTEST_INTERVAL};
use crate::serializer::Serializers;
use crate::transport::{Receiver, Transport, TransportError, Transports};

/// A transport that is consumed, and what to do with its messages when they fail.
pub(crate) struct Source {
    /// The name under which it is consumed, which may be an auto-fallback's.
    pub(super) name: String,
    /// The transport that is really read: an auto-fallback's target.
    pub(super) transport: Arc<Transport>,
    pub(super) receiver: Arc<dyn Receiver>,
    pub(super) serializers: Arc<Serializers>,
    pub(super) retry: Retrial,
    pub(super) limiter: Option<Arc<RateLimiter>>,
    pub(super) on_failure: OnFailure,
}

/// What to do with messages that failed for good.
pub(super) enum OnFailure {
    /// Move them to the failure transport.
    MoveTo(Arc<Transport>),
    /// Park them where they are: this is the failure transport.
    Park,
    /// Discard them: there is no failure transport.
    Discard,
}

/// The source with this name.
pub(super) fn source(
    config: &Config,
    transports: &Transports,
    parts: &WorkerParts,
    name: &str,
) -> Result<Source, TransportError> {
    let transport = transports.target(name)?;
    let receiver = transport.receiver.clone().ok_or_else(|| TransportError::Unsupported {
        transport: name.to_owned(),
        what: "be consumed",
        why: "its messages are handled while they are dispatched",
    })?;
    // The settings of an auto-fallback come before those of its target.
    let configs = [config.transports.get(name), config.transports.get(transport.name())];
    let retry = parts.strategies.of(config, [name, transport.name()]);
    let limiter = parts.limiters.of_transport(config, [name, transport.name()]);
    let own = configs.into_iter().flatten().find_map(|config| config.failure_transport.as_ref());
    let on_failure = match own.or(config.failure_transport.as_ref()).map(|name| transports.target(name)).transpose()? {
        Some(failure) if failure.name() == transport.name() => OnFailure::Park,
        // Messages stay on a failure transport, unless it has a failure transport of its own.
        _ if own.is_none() && is_failure_transport(config, transports, transport.name()) => OnFailure::Park,
        Some(failure) => OnFailure::MoveTo(failure),
        None => OnFailure::Discard,
    };
    Ok(Source {
        name: name.to_owned(),
        transport,
        receiver,
        serializers: transports.serializers(),
        retry,
        limiter,
        on_failure,
    })
}

/// Whether messages that failed for good are moved to this transport.
pub(crate) fn is_failure_transport(config: &Config, transports: &Transports, transport: &str) -> bool {
    let own = config.transports.values().filter_map(|transport| transport.failure_transport.as_ref());
    let mut names = own.chain(&config.failure_transport);
    names.any(|name| transports.target(name).is_ok_and(|failure| failure.name() == transport))
}

/// How often messages are kept alive: as asked for, but at least three times before any of these sources would deliver
/// them again.
pub(super) fn keepalive_interval(asked: Duration, sources: &[Arc<Source>]) -> Duration {
    let keeping = sources.iter().filter_map(|source| source.transport.keeping_alive.as_ref());
    let shortest = keeping.map(|keeping| keeping.redeliver_timeout() / 3).min();
    asked.min(shortest.unwrap_or(asked)).max(SHORTEST_INTERVAL)
}

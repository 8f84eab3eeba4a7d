//! All keys of the configuration file, in the order of the reference. Each is defined where it is read.

use super::buses::{self, BUSES};
use super::cron::CRON;
use super::definition::{Definition, Kind, Setting};
use super::handlers::HANDLERS;
use super::hooks::HOOKS;
use super::mailer::MAILER;
use super::rate_limits::LIMITERS;
use super::routes::{INTERFACES, ROUTING};
use super::serializers::{PHP_KEY, SERIALIZER, SIGNING};
use super::serve::SERVE;
use super::signals::STOP_WORKER_ON_SIGNALS;
use super::transports::{CACHE, FAILURE_TRANSPORT, TRANSPORTS};
use super::validation::VALIDATION;
use super::workers::WORKERS;

/// The keys at the top of the file.
pub(crate) const KEYS: &[Definition] = &[
    TRANSPORTS,
    LIMITERS,
    ROUTING,
    INTERFACES,
    BUSES,
    buses::DEFAULT,
    VALIDATION,
    FAILURE_TRANSPORT,
    SERIALIZER,
    SIGNING,
    PHP_KEY,
    MAILER,
    WORKERS,
    STOP_WORKER_ON_SIGNALS,
    HANDLERS,
    HOOKS,
    CRON,
    SERVE,
    STATE_DIR.definition,
    CACHE,
    HEARTBEAT,
    CONNECTIONS,
];

/// The key `state_dir`.
pub(super) const STATE_DIR: Setting<String> =
    Setting::text("state_dir", "var", "folder for locks, heartbeats and the log").of_kind("path");

/// The key `heartbeat`.
pub(super) const HEARTBEAT: Definition = Definition::new(
    "heartbeat",
    Kind::Section(HEARTBEAT_KEYS),
    "how producers know that a transport is being consumed",
)
.or("as below");
pub(super) const HEARTBEAT_KEYS: &[Definition] = &[TTL.definition];
pub(super) const TTL: Setting<std::time::Duration> =
    Setting::duration("ttl", "60s", "how long a worker's heartbeat is valid without renewal; at least 100ms");

/// The key `connections`.
pub(super) const CONNECTIONS: Definition =
    Definition::new("connections", Kind::Map(&Kind::Text("URL")), "database URLs by name, for `doctrine://NAME`")
        .or("`default`: `DATABASE_URL`");

/// Keys below `framework.messenger`, where Symfony has them. Those without effect mean something to PHP alone.
pub(super) const SYMFONY: &[Definition] = &[
    TRANSPORTS,
    ROUTING,
    BUSES,
    buses::DEFAULT,
    FAILURE_TRANSPORT,
    Definition::accepted("enabled", "false turns all of it off"),
    Definition::accepted("reset_on_message", "there is no container that could be reset"),
    Definition::accepted("serializer", "the form in which PHP writes messages, under `default_serializer`"),
    STOP_WORKER_ON_SIGNALS,
];

/// Keys below `contao.messenger`, where Contao has them.
pub(super) const CONTAO: &[Definition] = &[
    WORKERS,
    Definition::ignored(
        "web_worker",
        &[],
        "it works within PHP's web requests, and the workers here do not wait for those",
    ),
];

/// The names of the keys at the top of the file.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}

//! What may be written in `config.yaml`: the model, loading and checking. Plain data out; nothing is opened or started.
//!
//! [`read`] returns everything that could be understood together with every problem found, so that later checks (of
//! DSNs, of worker options) can add theirs and a person sees all of them at once.

mod builder;
mod definition;
mod dsn;
mod duration;
mod env;
mod handlers;
mod keys;
mod nesting;
mod placeholder;
mod problem;
mod read;
mod routes;
mod schema;
mod section;
mod spec;
#[cfg(test)]
mod tests;
mod transports;
#[cfg(test)]
mod validator;
mod workers;
mod yaml;

pub use builder::ConfigBuilder;
pub use definition::{
    Definition, FromValue, Kind, Mismatch, Missing, OptionsOf, Row, Setting, Support, UNBOUNDED, rows, table,
};
pub use dsn::{Dsn, DsnError, Host};
pub use duration::{DurationError, Unit, parse_duration};
pub use keys::KEYS;
pub use problem::{Problem, Problems, nearest};
pub use read::read;
pub(crate) use read::{read_built, read_text};
pub use schema::{SchemeOptions, schema};
pub use spec::{Options, TransportSpec};
#[cfg(test)]
pub(crate) use validator::validate;

use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;

/// A whole configuration, with placeholders and paths resolved.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// The file's folder: what relative paths start from, where handlers and workers run.
    pub dir: PathBuf,
    /// Transports by name, in the order of the file.
    pub transports: IndexMap<String, TransportConfig>,
    /// Where a message goes, by type or wildcard: the names of transports, in sending order.
    pub routing: IndexMap<String, Vec<String>>,
    /// Where messages go that failed for good, unless their transport says otherwise.
    pub failure_transport: Option<String>,
    /// Transports to which the Symfony application that the file is of writes what only PHP can read, as far as it says;
    /// and where in the file each of them stands.
    pub php_serialized: IndexMap<String, String>,
    /// The further names that messages go by, by type: what a PHP class's parents and interfaces are to Symfony.
    pub interfaces: IndexMap<String, Vec<String>>,
    /// What the supervisor keeps running.
    pub workers: Vec<WorkerDefinition>,
    /// What handles a message, by type or wildcard.
    pub handlers: IndexMap<String, Vec<ExecConfig>>,
    /// Where locks, slots, cache and logs live.
    pub state_dir: PathBuf,
    /// Where heartbeats and the like are kept; in files under `state_dir` where nothing is said.
    pub cache: Option<TransportConfig>,
    /// How long a worker's heartbeat lasts when it is not renewed.
    pub heartbeat_ttl: Duration,
    /// Database URLs by connection name, for `doctrine://NAME`. May hold passwords.
    pub connections: IndexMap<String, Secret>,
}

/// An entry under `transports`.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// Its name.
    pub name: String,
    /// Where in the file it stands (`transports.async`), for problems found in it later.
    pub path: String,
    /// The DSN. May hold a password.
    pub dsn: Secret,
    /// Options given beside the DSN; they win over the DSN's own. Nested maps (`queues.a.binding_keys`) stay nested.
    pub options: serde_yaml::Mapping,
    /// How often and when failed messages are retried, if that is said; else as by default.
    pub retry: Option<RetryStrategy>,
    /// Where messages go that failed for good; else the configuration's `failure_transport`.
    pub failure_transport: Option<String>,
}

/// When a failed message is tried again. Symfony Messenger's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryStrategy {
    /// Retries after the first try.
    pub max_retries: u32,
    /// Before the first retry.
    pub delay: Duration,
    /// How much longer each further wait is.
    pub multiplier: f64,
    /// No wait is longer than this; zero: no bound.
    pub max_delay: Duration,
    /// Up to this part of the wait is added or taken away at random, 0 to 1.
    pub jitter: f64,
}

/// An entry under `workers`.
#[derive(Debug, Clone)]
pub struct WorkerDefinition {
    /// Unique; safe as a folder name. Given, or made from the transports' names.
    pub name: String,
    /// Where in the file it stands (`workers[0]`).
    pub path: String,
    /// What it consumes, in order of priority.
    pub transports: Vec<String>,
    /// Arguments for the program. Holds a `--time-limit` in any case.
    pub options: Vec<String>,
    /// How many.
    pub autoscale: Autoscale,
    /// Another program than this one's `consume`, with `{transports}` and `{options}` to be filled in.
    pub command: Option<Vec<String>>,
}

impl WorkerDefinition {
    /// The time limit among the options; the last one counts. `None` when it cannot be read.
    pub fn time_limit(&self) -> Option<Duration> {
        workers::time_limit(&self.options)
    }

    /// How many messages a worker handles at once, by its options.
    pub fn concurrency(&self) -> u64 {
        workers::concurrency(&self.options)
    }
}

/// How many workers a definition gets: `clamp(ceil(pending / desired_size), min, max)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscale {
    /// How many pending messages one worker is wanted for; at least 1.
    pub desired_size: u64,
    /// Workers that run in any case.
    pub min: u32,
    /// Workers that are never exceeded; at least 1, at least `min`.
    pub max: u32,
    /// Where `min` and `max` count.
    pub scope: Scope,
}

impl Default for Autoscale {
    /// One worker, as without `autoscale`.
    fn default() -> Self {
        Self { desired_size: 1, min: 1, max: 1, scope: Scope::Host }
    }
}

/// Whose workers `min` and `max` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those of this state directory.
    Host,
    /// Those of all hosts that share the cache.
    Cluster,
}

/// An `exec` handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecConfig {
    /// The program and its arguments; no shell reads them.
    pub exec: Vec<String>,
    /// After this the program's process group is terminated, then killed. None: it may take for ever.
    pub timeout: Option<Duration>,
}

/// Text that may hold a password. Shows itself as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

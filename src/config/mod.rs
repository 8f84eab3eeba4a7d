//! The content of `config.yaml`: the model, loading and checking. The result is plain data; nothing is opened or
//! started.
//!
//! `read` returns everything that could be understood, together with all problems. Later checks (of DSNs, of worker
//! options) add theirs, so that all problems are shown at once.

mod builder;
mod buses;
mod consume_options;
mod cron;
mod definition;
pub(crate) mod dsn;
mod duration;
mod env;
mod environments;
#[cfg(test)]
mod file_tests;
mod handlers;
mod hooks;
mod http_request;
mod keys;
mod mailer;
mod nesting;
mod placeholder;
mod problem;
mod rate_limits;
mod read;
mod routes;
mod schema;
mod section;
mod serializers;
mod serve;
mod signals;
pub(crate) mod spec;
#[cfg(test)]
mod tests;
mod transports;
mod validation;
#[cfg(test)]
mod validator;
mod value;
mod workers;
mod yaml;

pub use builder::ConfigBuilder;
pub(crate) use buses::{BusConfig, BusesConfig, DEFAULT_BUS, MiddlewareConfig};
pub(crate) use consume_options::SHORTEST_INTERVAL;
pub use consume_options::{ConsumeOptions, Verbosity};
pub(crate) use consume_options::{WORKER_QUIET, WORKER_VERBOSE, split_verbosity};
pub(crate) use cron::add_job;
#[cfg(any(test, feature = "postgres", feature = "mysql", feature = "redis", feature = "amqp"))]
pub(crate) use definition::Kind;
#[cfg(test)]
pub(crate) use definition::Missing;
#[cfg(any(test, feature = "postgres", feature = "mysql"))]
pub(crate) use definition::Support;
pub use definition::{Definition, Setting};
pub(crate) use dsn::Dsn;
pub(crate) use duration::{DurationError, parse_duration};
pub(crate) use hooks::HookConfig;
pub(crate) use http_request::HttpRequest;
#[cfg(feature = "http")]
pub(crate) use http_request::HttpUrl;
#[cfg(test)]
pub(crate) use keys::KEYS;
pub(crate) use mailer::MailerConfig;
pub(crate) use problem::nearest;
pub use problem::{Problem, Problems};
pub(crate) use rate_limits::{RateLimit, RatePolicy};
pub(crate) use read::{problems_with, read, read_built, read_text};
pub(crate) use schema::{SchemeOptions, schema};
#[cfg(all(test, feature = "encryption"))]
pub(crate) use serializers::Key as EncryptionKey;
#[cfg(feature = "encryption")]
pub(crate) use serializers::{EncryptionConfig, KEY_LENGTH};
pub(crate) use serializers::{ForeignForm, MessageForm, SerializerConfig, SigningConfig};
pub(crate) use serve::ServeConfig;
pub(crate) use spec::{OptionReader, TransportSpec};
#[cfg_attr(not(feature = "validation"), allow(unused_imports, reason = "who checks reads it"))]
pub(crate) use validation::{SchemaConfig, SchemaSource};
#[cfg(test)]
pub(crate) use validator::validate;

use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;

use crate::message::PhpClasses;

/// A whole configuration, with placeholders and paths resolved. Made in code with [`Config::builder`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, absolute.
    pub(crate) file: PathBuf,
    /// The file's folder: relative paths start there, and handlers and workers run there.
    pub(crate) dir: PathBuf,
    /// Transports by name, in the order of the file.
    pub(crate) transports: IndexMap<String, TransportConfig>,
    /// The names of the transports for each message type or wildcard, in sending order.
    pub(crate) routing: IndexMap<String, Vec<String>>,
    /// The failure transport for transports without one of their own.
    pub(crate) failure_transport: Option<String>,
    /// Further names to route and handle each message type by, like the parents and interfaces of a PHP class.
    pub(crate) interfaces: IndexMap<String, Vec<String>>,
    /// The buses.
    pub(crate) buses: BusesConfig,
    /// What messages must be like.
    pub(crate) validation: Vec<SchemaConfig>,
    /// The worker definitions.
    pub(crate) workers: Vec<WorkerDefinition>,
    /// The numbers of the signals at which workers stop.
    pub(crate) stop_signals: Vec<i32>,
    /// What handles messages, by type or wildcard.
    pub(crate) handlers: IndexMap<String, Vec<HandlerConfig>>,
    /// What workers tell what happens.
    pub(crate) hooks: Vec<HookConfig>,
    /// The scheduled jobs.
    pub(crate) jobs: Vec<JobConfig>,
    /// The folder for locks, slots, cache and logs.
    pub(crate) state_dir: PathBuf,
    /// The store for heartbeats and other cache entries. `None`: files under `state_dir`.
    pub(crate) cache: Option<TransportConfig>,
    /// How long a worker's heartbeat lasts if it is not renewed.
    pub(crate) heartbeat_ttl: Duration,
    /// How requests by HTTP are answered.
    pub(crate) serve: ServeConfig,
    /// How messages are written. `None`: as JSON.
    pub(crate) serializer: Option<SerializerConfig>,
    /// Which messages are signed.
    pub(crate) signing: Option<SigningConfig>,
    /// The classes that can be written as PHP does.
    pub(crate) php: PhpClasses,
    /// How mail is sent.
    pub(crate) mailer: Option<MailerConfig>,
    /// Database URLs by connection name, for `doctrine://NAME`. May contain passwords.
    pub(crate) connections: IndexMap<String, Secret>,
}

/// An entry under `transports`.
#[derive(Debug, Clone)]
pub(crate) struct TransportConfig {
    /// Its name.
    pub(crate) name: String,
    /// Its place in the file (`transports.async`), for problems that are found later.
    pub(crate) path: String,
    /// The DSN. May contain a password.
    pub(crate) dsn: Secret,
    /// Options beside the DSN, which have precedence over the DSN's own. Nested maps (`queues.a.binding_keys`) stay
    /// nested.
    pub(crate) options: serde_yaml::Mapping,
    /// How often and when failed messages are retried. `None`: the default.
    pub(crate) retry: Option<RetryStrategy>,
    /// Its failure transport. `None`: the configuration's.
    pub(crate) failure_transport: Option<String>,
    /// How many of its messages are begun in a time. `None`: any number.
    pub(crate) rate_limit: Option<RateLimit>,
    /// How its messages are written. `None`: as the configuration says.
    pub(crate) serializer: Option<SerializerConfig>,
}

/// When a failed message is retried. The defaults are Symfony Messenger's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RetryStrategy {
    /// Retries after the first attempt.
    pub(crate) max_retries: u32,
    /// The delay before the first retry.
    pub(crate) delay: Duration,
    /// The factor by which each further delay is longer.
    pub(crate) multiplier: f64,
    /// The longest delay; zero: no limit.
    pub(crate) max_delay: Duration,
    /// Up to this share of the delay is added or subtracted at random, 0 to 1.
    pub(crate) jitter: f64,
    /// The strategy in code that decides instead.
    pub(crate) service: Option<String>,
}

/// An entry under `workers`.
#[derive(Debug, Clone)]
pub(crate) struct WorkerDefinition {
    /// Its name: unique, and safe as a folder name. Configured, or made from the transports' names.
    pub(crate) name: String,
    /// Its place in the file (`workers[0]`).
    pub(crate) path: String,
    /// The transports that it consumes, in order of priority.
    pub(crate) transports: Vec<String>,
    /// Arguments for the program. Always contains a time limit.
    pub(crate) options: Vec<String>,
    /// What these arguments say. A `command` may have others, which are not known here.
    pub(crate) consume_options: ConsumeOptions,
    /// How many workers run.
    pub(crate) autoscale: Autoscale,
    /// The program, if it is not this one's `consume`. `{transports}` and `{options}` are replaced.
    pub(crate) command: Option<Vec<String>>,
}

/// How many workers a definition gets: `clamp(ceil(pending / desired_size), min, max)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Autoscale {
    /// The number of pending messages for each worker; at least 1.
    pub(crate) desired_size: u64,
    /// The fewest workers.
    pub(crate) min: u32,
    /// The most workers; at least 1, and at least `min`.
    pub(crate) max: u32,
    /// The hosts that `min` and `max` apply to.
    pub(crate) scope: Scope,
}

impl Default for Autoscale {
    /// Exactly one worker: the default.
    fn default() -> Self {
        Self { desired_size: 1, min: 1, max: 1, scope: Scope::Host }
    }
}

/// The hosts that `min` and `max` apply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Each host on its own: the workers of one state directory.
    Host,
    /// All hosts that share the cache, together.
    Cluster,
}

/// A handler of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct HandlerConfig {
    /// What handles the message.
    pub(crate) action: HandlerAction,
    /// The transports whose messages it handles; empty: all.
    pub(crate) from_transports: Vec<String>,
    /// The bus whose messages it handles; `None`: all.
    pub(crate) bus: Option<String>,
    /// Higher ones are called first.
    pub(crate) priority: i32,
    /// It gets several messages at once.
    pub(crate) batch: Option<BatchConfig>,
}

/// How many messages a handler gets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchConfig {
    /// At most so many.
    pub(crate) size: usize,
    /// The first waits at most this long for others.
    pub(crate) wait: Duration,
}

/// What handles a message.
#[derive(Debug, Clone)]
pub(crate) enum HandlerAction {
    /// A program that is started for each message.
    Exec(ExecConfig),
    /// A program that stays.
    Stream(StreamConfig),
    /// A URL that the message is sent to.
    #[cfg(feature = "http")]
    Http {
        /// Without the message.
        request: HttpRequest,
        /// How long it may take.
        timeout: Duration,
    },
    /// A program that runs the commands of Symfony's `RunCommandMessage`.
    Console {
        /// The program and its first arguments.
        console: Vec<String>,
        /// How long a command may take.
        timeout: Option<Duration>,
    },
    /// The programs that Symfony's `RunProcessMessage` names.
    RunProcess {
        /// How long a program may take.
        timeout: Option<Duration>,
    },
    /// The URLs that Symfony's `PingWebhookMessage` names.
    #[cfg(feature = "http")]
    PingWebhook {
        /// How long it may take.
        timeout: Duration,
    },
}

impl HandlerConfig {
    /// The program and its arguments, if it runs one.
    pub(crate) fn program(&self) -> Option<&[String]> {
        match &self.action {
            HandlerAction::Exec(ExecConfig { exec: program, .. })
            | HandlerAction::Stream(StreamConfig { program, .. })
            | HandlerAction::Console { console: program, .. } => Some(program),
            _ => None,
        }
    }
}

/// A `stream` handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamConfig {
    /// The program and its arguments. No shell is involved.
    pub(crate) program: Vec<String>,
    /// After this time without an answer, the program's process group is terminated, then killed. `None`: no limit.
    pub(crate) timeout: Option<Duration>,
    /// After so many messages another process takes its place.
    pub(crate) max_messages: Option<u64>,
    /// The same, when it uses more memory than this, in bytes.
    pub(crate) max_memory: Option<u64>,
}

/// An `exec` handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecConfig {
    /// The program and its arguments. No shell is involved.
    pub(crate) exec: Vec<String>,
    /// After this time, the program's process group is terminated, then killed. `None`: no limit.
    pub(crate) timeout: Option<Duration>,
}

/// An entry under `cron`.
#[derive(Debug, Clone)]
pub(crate) struct JobConfig {
    /// Unique; safe as a folder name.
    pub name: String,
    /// Where in the file it stands (`cron[0]`).
    pub path: String,
    /// When it runs, as it is written.
    pub schedule: String,
    /// The name of the schedule's time zone; else the system's.
    pub timezone: Option<String>,
    /// What it does.
    pub action: JobAction,
    /// What may start it.
    pub scope: JobScope,
    /// After this it is ended.
    pub timeout: Option<Duration>,
    /// What happens when it is due while it still runs.
    pub overlap: Overlap,
    /// What happens with missed runs.
    pub catch_up: CatchUp,
    /// Up to this much later than its schedule says it runs.
    pub jitter: Duration,
}

/// What a job does.
#[derive(Debug, Clone)]
pub(crate) enum JobAction {
    /// It runs a program.
    Command {
        /// The program and its arguments; no shell reads them.
        command: Vec<String>,
        /// Variables that are added to its environment.
        environment: IndexMap<String, Secret>,
    },
    /// It dispatches a message.
    Dispatch {
        /// The message's type.
        message_type: String,
        /// The message.
        body: serde_json::Value,
        /// The bus, if it is not the default one.
        bus: Option<String>,
    },
    /// It requests a URL.
    Http(HttpRequest),
    /// It calls a function of the application.
    Function,
}

/// What may start a job when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobScope {
    /// `cron` and `supervise`.
    pub cli: bool,
    /// Requests to `serve` and `cgi`.
    pub web: bool,
}

/// What looks which jobs are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// `cron` or `supervise`.
    Cli,
    /// A request to `serve` or `cgi`.
    Web,
}

impl Default for JobScope {
    fn default() -> Self {
        Self { cli: true, web: true }
    }
}

impl JobScope {
    /// May this start the job?
    pub(crate) fn includes(self, trigger: Trigger) -> bool {
        match trigger {
            Trigger::Cli => self.cli,
            Trigger::Web => self.web,
        }
    }
}

/// In a few words, without secrets.
impl std::fmt::Display for JobAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // The arguments may be secret.
            Self::Command { command, .. } => {
                write!(f, "runs {}", command.first().map(String::as_str).unwrap_or_default())
            }
            Self::Dispatch { message_type, .. } => write!(f, "dispatches {message_type}"),
            Self::Http(request) => write!(f, "{} {}", request.method, request.url),
            Self::Function => f.write_str("calls a function"),
        }
    }
}

/// What happens when a job is due while it still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// That run is left out.
    Skip,
    /// Both run at once.
    Allow,
    /// That run waits.
    Queue,
}

/// What happens with runs that were missed because nothing ran here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CatchUp {
    /// One run for all of them.
    Once,
    /// All of them, one after the other.
    All,
    /// Nothing.
    None,
}

/// Text that may contain a password. `Debug` and `Display` show `***`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

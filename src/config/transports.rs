//! Reads `transports` and whatever names one. What a DSN says beyond its scheme is the transports' own to check.

use std::collections::HashSet;
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::Mapping;
use url::form_urlencoded;

use super::definition::{Definition, Kind, OptionsOf, Setting, UNBOUNDED};
use super::problem::displayable;
use super::rate_limits::{self, Limiters};
use super::section::{Node, Reader};
use super::serializers::{OWN_SERIALIZER, read_serializer};
use super::{RetryStrategy, Secret, TransportConfig};

/// The key `transports`.
pub(super) const TRANSPORTS: Definition = Definition::new(
    "transports",
    Kind::Map(&Kind::Either(&[Kind::Dsn(OptionsOf::Transport), Kind::Section(TRANSPORT)])),
    "where messages wait, each under a name of your choice",
);

pub(super) const TRANSPORT: &[Definition] =
    &[DSN, OPTIONS, OWN_SERIALIZER, OWN_FAILURE_TRANSPORT, RETRY_STRATEGY, rate_limits::OF_TRANSPORT];
const DSN: Definition = Definition::new("dsn", Kind::Dsn(OptionsOf::Transport), "where the messages wait")
    .required()
    .example("sqlite:var/messages.db");
const OPTIONS: Definition = Definition::new(
    "options",
    Kind::Options(OptionsOf::Transport),
    "options of the transport; they win over those in its DSN",
);
const OWN_FAILURE_TRANSPORT: Definition =
    Definition::new("failure_transport", Kind::Text("transport"), "where its failed messages go")
        .or("`failure_transport`");

const RETRY_STRATEGY: Definition =
    Definition::new("retry_strategy", Kind::Section(RETRY), "when a failed message is tried again").or("as below");
const RETRY: &[Definition] = &[
    MAX_RETRIES.definition,
    DELAY.definition,
    MULTIPLIER.definition,
    MAX_DELAY.definition,
    JITTER.definition,
    SERVICE,
];
// PHP applications write PHP_INT_MAX for "always".
const MAX_RETRIES: Setting<u64> =
    Setting::whole("max_retries", 0, UNBOUNDED, "3", "how often a failed message is tried again");
const DELAY: Setting<Duration> = Setting::duration_in_millis("delay", "1000", "the delay before the first retry");
const MULTIPLIER: Setting<f64> = Setting::number(
    "multiplier",
    1.0,
    LARGEST_MULTIPLIER,
    "2",
    "each further delay is this many times as long as the one before",
);
const MAX_DELAY: Setting<Duration> = Setting::duration_in_millis("max_delay", "0", "the longest delay; 0: no limit");
const JITTER: Setting<f64> =
    Setting::number("jitter", 0.0, 1.0, "0.1", "how much a delay varies at random, as a fraction of it");

const SERVICE: Definition = Definition::new(
    "service",
    Kind::Text("name"),
    "a strategy that the application has in code under this name (`AppBuilder::retry_strategy`); it decides in place of these \
     numbers. PHP services cannot be asked",
);

/// The key `failure_transport`.
pub(super) const FAILURE_TRANSPORT: Definition = Definition::new(
    "failure_transport",
    Kind::Text("transport"),
    "where a message goes after its last attempt has failed",
);

/// The key `cache`.
pub(super) const CACHE: Definition = Definition::new(
    "cache",
    Kind::Either(&[Kind::Dsn(OptionsOf::Cache), Kind::Section(CACHE_KEYS)]),
    "where heartbeats are kept; several hosts share a server",
)
.or("files in `state_dir`");
const CACHE_KEYS: &[Definition] = &[CACHE_DSN, CACHE_OPTIONS];
const CACHE_DSN: Definition =
    Definition::new("dsn", Kind::Dsn(OptionsOf::Cache), "where it is").required().example("redis://host");
const CACHE_OPTIONS: Definition =
    Definition::new("options", Kind::Options(OptionsOf::Cache), "options of the cache; they win over those in its DSN");

/// The longest name, in bytes. The names of several transports form a worker's name, which is a folder's name too.
const LONGEST_NAME: usize = 100;

/// Larger multipliers are mistakes, and their powers overflow.
const LARGEST_MULTIPLIER: f64 = 1000.0;

/// The transports of a file.
pub(super) struct Declared {
    pub(super) all: IndexMap<String, TransportConfig>,
    /// Transports with mistakes that have been reported. They are kept so that references to them are not reported as
    /// unknown.
    broken: HashSet<String>,
}

/// The kind of a transport, by its scheme, as far as consuming it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransportKind {
    /// Messages are in a store that all processes share. Also stands for unknown schemes, which are reported elsewhere.
    Queue,
    /// Messages are handled during their dispatch.
    Sync,
    /// Messages are in the memory of the process that dispatched them.
    InMemory,
}

impl Declared {
    pub(super) fn read(entries: IndexMap<String, Node>, limiters: &Limiters, reader: &mut Reader) -> Self {
        let mut declared = Self { all: IndexMap::new(), broken: HashSet::new() };
        let mut failure_transports = Vec::new();
        for (name, node) in entries {
            let name = check_name(name, &node.path, reader);
            let (transport, failure_transport) = read_one(&name, node, limiters, reader);
            failure_transports.extend(failure_transport.map(|node| (name.clone(), node)));
            if transport.is_none() {
                declared.broken.insert(name.clone());
            }
            declared.all.insert(name.clone(), transport.unwrap_or_else(|| stand_in(name)));
        }
        for (name, node) in failure_transports {
            let failure_transport = declared.failure_transport(&node, reader);
            declared.all[&name].failure_transport = failure_transport;
        }
        declared
    }

    /// Reads the name of an existing transport.
    pub(super) fn name(&self, node: &Node, reader: &mut Reader) -> Option<String> {
        let name = node.filled_text("the name of a transport", reader)?;
        if self.all.contains_key(&name) {
            return Some(name);
        }
        reader.unknown(node, "transport", self.all.keys().map(String::as_str))
    }

    /// Reads the name of a failure transport. Returns it even if a mistake in it was reported: otherwise there would
    /// also be a warning that failed messages are not kept.
    pub(super) fn failure_transport(&self, node: &Node, reader: &mut Reader) -> Option<String> {
        let name = node.filled_text("the name of a transport", reader)?;
        if !self.all.contains_key(&name) {
            reader.unknown::<()>(node, "transport", self.all.keys().map(String::as_str));
        } else if self.kind(&name) == TransportKind::Sync {
            let message = format!(
                "\"{name}\" ends at sync://, which keeps nothing: a failed message needs a transport with a store"
            );
            reader.error(&node.path, message);
        }
        Some(name)
    }

    /// The kind of a transport. That of an auto-fallback is its target's, because consuming it consumes the target.
    pub(super) fn kind(&self, name: &str) -> TransportKind {
        let mut name = name.to_owned();
        // Ends even if an auto-fallback leads to itself.
        for _ in 0..self.all.len() {
            let Some(transport) = self.all.get(&name).filter(|_| !self.broken.contains(&name)) else {
                return TransportKind::Queue;
            };
            match scheme(&transport.dsn.0).as_str() {
                "sync" => return TransportKind::Sync,
                "in-memory" => return TransportKind::InMemory,
                "auto-fallback" | "contao-auto-fallback" => match target(&transport.dsn.0) {
                    Some(target) => name = target,
                    None => return TransportKind::Queue,
                },
                _ => return TransportKind::Queue,
            }
        }
        TransportKind::Queue
    }

    /// Whether any DSN names a connection.
    pub(super) fn use_connections(&self) -> bool {
        self.all.values().any(|transport| uses_connections(&transport.dsn.0))
    }
}

/// Whether a DSN names a connection.
pub(super) fn uses_connections(dsn: &str) -> bool {
    scheme(dsn) == "doctrine"
}

/// Where the cache is: described as a transport is.
pub(super) fn read_cache(node: Node, reader: &mut Reader) -> Option<TransportConfig> {
    let cache = |path: &str, dsn: String| TransportConfig {
        name: "cache".to_owned(),
        path: path.to_owned(),
        dsn: Secret(dsn),
        options: Mapping::new(),
        retry: None,
        failure_transport: None,
        rate_limit: None,
        serializer: None,
    };
    let expected = "a DSN such as postgres://user@host/database or redis://host, or a mapping with `dsn`";
    if !node.is_mapping() {
        return node.filled_text(expected, reader).map(|dsn| cache(&node.path, dsn));
    }
    let path = node.path.clone();
    let mut section = node.section(CACHE_KEYS, expected, reader)?;
    let dsn = section.require(&CACHE_DSN, reader);
    let dsn = dsn.and_then(|node| node.filled_text("a DSN", reader))?;
    let options = section.take("options").and_then(|node| read_options(node, reader)).unwrap_or_default();
    Some(TransportConfig { options, ..cache(&path, dsn) })
}

fn scheme(dsn: &str) -> String {
    dsn.split(':').next().unwrap_or_default().to_ascii_lowercase()
}

fn target(dsn: &str) -> Option<String> {
    let (_, query) = dsn.split_once('?')?;
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "target").map(|(_, target)| target.into_owned())
}

/// Names are arguments of commands, parts of DSNs and of workers' names. Returns the name as messages may show it.
fn check_name(name: String, path: &str, reader: &mut Reader) -> String {
    let fits = |c: char| c.is_alphanumeric() || "_.-:+".contains(c);
    if !name.is_empty() && name.len() <= LONGEST_NAME && !name.starts_with('-') && name.chars().all(fits) {
        return name;
    }
    let allowed = "letters, digits and characters of _ . - : +, and does not start with -";
    reader.error(path, format!("a transport's name has 1 to {LONGEST_NAME} {allowed}"));
    displayable(&name)
}

/// A transport, and where its failed messages go, which can be looked up when all are known.
fn read_one(
    name: &str,
    node: Node,
    limiters: &Limiters,
    reader: &mut Reader,
) -> (Option<TransportConfig>, Option<Node>) {
    let transport = |path: &str, dsn: String| TransportConfig {
        name: name.to_owned(),
        path: path.to_owned(),
        dsn: Secret(dsn),
        options: Mapping::new(),
        retry: None,
        failure_transport: None,
        rate_limit: None,
        serializer: None,
    };
    let expected = "a DSN such as sqlite:var/messages.db, or a mapping with `dsn`";
    if !node.is_mapping() {
        return (node.filled_text(expected, reader).map(|dsn| transport(&node.path, dsn)), None);
    }
    let path = node.path.clone();
    let Some(mut section) = node.section(TRANSPORT, expected, reader) else {
        return (None, None);
    };
    let dsn = section.require(&DSN, reader).and_then(|node| node.filled_text("a DSN", reader));
    let options = section.take("options").and_then(|node| read_options(node, reader)).unwrap_or_default();
    let retry = section.take("retry_strategy").map(|node| read_retry(node, reader));
    let serializer = section.take("serializer").and_then(|node| read_serializer(node, reader));
    let failure_transport = section.take("failure_transport");
    let rate_limit = section.take("rate_limiter").and_then(|node| limiters.of_transport(name, node, reader));
    let transport = dsn.map(|dsn| TransportConfig { options, retry, serializer, rate_limit, ..transport(&path, dsn) });
    (transport, failure_transport)
}

fn read_options(node: Node, reader: &mut Reader) -> Option<Mapping> {
    let mut options = Mapping::new();
    for (key, node) in node.entries("a mapping of options", reader)? {
        if let Some(value) = node.tree(reader) {
            options.insert(key.into(), value);
        }
    }
    Some(options)
}

/// Symfony's retry strategy.
fn read_retry(node: Node, reader: &mut Reader) -> RetryStrategy {
    let Some(mut section) = node.section(RETRY, "a mapping", reader) else {
        return RetryStrategy::default();
    };
    RetryStrategy {
        max_retries: u32::try_from(section.get(&MAX_RETRIES, reader)).unwrap_or(u32::MAX),
        delay: section.get(&DELAY, reader),
        multiplier: section.get(&MULTIPLIER, reader),
        max_delay: section.get(&MAX_DELAY, reader),
        jitter: section.get(&JITTER, reader),
        service: section.take("service").and_then(|node| node.filled_text("the name of a strategy", reader)),
    }
}

impl Default for RetryStrategy {
    fn default() -> Self {
        Self {
            max_retries: u32::try_from(MAX_RETRIES.default_value()).unwrap_or(u32::MAX),
            delay: DELAY.default_value(),
            multiplier: MULTIPLIER.default_value(),
            max_delay: MAX_DELAY.default_value(),
            jitter: JITTER.default_value(),
            service: None,
        }
    }
}

/// Takes the place of a transport whose mistake has been told, so that later checks find nothing wrong with it. Nothing
/// is ever sent to it, nor is its file made: a configuration with an error is not used.
fn stand_in(name: String) -> TransportConfig {
    TransportConfig {
        path: format!("transports.{name}"),
        name,
        dsn: Secret("sqlite:never-opened.db".to_owned()),
        options: Mapping::new(),
        retry: None,
        failure_transport: None,
        rate_limit: None,
        serializer: None,
    }
}

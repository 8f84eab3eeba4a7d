//! Reads `transports` and whatever names one. What a DSN says beyond its scheme is the transports' own to check.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::Mapping;
use url::form_urlencoded;

use super::duration::Bare;
use super::section::{Node, Reader, Section, displayable};
use super::{RetryStrategy, Secret, TransportConfig};

/// The service that makes a Symfony application write what is read here.
const JSON_SERIALIZER: &str = "messenger.transport.symfony_serializer";

/// Where a Symfony application has its transports.
const SYMFONY: &str = "framework.";

/// Bytes. Several names make a worker's name, which is a folder's.
const LONGEST_NAME: usize = 100;

/// Multipliers above this are mistakes, and their powers overflow everything.
const LARGEST_MULTIPLIER: f64 = 1000.0;

/// The transports of a file.
pub(super) struct Declared {
    pub(super) all: IndexMap<String, TransportConfig>,
    /// Those that were told to be wrong. They are there so that nobody calls them unknown.
    broken: HashSet<String>,
    /// Those of a Symfony application that do not say in what form it writes messages, and where they stand.
    pub(super) php_serialized: IndexMap<String, String>,
}

/// What a transport's scheme says about consuming it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// Messages wait in a store that all processes share, or that is for others to judge.
    Store,
    /// Messages are handled where they are dispatched.
    Sync,
    /// Messages wait in the memory of the process that dispatched them.
    InMemory,
}

impl Declared {
    pub(super) fn read(entries: IndexMap<String, Node>, reader: &mut Reader) -> Self {
        let mut declared = Self { all: IndexMap::new(), broken: HashSet::new(), php_serialized: IndexMap::new() };
        let mut failure_transports = Vec::new();
        for (name, node) in entries {
            let name = check_name(name, &node.path, reader);
            if node.path.starts_with(SYMFONY) && !node.has_entry("serializer") {
                declared.php_serialized.insert(name.clone(), node.path.clone());
            }
            let (transport, failure_transport) = read_one(&name, node, reader);
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

    /// The name of a transport there is.
    pub(super) fn name(&self, node: &Node, reader: &mut Reader) -> Option<String> {
        let name = node.filled_text("the name of a transport", reader)?;
        if self.all.contains_key(&name) {
            return Some(name);
        }
        reader.unknown(node, "transport", self.all.keys().map(String::as_str))
    }

    /// The name of a transport that failed messages can wait in. It is returned even where it has been told to be wrong:
    /// nobody should then be told as well that failed messages are not kept.
    pub(super) fn failure_transport(&self, node: &Node, reader: &mut Reader) -> Option<String> {
        let name = node.filled_text("the name of a transport", reader)?;
        if !self.all.contains_key(&name) {
            reader.unknown::<()>(node, "transport", self.all.keys().map(String::as_str));
        } else if self.nature(&name) == Nature::Sync {
            let message = format!(
                "\"{name}\" ends at sync://, which keeps nothing: a failed message needs a transport with a store"
            );
            reader.error(&node.path, message);
        }
        Some(name)
    }

    /// What a transport is by its scheme; an auto-fallback is what its target is, which is what consuming it consumes.
    pub(super) fn nature(&self, name: &str) -> Nature {
        let mut name = name.to_owned();
        // An auto-fallback that leads to itself must not keep us here.
        for _ in 0..self.all.len() {
            let Some(transport) = self.all.get(&name).filter(|_| !self.broken.contains(&name)) else {
                return Nature::Store;
            };
            match scheme(&transport.dsn.0).as_str() {
                "sync" => return Nature::Sync,
                "in-memory" => return Nature::InMemory,
                "auto-fallback" | "contao-auto-fallback" => match target(&transport.dsn.0) {
                    Some(target) => name = target,
                    None => return Nature::Store,
                },
                _ => return Nature::Store,
            }
        }
        Nature::Store
    }

    /// Does a DSN name a connection?
    pub(super) fn use_connections(&self) -> bool {
        self.all.values().any(|transport| uses_connections(&transport.dsn.0))
    }
}

/// Does a DSN name a connection?
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
    };
    let expected = "a DSN such as postgres://user@host/database or redis://host, or a mapping with `dsn`";
    if !node.is_mapping() {
        return node.filled_text(expected, reader).map(|dsn| cache(&node.path, dsn));
    }
    let path = node.path.clone();
    let mut section = node.section("cache", expected, reader)?;
    let dsn = section.require("dsn", "where it is, such as redis://host", reader);
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
fn read_one(name: &str, node: Node, reader: &mut Reader) -> (Option<TransportConfig>, Option<Node>) {
    let transport = |path: &str, dsn: String| TransportConfig {
        name: name.to_owned(),
        path: path.to_owned(),
        dsn: Secret(dsn),
        options: Mapping::new(),
        retry: None,
        failure_transport: None,
    };
    let expected = "a DSN such as sqlite:var/messages.db, or a mapping with `dsn`";
    if !node.is_mapping() {
        return (node.filled_text(expected, reader).map(|dsn| transport(&node.path, dsn)), None);
    }
    let path = node.path.clone();
    // Symfony's `rate_limiter` names a PHP service: nothing that could be done here, and nothing to be silent about.
    let (node, limiter) = node.without("rate_limiter");
    if let Some(limiter) = limiter {
        reader.warning(&limiter.path, "is ignored: the limiter is a PHP service, which only Symfony can ask");
    }
    let Some(mut section) = node.section("transports.*", expected, reader) else {
        return (None, None);
    };
    let dsn = section
        .require("dsn", "where the messages wait, such as sqlite:var/messages.db", reader)
        .and_then(|node| node.filled_text("a DSN", reader));
    let options = section.take("options").and_then(|node| read_options(node, reader)).unwrap_or_default();
    let retry = section.take("retry_strategy").map(|node| read_retry(node, reader));
    if let Some(node) = section.take("serializer") {
        check_serializer(&node, reader);
    }
    let failure_transport = section.take("failure_transport");
    let transport = dsn.map(|dsn| TransportConfig { options, retry, ..transport(&path, dsn) });
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

/// Symfony's retry strategy, with its defaults.
fn read_retry(node: Node, reader: &mut Reader) -> RetryStrategy {
    let default = RetryStrategy::default();
    let (node, service) = node.without("service");
    if let Some(service) = service {
        reader.warning(&service.path, "is ignored: a PHP service cannot be asked here; give max_retries, delay, …");
    }
    let Some(mut section) = node.section("transports.*.retry_strategy", "a mapping", reader) else {
        return default;
    };
    // PHP applications write PHP_INT_MAX for "always"; four billion times is always.
    let max_retries = section.whole_or("max_retries", default.max_retries.into(), 0..=i64::MAX as u64, reader);
    RetryStrategy {
        max_retries: u32::try_from(max_retries).unwrap_or(u32::MAX),
        delay: read_millis(&mut section, "delay", default.delay, reader),
        multiplier: read_number(&mut section, "multiplier", default.multiplier, 1.0..=LARGEST_MULTIPLIER, reader),
        max_delay: read_millis(&mut section, "max_delay", default.max_delay, reader),
        jitter: read_number(&mut section, "jitter", default.jitter, 0.0..=1.0, reader),
    }
}

fn read_millis(section: &mut Section, key: &str, default: Duration, reader: &mut Reader) -> Duration {
    section.take(key).and_then(|node| node.duration(Bare::Millis, reader)).unwrap_or(default)
}

fn read_number(section: &mut Section, key: &str, default: f64, range: RangeInclusive<f64>, reader: &mut Reader) -> f64 {
    section.take(key).and_then(|node| node.number(range, reader)).unwrap_or(default)
}

/// Is this the serializer that writes what is read here? If not, that is told.
pub(super) fn check_serializer(node: &Node, reader: &mut Reader) -> bool {
    let ours = node.text("the name of a serializer", reader).is_none_or(|serializer| serializer == JSON_SERIALIZER);
    if !ours {
        let message = format!(
            "{} is ignored: minutely reads and writes JSON as {JSON_SERIALIZER} does, and the PHP application must use \
             that serializer here too",
            node.shown()
        );
        reader.warning(&node.path, message);
    }
    ours
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
    }
}

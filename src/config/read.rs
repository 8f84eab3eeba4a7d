//! Reads a file into a [`Config`]: its text, its YAML, and its keys.
//!
//! The keys are at the top level, or nested as in Symfony (`framework.messenger`) and Contao (`contao.messenger`). Both
//! may be mixed, if nothing is set twice.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::{Mapping, Value};

use super::builder::ConfigBuilder;
use super::buses::read_buses;
use super::cron::read_jobs;
use super::env::Environment;
use super::environments::merge_sections;
use super::handlers::read_handlers;
use super::hooks::read_hooks;
use super::keys;
use super::mailer::read_mailer;
use super::nesting::Sources;
use super::placeholder::Placeholders;
use super::problem::{Problem, Problems};
use super::rate_limits::Limiters;
use super::routes::{add_priorities, read_interfaces, read_routing};
use super::section::{Node, Reader};
use super::serializers::{read_php, read_serializer, read_signing};
use super::serve::read_serve;
use super::signals::read_signals;
use super::transports::{Declared, read_cache, uses_connections};
use super::validation::read_validation;
use super::workers::read_workers;
use super::yaml;
use super::{Config, Secret};

/// The longest configuration. Refuses a log or a database that was named by mistake.
const LONGEST_FILE: u64 = 1024 * 1024;

/// The name, in errors, of a configuration that is not a file.
const IN_CODE: &str = "configuration";

/// A shorter heartbeat would expire before it is read.
const SHORTEST_HEARTBEAT_TTL: Duration = Duration::from_millis(100);

/// What to do about an empty file.
const START: &str = "the file is empty; `init` writes a first one where there is none";

/// Reads a configuration, with `.env` and `.env.local` beside it and the environment of the process.
///
/// Returns everything that could be understood, together with all problems: check [`Problems::any_error`] before using
/// it. An error means that nothing could be understood: there is no file, or it is not YAML.
pub(crate) fn read(path: &Path) -> Result<(Config, Problems), Problems> {
    let mut problems = Problems::new(path.display().to_string());
    let read = text_of(path).and_then(|text| Ok((text, std::path::absolute(path).map_err(|e| e.to_string())?)));
    let (text, file) = match read {
        Ok(read) => read,
        Err(message) => return Err(alone(problems, message)),
    };
    let environment = Environment::load(folder(&file), env::vars_os(), &mut problems);
    parse(&text, &file, &environment, problems)
}

/// What would be wrong with a configuration if the process had no other environment than this.
pub(crate) fn problems_with(path: &Path, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Problems {
    let mut problems = Problems::new(path.display().to_string());
    let text = match text_of(path) {
        Ok(text) => text,
        Err(message) => return alone(problems, message),
    };
    let environment = Environment::load(folder(path), environment, &mut problems);
    match parse(&text, path, &environment, problems) {
        Ok((_, problems)) | Err(problems) => problems,
    }
}

/// Like [`read`], from a text. `file` identifies it: relative paths start in its folder, and it distinguishes this
/// configuration from others with the same state directory.
pub(crate) fn read_text(text: &str, file: &Path) -> Result<(Config, Problems), Problems> {
    let mut problems = Problems::new(IN_CODE);
    let environment = Environment::load(folder(file), env::vars_os(), &mut problems);
    parse(text, file, &environment, problems)
}

/// Like [`read_text`], from a configuration made in code.
pub(crate) fn read_built(config: ConfigBuilder, file: &Path) -> Result<(Config, Problems), Problems> {
    let mut problems = Problems::new(IN_CODE);
    let environment = Environment::load(folder(file), env::vars_os(), &mut problems);
    let (root, wrong) = config.into_parts();
    problems.list.extend(wrong);
    understand(root, file, &environment, problems)
}

/// Like [`read`], from a text, as if it were the content of `file`.
pub(super) fn parse(
    text: &str,
    file: &Path,
    environment: &Environment,
    problems: Problems,
) -> Result<(Config, Problems), Problems> {
    match yaml::parse(text) {
        Ok(root) => understand(root, file, environment, problems),
        Err(message) => Err(alone(problems, message)),
    }
}

fn understand(
    root: Value,
    file: &Path,
    environment: &Environment,
    problems: Problems,
) -> Result<(Config, Problems), Problems> {
    let mut root = match root {
        Value::Mapping(root) => root,
        Value::Null => return Err(alone(problems, START)),
        _ => {
            let known: Vec<_> = keys::names().collect();
            return Err(alone(problems, format!("must be a mapping with keys such as {}", known.join(", "))));
        }
    };
    let dir = folder(file);
    let placeholders = Placeholders::new(environment, dir);
    let mut problems = problems;
    let origins = merge_sections(&mut root, placeholders.environment_name(), &mut problems);
    let mut reader = Reader { placeholders, dir, problems, origins };
    let config = read_root(root, file, environment, &mut reader);
    Ok((config, reader.problems))
}

fn read_root(root: Mapping, file: &Path, environment: &Environment, reader: &mut Reader) -> Config {
    let mut sources = Sources::find(Node::new("", Value::Mapping(root)), reader);
    let limiters = Limiters::of(sources.entries("rate_limiter", "a mapping of names to limits", reader), reader);
    let transports = sources.entries("transports", "a mapping of names to DSNs", reader);
    let transports = Declared::read(transports, &limiters, reader);
    let routing = sources.entries("routing", "a mapping of types to transports", reader);
    let mut routing = read_routing(routing, &transports, reader);
    add_priorities(&mut routing, &transports);
    let interfaces = read_interfaces(sources.entries("interfaces", "a mapping of types to interfaces", reader), reader);
    let buses = sources.entries("buses", "a mapping of names to buses", reader);
    let buses = read_buses(buses, sources.one("default_bus", reader), reader);
    let validation = read_validation(sources.entries("validation", "a mapping of types to rules", reader), reader);
    let failure_transport = sources.one("failure_transport", reader);
    let failure_transport = failure_transport.and_then(|node| transports.failure_transport(&node, reader));
    let workers = sources.one("workers", reader);
    let workers = workers.map(|node| read_workers(node, &transports, reader)).unwrap_or_default();
    let stop_signals = read_signals(sources.one("stop_worker_on_signals", reader), reader);
    let handlers = sources.entries("handlers", "a mapping of types to handlers", reader);
    let handlers = read_handlers(handlers, &transports, &buses, reader);
    let hooks = sources.one("hooks", reader).map(|node| read_hooks(node, reader)).unwrap_or_default();
    let jobs = sources.one("cron", reader).map(|node| read_jobs(node, &buses, reader)).unwrap_or_default();
    let serve = sources.one("serve", reader).map(|node| read_serve(node, reader)).unwrap_or_default();
    let state_dir = sources.one("state_dir", reader).and_then(|node| node.filled_text("the path of a folder", reader));
    let serializer = sources.one("serializer", reader).and_then(|node| read_serializer(node, reader));
    let php = sources.one("php", reader).map(|node| read_php(node, reader)).unwrap_or_default();
    let mailer = sources.one("mailer", reader).and_then(|node| read_mailer(node, reader));
    let signing = sources.one("signing", reader).and_then(|node| read_signing(node, reader));
    let cache = sources.one("cache", reader).and_then(|node| read_cache(node, reader));
    let heartbeat_ttl = sources.one("heartbeat", reader).and_then(|node| read_heartbeat_ttl(node, reader));
    let mut connections = sources.entries("connections", "a mapping of names to database URLs", reader);
    connections.retain(|_, node| !node.is_null());
    let cache_uses_them = cache.as_ref().is_some_and(|cache| uses_connections(&cache.dsn.0));
    if transports.use_connections() || cache_uses_them {
        sources.add_doctrine_connections(&mut connections);
    }
    Config {
        file: file.to_owned(),
        dir: reader.dir.to_owned(),
        transports: transports.all,
        routing,
        interfaces,
        buses,
        validation,
        failure_transport,
        workers,
        stop_signals,
        handlers,
        hooks,
        jobs,
        state_dir: reader.dir.join(state_dir.unwrap_or_else(|| keys::STATE_DIR.default_value())),
        cache,
        heartbeat_ttl: heartbeat_ttl.unwrap_or_else(|| keys::TTL.default_value()),
        serve,
        serializer,
        signing,
        php,
        mailer,
        connections: read_connections(connections, environment, reader),
    }
}

fn read_heartbeat_ttl(node: Node, reader: &mut Reader) -> Option<Duration> {
    let ttl = node.section(keys::HEARTBEAT_KEYS, "a mapping such as {ttl: 60s}", reader)?.take("ttl")?;
    let duration = ttl.read(&keys::TTL.definition, reader)?;
    if duration < SHORTEST_HEARTBEAT_TTL {
        reader.error(&ttl.path, format!("must be at least {}ms", SHORTEST_HEARTBEAT_TTL.as_millis()));
        return None;
    }
    Some(duration)
}

/// Database URLs by name. `DATABASE_URL`, which Symfony applications use, is `default` unless the file sets it.
fn read_connections(
    entries: IndexMap<String, Node>,
    environment: &Environment,
    reader: &mut Reader,
) -> IndexMap<String, Secret> {
    let mut connections = IndexMap::new();
    if let Some(url) = environment.get("DATABASE_URL").filter(|url| !url.trim().is_empty()) {
        connections.insert("default".to_owned(), Secret(reader.placeholders.fill_parameters(url)));
    }
    for (name, node) in entries {
        if let Some(url) = node.filled_text("a database URL", reader) {
            connections.insert(name, Secret(url));
        }
    }
    connections
}

fn text_of(path: &Path) -> Result<String, String> {
    if path.is_dir() {
        return Err("is a folder, not a configuration file".to_owned());
    }
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut bytes));
    match opened {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            return Err(format!("there is no such file (looked at {})", place.display()));
        }
        Err(error) => return Err(format!("cannot be read: {error}")),
        Ok(_) => {}
    }
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(format!("is longer than {} KiB, so it is no configuration", LONGEST_FILE / 1024));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        format!("is not UTF-8 text (line {line}); save it as UTF-8")
    })
}

/// The folder of an absolute path to a file.
fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

fn alone(mut problems: Problems, message: impl Into<String>) -> Problems {
    problems.push(Problem::error("", message));
    problems
}

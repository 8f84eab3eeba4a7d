//! A transport as the configuration describes it: its DSN taken apart, its options collected and read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::{Mapping, Value};

use super::{Dsn, Problem, Secret, TransportConfig};

/// What a [`Factory`](crate::transport::Factory) makes a transport of.
#[derive(Debug, Clone)]
pub struct TransportSpec {
    /// The transport's name.
    pub name: String,
    /// The DSN as it was written.
    pub dsn: Dsn,
    /// Where the store is: the DSN itself, or, for `doctrine://NAME`, the URL of that connection. The parameters of the
    /// latter are the connection's (`serverVersion`, …) and no options of the transport.
    pub store: Dsn,
    path: String,
    options: IndexMap<String, Given>,
    project_dir: PathBuf,
    /// What reading the options has found doubtful.
    warnings: Arc<Mutex<Vec<Problem>>>,
}

/// An option's value, and where it was written.
#[derive(Clone)]
struct Given {
    value: Value,
    path: String,
}

impl std::fmt::Debug for Given {
    /// The place alone: values may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)
    }
}

impl TransportSpec {
    /// Takes a transport's configuration apart, with what `doctrine://NAME` may name, and where relative paths start.
    /// Options beside the DSN win over those in it.
    pub fn new(
        config: &TransportConfig,
        connections: &IndexMap<String, Secret>,
        project_dir: &Path,
    ) -> Result<Self, Problem> {
        let path = format!("{}.dsn", config.path);
        let dsn = Dsn::parse(&config.dsn.0).map_err(|error| Problem::error(&path, error.to_string()))?;
        let store = if dsn.scheme() == "doctrine" { connection(&dsn, &path, connections)? } else { dsn.clone() };
        let mut options = IndexMap::new();
        for (key, value) in dsn.parameters() {
            // `queues[a][flags]=2`, as PHP reads it.
            let (name, keys) = key.split_once('[').map_or((key, None), |(name, keys)| (name, Some(keys)));
            let given =
                options.entry(name.to_owned()).or_insert_with(|| Given { value: Value::Null, path: path.clone() });
            let keys = keys.map(|keys| keys.trim_end_matches(']').split("][").collect::<Vec<_>>());
            put(&mut given.value, keys.as_deref().unwrap_or_default(), value);
        }
        for (key, value) in &config.options {
            let key = match key {
                Value::String(key) => key.clone(),
                key => serde_yaml::to_string(key).unwrap_or_default().trim().to_owned(),
            };
            let path = format!("{}.options.{key}", config.path);
            let value = match options.swap_remove(&key) {
                Some(in_dsn) => merged(in_dsn.value, value.clone()),
                None => value.clone(),
            };
            options.insert(key, Given { value, path });
        }
        Ok(Self {
            name: config.name.clone(),
            dsn,
            store,
            path: config.path.clone(),
            options,
            project_dir: project_dir.to_owned(),
            warnings: Arc::default(),
        })
    }

    /// Starts reading the options.
    pub fn options(&self) -> Options<'_> {
        Options { spec: self, known: Vec::new(), problems: Vec::new() }
    }

    /// A mistake in the DSN.
    pub fn dsn_problem(&self, message: impl Into<String>) -> Problem {
        Problem::error(self.dsn_path(), message)
    }

    /// A warning about the transport as a whole.
    pub fn warning(&self, message: impl Into<String>) -> Problem {
        Problem::warning(&self.path, message)
    }

    /// A file that a DSN or an option names. A relative path starts at the folder of the configuration file.
    pub fn file(&self, path: &str) -> PathBuf {
        self.project_dir.join(path)
    }

    /// What the options that have been read make a person doubt. Each is told once.
    pub(crate) fn take_warnings(&self) -> Vec<Problem> {
        // A panic while the lock is held leaves at worst a warning out.
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the DSN was written: `transports.async.dsn`.
    pub fn dsn_path(&self) -> String {
        format!("{}.dsn", self.path)
    }

    /// Where an option was written, or would be if it were given.
    pub fn option_path(&self, name: &str) -> String {
        self.options.get(name).map_or_else(|| self.dsn_path(), |given| given.path.clone())
    }
}

/// Puts a text where keys lead to, in a tree of maps. An empty key is the next number.
fn put(tree: &mut Value, keys: &[&str], text: &str) {
    let Some((key, rest)) = keys.split_first() else {
        *tree = Value::String(text.to_owned());
        return;
    };
    if !tree.is_mapping() {
        *tree = Value::Mapping(Mapping::new());
    }
    if let Value::Mapping(map) = tree {
        let key = if key.is_empty() { map.len().to_string() } else { (*key).to_owned() };
        put(map.entry(Value::String(key)).or_insert(Value::Null), rest, text);
    }
}

/// Two values of one option; of maps every key, and otherwise the second value.
fn merged(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Mapping(mut first), Value::Mapping(second)) => {
            for (key, value) in second {
                let value = match first.remove(&key) {
                    Some(before) => merged(before, value),
                    None => value,
                };
                first.insert(key, value);
            }
            Value::Mapping(first)
        }
        (_, second) => second,
    }
}

/// The URL of the connection that `doctrine://NAME` names.
fn connection(dsn: &Dsn, path: &str, connections: &IndexMap<String, Secret>) -> Result<Dsn, Problem> {
    let name = if dsn.host().is_empty() { "default" } else { dsn.host() };
    let Some(url) = connections.get(name) else {
        let mut problem = Problem::unknown(path, "connection", name, connections.keys().map(String::as_str));
        problem.message += "; DATABASE_URL in the environment makes \"default\", `connections:` makes any";
        return Err(problem);
    };
    Dsn::parse(&url.0).map_err(|error| Problem::error(path, format!("the URL of connection \"{name}\": {error}")))
}

/// Reads a transport's options one by one, and finds everything wrong with them.
///
/// Each option that is asked for is thereby known; [`Options::finish`] refuses the others. A value that cannot be read
/// is noted, and reads as its default.
pub struct Options<'a> {
    spec: &'a TransportSpec,
    known: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl Options<'_> {
    /// An option that is text. None when it is not given, or empty.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let text = match self.value(name)? {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => {
                self.refuse(name, format!("{name} is one text, not a list or map"));
                return None;
            }
        };
        if text.is_empty() { None } else { Some(text) }
    }

    /// An option that is whatever it is: a map, a list, a text. None when it is not given, or `~`.
    pub fn tree(&mut self, name: &'static str) -> Option<Value> {
        self.value(name).filter(|value| !value.is_null()).cloned()
    }

    /// An option that is accepted because others know it, and that changes nothing here: a warning says so and why. There
    /// is none where its value asks for what is done anyway (`same`).
    pub fn without_effect(&mut self, name: &'static str, same: &[&str], why: &str) {
        let Some(value) = self.tree(name) else { return };
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => String::from("a list or map"),
        };
        if !text.is_empty() && !same.contains(&text.to_ascii_lowercase().as_str()) {
            self.warn(name, format!("{name} has no effect here: {why}"));
        }
    }

    /// Notes what a person should know about an option that is given. It stops nothing.
    pub fn warn(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::warning(self.spec.option_path(name), message));
    }

    /// An option that is a whole number of seconds.
    pub fn seconds(&mut self, name: &'static str, default: Duration) -> Duration {
        let Some(text) = self.text(name) else { return default };
        match text.parse::<u32>() {
            Ok(seconds) => Duration::from_secs(seconds.into()),
            Err(_) => {
                self.refuse(
                    name,
                    format!("{name} is a whole number of seconds, at most {}; found \"{text}\"", u32::MAX),
                );
                default
            }
        }
    }

    /// An option that is true or false, in any of PHP's spellings.
    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        let Some(text) = self.text(name) else { return default };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "on" | "yes" => true,
            "false" | "0" | "off" | "no" => false,
            _ => {
                self.refuse(name, format!("{name} is true or false; found \"{text}\""));
                default
            }
        }
    }

    /// An option that is a whole number up to `most`. None when it is not given, or is something else.
    #[cfg(any(feature = "redis", feature = "amqp"))]
    pub(crate) fn whole_number(&mut self, name: &'static str, most: u64) -> Option<u64> {
        let text = self.text(name)?;
        let number = text.parse().ok().filter(|number| *number <= most);
        if number.is_none() {
            self.refuse(name, format!("{name} is a whole number, at most {most}; found \"{text}\""));
        }
        number
    }

    /// The same, where 0 stands for the default as nothing does.
    #[cfg(feature = "amqp")]
    pub(crate) fn number_or_default(&mut self, name: &'static str, most: u64) -> Option<u64> {
        self.whole_number(name, most).filter(|number| *number > 0)
    }

    /// An option that is a number of seconds, perhaps with a fraction; 0 stands for the default.
    #[cfg(feature = "amqp")]
    pub(crate) fn timeout(&mut self, name: &'static str, default: Duration) -> Duration {
        let Some(text) = self.text(name) else { return default };
        match text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            Some(Duration::ZERO) => default,
            Some(timeout) => timeout,
            None => {
                self.refuse(name, format!("{name} is a number of seconds; found \"{text}\""));
                default
            }
        }
    }

    /// Notes a mistake in an option's value.
    pub fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(self.spec.option_path(name), message));
    }

    /// Notes a mistake found elsewhere.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Ends the reading: everything wrong, with the options nobody asked for. Warnings are left to whoever has the
    /// transport made.
    pub fn finish(mut self) -> Result<(), Vec<Problem>> {
        let known: HashSet<&str> = self.known.iter().copied().collect();
        for (name, given) in self.spec.options.iter().filter(|(name, _)| !known.contains(name.as_str())) {
            self.problems.push(Problem::unknown(&given.path, "option", name, self.known.iter().copied()));
        }
        let (warnings, mistakes): (Vec<Problem>, _) = self.problems.into_iter().partition(|problem| problem.warning);
        self.spec.warnings.lock().unwrap_or_else(PoisonError::into_inner).extend(warnings);
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    fn value(&mut self, name: &'static str) -> Option<&Value> {
        self.known.push(name);
        self.spec.options.get(name).map(|given| &given.value)
    }
}

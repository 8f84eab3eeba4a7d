//! A transport as the configuration describes it: its DSN taken apart, its options collected and read.

use std::collections::HashSet;
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::Value;

use super::{Context, Dsn};
use crate::config::{Problem, Secret, TransportConfig};

/// What a [`Factory`](super::Factory) makes a transport of.
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
    /// Takes a transport's configuration apart. Options beside the DSN win over those in it.
    pub fn new(config: &TransportConfig, context: &Context) -> Result<Self, Problem> {
        Self::of(config, &context.connections)
    }

    /// The same, with what `doctrine://NAME` may name.
    pub(super) fn of(config: &TransportConfig, connections: &IndexMap<String, Secret>) -> Result<Self, Problem> {
        let path = format!("{}.dsn", config.path);
        let dsn = Dsn::parse(&config.dsn.0).map_err(|error| Problem::error(&path, error.to_string()))?;
        let store = if dsn.scheme() == "doctrine" { connection(&dsn, &path, connections)? } else { dsn.clone() };
        let mut options = IndexMap::new();
        for (key, value) in dsn.parameters() {
            options.insert(key.to_owned(), Given { value: Value::String(value.to_owned()), path: path.clone() });
        }
        for (key, value) in &config.options {
            let key = match key {
                Value::String(key) => key.clone(),
                key => serde_yaml::to_string(key).unwrap_or_default().trim().to_owned(),
            };
            let path = format!("{}.options.{key}", config.path);
            options.insert(key, Given { value: value.clone(), path });
        }
        Ok(Self { name: config.name.clone(), dsn, store, path: config.path.clone(), options })
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

    /// Where the DSN was written: `transports.async.dsn`.
    pub fn dsn_path(&self) -> String {
        format!("{}.dsn", self.path)
    }

    /// Where an option was written, or would be if it were given.
    pub fn option_path(&self, name: &str) -> String {
        self.options.get(name).map_or_else(|| self.dsn_path(), |given| given.path.clone())
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

    /// Notes a mistake in an option's value.
    pub fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(self.spec.option_path(name), message));
    }

    /// Notes a mistake found elsewhere.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Ends the reading: everything wrong, with the options nobody asked for.
    pub fn finish(mut self) -> Result<(), Vec<Problem>> {
        let known: HashSet<&str> = self.known.iter().copied().collect();
        for (name, given) in self.spec.options.iter().filter(|(name, _)| !known.contains(name.as_str())) {
            self.problems.push(Problem::unknown(&given.path, "option", name, self.known.iter().copied()));
        }
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }

    fn value(&mut self, name: &'static str) -> Option<&Value> {
        self.known.push(name);
        self.spec.options.get(name).map(|given| &given.value)
    }
}

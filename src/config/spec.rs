//! A transport as the configuration describes it: its DSN taken apart, its options collected and read.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::{Mapping, Value};

use super::definition::{Definition, FromValue, Mismatch, Setting, Support, plain_text};
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
    /// The options that exist.
    defined: Vec<Definition>,
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
            defined: Vec::new(),
            warnings: Arc::default(),
        })
    }

    /// The same, where these options exist.
    #[must_use]
    pub fn with_options(self, defined: Vec<Definition>) -> Self {
        Self { defined, ..self }
    }

    /// Starts reading the options.
    pub fn options(&self) -> Options<'_> {
        Options { spec: self, problems: Vec::new() }
    }

    /// The options that may be given. With `doctrine://NAME` those of the connection are in the connection's URL.
    fn known(&self) -> impl Iterator<Item = &Definition> {
        let is_own = self.dsn == self.store;
        self.defined.iter().filter(move |known| is_own || !known.of_connection)
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

/// Reads a transport's options by their definitions, and finds everything wrong with them.
///
/// The transport's [`Factory`](crate::transport::Factory) says which options there are; [`Options::finish`] refuses any other.
/// A value that cannot be read is noted, and reads as its default.
pub struct Options<'a> {
    spec: &'a TransportSpec,
    problems: Vec<Problem>,
}

impl Options<'_> {
    /// The value of an option, or its default where it is missing, empty or wrong.
    pub fn get<T: FromValue>(&mut self, setting: &Setting<T>) -> T {
        let definition = &setting.definition;
        let Some(value) = self.value(definition) else { return setting.default_value() };
        self.read(definition.name, "", setting, &value)
    }

    /// The value of an option that is a duration, of which zero stands for the default.
    pub fn get_nonzero(&mut self, setting: &Setting<Duration>) -> Duration {
        let duration = self.get(setting);
        if duration.is_zero() { setting.default_value() } else { duration }
    }

    /// The value of a key in an option that is a map; the key is taken out of it.
    pub fn take<T: FromValue>(&mut self, option: &Definition, map: &mut Mapping, setting: &Setting<T>) -> T {
        let value = map.remove(setting.definition.name).filter(|value| !is_empty(value));
        let Some(value) = value else { return setting.default_value() };
        self.read(option.name, &format!("{}: ", option.name), setting, &value)
    }

    /// `name` is the option, `within` names it again in a message about one of its keys.
    fn read<T: FromValue>(&mut self, name: &str, within: &str, setting: &Setting<T>, value: &Value) -> T {
        let definition = &setting.definition;
        let expected = match T::from_value(&definition.kind, value) {
            Ok(value) => return value,
            Err(Mismatch::Kind) => definition.kind.expected(),
            Err(Mismatch::Because(why)) => why,
        };
        let found = plain_text(value).map_or_else(|| "a list or map".to_owned(), |text| format!("\"{text}\""));
        self.refuse(name, format!("{within}{} is {expected}; found {found}", definition.name));
        setting.default_value()
    }

    /// The value of an option that is a map, a list, or whatever it is. None when it is not given, or empty.
    pub fn tree(&mut self, definition: &Definition) -> Option<Value> {
        self.value(definition)
    }

    /// Notes what a person should know about an option that is given. It stops nothing.
    pub fn warn(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::warning(self.spec.option_path(name), message));
    }

    /// Notes a mistake in an option's value.
    pub fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(self.spec.option_path(name), message));
    }

    /// Notes a mistake found elsewhere.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Ends the reading: everything wrong, with the options that do not exist. Warnings are left to whoever has the
    /// transport made.
    pub fn finish(mut self) -> Result<(), Vec<Problem>> {
        let spec = self.spec;
        for (name, given) in &spec.options {
            match spec.known().find(|known| known.name == name) {
                Some(known) => self.check_support(known, &given.value),
                None => {
                    let used = spec.known().filter(|known| known.support == Support::Used);
                    self.problems.push(Problem::unknown(&given.path, "option", name, used.map(|known| known.name)));
                }
            }
        }
        let (warnings, mistakes): (Vec<Problem>, _) = self.problems.into_iter().partition(|problem| problem.warning);
        spec.warnings.lock().unwrap_or_else(PoisonError::into_inner).extend(warnings);
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    /// Tells of an option that is known and does nothing here.
    fn check_support(&mut self, known: &Definition, value: &Value) {
        let (Support::Ignored { same, .. } | Support::Refused { same, .. }) = known.support else { return };
        let text = plain_text(value).unwrap_or_else(|| "a list or map".to_owned());
        if is_empty(value) || same.contains(&text.to_ascii_lowercase().as_str()) {
            return;
        }
        let name = known.name;
        match known.support {
            Support::Ignored { why, .. } => self.warn(name, format!("{name} has no effect here: {why}")),
            Support::Refused { why, .. } => self.refuse(name, format!("{name}: {why}")),
            Support::Used | Support::Accepted => {}
        }
    }

    /// A value that is given, and not empty.
    fn value(&self, definition: &Definition) -> Option<Value> {
        debug_assert!(
            self.spec.defined.iter().any(|known| known.name == definition.name),
            "the factory does not tell of the option \"{}\"",
            definition.name
        );
        self.spec.options.get(definition.name).map(|given| &given.value).filter(|value| !is_empty(value)).cloned()
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

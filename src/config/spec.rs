//! The description of a transport: its parsed DSN and its options.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;
use serde_yaml::{Mapping, Value};

use super::definition::{Definition, Missing, Setting, Support};
use super::problem::displayable;
use super::value::{FromValue, Mismatch, plain_text};
use super::{Dsn, Problem, Secret, TransportConfig};

/// The description from which a [`Factory`](crate::transport::Factory) creates a transport.
#[derive(Debug, Clone)]
pub struct TransportSpec {
    /// The transport's name.
    pub name: String,
    /// The DSN as it was written.
    pub dsn: Dsn,
    /// The store: the DSN itself, or for `doctrine://NAME` the URL of that connection. The parameters of such a URL
    /// (`serverVersion`, …) are not options of the transport.
    pub store: Dsn,
    path: String,
    options: IndexMap<String, Given>,
    project_dir: PathBuf,
    /// The options that exist.
    defined: Vec<Definition>,
    /// The warnings found while reading the options.
    warnings: Arc<Mutex<Vec<Problem>>>,
}

/// An option's value, and where it was written.
#[derive(Clone)]
struct Given {
    value: Value,
    path: String,
}

impl std::fmt::Debug for Given {
    /// Shows only the place, because values may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)
    }
}

impl TransportSpec {
    /// Parses a transport's configuration. `doctrine://NAME` refers to `connections`, and relative paths start at
    /// `project_dir`. Options beside the DSN have precedence over those in it.
    pub(crate) fn new(
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
    pub(crate) fn with_options(self, defined: Vec<Definition>) -> Self {
        Self { defined, ..self }
    }

    /// Starts reading the options.
    pub fn options(&self) -> OptionReader<'_> {
        OptionReader { spec: self, problems: Vec::new() }
    }

    /// The possible options. With `doctrine://NAME`, those of the connection are in the connection's URL.
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

    /// The file or folder in which a store is, by its DSN: `folder:relative/path` or `folder:///absolute/path`. A
    /// relative path starts at the folder of the configuration file. A DSN without a path is a mistake, and so is one
    /// with a host, as `folder://var/mail` is.
    pub fn path(&self) -> Result<PathBuf, Problem> {
        let (store, scheme) = (&self.store, self.store.scheme());
        let ways = format!("write {scheme}:relative/path or {scheme}:///absolute/path");
        if !store.hosts().is_empty() {
            return Err(self.dsn_problem(format!("\"{}\" stands where a host stands: {ways}", store.host())));
        }
        if store.path().trim_matches('/').is_empty() {
            return Err(self.dsn_problem(format!("it has no path: {ways}")));
        }
        Ok(self.file(store.path()))
    }

    /// A file that an option names. A relative path starts at the folder of the configuration file.
    pub fn file(&self, path: &str) -> PathBuf {
        self.project_dir.join(path)
    }

    /// Takes the warnings about the options that have been read.
    pub(crate) fn take_warnings(&self) -> Vec<Problem> {
        // At worst, a panic while the lock is held loses a warning.
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the DSN was written: `transports.async.dsn`.
    pub fn dsn_path(&self) -> String {
        format!("{}.dsn", self.path)
    }

    /// Where an option is written, or would be.
    pub fn option_path(&self, name: &str) -> String {
        self.options.get(name).map_or_else(|| self.dsn_path(), |given| given.path.clone())
    }
}

/// Puts a text into a tree of maps, at the place that the keys name. An empty key is the next number.
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

/// Merges two values of an option: maps key by key; otherwise the second value wins.
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

/// Reads a transport's options by their definitions, and collects all mistakes.
///
/// The transport's [`Factory`](crate::transport::Factory) defines the options; [`OptionReader::finish`] refuses any other. A
/// value that cannot be read is reported, and its default is used.
pub struct OptionReader<'a> {
    spec: &'a TransportSpec,
    problems: Vec<Problem>,
}

impl OptionReader<'_> {
    /// The value of an option, or its default if it is missing, empty or wrong. A required option that is missing is a
    /// mistake.
    pub fn get<T: FromValue>(&mut self, setting: &Setting<T>) -> T {
        let definition = &setting.definition;
        let Some(value) = self.value(definition) else {
            if definition.default == Missing::Required {
                self.refuse(definition.name, format!("{} is missing: {}", definition.name, definition.advice()));
            }
            return setting.default_value();
        };
        self.read(definition.name, "", setting, &value)
    }

    /// The value of an option that is a duration; zero means the default.
    pub fn get_nonzero(&mut self, setting: &Setting<Duration>) -> Duration {
        let duration = self.get(setting);
        if duration.is_zero() { setting.default_value() } else { duration }
    }

    /// Takes the value of a key out of an option that is a map.
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
        let found = plain_text(value);
        let found = found.map_or_else(|| "a list or map".to_owned(), |text| format!("\"{}\"", displayable(&text)));
        self.refuse(name, format!("{within}{} is {expected}; found {found}", definition.name));
        setting.default_value()
    }

    /// The value of an option of any type, such as a map or a list. `None` if it is missing or empty.
    #[cfg(any(feature = "redis", feature = "amqp"))]
    pub(crate) fn tree(&mut self, definition: &Definition) -> Option<Value> {
        self.value(definition)
    }

    /// Adds a warning about an option. The message stands alone, so it begins with the option's name.
    pub fn warn(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::warning(self.spec.option_path(name), message));
    }

    /// Adds a mistake in an option's value. The message stands alone, so it begins with the option's name: `table_name
    /// is a name of letters, digits and _; found "a b"`. Where the option is in the DSN, the mistake's place is that of
    /// the DSN.
    pub fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(self.spec.option_path(name), message));
    }

    /// Adds a mistake that was found elsewhere.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Ends the reading. Returns all mistakes, including unknown options. Warnings stay in the description.
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

    /// Reports an option that is known and has no effect here.
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

    /// The value of an option, unless it is empty.
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

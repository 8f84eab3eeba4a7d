//! A configuration made in code instead of a file.

use std::path::Path;

use serde::Serialize;
use serde_yaml::{Mapping, Value};

use super::Config;
use super::problem::Problem;

/// A configuration made in code: the keys of `config.yaml`, with methods for those that most applications need.
///
/// Values are read and checked like those of a file, when the application is built: `%env(NAME)%` is resolved, relative
/// paths start at the application's folder, and all mistakes are reported at once.
///
/// ```
/// use minutely::App;
/// use minutely::config::Config;
///
/// let config = Config::builder()
///     .transport("mail", "sqlite:var/queue.db?queue_name=mail")
///     .transport("failed", "sqlite:var/queue.db?queue_name=failed")
///     .failure_transport("failed")
///     .route(r"App\Message\*", ["mail"])
///     .set("heartbeat", serde_json::json!({ "ttl": "30s" }));
/// let app = App::builder().config(config).build()?;
/// # Ok::<(), minutely::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct ConfigBuilder {
    root: Mapping,
    problems: Vec<Problem>,
}

impl Config {
    /// An empty configuration.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }
}

impl ConfigBuilder {
    /// Adds a transport by its DSN.
    #[must_use]
    pub fn transport(self, name: &str, dsn: &str) -> Self {
        self.entry("transports", name, dsn)
    }

    /// Adds a transport with everything that a file may have beside its DSN:
    /// `json!({ "dsn": "…", "options": { … }, "retry_strategy": { … }, "failure_transport": "…" })`.
    #[must_use]
    pub fn transport_with(self, name: &str, settings: impl Serialize) -> Self {
        self.entry("transports", name, settings)
    }

    /// Sends messages of a type, an interface or a wildcard (`App\Message\*`) to these transports.
    #[must_use]
    pub fn route<T: Into<String>>(self, pattern: &str, transports: impl IntoIterator<Item = T>) -> Self {
        let transports: Vec<String> = transports.into_iter().map(Into::into).collect();
        self.entry("routing", pattern, transports)
    }

    /// Adds a bus: `json!({ "middleware": ["validation"], "default_middleware": { "allow_no_handlers": true } })`, or
    /// `json!({})` for the usual middleware alone. With several, [`default_bus`](Self::default_bus) is required.
    #[must_use]
    pub fn bus(self, name: &str, settings: impl Serialize) -> Self {
        self.entry("buses", name, settings)
    }

    /// Sets the bus that is meant where none is named.
    #[must_use]
    pub fn default_bus(self, name: &str) -> Self {
        self.set("default_bus", name)
    }

    /// Sets the failure transport for transports without one of their own.
    #[must_use]
    pub fn failure_transport(self, name: &str) -> Self {
        self.set("failure_transport", name)
    }

    /// Adds a worker definition for the supervisor:
    /// `json!({ "transports": ["mail"], "autoscale": { "desired_size": 10, "max": 4 } })`.
    #[must_use]
    pub fn worker(mut self, settings: impl Serialize) -> Self {
        let Some(settings) = self.value("workers", settings) else { return self };
        match self.root.entry("workers".into()).or_insert_with(|| Value::Sequence(Vec::new())) {
            Value::Sequence(workers) => workers.push(settings),
            other => *other = Value::Sequence(vec![settings]),
        }
        self
    }

    /// Sets the folder for locks, slots, cache and logs. Default: `var`.
    #[must_use]
    pub fn state_dir(self, dir: impl AsRef<Path>) -> Self {
        self.set("state_dir", dir.as_ref())
    }

    /// Sets the store for heartbeats, by its DSN. All hosts must share it. Default: files under the state directory.
    #[must_use]
    pub fn cache(self, dsn: &str) -> Self {
        self.set("cache", dsn)
    }

    /// Sets any key of `config.yaml`. Replaces its earlier value.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Serialize) -> Self {
        if let Some(value) = self.value(key, value) {
            self.root.insert(key.into(), value);
        }
        self
    }

    fn entry(mut self, key: &str, name: &str, value: impl Serialize) -> Self {
        let Some(value) = self.value(&format!("{key}.{name}"), value) else { return self };
        match self.root.entry(key.into()).or_insert_with(|| Value::Mapping(Mapping::new())) {
            Value::Mapping(entries) => drop(entries.insert(name.into(), value)),
            other => *other = Value::Mapping([(name.into(), value)].into_iter().collect()),
        }
        self
    }

    fn value(&mut self, path: &str, value: impl Serialize) -> Option<Value> {
        match serde_yaml::to_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(Problem::error(path, format!("cannot be written as YAML: {error}")));
                None
            }
        }
    }

    /// The content of the equivalent file, and the problems with it.
    pub(super) fn into_parts(self) -> (Value, Vec<Problem>) {
        (Value::Mapping(self.root), self.problems)
    }
}

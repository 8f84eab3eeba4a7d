//! Applications of transports alone, as a configuration describes them. Nothing is opened before it is used.

use std::path::Path;

use minutely::config::{Config, ConfigBuilder, Problem, Problems};
use minutely::{App, Error};
use serde_json::json;

/// Transports by name and DSN, with further options of theirs as YAML.
pub fn transports<'a>(transports: impl IntoIterator<Item = (&'a str, &'a str)>, options: &str) -> ConfigBuilder {
    let options: serde_json::Value = serde_yaml::from_str(options).unwrap();
    transports.into_iter().fold(Config::builder(), |config, (name, dsn)| {
        config.transport_with(name, json!({ "dsn": dsn, "options": options }))
    })
}

/// The application in a project's folder, or what is wrong with its configuration.
pub fn build(config: ConfigBuilder, dir: &Path) -> Result<App, Problems> {
    App::builder().config(config).dir(dir).build().map_err(|error| match error {
        Error::Configuration(problems) => problems,
        other => panic!("{other}"),
    })
}

/// All that is wrong, or doubtful, with it.
pub fn problems(config: ConfigBuilder, dir: &Path) -> Vec<Problem> {
    match build(config, dir) {
        Ok(app) => app.warnings().cloned().collect(),
        Err(problems) => problems.list,
    }
}

//! Checks messages by JSON Schema. Schemas are compiled when the application is built; what they refer to is read from the
//! configuration's folder, and from nowhere else.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::{PatternOptions, Retrieve, Uri, Validator};
use serde_json::Value;
use url::Url;

use super::validation::{Checks, Violation};
use crate::config::{Problem, SchemaConfig, SchemaSource};

/// The longest schema, in bytes.
const LONGEST: u64 = 1 << 20;

/// How far a pattern with look-around may go on trying. Others need no limit.
const MOST_STEPS: usize = 100_000;

/// How many violations are looked for.
const MOST_FOUND: usize = 20;

/// Compiles the schemas of the configuration in `dir`.
pub(crate) fn add_schemas(configs: &[SchemaConfig], dir: &Path, checks: &mut Checks, problems: &mut Vec<Problem>) {
    for config in configs {
        match compile(&config.source, dir) {
            Ok(schema) => {
                let check = move |envelope: &crate::message::Envelope| violations(&schema, envelope.body());
                checks.add_check(&config.pattern, config.group.clone(), Arc::new(check));
            }
            Err(why) => problems.push(Problem::error(&config.path, why)),
        }
    }
}

fn compile(source: &SchemaSource, dir: &Path) -> Result<Validator, String> {
    let folder = Folder::new(dir)?;
    let (schema, file) = match source {
        SchemaSource::Inline(schema) => (schema.clone(), folder.dir.join("config.yaml")),
        SchemaSource::File(file) => {
            let file = dir.join(file);
            let schema = folder.read(&file)?;
            (schema, file.canonicalize().unwrap_or(file))
        }
    };
    let base = Url::from_file_path(&file).map_err(|()| format!("{} is no absolute path", file.display()))?;
    let options = jsonschema::options()
        .with_base_uri(base)
        .with_retriever(folder)
        .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(MOST_STEPS));
    options.build(&schema).map_err(|error| {
        let place = error.instance_path().to_string();
        let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
        format!("the schema is wrong: {place}{error}")
    })
}

/// What is wrong with a message. The messages do not contain its values, which may be secret.
fn violations(schema: &Validator, body: &[u8]) -> Vec<Violation> {
    let message: Value = match serde_json::from_slice(body) {
        Ok(message) => message,
        Err(error) => return vec![Violation::from(format!("it cannot be read as JSON: {error}"))],
    };
    let found = schema.iter_errors(&message).take(MOST_FOUND);
    found.map(|error| Violation::at(error.instance_path().to_string(), error.masked().to_string())).collect()
}

/// The folder that schemas may refer to.
struct Folder {
    dir: PathBuf,
}

impl Folder {
    fn new(dir: &Path) -> Result<Self, String> {
        let dir =
            dir.canonicalize().map_err(|error| format!("the folder {} cannot be read: {error}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Reads a schema: JSON, or YAML by its name.
    fn read(&self, file: &Path) -> Result<Value, String> {
        let shown = file.display();
        let real = file.canonicalize().map_err(|error| format!("the schema {shown} cannot be read: {error}"))?;
        if !real.starts_with(&self.dir) {
            return Err(format!("the schema {shown} is outside of the configuration's folder, {}", self.dir.display()));
        }
        let mut text = String::new();
        // Before it is opened: opening a named pipe waits.
        let is_file = real.metadata().and_then(|found| match found.is_file() {
            true => Ok(()),
            false => Err(std::io::Error::other("it is no file")),
        });
        let read = is_file.and_then(|()| File::open(&real)?.take(LONGEST + 1).read_to_string(&mut text));
        read.map_err(|error| format!("the schema {shown} cannot be read: {error}"))?;
        if text.len() as u64 > LONGEST {
            return Err(format!("the schema {shown} is longer than {} KiB", LONGEST / 1024));
        }
        let is_yaml = real.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        let read = if is_yaml {
            serde_yaml::from_str(&text).map_err(|error| error.to_string())
        } else {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        };
        read.map_err(|error| format!("the schema {shown} cannot be understood: {error}"))
    }
}

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let file =
            Url::parse(uri.as_str()).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
        match file {
            Some(file) => Ok(self.read(&file)?),
            None => Err(format!("{} is not read: a schema may refer to files beside it alone", uri.as_str()).into()),
        }
    }
}

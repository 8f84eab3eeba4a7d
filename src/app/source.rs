//! Where an application's configuration comes from.

use std::path::PathBuf;

use super::builder::CONFIG_FILE;
use crate::config::{self, Config, ConfigBuilder, Problem, Problems};

/// Where the configuration comes from.
pub(super) enum Source {
    File(PathBuf),
    Text(String),
    Code(ConfigBuilder),
}

impl Default for Source {
    fn default() -> Self {
        Self::File(CONFIG_FILE.into())
    }
}

pub(super) fn read(source: Source, dir: Option<PathBuf>) -> Result<(Config, Problems), Problems> {
    let in_code = || {
        in_folder(dir).map_err(|why| {
            let list = vec![Problem::error("", format!("its folder cannot be determined: {why}"))];
            Problems { file: "configuration".to_owned(), list }
        })
    };
    match source {
        Source::File(file) => config::read(&file),
        Source::Text(text) => config::read_text(&text, &in_code()?),
        Source::Code(built) => config::read_built(built, &in_code()?),
    }
}

/// Identifies a configuration that is not a file: by this program and the folder for relative paths. Distinguishes
/// programs that share a state directory by mistake.
pub(super) fn in_folder(dir: Option<PathBuf>) -> std::io::Result<PathBuf> {
    let dir = std::path::absolute(dir.unwrap_or_else(|| ".".into()))?;
    let program = std::env::current_exe()?;
    Ok(dir.join(program.file_name().unwrap_or_default()))
}

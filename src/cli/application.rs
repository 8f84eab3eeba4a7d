//! The application that a command is run for.

use std::path::{Path, PathBuf};

use super::command::GlobalArgs;
use super::{Failure, Result};
use crate::app::{App, AppBuilder};

/// An application, built or to be built. What [`run`](super::run) takes.
///
/// With a builder `init` and `config check` work where there is no configuration yet, or a wrong one.
#[non_exhaustive]
pub enum Application {
    /// One that is built.
    Built(App),
    /// One that is built when the command needs it.
    Builder(Box<AppBuilder>),
}

impl Application {
    /// The configuration's file, if it is one.
    pub(super) fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Built(app) => Some(app.config.file.clone()),
            Self::Builder(builder) => builder.file().map(Path::to_owned),
        }
    }

    pub(super) fn config_schema(&self) -> serde_json::Value {
        match self {
            Self::Built(app) => app.config_schema(),
            Self::Builder(builder) => builder.config_schema(),
        }
    }

    /// With the configuration that the arguments name.
    pub(super) fn configured(self, global: &GlobalArgs) -> Result<Self> {
        let Some(file) = &global.config else { return Ok(self) };
        match self {
            Self::Builder(builder) => Ok((*builder).config_file(file).into()),
            Self::Built(app) if std::path::absolute(file).is_ok_and(|file| file == app.config.file) => Ok(app.into()),
            Self::Built(app) => Err(Failure::Usage(format!(
                "{} cannot be read: this program has read {} before it looked at its arguments (its code has to give \
                 `cli::run` the builder, or the application built from this file)",
                file.display(),
                app.config.file.display()
            ))),
        }
    }
}

impl From<App> for Application {
    fn from(app: App) -> Self {
        Self::Built(app)
    }
}

impl From<AppBuilder> for Application {
    fn from(app: AppBuilder) -> Self {
        Self::Builder(Box::new(app))
    }
}

//! Makes the handlers that a configuration names.

use std::path::Path;
use std::sync::Arc;

use super::Handler;
use super::exec::Exec;
use crate::config::{HandlerAction, HandlerConfig};

/// The handler that an entry of the configuration describes. Its programs run in the folder `dir`.
pub(crate) fn from_config(config: &HandlerConfig, dir: &Path) -> Arc<dyn Handler> {
    match &config.action {
        HandlerAction::Exec(exec) => Arc::new(Exec::new(exec, dir)),
    }
}

//! Makes the handlers that a configuration names.

use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "http")]
use super::builtin::PingWebhook;
use super::builtin::{RunCommand, RunProcess};
use super::exec::Exec;
#[cfg(feature = "http")]
use super::http::Http;
use super::stream::Stream;
use super::{BatchOptions, Batched, Handler};
use crate::config::{BatchConfig, HandlerAction, HandlerConfig};

/// The handler that an entry of the configuration describes. Its programs run in the folder `dir`.
pub(crate) fn from_config(config: &HandlerConfig, dir: &Path) -> Arc<dyn Handler> {
    if let Some(BatchConfig { size, wait }) = config.batch {
        let options = BatchOptions::new(size).wait(wait);
        match &config.action {
            HandlerAction::Exec(config) => return Arc::new(Batched::new(options, Exec::new(config, dir))),
            HandlerAction::Stream(config) => return Arc::new(Batched::new(options, Stream::new(config, dir))),
            #[cfg(feature = "http")]
            HandlerAction::Http { request, timeout } => {
                return Arc::new(Batched::new(options, Http::new(request, *timeout)));
            }
            // Refused where the configuration is read.
            _ => {}
        }
    }
    match &config.action {
        HandlerAction::Exec(config) => Arc::new(Exec::new(config, dir)),
        HandlerAction::Stream(config) => Arc::new(Stream::new(config, dir)),
        #[cfg(feature = "http")]
        HandlerAction::Http { request, timeout } => Arc::new(Http::new(request, *timeout)),
        HandlerAction::Console { console, timeout } => Arc::new(RunCommand::new(console, *timeout, dir)),
        HandlerAction::RunProcess { timeout } => Arc::new(RunProcess::new(*timeout, dir)),
        #[cfg(feature = "http")]
        HandlerAction::PingWebhook { timeout } => Arc::new(PingWebhook::new(*timeout)),
    }
}

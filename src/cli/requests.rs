//! What answers requests, in the commands `serve` and `cgi`.

use super::cron::scheduler;
use super::{App, Failure, GlobalArgs, Result};
use crate::config::Trigger;
use crate::serve::Service;

/// What answers requests, for a command of one of these names.
pub(super) fn service(app: &App, names: &'static [&'static str], global: &GlobalArgs) -> Result<Service> {
    let (for_jobs, global) = (app.clone(), global.clone());
    let new_scheduler = move || {
        scheduler(&for_jobs, Trigger::Web, names, &global).map_err(|failure| match failure {
            Failure::Usage(text) | Failure::Failed(text) => text,
        })
    };
    Service::new(app, Box::new(new_scheduler)).map_err(|error| Failure::Usage(error.to_string()))
}

//! The errors of building and using an application.

use std::fmt;

use thiserror::Error;

use crate::bus::DispatchError;
use crate::config::Problems;
use crate::message::BodyError;
use crate::transport::TransportError;

/// Why an application could not be built, a message could not be dispatched, or a worker or supervisor could not be
/// started.
///
/// Every call of an application fails with this error, or with one that `?` converts into it. To find out what happened
/// to a single message, match the [`DispatchError`] of its dispatch:
///
/// ```
/// # use minutely::message::Message;
/// use minutely::bus::DispatchError;
/// use minutely::config::Config;
/// use minutely::{App, Error};
///
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # impl Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
/// #[tokio::main]
/// async fn main() -> Result<(), Error> {
///     let config = Config::builder().transport("mail", "in-memory://").route(SendEmail::TYPE, ["mail"]);
///     let app = App::builder().config(config).build()?;
///     match app.dispatch(&SendEmail { to: "ada@example.com".into() }).await {
///         Err(DispatchError::Refused(why)) => println!("a middleware does not want it: {why}"),
///         dispatched => println!("queued on {}", dispatched?.queued()[0].queued_on),
///     }
///     Ok(())
/// }
/// ```
///
/// Its `Debug` is its text, because that is what Rust prints of an error that `main` returns.
#[derive(Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is wrong, or what code has added to it. Shows all mistakes, one per line.
    #[error(transparent)]
    Configuration(#[from] Problems),
    /// A message could not be dispatched.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    /// A message cannot be written as JSON, or cannot be read from it.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A transport does not exist, cannot do what was asked of it, or its store failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The path of this program, or its current folder, cannot be determined.
    #[error("the path of this program, or its current folder, cannot be determined: {0}")]
    ThisProgram(#[source] std::io::Error),
    /// A supervisor inside the application cannot start this program as a worker.
    #[error(
        "it is not known how to start this program as a worker: set \
         `App::builder().worker_arguments([\"queue\", \"consume\"])`, where `queue` is the command that has minutely's commands"
    )]
    WorkerArguments,
    /// A worker in this process would have nothing to do.
    #[error("there is no handler here, so a worker could not do anything; add one with `App::builder().handle(…)`")]
    NoHandler,
    /// Queues were named that a transport does not have.
    #[error("{0}")]
    Queues(String),
    /// The runtime ended before the worker or the supervisor did.
    #[error("the runtime ended before the worker or supervisor did")]
    Aborted,
    /// A supervisor cannot use its state directory, or the directory belongs to another configuration.
    #[error(transparent)]
    Supervisor(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Problem;

    #[test]
    fn an_error_that_main_returns_is_shown_as_its_text() {
        let problems =
            Problems { file: "config.yaml".to_owned(), list: vec![Problem::error("cache", "no such store")] };
        assert_eq!(format!("{:?}", Error::from(problems)), "config.yaml: cache: no such store");
    }
}

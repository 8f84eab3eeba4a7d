//! What can go wrong when an application is built and used.

use std::fmt;

use thiserror::Error;

use crate::bus::DispatchError;
use crate::config::Problems;
use crate::message::BodyError;
use crate::transport::TransportError;

/// Why an application could not be built, a message not be dispatched, or a worker or supervisor not be started.
///
/// Whatever an application calls fails with this or with something that `?` makes this. Where a program cares what became of one message, it looks at the
/// [`DispatchError`] of that dispatch:
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
    /// The configuration, or what was added to it in code, is wrong. Shows all mistakes, one in each line.
    #[error(transparent)]
    Configuration(#[from] Problems),
    /// A message could not be dispatched.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    /// A message cannot be written as JSON, or not be read from it.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A transport does not exist, cannot do what was asked of it, or its store failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Where this program is, or in which folder it runs, cannot be found out.
    #[error("where this program lies cannot be told: {0}")]
    ThisProgram(#[source] std::io::Error),
    /// A supervisor inside the application cannot start this program as a worker.
    #[error(
        "how this program becomes a worker is not known: say so with \
         `App::builder().worker_arguments([\"queue\", \"consume\"])`, where `queue` is the name of the commands in it"
    )]
    WorkerArguments,
    /// A worker in this process would have nothing to do.
    #[error(
        "there is no handler for messages here, so that a worker could do nothing; add one with `App::builder().handle(…)`"
    )]
    NoHandler,
    /// Queues were named that a transport does not have.
    #[error("{0}")]
    Queues(String),
    /// The runtime ended before the worker or the supervisor did.
    #[error("the runtime ended while this was at work")]
    Aborted,
    /// A supervisor cannot use its state directory, or that one belongs to another configuration.
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

//! What can go wrong when an application is built and used.

use thiserror::Error;

use crate::bus::DispatchError;
use crate::config::Problems;
use crate::supervisor::{LockError, StateError};
use crate::transport::TransportError;

/// Why an application could not be built, a message not dispatched, or a worker not started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration, or what was added to it in code, is wrong. Shows all mistakes, one in each line.
    #[error(transparent)]
    Configuration(#[from] Problems),
    /// A message could not be dispatched.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
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
    /// The supervisor's state directory cannot be used, or belongs to another configuration.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file under the state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

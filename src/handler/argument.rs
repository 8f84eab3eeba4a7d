//! The arguments that a handler function may have.

use std::any::type_name;
use std::future::Future;
use std::time::SystemTime;

use super::{CancellationToken, HandlerContext, HandlerError, States};
use crate::message::{Envelope, Message, Stamp, TraceContext};

/// An argument of a handler function: its message, or anything else that it needs.
///
/// | argument | what it is |
/// | --- | --- |
/// | a type that is a [`Message`] | the message; every handler has exactly one |
/// | [`State<T>`] | what the application was given with [`AppBuilder::state`](crate::AppBuilder::state) |
/// | [`Bus`](crate::bus::Bus) | dispatches further messages |
/// | [`Envelope`] | the message with all its stamps |
/// | [`Stamped<S>`], `Option<Stamped<S>>` | the latest stamp of a class |
/// | [`Attempt`] | the number of this attempt |
/// | [`Extension<T>`](crate::bus::Extension), `Option<Extension<T>>` | what a middleware gives the handlers of the message |
/// | [`Tx<DB>`](crate::bus::Tx) | the transaction of the message, with the middleware [`transaction`](crate::bus::transaction) |
/// | `Option<`[`TraceContext`]`>` | the trace that the message belongs to |
/// | [`CancellationToken`] | is cancelled when the worker is asked to stop |
/// | [`CurrentWorker`](super::CurrentWorker) | lets the worker stop after this message |
/// | [`Due`] | when the run of a [job](crate::Job) was due; for jobs alone |
///
/// A job has no message, and so neither `Envelope`, `Stamped`, `Attempt` nor `CurrentWorker`.
///
/// An application may define arguments of its own:
///
/// ```
/// use minutely::handler::{Argument, HandlerContext, HandlerError};
///
/// struct Tenant(String);
///
/// impl Argument for Tenant {
///     async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
///         let tenant = context.envelope().headers().get("X-Tenant");
///         tenant.map(|name| Self(name.to_owned())).ok_or_else(|| HandlerError::unrecoverable("the message has no tenant"))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler cannot have an argument of type `{Self}`",
    label = "not something that a handler can ask for",
    note = "a handler's arguments are its message (a type that implements `Message`), `State<T>`, `Bus`, `Envelope`, \
            `Stamped<S>`, `Attempt`, `CancellationToken`, `CurrentWorker` or types that implement `Argument`, in any order"
)]
pub trait Argument: Sized + Send + 'static {
    /// Set by messages alone.
    #[doc(hidden)]
    const MESSAGE: Option<MessageType> = None;

    /// Is it about a message, so that a job cannot have it?
    #[doc(hidden)]
    const OF_MESSAGE: bool = false;

    /// Is it about the run of a job, so that a handler cannot have it?
    #[doc(hidden)]
    const OF_JOB: bool = false;

    /// Gets the argument for one message. An error counts as a failure of the handler, which is not called.
    fn extract(context: &HandlerContext<'_>) -> impl Future<Output = Result<Self, HandlerError>> + Send;

    /// What the application lacks for this argument, reported when the application is built.
    fn missing(_states: &States) -> Option<String> {
        None
    }
}

/// The names by which a message is routed and handled.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct MessageType {
    pub(crate) name: &'static str,
    pub(crate) interfaces: &'static [&'static str],
}

impl<M: Message> Argument for M {
    const MESSAGE: Option<MessageType> = Some(MessageType { name: M::TYPE, interfaces: M::INTERFACES });
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        context.envelope().message().map_err(|error| HandlerError {
            class: "minutely::handler::WrongBody".to_owned(),
            ..HandlerError::unrecoverable(error)
        })
    }
}

/// Something that all handlers share: a connection pool, a client, settings. A clone of the value passed to
/// [`AppBuilder::state`](crate::AppBuilder::state) or [`AppBuilder::lazy_state`](crate::AppBuilder::lazy_state), found
/// by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State<T>(pub T);

impl<T: Clone + Send + Sync + 'static> Argument for State<T> {
    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        context.state().await.map(Self)
    }

    fn missing(states: &States) -> Option<String> {
        let add = "add one with `App::builder().state(…)` or `lazy_state(…)`";
        (!states.has::<T>()).then(|| format!("needs a state of type {}; {add}", type_name::<T>()))
    }
}

impl Argument for Envelope {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(context.envelope().clone())
    }
}

impl Argument for CancellationToken {
    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(context.cancellation().clone())
    }
}

/// The number of this attempt to handle the message, starting at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl Argument for Attempt {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(Self(context.attempt()))
    }
}

/// The latest stamp of a class on the message. A message without one fails, and is not retried; use
/// `Option<Stamped<S>>` for a stamp that may be missing.
#[derive(Debug, Clone, PartialEq)]
pub struct Stamped<S>(pub S);

impl<S: Stamp + Send + 'static> Argument for Stamped<S> {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        let stamp = context.envelope().last().map(Self);
        stamp.ok_or_else(|| HandlerError::unrecoverable(format!("the message has no {}", S::CLASS)))
    }
}

impl<S: Stamp + Send + 'static> Argument for Option<Stamped<S>> {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(context.envelope().last().map(Stamped))
    }
}

/// The span that handles the message, if the message belongs to a trace.
impl Argument for Option<TraceContext> {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        Ok(context.trace().cloned())
    }
}

/// When the run of a job was due, which is earlier than now if it is made up for. By hand: when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due(pub SystemTime);

impl Argument for Due {
    const OF_JOB: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        let due = context.extension::<Self>().copied();
        due.ok_or_else(|| HandlerError::unrecoverable("only the run of a job was due at a time, and this is a message"))
    }
}

//! What handles a message: typed Rust functions, and the programs and URLs that a configuration file can name.
//!
//! A [`Handler`] gets a [`HandlerContext`]. Its result says what to do with the message: it is done, is retried as the
//! retry strategy says, is retried in any case, or is not retried. `Handlers` finds all handlers of a message as
//! Symfony's locator does: those of its type, of its interfaces, and of every wildcard that matches.

mod argument;
mod batch;
mod builtin;
mod cancellation;
mod configured;
mod context;
mod exec;
mod function;
#[cfg(feature = "http")]
mod http;
mod locator;
mod metadata;
mod options;
mod panic;
mod program;
mod state;
mod stream;

pub use argument::{Argument, Attempt, Due, MessageType, Stamped, State};
pub use batch::{BatchFn, BatchHandler, BatchOptions, BatchReturn, Batched, from_batch_fn};
pub(crate) use batch::{Place, Places};
pub use cancellation::{CancellationToken, CurrentWorker};
pub(crate) use configured::from_config;
pub use context::HandlerContext;
#[cfg(feature = "mail")]
pub(crate) use exec::{Ended, run};
pub(crate) use exec::{Group, OUTPUT_TIMEOUT, Output};
pub use function::{FunctionHandler, HandlerFn, HandlerReturn, from_fn};
pub(crate) use locator::{Handlers, matching_patterns};
pub use options::HandlerOptions;
pub(crate) use panic::caught;
#[cfg(feature = "mail")]
pub(crate) use program::{Program, with_output};
pub use state::States;

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::causes::{append, causes};

/// Handles messages. Runs at least once per message, and again after a crash, so it must be safe to repeat.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Its name: stable across restarts, and unique among the handlers of a message. A retried message carries the
    /// names of the handlers that have succeeded (`HandledStamp`), so that they do not run again.
    fn name(&self) -> &str;

    /// Handles one message. The value it returns is kept: the caller that dispatched a message handled at once gets it,
    /// and a retried message carries it. `Value::Null` means that there is no result.
    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError>;

    /// Called when a worker of this process has handled its last message: ends what was kept for the next one, such as a
    /// program that stays. Another worker may still hand it messages, and so may a dispatch.
    async fn worker_stopped(&self) {}

    /// Why it cannot work in this application: it needs a state that is missing, for example. Reported when the
    /// application is built, each after the handler's name.
    fn problems(&self, _states: &States) -> Vec<String> {
        Vec::new()
    }
}

/// What a failure means for the message, or for the run of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Retry as the retry strategy says.
    Retry,
    /// Retry even if the strategy's retries are used up, after this delay, or by default the strategy's.
    RetryAlways(Option<Duration>),
    /// Do not retry: the message goes to the failure transport.
    Unrecoverable,
    /// A [job](crate::Job) need not run now: it gets its run back, and is tried again in the next minute. For a message as
    /// [`Verdict::Retry`].
    Skipped,
    /// The handler could not start, because the host is short of something at the moment. Retry without counting this
    /// attempt.
    NotBegun,
    /// The handler was ended from outside before it was done, by a host that shuts down for example. Retry without
    /// counting this attempt, unless it has happened several times in a row.
    Interrupted {
        /// Counts as an interruption only if the worker is asked to stop at about the same time, and otherwise as a
        /// failure.
        if_stopping: bool,
    },
}

/// Why a handler failed. Made from any error with `?`, which means [`Verdict::Retry`] unless there is a [`VerdictError`]
/// in it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HandlerError {
    /// What to do with the message.
    pub verdict: Verdict,
    /// The kind of error, for people and for PHP: a type or class name.
    pub class: String,
    /// An exit code, or 0.
    pub code: i64,
    /// What went wrong.
    pub message: String,
    /// Whether the worker stops after this message, whatever the verdict is.
    pub stops_worker: bool,
}

impl HandlerError {
    /// A failure that is retried as the strategy says.
    pub fn failed(message: impl fmt::Display) -> Self {
        let (class, message) = ("minutely::HandlerError".into(), message.to_string());
        Self { verdict: Verdict::Retry, class, code: 0, message, stops_worker: false }
    }

    /// The same failure, after which the worker stops (Symfony: `StopWorkerException`). It finishes the other messages that
    /// it handles at the moment.
    ///
    /// ```
    /// use minutely::handler::HandlerError;
    ///
    /// async fn import() -> Result<(), HandlerError> {
    ///     Err(HandlerError::failed("the licence has expired").stopping_worker())
    /// }
    /// # let _ = import;
    /// ```
    #[must_use]
    pub fn stopping_worker(self) -> Self {
        Self { stops_worker: true, ..self }
    }

    /// A failure that a retry cannot remedy: the message goes to the failure transport.
    pub fn unrecoverable(message: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Unrecoverable, ..Self::failed(message) }
    }

    /// A temporary failure: the message is retried in any case, after `delay`, or by default the strategy's delay.
    pub fn recoverable(message: impl fmt::Display, delay: Option<Duration>) -> Self {
        Self { verdict: Verdict::RetryAlways(delay), ..Self::failed(message) }
    }

    /// A [job](crate::Job) that need not run now, for this reason: it gets its run back, and is tried again in the next minute.
    pub fn skipped(reason: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Skipped, ..Self::failed(reason) }
    }
}

/// An error that says what its failure means for the message, for code that returns other errors than [`HandlerError`]:
/// helper functions with `anyhow::Error` or `Box<dyn Error + Send + Sync>`. Whatever wraps it (`anyhow`'s `context`, a
/// variant with a `source`), the verdict holds when the handler fails with it.
///
/// ```
/// use std::error::Error;
/// use minutely::handler::{HandlerError, Verdict, VerdictError};
///
/// fn address(text: &str) -> Result<&str, Box<dyn Error + Send + Sync>> {
///     if !text.contains('@') {
///         return Err(VerdictError::unrecoverable(format!("\"{text}\" is no address")).into());
///     }
///     Ok(text)
/// }
///
/// async fn greet(to: &str) -> Result<(), HandlerError> {
///     println!("hello {}", address(to)?);
///     Ok(())
/// }
/// # let error = HandlerError::from(address("ada").unwrap_err());
/// # assert_eq!(error.verdict, Verdict::Unrecoverable);
/// # let _ = greet;
/// ```
///
/// A [`HandlerError`] is no `std::error::Error`: given to `anyhow::bail!` it is a text, and its verdict is lost.
#[derive(Debug)]
pub struct VerdictError {
    message: String,
    verdict: Mark,
}

impl VerdictError {
    /// A failure that is retried as the strategy says.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), verdict: Mark::of(Verdict::Retry) }
    }

    /// The same failure, after which the worker stops.
    #[must_use]
    pub fn stopping_worker(mut self) -> Self {
        self.verdict.stops_worker = true;
        self
    }
}

impl VerdictError {
    /// A failure that a retry cannot remedy: the message goes to the failure transport.
    pub fn unrecoverable(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), verdict: Mark::of(Verdict::Unrecoverable) }
    }

    /// A temporary failure: the message is retried in any case, after `delay`, or by default the strategy's delay.
    pub fn recoverable(message: impl fmt::Display, delay: Option<Duration>) -> Self {
        Self { message: message.to_string(), verdict: Mark::of(Verdict::RetryAlways(delay)) }
    }

    /// A [job](crate::Job) that need not run now, for this reason: it gets its run back, and is tried again in the next minute.
    pub fn skipped(reason: impl fmt::Display) -> Self {
        Self { message: reason.to_string(), verdict: Mark::of(Verdict::Skipped) }
    }
}

impl fmt::Display for VerdictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for VerdictError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.verdict)
    }
}

/// The verdict as the cause of its error. `anyhow` hides the type of the error that it has been given, but not those of
/// the causes.
#[derive(Debug)]
struct Mark {
    verdict: Verdict,
    stops_worker: bool,
}

impl Mark {
    const fn of(verdict: Verdict) -> Self {
        Self { verdict, stops_worker: false }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict {
            Verdict::Unrecoverable => "a retry cannot remedy it",
            Verdict::Skipped => "it need not run now",
            _ => "it is temporary",
        })
    }
}

impl Error for Mark {}

/// From any error, with `?`: those of the standard library and of other crates, `anyhow::Error`,
/// `Box<dyn Error + Send + Sync>`, `String`, `&str`. A [`VerdictError`] among its causes says what the failure means.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error = error.into();
        let mark = causes(&*error).find_map(|cause| cause.downcast_ref::<Mark>());
        let mark = mark.unwrap_or(&const { Mark::of(Verdict::Retry) });
        let message = append(error.to_string(), causes(&*error).take_while(|cause| !cause.is::<Mark>()));
        let failed = Self { verdict: mark.verdict, stops_worker: mark.stops_worker, ..Self::failed(message) };
        let class = type_name::<E>();
        // The type of a text, of a box around any error, or of a verdict, is not the kind of the error.
        let is_kind = !["&", "alloc::string::", "alloc::boxed::", type_name::<VerdictError>()]
            .iter()
            .any(|prefix| class.starts_with(prefix));
        if is_kind { Self { class: class.to_owned(), ..failed } } else { failed }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hides the error it wraps, as `anyhow::Error` does, but not that one's causes.
    #[derive(Debug)]
    struct Wrapped(Box<dyn Error + Send + Sync>);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "reading the order: {}", self.0)
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.0.source()
        }
    }

    #[test]
    fn a_verdict_is_found_in_whatever_wraps_it() {
        let boxed: Box<dyn Error + Send + Sync> = VerdictError::unrecoverable("no address").into();
        let error = HandlerError::from(boxed);
        assert_eq!((error.verdict, error.message.as_str()), (Verdict::Unrecoverable, "no address"));
        let later = Some(Duration::from_secs(60));
        let error = HandlerError::from(Wrapped(VerdictError::recoverable("busy", later).into()));
        assert_eq!((error.verdict, error.message.as_str()), (Verdict::RetryAlways(later), "reading the order: busy"));
        let error = HandlerError::from(std::io::Error::other(VerdictError::unrecoverable("no")));
        assert_eq!((error.verdict, error.message.as_str()), (Verdict::Unrecoverable, "no"));
        let error = HandlerError::from(Wrapped(VerdictError::skipped("no orders").into()));
        assert_eq!((error.verdict, error.message.as_str()), (Verdict::Skipped, "reading the order: no orders"));
        let error = HandlerError::from(VerdictError::unrecoverable("no"));
        assert_eq!((error.verdict, error.class.as_str()), (Verdict::Unrecoverable, "minutely::HandlerError"));
        assert_eq!(HandlerError::from("another").verdict, Verdict::Retry);
        let error = HandlerError::from(Wrapped(VerdictError::unrecoverable("no").stopping_worker().into()));
        assert!(error.verdict == Verdict::Unrecoverable && error.stops_worker);
    }
}

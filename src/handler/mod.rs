//! What handles a message: typed Rust functions, and the `exec` handlers a configuration file can name.
//!
//! A [`Handler`] gets a [`HandlerContext`] and says by its result what is to become of it: done, try again by the retry
//! strategy, try again whatever the strategy says, or never again. [`Handlers`] finds all handlers of a message, as
//! Symfony's locator does: those of its type, of its interfaces, and of every wildcard that matches.

mod argument;
mod cancellation;
mod context;
mod exec;
mod function;
mod locator;
mod state;

pub use argument::{Argument, Attempt, MessageType, Stamped, State};
pub use cancellation::CancellationToken;
pub use context::HandlerContext;
pub use exec::Exec;
pub use function::{FunctionHandler, HandlerFn, HandlerReturn, from_fn};
pub use locator::{Handlers, matching_patterns};
pub use state::States;

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

/// Handles messages. Runs at least once per message, and again after a crash: make repeating it harmless.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Its name: stable across restarts, and unique among the handlers of one message, because it travels in the
    /// `HandledStamp` of a retry so that a handler that succeeded does not run again.
    fn name(&self) -> &str;

    /// Handles one message. What it returns is kept: whoever has dispatched a message that was handled at once sees it, and
    /// it travels with a retry. `Value::Null` says nothing.
    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError>;

    /// What keeps it from working in this application, a state that it needs for example. Told when the application is
    /// built, each after the handler's name.
    fn problems(&self, _states: &States) -> Vec<String> {
        Vec::new()
    }
}

/// What a failure means for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again as the retry strategy says.
    Retry,
    /// Try again even when the strategy's retries are used up, after this delay or else the strategy's.
    RetryAlways(Option<Duration>),
    /// Never try again: it goes to the failure transport.
    Unrecoverable,
    /// The handler could not begin, for want of something that its host lacks for the moment: try again, without counting
    /// this try.
    NotBegun,
    /// The handler was ended from outside before it was done, by a host that shuts down for example: try again, without
    /// counting this try, unless that has happened several times in a row.
    Interrupted {
        /// Only where the worker is told to stop at about the same time. Otherwise it is a failure like any other.
        if_stopping: bool,
    },
}

/// Why a handler failed. Made from any error with `?`, which means [`Verdict::Retry`].
#[derive(Debug)]
pub struct HandlerError {
    /// What is to become of the message.
    pub verdict: Verdict,
    /// The kind of error, for people and for PHP: a type or class name.
    pub class: String,
    /// An exit code, or 0.
    pub code: i64,
    /// What went wrong.
    pub message: String,
}

impl HandlerError {
    /// A failure that is retried as the strategy says.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Retry, class: "minutely::HandlerError".into(), code: 0, message: message.to_string() }
    }

    /// A failure that no retry can mend: the message goes to the failure transport.
    pub fn unrecoverable(message: impl fmt::Display) -> Self {
        Self { verdict: Verdict::Unrecoverable, ..Self::failed(message) }
    }

    /// A passing failure: retried however often it has been, after `delay` or else the strategy's delay.
    pub fn recoverable(message: impl fmt::Display, delay: Option<Duration>) -> Self {
        Self { verdict: Verdict::RetryAlways(delay), ..Self::failed(message) }
    }
}

/// From any error, with `?`: those of the standard library and of other crates, `anyhow::Error`,
/// `Box<dyn Error + Send + Sync>`, `String`, `&str`.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Many errors say in their own text what caused them.
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        let failed = Self::failed(message);
        let class = type_name::<E>();
        // A text, or a box around anything, is no kind of error.
        let is_kind = !["&", "alloc::string::", "alloc::boxed::"].iter().any(|prefix| class.starts_with(prefix));
        if is_kind { Self { class: class.to_owned(), ..failed } } else { failed }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

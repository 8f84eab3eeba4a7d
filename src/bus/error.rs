//! Why a dispatch failed.

use std::fmt;

use thiserror::Error;

use super::validation::ValidationFailed;
use crate::handler::{HandlerError, Verdict};
use crate::message::{BodyError, Envelope, SentStamp};
use crate::transport::TransportError;

/// Why a message could not be dispatched.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// The message could not be written as JSON. Nothing was sent.
    #[error(transparent)]
    Unwritable(BodyError),
    /// A transport did not accept the message. It was not handled here, but those in `sent` have queued it: if it is
    /// dispatched again, it is handled twice there.
    #[error("{source}{}", yet_queued(sent))]
    Sending {
        /// The transport's error.
        source: TransportError,
        /// The queues that have the message nevertheless.
        sent: Vec<SentStamp>,
    },
    /// There is no handler for the message.
    #[error(
        "there is no handler for messages of type \"{message_type}\"{}{}",
        did_you_mean(nearest.as_deref()),
        elsewhere(only_from, bus, only_on)
    )]
    NoHandler {
        /// Its type.
        message_type: String,
        /// The type that was probably meant.
        nearest: Option<String>,
        /// The transports whose messages of this type have handlers: this one was received from another.
        only_from: Vec<String>,
        /// The buses on which messages of this type have handlers.
        only_on: Vec<String>,
        /// The bus that this one was dispatched on.
        bus: String,
    },
    /// One or more of its handlers failed.
    #[error("{0}{queued}", queued = yet_queued(&.0.envelope.all()))]
    Handling(Box<HandlingFailed>),
    /// The message is not as it must be. Nothing was sent, and nothing was handled.
    #[error(transparent)]
    Invalid(ValidationFailed),
    /// There is no such bus. The text names those that there are.
    #[error("{0}")]
    UnknownBus(String),
    /// On this bus, a message must be routed to a transport (`allow_no_senders: false`), and this type is not.
    #[error("\"{message_type}\" is not routed to any transport, and the bus \"{bus}\" has `allow_no_senders: false`")]
    NoSender {
        /// The bus.
        bus: String,
        /// The message's type.
        message_type: String,
    },
    /// The bus has no middleware that handles messages, and no other took this one.
    #[error("nothing on the bus \"{bus}\" has taken \"{message_type}\": the bus lacks the middleware handle_message")]
    NotTaken {
        /// The bus.
        bus: String,
        /// The message's type.
        message_type: String,
    },
    /// The message was handled or queued, but messages that had waited for that could not be dispatched
    /// ([`DispatchAfterCurrentBusStamp`](crate::message::DispatchAfterCurrentBusStamp)).
    #[error("{0}{queued}", queued = yet_queued(&.0.envelope.all()))]
    Delayed(Box<DelayedFailed>),
    /// The message cannot be stored in a transaction of the caller's. Nothing was stored.
    #[error("\"{message_type}\" cannot be dispatched in a transaction: {why}")]
    NotInTransaction {
        /// The message's type.
        message_type: String,
        /// Why not.
        why: String,
    },
    /// A result was asked for, and there is none, or none that can be read as it was asked for.
    #[error("\"{message_type}\" has no result: {why}")]
    NoResult {
        /// The message's type.
        message_type: String,
        /// What is there instead.
        why: String,
    },
    /// A middleware of the application refused the message, for this reason.
    #[error("{0}")]
    Refused(String),
    /// A middleware of the application panicked, with this text.
    #[error("a middleware panicked: {0}")]
    Panicked(String),
}

/// Messages that waited for another one failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub struct DelayedFailed {
    /// The message that they waited for, which was handled or queued.
    pub envelope: Envelope,
    /// What failed: each message's type, and its error. At least one.
    pub failures: Vec<(String, DispatchError)>,
}

impl fmt::Display for DelayedFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is done, but of the messages that waited for it failed:", self.envelope.message_type())?;
        self.failures.iter().try_for_each(|(message_type, error)| write!(f, "\n- \"{message_type}\": {error}"))
    }
}

impl DispatchError {
    /// Whether nothing here can handle such a message, whatever it says. Another application may be able to.
    pub(crate) fn is_unhandleable(&self) -> bool {
        matches!(self, Self::NoHandler { .. } | Self::UnknownBus(_) | Self::NotTaken { .. })
    }

    /// The kind of error, as it is noted on a message that was received.
    pub(crate) fn class(&self) -> &str {
        match self {
            Self::Handling(failed) => failed.class(),
            Self::NoHandler { .. } => "minutely::NoHandler",
            Self::UnknownBus(_) => "minutely::UnknownBus",
            Self::NotTaken { .. } => "minutely::NotTaken",
            Self::Delayed(_) => "minutely::DelayedFailed",
            Self::Invalid(_) => "minutely::ValidationFailed",
            _ => "minutely::DispatchError",
        }
    }

    /// What to do with a message that was received and that failed with this.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Handling(failed) => failed.verdict(),
            Self::Invalid(_) => Verdict::Unrecoverable,
            Self::Delayed(failed) => {
                let is_final = |(_, error): &(String, Self)| error.verdict() == Verdict::Unrecoverable;
                if failed.failures.iter().all(is_final) { Verdict::Unrecoverable } else { Verdict::Retry }
            }
            _ => Verdict::Retry,
        }
    }
}

/// Handlers failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub struct HandlingFailed {
    /// The message, with a stamp for each handler that has succeeded.
    pub envelope: Envelope,
    /// The handlers that failed, by name. At least one.
    pub failures: Vec<(String, HandlerError)>,
}

impl HandlingFailed {
    /// What to do with the message. If a handler was interrupted or could not start, that decides. Otherwise the rules
    /// are those of Symfony Messenger 7.2: if any failure demands a retry, the message is retried after the shortest
    /// delay that any demands. It is given up only if all failures are unrecoverable.
    pub fn verdict(&self) -> Verdict {
        let verdicts = || self.failures.iter().map(|(_, error)| error.verdict);
        if verdicts().any(|verdict| verdict == Verdict::NotBegun) {
            return Verdict::NotBegun;
        }
        let interrupted = |verdict: &Verdict| matches!(verdict, Verdict::Interrupted { .. });
        if let Some(interrupted) = verdicts().find(interrupted) {
            return interrupted;
        }
        let delays = verdicts().filter_map(|verdict| match verdict {
            Verdict::RetryAlways(delay) => Some(delay),
            _ => None,
        });
        // `None` stands for the strategy's delay, and counts only if no failure names one.
        match delays.min_by_key(|delay| (delay.is_none(), *delay)) {
            Some(delay) => Verdict::RetryAlways(delay),
            None if verdicts().all(|verdict| verdict == Verdict::Unrecoverable) => Verdict::Unrecoverable,
            None => Verdict::Retry,
        }
    }

    /// Whether the worker stops after this message, because one of the errors says so.
    pub fn stops_worker(&self) -> bool {
        self.failures.iter().any(|(_, error)| error.stops_worker)
    }

    /// The kind of the first error.
    pub fn class(&self) -> &str {
        self.failures.first().map_or("", |(_, error)| &error.class)
    }

    /// The code of the first error.
    pub fn code(&self) -> i64 {
        self.failures.first().map_or(0, |(_, error)| error.code)
    }

    /// All errors, each after its handler's name.
    pub fn message(&self) -> String {
        let failures: Vec<String> = self.failures.iter().map(|(name, error)| format!("{name}: {error}")).collect();
        failures.join("\n")
    }
}

impl fmt::Display for HandlingFailed {
    /// ```text
    /// handling "App\Mail" failed in 2 handlers:
    /// - exec php bin/mail.php: exit code 1: no connection
    /// - shop::audit: the disk is full
    /// ```
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handling \"{}\" failed in ", self.envelope.message_type())?;
        if let [(name, error)] = self.failures.as_slice() {
            return write!(f, "{name}: {error}");
        }
        write!(f, "{} handlers:", self.failures.len())?;
        self.failures.iter().try_for_each(|(name, error)| write!(f, "\n- {name}: {error}"))
    }
}

fn yet_queued(sent: &[SentStamp]) -> String {
    let queued: Vec<String> = sent.iter().map(|stamp| format!("{} as {}", stamp.queued_on, stamp.id)).collect();
    if queued.is_empty() {
        String::new()
    } else {
        format!("; the message is queued on {} all the same", queued.join(", "))
    }
}

fn elsewhere(transports: &[String], bus: &str, buses: &[String]) -> String {
    if !transports.is_empty() {
        return format!(" from this transport: its handlers are for those from {}", transports.join(", "));
    }
    if buses.is_empty() {
        return String::new();
    }
    format!(" on the bus \"{bus}\": its handlers are for those on {}", buses.join(", "))
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!(", did you mean \"{name}\"?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn verdict(verdicts: &[Verdict]) -> Verdict {
        let failure =
            |verdict: &Verdict| ("h".to_owned(), HandlerError { verdict: *verdict, ..HandlerError::failed("") });
        let failures = verdicts.iter().map(failure).collect();
        HandlingFailed { envelope: Envelope::from_json("a", "{}"), failures }.verdict()
    }

    #[test]
    fn several_failures_have_one_verdict() {
        use Verdict::{Retry, RetryAlways, Unrecoverable};
        let after = |seconds| RetryAlways(Some(Duration::from_secs(seconds)));
        assert_eq!(verdict(&[Unrecoverable, Unrecoverable]), Unrecoverable);
        assert_eq!(verdict(&[Unrecoverable, Retry]), Retry);
        assert_eq!(verdict(&[Unrecoverable, Retry, RetryAlways(None)]), RetryAlways(None));
        let interrupted = Verdict::Interrupted { if_stopping: false };
        assert_eq!(verdict(&[Unrecoverable, interrupted, RetryAlways(None)]), interrupted);
        assert_eq!(verdict(&[interrupted, Verdict::NotBegun]), Verdict::NotBegun);
        assert_eq!(verdict(&[RetryAlways(None), after(9), after(5)]), after(5));
    }

    #[test]
    fn every_failure_is_reported_with_its_handler() {
        let failed = |failures: &[(&str, &str)]| HandlingFailed {
            envelope: Envelope::from_json(r"App\Mail", "{}"),
            failures: failures.iter().map(|(name, text)| ((*name).to_owned(), HandlerError::failed(text))).collect(),
        };
        let one = failed(&[("send", "no connection")]);
        assert_eq!(one.to_string(), r#"handling "App\Mail" failed in send: no connection"#);
        let two = failed(&[("send", "no connection"), ("audit", "disk full")]);
        assert_eq!(
            two.to_string(),
            "handling \"App\\Mail\" failed in 2 handlers:\n- send: no connection\n- audit: disk full"
        );
        assert_eq!(two.message(), "send: no connection\naudit: disk full");
    }
}

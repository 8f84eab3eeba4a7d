//! Why a dispatch failed.

use std::fmt;

use thiserror::Error;

use crate::handler::{HandlerError, Verdict};
use crate::message::{Envelope, SentStamp};
use crate::transport::TransportError;

/// Why a message could not be dispatched.
#[derive(Debug, Error)]
pub enum DispatchError {
    /// It could not be written as JSON.
    #[error("a message of type \"{message_type}\" could not be written as JSON: {source}")]
    Unwritable {
        /// Its type.
        message_type: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A transport did not take it. Those asked before did.
    #[error("{source}{}", also_queued(sent))]
    Sending {
        /// What happened.
        source: TransportError,
        /// Where it is queued nevertheless.
        sent: Vec<SentStamp>,
    },
    /// There is nothing to handle it.
    #[error("no handler for messages of type \"{message_type}\"{}", did_you_mean(nearest.as_deref()))]
    NoHandler {
        /// Its type.
        message_type: String,
        /// The type that was probably meant.
        nearest: Option<String>,
    },
    /// One or more of its handlers failed.
    #[error(transparent)]
    Handling(Box<HandlingFailed>),
    /// A middleware of the application's refused it.
    #[error("{0}")]
    Refused(String),
}

/// Handlers failed.
#[derive(Debug)]
pub struct HandlingFailed {
    /// The message, with a stamp for each handler that succeeded.
    pub envelope: Envelope,
    /// The handlers that failed, by name. At least one.
    pub failures: Vec<(String, HandlerError)>,
}

impl HandlingFailed {
    /// What is to become of the message, as Symfony decides it: one failure that asks for a retry in any case gets it;
    /// only when no failure can be mended, nothing is tried again.
    pub fn verdict(&self) -> Verdict {
        let verdicts = || self.failures.iter().map(|(_, error)| error.verdict);
        if let Some(always) = verdicts().find(|verdict| matches!(verdict, Verdict::RetryAlways(_))) {
            always
        } else if verdicts().all(|verdict| verdict == Verdict::Unrecoverable) {
            Verdict::Unrecoverable
        } else {
            Verdict::Retry
        }
    }

    /// The kind of the first error.
    pub fn class(&self) -> &str {
        self.failures.first().map_or("", |(_, error)| &error.class)
    }

    /// The code of the first error.
    pub fn code(&self) -> i64 {
        self.failures.first().map_or(0, |(_, error)| error.code)
    }

    /// All errors, with their handlers.
    pub fn message(&self) -> String {
        let failures: Vec<String> = self.failures.iter().map(|(name, error)| format!("{name}: {error}")).collect();
        failures.join("\n")
    }
}

impl fmt::Display for HandlingFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handling \"{}\" failed: {}", self.envelope.message_type(), self.message())
    }
}

impl std::error::Error for HandlingFailed {}

fn also_queued(sent: &[SentStamp]) -> String {
    let queued: Vec<String> = sent.iter().map(|stamp| format!("{} as {}", stamp.queued_on, stamp.id)).collect();
    if queued.is_empty() { String::new() } else { format!("; the message is queued on {}", queued.join(", ")) }
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!(", did you mean \"{name}\"?")).unwrap_or_default()
}

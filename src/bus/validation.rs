//! `validation`: checks messages, when they are dispatched and when they are received. What is invalid is refused, and is not
//! tried again.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use indexmap::{IndexMap, IndexSet};

use super::{DispatchError, Middleware, Next};
use crate::config::Problem;
use crate::handler::{Handlers, matching_patterns};
use crate::message::{Envelope, Message, ReceivedStamp, ValidationStamp};

/// How many violations of a message are told. There may be as many as it has values.
const MOST_TOLD: usize = 20;

/// How much of a violation is told, in characters.
const LONGEST: usize = 300;

/// What is wrong with a part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which part: `/recipients/0/address`. Empty for the message as a whole.
    pub path: String,
    /// What is wrong with it. Must not contain what is secret, because it is logged.
    pub message: String,
}

impl Violation {
    /// Says what is wrong with a part of a message, by its path: `/recipients/0/address`.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl From<String> for Violation {
    fn from(message: String) -> Self {
        Self::at("", message)
    }
}

impl From<&str> for Violation {
    fn from(message: &str) -> Self {
        Self::at("", message)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        let end = self.message.char_indices().nth(LONGEST);
        match end {
            Some((end, _)) => write!(f, "{}…", &self.message[..end]),
            None => f.write_str(&self.message),
        }
    }
}

/// A message is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct ValidationFailed {
    /// Its type.
    pub message_type: String,
    /// What is wrong with it: at least one, at most twenty.
    pub violations: Vec<Violation>,
}

impl fmt::Display for ValidationFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is invalid: ", self.message_type)?;
        for (n, violation) in self.violations.iter().enumerate() {
            write!(f, "{}{violation}", if n > 0 { "; " } else { "" })?;
        }
        if self.violations.len() == MOST_TOLD { f.write_str("; and perhaps more") } else { Ok(()) }
    }
}

type Check = Arc<dyn Fn(&Envelope) -> Vec<Violation> + Send + Sync>;

/// The checks of messages, by type or wildcard.
#[derive(Default, Clone)]
pub(crate) struct Checks {
    by_pattern: IndexMap<String, Vec<(Option<String>, Check)>>,
}

impl Checks {
    /// Adds a check in code.
    pub(crate) fn add<M: Message, V: Into<Violation>>(
        &mut self,
        check: impl Fn(&M) -> Result<(), V> + Send + Sync + 'static,
    ) {
        let check = move |envelope: &Envelope| match envelope.message::<M>() {
            Ok(message) => check(&message).err().map(Into::into).into_iter().collect(),
            Err(error) => vec![Violation::from(error.to_string())],
        };
        self.add_check(M::TYPE, None, Arc::new(check));
    }

    /// Adds a check for a type or wildcard; with a group, for messages that ask for that group alone.
    pub(crate) fn add_check(&mut self, pattern: &str, group: Option<String>, check: Check) {
        self.by_pattern.entry(pattern.to_owned()).or_default().push((group, check));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_pattern.is_empty()
    }
}

pub(super) struct Validation {
    pub(super) checks: Arc<Checks>,
    /// They know the interfaces of each message type.
    pub(super) handlers: Arc<Handlers>,
}

#[async_trait]
impl Middleware for Validation {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let violations = self.violations(&envelope);
        if violations.is_empty() {
            return next.run(envelope).await;
        }
        let message_type = envelope.message_type().to_owned();
        Err(DispatchError::Invalid(ValidationFailed { message_type, violations }))
    }
}

impl Validation {
    fn violations(&self, envelope: &Envelope) -> Vec<Violation> {
        if self.checks.is_empty() {
            return Vec::new();
        }
        let groups = envelope.last::<ValidationStamp>().map(|stamp| stamp.groups).unwrap_or_default();
        let is_received = envelope.last::<ReceivedStamp>().is_some();
        let is_asked_for = |group: &Option<String>| match group {
            Some(group) => groups.contains(group),
            None => groups.is_empty() || groups.iter().any(|group| group == ValidationStamp::DEFAULT),
        };
        let message_type = envelope.message_type();
        let patterns = matching_patterns(message_type, &self.handlers.interfaces(message_type, envelope.interfaces()));
        let checks = patterns.iter().filter_map(|pattern| self.checks.by_pattern.get(pattern)).flatten();
        let checks: Vec<_> = checks.collect();
        // One that was received may have groups that the sender knows, PHP for example.
        if !is_received && !checks.is_empty() {
            let unknown = unknown_groups(&groups, checks.iter().filter_map(|(group, _)| group.as_deref()));
            if !unknown.is_empty() {
                return unknown;
            }
        }
        let checks = checks.into_iter().filter(|(group, _)| is_asked_for(group));
        checks.flat_map(|(_, check)| check(envelope)).take(MOST_TOLD).collect()
    }
}

/// Groups that no check of the message belongs to would check nothing.
fn unknown_groups<'a>(asked: &[String], known: impl Iterator<Item = &'a str>) -> Vec<Violation> {
    let known: IndexSet<&str> = [ValidationStamp::DEFAULT].into_iter().chain(known).collect();
    let unknown = asked.iter().filter(|group| !known.contains(group.as_str()));
    unknown.map(|group| Problem::unknown("", "validation group", group, known.iter().copied()).message.into()).collect()
}

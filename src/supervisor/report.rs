//! What a tick found and did, for whoever looks at it.

use serde::Serialize;

use super::autoscale::{Plan, PlannedWorkers};
use crate::config::WorkerDefinition;
use crate::record::TickLine;

/// What a tick found and did.
#[derive(Debug, Default)]
pub(crate) struct TickReport {
    /// What was to be done, and why.
    pub plan: Plan,
    /// The workers that were started.
    pub started: Vec<Started>,
    /// What could not be done. Already logged.
    pub failures: Vec<TickFailure>,
    /// How many of the wanted workers are not started for lack of room, if any, and why. Also in the plan's reasons.
    pub held_back: Option<String>,
}

impl TickReport {
    /// What is recorded of a definition.
    pub(super) fn line(&self, planned: &PlannedWorkers, at: i64) -> TickLine {
        let started = self.started.iter().filter(|started| started.definition == planned.name).count();
        let failures = self.failures.iter().filter(|failure| failure.definition == planned.name);
        let failures: Vec<&str> = failures.map(|failure| failure.message.as_str()).collect();
        TickLine {
            at,
            worker: planned.name.clone(),
            pending: planned.pending,
            running: planned.running,
            desired: planned.desired,
            started: u32::try_from(started).unwrap_or(u32::MAX),
            why: planned.reason.clone(),
            failed: (!failures.is_empty()).then(|| failures.join("; ")),
        }
    }
}

/// A worker that a tick started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Started {
    /// The worker definition's name.
    pub definition: String,
    /// The slot's number.
    pub slot: u32,
    /// Its process.
    pub pid: u32,
}

/// What a tick could not do for a worker definition. The next tick tries again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct TickFailure {
    /// The worker definition's name.
    pub definition: String,
    /// What went wrong, for people.
    pub message: String,
}

impl TickFailure {
    pub(super) fn new(definition: &WorkerDefinition, message: impl ToString) -> Self {
        Self { definition: definition.name.clone(), message: message.to_string() }
    }
}

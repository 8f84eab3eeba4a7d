//! One tick: observe ▸ plan ▸ act.

use std::time::Duration;

use tokio::process::Child;
use tokio::time::timeout;

use super::autoscale::{Observation, Plan, Step, count_up_to, plan};
use super::spawn::{Program, log_path, spawn};
use super::{Supervisor, command};
use crate::config::{Autoscale, WorkerDefinition};

/// How long a transport may take to count. A server that hangs must not keep the others from being looked after.
const COUNT_PATIENCE: Duration = Duration::from_secs(10);

/// What a tick has done.
#[derive(Debug)]
pub struct TickReport {
    /// What was to be done.
    pub plan: Plan,
    /// Who was started.
    pub started: Vec<Started>,
    /// What went wrong, one line each.
    pub problems: Vec<String>,
}

/// A worker that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its definition.
    pub definition: String,
    /// Its slot.
    pub slot: u32,
    /// Its process.
    pub pid: u32,
}

impl Supervisor {
    pub(super) async fn tick(&self) -> TickReport {
        let plan = plan(self.observe().await);
        let mut report = TickReport { plan, started: Vec::new(), problems: Vec::new() };
        for (definition, step) in self.definitions.iter().zip(report.plan.workers.clone()) {
            self.act(definition, &step, &mut report);
            self.promises.make(&self.names(definition)).await;
        }
        report
    }

    pub(super) async fn observe(&self) -> Vec<Observation> {
        let mut observations = Vec::new();
        for definition in &self.definitions {
            let live = self.live(definition).len();
            observations.push(Observation {
                name: definition.name.clone(),
                transports: definition.transports.clone(),
                autoscale: definition.autoscale,
                pending: self.pending(&definition.transports, definition.autoscale).await,
                running: u32::try_from(live).unwrap_or(u32::MAX),
            });
        }
        observations
    }

    /// How many messages wait on all of a definition's transports together.
    async fn pending(&self, transports: &[String], autoscale: Autoscale) -> Result<u64, String> {
        let cap = count_up_to(autoscale);
        let mut pending = 0u64;
        for name in transports {
            let transport = self.transports.target(name).map_err(|error| error.to_string())?;
            let counting = transport.counting().ok_or_else(|| format!("\"{name}\" cannot count"))?;
            let count = timeout(COUNT_PATIENCE, counting.pending(cap)).await;
            let count = count.map_err(|_| format!("\"{name}\" took longer than {} s", COUNT_PATIENCE.as_secs()))?;
            pending = pending.saturating_add(count.map_err(|error| error.to_string())?);
        }
        Ok(pending)
    }

    /// Fills as many free slots as are to start, the lowest first. One that somebody else takes meanwhile is passed by.
    fn act(&self, definition: &WorkerDefinition, step: &Step, report: &mut TickReport) {
        if step.pending.is_none() {
            report.problems.push(format!("{}: {}", step.name, step.reason));
        }
        let mut to_start = step.start;
        for slot in 0..definition.autoscale.max {
            if to_start == 0 {
                return;
            }
            match self.start(definition, slot) {
                Ok(None) => {}
                Ok(Some(started)) => {
                    report.started.push(started);
                    to_start -= 1;
                }
                Err(problem) => {
                    // The next slot would fail the same way; the next tick tries again.
                    report.problems.push(format!("{}: {problem}", definition.name));
                    return;
                }
            }
        }
    }

    fn start(&self, definition: &WorkerDefinition, slot: u32) -> Result<Option<Started>, String> {
        let Some(claim) = self.slots.claim(&definition.name, slot).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let program = Program {
            definition: &definition.name,
            command: command::command(definition, &self.program),
            dir: &self.dir,
            log_dir: self.log_dir.clone(),
        };
        let child = spawn(&program, &claim).map_err(|error| {
            let name = program.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            format!("\"{name}\" could not be started in {}: {error}", self.dir.display())
        })?;
        let pid = child.id().unwrap_or_default();
        tokio::spawn(reap(child, definition.name.clone(), log_path(&program).display().to_string()));
        Ok(Some(Started { definition: definition.name.clone(), slot, pid }))
    }
}

/// Waits for a worker's end, for as long as this supervisor lives: a child that nobody waits for stays in the process table.
async fn reap(mut child: Child, definition: String, log: String) {
    let pid = child.id();
    match child.wait().await {
        Ok(status) if status.success() => tracing::debug!(definition, pid, "a worker has ended"),
        Ok(status) => tracing::warn!(definition, pid, log, "a worker ended with {status}; see its log"),
        Err(error) => tracing::warn!(definition, pid, %error, "a worker's end could not be heard of"),
    }
}

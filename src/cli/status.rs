//! `minutely status`: transports, workers and the supervisor.

use chrono::{DateTime, Utc};
use indexmap::IndexSet;
use serde::Serialize;

use super::output::{self, Format, FormatArg, age};
use super::{App, End, Result};
use crate::cache::CacheError;
use crate::supervisor::{Slots, SupervisorStatus, supervisor_status};

#[derive(clap::Args)]
#[command(after_help = "\
A transport is running while a worker, or a supervisor that will look again, says so: then an auto-fallback transport
queues. In flight are the messages that workers have in hand.")]
pub(super) struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// A transport as `--format json` shows it; what is not to be had is null.
#[derive(Serialize)]
struct TransportStatus {
    name: String,
    running: Option<bool>,
    pending: Option<u64>,
    delayed: Option<u64>,
    in_flight: Option<u64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct WorkerStatus {
    definition: String,
    slot: u32,
    pid: Option<u32>,
    started_at: Option<DateTime<Utc>>,
    age: Option<u64>,
    command: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Status {
    transports: Vec<TransportStatus>,
    workers: Vec<WorkerStatus>,
    supervisor: SupervisorStatus,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let mut status = Status {
        transports: Vec::new(),
        workers: workers(app)?,
        supervisor: supervisor_status(&app.config.state_dir)?,
    };
    for name in app.config.transports.keys() {
        status.transports.push(transport(app, name).await?);
    }
    match args.format.format {
        Format::Json => output::json(&status)?,
        Format::Text => print(&status),
    }
    let failed = status.transports.iter().any(|transport| transport.error.is_some());
    Ok(if failed { End::Failed } else { End::Well })
}

/// Does anybody say that the transport, or the one it really reads, is being consumed?
pub(super) async fn is_running(app: &App, name: &str) -> Result<bool> {
    Ok(is_consumed(app, name, app.transports.target(name)?.name()).await?)
}

async fn is_consumed(app: &App, name: &str, target: &str) -> std::result::Result<bool, CacheError> {
    for name in [name, target] {
        if !app.heartbeats.of(name).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn transport(app: &App, name: &str) -> Result<TransportStatus> {
    // Workers are to be seen also when the cache is down.
    let (running, unknown) = match is_consumed(app, name, app.transports.target(name)?.name()).await {
        Ok(running) => (Some(running), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let transport = app.transports.get(name)?;
    let counting = transport.counting();
    let counts = match counting {
        Some(counting) => counting.counts(u64::MAX).await.map(Some),
        None => Ok(None),
    };
    let (counts, error) = counts.map_or_else(|error| (None, Some(error.to_string())), |counts| (counts, None));
    let all = counts.filter(|_| !counting.is_some_and(|counting| counting.knows_pending_alone()));
    Ok(TransportStatus {
        name: name.to_owned(),
        running,
        pending: counts.map(|counts| counts.pending),
        delayed: all.map(|counts| counts.delayed),
        in_flight: all.map(|counts| counts.in_flight),
        error: error.or(unknown),
    })
}

fn workers(app: &App) -> Result<Vec<WorkerStatus>> {
    let slots = Slots::new(&app.config.state_dir);
    let mut workers = Vec::new();
    // Also of definitions that have left the configuration: they are at work until their limits.
    for live in slots.all_live()? {
        let started_at = live.record.as_ref().map(|record| record.started_at);
        workers.push(WorkerStatus {
            definition: live.definition,
            slot: live.slot,
            pid: live.record.as_ref().map(|record| record.process.pid),
            started_at,
            age: started_at.and_then(|time| u64::try_from((Utc::now() - time).num_seconds()).ok()),
            command: live.record.map(|record| record.command),
        });
    }
    Ok(workers)
}

fn print(status: &Status) {
    let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    let rows = status.transports.iter().map(|one| {
        let running = match one.running {
            Some(true) => "running",
            Some(false) => "-",
            None => "?",
        };
        let counts = [one.pending, one.delayed, one.in_flight].map(number);
        [vec![one.name.clone(), running.to_owned()], counts.to_vec()].concat()
    });
    output::table(&["transport", "", "pending", "delayed", "in flight"], 2..5, rows);
    output::line("");
    if status.workers.is_empty() {
        output::line("No worker runs.");
    } else {
        let rows = status.workers.iter().map(|one| {
            let pid = one.pid.map_or("?".to_owned(), |pid| pid.to_string());
            vec![one.definition.clone(), one.slot.to_string(), pid, one.age.map_or("?".to_owned(), age)]
        });
        output::table(&["worker", "slot", "pid", "age"], 1..4, rows);
    }
    output::line("");
    match &status.supervisor {
        SupervisorStatus { running: false, .. } => output::line("No supervisor is at work."),
        SupervisorStatus { pid: Some(pid), started_at: Some(since), .. } => {
            let since = since.with_timezone(&chrono::Local).format("%H:%M:%S");
            output::line(format_args!("A supervisor is at work, pid {pid}, since {since}."));
        }
        SupervisorStatus { .. } => output::line("A supervisor is at work."),
    }
    // A cache that is down is down for all transports, and told once.
    for error in status.transports.iter().filter_map(|one| one.error.as_ref()).collect::<IndexSet<_>>() {
        output::error(error);
    }
}

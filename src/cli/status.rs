//! `minutely status`: transports, workers and the supervisor.

use chrono::{DateTime, Utc};
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;

use super::counts::{Known, count};
use super::cron::heartbeat::{CronStatus, cron_status};
use super::output::{self, Format, FormatArg, age};
use super::{App, End, Result};
use crate::cache::CacheError;
use crate::schedule::Job;
use crate::supervisor::{JobSlots, Slots, SupervisorStatus, check_owner, supervisor_status};
use crate::worker::in_process_workers;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
A transport is running if a worker consumes it, or if a supervisor has promised to look at it again. An \
auto-fallback transport then queues messages. It is shown with its target in brackets; the messages are the \
target's.

Messages in flight are being handled by workers. On a failure transport, delayed messages are parked: they failed \
there too, and are tried again after a day, or by `minutely consume`. A worker that runs inside another program is \
shown without a slot.

Cron is running if `minutely cron` or `minutely supervise` was seen within the last 70 seconds, on any host that \
shares the cache.")]
pub(super) struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// A transport as `--format json` shows it; what is not to be had is null.
#[derive(Serialize)]
struct TransportStatus {
    name: String,
    /// The queue's other names: further auto-fallbacks with the same target, and the target itself.
    also: Vec<String>,
    running: Option<bool>,
    pending: Option<u64>,
    delayed: Option<u64>,
    in_flight: Option<u64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct WorkerStatus {
    /// None for a worker inside another program.
    definition: Option<String>,
    slot: Option<u32>,
    /// What a worker inside another program consumes; else as in its definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    transports: Option<Vec<String>>,
    pid: Option<u32>,
    started_at: Option<DateTime<Utc>>,
    age: Option<u64>,
    command: Option<Vec<String>>,
}

/// A scheduled job. More is told by `cron list`.
#[derive(Serialize)]
struct JobStatus {
    name: String,
    /// Does a run go on here?
    running: bool,
    next_run: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct Status {
    transports: Vec<TransportStatus>,
    workers: Vec<WorkerStatus>,
    jobs: Vec<JobStatus>,
    supervisor: SupervisorStatus,
    /// None if the cache cannot be read.
    cron: Option<CronStatus>,
    #[serde(skip)]
    cron_error: Option<String>,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let mut status = Status {
        transports: Vec::new(),
        workers: workers(app)?,
        jobs: jobs(app)?,
        supervisor: supervisor_status(&app.config.state_dir)?,
        cron: None,
        cron_error: None,
    };
    match cron_status(app).await {
        Ok(cron) => status.cron = Some(cron),
        Err(error) => status.cron_error = Some(error.to_string()),
    }
    // What is shown is then the other one's.
    if let Err(error) = check_owner(&app.config.state_dir, &app.config.file) {
        output::warning(&error.to_string());
    }
    for names in queues(app)? {
        status.transports.push(transport(app, names).await?);
    }
    match args.format.format {
        Format::Json => output::json(&status)?,
        Format::Text => print(&status),
    }
    let failed = status.cron.is_none() || status.transports.iter().any(|transport| transport.error.is_some());
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

/// The names of each queue, in the order of the configuration; those of auto-fallbacks before that of their target,
/// which is what really has the messages.
pub(super) fn queues(app: &App) -> Result<Vec<Vec<String>>> {
    let mut queues: IndexMap<String, Vec<String>> = IndexMap::new();
    for name in app.config.transports.keys() {
        let target = app.transports.target(name)?.name().to_owned();
        let names = queues.entry(target.clone()).or_default();
        if *name == target { names.push(target) } else { names.insert(aliases(names, &target), name.clone()) }
    }
    Ok(queues.into_values().collect())
}

/// The names of a queue as people see them.
pub(super) fn shown(names: &[String]) -> String {
    match names {
        [name] => name.clone(),
        [name, also @ ..] => format!("{name} ({})", also.join(", ")),
        [] => String::new(),
    }
}

/// How many of the names are not the target's own.
fn aliases(names: &[String], target: &str) -> usize {
    names.iter().filter(|name| *name != target).count()
}

async fn is_any_consumed(app: &App, names: &[String], target: &str) -> std::result::Result<bool, CacheError> {
    for name in names {
        if is_consumed(app, name, target).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn transport(app: &App, mut names: Vec<String>) -> Result<TransportStatus> {
    let queue = app.transports.target(&names[0])?;
    // Workers are to be seen also when the cache is down.
    let (running, unknown) = match is_any_consumed(app, &names, queue.name()).await {
        Ok(running) => (Some(running), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let (known, error) = match count(app, queue.name()).await {
        Ok(known) => (known, None),
        Err(error) => (Known::default(), Some(error.to_string())),
    };
    Ok(TransportStatus {
        also: names.split_off(1),
        name: names.remove(0),
        running,
        pending: known.pending,
        delayed: known.delayed,
        in_flight: known.in_flight,
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
            definition: Some(live.definition),
            slot: Some(live.slot),
            transports: None,
            pid: live.record.as_ref().map(|record| record.process.pid),
            started_at,
            age: started_at.and_then(seconds_since),
            command: live.record.map(|record| record.command),
        });
    }
    let in_process = in_process_workers(&app.config.state_dir).unwrap_or_else(|error| {
        output::warning(&format!("workers inside other programs cannot be seen: {error}"));
        Vec::new()
    });
    workers.extend(in_process.into_iter().map(|worker| WorkerStatus {
        definition: None,
        slot: None,
        transports: Some(worker.transports),
        pid: Some(worker.pid),
        started_at: Some(worker.started_at),
        age: seconds_since(worker.started_at),
        command: None,
    }));
    Ok(workers)
}

fn jobs(app: &App) -> Result<Vec<JobStatus>> {
    let slots = JobSlots::new(&app.config.state_dir);
    let status = |job: &Job| {
        Ok(JobStatus {
            name: job.name().to_owned(),
            running: !slots.live(job.name())?.is_empty(),
            next_run: job.schedule.next_after(Utc::now()),
        })
    };
    app.jobs.iter().map(status).collect()
}

fn seconds_since(time: DateTime<Utc>) -> Option<u64> {
    u64::try_from((Utc::now() - time).num_seconds()).ok()
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
        let names = [std::slice::from_ref(&one.name), &one.also].concat();
        [vec![shown(&names), running.to_owned()], counts.to_vec()].concat()
    });
    output::table(&["transport", "", "pending", "delayed", "in flight"], 2..5, rows);
    output::line("");
    if status.workers.is_empty() {
        output::line("No worker of the supervisor runs.");
    } else {
        let rows = status.workers.iter().map(|one| {
            let pid = one.pid.map_or("?".to_owned(), |pid| pid.to_string());
            let in_process =
                || format!("in process: {}", one.transports.iter().flatten().cloned().collect::<Vec<_>>().join(", "));
            let name = one.definition.clone().unwrap_or_else(in_process);
            let slot = one.slot.map_or("-".to_owned(), |slot| slot.to_string());
            vec![name, slot, pid, one.age.map_or("?".to_owned(), age)]
        });
        output::table(&["worker", "slot", "pid", "age"], 1..4, rows);
    }
    output::line("");
    if !status.jobs.is_empty() {
        let local = |time: DateTime<Utc>| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string();
        let rows = status.jobs.iter().map(|job| {
            let running = if job.running { "running" } else { "-" };
            vec![job.name.clone(), running.to_owned(), job.next_run.map_or("-".to_owned(), local)]
        });
        output::table(&["job", "", "next run"], 0..0, rows);
        output::line("");
    }
    match &status.supervisor {
        SupervisorStatus { running: false, .. } => output::line("No supervisor is at work."),
        SupervisorStatus { pid: Some(pid), started_at: Some(since), .. } => {
            let since = since.with_timezone(&chrono::Local).format("%H:%M:%S");
            output::line(format_args!("A supervisor is at work, pid {pid}, since {since}."));
        }
        SupervisorStatus { .. } => output::line("A supervisor is at work."),
    }
    status.cron.iter().flat_map(CronStatus::lines).for_each(output::line);
    // A cache that is down is down for all transports, and told once.
    let errors = status.transports.iter().filter_map(|one| one.error.as_ref()).chain(&status.cron_error);
    for error in errors.collect::<IndexSet<_>>() {
        output::error(error);
    }
}

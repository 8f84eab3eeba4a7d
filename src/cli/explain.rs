//! `minutely explain`: why there are as many workers as there are.

use chrono::{DateTime, Local, Utc};
use serde::Serialize;

use super::output::{self, Format, FormatArg};
use super::{App, End, Failure, Result};
use crate::config::{Problem, WorkerDefinition};
use crate::record::{TickLine, Ticks, read_ticks};
use crate::supervisor::{PlannedWorkers, TickReport, supervisor_status};
use crate::tuning;

/// How far back the record is read, in seconds.
const RECENT: i64 = 3600;
/// So many decisions are shown to people.
const SHOWN: usize = 10;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Says for each worker definition what is pending now, how many workers that asks for, what is in the way of them, what \
would change their number, and what the supervisor has decided within the last hour. What stayed as it was is shown \
once, with the time when it began.

The record of the supervisor's decisions is in the folder `record` of the state directory.")]
pub(super) struct Args {
    /// The worker definition; all if it is missing
    worker: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Explained<'a> {
    workers: Vec<WorkerExplained<'a>>,
    /// Lines of the record that could not be read.
    damaged: usize,
}

#[derive(Serialize)]
struct WorkerExplained<'a> {
    #[serde(flatten)]
    planned: &'a PlannedWorkers,
    in_the_way: Vec<String>,
    would_change: Vec<String>,
    /// Of the last hour, the oldest first.
    ticks: Vec<&'a TickLine>,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    check_name(app, args)?;
    let supervisor = super::cron::supervisor(app)?;
    let now = Utc::now().timestamp();
    let report = supervisor.dry_run().await;
    let record = read_ticks(&app.config.state_dir, now - RECENT, now)?;
    let definitions = app.config.workers.iter().zip(&report.plan.workers);
    let supervisor_runs = supervisor_status(&app.config.state_dir)?.running;
    let chosen = definitions.filter(|(definition, _)| args.worker.as_ref().is_none_or(|name| *name == definition.name));
    let workers = chosen
        .map(|(definition, planned)| of_worker(definition, planned, &report, &record, supervisor_runs, now))
        .collect();
    let explained = Explained { workers, damaged: record.damaged };
    match args.format.format {
        Format::Json => output::json(&explained)?,
        Format::Text => print(&explained),
    }
    Ok(End::Well)
}

fn check_name(app: &App, args: &Args) -> Result<()> {
    let names = || app.config.workers.iter().map(|definition| definition.name.as_str());
    match &args.worker {
        Some(name) if !names().any(|known| known == name) => {
            Err(Failure::Usage(Problem::unknown("", "worker definition", name, names()).message))
        }
        _ => Ok(()),
    }
}

fn of_worker<'a>(
    definition: &WorkerDefinition,
    planned: &'a PlannedWorkers,
    report: &TickReport,
    record: &'a Ticks,
    supervisor_runs: bool,
    now: i64,
) -> WorkerExplained<'a> {
    let ticks: Vec<&TickLine> = record.lines.iter().filter(|line| line.worker == definition.name).collect();
    let explanation =
        tuning::explain(&definition.autoscale, planned, report.held_back.as_deref(), &ticks, supervisor_runs, now);
    WorkerExplained { planned, in_the_way: explanation.in_the_way, would_change: explanation.would_change, ticks }
}

fn print(explained: &Explained<'_>) {
    if explained.workers.is_empty() {
        output::line("No workers are defined.");
    }
    let bold = anstyle::Style::new().bold();
    for (n, worker) in explained.workers.iter().enumerate() {
        if n > 0 {
            output::line("");
        }
        let PlannedWorkers { name, transports, reason, .. } = worker.planned;
        output::line(format_args!("{bold}{name}{bold:#} ({})", transports.join(", ")));
        facts("now", std::slice::from_ref(reason));
        facts("in the way", if worker.in_the_way.is_empty() { &NOTHING } else { &worker.in_the_way });
        facts("would change", &worker.would_change);
        facts("decided", &decisions(&worker.ticks));
    }
    if explained.damaged > 0 {
        output::warning(&format!("{} lines of the record could not be read", explained.damaged));
    }
}

static NOTHING: [String; 1] = [String::new()];

/// Prints what is said under a name, each on a line of its own.
fn facts(name: &str, said: &[String]) {
    for (n, said) in said.iter().enumerate() {
        let said = if said.is_empty() { "nothing" } else { said };
        output::line(format_args!("  {:<13} {said}", if n == 0 { name } else { "" }));
    }
}

/// The last decisions, the latest first, each with the time when it was made.
fn decisions(ticks: &[&TickLine]) -> Vec<String> {
    let mut decisions: Vec<&TickLine> = Vec::new();
    for tick in ticks {
        if !decisions.last().is_some_and(|last| tick.continues(last)) {
            decisions.push(tick);
        }
    }
    if decisions.is_empty() {
        return vec![String::new()];
    }
    decisions.into_iter().rev().take(SHOWN).map(decision).collect()
}

fn decision(tick: &TickLine) -> String {
    let time = DateTime::<Utc>::from_timestamp(tick.at, 0).unwrap_or_default().with_timezone(&Local);
    let started = if tick.started > 0 { format!(" (started {})", tick.started) } else { String::new() };
    let failed = tick.failed.as_ref().map(|failed| format!("; {failed}")).unwrap_or_default();
    format!("{} {}{started}{failed}", time.format("%H:%M:%S"), tick.why)
}

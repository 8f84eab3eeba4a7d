//! `minutely cron list`: the scheduled jobs.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::output::{self, Format, FormatArg, age};
use super::super::{App, End, Result};
use crate::config::Trigger;
use crate::schedule::{Job, Outcome, Run, SharedState};
use crate::supervisor::JobSlots;

/// So much of the last line that a failed run has printed is shown.
const LINE_LENGTH: usize = 60;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
With --format=json: all that is kept of the last 20 runs of each job, with the last lines of their output.")]
pub(in super::super) struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// A job as `--format json` shows it.
#[derive(Serialize)]
struct JobStatus {
    name: String,
    /// As it is written: Contao's name for it.
    interval: String,
    /// In words.
    schedule: String,
    timezone: Option<String>,
    /// What starts it: `cli`, `web`.
    scope: Vec<&'static str>,
    running: bool,
    next_run: Option<DateTime<Utc>>,
    last_run: Option<RunStatus>,
    runs: Vec<RunStatus>,
    #[serde(skip)]
    next_shown: Option<String>,
    #[serde(skip)]
    last_shown: Option<String>,
}

#[derive(Serialize, Clone)]
struct RunStatus {
    result: &'static str,
    /// In seconds.
    duration: f64,
    #[serde(flatten)]
    run: Run,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let shared = SharedState::new(app.cache.clone(), String::new());
    let leases = if app.jobs.is_empty() { Vec::new() } else { shared.leases().await? };
    let mut jobs = Vec::new();
    for job in app.jobs.iter() {
        let live = JobSlots::new(&app.config.state_dir).live(job.name())?;
        let pids: Vec<u32> = live.iter().filter_map(|slot| Some(slot.record.as_ref()?.process.pid)).collect();
        let hosts: Vec<&str> =
            leases.iter().filter(|(name, _)| name == job.name()).map(|(_, host)| host.as_str()).collect();
        let runs = shared.runs(job.name()).await?.into_iter();
        let runs = runs.map(|run| status(run, |run| pids.contains(&run.pid) || hosts.contains(&run.host.as_str())));
        jobs.push(describe(job, !live.is_empty(), runs.collect()));
    }
    match args.format.format {
        Format::Json => output::json(&jobs)?,
        Format::Text if jobs.is_empty() => output::line("No jobs are defined: `cron` in the configuration is empty."),
        Format::Text => print(&jobs),
    }
    Ok(End::Well)
}

fn status(run: Run, goes_on: impl Fn(&Run) -> bool) -> RunStatus {
    let result = match run.outcome {
        Some(Outcome::Succeeded) => "succeeded",
        Some(Outcome::Failed) => "failed",
        Some(Outcome::Skipped) => "skipped itself",
        Some(Outcome::Interrupted) => "interrupted",
        None if goes_on(&run) => "running",
        None => "killed",
    };
    RunStatus { result, duration: run.took(Utc::now()).as_secs_f64(), run }
}

fn describe(job: &Job, runs_here: bool, runs: Vec<RunStatus>) -> JobStatus {
    let (zone, next_run) = (job.schedule.zone(), job.schedule.next_after(Utc::now()));
    let scope = [("cli", Trigger::Cli), ("web", Trigger::Web)];
    JobStatus {
        name: job.name().to_owned(),
        interval: job.config.schedule.clone(),
        schedule: job.schedule.to_string(),
        timezone: zone.name().map(str::to_owned),
        scope: scope
            .into_iter()
            .filter(|(_, trigger)| job.config.scope.includes(*trigger))
            .map(|(name, _)| name)
            .collect(),
        running: runs_here || runs.iter().any(|run| run.result == "running"),
        next_shown: next_run.map(|next| zone.show(next)),
        last_shown: runs.first().map(|last| zone.show(last.run.started_at)),
        next_run,
        last_run: runs.first().cloned(),
        runs,
    }
}

fn print(jobs: &[JobStatus]) {
    let none = || "-".to_owned();
    let rows = jobs.iter().map(|job| {
        let (result, took) = job.last_run.as_ref().map_or((none(), none()), |last| {
            let why = last.run.why.as_ref().filter(|_| last.result != "succeeded");
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let said = Some(&last.run.output).filter(|_| matches!(last.result, "failed" | "interrupted"));
            let said = said.and_then(|output| last_line(output)).filter(|said| !why.contains(said));
            let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
            (format!("{}{why}{said}", last.result), age(last.run.took(Utc::now()).as_secs()))
        });
        let schedule = match job.scope[..] {
            [only] => format!("{} (scope: {only})", job.schedule),
            _ => job.schedule.clone(),
        };
        let utc = job.next_run.map(|next| next.format("%Y-%m-%d %H:%M:%S").to_string());
        vec![
            job.name.clone(),
            schedule,
            job.last_shown.clone().unwrap_or_else(none),
            result,
            took,
            job.next_shown.clone().unwrap_or_else(none),
            utc.unwrap_or_else(none),
        ]
    });
    output::table(&["job", "schedule", "last run", "result", "took", "next run", "next run in UTC"], 4..5, rows);
}

/// The last line of what a run has printed: one short line of characters that can be shown.
fn last_line(output: &str) -> Option<String> {
    let line = output.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let escape = |character: char| match character {
        '"' | '\'' | '\\' => character.to_string(),
        other => other.escape_debug().to_string(),
    };
    let shown: String = line.chars().take(LINE_LENGTH).map(escape).collect();
    Some(if line.chars().count() > LINE_LENGTH { format!("{shown}…") } else { shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_run_has_printed_the_last_line_is_shown_short_and_without_control_characters() {
        assert_eq!(last_line("a\nit's \"full\"\n \n").as_deref(), Some("it's \"full\""));
        assert_eq!(last_line("\u{1b}[2Jx\u{202e}y").as_deref(), Some("\\u{1b}[2Jx\\u{202e}y"));
        assert_eq!(last_line(&"ü".repeat(100)), Some(format!("{}…", "ü".repeat(LINE_LENGTH))));
        assert_eq!(last_line(" \n"), None);
    }
}

//! `minutely cron next`: which jobs run next.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::super::output::{self, Format, FormatArg};
use super::super::{App, End, Result};
use crate::schedule::Job;

#[derive(clap::Args, Clone, Debug)]
pub(in super::super) struct Args {
    /// How many runs to show
    #[arg(short, value_name = "COUNT", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    number: u32,
    #[command(flatten)]
    format: FormatArg,
}

pub(super) fn run(app: &App, args: &Args) -> Result<End> {
    let runs = next(&app.jobs, args.number, Utc::now());
    match args.format.format {
        Format::Json => {
            let runs = runs.iter().map(|(time, job)| json!({ "time": time, "name": job.name() }));
            output::json(&runs.collect::<Vec<_>>())?;
        }
        Format::Text if runs.is_empty() => output::line("No job is due at any time."),
        Format::Text => {
            let rows = runs.iter().map(|(time, job)| {
                let utc = time.format("%Y-%m-%d %H:%M:%S").to_string();
                vec![job.schedule.zone().show(*time), utc, job.name().to_owned()]
            });
            output::table(&["time", "in UTC", "job"], 0..0, rows);
        }
    }
    Ok(End::Well)
}

/// The next due times of all jobs.
fn next(jobs: &[Job], count: u32, now: DateTime<Utc>) -> Vec<(DateTime<Utc>, &Job)> {
    let mut nexts: Vec<(DateTime<Utc>, &Job)> =
        jobs.iter().filter_map(|job| Some((job.schedule.next_after(now)?, job))).collect();
    let mut runs = Vec::new();
    while runs.len() < count as usize {
        let Some(at) = (0..nexts.len()).min_by_key(|at| nexts[*at].0) else { break };
        let (time, job) = nexts[at];
        runs.push((time, job));
        match job.schedule.next_after(time) {
            Some(next) => nexts[at].0 = next,
            None => drop(nexts.remove(at)),
        }
    }
    runs
}

//! `crontab --check`: is the line there, once, does it fit, and does cron run it?

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use nix::unistd::User;
use serde::Serialize;

use super::super::cron::NAMES as CRON;
use super::super::installation::Installation;
use super::super::output::{self, Format, age};
use super::super::{App, End, Result};
use super::block::{Block, abandoned, blocks, content, lines};
use super::calls::{Environment, environment_of, starts};
use super::concerns;
use super::install::is_of;
use super::program::Crontab;
use super::table::{self, Line};
use crate::heartbeat::last_cron;
use crate::supervisor::known_host_owner;

/// Cron starts a run each minute, which goes on for just under one. A missed one is no reason for alarm.
const LATELY: TimeDelta = TimeDelta::seconds(180);

/// Schedules that are every minute.
const EVERY_MINUTE: [&str; 4] = ["* * * * *", "*/1 * * * *", "@every_minute", "0-59 * * * *"];

/// A line that starts this installation.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// The crontab that has it.
    pub(super) crontab: String,
    pub(super) line: usize,
    /// Between the markers of `--install`.
    pub(super) marked: bool,
    pub(super) text: String,
}

/// What `--check` has found.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether all is well.
    ok: bool,
    /// The line that this installation needs.
    expected: String,
    found: Vec<Found>,
    last_run: Option<DateTime<Utc>>,
    /// Whether that was lately.
    runs: bool,
    /// What is wrong, and what to do.
    problems: Vec<String>,
    warnings: Vec<String>,
}

pub(super) async fn run(crontab: &Crontab, app: &App, installation: &Installation, format: Format) -> Result<End> {
    let text = crontab.read().await?;
    let expected = installation.crontab_line();
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    match blocks(&text, |config| is_of(installation, config)) {
        Ok(blocks) => {
            for block in blocks {
                look_at(block, &expected, crontab, &mut found, &mut problems);
            }
        }
        Err(error) => problems.push(format!("the crontab's {error} (with `crontab -e`)")),
    }
    let marked = found.len();
    found.extend(by_hand(&text, crontab, installation));
    problems.extend(found[marked..].iter().filter_map(not_every_minute));
    if found.is_empty() && problems.is_empty() {
        let owner = crontab.owner();
        problems
            .push(format!("no line of the crontab of {owner} starts this installation; `crontab --install` adds it"));
    }
    if found.len() > 1 {
        let places: Vec<_> = found.iter().map(|found| format!("line {} of {}", found.line, found.crontab)).collect();
        problems.push(format!("cron starts it {} times: by {}; remove all but one", places.len(), places.join(", ")));
    }
    let now = Utc::now();
    let last_run = last_run_of_cron(app, now).await?;
    let runs = last_run.is_some_and(|last| now - last < LATELY);
    if !runs && !found.is_empty() {
        let log = app.config.state_dir.join("log");
        let since = match last_run {
            Some(last) => format!("cron has not run it for {}", age_of(last, now)),
            None => "cron has not run it within a day".to_owned(),
        };
        let daemon = if cron_daemon_is_seen() {
            ""
        } else {
            "; no process named cron or crond is to be seen: start the daemon, or ask your provider"
        };
        problems.push(format!(
            "{since}{daemon}; if the line is older than a minute, look what cron has mailed or logged ({}, or \
             `journalctl -u cron`)",
            log.display()
        ));
    }
    let report = Report {
        ok: problems.is_empty(),
        expected,
        found,
        last_run,
        runs,
        problems,
        warnings: [concerns::of(app, installation, crontab, &text), abandoned_lines(&text, crontab)].concat(),
    };
    match format {
        Format::Json => output::json(&report)?,
        Format::Text => print(&report, now),
    }
    Ok(if report.ok { End::Well } else { End::Failed })
}

/// When the cron daemon last had it at work on this host, within a day.
async fn last_run_of_cron(app: &App, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
    let Some(host) = known_host_owner(&app.config.state_dir)? else { return Ok(None) };
    let last = last_cron(&app.cache, &host).await?;
    Ok(last.and_then(|last| Some(now - TimeDelta::from_std(last.age).ok()?)))
}

/// Whether a process is named as the daemons of cron are. A system may hide other users' processes.
fn cron_daemon_is_seen() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = processes.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());
    names.into_iter().any(|name| ["cron", "crond", "fcron", "busybox"].contains(&name.trim()))
}

fn age_of(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    age(u64::try_from((now - time).num_seconds()).unwrap_or_default())
}

fn print(report: &Report, now: DateTime<Utc>) {
    for found in &report.found {
        output::line(format_args!("line {} of {}: {}", found.line, found.crontab, found.text));
    }
    if let Some(last) = report.last_run {
        output::line(format_args!("cron last ran it {} ago", age_of(last, now)));
    }
    for problem in &report.problems {
        output::error(problem);
    }
    for warning in &report.warnings {
        output::warning(warning);
    }
}

/// The line of a block, and what is wrong with it.
fn look_at(block: Block, expected: &str, crontab: &Crontab, found: &mut Vec<Found>, problems: &mut Vec<String>) {
    let mend = format!("`{}` brings it up to date", crontab.typed("crontab --install"));
    let Some((line, text)) = block.line else {
        problems.push(format!("there is no line between minutely's markers in the crontab; {mend}"));
        return;
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let entry = Found { crontab: name_of(crontab), line, marked: true, text };
    if !matches!(table::read(&entry.text, false), Line::Entry(_)) {
        problems.push(format!("line {line} of {} is switched off: {}; {mend}", entry.crontab, entry.text));
        return;
    }
    if entry.text != expected {
        let differs = format!("line {line} of {} does not fit this installation: ", entry.crontab);
        problems.push(format!("{differs}it is\n  {}\nand should be\n  {expected}\n{mend}", entry.text));
    }
    found.push(entry);
}

fn name_of(crontab: &Crontab) -> String {
    format!("the crontab of {}", crontab.owner())
}

/// The lines that start this installation without markers, also those in the crontabs of the system.
pub(super) fn by_hand(text: &[u8], crontab: &Crontab, installation: &Installation) -> Vec<Found> {
    let marked: Vec<usize> = blocks(text, |config| is_of(installation, config))
        .unwrap_or_default()
        .into_iter()
        .filter_map(|block| block.line.map(|(number, _)| number))
        .collect();
    let owner = environment_of(&crontab.owner(), crontab.home());
    let mut found = unmarked(text, &name_of(crontab), Some(&owner), installation);
    found.retain(|found| !marked.contains(&found.line));
    for file in crontabs_of_the_system() {
        // What cannot be read cannot be said.
        let Ok(text) = fs::read(&file) else { continue };
        found.extend(unmarked(&text, &file.display().to_string(), None, installation));
    }
    found
}

/// `owner`: what cron sets for the commands; `None`: it is a crontab of the system, where each line names its user.
fn unmarked(text: &[u8], crontab: &str, owner: Option<&Environment>, installation: &Installation) -> Vec<Found> {
    let (mut found, mut settings) = (Vec::new(), Environment::new());
    for (index, (_, line)) in lines(text).enumerate() {
        let line = String::from_utf8_lossy(content(line));
        let entry = match table::read(&line, owner.is_none()) {
            Line::Setting { name, value } => {
                settings.insert(name, value);
                continue;
            }
            // Nobody needs to be looked up for other lines.
            Line::Entry(entry) if CRON.iter().any(|name| entry.command.contains(name)) => entry,
            _ => continue,
        };
        let home_of = |user: &str| User::from_name(user).ok().flatten().map(|user| user.dir);
        let user = || environment_of(entry.user.unwrap_or_default(), entry.user.and_then(home_of));
        let mut environment = owner.cloned().unwrap_or_else(user);
        environment.extend(settings.clone());
        if starts(&entry.command, &environment, installation) {
            let (crontab, text) = (crontab.to_owned(), line.trim().to_owned());
            found.push(Found { crontab, line: index + 1, marked: false, text });
        }
    }
    found
}

/// The marked lines whose installation is no longer there, as after its folder was moved.
pub(super) fn abandoned_lines(text: &[u8], crontab: &Crontab) -> Vec<String> {
    let is_gone = |config: &[u8]| {
        let found = Path::new(OsStr::from_bytes(config)).symlink_metadata();
        matches!(found, Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    };
    let edit = match &crontab.named() {
        Some(user) => format!("crontab -u {user} -e"),
        None => "crontab -e".to_owned(),
    };
    let found = abandoned(text, is_gone).into_iter().map(|(begin, end, config)| {
        format!(
            "lines {begin}–{end} of {} start an installation that is no longer there ({}): if it was moved or deleted, \
             remove these lines with `{edit}`",
            name_of(crontab),
            String::from_utf8_lossy(config)
        )
    });
    found.collect()
}

fn not_every_minute(found: &Found) -> Option<String> {
    let Line::Entry(entry) = table::read(&found.text, false) else { return None };
    let schedule = entry.schedule;
    let place = format!("line {} of {}", found.line, found.crontab);
    (!EVERY_MINUTE.contains(&schedule.as_str()))
        .then(|| format!("{place} runs at \"{schedule}\" and not every minute (\"* * * * *\")"))
}

fn crontabs_of_the_system() -> Vec<PathBuf> {
    let folder = fs::read_dir("/etc/cron.d").into_iter().flatten().flatten().map(|file| file.path());
    // As cron does: the copies that editors and packages leave have a dot in their names.
    let is_read = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or(".");
        name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    let mut files: Vec<PathBuf> = folder.filter(is_read).collect();
    files.sort();
    files.insert(0, "/etc/crontab".into());
    files
}

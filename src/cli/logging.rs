//! Where events go: the log under the state directory, and the terminal.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry;

use super::daily_log::DailyLog;
use super::{Failure, Result, output};
use crate::config::Verbosity;
use crate::schedule::capture;
use crate::supervisor::SLOT_VARIABLE;

/// Whether a command writes the log under the state directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Logging {
    /// It does; a log that cannot be written is an error.
    File,
    /// It does; a log that cannot be written is worth a warning.
    FileIfPossible,
    /// It does not.
    Terminal,
}

/// When a command says on standard error what it does, and not only what is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Narration {
    /// Also without a terminal.
    Always,
    /// To a person.
    OnTerminal,
    /// With `-v` only.
    Never,
}

/// From here on, events are logged.
pub(super) fn start(verbosity: Verbosity, state_dir: &Path, logging: Logging, narration: Narration) -> Result<()> {
    let file = match logging {
        Logging::Terminal => None,
        Logging::File => Some(log_file(state_dir).map_err(Failure::Failed)?),
        Logging::FileIfPossible => log_file(state_dir).map_err(|text| output::warning(&text)).ok(),
    };
    let file = file.map(|file| {
        let level = if verbosity.verbose > 0 { LevelFilter::DEBUG } else { LevelFilter::INFO };
        fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_timer(Time("%Y-%m-%dT%H:%M:%S%.3f%:z"))
            .with_writer(file)
            .with_filter(ours(level))
    });
    let stderr = fmt::layer()
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
        .with_target(false)
        .with_timer(Time("%H:%M:%S"))
        .with_writer(io::stderr)
        .with_filter(ours(terminal_level(verbosity, narration)));
    // Fails when a subscriber is there already, which then gets the events: an application has set its own.
    let _ = tracing::subscriber::set_global_default(registry().with(file).with(stderr).with(capture()));
    Ok(())
}

/// What is shown besides the log: what happens, to a person at a terminal; to cron, which mails what it is shown, only
/// what is wrong. A supervised worker has the log for everything.
fn terminal_level(verbosity: Verbosity, narration: Narration) -> LevelFilter {
    match verbosity.verbose {
        _ if verbosity.quiet => LevelFilter::ERROR,
        1 => LevelFilter::DEBUG,
        2.. => LevelFilter::TRACE,
        0 if std::env::var_os(SLOT_VARIABLE).is_some() => LevelFilter::OFF,
        0 if narration == Narration::Always => LevelFilter::INFO,
        0 if narration == Narration::OnTerminal && io::stderr().is_terminal() => LevelFilter::INFO,
        0 => LevelFilter::WARN,
    }
}

/// Libraries whose warnings are worth a line.
const WARN: [&str; 2] = ["sqlx", "mio"];
/// Libraries that log what they also return as errors, which are told with their place and with what to do.
const SILENT: [&str; 5] = ["lapin", "amq_protocol", "async_rs", "redis", "hyper_util"];

/// Events of this crate and of applications; those of the libraries below only when they warn.
fn ours(level: LevelFilter) -> tracing_subscriber::filter::FilterFn<impl Fn(&tracing::Metadata<'_>) -> bool> {
    tracing_subscriber::filter::filter_fn(move |metadata| {
        let is_of = |libraries: &[&str]| libraries.iter().any(|library| metadata.target().starts_with(library));
        let level = match level {
            LevelFilter::TRACE => level,
            _ if is_of(&SILENT) => LevelFilter::OFF,
            _ if is_of(&WARN) => level.min(LevelFilter::WARN),
            level => level,
        };
        metadata.level() <= &level
    })
}

fn log_file(state_dir: &Path) -> Result<Arc<DailyLog>, String> {
    let dir = state_dir.join("log");
    let advice = "; check the owner and the free space, or set `state_dir` to a folder that can be written";
    let log =
        DailyLog::open(&dir).map_err(|error| format!("no log can be written in {}: {error}{advice}", dir.display()));
    log.map(Arc::new)
}

/// Local time in a format of chrono's.
struct Time(&'static str);

impl FormatTime for Time {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", chrono::Local::now().format(self.0))
    }
}

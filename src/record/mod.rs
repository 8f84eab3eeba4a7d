//! What happened: a bounded history of the supervisor's ticks, in files of the state directory.
//!
//! | file | holds | kept |
//! | --- | --- | --- |
//! | `record/ticks/2026-11-22.jsonl` | [`TickLine`]s of that day (UTC) | eight days |
//! | `record/hours/2026-11-22.jsonl` | `HourLine`s: the same day by the hour | a year |
//!
//! A line is one JSON value. Lines are only ever appended, and by one process at a time (the supervisor). A process that
//! is killed while it writes leaves at most one incomplete line, which readers skip, as they do anything else that they
//! do not understand. Lines are not synced: a power cut may take the last ones.
//!
//! No part of a message is ever recorded.

mod hours;
mod lines;
mod ticks;

pub(crate) use ticks::{TickLine, TickRecorder, Ticks, read_ticks};

use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDate};

/// The folder of the ticks.
fn ticks_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("record/ticks")
}

/// The folder of the hours.
fn hours_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("record/hours")
}

/// The file of a day.
fn file_of(dir: &Path, day: NaiveDate) -> PathBuf {
    dir.join(format!("{day}.jsonl"))
}

/// The day of a time in Unix seconds, by UTC.
fn day_of(at: i64) -> NaiveDate {
    DateTime::from_timestamp(at, 0).unwrap_or_default().date_naive()
}

/// The days that have a file in this folder, in their order. Other files are ignored.
fn days_in(dir: &Path) -> Vec<NaiveDate> {
    let day = |name: &str| name.strip_suffix(".jsonl")?.parse().ok();
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut days: Vec<NaiveDate> = files.filter_map(|file| day(file.file_name().to_str()?)).collect();
    days.sort_unstable();
    days
}

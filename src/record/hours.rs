//! The record of past days, by the hour.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use chrono::{Days, NaiveDate};
use serde::{Deserialize, Serialize};

use super::ticks::{HOLDS, TickLine};
use super::{day_of, days_in, file_of, hours_dir, lines, ticks_dir};
use crate::state_files::{self, StateError};

/// How many days before today each tick is kept.
const TICKS_KEPT: Days = Days::new(7);
/// How many days before today the hours are kept.
const HOURS_KEPT: Days = Days::new(366);
/// Begins the names of temporary files.
const TEMPORARY_PREFIX: &str = ".new-";

const HOUR: i64 = 3600;

/// An hour of a worker definition. Means are by time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HourLine {
    /// When it begins, in Unix seconds.
    pub at: i64,
    /// The worker definition's name.
    pub worker: String,
    /// For how many seconds of it a supervisor was at work.
    pub seconds: i64,
    /// The mean of the pending messages; `None` if they could never be counted.
    pub pending_mean: Option<f64>,
    /// The most pending messages.
    pub pending_max: Option<u64>,
    /// The mean of the live workers.
    pub running_mean: Option<f64>,
    /// The most live workers.
    pub running_max: Option<u32>,
    /// The most workers that there should be.
    pub desired_max: u32,
    /// How many were started.
    pub started: u64,
    /// For how many seconds something could not be done.
    pub failed_seconds: i64,
}

/// A mean by time, and the largest value.
#[derive(Debug, Default, Clone, Copy)]
struct Measure {
    sum: f64,
    seconds: i64,
    max: Option<u64>,
}

impl Measure {
    fn add(&mut self, value: Option<u64>, seconds: i64) {
        let Some(value) = value else { return };
        self.sum += value as f64 * seconds as f64;
        self.seconds += seconds;
        self.max = self.max.max(Some(value));
    }

    fn mean(&self) -> Option<f64> {
        let rounded = |mean: f64| (mean * 1000.0).round() / 1000.0;
        (self.seconds > 0).then(|| rounded(self.sum / self.seconds as f64))
    }
}

#[derive(Debug, Default)]
struct Hour {
    seconds: i64,
    pending: Measure,
    running: Measure,
    desired_max: u32,
    started: u64,
    failed_seconds: i64,
}

impl Hour {
    /// What a line says holds for so many seconds of this hour.
    fn add(&mut self, line: &TickLine, seconds: i64) {
        self.seconds += seconds;
        self.pending.add(line.pending, seconds);
        self.running.add(line.running.map(u64::from), seconds);
        self.desired_max = self.desired_max.max(line.desired);
        if line.failed.is_some() {
            self.failed_seconds += seconds;
        }
    }

    fn line(&self, at: i64, worker: &str) -> HourLine {
        HourLine {
            at,
            worker: worker.to_owned(),
            seconds: self.seconds,
            pending_mean: self.pending.mean(),
            pending_max: self.pending.max,
            running_mean: self.running.mean(),
            running_max: self.running.max.map(|max| u32::try_from(max).unwrap_or(u32::MAX)),
            desired_max: self.desired_max,
            started: self.started,
            failed_seconds: self.failed_seconds,
        }
    }
}

/// Summarizes a day: each hour of each worker definition for which there are lines.
fn summarize(mut ticks: Vec<TickLine>, day: NaiveDate) -> Vec<HourLine> {
    ticks.retain(|tick| day_of(tick.at) == day);
    ticks.sort_by(|a, b| (&a.worker, a.at).cmp(&(&b.worker, b.at)));
    let mut hours: BTreeMap<(i64, &str), Hour> = BTreeMap::new();
    for (n, tick) in ticks.iter().enumerate() {
        let next = ticks.get(n + 1).filter(|next| next.worker == tick.worker);
        let midnight = (tick.at / 86_400 + 1) * 86_400;
        let end = next.map_or(i64::MAX, |next| next.at).min(tick.at + HOLDS).min(midnight);
        hours.entry((tick.at / HOUR * HOUR, &tick.worker)).or_default().started += u64::from(tick.started);
        let mut at = tick.at;
        while at < end {
            let begin = at / HOUR * HOUR;
            let until = end.min(begin + HOUR);
            hours.entry((begin, &tick.worker)).or_default().add(tick, until - at);
            at = until;
        }
    }
    hours.into_iter().map(|((at, worker), hour)| hour.line(at, worker)).collect()
}

/// Whether there is more to tidy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tidied {
    Partly,
    Wholly,
}

/// Summarizes the first past day that is not yet, and removes what is too old.
pub(super) fn tidy(state_dir: &Path, now: i64) -> Result<Tidied, StateError> {
    let (ticks, hours, today) = (ticks_dir(state_dir), hours_dir(state_dir), day_of(now));
    let recorded = days_in(&ticks);
    let is_new = |day: &NaiveDate| *day < today && !file_of(&hours, *day).exists();
    let new: Vec<NaiveDate> = recorded.iter().copied().filter(is_new).collect();
    if let Some(day) = new.first().copied() {
        let mut lines_of_day = Vec::new();
        lines::read(&file_of(&ticks, day), |line| lines_of_day.push(line))?;
        write(&hours, day, &summarize(lines_of_day, day))?;
    }
    let too_old = |days: Days| today.checked_sub_days(days).unwrap_or_default();
    let (ticks_end, hours_end) = (too_old(TICKS_KEPT), too_old(HOURS_KEPT));
    let old_ticks = recorded.into_iter().filter(|day| *day < ticks_end && file_of(&hours, *day).exists());
    let old_hours = days_in(&hours).into_iter().filter(|day| *day < hours_end);
    for path in old_ticks.map(|day| file_of(&ticks, day)).chain(old_hours.map(|day| file_of(&hours, day))) {
        fs::remove_file(&path).map_err(StateError::io(&path, "removed"))?;
    }
    Ok(if new.len() > 1 { Tidied::Partly } else { Tidied::Wholly })
}

fn write(dir: &Path, day: NaiveDate, hours: &[HourLine]) -> Result<(), StateError> {
    state_files::create_dir(dir)?;
    let mut text = String::new();
    for hour in hours {
        text += &serde_json::to_string(hour).unwrap_or_default();
        text.push('\n');
    }
    let path = file_of(dir, day);
    state_files::replace(&path, TEMPORARY_PREFIX, text.as_bytes()).map_err(StateError::io(&path, "written"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{TickRecorder, read_ticks};

    /// 2027-01-15, eight in the morning.
    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn tick(at: i64, pending: u64, running: u32) -> TickLine {
        TickLine {
            at,
            worker: "mail".into(),
            pending: Some(pending),
            running: Some(running),
            desired: running,
            started: 0,
            why: String::new(),
            failed: None,
        }
    }

    fn record(state_dir: &Path, tick: TickLine) {
        TickRecorder::new(state_dir).record(std::iter::once(tick));
    }

    fn hours_of(state_dir: &Path, at: i64) -> Vec<HourLine> {
        let mut hours = Vec::new();
        assert_eq!(lines::read(&file_of(&hours_dir(state_dir), day_of(at)), |hour| hours.push(hour)).unwrap(), 0);
        hours
    }

    #[test]
    fn an_hour_has_the_means_by_time() {
        let from = NOW / HOUR * HOUR;
        let failed = TickLine { pending: None, failed: Some("no answer".into()), started: 2, ..tick(from + 40, 0, 3) };
        let ticks = vec![tick(from, 10, 1), tick(from + 30, 20, 1), failed, tick(from + 50, 0, 2)];
        let hours = summarize(ticks, day_of(from));
        let expected = HourLine {
            at: from,
            worker: "mail".into(),
            seconds: 50 + HOLDS,
            // 30 s of 10, 10 s of 20, and the rest of 0, without the 10 s in which they could not be counted.
            pending_mean: Some(4.545),
            pending_max: Some(20),
            // 40 s of 1, 10 s of 3, and the rest of 2.
            running_mean: Some(1.75),
            running_max: Some(3),
            desired_max: 3,
            started: 2,
            failed_seconds: 10,
        };
        assert_eq!(hours, [expected]);
    }

    #[test]
    fn a_line_holds_beyond_its_hour_but_not_beyond_its_day() {
        let hour = NOW / HOUR * HOUR;
        let seconds = |at: i64| -> Vec<_> {
            summarize(vec![tick(at, 1, 1)], day_of(at)).iter().map(|hour| (hour.at, hour.seconds)).collect()
        };
        assert_eq!(seconds(hour - 20), [(hour - HOUR, 20), (hour, HOLDS - 20)]);
        let midnight = NOW / DAY * DAY;
        assert_eq!(seconds(midnight - 20), [(midnight - HOUR, 20)]);
    }

    #[test]
    fn past_days_are_summarized_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        for days in [2, 1, 0] {
            record(dir.path(), tick(NOW - days * DAY, 1, 1));
        }
        assert_eq!(tidy(dir.path(), NOW).unwrap(), Tidied::Partly);
        assert_eq!(tidy(dir.path(), NOW).unwrap(), Tidied::Wholly);
        assert_eq!(tidy(dir.path(), NOW).unwrap(), Tidied::Wholly);
        assert_eq!(days_in(&hours_dir(dir.path())), [day_of(NOW - 2 * DAY), day_of(NOW - DAY)]);
        assert_eq!(hours_of(dir.path(), NOW - DAY)[0].seconds, HOLDS);
        assert_eq!(hours_of(dir.path(), NOW), []);
    }

    #[test]
    fn ticks_are_kept_for_a_week_and_hours_for_a_year() {
        let dir = tempfile::tempdir().unwrap();
        for days in [400, 8, 7] {
            record(dir.path(), tick(NOW - days * DAY, 1, 1));
        }
        while tidy(dir.path(), NOW).unwrap() == Tidied::Partly {}
        assert_eq!(days_in(&ticks_dir(dir.path())), [day_of(NOW - 7 * DAY)]);
        assert_eq!(days_in(&hours_dir(dir.path())), [day_of(NOW - 8 * DAY), day_of(NOW - 7 * DAY)]);
        assert_eq!(read_ticks(dir.path(), NOW - 10 * DAY, NOW).unwrap().lines.len(), 1);
    }

    #[test]
    fn a_damaged_day_is_summarized_as_far_as_it_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        record(dir.path(), tick(NOW - DAY, 1, 1));
        let path = file_of(&ticks_dir(dir.path()), day_of(NOW - DAY));
        let foreign = [b"\xff{\"at\":1}\n[]\n".to_vec(), fs::read(&path).unwrap()].concat();
        fs::write(&path, foreign).unwrap();
        fs::write(ticks_dir(dir.path()).join("notes.jsonl"), "not a day").unwrap();
        fs::create_dir(file_of(&ticks_dir(dir.path()), day_of(NOW - 2 * DAY))).unwrap();
        tidy(dir.path(), NOW).unwrap();
        assert_eq!(hours_of(dir.path(), NOW - DAY).len(), 1);
        assert!(ticks_dir(dir.path()).join("notes.jsonl").exists());
    }
}

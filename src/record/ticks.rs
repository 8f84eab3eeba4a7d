//! The record of the supervisor's ticks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::hours::{self, Tidied};
use super::{day_of, days_in, file_of, lines, ticks_dir};
use crate::state_files::{self, StateError};

/// What stays as it is, is recorded this often, in seconds. A longer gap shows that nobody supervised.
const REPEAT: i64 = 60;
/// How long a line holds if none follows, in seconds: the repetition comes at a tick.
pub(super) const HOLDS: i64 = REPEAT + 10;
/// Larger files of a day get a line only every [`REPEAT`], in bytes.
const FULL: u64 = 4 * 1024 * 1024;
/// Files of a day get no larger than this, in bytes, but for one tick.
const LARGEST: u64 = 6 * 1024 * 1024;
/// More characters of a text are not recorded.
const LONGEST_TEXT: usize = 500;

/// What a tick found and did for a worker definition. It holds until the definition's next line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TickLine {
    /// When, in Unix seconds.
    pub at: i64,
    /// The worker definition's name.
    pub worker: String,
    /// The pending messages, or at least this many: counting stops where more would not change the plan. `None` if they
    /// could not be counted.
    pub pending: Option<u64>,
    /// The live workers before the tick started any. `None` if they could not be counted.
    pub running: Option<u32>,
    /// How many workers there should be.
    pub desired: u32,
    /// How many were started.
    pub started: u32,
    /// Why, for people.
    pub why: String,
    /// What the tick could not do, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl TickLine {
    /// Whether nothing has changed since an earlier line, and no worker was started.
    pub(crate) fn continues(&self, earlier: &Self) -> bool {
        self.started == 0 && *self == Self { at: self.at, ..earlier.clone() }
    }

    fn shortened(self) -> Self {
        let short = |text: String| match text.char_indices().nth(LONGEST_TEXT) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        Self { why: short(self.why), failed: self.failed.map(short), ..self }
    }
}

/// Records ticks. What did not change is recorded once a minute only.
#[derive(Debug)]
pub(crate) struct TickRecorder {
    state_dir: PathBuf,
    /// The last line of each worker definition.
    last: HashMap<String, TickLine>,
    /// The file could not be written, which was logged.
    fails: bool,
    /// The day on which nothing was left to tidy.
    tidied: Option<NaiveDate>,
}

impl TickRecorder {
    /// Records in this state directory. Does nothing yet.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), last: HashMap::new(), fails: false, tidied: None }
    }

    /// Records what a tick found and did. If that fails, it is logged once: nothing depends on it.
    pub(crate) fn record(&mut self, ticks: impl Iterator<Item = TickLine>) {
        match self.try_record(ticks) {
            Ok(()) => self.fails = false,
            Err(error) if !std::mem::replace(&mut self.fails, true) => {
                tracing::warn!("what the supervisor does is not recorded: {error}");
            }
            Err(_) => {}
        }
    }

    fn try_record(&mut self, ticks: impl Iterator<Item = TickLine>) -> Result<(), StateError> {
        let ticks: Vec<TickLine> = ticks.map(TickLine::shortened).collect();
        let Some(day) = ticks.first().map(|tick| day_of(tick.at)) else { return Ok(()) };
        let dir = ticks_dir(&self.state_dir);
        let path = file_of(&dir, day);
        let size = lines::size(&path);
        let mut text = String::new();
        for tick in &ticks {
            if self.is_to_be_told(tick, size) {
                text += &serde_json::to_string(tick).unwrap_or_default();
                text.push('\n');
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        state_files::create_dir(&dir)?;
        lines::append(&path, &text)?;
        self.last.extend(ticks.into_iter().map(|tick| (tick.worker.clone(), tick)));
        Ok(())
    }

    /// Whether a line is to be written to a file of this size.
    fn is_to_be_told(&self, tick: &TickLine, size: u64) -> bool {
        let Some(last) = self.last.get(&tick.worker) else { return size < LARGEST };
        // A clock that was set back is a change too.
        let is_due = !(0..REPEAT).contains(&(tick.at - last.at));
        size < LARGEST && (is_due || (size < FULL && !tick.continues(last)))
    }

    /// Summarizes a past day by the hour, and removes what is older than is kept. To be called at each tick: one day is
    /// as much as there is time for.
    pub(crate) fn tidy(&mut self, now: i64) {
        let today = Some(day_of(now));
        if self.tidied == today {
            return;
        }
        match hours::tidy(&self.state_dir, now) {
            Ok(Tidied::Partly) => {}
            Ok(Tidied::Wholly) => self.tidied = today,
            Err(error) => {
                tracing::warn!("the record of past days is not summarized: {error}");
                self.tidied = today;
            }
        }
    }
}

/// What the record tells of some time.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    /// In the order of their times.
    pub lines: Vec<TickLine>,
    /// How many lines could not be read.
    pub damaged: usize,
}

/// The ticks in `from..=until`, in Unix seconds.
pub(crate) fn read_ticks(state_dir: &Path, from: i64, until: i64) -> Result<Ticks, StateError> {
    let dir = ticks_dir(state_dir);
    let mut ticks = Ticks::default();
    let days = day_of(from)..=day_of(until);
    for day in days_in(&dir).into_iter().filter(|day| days.contains(day)) {
        ticks.damaged += lines::read(&file_of(&dir, day), |line: TickLine| {
            if (from..=until).contains(&line.at) {
                ticks.lines.push(line);
            }
        })?;
    }
    // The clock may have been set back.
    ticks.lines.sort_by_key(|line| line.at);
    Ok(ticks)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// 2027-01-15, eight in the morning.
    const NOW: i64 = 1_800_000_000;

    fn tick(at: i64, pending: u64) -> TickLine {
        TickLine {
            at,
            worker: "mail".into(),
            pending: Some(pending),
            running: Some(1),
            desired: 1,
            started: 0,
            why: format!("{pending} pending"),
            failed: None,
        }
    }

    fn times(state_dir: &Path) -> Vec<i64> {
        read_ticks(state_dir, NOW - 100_000, NOW + 100_000)
            .unwrap()
            .lines
            .into_iter()
            .map(|line| line.at - NOW)
            .collect()
    }

    #[test]
    fn a_tick_is_read_as_it_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = TickRecorder::new(dir.path());
        let failed = TickLine { pending: None, running: None, failed: Some("no answer".into()), ..tick(NOW, 7) };
        recorder.record([failed.clone(), TickLine { worker: "other".into(), ..tick(NOW, 7) }].into_iter());
        let ticks = read_ticks(dir.path(), NOW, NOW).unwrap();
        assert_eq!((&ticks.lines[0], ticks.lines.len(), ticks.damaged), (&failed, 2, 0));
    }

    #[test]
    fn what_stays_as_it_is_is_recorded_once_a_minute_and_each_start_of_workers() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = TickRecorder::new(dir.path());
        for at in (0..=120).step_by(5) {
            recorder.record(std::iter::once(tick(NOW + at, 7)));
        }
        assert_eq!(times(dir.path()), [0, 60, 120]);
        recorder.record(std::iter::once(tick(NOW + 125, 8)));
        for at in [130, 135] {
            recorder.record(std::iter::once(TickLine { started: 1, ..tick(NOW + at, 8) }));
        }
        assert_eq!(times(dir.path()), [0, 60, 120, 125, 130, 135]);
    }

    #[test]
    fn after_a_clock_was_set_back_ticks_are_recorded_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = TickRecorder::new(dir.path());
        for at in [0, -90_000, -89_995] {
            recorder.record(std::iter::once(tick(NOW + at, 7)));
        }
        assert_eq!(times(dir.path()), [-90_000, 0]);
    }

    #[test]
    fn a_day_has_no_more_lines_than_fit_into_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = file_of(&ticks_dir(dir.path()), day_of(NOW));
        let mut recorder = TickRecorder::new(dir.path());
        recorder.record(std::iter::once(tick(NOW, 0)));
        let fill = |to: u64| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(to).unwrap();
        fill(FULL);
        recorder.record(std::iter::once(tick(NOW + 5, 1)));
        assert_eq!(lines::size(&path), FULL);
        recorder.record(std::iter::once(tick(NOW + 65, 2)));
        assert!(lines::size(&path) > FULL);
        fill(LARGEST);
        recorder.record(std::iter::once(tick(NOW + 130, 3)));
        assert_eq!(lines::size(&path), LARGEST);
    }

    #[test]
    fn long_texts_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let long = TickLine { why: "ü".repeat(100_000), ..tick(NOW, 1) };
        TickRecorder::new(dir.path()).record(std::iter::once(long));
        let why = read_ticks(dir.path(), NOW, NOW).unwrap().lines.remove(0).why;
        assert_eq!((why.chars().count(), why.ends_with("ü…")), (LONGEST_TEXT + 1, true));
    }

    #[test]
    fn a_record_that_cannot_be_written_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("record"), "in the way").unwrap();
        let mut recorder = TickRecorder::new(dir.path());
        recorder.record(std::iter::once(tick(NOW, 1)));
        recorder.tidy(NOW);
        fs::remove_file(dir.path().join("record")).unwrap();
        recorder.record(std::iter::once(tick(NOW + 5, 1)));
        assert_eq!(times(dir.path()), [5]);
    }
}

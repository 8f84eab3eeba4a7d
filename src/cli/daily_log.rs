//! The log under the state directory: one file per day, readable only by its owner because it may quote messages.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chrono::{NaiveDate, Utc};

/// How many days' logs are kept.
const DAYS: usize = 14;

/// Writes to the current day's file.
pub(super) struct DailyLog {
    dir: PathBuf,
    open: Mutex<(NaiveDate, File)>,
}

impl DailyLog {
    /// Creates the folder (mode 0700) and today's file (mode 0600) where they are missing.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let today = Utc::now().date_naive();
        Ok(Self { dir: dir.to_owned(), open: Mutex::new((today, file_of(dir, today)?)) })
    }
}

impl Write for &DailyLog {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let today = Utc::now().date_naive();
        // If the new file cannot be created, keep writing to the old one.
        if open.0 != today
            && let Ok(file) = file_of(&self.dir, today)
        {
            *open = (today, file);
        }
        (&open.1).write(event)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn file_of(dir: &Path, day: NaiveDate) -> io::Result<File> {
    let path = dir.join(format!("minutely.{day}.log"));
    let is_new = !path.exists();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if is_new {
        remove_old(dir);
    }
    Ok(file)
}

/// Removes all but the last [`DAYS`] files. A file that cannot be removed is tried again the next day.
fn remove_old(dir: &Path) {
    let day = |name: &str| name.strip_prefix("minutely.")?.strip_suffix(".log")?.parse::<NaiveDate>().ok();
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut days: Vec<_> = files.filter_map(|file| Some((day(file.file_name().to_str()?)?, file.path()))).collect();
    days.sort_unstable();
    for (_, path) in days.iter().rev().skip(DAYS) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_day_has_a_file_and_the_oldest_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let day = |n: u32| NaiveDate::from_ymd_opt(2026, 1, n).unwrap();
        for n in 1..=20 {
            file_of(dir.path(), day(n)).unwrap();
        }
        std::fs::write(dir.path().join("worker-mail.log"), "").unwrap();
        file_of(dir.path(), day(21)).unwrap();
        let mut names: Vec<_> =
            dir.path().read_dir().unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        assert_eq!((names.len(), names[0].as_str()), (DAYS + 1, "minutely.2026-01-08.log"));
    }

    #[test]
    fn what_is_written_goes_to_the_end_of_todays_file_which_is_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("log");
        for text in ["one\n", "two\n"] {
            let log = DailyLog::open(&dir).unwrap();
            (&log).write_all(text.as_bytes()).unwrap();
        }
        // Midnight may have come in between.
        let files: Vec<_> = dir.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
        assert!(files.iter().all(|file| file.metadata().unwrap().permissions().mode() & 0o777 == 0o600));
    }

    #[test]
    fn an_open_log_goes_on_in_the_next_days_file() {
        let dir = tempfile::tempdir().unwrap();
        let yesterday = Utc::now().date_naive().pred_opt().unwrap();
        let file = file_of(dir.path(), yesterday).unwrap();
        let log = DailyLog { dir: dir.path().to_owned(), open: Mutex::new((yesterday, file)) };
        (&log).write_all(b"new\n").unwrap();
        let yesterdays = dir.path().join(format!("minutely.{yesterday}.log"));
        assert_eq!(std::fs::read_to_string(yesterdays).unwrap(), "");
    }
}

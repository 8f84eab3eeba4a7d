//! Reports of failed runs, which cron mails. A run may end while no supervisor runs, so its report is a file. The next
//! supervisor of this host prints it.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::shared_state::Run;

/// How many are kept for a supervisor that does not come.
const KEPT: usize = 100;
const FOLDER: &str = "job-reports";
const UNFINISHED: &str = ".new-";

/// A failed run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The job's name.
    pub job: String,
    /// The run.
    pub run: Run,
}

/// The reports of one state directory.
#[derive(Debug, Clone)]
pub(super) struct Reports {
    dir: PathBuf,
}

impl Reports {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(FOLDER) }
    }

    /// Saves a report for the next supervisor.
    pub(super) fn save(&self, report: &Report) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.dir)?;
        file.write_all(&serde_json::to_vec(report)?)?;
        // In the order of the runs' ends. One report for each run, also when it is found twice.
        let ended_at = report.run.ended_at.unwrap_or_default().timestamp_millis();
        file.persist(self.dir.join(format!("{ended_at:015}-{}.json", report.run.id)))?;
        for old in self.files().iter().rev().skip(KEPT) {
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// Passes all reports on, and removes them. After a kill in between, a report is passed on twice.
    pub(super) fn deliver(&self, mut to: impl FnMut(&Report)) {
        for file in self.files() {
            if let Some(report) = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                to(&report);
            }
            if let Err(error) = fs::remove_file(&file) {
                tracing::warn!(file = %file.display(), %error, "the report of a job could not be removed, and comes again");
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = files.filter(|file| !file.file_name().to_string_lossy().starts_with(UNFINISHED));
        let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
        files.sort_unstable();
        files
    }
}

//! A scheduled job: an async function that runs on time, in a process of its own.
//!
//! ```text
//! cargo run --example scheduled_job -- cron run clean-up
//! cargo run --example scheduled_job -- cron list
//! ```
//!
//! The crontab line is `* * * * * cd /path/to/app && ./scheduled_job cron`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use minutely::config::Config;
use minutely::handler::{CancellationToken, HandlerError, State};
use minutely::{App, AppBuilder, Job};

#[derive(Clone)]
struct Uploads {
    dir: PathBuf,
}

/// Removes empty files. What it returns is the output of the run.
async fn clean_up(State(uploads): State<Uploads>, cancellation: CancellationToken) -> Result<String, HandlerError> {
    if !uploads.dir.exists() {
        return Err(HandlerError::skipped("nothing was uploaded yet"));
    }
    let mut removed = 0;
    for file in std::fs::read_dir(&uploads.dir)? {
        // Its time is over, or the host shuts down.
        if cancellation.is_cancelled() {
            return Err(format!("{removed} files were removed, and more are left").into());
        }
        let file = file?;
        if file.metadata()?.len() == 0 {
            std::fs::remove_file(file.path())?;
            removed += 1;
        }
    }
    Ok(format!("{removed} files were removed"))
}

fn builder() -> AppBuilder {
    let clean_up = Job::new("clean-up", "5 4 * * *", clean_up).timezone("Europe/Vienna");
    App::builder()
        .config(Config::builder())
        .state(Uploads { dir: "var/uploads".into() })
        .job(clean_up.timeout(Duration::from_secs(600)).set("jitter", "5m"))
}

fn main() -> ExitCode {
    minutely::cli::main(builder())
}

#[cfg(test)]
mod tests {
    use minutely::handler::Verdict;

    use super::*;

    #[tokio::test]
    async fn empty_files_are_removed_and_a_missing_folder_is_no_failure() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let uploads = State(Uploads { dir: folder.path().join("uploads") });
        let skipped = clean_up(uploads.clone(), CancellationToken::default()).await.unwrap_err();
        assert_eq!(skipped.verdict, Verdict::Skipped);
        std::fs::create_dir(&uploads.0.dir)?;
        std::fs::write(uploads.0.dir.join("empty"), "")?;
        std::fs::write(uploads.0.dir.join("full"), "text")?;
        let removed = clean_up(uploads.clone(), CancellationToken::default()).await;
        assert_eq!(removed.map_err(|error| error.message)?, "1 files were removed");
        assert!(uploads.0.dir.join("full").exists());
        builder().build()?;
        Ok(())
    }
}

//! Supervisors that compete for one state directory.

use tempfile::TempDir;

use super::super::fixture::eventually;
use super::record::{FILE, LockFile, SupervisorRecord};
use super::*;
use crate::state_files::{self, Mode};

async fn take(dir: &Path, config: &str, lifetime: Lifetime) -> Result<Option<SupervisorLock>, LockError> {
    SupervisorLock::take(dir, &dir.join(config), lifetime).await
}

/// A folder with two configurations and a state directory.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for config in ["a.yaml", "b.yaml"] {
        std::fs::write(dir.path().join(config), "").unwrap();
    }
    dir
}

/// Makes it look as if the supervisor had last made progress this many seconds ago.
fn silent_for(dir: &Path, seconds: u64) {
    let file = state_files::open(&dir.join(FILE), Mode::ReadWrite).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

fn rewrite(dir: &Path, change: impl FnOnce(&mut SupervisorRecord)) {
    let path = dir.join(FILE);
    let file = state_files::open(&path, Mode::ReadWrite).unwrap();
    let mut record = LockFile::read(&file, &path).unwrap().record.unwrap();
    change(&mut record);
    record.write(&file).unwrap();
}

#[tokio::test]
async fn a_cron_waits_for_a_supervisor_that_is_about_to_end() {
    let dir = folder();
    let first = take(dir.path(), "a.yaml", Lifetime::UntilNextCron).await.unwrap().unwrap();
    // In the middle of a minute, so that no cron would be started soon after.
    let now = Utc::now();
    let ends_at = now + chrono::TimeDelta::seconds(if (5..40).contains(&(now.timestamp() % 60)) { 1 } else { 25 });
    rewrite(dir.path(), |record| record.ends_at = Some(ends_at));
    let ends = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        drop(first);
    };
    let (second, ()) = tokio::join!(take(dir.path(), "a.yaml", Lifetime::UntilNextCron), ends);
    assert!(second.unwrap().is_some(), "it follows");
}

#[tokio::test]
async fn no_cron_waits_for_a_supervisor_without_an_end() {
    let dir = folder();
    let _first = take(dir.path(), "a.yaml", Lifetime::UntilStopped).await.unwrap().unwrap();
    for lifetime in [Lifetime::UntilNextCron, Lifetime::UntilStopped] {
        assert!(take(dir.path(), "a.yaml", lifetime).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn another_configuration_is_refused_with_its_name_even_shortly_after() {
    let dir = folder();
    let refused = |result: Result<Option<SupervisorLock>, LockError>| {
        let text = result.unwrap_err().to_string();
        let real = dir.path().canonicalize().unwrap();
        let (var, a, b) = (dir.path().display(), real.join("a.yaml"), real.join("b.yaml"));
        let (a, b) = (a.display(), b.display());
        let expected = format!("{var} is in use by another configuration, {a}: give {b} a `state_dir` of its own");
        assert_eq!(text, expected);
    };
    let first = take(dir.path(), "a.yaml", Lifetime::UntilNextCron).await.unwrap().unwrap();
    refused(take(dir.path(), "b.yaml", Lifetime::UntilNextCron).await);
    drop(first);
    refused(take(dir.path(), "b.yaml", Lifetime::UntilStopped).await);
    // The same one by another name.
    std::os::unix::fs::symlink(dir.path().join("a.yaml"), dir.path().join("link.yaml")).unwrap();
    drop(take(dir.path(), "link.yaml", Lifetime::UntilNextCron).await.unwrap().unwrap());
    // One that is no more, and one that has been out of use.
    silent_for(dir.path(), 700);
    drop(take(dir.path(), "b.yaml", Lifetime::UntilNextCron).await.unwrap().unwrap());
    std::fs::remove_file(dir.path().join("b.yaml")).unwrap();
    drop(take(dir.path(), "a.yaml", Lifetime::UntilNextCron).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_new_version_of_an_application_follows_the_one_before() {
    let dir = folder();
    for version in ["1", "2"] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        std::fs::write(dir.path().join(version).join("config.yaml"), "").unwrap();
    }
    let first = take(dir.path(), "1/config.yaml", Lifetime::UntilStopped).await.unwrap().unwrap();
    let error = take(dir.path(), "2/config.yaml", Lifetime::UntilStopped).await.unwrap_err();
    assert!(matches!(error, LockError::OtherConfiguration { .. }), "not beside it: {error}");
    drop(first);
    assert!(take(dir.path(), "2/config.yaml", Lifetime::UntilStopped).await.unwrap().is_some());
}

#[tokio::test]
async fn a_stuck_supervisor_that_cannot_be_seen_is_reported() {
    let dir = folder();
    let _first = take(dir.path(), "a.yaml", Lifetime::UntilStopped).await.unwrap().unwrap();
    // A process of another host, or of another container.
    rewrite(dir.path(), |record| record.process.started_at -= 3600);
    silent_for(dir.path(), 130);
    let text = take(dir.path(), "a.yaml", Lifetime::UntilNextCron).await.unwrap_err().to_string();
    let pid = std::process::id();
    assert!(text.contains(&format!("(process {pid}) has done nothing for 1")), "{text}");
    assert!(text.contains("is not replaced: its process cannot be seen from here"), "{text}");
}

#[tokio::test]
async fn a_supervisor_that_makes_progress_again_is_not_stuck() {
    let dir = folder();
    let first = take(dir.path(), "a.yaml", Lifetime::UntilStopped).await.unwrap().unwrap();
    // As after the machine was suspended.
    silent_for(dir.path(), 1000);
    let goes_on = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        first.progress().note();
    };
    let (second, ()) = tokio::join!(take(dir.path(), "a.yaml", Lifetime::UntilNextCron), goes_on);
    assert!(second.unwrap().is_none());
}

#[tokio::test]
async fn a_second_supervisor_leaves_while_the_first_runs() {
    let dir = tempfile::tempdir().unwrap();
    let take = || take(dir.path(), "config.yaml", Lifetime::UntilStopped);
    let first = take().await.unwrap();
    assert!(first.is_some());
    assert!(take().await.unwrap().is_none());
    let status = supervisor_status(dir.path()).unwrap();
    assert_eq!((status.running, status.pid), (true, Some(std::process::id())));

    drop(first);
    let status = || supervisor_status(dir.path()).unwrap();
    eventually("the lock is free", || status() == SupervisorStatus::default());
    assert!(take().await.unwrap().is_some());
}

#[test]
fn reading_the_status_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("var");
    assert_eq!(supervisor_status(&state_dir).unwrap(), SupervisorStatus::default());
    assert!(!state_dir.exists());
}

#[tokio::test]
async fn a_test_of_the_lock_is_not_mistaken_for_a_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let take = || take(dir.path(), "config.yaml", Lifetime::UntilStopped);
    drop(take().await.unwrap());
    let looking = state_files::open(&dir.path().join(FILE), Mode::Read).unwrap();
    looking.try_lock_shared().unwrap();
    let (lock, ()) = tokio::join!(take(), async move {
        tokio::time::sleep(Duration::from_millis(40)).await;
        drop(looking);
    });
    assert!(lock.unwrap().is_some());
}

#[tokio::test]
async fn the_error_for_a_folder_in_place_of_the_lock_names_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(FILE)).unwrap();
    let error = take(dir.path(), "config.yaml", Lifetime::UntilNextCron).await.unwrap_err().to_string();
    assert!(error.ends_with("supervisor.lock is not a regular file; move it away"), "{error}");
}

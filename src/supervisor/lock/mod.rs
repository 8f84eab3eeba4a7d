//! One supervisor per state directory: the one that holds the lock on `supervisor.lock`.
//!
//! The file also records which process that is, its configuration, and, under cron, when it ends. The file's modification
//! time is when that supervisor last made progress. From these a second supervisor knows whether to [wait, to leave, to
//! refuse, or to replace](contender) the first.

mod contender;
mod lifetime;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use contender::check_owner;
#[cfg(test)]
pub(super) use lifetime::CRON_LIFETIME;
pub(crate) use record::{SupervisorStatus, supervisor_status};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use thiserror::Error;

use crate::state_files::StateError;
use contender::Contender;

/// How long a supervisor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Until the end of the minute: cron starts the next one.
    UntilNextCron,
    /// Until it is stopped.
    UntilStopped,
    /// For one tick, of a request. Another one that runs is not waited for, unless it is stuck.
    OneTick,
}

/// The right to supervise a state directory. Released when it is dropped, and when the process ends.
#[derive(Debug)]
pub(crate) struct SupervisorLock {
    file: Arc<File>,
    ends_at: Option<DateTime<Utc>>,
}

/// There is no telling whether a supervisor runs, or this one must not run.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    /// The lock's file could not be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Two configurations would take each other's workers for their own.
    #[error(
        "{} is in use by another configuration, {}: give {} a `state_dir` of its own",
        state_dir.display(), other.display(), ours.display()
    )]
    OtherConfiguration {
        /// The state directory of both.
        state_dir: PathBuf,
        /// The configuration of the supervisor that runs there, or ran a short while ago.
        other: PathBuf,
        /// This configuration.
        ours: PathBuf,
    },
    /// The supervisor that holds the lock is stuck, and could not be replaced.
    #[error("the supervisor in {} (process {pid}) has done nothing for {} s, and is not replaced: {why}", state_dir.display(), silent.as_secs())]
    Stuck {
        /// Its state directory.
        state_dir: PathBuf,
        /// Its process.
        pid: u32,
        /// How long ago it last made progress.
        silent: Duration,
        /// Why it is not replaced, and what to do.
        why: String,
    },
}

impl SupervisorLock {
    /// How much longer this supervisor is to run. `None`: until it is stopped.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.ends_at.map(|end| (end - Utc::now()).to_std().unwrap_or_default())
    }

    /// Takes the lock. `None` if another supervisor runs and this one is not needed. Waits for one that is about to end;
    /// kills and replaces one that is stuck.
    pub(super) async fn take(state_dir: &Path, config: &Path, lifetime: Lifetime) -> Result<Option<Self>, LockError> {
        let config = config.canonicalize().unwrap_or_else(|_| config.to_owned());
        Contender { state_dir, config: &config, lifetime }.take().await
    }

    /// Tells other supervisors that this one makes progress.
    pub(super) fn progress(&self) -> Progress {
        Progress(Arc::downgrade(&self.file))
    }
}

/// Tells other supervisors that the holder of a lock makes progress. Does nothing once the lock is released, or if there
/// never was one.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Weak<File>);

impl Progress {
    /// Sets the modification time of the lock's file to now.
    pub(super) fn note(&self) {
        let Some(file) = self.0.upgrade() else { return };
        // It hardly can fail. If it does, the supervisor looks stuck to the next one, which reports that.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "the supervisor could not note that it makes progress");
        }
    }
}

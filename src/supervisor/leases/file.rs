//! The lease file beside a slot's file: when the lease expires.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::super::process::ProcessId;
use super::super::slots::Slots;
use crate::state_files::{self, StateError};

/// Begins the names of temporary files, see [`state_files::replace`].
pub(in crate::supervisor) const TEMPORARY_PREFIX: &str = ".lease-";

/// A lease on a cluster slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// By this host's clock, counted from before the claim was made.
    #[serde(rename = "until")]
    pub expires_at: SystemTime,
    /// The worker that has been asked to finish. If it was asked twice, it would stop at once.
    #[serde(default, rename = "asked")]
    pub asked_to_finish: Option<ProcessId>,
}

impl Lease {
    /// How long the lease still lasts; zero once it has expired.
    pub(super) fn remaining(&self) -> Duration {
        self.expires_at.duration_since(SystemTime::now()).unwrap_or_default()
    }
}

/// Where a slot's lease is kept.
pub(super) struct LeaseFile {
    dir: PathBuf,
    path: PathBuf,
}

impl LeaseFile {
    pub(super) fn of(slots: &Slots, definition: &str, slot: u32) -> Self {
        let path = slots.path(definition, slot).with_added_extension("lease");
        Self { dir: slots.dir_of(definition), path }
    }

    /// The lease. `None` if there is none, or it cannot be read.
    pub(super) fn read(&self) -> Option<Lease> {
        serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()
    }

    pub(super) fn write(&self, lease: &Lease) -> Result<(), StateError> {
        state_files::create_dir(&self.dir)?;
        let written = serde_json::to_vec(lease).map_err(Into::into);
        let written = written.and_then(|json| state_files::replace(&self.path, TEMPORARY_PREFIX, &json));
        written.map_err(StateError::io(&self.path, "written"))
    }

    pub(super) fn remove(&self) {
        // What stays is overwritten with the next lease, and until then read only if a worker runs in this slot.
        let _ = std::fs::remove_file(&self.path);
    }
}

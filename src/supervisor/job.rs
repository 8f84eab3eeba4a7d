//! The processes of scheduled jobs. They hold slots as workers do, under `jobs/` in the state directory, and outlive the
//! supervisor that has started them.
//!
//! A run keeps its id in a file beside its slot, as a worker notes what it has in flight. The file of a run that was killed
//! stays, and tells which run it was.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use tokio::task::JoinHandle;

use super::headroom::JobRoom;
use super::recovery::{DeadWorker, Role, end_leftovers, of_dead_processes, of_dead_processes_in};
use super::slots::{LiveSlot, SlotClaim, Slots};
use super::spawn::{HeldSlot, JOB, SpawnError, adopt_among, spawn};
use crate::config::WorkerDefinition;
use crate::state_files::StateError;

/// The slots of the jobs of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct JobSlots {
    slots: Slots,
    /// Those of the workers beside them.
    workers: Slots,
    /// What a process prints that runs a job; what the job prints is in the log.
    log: PathBuf,
}

/// Waits for a process that runs a job. `None` if its end could not be observed.
pub(crate) type JobProcess = JoinHandle<Option<ExitStatus>>;

/// A run of a job whose process was killed.
pub(crate) struct KilledRun {
    /// The job's name.
    pub job: String,
    /// What the run has written beside its slot.
    pub id: String,
    slot: u32,
    process: DeadWorker,
    file: PathBuf,
}

impl JobSlots {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { slots: Slots::of_jobs(state_dir), workers: Slots::new(state_dir), log: state_dir.join("log/jobs.log") }
    }

    /// What a process prints that runs a job.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Claims a slot of a job; `None` if it is occupied, or a run of the job was killed. What that one has left running is
    /// ended first.
    pub(crate) fn claim(&self, job: &str, slot: u32) -> Result<Option<SlotClaim>, StateError> {
        let claim = self.slots.claim(job, slot)?;
        Ok(claim.filter(|_| of_dead_processes_in(&self.slots, job).is_empty()))
    }

    /// Claims the slot of a killed run, to clean up after it: meanwhile nothing runs in it. `None` if something else does that.
    pub(crate) fn claim_killed(&self, killed: &KilledRun) -> Result<Option<SlotClaim>, StateError> {
        let claim = self.slots.claim(&killed.job, killed.slot)?;
        Ok(claim.filter(|_| killed.file.exists()))
    }

    /// The room for further jobs, beside the workers of these definitions.
    pub(crate) fn room(&self, workers: &[WorkerDefinition]) -> JobRoom {
        JobRoom::look(workers, &self.workers, &self.slots)
    }

    /// The runs of a job that go on.
    pub(crate) fn live(&self, job: &str) -> Result<Vec<LiveSlot>, StateError> {
        self.slots.live(job)
    }

    /// Starts a process in a slot. What is returned waits for its end; it need not be awaited.
    pub(crate) fn start(&self, claim: SlotClaim, command: &[OsString], dir: &Path) -> Result<JobProcess, SpawnError> {
        let spawned = spawn(claim, command, dir, &self.log, JOB)?;
        if let Some(error) = spawned.unrecorded {
            tracing::warn!(pid = spawned.pid, %error, "a job runs, and its process could not be written down");
        }
        Ok(spawned.ended)
    }

    /// In a process that was started in a slot: takes it over.
    pub(crate) fn adopt(&self) -> Option<HeldSlot> {
        adopt_among(&self.slots)
    }

    /// Takes a claimed slot for this very process.
    pub(crate) fn take(&self, claim: SlotClaim) -> Result<HeldSlot, StateError> {
        HeldSlot::take(&self.slots, claim, &std::env::args_os().collect::<Vec<_>>())
    }

    /// The runs that were killed.
    pub(crate) fn killed_runs(&self) -> Vec<KilledRun> {
        let files = of_dead_processes(&self.slots).into_iter();
        let runs = files.map(|(process, slot, file)| {
            let job = file.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            KilledRun { job, id: fs::read_to_string(&file).unwrap_or_default(), slot, process, file }
        });
        runs.collect()
    }
}

impl KilledRun {
    /// Ends what the run has left running. `false` if that does not end.
    pub(crate) async fn end_leftovers(&self) -> bool {
        end_leftovers(self.process.clone(), Role::Job).await
    }

    /// Did it hold the job's first slot? Runs that have the lease hold that one.
    pub(crate) fn is_first(&self) -> bool {
        self.slot == 0
    }

    /// Removes what it has left beside its slot.
    pub(crate) fn forget(&self) -> io::Result<()> {
        fs::remove_file(&self.file)
    }
}

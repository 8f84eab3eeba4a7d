//! The last step of a tick: starts workers in free slots.

use std::ffi::OsString;
use std::path::PathBuf;

use super::autoscale::PlannedWorkers;
use super::command::command_line;
use super::leases::{Leases, is_shared};
use super::slots::Slots;
use super::spawn::{SpawnError, Spawned, spawn, worker_log};
use super::{Started, TickFailure};
use crate::config::WorkerDefinition;
use crate::state_files::StateError;

/// Starts workers.
pub(super) struct Launcher {
    pub slots: Slots,
    /// Where other programs run as workers: the configuration's folder.
    pub dir: PathBuf,
    /// Where this program's own workers run.
    pub consume_dir: PathBuf,
    pub state_dir: PathBuf,
    /// The command line of this program's own worker, without transports and options.
    pub consume: Vec<OsString>,
}

/// What came of starting a definition's workers.
pub(super) struct Launched {
    pub started: Vec<Started>,
    /// The first failure; the others are likely the same.
    pub failure: Option<TickFailure>,
    /// The system gives this user no further process now.
    pub out_of_processes: bool,
}

/// Why no worker was started in a slot.
enum LaunchError {
    /// The slot's file cannot be used. The next slot may do.
    Slot(StateError),
    /// The cache does not answer.
    Lease(String),
    Spawn(SpawnError),
}

impl Launcher {
    /// Starts as many workers as planned, in the lowest free slots.
    pub(super) async fn launch(
        &self,
        definition: &WorkerDefinition,
        planned: &PlannedWorkers,
        leases: &Leases,
    ) -> Launched {
        let command = command_line(definition, &self.consume);
        let mut launched = Launched { started: Vec::new(), failure: None, out_of_processes: false };
        let fail = |launched: &mut Launched, message: String| {
            launched.failure.get_or_insert_with(|| TickFailure::new(definition, message));
        };
        // Of the slots that hosts share, only as many as are wanted on all of them together: two hosts that see the
        // same need then compete for the same slots, instead of each satisfying it.
        let slots = if is_shared(definition) { planned.desired } else { definition.autoscale.max };
        for slot in 0..slots {
            if launched.started.len() >= planned.start as usize {
                break;
            }
            match self.start(definition, slot, &command, leases).await {
                Ok(None) => {}
                Ok(Some(Spawned { pid, unrecorded, ended: _ })) => {
                    launched.started.push(Started { definition: definition.name.clone(), slot, pid });
                    if let Some(error) = unrecorded {
                        fail(&mut launched, format!("worker {pid} runs in slot {slot}, unrecorded: {error}"));
                    }
                }
                Err(LaunchError::Slot(error)) => fail(&mut launched, error.to_string()),
                // Other slots would fail for the same reason.
                Err(LaunchError::Lease(why)) => {
                    fail(&mut launched, format!("cluster slot {slot} could not be leased: {why}"));
                    break;
                }
                Err(LaunchError::Spawn(error)) => {
                    launched.out_of_processes = error.is_refusal();
                    let started = match launched.started.len() {
                        0 => String::new(),
                        started => format!("{started} of {} workers started; ", planned.start),
                    };
                    fail(&mut launched, format!("{started}{error}"));
                    break;
                }
            }
        }
        launched
    }

    /// Starts a worker in this slot. `None` if the slot is occupied, perhaps since a moment ago and by another
    /// supervisor, or is leased to another host.
    async fn start(
        &self,
        definition: &WorkerDefinition,
        slot: u32,
        command: &[OsString],
        leases: &Leases,
    ) -> Result<Option<Spawned>, LaunchError> {
        let claim = self.slots.claim(&definition.name, slot).map_err(LaunchError::Slot)?;
        let Some(claim) = claim else { return Ok(None) };
        if is_shared(definition) && !leases.acquire(definition, slot).await.map_err(LaunchError::Lease)? {
            return Ok(None);
        }
        let log = worker_log(&self.state_dir, &definition.name);
        let dir = if definition.command.is_none() { &self.consume_dir } else { &self.dir };
        spawn(claim, command, dir, &log, "worker").map(Some).map_err(LaunchError::Spawn)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fixture::{Pending, Stage, eventually, kill_dead, names, tick};
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn max_holds_under_fifty_overlapping_supervisors() {
        let stage = Stage::new().sleepers("mail", &[], 4, 4);
        // Five processes with five each, and twenty-five here; none of them asks for `supervisor.lock`.
        let helpers: Vec<_> = (0..5).map(|_| stage.helper("tick four").spawn().unwrap()).collect();
        let ticks = (0..25).map(|_| {
            let supervisor = stage.supervisor();
            tokio::spawn(async move { tick(&supervisor).await })
        });
        for tick in ticks.collect::<Vec<_>>() {
            let report = tick.await.unwrap();
            assert_eq!(report.failures, []);
        }
        for mut helper in helpers {
            assert!(helper.wait().unwrap().success());
        }
        eventually("all have started", || stage.lines("started").len() >= 4);
        // One more tick finds nothing to do, and had a fifth worker been started, it would have had the time to say so.
        assert_eq!(tick(&stage.supervisor()).await.started, []);
        let mut started: Vec<u32> = stage.lines("started").iter().map(|pid| pid.parse().unwrap()).collect();
        let mut live = stage.pids();
        started.sort_unstable();
        live.sort_unstable();
        assert_eq!(started, live, "those that were ever started are the four in the slots");
        assert_eq!(live.len(), 4);
    }

    #[tokio::test]
    async fn a_killed_worker_is_replaced_by_the_next_tick() {
        let stage = Stage::new().sleepers("mail", &[], 3, 3);
        let supervisor = stage.supervisor();
        assert_eq!(tick(&supervisor).await.started.len(), 3);
        let killed = stage.live()[1].record.clone().unwrap();
        kill_dead(killed.process.pid);
        eventually("the slot is free", || stage.live().len() == 2);
        let started = tick(&supervisor).await.started;
        assert_eq!(started.len(), 1);
        assert_eq!((started[0].slot, started[0].pid == killed.process.pid), (1, false));
        assert_eq!(tick(&supervisor).await.started, []);
    }

    #[tokio::test]
    async fn a_missing_program_does_not_delay_the_others_and_is_not_promised_for() {
        let mut stage = Stage::new()
            .transport("one", Pending::Are(0))
            .transport("two", Pending::Are(0))
            .sleepers("a", &["one"], 2, 5)
            .sleepers("b", &["two"], 1, 5);
        stage.definitions[0].command = Some(vec!["/no/such/program".into()]);
        let report = tick(&stage.supervisor()).await;
        assert_eq!(report.failures.len(), 1);
        let TickFailure { definition, message } = &report.failures[0];
        assert_eq!(definition, "a");
        assert!(message.starts_with("the program \"/no/such/program\" could not be started in /"), "{message}");
        eventually("only the other one runs", || stage.live().iter().all(|slot| slot.definition == "b"));
        assert_eq!(stage.live().len(), 1);
        assert_eq!(stage.promised(), names(&["two"]));
    }

    #[tokio::test]
    async fn a_slot_that_is_not_a_file_affects_only_that_slot() {
        let stage = Stage::new().sleepers("mail", &[], 2, 3);
        fs::create_dir_all(stage.state_dir().join("slots/mail/0")).unwrap();
        let report = tick(&stage.supervisor()).await;
        assert_eq!(report.started.iter().map(|started| started.slot).collect::<Vec<_>>(), [1, 2]);
        assert!(report.failures[0].message.ends_with("slots/mail/0 is not a regular file; move it away"));
    }
}

//! `minutely cron run`: run a job now. The scheduler starts each run with it, too.

use super::super::output;
use super::super::signals::Signals;
use super::super::{App, End, Failure, Result};
use super::named;
use crate::config::Overlap;
use crate::schedule::{Runner, SharedState};
use crate::supervisor::{HeldSlot, JobSlots, host_owner};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Waits for the job's end, and shows what it prints. Exit code 0: it went well, or skipped itself (exit code 75). 1: it failed, or \
runs already. When it is due next does not change.")]
pub(in super::super) struct Args {
    /// The job's name
    #[arg(value_name = "JOB")]
    job: String,
    /// What the scheduler has taken for this run
    #[arg(long, hide = true)]
    taken: Option<String>,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let job = named(app, &args.job)?;
    let state_dir = &app.config.state_dir;
    let shared = SharedState::new(app.cache.clone(), host_owner(state_dir)?);
    let slots = JobSlots::new(state_dir);
    let adopted = slots.adopt().filter(|slot| slot.name().rsplit_once('/').is_some_and(|(of, _)| of == job.name()));
    let was_started = adopted.is_some();
    let slot = match adopted {
        Some(slot) => slot,
        None => {
            let slot = free_slot(&slots, job.name(), job.config.overlap)?;
            if job.config.overlap != Overlap::Allow && !shared.lease(job).await? {
                return Err(Failure::Failed(format!("job {} runs on another host already", job.name())));
            }
            slot
        }
    };
    let mut signals = Signals::listen()?;
    let runner = Runner {
        job,
        shared: &shared,
        bus: &app.bus,
        dir: &app.config.dir,
        state_dir,
        taken: args.taken.as_deref(),
        reports: was_started,
    };
    let show = |line: &str| {
        if !was_started {
            output::line(line);
        }
    };
    let ended = runner.run(slot, signals.next(), show).await;
    // The failure of one that was started by the scheduler is told by its report.
    Ok(if was_started || ended.is_well() { End::Well } else { End::Failed })
}

fn free_slot(slots: &JobSlots, job: &str, overlap: Overlap) -> Result<HeldSlot> {
    let last = if overlap == Overlap::Allow { crate::schedule::MAX_AT_ONCE } else { 1 };
    for slot in 0..last {
        if let Some(claim) = slots.claim(job, slot)? {
            return Ok(slots.take(claim)?);
        }
    }
    let pid = slots.live(job)?.into_iter().find_map(|slot| slot.record).map(|record| record.process.pid);
    let pid = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    Err(Failure::Failed(format!("job {job} runs already{pid}")))
}

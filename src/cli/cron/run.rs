//! `minutely cron run`: run a job now. The scheduler starts each run with it, too.

use chrono::Utc;

use super::super::printer::Printer;
use super::super::signals::Signals;
use super::super::{App, End, Failure, Result};
use super::named;
use crate::schedule::{Job, Outcome, Runner, SharedState, clean_up_job};
use crate::supervisor::{HeldSlot, JobSlots, host_owner};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Waits until the job ends, and shows what it prints. Exit code 0: it succeeded, or skipped itself (exit code 75). 1: \
it failed, or runs already. When it is due next does not change.")]
pub(in super::super) struct Args {
    /// The job's name
    #[arg(value_name = "JOB")]
    pub(in super::super) job: String,
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
            clean_up_job(job, &shared, &slots, state_dir, Utc::now()).await;
            let slot = free_slot(&slots, job)?;
            if job.has_lease() && !shared.lease(job).await? {
                return Err(Failure::Failed(format!("job {} runs on another host already", job.name())));
            }
            slot
        }
    };
    let mut signals = Signals::listen()?;
    let mark = slot.mark().to_owned();
    let runner = Runner {
        job,
        shared: &shared,
        bus: &app.bus,
        functions: &app.functions,
        dir: &app.config.dir,
        state_dir,
        taken: args.taken.as_deref(),
        mark: &mark,
        reports: was_started,
        process_goes_on: false,
    };
    let printer = (!was_started).then(Printer::start);
    let show = |line: &str| {
        if let Some(printer) = &printer {
            printer.line(line);
        }
    };
    let ended = runner.run(slot, signals.next(), show).await;
    if ended.outcome == Outcome::Skipped {
        show("skipped itself");
    }
    if let Some(printer) = printer {
        tokio::select! {
            () = printer.finish() => {}
            () = signals.next() => {}
        }
    }
    if ended.is_stuck {
        // The runtime would wait for it. The run is recorded, and its slot is free.
        tracing::error!(job = job.name(), "its function computes on, and ends with this process");
        std::process::exit(i32::from(!was_started));
    }
    // The failure of one that was started by the scheduler is told by its report.
    Ok(if was_started || ended.is_well() { End::Well } else { End::Failed })
}

fn free_slot(slots: &JobSlots, job: &Job) -> Result<HeldSlot> {
    for slot in 0..job.slots() {
        if let Some(claim) = slots.claim(job.name(), slot)? {
            return Ok(slots.take(claim)?);
        }
    }
    let pid = slots.live(job.name())?.into_iter().find_map(|slot| slot.record).map(|record| record.process.pid);
    let pid = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    Err(Failure::Failed(format!("job {} runs already{pid}", job.name())))
}

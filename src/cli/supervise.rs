//! `minutely supervise`: the same as `cron`, until it is stopped.

use super::cron::{at_work, finish_removed, heartbeat, scheduler, supervisor, with_jobs};
use super::signals::Signals;
use super::{App, End, Failure, GlobalArgs, Result};
use crate::app::explain;
use crate::config::Trigger;
use crate::supervisor::Lifetime;

/// What this command is called.
pub(super) const NAMES: &[&str] = &["supervise"];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Reports on standard error which workers are started and why, and what goes wrong.

SIGTERM, SIGINT (Ctrl-C) and SIGQUIT ask the workers to finish their current messages, and wait for them. A second \
signal ends the waiting. Running jobs are left alone. If another supervisor is at work, this command exits with 0 at \
once.")]
pub(super) struct Args {}

pub(super) async fn run(app: &App, _: &Args, global: &GlobalArgs) -> Result<End> {
    let supervisor = supervisor(app)?;
    let mut signals = Signals::listen()?;
    let mut scheduler = scheduler(app, Trigger::Cli, NAMES, global)?;
    finish_removed(app, &scheduler).await;
    let _lock = match at_work(app, &supervisor, Lifetime::UntilStopped, &mut signals).await {
        Ok(lock) => lock,
        Err(end) => return Ok(end),
    };
    tracing::info!(
        definitions = app.config.workers.len(),
        jobs = app.jobs.len(),
        "supervising; SIGTERM or Ctrl-C stops"
    );
    let heartbeat = heartbeat::of_supervise(app);
    heartbeat.during(with_jobs(&mut scheduler, supervisor.supervise(signals.next(), explain))).await;
    heartbeat.stop().await;
    tracing::info!("waiting for the workers to finish their current messages");
    let left = supervisor.stop_workers(signals.next()).await?;
    if !left.is_empty() {
        let workers = if left.len() == 1 { "a worker was".into() } else { format!("{} workers were", left.len()) };
        return Err(Failure::Failed(format!("stopped while {workers} still at work")));
    }
    tracing::info!("all workers have finished");
    Ok(End::Well)
}

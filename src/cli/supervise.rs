//! `minutely supervise`: the same as `cron`, until it is stopped.

use super::cron::{at_work, supervisor, tell};
use super::signals::Signals;
use super::{App, End, Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
SIGTERM, SIGINT (Ctrl-C) and SIGQUIT ask the workers to finish what they have in hand and wait for them; a second signal
ends the waiting. One that finds another supervisor at work exits with 0 at once, as `minutely cron` does.")]
pub(super) struct Args {}

pub(super) async fn run(app: &App, _: &Args) -> Result<End> {
    let supervisor = supervisor(app)?;
    let mut signals = Signals::listen()?;
    let Some(_lock) = at_work(app, &supervisor).await? else { return Ok(End::Well) };
    tracing::info!(definitions = app.config.workers.len(), "supervising; Ctrl-C stops");
    supervisor.supervise(signals.next(), tell).await;
    tracing::info!("waiting for the workers to finish what they have in hand");
    let left = supervisor.stop_workers(signals.next()).await?;
    if !left.is_empty() {
        return Err(Failure::Failed(format!("stopped while {} workers were still at work", left.len())));
    }
    tracing::info!("all workers have finished");
    Ok(End::Well)
}

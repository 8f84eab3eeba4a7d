//! `minutely supervise`: the same as `cron`, until it is stopped.

use super::cron::{Told, at_work, supervisor};
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
    let Some(_lock) = at_work(app)? else { return Ok(End::Well) };
    let mut told = Told::default();
    tracing::info!(definitions = app.config.workers.len(), "supervising; Ctrl-C stops");
    tokio::select! {
        () = supervisor.run(None, |report| told.tell(report)) => {}
        () = signals.next() => {}
    }
    tracing::info!("waiting for the workers to finish what they have in hand");
    tokio::select! {
        () = supervisor.shut_down() => tracing::info!("all workers have ended"),
        () = signals.next() => return Err(Failure::Failed("stopped while workers were still at work".to_owned())),
    }
    Ok(End::Well)
}

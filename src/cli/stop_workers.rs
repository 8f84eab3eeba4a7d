//! `minutely stop-workers`: let the running workers finish and exit, after a deployment for example.

use super::{App, End, Result, output};
use crate::supervisor::check_owner;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The running workers finish their current messages and exit. Supervisors keep running, and start new workers with the \
new code and configuration. Workers that run another program (`command`) do not see this request.")]
pub(super) struct Args {}

pub(super) async fn run(app: &App, _: &Args) -> Result<End> {
    check_owner(&app.config.state_dir, &app.config.file)?;
    app.stop_broadcast.send().await?;
    output::line("The running workers were asked to stop.");
    Ok(End::Well)
}

//! `minutely setup`: create what the transports need.

use super::{App, End, Result, chosen, output};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Transports with auto_setup (the default) do this by themselves when they are first used. What exists is not changed.")]
pub(super) struct Args {
    /// The transports; all if none is named
    #[arg(value_name = "TRANSPORT")]
    transports: Vec<String>,
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let mut end = End::Well;
    for name in chosen(app, &args.transports)? {
        let transport = app.transports.target(&name)?;
        let Some(setting_up) = &transport.setting_up else {
            output::line(format_args!("{name}: needs nothing"));
            continue;
        };
        match setting_up.setup().await {
            Ok(()) => output::line(format_args!("{name}: ready")),
            Err(error) => {
                output::error(&error.to_string());
                end = End::Failed;
            }
        }
    }
    // A cache in files has no name in the configuration, and needs nothing.
    if args.transports.is_empty() && app.config.cache.is_some() {
        match app.cache.set_up().await {
            Ok(()) => output::line("cache: ready"),
            Err(error) => {
                output::error(&error.to_string());
                end = End::Failed;
            }
        }
    }
    Ok(end)
}

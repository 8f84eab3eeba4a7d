//! `minutely crontab`: the line with which cron starts this installation. Printed, installed, removed, checked; and the lines
//! of an existing crontab as entries for `cron:`.

mod block;
mod calls;
mod check;
mod concerns;
mod import;
mod install;
mod program;
mod table;
mod yaml;

use std::path::Path;

use serde_json::json;

use super::arguments::called_before;
use super::installation::Installation;
use super::output::{self, Format, FormatArg};
use super::{App, Application, End, Failure, GlobalArgs, Result, build, problem_text};
use program::Crontab;

/// What this command is called.
pub(super) const NAMES: &[&str] = &["crontab"];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Without options: prints the line for this installation, as `crontab -e` takes it. What cron will lack is told as warnings: \
variables of this shell that the configuration needs, and programs that are not in cron's PATH.

--install puts the line between two marker lines, which name the configuration's file. It may be run again at any time, for \
example by each deployment: it replaces what is between its own markers, and leaves everything else as it is, byte for byte. \
--remove takes line and markers out again.

--check looks for the line, also for one that was added by hand, and in /etc/crontab and /etc/cron.d. Exit code 0: it is there \
once, fits this installation, and cron has run it within the last three minutes. 1: not so; what to do is printed.

--import prints YAML to be put into config.yaml. What cannot be translated is left in it as a comment, with the reason.
  minutely crontab --install
  minutely crontab --import > jobs.yaml")]
pub(super) struct Args {
    /// Add the line to the crontab, or bring the one that is there up to date
    #[arg(long, group = "action")]
    install: bool,
    /// Take the line out of the crontab again
    #[arg(long, group = "action")]
    remove: bool,
    /// Say whether the line is in the crontab, and whether cron runs it
    #[arg(long, group = "action")]
    check: bool,
    /// Print the commands of a crontab as entries for `cron:` in config.yaml: of the user's own crontab, of a file, or of
    /// standard input (`-`)
    #[arg(long, group = "action", value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    import: Option<String>,
    /// With --import: the crontab has a user before each command, as /etc/crontab has
    #[arg(long, requires = "import")]
    system: bool,
    /// Whose crontab; root may name others
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// `default_file` is the configuration that is read without `--config`.
pub(super) async fn run(
    app: Application,
    default_file: Option<&Path>,
    args: &Args,
    global: &GlobalArgs,
    advice: &str,
) -> Result<End> {
    if args.user.as_deref().is_some_and(|user| user.is_empty() || user.starts_with('-')) {
        return Err(Failure::Usage("--user must be the name of a user".to_owned()));
    }
    let crontab = Crontab::of(args.user.as_deref(), called_before(NAMES, global));
    let format = args.format.format;
    if let Some(file) = &args.import {
        return import::run(&crontab, file, args.system, format).await;
    }
    let installation = Installation::find(&app, default_file, NAMES, global)?;
    // The line of an installation whose configuration is gone can still be removed.
    if args.remove {
        return install::remove(&crontab, &installation, format).await;
    }
    let app = build(app, advice).map_err(|problems| Failure::Usage(problem_text(&problems)))?;
    if args.install {
        return install::install(&crontab, &app, &installation, format).await;
    }
    if args.check {
        return check::run(&crontab, &app, &installation, format).await;
    }
    let line = installation.crontab_line();
    match format {
        Format::Json => output::json(&json!({ "line": line }))?,
        Format::Text => output::line(&line),
    }
    warn(&app, &installation, &crontab, b"");
    Ok(End::Well)
}

/// Tells what cron will lack. `crontab` is the text above the line.
fn warn(app: &App, installation: &Installation, owner: &Crontab, crontab: &[u8]) {
    for concern in concerns::of(app, installation, owner, crontab) {
        output::warning(&concern);
    }
}

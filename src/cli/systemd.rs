//! `minutely systemd`: the units with which systemd starts this installation.

use std::path::Path;

use super::installation::Installation;
use super::output;
use super::{Application, End, Failure, GlobalArgs, Result};

/// What this command is called.
pub(super) const NAMES: &[&str] = &["systemd"];

/// A name that fits, with what follows it, a file's name.
const LONGEST_NAME: usize = 100;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
By default a timer, which starts `minutely cron` each minute; what is running survives changes and restarts of the units. \
With --supervise a service that runs all the time, and whose workers and jobs end with it.

Each unit stands under a comment with the file that it belongs into; --only prints one of them alone:
  minutely systemd --only=timer > ~/.config/systemd/user/minutely-app.timer

Do not use it beside the crontab line: one of them is enough.")]
pub(super) struct Args {
    /// A service that supervises all the time, in place of a timer
    #[arg(long)]
    supervise: bool,
    /// The units' name, without `.service`. By default made from the program and its folder
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print this unit alone
    #[arg(long, value_enum, value_name = "UNIT")]
    only: Option<Unit>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// What is started
    Service,
    /// When it is started
    Timer,
}

/// `default_file` is the configuration that is read without `--config`.
pub(super) fn run(app: &Application, default_file: Option<&Path>, args: &Args, global: &GlobalArgs) -> Result<End> {
    if args.supervise && args.only == Some(Unit::Timer) {
        return Err(Failure::Usage("--supervise needs no timer".to_owned()));
    }
    let installation = Installation::find(app, default_file, NAMES, global)?;
    for path in [&installation.dir, &installation.program] {
        if path.to_string_lossy().ends_with(['\\', ' ']) {
            let message = format!("{path:?} ends with a character that systemd leaves out there: rename it");
            return Err(Failure::Usage(message));
        }
    }
    let name = match &args.name {
        Some(name) if !is_name(name) => {
            let message = "--name must be 1 to 100 letters, digits and characters of : _ . - (and no unit's ending)";
            return Err(Failure::Usage(message.to_owned()));
        }
        Some(name) => name.clone(),
        None => made_name(&installation),
    };
    let mut units = vec![(Unit::Service, "service", service(&installation, args.supervise))];
    if !args.supervise {
        units.push((Unit::Timer, "timer", timer(&installation)));
    }
    if let Some(only) = args.only {
        if let Some((_, _, text)) = units.iter().find(|(unit, _, _)| *unit == only) {
            output::line(text.trim_end());
        }
        return Ok(End::Well);
    }
    for (_, kind, text) in &units {
        output::line(format_args!("# ~/.config/systemd/user/{name}.{kind}\n{text}"));
    }
    let started = if args.supervise { "service" } else { "timer" };
    output::line(format_args!(
        "# Then:\n#   systemctl --user daemon-reload && systemctl --user enable --now {name}.{started}\n\
         #   loginctl enable-linger    # so that it runs while nobody is logged in, too\n\
         # What it prints: journalctl --user -u {name}"
    ));
    Ok(End::Well)
}

fn service(installation: &Installation, supervise: bool) -> String {
    let (what, command) = if supervise { ("workers and jobs", "supervise") } else { ("one minute", "cron") };
    let head = format!(
        "[Unit]\nDescription=minutely, {what}: {dir}\n\n[Service]\n",
        dir = percent(&installation.config.display().to_string())
    );
    let start = format!(
        "WorkingDirectory={dir}\nExecStart={program}\n",
        dir = percent(&installation.dir.display().to_string()),
        program = exec(installation, command)
    );
    if supervise {
        format!(
            "{head}{start}\
             # One that finds another supervisor at work ends well, and looks again later.\n\
             Restart=always\nRestartSec=10\n\
             # SIGTERM goes to the supervisor alone, which lets the workers finish their current messages.\n\
             KillMode=mixed\nTimeoutStopSec=90\n\n\
             [Install]\nWantedBy=default.target\n"
        )
    } else {
        format!(
            "{head}Type=oneshot\n{start}\
             # Workers and jobs outlive the run that has started them; the next one adopts them.\n\
             KillMode=process\n"
        )
    }
}

fn timer(installation: &Installation) -> String {
    format!(
        "[Unit]\nDescription=minutely, every minute: {config}\n\n\
         [Timer]\nOnCalendar=*-*-* *:*:00\nAccuracySec=1s\n\n\
         [Install]\nWantedBy=timers.target\n",
        config = percent(&installation.config.display().to_string())
    )
}

/// What systemd starts. The program is a path that it takes as it is; arguments may not look like variables.
fn exec(installation: &Installation, command: &str) -> String {
    let arguments = installation.arguments.iter().map(String::as_str).chain([command]);
    let arguments = arguments.map(|argument| quoted(&percent(argument).replace('$', "$$")));
    let program = quoted(&percent(&installation.program.display().to_string()));
    [program].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

/// To systemd a % begins a specifier.
fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

/// A word of a command line, by systemd's rules (`systemd.syntax`).
fn quoted(word: &str) -> String {
    let fits = |c: char| c.is_alphanumeric() || "/_.,:=+@%$-".contains(c);
    if !word.is_empty() && word.chars().all(fits) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', r"\\").replace('"', "\\\""))
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || ":_.-".contains(c);
    let has_ending = [".service", ".timer"].iter().any(|ending| name.ends_with(ending));
    (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(fits) && !has_ending && !name.starts_with(['.', '-'])
}

/// Of the program and its folder, so that several installations of a user have several names.
fn made_name(installation: &Installation) -> String {
    let of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("{}-{}", of(&installation.program), of(&installation.dir));
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '-' }).collect();
    name.trim_matches('-').chars().take(LONGEST_NAME).collect()
}

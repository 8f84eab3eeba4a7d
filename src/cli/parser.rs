//! The program's own parser, and its texts.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Args, FromArgMatches, Subcommand};

use super::arguments::this_program;
use super::command::{Command, GlobalArgs, Kind};
use crate::app::AppBuilder;

/// What the program is for.
const ABOUT: &str = "Run background work from one crontab line: queues, autoscaling workers, retries";

const LONG_ABOUT: &str = "\
Run background work from one crontab line: queues, autoscaling workers, retries.

Cron starts `minutely cron` every minute. It counts the pending messages, starts as many workers as they need, and exits within \
the minute. The workers handle messages and exit by themselves. `minutely dispatch` puts a message on its queue, or handles it \
at once if nothing consumes that queue. `config.yaml` says which messages there are, where they wait and what handles them.";

const AFTER_HELP: &str = "\
First steps, in your application's folder:
  minutely init         write config.yaml, which works as it is, and show what to type next
  minutely dispatch 'App\\Message\\High\\Note' '{\"text\":\"Hello\"}'
                        send a message; as no worker runs yet, it is handled at once
  minutely crontab --install
                        add the line to your crontab, and workers run

Exit codes: 0 success (`alive`: it is running); 1 failure; 2 the arguments or the configuration are wrong; 3 a worker stopped \
because nothing here can handle the pending messages.";

/// The whole command line, for its reference in `docs/commands.md`.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    let (name, version) = ("minutely".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    parser(name, version, Some(Path::new(crate::app::CONFIG_FILE)))
}

/// The command, and the application that has no others.
pub(super) fn parse(
    mut app: AppBuilder,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Command, AppBuilder), clap::Error> {
    let (name, version) = match app.program.take() {
        Some(program) => (program.name, program.version),
        None => (this_program(), format!("(minutely {})", env!("CARGO_PKG_VERSION"))),
    };
    let matches = parser(name, version, app.file()).try_get_matches_from(arguments)?;
    let global = GlobalArgs::from_arg_matches(&matches)?;
    Ok((Command { kind: Kind::from_arg_matches(&matches)?, global }, app.into_whole_program()))
}

/// The program's own parser.
pub(super) fn parser(name: String, version: String, file: Option<&Path>) -> clap::Command {
    // clap keeps static text, and there is one parser in a process.
    let (name, version): (&'static str, &'static str) = (name.leak(), version.leak());
    let parser = clap::Command::new(name)
        .version(version)
        .about(ABOUT)
        .long_about(LONG_ABOUT)
        .after_help(AFTER_HELP)
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true);
    let parser = GlobalArgs::augment_args(parser).next_help_heading(None::<&str>);
    let parser = speaking_of(name, Kind::augment_subcommands(parser));
    match file {
        Some(file) => {
            let file: &'static OsStr = file.as_os_str().to_owned().leak();
            // Not `mut_arg`, which would put the option after all others.
            parser.mut_args(|option| if option.get_id() == "config" { option.default_value(file) } else { option })
        }
        // The configuration is in the program.
        None => parser,
    }
}

/// How people call these commands: the program, and the subcommand they are under.
pub(super) fn called(parent: &clap::Command) -> String {
    let program = this_program();
    if parent.get_name() == program { program } else { format!("{program} {}", parent.get_name()) }
}

/// Help texts name the program that people call.
pub(super) fn speaking_of(name: &str, command: clap::Command) -> clap::Command {
    if name == "minutely" {
        return command;
    }
    let renamed = |text: &StyledStr| text.to_string().replace("minutely ", &format!("{name} "));
    let mut command = command;
    if let Some(text) = command.get_long_about().map(renamed) {
        command = command.long_about(text);
    }
    if let Some(text) = command.get_after_help().map(renamed) {
        command = command.after_help(text);
    }
    let command = command.mut_args(|argument| match argument.get_help().map(renamed) {
        Some(text) => argument.help(text),
        None => argument,
    });
    command.mut_subcommands(|subcommand| speaking_of(name, subcommand))
}

//! The commands, and the options that all have.

use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches, Subcommand};

#[cfg(feature = "encryption")]
use super::key;
use super::parser::{called, speaking_of};
#[cfg(feature = "serve")]
use super::serve;
use super::{
    alive, cgi, config, consume, cron, crontab, debug, dispatch, explain, failed, init, setup, stats, status,
    stop_workers, supervise, systemd,
};
use crate::config::Verbosity;

// Not a comment, which clap would take for the help of a parser that flattens it.
#[doc = concat!(
    "Options that all commands have: which configuration, and how much is said.\n\n",
    "[`main`](super::main) has them. An application with a parser of its own may `#[command(flatten)]` them into it, and hand them ",
    "on with [`Command::with`]."
)]
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
#[non_exhaustive]
pub struct GlobalArgs {
    /// The configuration file
    #[arg(short, long, global = true, env = "MINUTELY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How much is said
    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// The commands, for an application's own parser (clap).
///
/// ```no_run
/// use clap::{Parser, Subcommand};
/// use minutely::App;
///
/// #[derive(Parser)]
/// #[command(version, about)]
/// struct Cli {
///     #[command(subcommand)]
///     command: Cmd,
/// }
///
/// #[derive(Subcommand)]
/// enum Cmd {
///     /// Answer requests
///     Serve,
///     /// Queues and workers
///     #[command(subcommand)]
///     Queue(minutely::cli::Command),
/// }
///
/// #[tokio::main]
/// async fn main() -> std::process::ExitCode {
///     let cli = Cli::parse();
///     let app = App::builder().config_file("config.yaml");
///     match cli.command {
///         Cmd::Serve => std::process::ExitCode::SUCCESS,
///         Cmd::Queue(command) => minutely::cli::run(command, app).await,
///     }
/// }
/// ```
///
/// The crontab line is then `myapp queue cron`. The supervisor starts workers as it was started itself, with `consume`
/// in place of `cron`: in the same folder, and with all arguments before that, so that `myapp --env=prod queue cron`
/// starts `myapp --env=prod queue consume …`.
#[derive(Clone, Debug)]
pub struct Command {
    pub(super) kind: Kind,
    pub(super) global: GlobalArgs,
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum Kind {
    /// Write a first configuration, and show what to do next
    Init(init::Args),
    /// Start the jobs that are due and keep workers running until the next minute; cron starts this
    #[command(alias = "contao:cron")]
    Cron(cron::Args),
    /// Print the line with which cron starts this installation, or put it into the crontab
    Crontab(crontab::Args),
    /// Print the units with which systemd starts this installation
    Systemd(systemd::Args),
    /// Start the jobs that are due and keep workers running until stopped, for systemd and containers
    Supervise(supervise::Args),
    /// Answer requests by HTTP: run what is due, dispatch, consume for a moment
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// Answer one request, as a web server's CGI program
    Cgi(cgi::Args),
    /// Run a worker: handle messages from one or more transports
    #[command(alias = "messenger:consume")]
    Consume(Box<consume::Args>),
    /// Dispatch a message: queue it, or handle it at once
    Dispatch(Box<dispatch::Args>),
    /// Create what the transports need and is missing: tables, streams, queues, folders
    #[command(alias = "messenger:setup-transports")]
    Setup(setup::Args),
    /// Ask the running workers to finish their current messages and stop
    #[command(alias = "messenger:stop-workers")]
    StopWorkers(stop_workers::Args),
    /// Count the messages on each transport
    #[command(alias = "messenger:stats")]
    Stats(stats::Args),
    /// Show, retry or remove the messages that failed for good
    #[command(subcommand)]
    Failed(failed::Action),
    #[command(name = "messenger:failed:show", hide = true)]
    FailedShow(failed::ShowArgs),
    #[command(name = "messenger:failed:retry", hide = true)]
    FailedRetry(failed::RetryArgs),
    #[command(name = "messenger:failed:remove", hide = true)]
    FailedRemove(failed::RemoveArgs),
    /// Show transports, workers and the supervisor
    Status(status::Args),
    /// Show why there are as many workers as there are, and what would change that
    Explain(explain::Args),
    /// Tell by the exit code whether a transport is being consumed
    Alive(alive::Args),
    /// Show the known types of messages, where they go and what handles them
    #[command(alias = "debug:messenger")]
    Debug(debug::Args),
    /// Print a new key, with which messages are encrypted in their queue
    #[cfg(feature = "encryption")]
    Key(key::Args),
    /// Check the configuration, or print its schema
    Config(config::Args),
}

impl Kind {
    /// Whether it starts workers and runs of jobs, or tells which would be started.
    pub(super) fn starts_processes(&self) -> bool {
        matches!(self, Self::Cron(_) | Self::Supervise(_) | Self::Explain(_)) || self.answers_requests()
    }

    /// Symfony's names for subcommands, as what they stand for.
    pub(super) fn resolved(self) -> Self {
        match self {
            Self::FailedShow(args) => Self::Failed(failed::Action::Show(args)),
            Self::FailedRetry(args) => Self::Failed(failed::Action::Retry(args)),
            Self::FailedRemove(args) => Self::Failed(failed::Action::Remove(args)),
            other => other,
        }
    }

    /// Whether it handles messages itself.
    pub(super) fn handles_messages(&self) -> bool {
        matches!(self, Self::Consume(_) | Self::Failed(failed::Action::Retry(_)))
    }

    pub(super) fn answers_requests(&self) -> bool {
        self.serves() || matches!(self, Self::Cgi(_))
    }

    /// Whether it is `serve`, which not every build has.
    pub(super) fn serves(&self) -> bool {
        #[cfg(feature = "serve")]
        return matches!(self, Self::Serve(_));
        #[cfg(not(feature = "serve"))]
        false
    }

    /// Whether it is a service, which runs until it is stopped.
    pub(super) fn is_service(&self) -> bool {
        self.serves() || matches!(self, Self::Supervise(_))
    }

    /// What it is called on the command line.
    pub(super) fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Init(_) => init::NAMES,
            Self::Cron(_) => cron::NAMES,
            Self::Crontab(_) => crontab::NAMES,
            Self::Systemd(_) => systemd::NAMES,
            Self::Supervise(_) => supervise::NAMES,
            #[cfg(feature = "serve")]
            Self::Serve(_) => serve::NAMES,
            Self::Cgi(_) => cgi::NAMES,
            Self::Consume(_) => &["consume", "messenger:consume"],
            Self::Dispatch(_) => &["dispatch"],
            Self::Setup(_) => &["setup", "messenger:setup-transports"],
            Self::StopWorkers(_) => &["stop-workers", "messenger:stop-workers"],
            Self::Stats(_) => stats::NAMES,
            Self::Failed(_) => &["failed"],
            Self::FailedShow(_) => &["messenger:failed:show"],
            Self::FailedRetry(_) => &["messenger:failed:retry"],
            Self::FailedRemove(_) => &["messenger:failed:remove"],
            Self::Status(_) => &["status"],
            Self::Explain(_) => &["explain"],
            Self::Alive(_) => &["alive"],
            Self::Debug(_) => &["debug", "debug:messenger"],
            #[cfg(feature = "encryption")]
            Self::Key(_) => key::NAMES,
            Self::Config(_) => &["config"],
        }
    }
}

impl Command {
    /// The same command with options that the application's own parser has read.
    #[must_use]
    pub fn with(self, global: GlobalArgs) -> Self {
        Self { global, ..self }
    }
}

impl FromArgMatches for Command {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { kind: Kind::from_arg_matches(matches)?, global: GlobalArgs::default() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.kind.update_from_arg_matches(matches)
    }
}

impl Subcommand for Command {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        let name = called(&command);
        speaking_of(&name, Kind::augment_subcommands(command))
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        let name = called(&command);
        speaking_of(&name, Kind::augment_subcommands_for_update(command))
    }

    fn has_subcommand(name: &str) -> bool {
        Kind::has_subcommand(name)
    }
}

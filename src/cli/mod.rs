//! The commands: parse arguments, call one room, print for people or as JSON. One file per command.

mod alive;
mod config;
mod consume;
mod counts;
mod cron;
mod daily_log;
mod debug;
mod dispatch;
mod init;
mod logging;
mod output;
mod setup;
mod signals;
mod stats;
mod status;
mod stop_workers;
mod supervise;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::app::{App, AppBuilder};
use crate::config::Problems;
use crate::supervisor::keep_inherited_from_children;
use crate::threads;

use logging::Logging;

/// Run background work from one crontab line: queues, autoscaling workers, retries.
///
/// Cron starts `minutely cron` every minute. It counts the messages that wait, starts as many workers as they need, and
/// is gone within the minute; the workers handle messages and end by themselves. `minutely dispatch` puts a message on
/// its queue, or handles it at once when nobody would take it from there. Which messages there are, where they wait and
/// what handles them is in `config.yaml`.
#[derive(Parser)]
#[command(name = "minutely", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
To begin with, in your application's folder:
  minutely init         write config.yaml, which works as it is, and show what to type next
  minutely dispatch 'App\\Message\\High\\Note' '{\"text\":\"Hello\"}'
                        send a message; as no worker runs yet, it is handled at once
  crontab -e            add the line that `minutely init` shows, and workers run

Exit codes: 0 it worked (for `alive`: it is running); 1 it failed; 2 the arguments or the configuration are wrong; \
3 a worker stopped because nothing here can handle what waits.";

#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The configuration file
    #[arg(short, long, global = true, env = "MINUTELY_CONFIG", default_value = "config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Print nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; -vv says everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Write a first configuration, and show what to do next
    Init(init::Args),
    /// Keep the workers running for the next minute; this is what cron starts
    #[command(alias = "contao:cron")]
    Cron(cron::Args),
    /// Keep the workers running until stopped, for systemd and containers
    Supervise(supervise::Args),
    /// Handle messages from one or more transports: be a worker
    #[command(alias = "messenger:consume")]
    Consume(consume::Args),
    /// Dispatch a message: queue it, or handle it at once
    Dispatch(dispatch::Args),
    /// Create the tables (and the like) that the transports need
    #[command(alias = "messenger:setup-transports")]
    Setup(setup::Args),
    /// Ask the running workers to finish what they have in hand and to stop
    #[command(alias = "messenger:stop-workers")]
    StopWorkers(stop_workers::Args),
    /// Count the messages that wait on each transport
    #[command(alias = "messenger:stats")]
    Stats(stats::Args),
    /// Show transports, workers and the supervisor
    Status(status::Args),
    /// Say by the exit code whether a transport is being consumed
    Alive(alive::Args),
    /// Show which messages are known, where they go and what handles them
    #[command(alias = "debug:messenger")]
    Debug(debug::Args),
    /// Look at the configuration
    Config(config::Args),
}

/// How long tasks that are still there may take to go.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// How a command ended. Its texts have been printed.
enum End {
    Well,
    Failed,
    Misconfigured,
    /// A worker that can handle nothing of what waits.
    Stuck,
}

/// Why a command could not do its work.
#[derive(Debug)]
enum Failure {
    /// The arguments or the configuration are wrong.
    Usage(String),
    /// Anything else.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

type Result<T, E = Failure> = std::result::Result<T, E>;

/// The whole command line, for its reference in `docs/commands.md`.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the program's arguments name, for an application with handlers of its own. Call it as the whole
/// of `main`; it makes its own runtime.
pub fn main(app: AppBuilder) -> ExitCode {
    keep_inherited_from_children();
    run(app, std::env::args_os())
}

fn run(app: AppBuilder, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::command().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        // Help and version come this way too, and know their own exit code.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match runtime(&cli.command, app.has_code()) {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!(
                "no thread, timer or open file could be had from the system: {error}{}",
                threads::advice(&error)
            ));
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(execute(app, cli)).unwrap_or_else(|failure| match failure {
        Failure::Usage(text) => {
            output::error(&text);
            End::Misconfigured
        }
        Failure::Failed(text) => {
            output::error(&text);
            End::Failed
        }
    });
    // Handlers that were broken off end their programs when they are dropped; nothing may hold up the end for long.
    runtime.shutdown_timeout(LAST_MOMENT);
    match end {
        End::Well => ExitCode::SUCCESS,
        End::Failed => ExitCode::FAILURE,
        End::Misconfigured => ExitCode::from(2),
        End::Stuck => ExitCode::from(3),
    }
}

/// Hosts count threads, and programs do the work of most handlers. Only a worker with code of the application needs more
/// than one thread: a handler that computes must not hold up the heartbeat.
fn runtime(command: &Command, has_code: bool) -> std::io::Result<tokio::runtime::Runtime> {
    match command {
        Command::Consume(args) if has_code => threads::several_threads(args.threads()),
        _ => threads::one_thread(),
    }
}

async fn execute(app: AppBuilder, cli: Cli) -> Result<End> {
    let global = &cli.global;
    if global.quiet {
        output::be_quiet();
    }
    if let Command::Init(args) = &cli.command {
        return init::run(global, args);
    }
    if let Command::Config(args) = &cli.command {
        return config::run(app, global, args).await;
    }
    let app = load(app, global)?;
    // Only those that do something leave a trace on the disk.
    let logging = match &cli.command {
        Command::Cron(args) if args.dry_run => Logging::Terminal,
        Command::Cron(_) | Command::Supervise(_) | Command::Consume(_) => Logging::File,
        Command::Dispatch(_) | Command::Setup(_) | Command::StopWorkers(_) => Logging::FileIfPossible,
        _ => Logging::Terminal,
    };
    // In a container, and under systemd, standard error is where a service says what it does.
    let narrates = matches!(cli.command, Command::Supervise(_));
    logging::start(global, &app.config.state_dir, logging, narrates)?;
    match &cli.command {
        Command::Cron(args) => cron::run(&app, args).await,
        Command::Supervise(args) => supervise::run(&app, args).await,
        Command::Consume(args) => consume::run(&app, args).await,
        Command::Dispatch(args) => dispatch::run(&app, args).await,
        Command::Setup(args) => setup::run(&app, args).await,
        Command::StopWorkers(args) => stop_workers::run(&app, args).await,
        Command::Stats(args) => stats::run(&app, args).await,
        Command::Status(args) => status::run(&app, args).await,
        Command::Alive(args) => alive::run(&app, args).await,
        Command::Debug(args) => debug::run(&app, args),
        Command::Config(_) | Command::Init(_) => Ok(End::Well),
    }
}

fn load(app: AppBuilder, global: &Global) -> Result<App> {
    app.load(&global.config, consume::check_workers).map_err(|problems| Failure::Usage(told(&problems)))
}

/// All mistakes, and how to look at them again.
fn told(problems: &Problems) -> String {
    let errors = Problems { file: problems.file.clone(), list: problems.errors().cloned().collect() };
    errors.to_string()
}

/// The names given, or all when none are; an unknown one is a usage error.
fn chosen(app: &App, names: &[String]) -> Result<Vec<String>> {
    for name in names {
        known(app, name)?;
    }
    Ok(if names.is_empty() { app.config.transports.keys().cloned().collect() } else { names.to_vec() })
}

fn known(app: &App, name: &str) -> Result<()> {
    if app.config.transports.contains_key(name) {
        return Ok(());
    }
    let names = app.config.transports.keys().map(String::as_str);
    Err(Failure::Usage(crate::config::Problem::unknown("", "transport", name, names).message))
}

/// This program with the arguments that come before a worker's own.
fn worker_program(config: &Path) -> Result<Vec<OsString>> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Failed(format!("where this program lies cannot be told: {error}")))?;
    Ok(vec![program.into(), "--config".into(), config.into(), "consume".into()])
}

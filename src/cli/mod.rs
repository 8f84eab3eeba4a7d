//! The commands: parse arguments, call one room, print for people or as JSON. One file per command.

mod alive;
mod application;
mod arguments;
mod cgi;
mod command;
mod config;
mod consume;
mod counts;
mod cron;
mod crontab;
mod daily_log;
mod debug;
mod dispatch;
mod explain;
mod failed;
mod init;
mod installation;
#[cfg(feature = "encryption")]
mod key;
mod logging;
mod output;
mod parser;
mod printer;
mod requests;
#[cfg(feature = "serve")]
mod serve;
mod setup;
mod signals;
mod stats;
mod status;
mod stop_workers;
mod supervise;
mod systemd;
#[cfg(test)]
mod tests;

use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::app::{App, AppBuilder};
use crate::config::Problems;
use crate::supervisor::keep_inherited_from_children;
use crate::threads;

pub use application::Application;
pub use command::{Command, GlobalArgs};
#[cfg(test)]
pub(crate) use parser::command;

use arguments::{advice, typed, worker_program};
use command::Kind;
use logging::{Logging, Narration};

/// How long tasks that are still there may take to go.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// How a command ended. Its texts have been printed.
enum End {
    Well,
    Failed,
    Misconfigured,
    /// A worker that can handle none of the pending messages.
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

/// Runs the command that the program's arguments name. Call it as the whole of `main`.
///
/// It makes a runtime of its own, which has as few threads as the command needs. Called within a runtime it uses that
/// one. An application with commands of its own uses [`Command`] and [`run`] instead.
pub fn main(app: AppBuilder) -> ExitCode {
    keep_inherited_from_children();
    let (command, app) = match parser::parse(app, std::env::args_os()) {
        Ok(parsed) => parsed,
        // Help and version come this way too, and know their own exit code.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match Handle::try_current() {
        Err(_) => in_own_runtime(command, app),
        Ok(current) if current.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(|| current.block_on(run(command, app)))
        }
        // Waiting here stops the only thread of that runtime.
        Ok(_) => std::thread::spawn(|| in_own_runtime(command, app)).join().unwrap_or(ExitCode::FAILURE),
    }
}

/// Runs one of the commands for an application, in the current runtime. Prints what there is to say; the exit code is
/// that of the program.
pub async fn run(command: Command, app: impl Into<Application>) -> ExitCode {
    let Command { kind, global } = command;
    let kind = kind.resolved();
    if kind.starts_processes() || kind.handles_messages() {
        keep_inherited_from_children();
    }
    let ended = execute(app.into(), &kind, &global).await;
    let end = ended.unwrap_or_else(|failure| {
        let (text, end) = match failure {
            Failure::Usage(text) => (text, End::Misconfigured),
            Failure::Failed(text) => (text, End::Failed),
        };
        output::error(&text);
        if matches!(kind, Kind::Cgi(_)) {
            // Nothing is printed after the answer.
            cgi::fail();
        }
        end
    });
    match end {
        End::Well => ExitCode::SUCCESS,
        End::Failed => ExitCode::FAILURE,
        End::Misconfigured => ExitCode::from(2),
        End::Stuck => ExitCode::from(3),
    }
}

fn in_own_runtime(command: Command, app: AppBuilder) -> ExitCode {
    let runtime = match runtime(&command.kind, &app) {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!(
                "no thread, timer or open file could be had from the system: {error}{}",
                threads::advice(&error)
            ));
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(run(command, app));
    // Handlers that were interrupted end their programs when they are dropped; nothing may hold up the end for long.
    runtime.shutdown_timeout(LAST_MOMENT);
    end
}

/// One for the function of a job, and one for its timeout, its lease and the like if the function computes.
const JOB_THREADS: usize = 2;

/// Hosts count threads, and programs do the work of most handlers. Only what runs code of the application needs more
/// than one thread: a handler that computes must not hold up the heartbeat, nor a job its timeout.
fn runtime(command: &Kind, app: &AppBuilder) -> std::io::Result<tokio::runtime::Runtime> {
    match command {
        Kind::Consume(args) if app.has_code() => threads::several_threads(args.threads()),
        Kind::Cron(args) if args.runs().is_some_and(|job| app.has_function(job)) => {
            threads::several_threads(JOB_THREADS)
        }
        Kind::Failed(failed::Action::Retry(_)) | Kind::FailedRetry(_) if app.has_code() => threads::several_threads(1),
        _ if app.has_code() && command.answers_requests() => threads::several_threads(1),
        _ => threads::one_thread(),
    }
}

async fn execute(app: Application, command: &Kind, global: &GlobalArgs) -> Result<End> {
    let verbosity = match command {
        Kind::Consume(args) => args.verbosity(global.verbosity),
        _ => global.verbosity,
    };
    if verbosity.quiet {
        output::be_quiet();
    }
    let default_file = app.file();
    let app = app.configured(global)?;
    if let Kind::Init(args) = command {
        return init::run(&app, default_file.as_deref(), args, global);
    }
    let advice = advice(&app, command, global);
    if let Kind::Systemd(args) = command {
        return systemd::run(&app, default_file.as_deref(), args, global);
    }
    if let Kind::Crontab(args) = command {
        return crontab::run(app, default_file.as_deref(), args, global, &advice).await;
    }
    #[cfg(feature = "encryption")]
    if let Kind::Key(args) = command {
        return key::run(args);
    }
    if let Kind::Config(args) = command {
        return config::run(app, args, &advice).await;
    }
    let mut app = build(app, &advice).map_err(|problems| Failure::Usage(problem_text(&problems)))?;
    if app.worker_program.is_none() {
        app.worker_program = worker_program(command, global);
    }
    // Only those that do something leave a trace on the disk.
    let logging = match command {
        Kind::Cron(args) if args.dry_run => Logging::Terminal,
        Kind::Cron(cron::Args { command: Some(cron::Jobs::List(_) | cron::Jobs::Next(_)), .. }) => Logging::Terminal,
        Kind::Cron(_) | Kind::Supervise(_) | Kind::Consume(_) => Logging::File,
        // Who answers requests says there what is wrong.
        _ if command.answers_requests() => Logging::FileIfPossible,
        Kind::Dispatch(_) | Kind::Setup(_) | Kind::StopWorkers(_) => Logging::FileIfPossible,
        Kind::Failed(failed::Action::Retry(_) | failed::Action::Remove(_)) => Logging::FileIfPossible,
        _ => Logging::Terminal,
    };
    let narration = match command {
        // It shows what the job prints.
        Kind::Cron(cron::Args { command: Some(cron::Jobs::Run(_)), .. }) => Narration::Never,
        // In a container, and under systemd, standard error is where a service says what it does.
        _ if command.is_service() => Narration::Always,
        _ => Narration::OnTerminal,
    };
    logging::start(verbosity, &app.config.state_dir, logging, narration)?;
    match command {
        Kind::Cron(args) => cron::run(&app, args, global).await,
        Kind::Supervise(args) => supervise::run(&app, args, global).await,
        #[cfg(feature = "serve")]
        Kind::Serve(args) => serve::run(&app, args, global).await,
        Kind::Cgi(args) => cgi::run(&app, args, global).await,
        Kind::Consume(args) => consume::run(&app, args).await,
        Kind::Dispatch(args) => dispatch::run(&app, args).await,
        Kind::Setup(args) => setup::run(&app, args).await,
        Kind::StopWorkers(args) => stop_workers::run(&app, args).await,
        Kind::Stats(args) => stats::run(&app, args, &typed(command, "consume", global)).await,
        Kind::Failed(action) => failed::run(&app, action, verbosity.verbose > 0).await,
        Kind::Status(args) => status::run(&app, args).await,
        Kind::Explain(args) => explain::run(&app, args).await,
        Kind::Alive(args) => alive::run(&app, args).await,
        Kind::Debug(args) => debug::run(&app, args),
        Kind::FailedShow(_) | Kind::FailedRetry(_) | Kind::FailedRemove(_) => Ok(End::Well),
        #[cfg(feature = "encryption")]
        Kind::Key(_) => Ok(End::Well),
        Kind::Config(_) | Kind::Init(_) | Kind::Crontab(_) | Kind::Systemd(_) => Ok(End::Well),
    }
}

/// `advice` is for one whose configuration is not there.
fn build(app: Application, advice: &str) -> Result<App, Problems> {
    match app {
        Application::Builder(builder) => builder.build_checked().map_err(|mut problems| {
            if let Some(problem) = problems.list.last_mut() {
                problem.message.push_str(advice);
            }
            problems
        }),
        Application::Built(app) => Ok(app),
    }
}

/// All mistakes, and how to look at them again.
fn problem_text(problems: &Problems) -> String {
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

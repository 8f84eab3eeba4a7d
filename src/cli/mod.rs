//! The commands: parse arguments, call one room, print for people or as JSON. One file per command.

mod alive;
mod cgi;
mod config;
mod consume;
mod counts;
mod cron;
mod crontab;
mod daily_log;
mod debug;
mod dispatch;
mod failed;
mod init;
mod installation;
#[cfg(feature = "encryption")]
mod key;
mod logging;
mod output;
mod printer;
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

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::StyledStr;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::app::{App, AppBuilder, WorkerProgram};
use crate::config::{Problems, Verbosity};
use crate::supervisor::keep_inherited_from_children;
use crate::threads;

use logging::{Logging, Narration};

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

// Not a comment, which clap would take for the help of a parser that flattens it.
#[doc = concat!(
    "Options that all commands have: which configuration, and how much is said.\n\n",
    "[`main`] has them. An application with a parser of its own may `#[command(flatten)]` them into it, and hand them ",
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
    kind: Kind,
    global: GlobalArgs,
}

#[derive(Subcommand, Clone, Debug)]
enum Kind {
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
    Dispatch(dispatch::Args),
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
    /// Its name on the command line.
    fn name(&self) -> &'static str {
        names(self).first().copied().unwrap_or_default()
    }

    /// Whether it starts workers and runs of jobs.
    fn starts_processes(&self) -> bool {
        matches!(self, Self::Cron(_) | Self::Supervise(_)) || self.answers_requests()
    }

    /// Symfony's names for subcommands, as what they stand for.
    fn resolved(self) -> Self {
        match self {
            Self::FailedShow(args) => Self::Failed(failed::Action::Show(args)),
            Self::FailedRetry(args) => Self::Failed(failed::Action::Retry(args)),
            Self::FailedRemove(args) => Self::Failed(failed::Action::Remove(args)),
            other => other,
        }
    }

    /// Whether it handles messages itself.
    fn handles_messages(&self) -> bool {
        matches!(self, Self::Consume(_) | Self::Failed(failed::Action::Retry(_)))
    }

    fn answers_requests(&self) -> bool {
        matches!(self.name(), "serve" | "cgi")
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

/// The whole command line, for its reference in `docs/commands.md`.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    let (name, version) = ("minutely".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    parser(name, version, Some(Path::new(crate::app::CONFIG_FILE)))
}

/// An application, built or to be built. What [`run`] takes.
///
/// With a builder `init` and `config check` work where there is no configuration yet, or a wrong one.
#[non_exhaustive]
pub enum Application {
    /// One that is built.
    Built(App),
    /// One that is built when the command needs it.
    Builder(Box<AppBuilder>),
}

impl Application {
    /// The configuration's file, if it is one.
    fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Built(app) => Some(app.config.file.clone()),
            Self::Builder(builder) => builder.file().map(Path::to_owned),
        }
    }

    fn config_schema(&self) -> serde_json::Value {
        match self {
            Self::Built(app) => app.config_schema(),
            Self::Builder(builder) => builder.config_schema(),
        }
    }
}

impl Application {
    /// With the configuration that the arguments name.
    fn configured(self, global: &GlobalArgs) -> Result<Self> {
        let Some(file) = &global.config else { return Ok(self) };
        match self {
            Self::Builder(builder) => Ok((*builder).config_file(file).into()),
            Self::Built(app) if std::path::absolute(file).is_ok_and(|file| file == app.config.file) => Ok(app.into()),
            Self::Built(app) => Err(Failure::Usage(format!(
                "{} cannot be read: this program has read {} before it looked at its arguments (its code has to give \
                 `cli::run` the builder, or the application built from this file)",
                file.display(),
                app.config.file.display()
            ))),
        }
    }
}

impl From<App> for Application {
    fn from(app: App) -> Self {
        Self::Built(app)
    }
}

impl From<AppBuilder> for Application {
    fn from(app: AppBuilder) -> Self {
        Self::Builder(Box::new(app))
    }
}

/// Runs the command that the program's arguments name. Call it as the whole of `main`.
///
/// It makes a runtime of its own, which has as few threads as the command needs. Called within a runtime it uses that
/// one. An application with commands of its own uses [`Command`] and [`run`] instead.
pub fn main(app: AppBuilder) -> ExitCode {
    keep_inherited_from_children();
    let (command, app) = match parse(app, std::env::args_os()) {
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

/// The command, and the application that has no others.
fn parse(
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
fn parser(name: String, version: String, file: Option<&Path>) -> clap::Command {
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
fn called(parent: &clap::Command) -> String {
    let program = this_program();
    if parent.get_name() == program { program } else { format!("{program} {}", parent.get_name()) }
}

/// The name of the program's file.
fn this_program() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(|program| program.file_name());
    name.map_or_else(|| "minutely".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Help texts name the program that people call.
fn speaking_of(name: &str, command: clap::Command) -> clap::Command {
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
        _ if matches!(command.name(), "supervise" | "serve") => Narration::Always,
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

/// What to do where there is no configuration. Only a program that has no other commands is known to have `--config`.
fn advice(app: &Application, command: &Kind, global: &GlobalArgs) -> String {
    let Application::Builder(builder) = app else { return String::new() };
    let Some(file) = builder.file() else { return String::new() };
    let name_it = builder.is_whole_program.then_some("name the file with --config FILE or MINUTELY_CONFIG");
    let write = (!file.exists()).then(|| format!("`{}` writes a first one", typed(command, "init", global)));
    let name_it = name_it.filter(|_| write.is_some() || file.is_dir());
    let advice: Vec<String> = write.into_iter().chain(name_it.map(str::to_owned)).collect();
    if advice.is_empty() { String::new() } else { format!("; {}", advice.join(", or ")) }
}

/// What to type for another of these commands: as this one was typed, but for its own name.
fn typed(command: &Kind, other: &str, global: &GlobalArgs) -> String {
    match own_arguments(names(command), global) {
        Some(_) => format!("{} {other}", called_before(names(command), global)),
        None => other.to_owned(),
    }
}

/// What people type before the name of a command, which has one of these names: the program, and what it needs to know.
fn called_before(names: &[&str], global: &GlobalArgs) -> String {
    let arguments = own_arguments(names, global).unwrap_or_default();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let before = if arguments.is_empty() { String::new() } else { format!(" {}", shell_words::join(arguments)) };
    format!("{}{before}", this_program())
}

/// How this program becomes a worker, by the arguments that it was started with: those before the command's own name.
/// Nothing where they do not name it.
fn worker_program(command: &Kind, global: &GlobalArgs) -> Option<Arc<WorkerProgram>> {
    if !command.starts_processes() {
        return None;
    }
    let mut arguments = own_arguments(names(command), global)?;
    arguments.push("consume".into());
    Some(Arc::new(WorkerProgram { arguments, dir: None }))
}

/// What a command is called on the command line.
fn names(command: &Kind) -> &'static [&'static str] {
    match command {
        Kind::Init(_) => init::NAMES,
        Kind::Cron(_) => cron::NAMES,
        Kind::Crontab(_) => crontab::NAMES,
        Kind::Systemd(_) => systemd::NAMES,
        Kind::Supervise(_) => supervise::NAMES,
        #[cfg(feature = "serve")]
        Kind::Serve(_) => serve::NAMES,
        Kind::Cgi(_) => cgi::NAMES,
        Kind::Consume(_) => &["consume", "messenger:consume"],
        Kind::Dispatch(_) => &["dispatch"],
        Kind::Setup(_) => &["setup", "messenger:setup-transports"],
        Kind::StopWorkers(_) => &["stop-workers", "messenger:stop-workers"],
        Kind::Stats(_) => stats::NAMES,
        Kind::Failed(_) => &["failed"],
        Kind::FailedShow(_) => &["messenger:failed:show"],
        Kind::FailedRetry(_) => &["messenger:failed:retry"],
        Kind::FailedRemove(_) => &["messenger:failed:remove"],
        Kind::Status(_) => &["status"],
        Kind::Alive(_) => &["alive"],
        Kind::Debug(_) => &["debug", "debug:messenger"],
        #[cfg(feature = "encryption")]
        Kind::Key(_) => key::NAMES,
        Kind::Config(_) => &["config"],
    }
}

/// The arguments that this program was started with before those of its command, which has one of these names; with
/// the configuration, if that was named after the command.
fn own_arguments(names: &[&str], global: &GlobalArgs) -> Option<Vec<OsString>> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // These commands have no arguments that are names, so that the last one that looks like theirs is theirs.
    let position = arguments.iter().rposition(|argument| names.iter().any(|name| argument == name))?;
    let after = arguments.split_off(position);
    if let Some(file) = &global.config {
        let named = |argument: &OsString| argument.as_encoded_bytes().ends_with(file.as_os_str().as_encoded_bytes());
        if after.iter().any(named) {
            arguments.extend(["--config".into(), file.into()]);
        }
    }
    Some(arguments)
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

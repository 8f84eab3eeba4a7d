//! An application with its own commands, including minutely's: this test program, if it is started with `application`.
//! Its server dispatches and works in the same process; its supervisor starts the program as a worker.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use minutely::cli::GlobalArgs;
use minutely::config::{Config, ConsumeOptions};
use minutely::handler::{HandlerError, State};
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

use nix::sys::signal::Signal;
use tokio::runtime::Handle;

use crate::support::{Project, Run, Running, wait_until};

/// The first argument of the application's processes.
const APPLICATION: &str = "application";

#[derive(Parser)]
#[command(name = "shop", version = "7.7", about = "A shop")]
struct Cli {
    #[command(subcommand)]
    application: Application,
    #[command(flatten)]
    global: GlobalArgs,
}

#[derive(Subcommand)]
enum Application {
    Application {
        #[arg(long, global = true, default_value = "none")]
        profile: String,
        #[command(subcommand)]
        command: ShopCommand,
    },
}

#[derive(Subcommand)]
enum ShopCommand {
    /// Sells one thing, and delivers it in the same process
    Sell,
    /// Keeps workers running, which are this program, until the test is done
    Manage,
    /// Queues and workers
    #[command(subcommand)]
    Queue(minutely::cli::Command),
    /// The same, of an application whose configuration is a file
    #[command(subcommand)]
    Files(minutely::cli::Command),
}

#[derive(Serialize, Deserialize)]
struct Sold {
    thing: String,
}

impl Message for Sold {
    const TYPE: &'static str = r"Shop\Sold";
}

/// Runs the application instead of tests, if the environment or the arguments say so.
pub fn instead_of_tests() -> Option<ExitCode> {
    if let Ok(within) = std::env::var(WITHIN) {
        return Some(whole_program(&within));
    }
    std::env::args().nth(1).is_some_and(|argument| argument == APPLICATION).then(shop)
}

#[tokio::main]
async fn shop() -> ExitCode {
    let cli = Cli::parse();
    let (Application::Application { profile, command }, global) = (cli.application, cli.global);
    let config = Config::builder()
        .transport("sold", "sqlite:var/queue.db?queue_name=sold")
        .transport("supervised", "sqlite:var/queue.db?queue_name=supervised")
        .route(Sold::TYPE, ["sold"])
        .worker(serde_json::json!({ "transports": ["supervised"], "options": ["--sleep=0.05", "-v"] }));
    let worker_arguments = [APPLICATION, &format!("--profile={profile}"), "queue", "consume"].map(str::to_owned);
    let deliver = move |sold: Sold| {
        let line = format!("{} {profile} {}\n", sold.thing, std::process::id());
        async move {
            let mut file = OpenOptions::new().create(true).append(true).open("delivered")?;
            file.write_all(line.as_bytes())
        }
    };
    let app = App::builder().config(config).handle_named("deliver", deliver);
    match command {
        ShopCommand::Sell => sell(app.build().unwrap()).await,
        ShopCommand::Manage => manage(app.worker_arguments(worker_arguments).build().unwrap()).await,
        ShopCommand::Queue(command) => minutely::cli::run(command.with(global), app.build().unwrap()).await,
        ShopCommand::Files(command) => {
            minutely::cli::run(command.with(global), App::builder().config_file("shop.yaml")).await
        }
    }
}

/// Environment variable: the runtime in which a program with only minutely's commands is run.
const WITHIN: &str = "MINUTELY_TEST_WITHIN";

/// The `main` of such a program. Its handler needs something from a runtime that exists before.
fn whole_program(within: &str) -> ExitCode {
    let several = || tokio::runtime::Runtime::new().unwrap();
    match within {
        "nothing" => minutely::cli::main(answering(None)),
        "a runtime that was made before" => {
            let runtime = several();
            minutely::cli::main(answering(Some(runtime.handle().clone())))
        }
        "a runtime that was entered" => {
            let runtime = several();
            let _entered = runtime.enter();
            minutely::cli::main(answering(Some(runtime.handle().clone())))
        }
        "a runtime" => several().block_on(async { minutely::cli::main(answering(Some(Handle::current()))) }),
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { minutely::cli::main(answering(None)) })
        }
    }
}

fn answering(runtime: Option<Handle>) -> AppBuilder {
    async fn answer(sold: Sold, State(runtime): State<Option<Handle>>) -> Result<(), HandlerError> {
        let thing = match runtime {
            Some(runtime) => runtime.spawn(async move { sold.thing }).await?,
            None => sold.thing,
        };
        std::fs::write("answered", thing)?;
        Ok(())
    }
    App::builder().config(Config::builder()).program("answers", "3.2.1").state(runtime).handle(answer)
}

async fn sell(app: App) -> ExitCode {
    // Polls once an hour, and is woken by what this process dispatches.
    let worker = app.worker(["sold"]).concurrency(2).sleep(Duration::from_secs(3600)).spawn().unwrap();
    let dispatched = app.dispatch(&Sold { thing: "a book".into() }).await.unwrap();
    assert_eq!(dispatched.queued()[0].queued_on, "sold");
    // Until the test is done.
    wait_until("the test is done", || PathBuf::from("done").exists());
    let summary = worker.stop().await.unwrap();
    println!("{} handled", summary.handled);
    ExitCode::SUCCESS
}

async fn manage(app: App) -> ExitCode {
    let supervisor = app.supervisor().spawn().unwrap();
    wait_until("the test is done", || PathBuf::from("done").exists());
    supervisor.stop().await.unwrap();
    ExitCode::SUCCESS
}

/// The application, to run in a project's folder.
fn application(project: &Project, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(APPLICATION)
        .args(arguments)
        .current_dir(project.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdin(std::process::Stdio::null());
    command
}

fn run(project: &Project, arguments: &[&str]) -> Run {
    let output = application(project, arguments).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn status(project: &Project) -> serde_json::Value {
    run(project, &["queue", "status", "--format=json"]).succeeds().json()
}

#[test]
fn cron_starts_the_application_as_it_was_started_itself() {
    let project = Project::new("");
    project.write("shop.yaml", "transports: {}\n");
    let program = std::env::current_exe().unwrap();
    let begin = format!("* * * * * cd {} && {} {APPLICATION}", project.path().display(), program.display());
    for (arguments, expected) in [
        (&["--profile=a b%", "queue", "crontab"][..], r"'--profile=a b\%' queue cron"),
        (&["files", "crontab"], "files cron"),
        (&["files", "crontab", "--config", "shop.yaml"], "files --config shop.yaml cron"),
        (&["--config=shop.yaml", "files", "crontab"], "'--config=shop.yaml' files cron"),
    ] {
        let output = run(&project, arguments).succeeds();
        assert_eq!(output.stdout, format!("{begin} {expected}\n"), "{output:?}");
    }
    let mut command = application(&project, &["files", "crontab"]);
    let output = command.env("MINUTELY_CONFIG", "shop.yaml").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{begin} files --config shop.yaml cron\n"));
    let units = run(&project, &["queue", "systemd", "--only=service"]).succeeds().stdout;
    assert!(units.contains(&format!("ExecStart={} {APPLICATION} queue cron\n", program.display())), "{units}");
}

#[test]
fn a_supervisor_starts_the_application_as_it_was_started_itself() {
    let project = Project::new("");
    let lamp = r#"{"thing":"a lamp"}"#;
    run(&project, &["queue", "dispatch", Sold::TYPE, lamp, "--transport=supervised"]).succeeds();
    let supervise = application(&project, &["--profile=blue", "queue", "supervise"]);
    let mut supervisor = Running::start(&project, "supervisor", supervise);
    wait_until("a worker has delivered", || !project.lines("delivered").is_empty());
    let status = status(&project);
    let worker = &status["workers"][0];
    assert_eq!(project.lines("delivered"), [format!("a lamp blue {}", worker["pid"])], "{status}");
    assert_eq!(worker["definition"], "supervised");
    let command: Vec<&str> = worker["command"].as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
    assert_eq!(command[1..6], [APPLICATION, "--profile=blue", "queue", "consume", "supervised"]);
    // The shop's parser has no `-v`.
    assert_eq!(command[6..], ["--sleep=0.05", "--time-limit=60", "--worker-verbose=1"]);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
}

#[test]
fn a_supervisor_in_process_starts_workers_with_the_arguments_of_the_application() {
    let project = Project::new("");
    let lamp = r#"{"thing":"a lamp"}"#;
    run(&project, &["queue", "dispatch", Sold::TYPE, lamp, "--transport=supervised"]).succeeds();
    let mut shop = Running::start(&project, "shop", application(&project, &["--profile=green", "manage"]));
    wait_until("a worker has delivered", || !project.lines("delivered").is_empty());
    let status = status(&project);
    assert_eq!(project.lines("delivered"), [format!("a lamp green {}", status["workers"][0]["pid"])], "{status}");
    project.write("done", "");
    assert_eq!(shop.ends(), Some(0));
    assert_eq!(self::status(&project)["workers"], serde_json::json!([]));
}

#[test]
fn an_applications_dispatch_wakes_its_own_worker_and_status_shows_that_worker() {
    let project = Project::new("");
    let mut shop = Running::start(&project, "shop", application(&project, &["--profile=red", "sell"]));
    wait_until("it has delivered", || !project.lines("delivered").is_empty());
    assert_eq!(project.lines("delivered"), [format!("a book red {}", shop.pid())]);
    let seen = status(&project);
    let worker = &seen["workers"][0];
    assert_eq!(worker["pid"], shop.pid());
    assert_eq!(worker["transports"], serde_json::json!(["sold"]));
    assert_eq!((&worker["definition"], &worker["slot"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    let shown = run(&project, &["queue", "status"]).succeeds().stdout;
    assert!(shown.contains("in process: sold"), "{shown}");
    run(&project, &["queue", "alive", "sold"]).succeeds();
    // A supervisor's workers all have slots.
    let planned = run(&project, &["queue", "cron", "--dry-run", "--format=json"]).succeeds().json();
    assert_eq!(planned["workers"][0]["running"], 0, "{planned}");
    project.write("done", "");
    assert_eq!(shop.ends(), Some(0));
    assert_eq!(project.lines("shop.out"), ["1 handled"]);
    assert_eq!(status(&project)["workers"], serde_json::json!([]));
}

#[test]
fn help_names_the_application() {
    let project = Project::new("");
    let version = run(&project, &["--version"]);
    assert_eq!(version.code, Some(2), "it is an argument of the shop's own: {version:?}");
    let help = run(&project, &["queue", "consume", "--help"]).succeeds().stdout;
    assert!(help.contains("queue consume prio_high prio_normal"), "{help}");
    assert!(!help.contains("minutely consume"), "{help}");
}

/// An application's own help, with everything flattened into it that there is.
#[derive(Parser)]
#[command(about = "A shop", long_about = "A shop, at length.")]
struct Flattened {
    #[command(flatten)]
    _options: ConsumeOptions,
    #[command(flatten)]
    _global: GlobalArgs,
    #[command(subcommand)]
    _command: Option<minutely::cli::Command>,
}

#[test]
fn what_an_application_flattens_leaves_its_help_as_it_is() {
    let command = Flattened::command();
    assert_eq!(command.get_about().unwrap().to_string(), "A shop");
    assert_eq!(command.get_long_about().unwrap().to_string(), "A shop, at length.");
}

#[test]
fn an_application_reads_the_configuration_that_its_arguments_name() {
    let project = Project::new("");
    std::fs::create_dir(project.path().join("other")).unwrap();
    let other = ["-c", "other/conf.yaml", "files"];
    let with = |arguments: &[&'static str]| [&other[..], arguments].concat();
    let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();

    let missing = run(&project, &with(&["stats"])).exits(2).stderr;
    let init = format!("`{program} {APPLICATION} -c other/conf.yaml files init` writes a first one");
    assert!(missing.contains("other/conf.yaml: there is no such file") && missing.contains(&init), "{missing}");
    assert!(!missing.contains("--config") && !missing.contains("minutely init"), "{missing}");

    let steps = run(&project, &with(&["init"])).succeeds().stdout;
    let cron = format!("{APPLICATION} -c other/conf.yaml files cron");
    assert!(steps.contains(&cron) && steps.contains("   cat other/var/handled.log"), "{steps}");
    assert!(!project.path().join("shop.yaml").exists());
    let written = std::fs::read_to_string(project.path().join("other/conf.yaml")).unwrap();
    assert!(!written.contains("minutely init") && written.contains("files dispatch"), "{written}");

    let stats = run(&project, &with(&["stats"])).succeeds().stdout;
    assert!(stats.contains("prio_high (prio_high_queue)"), "{stats}");
    assert!(!stats.contains("cannot be counted"), "{stats}");
    let asked = run(&project, &with(&["stats", "sync"])).succeeds().stdout;
    assert!(asked.contains("cannot be counted: sync"), "{asked}");

    // Named after the command, or by the environment.
    run(&project, &["files", "config", "check", "-c", "other/conf.yaml"]).succeeds();
    let mut by_environment = application(&project, &["files", "config", "check"]);
    assert!(by_environment.env("MINUTELY_CONFIG", "other/conf.yaml").status().unwrap().success());
    let checked = run(&project, &["files", "config", "check"]).exits(2).stderr;
    assert!(checked.contains("shop.yaml") && checked.contains("files init` writes a first one"), "{checked}");

    // Too late for an application that is built.
    let built = run(&project, &["-c", "other/conf.yaml", "queue", "status"]).exits(2).stderr;
    assert!(built.contains("other/conf.yaml cannot be read: this program has read"), "{built}");
}

#[test]
fn workers_get_the_configuration_that_was_named_after_the_command() {
    let project = Project::new("");
    let conf = "transports: {q: 'sqlite:q.db'}\nfailure_transport: q\nhandlers: {'*': {exec: [touch, handled]}}\n\
                workers: [{transports: [q], options: [--sleep=0.05]}]\n";
    project.write("conf.yaml", conf);
    run(&project, &["files", "dispatch", "A", "--transport=q", "-c", "conf.yaml"]).succeeds();
    let supervise = application(&project, &["files", "supervise", "-c", "conf.yaml"]);
    let mut supervisor = Running::start(&project, "supervisor", supervise);
    wait_until("a worker has handled it", || project.path().join("handled").exists());
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
}

#[test]
fn a_program_with_only_these_commands_works_in_any_runtime() {
    let runtimes = [
        "nothing",
        "a runtime that was made before",
        "a runtime that was entered",
        "a runtime",
        "a runtime of one thread",
    ];
    for within in runtimes {
        let project = Project::new("");
        let run = |arguments: &[&str]| {
            let mut program = Command::new(std::env::current_exe().unwrap());
            let output = program.args(arguments).current_dir(project.path()).env(WITHIN, within).output().unwrap();
            assert!(output.status.success(), "{within}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        run(&["dispatch", Sold::TYPE, r#"{"thing":"yes"}"#]);
        assert_eq!(project.lines("answered"), ["yes"], "{within}");
        assert_eq!(run(&["--version"]), "answers 3.2.1\n");
        assert!(run(&["consume", "--help"]).contains("answers consume prio_high"));
    }
}

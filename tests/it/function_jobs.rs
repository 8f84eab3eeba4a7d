//! Scheduled jobs that are functions of an application: this test program, if the environment says so.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use minutely::bus::Bus;
use minutely::config::Config;
use minutely::handler::{CancellationToken, Due, HandlerError, State, VerdictError};
use minutely::message::Message;
use minutely::{App, AppBuilder, Error, Job};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::support::{Project, Run, Running, wait_until};

/// Environment variable: the process is the application.
const APPLICATION: &str = "MINUTELY_TEST_JOBS";

/// Runs the application instead of tests, if the environment says so.
pub fn instead_of_tests() -> Option<ExitCode> {
    std::env::var_os(APPLICATION)?;
    let application = application().config_file("config.yaml");
    Some(if std::env::args().len() > 1 { minutely::cli::main(application) } else { manage(application) })
}

/// Supervises without a command of minutely's, until the test is done.
#[tokio::main]
async fn manage(application: AppBuilder) -> ExitCode {
    let app = application.worker_arguments(["consume"]).build().unwrap();
    let supervisor = app.supervisor().spawn().unwrap();
    wait_until("the test is done", || fs::exists("done").unwrap());
    supervisor.stop().await.unwrap();
    ExitCode::SUCCESS
}

#[derive(Serialize, Deserialize)]
struct Ticked;

impl Message for Ticked {
    const TYPE: &'static str = "shop.ticked";
}

#[derive(Clone)]
struct Shop(&'static str);

fn append(file: &str, line: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(file)?.write_all(format!("{line}\n").as_bytes())
}

async fn tick(State(shop): State<Shop>, Due(due): Due, bus: Bus) -> Result<String, HandlerError> {
    tracing::info!(open = true, "the shop is looked at");
    bus.dispatch(&Ticked).await?;
    append("ran", &std::process::id().to_string())?;
    Ok(format!("{} is there, {}", shop.0, due.elapsed().is_ok()))
}

async fn bad() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tracing::warn!("it gets tight");
    Err("the disk is full".into())
}

async fn skip() -> Result<(), io::Error> {
    Err(io::Error::other(VerdictError::skipped("no orders")))
}

async fn panics() {
    panic!("no way");
}

async fn hang(cancellation: CancellationToken) {
    let _ = append("begun", "");
    cancellation.cancelled().await;
    let _ = append("cancelled", "");
}

async fn slow() -> Result<&'static str, io::Error> {
    append("begun", &std::process::id().to_string())?;
    while !fs::exists("go")? {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok("at last")
}

async fn compute() {
    std::thread::sleep(Duration::from_secs(600));
}

fn application() -> AppBuilder {
    let at_once = Duration::from_millis(300);
    App::builder()
        .program("shop", "1.0")
        .state(Shop("the shop"))
        .handle_named("ticked", async |_: Ticked| append("handled", ""))
        .job(Job::new("tick", "every 1s", tick))
        .job(Job::new("bad", "@yearly", bad))
        .job(Job::new("skip", "@yearly", skip))
        .job(Job::new("panics", "@yearly", panics))
        .job(Job::new("hang", "@yearly", hang).timeout(at_once))
        .job(Job::new("slow", "every 1s", slow).set("catch_up", "none"))
        .job(Job::new("compute", "@yearly", compute).timeout(at_once))
}

/// The application, to run in a project's folder.
fn command(project: &Project, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).current_dir(project.path()).env(APPLICATION, "1");
    command
}

fn run(project: &Project, arguments: &[&str]) -> Run {
    let output = command(project, arguments).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn job(project: &Project, name: &str) -> Value {
    let jobs = run(project, &["cron", "list", "--format", "json"]).succeeds().json();
    jobs.as_array().unwrap().iter().find(|job| job["name"] == name).unwrap().clone()
}

#[test]
fn a_function_runs_in_processes_of_its_own_with_what_it_asks_for() {
    let project = Project::new("cron: [{name: other, schedule: '@yearly', command: ['true']}]");
    let _supervisor = Running::start(&project, "supervise", command(&project, &["supervise"]));
    wait_until("it has run twice", || project.lines("ran").len() >= 2);
    let pids = project.lines("ran");
    assert!(pids[0] != pids[1] && !project.lines("handled").is_empty());
    wait_until("a run is recorded", || job(&project, "tick")["runs"][1]["result"] == "succeeded");
    let run = job(&project, "tick")["runs"][1].clone();
    assert_eq!(run["output"], "INFO the shop is looked at open=true\nthe shop is there, true");
    assert!(project.log().contains("the shop is there, true job=\"tick\""), "{}", project.log());
    assert_eq!(job(&project, "tick")["schedule"], "every second");
}

#[test]
fn how_a_function_ends_is_how_its_run_went() {
    let project = Project::new("cron: []");
    let ended = |name: &str, code: i32| {
        let run = run(&project, &["cron", "run", name]).exits(code);
        (run, job(&project, name)["last_run"].clone())
    };
    let (shown, _) = ended("tick", 0);
    assert_eq!(shown.stdout, "the shop is there, true\n");
    let (told, kept) = ended("bad", 1);
    assert!(told.stderr.contains("failed: the disk is full job=\"bad\""), "{told:?}");
    assert_eq!((&kept["result"], &kept["why"]), (&"failed".into(), &"the disk is full".into()));
    assert_eq!(kept["output"], "WARN it gets tight");
    let (_, kept) = ended("skip", 0);
    assert_eq!((&kept["result"], &kept["why"]), (&"skipped itself".into(), &"no orders".into()));
    let (_, kept) = ended("panics", 1);
    assert_eq!((&kept["result"], &kept["why"]), (&"failed".into(), &"it panicked: no way".into()));
    let (_, kept) = ended("hang", 1);
    assert_eq!((&kept["result"], &kept["why"]), (&"failed".into(), &"timed out after 300ms".into()));
    assert_eq!(project.lines("cancelled").len(), 1);
    let (told, kept) = ended("compute", 1);
    assert_eq!((&kept["result"], &kept["why"]), (&"failed".into(), &"timed out after 300ms".into()));
    assert!(told.stderr.contains("its function computes on, and ends with this process"), "{told:?}");
}

#[test]
fn a_function_outlives_its_supervisor_and_is_told_when_its_process_is_killed() {
    let project = Project::new("cron: []");
    let mut first = Running::start(&project, "first", command(&project, &["supervise"]));
    wait_until("it has begun", || project.lines("begun").len() == 1);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends(), Some(0));
    project.write("go", "");
    wait_until("it ends well", || job(&project, "slow")["last_run"]["output"] == "at last");
    fs::remove_file(project.file("go")).unwrap();
    let _second = Running::start(&project, "second", command(&project, &["supervise"]));
    wait_until("it has begun again", || project.lines("begun").len() > 1);
    let pid = project.lines("begun").last().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("it is told", || project.lines("second.err").join("").contains("job slow failed: it was killed"));
}

#[test]
fn a_supervisor_in_an_application_runs_jobs_as_processes_if_it_knows_its_program() {
    let project = Project::new("cron: []");
    let mut manager = Running::start(&project, "manage", command(&project, &[]));
    wait_until("both have begun", || !project.lines("ran").is_empty() && !project.lines("begun").is_empty());
    let pids = [project.lines("ran"), project.lines("begun")].concat();
    assert!(!pids.contains(&manager.pid().to_string()), "{pids:?}");
    project.write("done", "");
    assert_eq!(manager.ends(), Some(0));
    project.write("go", "");
    wait_until("it has outlived the supervisor", || job(&project, "slow")["last_run"]["output"] == "at last");
}

#[test]
fn what_a_function_lacks_and_names_that_are_taken_are_found_when_the_application_is_built() {
    let cron = serde_json::json!([{ "name": "a", "schedule": "daily", "command": ["true"] }]);
    let folder = tempfile::tempdir().unwrap();
    let app = App::builder().config(Config::builder().set("cron", cron)).dir(folder.path());
    let built = app
        .job(Job::new("a", "daily", bad))
        .job(Job::new("b", "61 * * * *", tick).timezone("Mars").set("timeout", "0").set("overlap", "maybe"))
        .job(Job::new("b", "daily", bad).set("command", ["true"]).set("nmae", 1))
        .job(Job::new("c/d", "daily", bad))
        .build();
    let Err(Error::Configuration(problems)) = built else { panic!("it is built") };
    let told = problems.to_string();
    for expected in [
        "job a: cron[0] has this name already; give one of them another",
        "job b: needs a state of type ",
        "job b.schedule: minute: \"61\" cannot be read",
        "job b.timezone: unknown time zone \"Mars\"",
        "job b.timeout: must be more than 0",
        "job b.overlap: must be one of skip, allow, queue",
        "job b: job b has this name already; give one of them another",
        "job b.command: means nothing for a job that is a function",
        "job b: unknown key \"nmae\"",
        "job c/d.name: must be a name",
    ] {
        assert!(told.contains(expected), "{expected} is not in {told}");
    }
}

#[test]
fn debug_shows_what_jobs_do_without_their_secrets() {
    let project = Project::new(
        "cron:
  - {name: ping, schedule: daily, http: 'https://ada:s3cret@example.com/cron?key=s3cret'}
  - {name: backup, schedule: daily, command: [bin/backup, --password=s3cret]}
  - {name: note, schedule: daily, dispatch: {type: App\\Note, body: s3cret}}",
    );
    let shown = run(&project, &["debug"]).succeeds().stdout;
    for expected in [
        "GET https://example.com/cron?***",
        "runs bin/backup",
        "dispatches App\\Note",
        "calls a function",
        "every second",
    ] {
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }
    assert!(!shown.contains("s3cret"), "{shown}");
    let json = run(&project, &["debug", "--format", "json"]).succeeds().json();
    assert_eq!(
        json["jobs"][0],
        serde_json::json!({ "name": "ping", "schedule": "daily", "does": "GET https://example.com/cron?***" })
    );
}

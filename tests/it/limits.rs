//! Behaviour under tight limits: open files, processes and threads, the length of a file's name.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::databases::{Database, Server};
use crate::support::{Project, Run, Running, wait_until};

/// An auto-fallback to a queue, and no handler for messages that are handled at once.
const CONFIG: &str = r#"
transports:
    prio: auto-fallback://prio?target=queue&fallback=sync
    queue: sqlite:var/messages.db
    sync: sync://
routing: {'*': prio}
handlers: {'*': {exec: [sh, -c, 'cat >> handled']}}
"#;

/// The program, started by a shell that sets a limit first.
fn limited(project: &Project, limit: &str, arguments: &[&str]) -> Command {
    let program = project.command(&[]).get_program().to_owned();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit} && exec \"$0\" \"$@\"")]).arg(program).args(arguments);
    command.current_dir(project.path()).stdin(Stdio::null());
    command
}

#[test]
fn a_reader_without_descriptors_leaves_a_live_workers_heartbeat_alone() {
    let project = Project::new(CONFIG);
    project.run(&["setup"]).succeeds();
    let _worker = project.start("worker", &["consume", "prio"]);
    wait_until("the worker pings", || project.is_running("prio"));
    let mut failed = 0;
    for descriptors in 4..16 {
        let output = limited(&project, &format!("ulimit -n {descriptors}"), &["alive", "prio"]).output().unwrap();
        failed += u32::from(!output.status.success());
    }
    assert!(failed > 0, "no limit was low enough to matter");
    assert!(project.is_running("prio"));
}

#[test]
fn commands_without_descriptors_end_with_an_error_that_names_the_limit() {
    let project = Project::new(CONFIG);
    project.run(&["setup"]).succeeds();
    for descriptors in 3..24 {
        for arguments in [
            &["status"][..],
            &["stats"],
            &["config", "check"],
            &["dispatch", "Note", "{}", "--transport=queue", "--delay=1h"],
            &["consume", "prio", "--time-limit=1"],
            &["cron", "--dry-run"],
            &["stop-workers"],
        ] {
            let output = limited(&project, &format!("ulimit -n {descriptors}"), arguments).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            let case = format!("{arguments:?} with {descriptors}: {:?}: {stderr}", output.status);
            assert!(output.status.code().is_some_and(|code| code != 101) && !stderr.contains("panicked"), "{case}");
            // With less the system's loader cannot read the program.
            if (4..=10).contains(&descriptors) {
                assert_eq!(output.status.code(), Some(1), "{case}");
                assert!(stderr.contains(&format!("(`ulimit -n`, {descriptors} here) are used up: raise")), "{case}");
            }
        }
    }
}

/// Limits a process's descriptors to `limit`.
fn bound_descriptors(pid: i32, limit: usize) {
    let bound = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={limit}:1024")]).status();
    assert!(bound.unwrap().success());
}

#[test]
fn a_handler_without_descriptors_waits_and_uses_up_no_retry() {
    let project = Project::new(BURST);
    project.run(&["setup"]).succeeds();
    let worker = project.start("worker", &["consume", "high"]);
    wait_until("the worker pings", || project.is_running("high"));
    let in_use = fs::read_dir(format!("/proc/{}/fd", worker.pid())).unwrap().count();
    // Enough for its own files, and too few for a program's pipes.
    let limit = in_use + 3;
    bound_descriptors(worker.pid(), limit);
    project.run(&["dispatch", "High", "{\"a\":1}"]).succeeds();
    wait_until("the worker waits for descriptors", || project.log().contains("waiting for a process"));
    assert!(project.log().contains(&format!("`ulimit -n`, {limit} here")), "{}", project.log());
    wait_until("the message is put back", || project.log().contains("without using up a retry"));
    bound_descriptors(worker.pid(), 256);
    wait_until("the message is handled", || !project.lines("handled").is_empty());
    assert_eq!(project.lines("handled"), ["1 {\"a\":1}"]);
}

/// A worker with a stream program that has a message, and another message whose process the system refuses.
fn refused_beside_a_busy_one(project: &Project) -> Running {
    project.write(
        "worker.sh",
        "while read -r line; do echo $$ >> got; while [ ! -e go ]; do sleep 0.02; done; echo '{\"ok\":true}'; done\n",
    );
    project.run(&["dispatch", "Greet", "{}"]).succeeds();
    let worker = project.start("worker", &["consume", "mail", "--concurrency=2", "--sleep=20ms"]);
    wait_until("the program has a message", || project.lines("got").len() == 1);
    let in_use = fs::read_dir(format!("/proc/{}/fd", worker.pid())).unwrap().count();
    bound_descriptors(worker.pid(), in_use + 3);
    project.run(&["dispatch", "Greet", "{}"]).succeeds();
    wait_until("the other waits for descriptors", || project.log().contains("waiting for a process"));
    worker
}

const GREETING: &str =
    "transports: {mail: 'sqlite:q.db'}\nrouting: {'*': mail}\nhandlers: {Greet: {stream: [sh, worker.sh]}}\n";

#[test]
fn a_message_gets_the_program_that_has_answered_where_no_other_can_be_started() {
    let project = Project::new(GREETING);
    let _worker = refused_beside_a_busy_one(&project);
    project.write("go", "");
    let begun = std::time::Instant::now();
    wait_until("both are handled", || project.lines("got").len() == 2);
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(project.lines("got")[0], project.lines("got")[1], "by the same process");
}

#[test]
fn a_worker_that_stops_does_not_wait_for_a_program_that_cannot_be_started() {
    let project = Project::new(GREETING);
    let mut worker = refused_beside_a_busy_one(&project);
    worker.signal(Signal::SIGTERM);
    wait_until("it is put back", || project.log().contains("without using up a retry"));
    let begun = std::time::Instant::now();
    project.write("go", "");
    assert_eq!(worker.ends(), Some(0));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    wait_until("it is there for others", || project.pending("mail") == 1);
}

#[test]
fn a_long_state_dir_does_not_keep_messages_from_being_queued() {
    let config = format!(
        "{CONFIG}\nstate_dir: {}\nworkers: [{{transports: [prio], autoscale: {{min: 0, max: 1, desired_size: 1}}}}]\n",
        "a folder/".repeat(25)
    );
    let project = Project::new(&config);
    let _supervisor = project.start("supervisor", &["supervise"]);
    wait_until("the supervisor promises to look", || project.is_running("prio"));
    let report = project.json(&["dispatch", r"App\Note", "{\"a\":1}"]);
    assert_eq!(report["outcome"], "queued", "{report}");
    wait_until("the message is handled", || !project.lines("handled").is_empty());
}

/// A separate user in a project's folder, with a limit on processes and threads.
struct Account {
    project: Project,
    id: u32,
    processes: u32,
}

impl Account {
    /// `None` if there is no other user to switch to: the test is then reported as skipped.
    fn new(config: &str, processes: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            harness::skip("only root can run the program as a user of its own");
            return None;
        }
        let project = Project::new(config);
        // The one that was built may be where only root gets to. Copied by another process: a program that is open for
        // writing cannot be executed, and what other tests fork meanwhile would hold this process's descriptor open.
        let mut install = Command::new("install");
        install.arg("-m755").arg(project.command(&[]).get_program()).arg(project.file("minutely"));
        assert!(install.status().unwrap().success());
        let id = 1_000_000_000 + fastrand::u32(..1_000_000_000);
        chown(project.path(), Some(id), Some(id)).unwrap();
        Some(Self { project, id, processes })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nproc={}:1000", self.processes))
            .arg("--")
            .arg(self.project.file("minutely"))
            .args(arguments);
        command.current_dir(self.project.path()).uid(self.id).gid(self.id).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).output().unwrap();
        let run = Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!run.stderr.contains("panicked"), "{run:?}");
        run
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Running {
        Running::start(&self.project, name, self.command(arguments))
    }
}

/// How many threads a process has.
fn threads(pid: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    line.trim().parse().unwrap()
}

/// Two priorities whose handler takes several processes, as those of the shipped configuration do.
const BURST: &str = r#"
transports:
    high: auto-fallback://high?target=high_queue&fallback=sync
    low: auto-fallback://low?target=low_queue&fallback=sync
    high_queue: sqlite:var/messages.db?queue_name=high
    low_queue: sqlite:var/messages.db?queue_name=low
    failed: sqlite:var/messages.db?queue_name=failed
    sync: sync://
failure_transport: failed
routing: {'High': high, 'Low': low}
handlers:
    '*': {exec: [sh, -c, 'set -e; line="$MINUTELY_ATTEMPT $(cat)"; { echo "$line" && sleep 0.25; } | cat >> handled']}
workers:
    - {transports: [high], options: [--time-limit=10, --sleep=1], autoscale: {desired_size: 5, max: 10}}
    - {transports: [low], options: [--time-limit=10, --sleep=1], autoscale: {desired_size: 5, max: 10}}
"#;

#[test]
fn a_burst_is_handled_where_few_processes_are_allowed() {
    let Some(account) = Account::new(BURST, 24) else { return };
    account.run(&["setup"]).succeeds();
    let mut supervisor = account.start("supervisor", &["supervise"]);
    wait_until("there is a worker for each priority", || account.project.workers().len() == 2);
    std::thread::scope(|scope| {
        for name in ["High", "Low"] {
            let account = &account;
            scope.spawn(move || {
                for n in 0..60 {
                    account.run(&["dispatch", name, &format!("{{\"{name}\":{n}}}")]).succeeds();
                }
            });
        }
    });
    wait_until("every message is handled", || {
        let lines = account.project.lines("handled");
        let all = |name: &str| (0..60).all(|n| lines.iter().any(|line| line.ends_with(&format!("{{\"{name}\":{n}}}"))));
        all("High") && all("Low")
    });
    assert_eq!(account.project.pending("failed"), 0);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    let output = account.project.log() + &account.project.lines("supervisor.err").join("\n");
    assert!(!output.contains("panicked"), "{output}");
    assert!(output.contains("held back: this user may have 24 processes and threads"), "{output}");
}

#[test]
fn an_idle_worker_and_a_supervisor_have_two_threads_at_most() {
    let project = Project::new(BURST);
    let supervisor = project.start("supervisor", &["supervise"]);
    wait_until("there is a worker for each priority", || project.workers().len() == 2);
    let at_rest = |pid: i32| threads(pid) <= 2;
    wait_until("the supervisor and the workers are at rest", || {
        at_rest(supervisor.pid()) && project.workers().into_iter().all(at_rest)
    });
    project.run(&["dispatch", "High", "{}"]).succeeds();
    wait_until("the message is handled", || !project.lines("handled").is_empty());
    wait_until("all are at rest again", || at_rest(supervisor.pid()) && project.workers().into_iter().all(at_rest));
}

#[test]
fn a_handler_without_a_process_waits_and_uses_up_no_retry() {
    // A worker with its SQLite file has two of them, and nothing is left for a handler.
    let Some(account) = Account::new(BURST, 2) else { return };
    account.run(&["setup"]).succeeds();
    let worker = account.start("worker", &["consume", "high"]);
    wait_until("the worker pings", || account.project.is_running("high"));
    account.project.run(&["dispatch", "High", "{\"a\":1}"]).succeeds();
    wait_until("the worker waits for a process", || account.project.log().contains("waiting for a process"));
    assert!(account.project.log().contains("`ulimit -u`, 2 here"), "{}", account.project.log());
    wait_until("the message is put back", || account.project.log().contains("without using up a retry"));
    let pid = worker.pid().to_string();
    let mut raising = Command::new("prlimit");
    let raised = raising.args(["--pid", &pid, "--nproc=24:1000"]).uid(account.id).gid(account.id).status().unwrap();
    assert!(raised.success());
    wait_until("the message is handled", || !account.project.lines("handled").is_empty());
    assert_eq!(account.project.lines("handled"), ["1 {\"a\":1}"]);
}

#[test]
async fn a_dispatch_to_a_server_needs_no_second_thread() {
    let Some(database) = Database::create(Server::Postgres).await else { return };
    let config = format!("transports: {{queue: '{}'}}\nrouting: {{'*': queue}}\n", database.url());
    let Some(account) = Account::new(&config, 1) else { return };
    account.run(&["setup"]).succeeds();
    account.run(&["dispatch", "Note", "{}"]).succeeds();
    assert_eq!(account.project.pending("queue"), 1);
}

#[test]
fn an_error_for_lack_of_a_thread_names_the_limit() {
    for (dsn, processes) in [
        // A thread to look up the name with.
        ("postgres://user:secret@a-host.invalid/app", 1),
        ("amqp://user:secret@a-host.invalid/app", 1),
        // The driver's own.
        ("amqp://user:secret@127.0.0.1/app", 1),
    ] {
        let config = format!("transports: {{queue: '{dsn}'}}\nrouting: {{'*': queue}}\n");
        let Some(account) = Account::new(&config, processes) else { return };
        let run = account.run(&["dispatch", "Note", "{}"]).exits(1);
        assert!(run.stderr.contains(&format!("(`ulimit -u`, {processes} here) are used up")), "{dsn}: {run:?}");
    }
}

#[test]
fn jobs_that_are_due_at_once_wait_where_few_processes_are_allowed_and_none_fails() {
    let names: Vec<String> = (0..12).map(|n| format!("job-{n}")).collect();
    let job = |name: &String| {
        let script = "{ echo $MINUTELY_JOB && sleep 0.5; } | cat >> ran";
        format!("    - {{name: {name}, schedule: every 2s, command: [sh, -c, '{script}']}}\n")
    };
    let config = format!("{BURST}cron:\n{}", names.iter().map(job).collect::<String>());
    let Some(account) = Account::new(&config, 24) else { return };
    account.run(&["setup"]).succeeds();
    let mut supervisor = account.start("supervisor", &["supervise"]);
    let runs = |name: &String| account.project.lines("ran").iter().filter(|line| *line == name).count();
    wait_until("all jobs run twice", || names.iter().all(|name| runs(name) >= 2));
    wait_until("there is a worker for each priority", || account.project.workers().len() >= 2);
    account.run(&["dispatch", "High", "{\"a\":1}"]).succeeds();
    wait_until("messages are handled beside them", || account.project.lines("handled") == ["1 {\"a\":1}"]);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    let output = account.project.log() + &account.project.lines("supervisor.err").join("\n");
    assert!(output.contains("jobs wait until others have ended: this user may have 24 processes"), "{output}");
    assert!(
        !output.contains("panicked") && !output.contains("failed:") && !output.contains("it cannot be run"),
        "{output}"
    );
}

#[test]
fn a_job_with_more_runs_than_there_is_room_for_lets_the_others_have_their_turn() {
    let job = |name: &str, schedule: &str, rest: &str, seconds: f32| {
        let script = format!("echo $MINUTELY_JOB >> ran; sleep {seconds}");
        format!("    - {{name: {name}, schedule: {schedule}, {rest}command: [sh, -c, '{script}']}}\n")
    };
    let greedy = job("greedy", "every 1s", "overlap: allow, catch_up: all, ", 2.0);
    let config = format!("cron:\n{greedy}{}{}", job("a", "every 2s", "", 0.1), job("b", "every 2s", "", 0.1));
    let Some(account) = Account::new(&config, 14) else { return };
    let mut supervisor = account.start("supervisor", &["supervise"]);
    let runs = |name: &str| account.project.lines("ran").iter().filter(|line| *line == name).count();
    wait_until("it has more runs than there is room for", || account.project.log().contains("jobs wait until others"));
    let before = (runs("a"), runs("b"));
    wait_until("the others run", || runs("a") >= before.0 + 2 && runs("b") >= before.1 + 2);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
}

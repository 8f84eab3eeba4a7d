//! Stream programs: the clients of `docs/stream.md` in their languages, and what becomes of programs when workers end.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::skip;
use nix::sys::signal::Signal;

use crate::support::{Project, process_exists, wait_until};

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/stream").join(name)).unwrap()
}

/// A queue whose messages a program handles: with `sh`, to count how often it is started.
fn project(program: &str) -> Project {
    let stream = format!("[sh, -c, 'echo $$ >> starts; exec {program}']");
    Project::new(&format!(
        "failure_transport: failed\ntransports:\n  mail: {{dsn: 'sqlite:q.db?queue_name=mail', retry_strategy: {{max_retries: 0}}}}\n  \
         failed: 'sqlite:q.db?queue_name=failed'\nrouting: {{'*': mail}}\nhandlers:\n  Greet: {{stream: {stream}, timeout: 60s}}\n"
    ))
}

fn greets(language: &str, client: &str) {
    let runs = Command::new(language).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !runs.is_ok_and(|status| status.success()) {
        return skip(&format!("{language} is not installed"));
    }
    let project = project(&format!("{language} {client}"));
    project.write(client, example(client));
    for body in [r#"{"name":"ada"}"#, "{}", "{\"name\":\"bob\\n\u{2028}\\u2029 é\"}", "{\n \"name\": \"eve\"\n}"] {
        project.run(&["dispatch", "Greet", body]).succeeds();
    }
    project.run(&["consume", "mail", "--limit=4", "--time-limit=60"]).succeeds();
    assert_eq!(project.lines("starts").len(), 1);
    let log = project.log();
    for part in ["greeting ada", "greeting bob", " é", "greeting eve", "the message has no name"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 1));
    let pid = project.lines("starts")[0].parse().unwrap();
    wait_until("the program is gone", || !process_exists(pid));
}

#[test]
fn the_client_in_php_handles_messages() {
    greets("php", "worker.php");
}

#[test]
fn the_client_in_python_handles_messages() {
    greets("python3", "worker.py");
}

#[test]
fn the_client_for_node_handles_messages() {
    greets("node", "worker.mjs");
}

#[test]
fn the_page_shows_the_clients() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/stream.md")).unwrap();
    for (language, client) in [("php", "worker.php"), ("python", "worker.py"), ("js", "worker.mjs")] {
        let block = format!("```{language}\n{}```", example(client));
        assert!(page.contains(&block), "docs/stream.md has another {client} than examples/stream/");
    }
}

const SHELL: &str = "sh worker.sh";
const ANSWERS: &str = r#"while read -r line; do
    case $line in *wait*) : > waits; sleep 600 ;; esac
    echo "{\"ok\":true}"; : > answered
done
: > ended
"#;

#[test]
fn the_program_ends_with_its_worker_however_that_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let project = project(SHELL);
        project.write("worker.sh", ANSWERS);
        project.run(&["dispatch", "Greet", "{}"]).succeeds();
        let mut worker = project.start("worker", &["consume", "mail"]);
        wait_until("the program has answered", || project.file("answered").exists());
        let pid = project.lines("starts")[0].parse().unwrap();
        wait_until("nothing is pending", || project.pending("mail") == 0);
        assert!(process_exists(pid), "it waits for the next message");
        worker.signal(signal);
        worker.ends();
        wait_until("the program is gone", || !process_exists(pid));
        wait_until("it came to its end", || project.file("ended").exists());
    }
}

#[test]
fn a_program_in_the_middle_of_a_message_is_ended_before_the_message_comes_again() {
    let project = Project::new(
        "transports: {mail: 'sqlite:q.db'}\nrouting: {'*': mail}\nworkers: [{transports: mail, options: ['--time-limit=600']}]\n\
         handlers: {Greet: {stream: [sh, -c, 'echo $$ >> starts; exec sh worker.sh']}}\n",
    );
    project.write("worker.sh", ANSWERS);
    project.run(&["dispatch", "Greet", r#"{"a":"wait"}"#]).succeeds();
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("the message is in hand", || project.file("waits").exists());
    let pid = project.lines("starts")[0].parse().unwrap();
    project.write("worker.sh", ANSWERS.replace("sleep 600", "true"));
    for worker in project.workers() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    }
    wait_until("the message is handled", || project.file("answered").exists());
    assert!(!process_exists(pid), "two would have had it at once");
    assert_eq!(project.lines("starts").len(), 2);
}

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

#[test]
fn a_program_that_waits_and_ignores_the_end_of_its_input_is_ended_after_its_worker() {
    let project = Project::new(
        "transports: {mail: 'sqlite:q.db'}\nrouting: {'*': mail}\nworkers: [{transports: mail, options: ['--time-limit=600']}]\n\
         handlers: {Greet: {stream: [sh, -c, 'echo $$ >> starts; exec sh worker.sh']}}\n",
    );
    project.write("worker.sh", format!("{ANSWERS}while :; do sleep 1; done\n"));
    project.run(&["dispatch", "Greet", "{}"]).succeeds();
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("the program has answered", || project.file("answered").exists());
    wait_until("nothing is pending", || project.pending("mail") == 0);
    let pid = project.lines("starts")[0].parse().unwrap();
    for worker in project.workers() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    }
    wait_until("its input has ended", || project.file("ended").exists());
    wait_until("the program is gone", || !process_exists(pid));
}

#[test]
fn a_message_of_a_trace_comes_with_a_span_of_its_own() {
    for batch in ["", ", batch: {size: 2}"] {
        let project = Project::new(&format!(
            "transports: {{mail: 'sqlite:q.db'}}\nrouting: {{'*': mail}}\nhandlers: {{Greet: {{stream: [sh, worker.sh]{batch}}}}}\n"
        ));
        project.write(
            "worker.sh",
            "while read -r line; do printf '%s\\n' \"$line\" >> seen; echo '{\"ok\":true}'; done\n",
        );
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let output = project.command(&["dispatch", "Greet", "{}"]).env("TRACEPARENT", parent).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        project.run(&["consume", "mail", "--limit=1", "--time-limit=50"]).succeeds();
        let seen: serde_json::Value = serde_json::from_str(&project.lines("seen")[0]).unwrap();
        let seen = if batch.is_empty() { &seen } else { &seen[0] };
        let (span, cause) = (seen["traceparent"].as_str().unwrap(), seen["headers"]["traceparent"].as_str().unwrap());
        assert_eq!((&span[..36], span.len()), (&parent[..36], parent.len()));
        assert!(span != cause && cause != parent, "{span} {cause}");
    }
}

const BATCHES: &str = r#"
import json, sys
for line in sys.stdin.buffer:
    batch = json.loads(line)
    with open("sizes", "a") as sizes:
        print(len(batch), file=sizes)
    def answer(message):
        if message["body"]["n"] == 3:
            return {"id": message["id"], "error": "not three", "retry": False}
        return {"id": message["id"], "ok": True}
    print(json.dumps([answer(message) for message in reversed(batch)]), flush=True)
"#;

#[test]
fn a_program_gets_several_messages_at_once_and_each_has_its_own_result() {
    let handlers = "  Greet: {stream: [python3, batches.py], batch: {size: 10, wait: 60s}}\n  \
                    Count: {exec: [sh, -c, 'wc -l >> counts; test $MINUTELY_BATCH = 3'], batch: {size: 10, wait: 60s}}";
    let project = Project::new(&format!(
        "failure_transport: failed\ntransports:\n  mail: {{dsn: 'sqlite:q.db?queue_name=mail', retry_strategy: {{max_retries: 0}}}}\n  \
         failed: 'sqlite:q.db?queue_name=failed'\nrouting: {{'*': mail}}\nhandlers:\n{handlers}\n"
    ));
    project.write("batches.py", BATCHES);
    for n in 1..=5 {
        project.run(&["dispatch", "Greet", &format!("{{\"n\":{n}}}")]).succeeds();
    }
    project.run(&["consume", "mail", "--limit=5", "--time-limit=50"]).succeeds();
    assert_eq!((project.lines("sizes").join(" "), project.pending("failed")), ("5".to_owned(), 1));
    assert!(project.log().contains("not three"), "{}", project.log());
    for _ in 0..3 {
        project.run(&["dispatch", "Count", "{}"]).succeeds();
    }
    project.run(&["consume", "mail", "--limit=3", "--time-limit=50"]).succeeds();
    assert_eq!((project.lines("counts").join(" "), project.pending("failed")), ("3".to_owned(), 1));
    assert_eq!(project.pending("mail"), 0);
}

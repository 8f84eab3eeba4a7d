//! Many messages at once: `dispatch --ndjson`, and what is left when it is killed.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::process::Stdio;

use minutely::App;
use minutely::message::Envelope;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::databases::{Database, Server};
use crate::support::{Project, Running, wait_until};

const CONFIG: &str = r#"
transports:
  mail: "DSN"
  sync: sync://
routing: {'App\Mail': mail}
handlers:
  'App\Now': {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  'App\Broken': {exec: [sh, -c, 'exit 3']}
"#;

fn project(dsn: &str) -> Project {
    Project::new(&CONFIG.replace("DSN", dsn))
}

fn mail(n: usize) -> String {
    format!(r#"{{"type":"App\\Mail","body":{{"n":{n}}}}}"#)
}

fn mails(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|n| mail(n) + "\n").collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The numbers of all mails that are queued, in the order in which they are received.
fn queued(project: &Project) -> Vec<u64> {
    let app = App::builder().config_file(project.file("config.yaml")).build().unwrap();
    let queue = app.transports().get("mail").unwrap();
    let receiver = queue.receiver.clone().unwrap();
    block_on(async {
        let mut numbers = Vec::new();
        loop {
            let received = receiver.receive(1000).await.unwrap();
            if received.is_empty() {
                return numbers;
            }
            for one in &received {
                let envelope = Envelope::decode(one.message.as_ref().unwrap()).unwrap();
                let body: Value = serde_json::from_slice(envelope.body()).unwrap();
                numbers.push(body["n"].as_u64().unwrap());
            }
            receiver.ack(&received.iter().map(|one| one.id.clone()).collect::<Vec<_>>()).await.unwrap();
        }
    })
}

/// Starts a run that reads what the test writes.
fn start(project: &Project, name: &str, arguments: &[&str]) -> (Running, std::fs::File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = project.command(arguments);
    command.stdin(Stdio::from(reader));
    (Running::start(project, name, command), std::fs::File::from(std::os::fd::OwnedFd::from(writer)))
}

#[test]
fn each_line_is_a_message_with_what_it_says_and_what_the_arguments_say() {
    let project = project("sqlite:q.db");
    let lines = [
        mail(0),
        String::new(),
        r#"{"type":"App\\Mail","body":{"n":1},"delay":"1h"}"#.to_owned(),
        r#"{"type":"App\\Mail","body":{"n":2},"transports":["sync","mail"]}"#.to_owned(),
        r#"{"type":"App\\Now","body":{"n":3},"transports":["sync"],"stamps":{"DelayStamp":{"delay":5}}}"#.to_owned(),
        r#"  {"type":"App\\Now","body":{"n":4}}  "#.to_owned(),
    ];
    project.write("in", lines.join("\r\n"));
    project.write("config.yaml", CONFIG.replace("DSN", "sqlite:q.db").replace(r"App\Now'", r"App\*'"));
    let report = project.json(&["dispatch", "--ndjson", "in"]);
    assert_eq!(
        (&report["lines"], &report["queued"], &report["handled"], &report["failed"], &report["through"]),
        (&json!(5), &json!(3), &json!(2), &json!(0), &json!(6)),
        "{report}"
    );
    assert_eq!(report["stopped"], json!(null));
    let mut handled = project.lines("handled");
    handled.sort();
    assert_eq!(handled, [r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#]);
    assert_eq!(project.pending("mail"), 2);
    project.write("in", r#"{"type":"App\\Now"}"#);
    let report = project.json(&["dispatch", "--ndjson", "in", "--transport=mail", "--delay=1h"]);
    assert_eq!((&report["queued"], project.pending("mail")), (&json!(1), 2));
}

#[test]
fn a_line_that_is_no_message_ends_the_run_after_those_before_it() {
    let project = project("sqlite:q.db");
    for (bad, why) in [
        ("{", "EOF"),
        (r#"{"type":"App\\Mail","dely":1}"#, "unknown field"),
        (r#"{"type":"App\\Mail","transports":["mial"]}"#, "mail"),
        (r#"{"type":"App\\Mail","stamps":{"DelayStamp":7}}"#, "DelayStamp"),
        (r#"{"type":""}"#, "type is empty"),
    ] {
        project.write("in", format!("{}{bad}\n{}", mails(0..2), mails(2..3)));
        let run = project.run(&["dispatch", "--ndjson", "in", "--format=json"]).exits(1);
        let report = run.json();
        assert_eq!((&report["queued"], &report["through"]), (&json!(2), &json!(2)), "{report}");
        assert!(run.stderr.contains("line 3 is no message") && run.stderr.contains(why), "{}", run.stderr);
        assert!(run.stderr.contains("--from-line=3 goes on"), "{}", run.stderr);
        assert_eq!(queued(&project), [0, 1]);
    }
    let run = project.run(&["dispatch", "--ndjson", "in", "--keep-going", "--from-line=2"]).exits(1);
    assert!(run.stdout.contains("3 lines: 2 queued") && run.stdout.contains("1 not accepted"), "{run:?}");
    assert!(run.stderr.contains("line 3 was not accepted"), "{run:?}");
    assert_eq!(queued(&project), [1, 2]);
    project.run(&["dispatch", "--ndjson", "nope"]).exits(1);
    project.run(&["dispatch", "--ndjson", "in", "App\\Mail"]).exits(2);
}

#[test]
fn a_run_that_a_failure_has_ended_goes_on_with_the_line_that_failed() {
    let project = project("sqlite:q.db");
    let broken = r#"{"type":"App\\Broken"}"#;
    for (text, advice) in [
        (format!("{}{broken}\n", mails(0..2)), "--from-line=3 goes on with the last of them"),
        (format!("{broken}\n{}", mails(0..2)), "--from-line=1 goes on with the first that failed"),
    ] {
        project.write("in", text);
        let run = project.run(&["dispatch", "--ndjson", "in"]).exits(1);
        assert!(run.stderr.contains(advice), "{}", run.stderr);
        assert_eq!(queued(&project), [0, 1]);
    }
}

#[test]
fn a_line_without_end_is_refused_and_does_not_fill_the_memory() {
    let project = project("sqlite:q.db");
    let arguments = ["dispatch", "--ndjson", "-", "--keep-going", "--format=json"];
    let (mut run, mut input) = start(&project, "run", &arguments);
    input.write_all(mails(0..1).as_bytes()).unwrap();
    let block = vec![b'x'; 1 << 20];
    for _ in 0..200 {
        input.write_all(&block).unwrap();
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    input.write_all(format!("\n{}", mails(1..2)).as_bytes()).unwrap();
    drop(input);
    assert_eq!(run.ends(), Some(1));
    let report: Value = serde_json::from_str(&project.lines("run.out")[0]).unwrap();
    assert_eq!((&report["queued"], &report["failures"][0]["line"]), (&json!(2), &json!(2)), "{report}");
    assert!(report["failures"][0]["error"].as_str().unwrap().contains("longer than 16 MiB"), "{report}");
    assert_eq!(queued(&project), [0, 1]);
    assert!(peak < 150_000, "{peak} kB");
}

#[test]
fn lines_of_a_stream_that_pauses_do_not_wait_and_a_signal_ends_the_run() {
    let project = project("sqlite:q.db");
    let (mut run, mut input) = start(&project, "run", &["dispatch", "--ndjson", "-", "--report=done"]);
    for n in 0..3 {
        input.write_all(mails(n..n + 1).as_bytes()).unwrap();
        wait_until("the line is dispatched", || project.lines("done").len() == n + 1);
    }
    // Half a line is no message yet.
    input.write_all(br#"{"type":"App\\Ma"#).unwrap();
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends(), Some(1));
    let errors = project.lines("run.err").join("\n");
    assert!(errors.contains("interrupted") && errors.contains("up to 3"), "{errors}");
    assert_eq!(queued(&project), [0, 1, 2]);
}

#[test]
fn a_report_tells_what_is_done_and_lines_that_failed_are_tried_again() {
    let project = project("sqlite:q.db");
    let arguments = ["dispatch", "--ndjson", "in", "--report=done", "--keep-going", "--format=json"];
    project.write("in", format!("{}{}\n{}", mails(0..2), r#"{"type":"App\\Broken"}"#, mails(3..4)));
    let report = project.run(&arguments).exits(1).json();
    assert_eq!((&report["queued"], &report["failed"]), (&json!(3), &json!(1)));
    let report = project.run(&arguments).exits(1).json();
    assert_eq!((&report["lines"], &report["queued"], &report["failed"]), (&json!(1), &json!(0), &json!(1)));
    // Mended, and with further lines.
    project.write("in", format!("{}{}{}", mails(0..2), mails(2..3), mails(3..6)));
    let report = project.run(&arguments).succeeds().json();
    assert_eq!((&report["lines"], &report["queued"]), (&json!(3), &json!(3)), "{report}");
    assert_eq!(project.run(&arguments).succeeds().json()["lines"], 0);
    let mut found = queued(&project);
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2, 3, 4, 5]);
    // Another stream, one that is too short, and what is no report.
    project.write("in", mails(10..16));
    assert!(project.run(&arguments).exits(1).stderr.contains("is it another input?"));
    project.write("in", mails(0..3));
    assert!(project.run(&arguments).exits(1).stderr.contains("is it another input?"));
    assert!(project.run(&["dispatch", "--ndjson=in", "--report=in"]).exits(1).stderr.contains("is none"));
    // One line without its end may be the beginning of a report's, or all of another file.
    project.write("in", mail(1));
    assert!(project.run(&["dispatch", "--ndjson=in", "--report=in"]).exits(1).stderr.contains("is none"));
    assert_eq!(project.lines("in"), [mail(1)]);
    assert_eq!(queued(&project), [0_u64; 0]);
}

#[test]
fn a_report_is_written_by_one_run_at_a_time() {
    let project = project("sqlite:q.db");
    let (_first, mut input) = start(&project, "first", &["dispatch", "--ndjson", "-", "--report=done"]);
    input.write_all(mails(0..1).as_bytes()).unwrap();
    wait_until("it runs", || project.lines("done").len() == 1);
    let second = project.run(&["dispatch", "--ndjson", "-", "--report=done"]).exits(1);
    assert!(second.stderr.contains("another run"), "{second:?}");
}

#[test]
fn a_store_that_is_down_ends_the_run_and_later_it_goes_on() {
    let project = project("sqlite:folder/q.db");
    project.write("folder/q.db", "this is no database, and long enough to be seen as none".repeat(20));
    project.write("in", mails(0..3));
    let arguments = ["dispatch", "--ndjson", "in", "--report=done", "--keep-going"];
    let run = project.run(&arguments).exits(1);
    assert!(run.stderr.contains("line 1 could not be dispatched"), "{run:?}");
    std::fs::remove_file(project.file("folder/q.db")).unwrap();
    project.run(&arguments).succeeds();
    assert_eq!(queued(&project), [0, 1, 2]);
}

/// Kills a run several times in the middle, and goes on each time.
fn is_resumed_without_loss(dsn: &str) {
    const LINES: usize = 60_000;
    const GROUP: usize = 4096;
    let project = project(dsn);
    project.write("in", mails(0..LINES));
    let through = || {
        let lines = project.lines("done");
        // The last may be half written.
        let entries = lines.iter().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries.map(|entry| entry["through"].as_u64().unwrap()).next().unwrap_or(0)
    };
    let arguments = ["dispatch", "--ndjson", "in", "--report=done"];
    let mut kills = 0;
    for _ in 0..3 {
        let before = through();
        let mut run = project.start("run", &arguments);
        wait_until("it has come further", || through() > before || run.is_over());
        if !run.is_over() {
            run.signal(Signal::SIGKILL);
            kills += 1;
        }
        run.ends();
    }
    assert!(kills > 0, "it was killed at least once");
    project.run(&arguments).succeeds();
    let mut times = HashMap::<u64, usize>::new();
    for n in queued(&project) {
        *times.entry(n).or_default() += 1;
    }
    assert_eq!(times.len(), LINES, "each line was dispatched");
    let twice: BTreeSet<u64> = times.iter().filter(|(_, times)| **times > 1).map(|(n, _)| *n).collect();
    assert!(twice.len() <= kills * GROUP, "{} were dispatched twice after {kills} kills", twice.len());
}

#[test]
fn a_killed_run_on_sqlite_goes_on_without_loss() {
    is_resumed_without_loss("sqlite:q.db");
}

#[test]
fn a_killed_run_on_postgres_goes_on_without_loss() {
    let Some(database) = block_on(Database::create(Server::Postgres)) else { return };
    is_resumed_without_loss(&database.url());
}

//! Workers as processes: what they print and log, signals, and how they end. What a worker does with messages is tested in
//! `src/worker/tests.rs`.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Project, process_exists, wait_until};

/// Two queues and a failure transport. Handlers record what they get; `Fail` fails.
const CONFIG: &str = r#"
failure_transport: failed
transports:
  high: {dsn: "sqlite:q.db?queue_name=high", retry_strategy: {max_retries: 1, delay: 10}}
  low: {dsn: "sqlite:q.db?queue_name=low", retry_strategy: {max_retries: 1, delay: 10}}
  failed: "sqlite:q.db?queue_name=failed"
routing:
  Low: low
  '*': high
handlers:
  Note: {exec: [sh, -c, 'printf "%s %s\n" "$MINUTELY_TRANSPORT" "$(cat)" >> handled']}
  Low: {exec: [sh, -c, 'printf "%s %s\n" "$MINUTELY_TRANSPORT" "$(cat)" >> handled']}
  Fail: {exec: [sh, -c, 'echo "$MINUTELY_ATTEMPT" >> tries; echo broken glass; exit 1']}
  Slow: {exec: [sh, -c, 'echo begun >> slow; while [ ! -e go ]; do sleep 0.02; done; echo done >> slow']}
"#;

fn dispatch(project: &Project, message_type: &str, body: &str) {
    let report = project.json(&["dispatch", message_type, body]);
    assert_eq!(report["outcome"], "queued", "{report}");
}

/// A worker that sleeps for longer than the test lasts.
#[test]
fn an_idle_worker_handles_a_dispatched_message_at_once() {
    let project = Project::new(CONFIG);
    let mut worker = project.start("worker", &["consume", "high", "low", "--sleep=3600", "--limit=4"]);
    for n in 0..4 {
        wait_until("the worker runs", || project.is_running("high"));
        dispatch(&project, if n % 2 == 0 { "Note" } else { "Low" }, &n.to_string());
        wait_until("the message is handled", || project.lines("handled").len() == n + 1);
    }
    assert_eq!(worker.ends(), Some(0));
}

#[test]
fn a_failed_message_is_retried_and_then_kept_on_the_failure_transport() {
    let project = Project::new(CONFIG);
    dispatch(&project, "Fail", "{}");
    project.run(&["consume", "high", "--failure-limit=2", "--sleep=20ms", "--time-limit=50"]).succeeds();
    assert_eq!(project.lines("tries"), ["1", "2"]);
    assert_eq!((project.pending("high"), project.pending("failed")), (0, 1));
    let text = project.log();
    assert!(text.contains("broken glass"), "the program's output is in the log: {text}");
}

#[test]
fn a_signal_lets_the_message_in_hand_be_finished() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let project = Project::new(CONFIG);
        dispatch(&project, "Slow", "{}");
        dispatch(&project, "Note", "2");
        let mut worker = project.start("worker", &["consume", "high"]);
        wait_until("it is being handled", || project.lines("slow").len() == 1);
        assert!(project.is_running("high"));
        worker.signal(signal);
        project.write("go", "");
        assert_eq!(worker.ends(), Some(0));
        assert_eq!(project.lines("slow"), ["begun", "done"], "{signal}");
        assert_eq!(project.pending("high"), 1, "the next one is left for others");
        assert!(!project.is_running("high"), "the heartbeat is withdrawn at once");
    }
}

#[test]
fn a_second_signal_ends_the_worker_and_the_program_it_waits_for() {
    let project = Project::new(CONFIG);
    dispatch(&project, "Slow", "{}");
    let mut worker = project.start("worker", &["consume", "high"]);
    wait_until("it is being handled", || project.lines("slow").len() == 1);
    worker.signal(Signal::SIGTERM);
    wait_until("the first signal is heard", || project.log().contains("finishing the current messages"));
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.ends(), Some(1));
    wait_until("nothing runs any more", || project.processes().is_empty());
    let said = std::fs::read_to_string(project.file("worker.err")).unwrap();
    assert!(said.contains("delivered again after redeliver_timeout (3600s)"), "{said}");
}

#[test]
fn a_worker_stops_when_workers_are_asked_to_and_later_ones_do_not() {
    let project = Project::new(CONFIG);
    let mut worker = project.start("worker", &["consume", "high", "--sleep=30"]);
    wait_until("it runs", || project.is_running("high"));
    project.run(&["stop-workers"]).succeeds();
    assert_eq!(worker.ends(), Some(0));
    dispatch(&project, "Note", "1");
    project.run(&["messenger:consume", "high", "--limit=1"]).succeeds();
}

#[test]
fn a_killed_worker_counts_as_alive_for_no_longer_than_its_ttl() {
    let project = Project::new(&format!("{CONFIG}\nheartbeat: {{ttl: 1s}}\n"));
    let worker = project.start("worker", &["consume", "high"]);
    wait_until("it runs", || project.is_running("high"));
    worker.signal(Signal::SIGKILL);
    wait_until("the heartbeat expires", || !project.is_running("high"));
}

#[test]
fn messages_queued_after_the_last_poll_are_handled_at_the_time_limit() {
    let project = Project::new(CONFIG);
    let mut worker = project.start("worker", &["consume", "high", "--time-limit=2", "--sleep=300"]);
    wait_until("it runs", || project.is_running("high"));
    dispatch(&project, "Note", "1");
    assert_eq!(worker.ends(), Some(0));
    assert_eq!(project.lines("handled"), ["high 1"]);
}

#[test]
fn an_idle_worker_sleeps() {
    let project = Project::new(CONFIG);
    let worker = project.start("worker", &["consume", "high", "--sleep=1"]);
    wait_until("it runs", || project.is_running("high"));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (mut before, mut begun) = (ticks(), Instant::now());
    wait_until("it takes 30 ms of three seconds at most", || {
        if begun.elapsed() < Duration::from_secs(3) {
            return false;
        }
        let (now, used) = (ticks(), ticks() - before);
        (before, begun) = (now, Instant::now());
        used <= 3
    });
    assert!(process_exists(worker.pid()));
}

#[test]
fn four_workers_on_one_queue_handle_each_message_once() {
    let project = Project::new(CONFIG);
    let handles: Vec<_> = (0..4)
        .map(|n| project.start(&format!("worker{n}"), &["consume", "high", "--sleep=50ms", "--time-limit=50"]))
        .collect();
    for n in 0..60 {
        dispatch(&project, "Note", &n.to_string());
    }
    wait_until("all are handled", || project.lines("handled").len() >= 60 && project.pending("high") == 0);
    drop(handles);
    let mut handled = project.lines("handled");
    handled.sort();
    let mut expected: Vec<String> = (0..60).map(|n| format!("high {n}")).collect();
    expected.sort();
    assert_eq!(handled, expected);
}

//! Workers as processes: what stops them, what they are told not to consume, rate limits,
//! and hooks.

use nix::sys::signal::Signal;

use crate::support::{Project, wait_until};

const CONFIG: &str = r#"
stop_worker_on_signals: [SIGUSR1]
failure_transport: failed
transports:
  failed: "sqlite:q.db?queue_name=failed"
  now: 'sync://'
  high: {dsn: "sqlite:q.db?queue_name=high", retry_strategy: {delay: 10}}
  low: "sqlite:q.db?queue_name=low"
  low_or_now: 'auto-fallback://low_or_now?target=low&fallback=now'
routing: {Low: low, '*': high}
handlers:
  Note: {exec: [sh, -c, 'echo "$MINUTELY_TRANSPORT" >> handled']}
  Low: {exec: [sh, -c, 'echo "$MINUTELY_TRANSPORT" >> handled']}
  Enough: {exec: [sh, -c, 'echo enough >> handled; echo no more disk; exit 79']}
"#;

#[test]
fn a_worker_stops_on_the_signals_of_the_configuration() {
    for signal in [Signal::SIGUSR1, Signal::SIGTERM] {
        let project = Project::new(CONFIG);
        let mut worker = project.start("worker", &["consume", "high", "--format=json"]);
        wait_until("the worker runs", || project.is_running("high"));
        worker.signal(signal);
        assert_eq!(worker.ends(), Some(0), "{signal}");
    }
}

#[test]
fn all_transports_are_consumed_but_those_excluded_under_any_name() {
    let project = Project::new(CONFIG);
    for message_type in ["Low", "Note"] {
        project.json(&["dispatch", message_type, "{}"]);
    }
    let consume = |arguments: &[&str]| {
        let arguments = [&["consume", "--all", "--time-limit=500ms"], arguments].concat();
        project.run(&arguments)
    };
    consume(&["--exclude-receivers=low_or_now", "--exclude-receivers=failed"]).succeeds();
    assert_eq!((project.lines("handled"), project.pending("low")), (vec!["high".to_owned()], 1));
    consume(&[]).succeeds();
    assert_eq!(project.lines("handled"), ["high", "low"]);
    for (arguments, code, text) in [
        (&["consume", "--all", "--exclude-receivers=hgih"][..], 2, "did you mean \"high\"?"),
        (&["consume", "high", "--exclude-receivers=low"], 2, "--all"),
        (&["consume", "high", "--all"], 2, "--all"),
        (
            &["consume", "--all", "--exclude-receivers=high", "--exclude-receivers=low", "--exclude-receivers=failed"],
            2,
            "no transport is left",
        ),
    ] {
        let run = project.run(arguments);
        assert_eq!(run.code, Some(code), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(text), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn a_program_stops_its_worker_with_an_exit_code() {
    let project = Project::new(CONFIG);
    for message_type in ["Enough", "Note"] {
        project.json(&["dispatch", message_type, "{}"]);
    }
    let ended = project.json(&["consume", "high"]);
    assert_eq!((ended["failed"].as_u64(), ended["reason"].as_str()), (Some(1), Some("handler")), "{ended}");
    assert_eq!(project.lines("handled"), ["enough"]);
    assert!(project.log().contains("exit code 79, which stops the worker: no more disk"), "{}", project.log());
}

#[test]
fn workers_share_a_rate_limit() {
    let config = CONFIG.replace(
        "{dsn: \"sqlite:q.db?queue_name=high\",",
        "{dsn: \"sqlite:q.db?queue_name=high\", rate_limiter: slow,",
    );
    let project = Project::new(&format!(
        "rate_limiter: {{slow: {{policy: sliding_window, limit: 5, interval: 1 hour}}}}\n{config}"
    ));
    for _ in 0..8 {
        project.json(&["dispatch", "Note", "{}"]);
    }
    let mut workers = ["a", "b", "c"].map(|name| project.start(name, &["consume", "high", "low", "--sleep=10ms"]));
    wait_until("the permits are used", || project.lines("handled").len() == 5);
    // The limit holds one transport up alone.
    project.json(&["dispatch", "Low", "{}"]);
    wait_until("the other transport is consumed", || project.lines("handled").last().is_some_and(|last| last == "low"));
    workers.iter().for_each(|worker| worker.signal(Signal::SIGTERM));
    for worker in &mut workers {
        assert_eq!(worker.ends(), Some(0));
    }
    assert_eq!((project.lines("handled").len(), project.pending("high")), (6, 3));
}

#[test]
fn hooks_are_told_what_happens_without_bodies_and_do_no_harm() {
    let hooks = r#"
hooks:
  - {on: [worker_started, failed, retried, parked, worker_stopped], exec: [sh, -c, 'cat >> told; echo >> told'], every: 1ms}
  - {on: failed, exec: [sh, -c, 'echo no such luck; exit 3']}
  - {on: failed, exec: [no-such-program]}
"#;
    let project = Project::new(&format!("{hooks}{CONFIG}").replace("delay: 10}", "delay: 10, max_retries: 1}"));
    project.write(
        "config.yaml",
        std::fs::read_to_string(project.file("config.yaml")).unwrap() + "  Fail: {exec: ['false']}\n",
    );
    project.json(&["dispatch", "Fail", r#"{"password":"hunter2"}"#]);
    project.run(&["consume", "high", "--limit=2", "--sleep=10ms", "--time-limit=50"]).succeeds();
    let text = project.lines("told").join("\n");
    let told: Vec<serde_json::Value> = project
        .lines("told")
        .iter()
        .flat_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["events"].as_array().unwrap().clone())
        .collect();
    let names: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["worker_started", "failed", "retried", "failed", "parked", "worker_stopped"], "{text}");
    assert_eq!((&told[1]["type"], &told[4]["kept_on"]), (&"Fail".into(), &"failed".into()), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let log = project.log();
    assert!(log.contains("exit code 3: no such luck") && log.contains("no-such-program"), "{log}");
    assert_eq!(project.pending("failed"), 1);
}

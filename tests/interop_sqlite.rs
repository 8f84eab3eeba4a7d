//! One SQLite queue for minutely and the real Symfony Messenger.

mod support;

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::php::{Php, is_here};
use support::{Project, Run, wait_until};

const CONFIG: &str = r#"
failure_transport: failed
transports:
  async: {dsn: "doctrine://default?queue_name=async", retry_strategy: {max_retries: 1, delay: 10}}
  failed: "doctrine://default?queue_name=failed"
connections: {default: "sqlite:///%kernel.project_dir%/data.db"}
routing: {'*': async}
handlers:
  'App\Message\Note':
    exec: [sh, -c, 'body=$(cat); case "$body" in *"\"fail\":true"*|*"not here"*) exit 1;; esac;
                    printf "{\"by\":\"us\",%s\n" "${body#?}" >> handled; printf "%s" "$MINUTELY_HEADERS" > headers']
workers:
  - name: php
    transports: [async]
    command: [php, '%env(CONSOLE)%', 'messenger:consume', '{transports}', '{options}']
    options: [--time-limit=600, --sleep=1]
    autoscale: {desired_size: 2, max: 3}
"#;

fn both() -> Option<(Project, Php)> {
    if !is_here() {
        return None;
    }
    let project = Project::new(CONFIG);
    let console = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/console.php");
    project.write(".env", format!("CONSOLE={console}\n"));
    let php = Php {
        transport_dsn: "doctrine://default?queue_name=async".to_owned(),
        failure_dsn: "doctrine://default?queue_name=failed".to_owned(),
        database_url: format!("sqlite:///{}", project.file("data.db").display()),
    };
    Some((project, php))
}

fn told(run: &Run) -> String {
    format!("{}{}", run.stdout, run.stderr)
}

fn handled(project: &Project) -> Vec<Value> {
    project.lines("handled").iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn dispatched_by_symfony_handled_here() {
    let Some((project, php)) = both() else { return };
    php.run(&project, &["dispatch", r#"{"n":7,"text":"é \"x\" / 日本"}"#]);
    assert_eq!((project.pending("async"), php.count(&project)), (1, 1));
    project.run(&["consume", "async", "--limit=1"]).succeeds();
    let handled = handled(&project);
    assert_eq!(
        (&handled[0]["by"], &handled[0]["n"], &handled[0]["text"]),
        (&"us".into(), &7.into(), &"é \"x\" / 日本".into())
    );
    let headers: BTreeMap<String, String> = serde_json::from_str(&project.lines("headers").join("")).unwrap();
    assert_eq!(headers[r"X-Message-Stamp-App\Stamp\Tenant"], r#"[{"name":"tenant 0"}]"#);
    assert_eq!((project.pending("async"), php.count(&project)), (0, 0));
}

#[test]
fn dispatched_here_handled_by_symfony() {
    let Some((project, php)) = both() else { return };
    project.run(&["dispatch", r"App\Message\Note", r#"{"n":7,"text":"é / 日本"}"#]).succeeds();
    assert_eq!((project.pending("async"), php.count(&project)), (1, 1));
    php.run(&project, &["messenger:consume", "async", "--limit=1"]);
    let handled = handled(&project);
    assert_eq!((&handled[0]["by"], &handled[0]["text"]), (&"php".into(), &"é / 日本".into()));
    assert_eq!((project.pending("async"), php.count(&project)), (0, 0));
}

#[test]
fn a_delay_is_kept_to_on_either_side() {
    let Some((project, php)) = both() else { return };
    php.run(&project, &["dispatch", r#"{"n":1}"#, "--delay=3600000"]);
    project.run(&["dispatch", r"App\Message\Note", r#"{"n":2}"#, "--delay=1h"]).succeeds();
    assert_eq!((project.pending("async"), php.count(&project)), (0, 0));
    let status = project.json(&["status"]);
    assert_eq!(status["transports"][0]["delayed"], 2, "{status}");
}

#[test]
fn failed_at_symfonys_retried_here() {
    let Some((project, php)) = both() else { return };
    php.run(&project, &["dispatch", r#"{"n":1,"fail":true}"#]);
    php.run(&project, &["messenger:consume", "async", "--limit=2", "--time-limit=20"]);
    assert_eq!((project.pending("async"), project.pending("failed")), (0, 1));
    // It fails here too, and is kept with everything that Symfony had written on it. Symfony's retry and its move to the
    // failure transport are new rows, ours are not.
    project.run(&["consume", "failed", "--limit=1"]).succeeds();
    let shown = told(&php.run(&project, &["messenger:failed:show", "3"]));
    assert!(shown.contains("exit code 1"), "{shown}");
    let stored = ["data.db", "data.db-wal"].map(|file| std::fs::read(project.file(file)).unwrap_or_default()).concat();
    assert!(String::from_utf8_lossy(&stored).contains("PHP was told to fail"));
}

#[test]
fn failed_here_shown_and_retried_by_symfony() {
    let Some((project, php)) = both() else { return };
    project.run(&["dispatch", r"App\Message\Note", r#"{"n":1,"text":"not here","fail":false}"#]).succeeds();
    project.run(&["consume", "async", "--limit=2", "--sleep=50ms", "--time-limit=20"]).succeeds();
    assert_eq!((project.pending("async"), project.pending("failed")), (0, 1));
    let shown = told(&php.run(&project, &["messenger:failed:show", "1"]));
    assert!(shown.contains(r"App\Message\Note") && shown.contains("exit code 1"), "{shown}");
    php.run(&project, &["messenger:failed:retry", "1", "--force"]);
    assert_eq!((handled(&project)[0]["by"].as_str(), project.pending("failed")), (Some("php"), 0));
}

#[test]
fn both_consume_one_queue_and_nothing_is_lost_or_doubled() {
    let Some((project, php)) = both() else { return };
    php.run(&project, &["dispatch", r#"{"n":0}"#, "--times=60"]);
    for n in 60..120 {
        project.run(&["dispatch", r"App\Message\Note", &format!(r#"{{"n":{n},"text":"","fail":false}}"#)]).succeeds();
    }
    let ours = project.start("ours", &["consume", "async", "--sleep=100ms"]);
    // SQLite tells Symfony's transport that the database is locked rather than letting it wait (its transactions begin
    // with a read); its worker then ends, and a process manager starts it again.
    let mut theirs = php.start(&project, "theirs", &["messenger:consume", "async", "--sleep=1"]);
    wait_until("all are handled", || {
        if theirs.is_over() {
            theirs = php.start(&project, "theirs", &["messenger:consume", "async", "--sleep=1"]);
        }
        project.lines("handled").len() >= 120
    });
    wait_until("the queue is empty", || project.pending("async") == 0);
    ours.signal(Signal::SIGTERM);
    theirs.signal(Signal::SIGTERM);
    let mut numbers: Vec<i64> = handled(&project).iter().map(|note| note["n"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..120).collect::<Vec<_>>());
}

#[test]
fn symfonys_worker_is_supervised_counted_and_scaled() {
    let Some((project, php)) = both() else { return };
    php.run(&project, &["messenger:setup-transports"]);
    for n in 0..6 {
        let body = format!(r#"{{"n":{n},"text":"","fail":false}}"#);
        project.run(&["dispatch", r"App\Message\Note", &body]).succeeds();
    }
    assert_eq!(project.json(&["cron", "--dry-run"])["workers"][0]["desired"], 3);
    let mut command = project.command(&["supervise"]);
    command
        .env("TRANSPORT_DSN", &php.transport_dsn)
        .env("FAILURE_DSN", &php.failure_dsn)
        .env("DATABASE_URL", &php.database_url)
        .env("HANDLED", "handled");
    let mut supervisor = support::Running::start(&project, "supervise", command);
    wait_until("workers run", || !project.workers().is_empty());
    wait_until("the supervisor speaks for them", || project.is_running("async"));
    wait_until("all are handled", || project.pending("async") == 0 && project.lines("handled").len() == 6);
    assert!(handled(&project).iter().all(|note| note["by"] == "php"));
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    assert!(!project.is_running("async"));
}

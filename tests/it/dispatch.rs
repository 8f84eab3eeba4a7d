//! Dispatching: queued or handled, and why.

use serde_json::json;

use crate::support::{Project, wait_until};

const CONFIG: &str = r#"
failure_transport: failed
transports:
  sync: sync://
  mail: auto-fallback://mail?target=mail_queue&fallback=sync
  mail_queue: "sqlite:q.db?queue_name=mail"
  other: "sqlite:q.db?queue_name=other"
  failed: "sqlite:q.db?queue_name=failed"
routing:
  'App\Mail': mail
  'App\Queued\*': other
  'App\Both': [mail, other]
handlers:
  'App\*': {exec: [sh, -c, 'printf "%s %s\n" "$MINUTELY_MESSAGE_TYPE" "$(cat)" >> handled']}
  'App\Broken': {exec: [sh, -c, 'echo no luck >&2; exit 3']}
"#;

#[test]
fn without_a_consumer_a_message_is_handled_at_once() {
    let project = Project::new(CONFIG);
    let report = project.json(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#]);
    assert_eq!((&report["outcome"], &report["transport"]), (&json!("handled"), &json!("mail")));
    assert_eq!(project.lines("handled"), [r#"App\Mail {"to":"ada"}"#]);
    assert_eq!(project.pending("mail"), 0);
}

#[test]
fn with_a_consumer_a_message_is_queued_and_handled_there() {
    let project = Project::new(CONFIG);
    let mut worker = project.start("worker", &["consume", "mail", "--limit=1", "--sleep=50ms"]);
    wait_until("the worker runs", || project.is_running("mail"));
    let report = project.json(&["dispatch", r"App\Mail", "{}"]);
    assert_eq!(
        (&report["outcome"], &report["transport"], &report["queued_on"], &report["id"]),
        (&json!("queued"), &json!("mail"), &json!("mail_queue"), &json!("1"))
    );
    assert_eq!(worker.ends(), Some(0));
    assert_eq!(project.lines("handled").len(), 1);
    assert_eq!(project.json(&["dispatch", r"App\Mail", "{}"])["outcome"], "handled", "it has gone again");
}

#[test]
fn a_worker_on_the_target_counts_for_the_auto_fallback() {
    let project = Project::new(CONFIG);
    let _worker = project.start("worker", &["consume", "mail_queue", "--sleep=50ms"]);
    wait_until("the worker runs", || project.is_running("mail"));
    assert_eq!(project.json(&["dispatch", r"App\Mail", "{}"])["outcome"], "queued");
}

#[test]
fn a_message_without_routing_is_handled_at_once() {
    let project = Project::new(CONFIG);
    let report = project.json(&["dispatch", r"App\Unrouted", "{}"]);
    assert_eq!((&report["outcome"], &report["transport"]), (&json!("handled"), &json!(null)));
}

#[test]
fn a_message_can_go_to_several_transports() {
    let project = Project::new(CONFIG);
    let report = project.json(&["dispatch", r"App\Both", "{}"]);
    assert_eq!(report["sent"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(project.pending("other"), 1);
    assert_eq!(project.lines("handled").len(), 1);
}

#[test]
fn a_transport_can_be_named_and_a_delay_given() {
    let project = Project::new(CONFIG);
    let report = project.json(&["dispatch", r"App\Mail", "{}", "--transport=other", "--delay=1h"]);
    assert_eq!((&report["outcome"], &report["transport"]), (&json!("queued"), &json!("other")));
    let status = project.json(&["status"]);
    let other = status["transports"].as_array().unwrap().iter().find(|one| one["name"] == "other").unwrap();
    assert_eq!((&other["pending"], &other["delayed"]), (&json!(0), &json!(1)));
}

#[test]
fn a_message_is_read_from_standard_input_byte_for_byte() {
    let project = Project::new(CONFIG);
    project.write("body.json", "{ \"a\": 1.00,  \"b\": \"\\u00e9 — 日本\" }\n");
    let output = project
        .command(&["dispatch", r"App\Unrouted", "-"])
        .stdin(std::fs::File::open(project.file("body.json")).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(project.lines("handled"), ["App\\Unrouted { \"a\": 1.00,  \"b\": \"\\u00e9 — 日本\" }"]);
}

#[test]
fn a_synchronous_failure_is_reported_to_the_caller() {
    let project = Project::new(CONFIG);
    let run = project.run(&["dispatch", r"App\Broken", "{}"]).exits(1);
    assert!(run.stderr.contains("no luck") && run.stderr.contains(r"App\Broken"), "{run:?}");
    assert!(run.stdout.is_empty());
}

#[test]
fn a_body_that_is_not_json_is_refused() {
    let project = Project::new(CONFIG);
    let run = project.run(&["dispatch", r"App\Queued\A", "{to: ada}"]).exits(2);
    assert!(run.stderr.contains("not JSON"), "{run:?}");
    project.write("body", b"{\"name\": \"\xff\"}");
    let body = std::fs::File::open(project.file("body")).unwrap();
    let output = project.command(&["dispatch", r"App\Queued\A", "-"]).stdin(body).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("the message is not JSON: invalid utf-8"), "{stderr}");
    assert_eq!(project.pending("other"), 0);
}

#[test]
fn an_unknown_transport_is_refused_with_a_suggestion() {
    let project = Project::new(CONFIG);
    let run = project.run(&["dispatch", r"App\Mail", "{}", "--transport=othr"]).exits(2);
    assert!(run.stderr.contains(r#"did you mean "other"?"#), "{run:?}");
}

#[test]
fn a_type_nobody_handles_is_an_error() {
    let project = Project::new(CONFIG);
    let run = project.run(&["dispatch", "Other", "{}"]).exits(1);
    assert!(run.stderr.contains("no handler"), "{run:?}");
}

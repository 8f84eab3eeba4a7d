//! Buses, stamps, checks and traces, by the program.

use serde_json::json;

use crate::support::exchanges::Exchanges;
use crate::support::{Project, wait_until};

const CONFIG: &str = r#"
default_bus: commands
buses:
  commands: ~
  events: {default_middleware: allow_no_handlers}
failure_transport: failed
transports:
  mail: "sqlite:q.db?queue_name=mail"
  failed: "sqlite:q.db?queue_name=failed"
routing:
  'App\Mail': mail
  'App\Event': mail
handlers:
  'App\Mail': {exec: [sh, -c, 'printf "%s %s\n" "$(cat)" "$TRACEPARENT" >> handled']}
  'App\Now': {exec: [sh, -c, 'printf "%s\n" "$TRACEPARENT" >> handled'], bus: commands}
validation:
  'App\Mail': {schema: mail.yaml}
"#;

const SCHEMA: &str = "properties: {to: {type: string, minLength: 3}}\n";

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn project() -> Project {
    let project = Project::new(CONFIG);
    project.write("mail.yaml", SCHEMA);
    project
}

#[test]
fn a_message_is_dispatched_on_the_bus_that_is_named() {
    let project = project();
    assert_eq!(project.json(&["dispatch", r"App\Event", "{}", "--bus=events"])["outcome"], "queued");
    project.run(&["consume", "mail", "--limit=1"]).succeeds();
    assert_eq!(project.pending("failed"), 0, "an event needs no handler");
    let run = project.run(&["dispatch", r"App\Now", "{}", "--bus=events"]).succeeds();
    assert!(project.lines("handled").is_empty(), "its handler is for commands: {run:?}");
    project.run(&["dispatch", r"App\Now", "{}"]).succeeds();
    assert_eq!(project.lines("handled").len(), 1);
    let run = project.run(&["dispatch", r"App\Now", "{}", "--bus=event"]).exits(2);
    assert!(run.stderr.contains(r#"did you mean "events"?"#), "{run:?}");
}

#[test]
fn stamps_are_given_on_the_command_line() {
    let project = project();
    let once = r#"--stamp=DeduplicateStamp={"key":"daily"}"#;
    let own = r#"--stamp=App\Stamp\Tenant={"id":7}"#;
    assert_eq!(project.json(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#, once, own])["outcome"], "queued");
    assert_eq!(project.json(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#, once])["outcome"], "duplicate");
    let said = project.run(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#, once]).succeeds().stdout;
    assert!(said.contains("a message with this key is pending"), "{said}");
    project.run(&["consume", "mail", "--limit=1"]).succeeds();
    assert_eq!(project.lines("handled").len(), 1);
    assert_eq!(
        project.json(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#, once])["outcome"],
        "queued",
        "it was handled"
    );
    let run = project.run(&["dispatch", r"App\Mail", "{}", "--stamp=DelayStmp={}"]).exits(2);
    assert!(run.stderr.contains(r#"did you mean "DelayStamp"?"#), "{run:?}");
}

#[test]
fn an_invalid_message_is_refused_and_a_broken_schema_is_a_mistake() {
    let project = project();
    let run = project.run(&["dispatch", r"App\Mail", r#"{"to":"x@"}"#]).exits(1);
    assert!(run.stderr.contains(r#""App\Mail" is invalid: /to: value is shorter than 3 characters"#), "{run:?}");
    assert_eq!(project.pending("mail"), 0);
    project.write("mail.yaml", "properties: {to: {type: text}}\n");
    let run = project.run(&["config", "check"]).exits(2);
    assert!(run.stderr.contains(r"validation.App\Mail.schema: the schema is wrong: /properties/to/type: "), "{run:?}");
}

#[test]
fn a_trace_goes_from_the_caller_to_the_handler() {
    let project = project();
    let output = project.command(&["dispatch", r"App\Now", "{}"]).env("TRACEPARENT", PARENT).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output =
        project.command(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#]).env("TRACEPARENT", PARENT).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = project.command(&["consume", "mail", "--limit=1"]).env("TRACEPARENT", "00-x").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let seen = project.lines("handled");
    assert_eq!(seen.len(), 2);
    let span = |line: &str| line.split_once("00-4bf92f3577b34da6a3ce929d0e0e4736-").map(|(_, rest)| rest.to_owned());
    let spans: Vec<String> = seen.iter().map(|line| span(line).unwrap_or_else(|| panic!("{line}"))).collect();
    assert!(spans.iter().all(|span| span.len() == 19 && !span.starts_with("00f067aa0ba902b7")), "{spans:?}");
    // Without a caller's there is none, and not that of the worker.
    project.run(&["dispatch", r"App\Mail", r#"{"to":"bob"}"#]).succeeds();
    let output = project.command(&["consume", "mail", "--limit=1"]).env("TRACEPARENT", PARENT).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(project.lines("handled").last().unwrap(), r#"{"to":"bob"} "#);
}

/// What an application of Symfony has under `framework.messenger` about its buses and their middleware.
#[test]
fn the_buses_of_an_application_of_symfony_are_understood() {
    for (buses, warns_of) in [
        (
            "
      messenger.bus.default:
        default_middleware: false
        middleware: ['Shop\\Middleware\\Audit', 'Shop\\Middleware\\Tenant']",
            r#""Shop\Middleware\Audit" is a service in PHP"#,
        ),
        (
            "
      command_bus:
        middleware: [doctrine_ping_connection, doctrine_close_connection, doctrine_transaction]",
            "doctrine_transaction",
        ),
        ("\n      command_bus: {middleware: [{doctrine_transaction: ['shop']}]}", "handlers here have connections"),
        ("\n      command_bus: {middleware: [router_context, validation]}", ""),
        (
            "
      command.bus: {middleware: [validation]}
      query.bus: {middleware: {id: messenger.middleware.validation}}
      event.bus: {default_middleware: {enabled: true, allow_no_handlers: true, allow_no_senders: true}}
    default_bus: command.bus",
            "",
        ),
    ] {
        let project = Project::new(&format!(
            "framework:\n  messenger:\n    transports: {{a: 'sqlite:a.db'}}\n    buses:{buses}\nhandlers: {{'*': {{exec: [cat]}}}}\n"
        ));
        let run = project.run(&["config", "check"]).succeeds();
        assert!(run.stderr.contains(warns_of), "{buses}: {run:?}");
        assert_eq!(run.stderr.is_empty(), warns_of.is_empty(), "{buses}: {run:?}");
    }
}

#[test]
fn on_a_broker_a_stamp_says_the_routing_key_and_the_priority() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let (dsn, name) = (exchanges.dsn("a"), exchanges.dsn("a").rsplit('/').next().unwrap().to_owned());
    let name = name.split('?').next().unwrap();
    let project = Project::new(&format!(
        r#"
transports:
  mail:
    dsn: '%env(DSN)%'
    options:
      exchange: {{type: direct, default_publish_routing_key: low}}
      queues:
        {name}_low: {{binding_keys: [low], arguments: {{x-max-priority: 10}}}}
        {name}_high: {{binding_keys: [high]}}
routing: {{Note: mail}}
handlers: {{Note: {{exec: [sh, -c, 'printf "%%s\n" "$(cat)" >> handled']}}}}
"#
    ));
    project.write(".env", format!("DSN={dsn}\n"));
    let send = |body: &str, stamp: serde_json::Value| {
        project.run(&["dispatch", "Note", body, &format!("--stamp=AmqpStamp={stamp}")]).succeeds();
    };
    send("1", json!({}));
    send("2", json!({ "attributes": { "priority": 9, "app_id": "test" } }));
    send("3", json!({ "routingKey": "high" }));
    let consumed = format!("--queues={name}_high");
    project.run(&["consume", "mail", &consumed, "--limit=1"]).succeeds();
    assert_eq!(project.lines("handled"), ["3"]);
    let _worker = project.start("worker", &["consume", "mail", "--limit=2"]);
    wait_until("both are handled", || project.lines("handled").len() == 3);
    assert_eq!(project.lines("handled"), ["3", "2", "1"]);
}

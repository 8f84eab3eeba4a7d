//! What Symfony Messenger's documentation shows, by its shape. Each configuration (`tests/fixtures/symfony/`) and each DSN loads,
//! or is refused with a reason: it needs another file of the PHP application, or something that is not here. Each command line
//! does here what it does there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Project, wait_until};

/// What the environment of such an application has.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("QUEUE_DSN", "doctrine://default"),
    ("AMQP_DSN", "amqp://localhost/%2f/messages"),
    ("REDIS_DSN", "redis://localhost:6379/messages"),
    ("CONSUMER_NAME", "worker-1"),
    ("DATABASE_URL", "sqlite:///%kernel.project_dir%/data.db"),
];

/// The lines that `config check` prints about a configuration, without `config.yaml: `: none if it simply loads.
type Expected = &'static [&'static str];

const FILES: &[(&str, Expected)] = &[
    ("transport", &[]),
    ("transport-with-options", &[]),
    ("routing", &[]),
    (
        "routing-by-class",
        &[
            r#"error: framework.messenger.routing.App\Message\Background: unknown transport "async"; known: none"#,
            r#"error: framework.messenger.routing.App\Message\BackgroundInterface: unknown transport "async"; known: none"#,
            r#"error: framework.messenger.routing.App\Message\Payment[0]: unknown transport "async"; known: none"#,
            r#"error: framework.messenger.routing.App\Message\Payment[1]: unknown transport "archive"; known: none"#,
        ],
    ),
    ("routing-by-class-whole", &[]),
    ("sync", &[]),
    ("priorities-in-a-table", &[]),
    ("priorities-on-a-broker", &[]),
    (
        "priorities-on-redis",
        &["warning: framework.messenger.transports.urgent: workers that share the name `consumer` take each other's"],
    ),
    ("stop-signals", &[]),
    ("retry-strategy", &[]),
    (
        "retry-strategy-as-a-service",
        &[
            "warning: framework.messenger.transports.urgent.retry_strategy.service: is ignored: a PHP service cannot be asked",
        ],
    ),
    ("failure-transport", &[]),
    ("failure-transports", &[]),
    ("options", &[]),
    ("doctrine", &[r#"error: unknown key "doctrine"; known: transports, "#]),
    ("doctrine-beside-messenger", &[]),
    (
        "in-memory",
        &["warning: framework.messenger.transports.later: messages on in-memory:// are seen by no other process"],
    ),
    ("in-memory-in-the-test-environment", &[]),
    ("serializer", &[]),
    (
        "serializer-without-a-dsn",
        &["error: framework.messenger.transports.later: `dsn` is missing: where the messages wait"],
    ),
    (
        "serializer-of-php",
        &[
            "warning: framework.messenger.serializer.default_serializer: \"messenger.transport.native_php_serializer\" is ignored: ",
            r#"warning: framework.messenger.transports.later.serializer: "App\Messenger\OrderSerializer" is ignored: "#,
        ],
    ),
    ("handler", &[r#"error: unknown key "services"; known: transports, "#]),
    ("handler-with-options", &[]),
    (
        "handler-twice",
        &[
            r#"error: is not valid YAML: services.App\MessageHandler\SendReminderHandler: "tags" occurs twice in one mapping"#,
        ],
    ),
    ("two-transports", &[]),
    (
        "two-transports-without-dsns",
        &[
            "error: framework.messenger.transports.later: must be a DSN such as sqlite:var/messages.db, or a mapping with `dsn`",
            "error: framework.messenger.transports.images: must be a DSN such as sqlite:var/messages.db, or a mapping with `dsn`",
        ],
    ),
    (
        "middleware",
        &[
            r#"warning: framework.messenger.buses."messenger.bus.default".middleware[0]: is ignored: "App\Middleware\Audit" is a"#,
            r#"warning: framework.messenger.buses."messenger.bus.default".middleware[1]: is ignored: "App\Middleware\Tenant" is a"#,
            r#"warning: framework.messenger.buses."messenger.bus.default": messages on this bus are neither sent nor handled"#,
        ],
    ),
    (
        "middleware-of-doctrine",
        &["warning: framework.messenger.buses.command_bus.middleware[2]: has no effect: handlers here have"],
    ),
    (
        "middleware-with-arguments",
        &["warning: framework.messenger.buses.command_bus.middleware[0]: has no effect: handlers here have"],
    ),
    ("middleware-for-links-and-validation", &[]),
    ("several-buses", &[]),
];

const IN_MEMORY: Expected =
    &["warning: transports.async: messages on in-memory:// are seen by no other process, and lost"];
const CLUSTER: Expected =
    &["error: transports.async.dsn: in a cluster, the stream \"messages\" and its delayed messages, "];

/// Each form of a DSN.
const DSNS: &[(&str, Expected)] = &[
    ("doctrine://default", &[]),
    ("doctrine://default?queue_name=failed", &[]),
    ("sync://", &[]),
    ("in-memory://", IN_MEMORY),
    ("in-memory://?serialize=true", IN_MEMORY),
    ("amqp://guest:guest@localhost:5672/%2f/messages", &[]),
    ("amqp://localhost/%2f/messages?auto_setup=false", &[]),
    ("amqps://guest:guest@localhost/%2f/messages", &[]),
    ("amqps://localhost?cacert=authorities/", &[]),
    ("amqps://localhost?cacert=authorities/&port=12345", &[]),
    ("redis://localhost:6379/messages", &[]),
    (
        "redis://secret@localhost:6379/messages/symfony/consumer?auto_setup=true&serializer=1&stream_max_entries=0&dbindex=0",
        &["warning: transports.async: workers that share the name `consumer` take each other's messages"],
    ),
    ("redis:///run/redis.sock", &[]),
    ("redis://one:6379,redis://two:6379,redis://three:6379", CLUSTER),
    ("beanstalkd://localhost", &["error: transports.async.dsn: Symfony's transport for Beanstalkd is not here; "]),
    (
        "beanstalkd://localhost:11300?tube_name=mail&timeout=4&ttr=120",
        &["error: transports.async.dsn: Symfony's transport for Beanstalkd is not here; "],
    ),
    (
        "https://sqs.eu-west-3.amazonaws.com/123456789012/messages?access_key=A&secret_key=secret",
        &["error: transports.async.dsn: Symfony's transport for Amazon SQS is not here; "],
    ),
    ("enqueue://default", &["error: transports.async.dsn: Symfony's transport for Enqueue is not here; "]),
    (
        "sqs://localhost:9494/messages?sslmode=disable",
        &["error: transports.async.dsn: Symfony's transport for Amazon SQS is not here; "],
    ),
];

/// What differs from what is expected of one configuration.
fn difference(project: &Project, expected: Expected) -> Option<String> {
    let mut command = project.command(&["config", "check", "--offline"]);
    let output = command.envs(ENVIRONMENT).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap().replace("config.yaml: ", "");
    let lines: Vec<&str> = stderr.lines().collect();
    let refused = expected.iter().any(|line| line.starts_with("error: "));
    let is_expected = lines.len() == expected.len()
        && lines.iter().zip(expected).all(|(line, expected)| line.starts_with(expected))
        && output.status.code() == Some(if refused { 2 } else { 0 })
        && !stderr.contains("secret");
    (!is_expected).then(|| format!("{}\n{stderr}expected:\n{}\n", output.status, expected.join("\n")))
}

#[test]
fn each_configuration_of_symfonys_documentation_loads_or_says_why_not() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/symfony");
    let named: BTreeSet<String> = FILES.iter().map(|(name, _)| format!("{name}.yaml")).collect();
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(entries.collect::<BTreeSet<String>>(), named);

    let mut differences = String::new();
    for (name, expected) in FILES {
        let project = Project::new(&fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap());
        if let Some(difference) = difference(&project, expected) {
            differences.push_str(&format!("{name}: {difference}\n"));
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn each_dsn_of_symfonys_documentation_is_understood_or_refused_by_name() {
    let project = Project::new("");
    project.write("authorities/own.pem", "-----BEGIN CERTIFICATE-----\n");
    let mut differences = String::new();
    for (dsn, expected) in DSNS {
        project.write("config.yaml", format!("transports: {{async: '{dsn}'}}\n"));
        if let Some(difference) = difference(&project, expected) {
            differences.push_str(&format!("{dsn}: {difference}\n"));
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// Two queues and a failure transport. `App\Message\Broken` fails until there is a file `mended`.
const APPLICATION: &str = r"
framework:
  messenger:
    failure_transport: failed
    transports:
      sync: 'sync://'
      async: {dsn: 'doctrine://default?queue_name=async', retry_strategy: {max_retries: 1, delay: 10}}
      async_low: 'doctrine://default?queue_name=low'
      failed: {dsn: 'doctrine://default?queue_name=failed', retry_strategy: {max_retries: 0}}
    routing:
      'App\Message\Low': async_low
      'App\Message\Now': sync
      '*': async
handlers:
  'App\Message\*': {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  'App\Message\Broken': {exec: [sh, -c, 'test -e mended']}
";

fn application() -> Project {
    let project = Project::new(APPLICATION);
    project.write(".env", "DATABASE_URL=sqlite:///%kernel.project_dir%/data.db\n");
    project
}

fn dispatch(project: &Project, message_type: &str, body: &str) {
    project.run(&["dispatch", message_type, body]).succeeds();
}

#[test]
fn the_commands_for_workers_are_those_of_symfony() {
    let project = application();
    let shown = project.run(&["debug:messenger", r"App\Message\Low"]).succeeds().stdout;
    assert!(shown.contains("async_low") && shown.contains("exec sh -c"), "{shown}");

    for n in ["1", "2"] {
        dispatch(&project, r"App\Message\Low", n);
    }
    dispatch(&project, r"App\Message\Note", "3");
    let counts = |arguments: &[&str]| -> Vec<(String, Value)> {
        let stats = project.json(arguments);
        let transports = stats["transports"].as_object().unwrap().iter();
        transports.map(|(name, counts)| (name.clone(), counts["count"].clone())).collect()
    };
    let is = |name: &str, count: u64| (name.to_owned(), json!(count));
    assert_eq!(counts(&["messenger:stats"]), [is("async", 1), is("async_low", 2), is("failed", 0)]);
    assert_eq!(counts(&["messenger:stats", "async_low", "failed"]), [is("async_low", 2), is("failed", 0)]);
    let text = project.run(&["messenger:stats", "sync"]).succeeds().stdout;
    assert!(text.contains("cannot be counted: sync"), "{text}");

    let limits = ["--limit=3", "--memory-limit=512M", "--time-limit=3600", "--failure-limit=5"];
    let consumed = project.run(&[&["messenger:consume", "async", "async_low", "-vv"], &limits[..]].concat()).succeeds();
    assert!(consumed.stderr.contains("DEBUG handled id=3"), "{consumed:?}");
    assert_eq!(project.lines("handled"), ["3", "1", "2"]);

    let refused = project.run(&["messenger:consume", "async", "--queues=fast"]).exits(2);
    assert!(refused.stderr.contains("--queues is for transports with several queues"), "{refused:?}");
    let mut worker = project.start("worker", &["messenger:consume", "async"]);
    wait_until("the worker runs", || project.is_running("async"));
    project.run(&["messenger:stop-workers"]).succeeds();
    assert_eq!(worker.ends(), Some(0));
    project.run(&["messenger:setup-transports", "async"]).succeeds();
}

#[test]
fn the_commands_for_failed_messages_are_those_of_symfony() {
    let project = application();
    for n in ["1", "2", "3", "4"] {
        dispatch(&project, r"App\Message\Broken", n);
    }
    project.run(&["messenger:consume", "async", "--failure-limit=8", "--sleep=20ms", "--time-limit=50"]).succeeds();
    let shown = project.json(&["messenger:failed:show"]);
    let ids: Vec<&str> = shown["messages"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    let [first, second, third, fourth] = ids[..] else { panic!("{shown}") };
    let number = |arguments: &[&str]| project.json(arguments)["messages"].as_array().unwrap().len();
    assert_eq!(number(&["messenger:failed:show", "--max=3"]), 3);
    assert_eq!(number(&["messenger:failed:show", r"--class-filter=App\Message\Broken", "--transport=failed"]), 4);
    assert_eq!(number(&["messenger:failed:show", r"--class-filter=App\Message\Note"]), 0);
    assert_eq!(project.json(&["messenger:failed:show", "--stats"])["types"], json!({r"App\Message\Broken": 4}));
    let details = project.run(&["messenger:failed:show", first, "-vv"]).succeeds().stdout;
    assert!(details.contains(r"App\Message\Broken") && details.contains("exit code 1"), "{details}");

    project.write("mended", "");
    project.run(&["messenger:failed:retry", first, second, "--transport=failed", "--force"]).succeeds();
    project.run(&["messenger:failed:remove", third, "--force"]).succeeds();
    let removed = project.run(&["messenger:failed:remove", fourth, "--show-messages", "--force"]).succeeds().stdout;
    assert!(removed.contains(r"App\Message\Broken"), "{removed}");
    assert_eq!(number(&["messenger:failed:show"]), 0);
}

#[test]
fn a_bus_that_is_traceable_logs_the_time_of_each_message() {
    let project = Project::new("buses: {a.bus: {middleware: [traceable]}}\nhandlers: {Note: {exec: [cat]}}\n");
    let quiet = project.run(&["dispatch", "Note", "1"]).succeeds();
    assert!(!quiet.stderr.contains("took="), "{quiet:?}");
    let traced = project.run(&["dispatch", "Note", "1", "-vv"]).succeeds();
    assert!(traced.stderr.contains("done") && traced.stderr.contains("took="), "{traced:?}");
}

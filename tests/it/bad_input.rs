//! Mistakes are reported clearly, and cost no message.

use sqlx::Connection;

use crate::support::{Project, wait_until};

const CONFIG: &str = r#"
failure_transport: failed
transports:
  mail: "sqlite:q.db?queue_name=mail"
  failed: "sqlite:q.db?queue_name=failed"
routing: {'*': mail}
handlers:
  Note: {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  Gone: {exec: [bin/gone]}
"#;

/// Puts a row into the queue as some other program might.
fn insert(project: &Project, body: &[u8], headers: &[u8]) {
    insert_all(project, 1, body, headers);
}

fn insert_all(project: &Project, rows: u32, body: &[u8], headers: &[u8]) {
    let url = format!("sqlite://{}", project.file("q.db").display());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(
            "WITH RECURSIVE row(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM row WHERE n < ?)
             INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at)
             SELECT CAST(? AS TEXT), CAST(? AS TEXT), 'mail', '2026-01-01 00:00:00', '2026-01-01 00:00:00' FROM row",
        )
        .bind(rows)
        .bind(body)
        .bind(headers)
        .execute(&mut database)
        .await
        .unwrap();
    });
}

#[test]
fn all_mistakes_are_reported_at_once_and_nothing_starts() {
    let project = Project::new(
        r#"
transports:
  mail: {dsn: "sqlite:q.db?queue=mail"}
  fallback: "auto-fallback://falback?target=nowhere&fallback=mail"
  sync: sync://
failure_transprt: mail
routing: {'*': mial}
workers:
  - {transports: [mail], autoscale: {desired_size: 0, max: 1, min: 2}}
  - {transports: [sync]}
  - {transports: [mail], options: [--limit=none], name: x}
  - {transports: [mail], name: x}
handlers:
  Note: {exec: cat, timeout: '%env(NOT_SET_ANYWHERE)%'}
"#,
    );
    for command in [&["cron"][..], &["config", "check"], &["consume", "mail"], &["dispatch", "Note"]] {
        let run = project.run(command).exits(2);
        for expected in [
            "transports.mail",
            "\"queue\"",
            "falback",
            "nowhere",
            "failure_transprt",
            "did you mean \"failure_transport\"",
            "did you mean \"mail\"",
            "workers[0].autoscale.desired_size",
            "workers[1].transports[0]",
            "workers[2].options",
            "workers[3].name",
            "handlers.Note",
            "NOT_SET_ANYWHERE",
        ] {
            assert!(run.stderr.contains(expected), "{expected} is not in:\n{}", run.stderr);
        }
    }
    assert!(!project.file("var").exists());
}

#[test]
fn a_configuration_that_is_missing_or_not_yaml_is_reported() {
    let project = Project::new("transports: [unclosed");
    let run = project.run(&["stats"]).exits(2);
    assert!(run.stderr.contains("config.yaml") && run.stderr.contains("line 1"), "{run:?}");
    let run = project.run(&["stats", "--config", "missing.yaml"]).exits(2);
    assert!(run.stderr.contains("missing.yaml"), "{run:?}");
}

#[test]
fn messages_that_cannot_be_read_go_to_the_failure_transport() {
    let project = Project::new(CONFIG);
    project.run(&["setup"]).succeeds();
    insert(&project, br#"O:36:\"Symfony\\Component\\Messenger\\Envelope\":0:{}"#, b"[]");
    insert(&project, b"{broken", br#"{"type":"Note"}"#);
    insert(&project, b"{}", b"these are no headers");
    insert(&project, b"{}", br#"{"no":"type"}"#);
    insert(&project, b"\xff\xfe", b"\xff\0");
    project.run(&["consume", "mail", "--limit=5"]).succeeds();
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 5));
    assert!(project.log().contains("PHP's serialize()"), "{}", project.log());
}

/// What a Symfony application writes by default.
const PHP: &[u8] = br#"O:36:\"Symfony\\Component\\Messenger\\Envelope\":0:{}"#;

#[test]
fn a_queue_with_only_foreign_messages_is_left_alone() {
    let project = Project::new(CONFIG);
    project.run(&["setup"]).succeeds();
    insert_all(&project, 300, PHP, b"[]");
    let run = project.run(&["consume", "mail", "--format=json"]).exits(3);
    assert_eq!((&run.json()["handled"], &run.json()["failed"]), (&0.into(), &0.into()), "none was tried");
    for expected in ["\"mail\"", "PHP's serialize()", "messenger.transport.symfony_serializer", "stay in their queue"] {
        assert!(run.stderr.contains(expected), "{expected} is not in:\n{}", run.stderr);
    }
    assert_eq!((project.pending("mail"), project.pending("failed")), (300, 0));
    assert!(!project.is_running("mail"));

    let other = Project::new(CONFIG);
    other.run(&["setup"]).succeeds();
    insert_all(&other, 20, b"{}", br#"{"type":"App\\Unknown"}"#);
    let run = other.run(&["consume", "mail"]).exits(3);
    assert!(run.stderr.contains(r#"no handler for messages of type "App\Unknown""#), "{run:?}");
    assert_eq!((other.pending("mail"), other.pending("failed")), (20, 0));
    // Unless `--move-unhandleable` is set.
    other.run(&["consume", "mail", "--limit=20", "--move-unhandleable"]).succeeds();
    assert_eq!((other.pending("mail"), other.pending("failed")), (0, 20));
}

#[test]
fn strays_among_other_messages_go_to_the_failure_transport() {
    let project = Project::new(CONFIG);
    project.run(&["setup"]).succeeds();
    // Nine before the first that can be handled, and many after it.
    insert_all(&project, 9, PHP, b"[]");
    insert(&project, b"1", br#"{"type":"Note"}"#);
    insert_all(&project, 30, PHP, b"[]");
    insert(&project, b"2", br#"{"type":"Note"}"#);
    project.run(&["consume", "mail", "--limit=41"]).succeeds();
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 39));
    assert_eq!(project.lines("handled"), ["1", "2"]);
}

#[test]
fn a_single_stray_does_not_block_the_queue() {
    let project = Project::new(CONFIG);
    project.run(&["setup"]).succeeds();
    insert(&project, PHP, b"[]");
    let mut worker = project.start("worker", &["consume", "mail", "--sleep=50ms", "--limit=2"]);
    wait_until("it is put away", || project.pending("failed") == 1);
    project.run(&["dispatch", "Note", "1"]).succeeds();
    assert_eq!(worker.ends(), Some(0));
    assert_eq!(project.lines("handled"), ["1"]);
}

#[test]
fn without_any_handler_nothing_is_received() {
    let project =
        Project::new(&format!("{}\nworkers: [{{transports: [mail]}}]\n", CONFIG.split("handlers:").next().unwrap()));
    project.run(&["setup"]).succeeds();
    insert_all(&project, 3, b"{}", br#"{"type":"Note"}"#);
    let line = "command: php bin/console messenger:consume {transports} {options}";
    let check = project.run(&["config", "check"]).succeeds();
    assert!(check.stderr.contains("workers[0]: is not started") && check.stderr.contains(line), "{check:?}");
    let run = project.run(&["consume", "mail"]).exits(3);
    assert!(run.stderr.contains(line), "{run:?}");
    let plan = project.json(&["cron", "--dry-run"]);
    assert_eq!(plan["workers"][0]["start"], 0, "{plan}");
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("the supervisor says why", || project.lines("supervise.err").iter().any(|text| text.contains(line)));
    assert!(project.workers().is_empty() && !project.is_running("mail"));
    assert_eq!((project.pending("mail"), project.pending("failed")), (3, 0));
}

#[test]
fn a_worker_that_can_handle_nothing_is_not_started_again_at_once() {
    let auto = "  auto: 'auto-fallback://auto?target=mail&fallback=sync'\n  sync: sync://\nrouting: {'*': auto}";
    let workers = "workers: [{name: mail, transports: [auto], options: [--sleep=50ms]}]";
    let config = format!("{}\n{workers}\n", CONFIG.replace("routing: {'*': mail}", auto));
    let project = Project::new(&config);
    project.run(&["setup"]).succeeds();
    insert_all(&project, 30, PHP, b"[]");
    let _supervisor = project.start("supervise", &["supervise"]);
    let count = |what: &str| project.lines("supervise.err").iter().filter(|line| line.contains(what)).count();
    wait_until("the supervisor says why no worker is started", || count("PHP's serialize()") > 0);
    assert_eq!(count("started a worker"), 1);
    assert_eq!(project.json(&["cron", "--dry-run"])["workers"][0]["start"], 0);
    assert_eq!((project.pending("mail"), project.pending("failed")), (30, 0));
    assert_eq!(project.json(&["dispatch", "Note", "1"])["outcome"], "handled");

    // A changed configuration may have fixed it.
    project.write("config.yaml", &config);
    wait_until("another try", || count("started a worker") == 2);
}

#[test]
fn without_a_failure_transport_strays_stay_in_their_queue() {
    let project = Project::new(&CONFIG.replace("failure_transport: failed\n", ""));
    project.run(&["setup"]).succeeds();
    insert(&project, b"{broken", br#"{"type":"Note"}"#);
    insert(&project, b"{}", b"these are no headers");
    insert(&project, b"{}", br#"{"type":"Unknown"}"#);
    project.run(&["consume", "mail", "--limit=3"]).succeeds();
    let status = project.json(&["status"]);
    assert_eq!(status["transports"][0]["delayed"], 3, "{status}");
}

#[test]
fn a_missing_handler_program_is_retried() {
    let project = Project::new(CONFIG);
    project.run(&["dispatch", "Gone", "{}"]).succeeds();
    project.run(&["consume", "mail", "--limit=1"]).succeeds();
    assert!(project.log().contains("bin/gone"), "{}", project.log());
    let status = project.json(&["status"]);
    let kept = ["pending", "delayed"].map(|state| status["transports"][0][state].as_u64().unwrap());
    assert_eq!(kept.iter().sum::<u64>(), 1, "{status}");
}

#[test]
fn damaged_state_files_are_reported_and_replaced() {
    let project = Project::new(&format!("{CONFIG}\nworkers: [{{name: mail, transports: [mail]}}]\n"));
    project.write("var/slots/mail/0", b"{\"pid\": 1, \xff");
    project.write("var/supervisor.lock", "nonsense");
    project.write("var/cache/heartbeat%2Fmail/worker", "nonsense");
    assert!(!project.is_running("mail"));
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("a worker runs", || project.workers().len() == 1);
    wait_until("it pings", || project.is_running("mail"));
}

#[test]
fn without_a_readable_cache_messages_are_handled_at_once() {
    let project = Project::new(
        &format!(
            "{}\n  sync: sync://\n  auto: 'auto-fallback://auto?target=mail&fallback=sync'\nrouting: {{'*': auto}}\n",
            CONFIG.split("routing:").next().unwrap()
        )
        .replace("routing:", "handlers: {Note: {exec: [sh, -c, 'cat >> handled']}}\nrouting:"),
    );
    project.write("var/cache", "a file where a folder is to be");
    let report = project.json(&["dispatch", "Note", "{}"]);
    assert_eq!(report["outcome"], "handled");
    assert_eq!(project.lines("handled"), ["{}"]);
}

#[test]
fn passwords_are_never_shown() {
    let project = Project::new(
        r#"
transports:
  a: "amqp://user:hunter2@localhost/%2f/x"
  b: "nosuch://user:hunter2@localhost/?auth=hunter2"
  d: "doctrine://main"
connections: {main: "mysql://user:hunter2@localhost:notaport/db"}
"#,
    );
    for command in [&["config", "check", "-vv"][..], &["stats", "-vv"], &["config", "check", "--format=json"]] {
        let run = project.run(command);
        let output = format!("{}{}", run.stdout, run.stderr);
        assert!(!output.contains("hunter2"), "{output}");
    }
}

#[test]
fn a_reader_that_goes_away_is_not_a_failure() {
    let project = Project::new(CONFIG);
    let mut command = project.command(&["stats"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
}

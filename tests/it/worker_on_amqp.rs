//! Workers as processes on a broker: how they survive its restart, and their own death.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::exchanges::Exchanges;
use crate::support::proxy::Proxy;
use crate::support::{Project, wait_until};

fn project(dsn: &str, options: &str) -> Project {
    let project = Project::new(&format!(
        r#"
transports:
  mail: {{dsn: '%env(DSN)%', options: {options}}}
routing: {{'*': mail}}
handlers:
  Note: {{exec: [sh, -c, 'printf "%%s\n" "$(cat)" >> handled']}}
  Slow: {{exec: [sh, -c, 'echo begun >> slow; while [ ! -e go ]; do sleep 0.05; done; echo done >> slow']}}
workers:
  - {{transports: [mail], options: [--time-limit=600], autoscale: {{desired_size: 10, min: 0, max: 2}}}}
"#
    ));
    project.write(".env", format!("DSN={dsn}\n"));
    project
}

#[test]
fn a_killed_workers_message_is_redelivered_by_the_next_tick() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let project = project(&exchanges.dsn("a"), "{}");
    project.run(&["dispatch", "Slow", "1"]).succeeds();
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it is being handled", || project.lines("slow").len() == 1);
    let first = project.workers();
    let begun = Instant::now();
    kill(Pid::from_raw(first[0]), Signal::SIGKILL).unwrap();
    wait_until("it is handled again, by another worker", || project.lines("slow").len() == 2);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    project.write("go", "");
    // Once the first one's shell is ended and the second one's is done.
    wait_until("it is done", || project.lines("slow").contains(&"done".to_owned()));
}

#[test]
fn a_worker_outlasts_its_broker() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let (dsn, address) = (exchanges.dsn("a"), exchanges.address());
    let way = Proxy::start(&address, 0);
    let port = way.port();
    let project = project(&dsn.replace(&address, &format!("127.0.0.1:{port}")), "{}");
    let mut worker = project.start("worker", &["consume", "mail", "--sleep=50ms"]);
    project.run(&["dispatch", "Note", "1"]).succeeds();
    wait_until("the first message is handled", || project.lines("handled") == ["1"]);
    drop(way);
    wait_until("the worker notices", || project.log().contains("trying again"));
    let refused = project.run(&["dispatch", "Note", "0"]).exits(1);
    assert!(refused.stderr.contains(&port.to_string()), "{refused:?}");
    let _way = Proxy::start(&address, port);
    project.run(&["dispatch", "Note", "2"]).succeeds();
    // The first one may be delivered again, if the broker ended before it was acknowledged.
    wait_until("the second message is handled", || project.lines("handled").contains(&"2".to_owned()));
    assert!(!worker.is_over());
}

#[test]
fn the_last_acknowledgements_reach_the_broker_before_the_worker_ends() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let (dsn, address) = (exchanges.dsn("a"), exchanges.address());
    let way = Proxy::start_slow(&address, Duration::from_millis(300));
    let slow = project(&dsn.replace(&address, &format!("127.0.0.1:{}", way.port())), "{}");
    let direct = project(&dsn, "{}");
    direct.run(&["dispatch", "Note", "1"]).succeeds();
    slow.run(&["consume", "mail", "--limit=1"]).succeeds();
    assert_eq!(slow.lines("handled"), ["1"]);
    direct.run(&["consume", "mail", "--time-limit=2"]).succeeds();
    assert!(direct.lines("handled").is_empty(), "it is not delivered again");
}

#[test]
fn some_of_a_transports_queues_can_be_consumed_on_their_own() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let [a, b] = ["a", "b"].map(|queue| exchanges.name(queue));
    let project = project(&exchanges.dsn("a"), &format!("{{queues: {{{a}: ~, {b}: ~}}}}"));
    project.run(&["dispatch", "Note", "1"]).succeeds();
    assert_eq!(project.pending("mail"), 2);
    project.run(&["consume", "mail", "--limit=1", &format!("--queues={b}")]).succeeds();
    project.run(&["consume", "mail", "--time-limit=1", &format!("--queues={b}")]).succeeds();
    assert_eq!((project.pending("mail"), project.lines("handled").len()), (1, 1));
    let unknown = project.run(&["consume", "mail", "--time-limit=1", "--queues=nonsense"]).exits(2);
    assert!(unknown.stderr.contains("unknown queue \"nonsense\"") && unknown.stderr.contains(&b), "{unknown:?}");
    let status = project.json(&["status"]);
    let mail = &status["transports"][0];
    assert_eq!((&mail["pending"], &mail["delayed"], &mail["in_flight"]), (&1.into(), &().into(), &().into()));
}

/// Publishes a message as another program may: with more headers than minutely would send, but no more than the broker
/// accepts.
fn publish(exchanges: &Exchanges, queue: &str, message_type: &str, header: &str) {
    use lapin::types::{AMQPValue, FieldTable};
    let mut table = FieldTable::default();
    for (name, value) in [("type", message_type), ("X-Small", "kept"), (header, &"x".repeat(126_000))] {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let properties = lapin::BasicProperties::default().with_headers(table).with_content_type("application/json".into());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_connection, channel) = exchanges.channel().await;
        let options = lapin::options::BasicPublishOptions::default();
        channel.confirm_select(Default::default()).await.unwrap();
        let sent = channel.basic_publish("".into(), exchanges.name(queue).into(), options, b"{}", properties);
        sent.await.unwrap().await.unwrap();
    });
}

#[test]
fn headers_too_large_to_be_sent_again_are_left_out_and_cause_no_loop() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let project = Project::new(
        r#"
failure_transport: failed
transports:
  mail: {dsn: '%env(MAIL)%', retry_strategy: {max_retries: 1, delay: 10}}
  failed: '%env(FAILED)%'
handlers:
  Never: {exec: [sh, -c, 'printf "%s\n" "$MINUTELY_HEADERS" >> headers; exit 65']}
  Later: {exec: [sh, -c, 'echo tried >> later; [ "$MINUTELY_ATTEMPT" = 2 ]']}
"#,
    );
    project.write(".env", format!("MAIL={}\nFAILED={}\n", exchanges.dsn("a"), exchanges.dsn("failed")));
    project.run(&["setup"]).succeeds();
    publish(&exchanges, "a", "Never", "X-Pad");
    publish(&exchanges, "a", "Later", "X-Pad");
    project.run(&["consume", "mail", "--limit=3", "--time-limit=50"]).succeeds();
    assert_eq!(project.lines("headers").len(), 1);
    assert_eq!(project.lines("later").len(), 2, "it is retried, which succeeds");
    wait_until("it has gone to the failure transport", || counts(&project, "failed") == (Some(1), Some(0)));
    assert_eq!(project.pending("mail"), 0);
    let log = project.log();
    assert!(!log.contains("parked") && !log.contains("left in flight"), "{log}");
    project.run(&["consume", "failed", "--limit=1", "--time-limit=50"]).succeeds();
    let kept: serde_json::Value = serde_json::from_str(&project.lines("headers")[1]).unwrap();
    assert_eq!((&kept["X-Minutely-Left-Out"], &kept["X-Small"]), (&"X-Pad".into(), &"kept".into()));
}

/// A worker's queue in a file, and a failure transport on the broker, whose messages have room for 120 KiB of headers.
fn project_that_fails(exchanges: &Exchanges) -> Project {
    let project = Project::new(
        r#"
failure_transport: failed
transports:
  mail: {dsn: "sqlite:q.db?queue_name=mail", retry_strategy: {max_retries: 0}}
  failed: '%env(DSN)%'
routing: {'*': mail}
handlers:
  Note: {exec: [sh, -c, 'printf "%%s\n" "$(cat)" >> handled']}
  Never: {exec: [sh, -c, 'printf "%%s\n" "$MINUTELY_HEADERS" >> headers; exit 65']}
"#,
    );
    project.write(".env", format!("DSN={}\n", exchanges.dsn("failed")));
    project
}

/// Dispatches a message that fails for good, with a large header, and one that is handled.
fn dispatch_with(project: &Project, header: &str) {
    use sqlx::Connection;
    project.run(&["dispatch", "Never", "{}"]).succeeds();
    let headers = serde_json::json!({"type": "Never", header: format!("[\"{}\"]", "x".repeat(121 * 1024))});
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = format!("sqlite:{}", project.file("q.db").display());
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let update = sqlx::query("UPDATE messenger_messages SET headers = ?1").bind(headers.to_string());
        update.execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    });
    project.run(&["dispatch", "Note", "1"]).succeeds();
}

fn counts(project: &Project, transport: &str) -> (Option<u64>, Option<u64>) {
    let stats = project.json(&["stats", transport]);
    let stats = &stats["transports"][transport];
    (stats["count"].as_u64(), stats["delayed"].as_u64())
}

#[test]
fn a_message_too_large_for_its_failure_transport_goes_there_without_its_largest_stamps() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let project = project_that_fails(&exchanges);
    dispatch_with(&project, r"X-Message-Stamp-App\Huge");
    project.run(&["consume", "mail", "--limit=2", "--time-limit=50"]).succeeds();
    assert_eq!(project.lines("handled"), ["1"], "it blocks nobody");
    assert_eq!(counts(&project, "mail"), (Some(0), Some(0)));
    wait_until("it has gone there", || counts(&project, "failed") == (Some(1), Some(0)));
    project.run(&["consume", "failed", "--limit=1", "--time-limit=50"]).succeeds();
    let headers: Vec<serde_json::Value> =
        project.lines("headers").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(headers[1]["X-Minutely-Left-Out"], r"App\Huge");
    wait_until("it is parked there", || counts(&project, "failed") == (Some(0), Some(1)));
    project.run(&["consume", "failed", "--limit=1", "--time-limit=50"]).succeeds();
    assert_eq!(project.lines("headers").len(), 3, "and is tried once more by whoever asks");
}

#[test]
fn a_message_that_its_failure_transport_cannot_hold_at_all_is_parked_in_its_queue() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let project = project_that_fails(&exchanges);
    dispatch_with(&project, "X-Not-To-Be-Left-Out");
    project.run(&["consume", "mail", "--limit=2", "--time-limit=50"]).succeeds();
    assert_eq!(project.lines("handled"), ["1"], "it blocks nobody");
    assert_eq!(counts(&project, "mail"), (Some(0), Some(1)));
    assert!(project.log().contains("parked on its transport"), "{}", project.log());
}

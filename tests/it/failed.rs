//! `failed show`, `retry` and `remove`: what people do with the messages on a failure transport.

use serde_json::{Value, json};

use crate::support::databases::{Database, Server};
use crate::support::exchanges::Exchanges;
use crate::support::private_redis::PrivateRedis;
use crate::support::{Project, wait_until};

/// A queue and a failure transport. All but the second handler of `Two` fail until there is a file `mended`.
const CONFIG: &str = r#"
failure_transport: failed
transports:
  high: {dsn: 'HIGH', retry_strategy: {max_retries: 1, delay: 10}}
  failed: {dsn: 'FAILED', retry_strategy: {max_retries: 0}}
routing: {'*': high}
handlers:
  Break: {exec: [sh, -c, 'test -e mended || { printf "broken \033[31mglass"; exit 3; }; echo "$MINUTELY_TRANSPORT" >> handled']}
  Other: {exec: [sh, -c, 'test -e mended || exit 1; echo other >> handled']}
  Slow: {exec: [sh, -c, 'test -e mended || exit 1; echo begun >> slow; while [ ! -e go ]; do sleep 0.02; done; echo done >> slow']}
  Two: [{exec: [sh, -c, 'echo second >> handled']}, {exec: [sh, -c, 'test -e mended || exit 1; echo first >> handled']}]
"#;

fn sqlite(queue: &str) -> String {
    format!("sqlite:q.db?queue_name={queue}")
}

/// Messages of these types have failed for good.
fn with_failed(dsn: impl Fn(&str) -> String, types: &[&str]) -> Project {
    let project = Project::new(&CONFIG.replace("HIGH", &dsn("high")).replace("FAILED", &dsn("failed")));
    fail(&project, types);
    project
}

fn fail(project: &Project, types: &[&str]) {
    for message_type in types {
        let report = project.json(&["dispatch", message_type, r#"{"to": "ada"}"#]);
        assert_eq!(report["outcome"], "queued", "{report}");
    }
    let failures = format!("--failure-limit={}", 2 * types.len());
    project.run(&["consume", "high", &failures, "--sleep=20ms", "--time-limit=50"]).succeeds();
}

fn show(project: &Project, arguments: &[&str]) -> Value {
    project.json(&[&["failed", "show"], arguments].concat())
}

/// The ids of all messages.
fn ids(project: &Project) -> Vec<String> {
    let shown = show(project, &[]);
    shown["messages"].as_array().unwrap().iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn failed_messages_are_listed_filtered_and_counted() {
    let project = with_failed(sqlite, &["Break", "Other", "Break"]);
    let shown = show(&project, &[]);
    let classes: Vec<&Value> = shown["messages"].as_array().unwrap().iter().map(|message| &message["class"]).collect();
    assert_eq!(classes, ["Break", "Other", "Break"]);
    assert_eq!((&shown["transport"], &shown["more"]), (&json!("failed"), &json!(false)));
    assert_eq!(shown["messages"][0]["original_transport"], "high");
    let shown = show(&project, &["--max=1", "--class-filter=Break"]);
    assert_eq!((shown["messages"].as_array().unwrap().len(), &shown["more"]), (1, &json!(true)));
    assert_eq!(show(&project, &["--stats"])["types"], json!({"Break": 2, "Other": 1}));
    let text = project.run(&["messenger:failed:show"]).succeeds().stdout;
    assert!(text.contains("failed at") && text.contains("broken"), "{text}");
}

#[test]
fn all_that_is_known_of_a_message_is_shown() {
    let project = with_failed(sqlite, &["Break"]);
    let id = &ids(&project)[0];
    let shown = show(&project, &[id]);
    assert_eq!((&shown["retries"], &shown["errors"][0]["code"]), (&json!(1), &json!(3)));
    assert_eq!((&shown["body"], &shown["headers"]["type"]), (&json!({"to": "ada"}), &json!("Break")));
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    assert!(attempts.iter().all(|one| one["at"].is_string() && one["error"]["code"] == 3), "{shown}");
    let text = project.run(&["failed", "show", id]).succeeds().stdout;
    assert!(text.contains("transport     high") && !text.contains("ada"), "{text}");
    assert!(text.contains("[31mglass") && !text.contains('\u{1b}'), "a terminal gets no escapes: {text:?}");
    let text = project.run(&["failed", "show", id, "-v"]).succeeds().stdout;
    assert!(text.contains("\"to\": \"ada\"") && text.contains("type: Break"), "{text}");
    let run = project.run(&["failed", "show", "4711"]).exits(1);
    assert!(run.stderr.contains("no message \"4711\""), "{}", run.stderr);
}

#[test]
fn a_retried_message_is_handled_as_on_its_own_transport_and_gone() {
    let project = with_failed(sqlite, &["Break", "Other"]);
    project.write("mended", "");
    let id = &ids(&project)[0];
    let run = project.run(&["failed", "retry", id, "--force"]).succeeds();
    assert!(run.stdout.contains("handled: 1"), "{}", run.stdout);
    assert_eq!(project.lines("handled"), ["high"]);
    assert_eq!(ids(&project).len(), 1);
    project.run(&["messenger:failed:retry", "--force", "--transport=failed"]).succeeds();
    assert_eq!(project.lines("handled"), ["high", "other"]);
    assert!(ids(&project).is_empty());
    project.run(&["failed", "retry", id, "--force"]).exits(1);
}

#[test]
fn a_retried_message_that_fails_again_is_kept_and_can_be_retried_again() {
    let project = with_failed(sqlite, &["Break", "Other"]);
    for _ in 0..2 {
        let run = project.run(&["failed", "retry", "--force"]).exits(1);
        assert!(run.stdout.contains("failed again: 2"), "{}", run.stdout);
        assert_eq!(ids(&project).len(), 2);
    }
    project.write("mended", "");
    project.run(&["failed", "retry", "--force"]).succeeds();
    assert!(ids(&project).is_empty());
}

#[test]
fn only_handlers_that_have_not_succeeded_run_again() {
    let project = with_failed(sqlite, &["Two"]);
    project.run(&["failed", "retry", "--force"]).exits(1);
    project.write("mended", "");
    project.run(&["failed", "retry", "--force"]).succeeds();
    assert_eq!(project.lines("handled"), ["second", "first"]);
}

fn messages_are_retried_and_removed_on(dsn: impl Fn(&str) -> String) {
    let project = with_failed(dsn, &["Break", "Other", "Other", "Slow"]);
    let first = ids(&project).remove(0);
    project.run(&["failed", "retry", &first, "--force"]).exits(1);
    assert_eq!(ids(&project).len(), 4);
    // Parked by now, under an id that may be another one.
    project.write("mended", "");
    let of = |class: &str| {
        let shown = show(&project, &[&format!("--class-filter={class}")]);
        shown["messages"][0]["id"].as_str().map(str::to_owned)
    };
    project.run(&["failed", "retry", &of("Break").unwrap(), "--force"]).succeeds();
    assert_eq!(project.lines("handled"), ["high"]);
    is_left_alone_while_it_is_handled(&project, &of("Slow").unwrap());
    assert_eq!(project.lines("handled"), ["high", "other", "other"], "by the worker");
    fail_again(&project, &["Break", "Other"]);
    project.run(&["failed", "remove", &of("Other").unwrap(), "--force"]).succeeds();
    assert_eq!(ids(&project).len(), 1);
    let told = project.json(&["failed", "retry", "--force"]);
    assert_eq!((&told["handled"], &told["messages"][0]["class"]), (&json!(1), &json!("Break")));
    assert!(ids(&project).is_empty());
}

fn fail_again(project: &Project, types: &[&str]) {
    std::fs::remove_file(project.file("mended")).unwrap();
    fail(project, types);
    project.write("mended", "");
}

/// The others are handled meanwhile, by a worker that makes parked messages due.
fn is_left_alone_while_it_is_handled(project: &Project, id: &str) {
    let mut retry = project.start("retry", &["failed", "retry", id, "--force"]);
    wait_until("it is being handled", || project.lines("slow") == ["begun"]);
    project.run(&["failed", "retry", id, "--force"]).exits(1);
    let now: Vec<Value> = show(project, &["--class-filter=Slow"])["messages"].as_array().unwrap().clone();
    // On AMQP only who has it sees it.
    for listed in &now {
        assert_eq!(listed["in_flight"], true);
        for command in ["retry", "remove"] {
            let run = project.run(&["failed", command, listed["id"].as_str().unwrap(), "--force"]).exits(1);
            assert!(run.stderr.contains("is being handled"), "{}", run.stderr);
        }
    }
    project.run(&["consume", "failed", "--limit=2", "--time-limit=20", "--sleep=20ms"]).succeeds();
    project.run(&["consume", "failed", "--time-limit=1", "--sleep=20ms"]).succeeds();
    project.write("go", "");
    assert_eq!(retry.ends(), Some(0));
    assert_eq!(project.lines("slow"), ["begun", "done"]);
    assert!(ids(project).is_empty());
}

#[test]
fn messages_are_retried_and_removed_on_sqlite() {
    messages_are_retried_and_removed_on(sqlite);
}

#[test]
fn messages_are_retried_and_removed_on_postgres_and_mysql() {
    for server in [Server::Postgres, Server::Mysql] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let Some(database) = runtime.block_on(Database::create(server)) else { return };
        messages_are_retried_and_removed_on(|queue| format!("{}?queue_name={queue}", database.url()));
    }
}

#[test]
fn messages_are_retried_and_removed_on_redis() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    messages_are_retried_and_removed_on(|queue| format!("{}/{queue}", server.url()));
}

/// The names of the queues are those that are cleaned up.
fn on(exchanges: &Exchanges) -> impl Fn(&str) -> String {
    |queue| exchanges.dsn(if queue == "high" { "a" } else { queue })
}

#[test]
fn messages_are_retried_and_removed_on_amqp() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    messages_are_retried_and_removed_on(on(&exchanges));
}

#[test]
fn on_amqp_messages_that_are_shown_keep_their_order_and_parked_ones_stay_parked() {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let project = with_failed(on(&exchanges), &["Break", "Other", "Two"]);
    let all = ids(&project);
    project.run(&["failed", "retry", &all[1], "--force"]).exits(1);
    let classes = || {
        let shown = show(&project, &[]);
        shown["messages"].as_array().unwrap().iter().map(|one| one["class"].clone()).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(show(&project, &["--max=1"])["more"], true);
        assert_eq!(show(&project, &[&all[2]])["class"], "Two");
        assert_eq!(classes(), ["Break", "Two", "Other"]);
    }
    let stats = project.json(&["stats", "failed"]);
    assert_eq!(stats["transports"]["failed"]["delayed"], 1, "{stats}");
}

#[test]
fn a_retry_that_is_broken_off_gives_its_message_back() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let redis = |queue: &str| format!("{}/{queue}", server.url());
    for project in [with_failed(sqlite, &["Slow"]), with_failed(redis, &["Slow"])] {
        project.write("mended", "");
        let mut retry = project.start("retry", &["failed", "retry", "--force"]);
        wait_until("it is being handled", || project.lines("slow") == ["begun"]);
        wait_until("it has ended", || {
            retry.signal(nix::sys::signal::Signal::SIGTERM);
            retry.is_over()
        });
        project.write("go", "");
        project.run(&["failed", "retry", "--force"]).succeeds();
        assert_eq!(project.lines("slow"), ["begun", "begun", "done"]);
    }
}

#[test]
fn a_signal_lets_the_current_message_finish_and_the_others_are_told_as_not_tried() {
    let project = with_failed(sqlite, &["Slow", "Other", "Break"]);
    project.write("mended", "");
    // An id that is named twice counts once.
    let mut retry = project.start("retry", &["failed", "retry", "1", "1", "2", "3", "--force", "--format=json"]);
    wait_until("it is being handled", || project.lines("slow") == ["begun"]);
    retry.signal(nix::sys::signal::Signal::SIGTERM);
    project.write("go", "");
    assert_eq!(retry.ends(), Some(1));
    let (told, log) = (project.lines("retry.out").join("\n"), project.lines("retry.err").join("\n"));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["handled"], &told["not_tried"], &told["missing"]), (&json!(1), &json!(2), &json!(0)), "{told}");
    assert!(log.contains("stopped; 2 not tried"), "{log}");
    assert_eq!(ids(&project).len(), 2);
}

#[test]
fn ids_that_are_named_twice_count_once() {
    let project = with_failed(sqlite, &["Break", "Other"]);
    project.write("mended", "");
    let told = project.json(&["failed", "retry", "1", "1", "--force"]);
    assert_eq!((&told["handled"], &told["missing"]), (&json!(1), &json!(0)), "{told}");
    let run = project.run(&["failed", "remove", "2", "2", "77", "--force"]).exits(1);
    assert!(run.stdout.contains("removed from failed: 1, not there: 1"), "{}", run.stdout);
}

#[test]
fn on_a_terminal_it_asks_what_to_do_with_each_message() {
    if std::process::Command::new("script").arg("--version").output().is_err() {
        return harness::skip("script, which makes a terminal, is not installed");
    }
    let project = with_failed(sqlite, &["Break", "Other", "Break"]);
    project.write("mended", "");
    let command = project.command(&["failed", "retry"]);
    let line = shell_words::join(
        [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_str().unwrap()),
    );
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).current_dir(project.file("."));
    let mut script = script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut script.stdin.take().unwrap(), b"s\nwhat\n\xff\nd\nr\n").unwrap();
    let output = script.wait_with_output().unwrap().stdout;
    let text = String::from_utf8_lossy(&output);
    assert!(text.contains("handled: 1, deleted: 1"), "{text}");
    assert_eq!((ids(&project), project.lines("handled")), (vec!["1".to_owned()], vec!["high".to_owned()]));
}

#[test]
fn what_nothing_here_can_handle_tells_when_and_why_and_keeps_its_errors() {
    let project = with_failed(sqlite, &["Break"]);
    project.run(&["dispatch", "Nope", "{}"]).succeeds();
    project.run(&["consume", "high", "--limit=1", "--time-limit=20"]).succeeds();
    let one = || show(&project, &["--class-filter=Nope"])["messages"][0].clone();
    let shown = one();
    assert!(shown["failed_at"].is_string() && shown["error"].as_str().unwrap().contains("no handler"), "{shown}");
    assert_eq!(shown["original_transport"], "high");
    let id = shown["id"].as_str().unwrap();
    for _ in 0..2 {
        project.run(&["failed", "retry", id, "--force"]).exits(1);
        assert_eq!(show(&project, &[id])["errors"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_retry_that_is_killed_loses_nothing() {
    let project = with_failed(sqlite, &["Slow"]);
    project.write("mended", "");
    let retry = project.start("retry", &["failed", "retry", "--force"]);
    wait_until("it is being handled", || project.lines("slow") == ["begun"]);
    retry.signal(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(ids(&project).len(), 1);
}

#[test]
fn messages_are_removed_one_by_one_by_type_and_all() {
    let project = with_failed(sqlite, &["Break", "Other", "Break", "Other"]);
    let id = &ids(&project)[0];
    let run = project.run(&["failed", "remove", id, "--force", "--show-messages"]).succeeds();
    assert!(run.stdout.contains("Break") && run.stdout.contains("removed from failed: 1"), "{}", run.stdout);
    project.run(&["failed", "remove", id, "--force"]).exits(1);
    project.run(&["failed", "remove", "--all", "--class-filter=Other", "--force"]).succeeds();
    assert_eq!(show(&project, &["--stats"])["types"], json!({"Break": 1}));
    project.run(&["messenger:failed:remove", "--all", "--force"]).succeeds();
    assert!(ids(&project).is_empty());
}

#[test]
fn without_a_terminal_nothing_is_retried_or_removed_unless_forced() {
    let project = with_failed(sqlite, &["Break"]);
    for arguments in [&["failed", "retry"][..], &["failed", "remove", "1"], &["failed", "remove", "--all"]] {
        let run = project.run(arguments).exits(2);
        assert!(run.stderr.contains("--force"), "{}", run.stderr);
    }
    project.run(&["failed", "remove", "--force"]).exits(2);
    assert_eq!(ids(&project).len(), 1);
}

#[test]
fn where_there_is_nothing_to_choose_the_error_says_what_to_do() {
    let refused = |config: &str, arguments: &[&str], expected: &str| {
        let project = Project::new(config);
        let run = project.run(&[&["failed", "show"], arguments].concat()).exits(2);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
    };
    let own = "
transports:
  a: {dsn: 'sqlite:q.db?queue_name=a', failure_transport: fa}
  b: {dsn: 'sqlite:q.db?queue_name=b', failure_transport: fb}
  fa: 'sqlite:q.db?queue_name=fa'
  fb: 'sqlite:q.db?queue_name=fb'
";
    refused("transports: {a: 'sqlite:q.db'}", &[], "no failure transport is configured");
    refused(own, &[], "\"fa\", \"fb\"");
    refused(own, &["--transport=a"], "is no failure transport");
    refused(own, &["--transport=fc"], "fc");
    let project = Project::new(own);
    project.run(&["failed", "show", "--transport=fb"]).succeeds();
}

//! One queue on SQLite, one on PostgreSQL, and one on MySQL or MariaDB, for minutely and the real Symfony Messenger.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::both::{Both, on_each_symfony};
use super::php::{Php, Symfony};
use crate::support::databases::{Database, Server};
use crate::support::{Run, Running, wait_until};

/// A database of a test's own, and its URL. `None` where the server is not here, and the test is to be skipped.
pub(super) fn database(server: Option<Server>) -> Option<(Box<dyn Any>, String)> {
    Some(match server {
        None => {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("sqlite:///{}", dir.path().join("data.db").display());
            (Box::new(dir), url)
        }
        Some(server) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let database = runtime.block_on(Database::create(server))?;
            // As Symfony's recipes write it.
            let parameters = if server == Server::Mysql { "?charset=utf8mb4" } else { "?charset=utf8" };
            let url = database.url().replace("postgres://", "postgresql://") + parameters;
            (Box::new(database), url)
        }
    })
}

fn on(symfony: Symfony, server: Option<Server>) -> Option<Both> {
    let (store, database_url) = database(server)?;
    let dsns = ["async", "failed"].map(|queue| format!("doctrine://default?queue_name={queue}"));
    let php = Php::new(symfony, dsns.clone(), &database_url)?;
    Some(Both::on(store, dsns, php))
}

/// What both sides count on the queue.
fn counts(both: &Both) -> (u64, u64) {
    (both.project.pending("async"), both.php.count(&both.project))
}

fn stdout_of(run: &Run) -> String {
    format!("{}{}", run.stdout, run.stderr)
}

/// Makes the tests of one database.
macro_rules! on_database {
    ($module:ident, $server:expr, $($test:ident)*) => {
        mod $module {
            use super::*;
            $(
                fn $test(symfony: Symfony) {
                    if let Some(both) = on(symfony, $server) {
                        super::$test(&both);
                    }
                }
            )*
            on_each_symfony! { $($test)* }
        }
    };
}

macro_rules! on_every_database {
    ($($test:ident)*) => {
        on_database!(sqlite, None, $($test)*);
        on_database!(postgres, Some(Server::Postgres), $($test)*);
        on_database!(mysql, Some(Server::Mysql), $($test)*);
    };
}

on_every_database! {
    nothing_comes_from_another_symfony
    dispatched_by_symfony_handled_here
    dispatched_here_handled_by_symfony
    what_names_its_transport_here_is_handled_by_symfony
    either_side_sets_the_table_up
    symfonys_table_is_brought_up_to_date_and_serves_both
    a_delay_is_kept_to_on_either_side
    failed_at_symfonys_retried_here
    failed_here_shown_and_retried_by_symfony
    with_phps_serialization_all_goes_both_ways
    both_consume_one_queue_and_nothing_is_lost_or_doubled
    what_symfonys_worker_has_in_flight_is_left_to_it
    symfonys_worker_is_supervised_counted_and_scaled
}

fn nothing_comes_from_another_symfony(both: &Both) {
    let run = both.php.run(&both.project, &["versions"]);
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
}

fn dispatched_by_symfony_handled_here(both: &Both) {
    both.php.run(&both.project, &["dispatch", r#"{"n":7,"text":"é \"x\" / 日本 😀"}"#]);
    assert_eq!(counts(both), (1, 1));
    both.project.run(&["consume", "async", "--limit=1"]).succeeds();
    let note = &both.handled()[0];
    assert_eq!((&note["by"], &note["n"], &note["text"]), (&"us".into(), &7.into(), &"é \"x\" / 日本 😀".into()));
    let headers: BTreeMap<String, String> = serde_json::from_str(&both.project.lines("headers").join("")).unwrap();
    assert_eq!(headers[r"X-Message-Stamp-App\Stamp\Tenant"], r#"[{"name":"tenant 0"}]"#);
    assert_eq!(counts(both), (0, 0));
}

fn dispatched_here_handled_by_symfony(both: &Both) {
    both.dispatch_here(7, "é / 日本 😀");
    assert_eq!(counts(both), (1, 1));
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=1"]);
    let note = &both.handled()[0];
    assert_eq!((&note["by"], &note["text"]), (&"php".into(), &"é / 日本 😀".into()));
    assert_eq!(counts(both), (0, 0));
}

fn what_names_its_transport_here_is_handled_by_symfony(both: &Both) {
    let body = r#"{"n":1,"text":"","fail":false}"#;
    both.project.run(&["dispatch", r"App\Message\Note", body, "--transport=async", "--transport=failed"]).succeeds();
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=1"]);
    assert_eq!(both.handled()[0]["by"], "php");
    // Symfony's worker deletes messages that it cannot decode, so an empty queue alone proves nothing.
    assert_eq!((both.handled().len(), counts(both).0, both.project.pending("failed")), (1, 0, 1));
}

fn either_side_sets_the_table_up(both: &Both) {
    both.php.run(&both.project, &["messenger:setup-transports"]);
    both.project.run(&["setup"]).succeeds();
    both.dispatch_here(1, "");
    // Symfony adds its own indexes to our table, and nothing is lost by that.
    both.php.run(&both.project, &["messenger:setup-transports"]);
    assert_eq!(counts(both), (1, 1));
    both.project.run(&["consume", "async", "--limit=1"]).succeeds();
    assert_eq!(both.handled().len(), 1);
}

fn symfonys_table_is_brought_up_to_date_and_serves_both(both: &Both) {
    both.php.run(&both.project, &["messenger:setup-transports"]);
    for n in 0..5 {
        both.php.run(&both.project, &["dispatch", &format!(r#"{{"n":{n}}}"#)]);
    }
    // It is what an earlier version has left to both of our transports.
    let changed = both.project.run(&["setup"]).succeeds().stdout;
    assert!(changed.starts_with("async: create index \"messenger_messages_due\"\n"), "{changed}");
    assert!(changed.ends_with("async: ready\nfailed: ready\n"), "{changed}");
    let dumped = both.project.run(&["setup", "--dump-sql"]).succeeds().stdout;
    assert!(dumped.lines().all(|line| line.ends_with(": nothing is missing")), "{dumped}");
    assert_eq!(counts(both), (5, 5));
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=2"]);
    both.project.run(&["consume", "async", "--limit=2"]).succeeds();
    // Symfony's own setup may take the index away again, and what is left serves both sides still.
    both.php.run(&both.project, &["messenger:setup-transports"]);
    both.project.run(&["setup"]).succeeds();
    both.project.run(&["consume", "async", "--limit=1"]).succeeds();
    assert_eq!((both.handled().len(), counts(both)), (5, (0, 0)));
}

fn a_delay_is_kept_to_on_either_side(both: &Both) {
    both.php.run(&both.project, &["dispatch", r#"{"n":1}"#, "--delay=3600000"]);
    both.project.run(&["dispatch", r"App\Message\Note", r#"{"n":2}"#, "--delay=1h"]).succeeds();
    assert_eq!(counts(both), (0, 0));
    let status = both.project.json(&["status"]);
    assert_eq!(status["transports"][0]["delayed"], 2, "{status}");
    // One that becomes due while a worker waits.
    let _ours = both.project.start("ours", &["consume", "async", "--sleep=100ms"]);
    let begun = Instant::now();
    both.php.run(&both.project, &["dispatch", r#"{"n":3}"#, "--delay=2000"]);
    wait_until("the delayed message is handled", || both.handled().len() == 1);
    // In whole seconds, because Symfony's side cuts fractions.
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
}

fn failed_at_symfonys_retried_here(both: &Both) {
    both.php.run(&both.project, &["dispatch", r#"{"n":1,"fail":true}"#]);
    // One by one: on PostgreSQL, a worker of Symfony 7.4 that found nothing looks for what has become due once in a
    // minute, and its due times are whole seconds, rounded up.
    for _ in 0..2 {
        wait_until("it is due", || both.project.pending("async") == 1);
        both.php.run(&both.project, &["messenger:consume", "async", "--limit=1", "--time-limit=20"]);
    }
    assert_eq!((both.project.pending("async"), both.project.pending("failed")), (0, 1));
    // It fails here too, and keeps everything that Symfony had added. Symfony's retry and its move to the
    // failure transport are new rows, ours are not.
    both.project.run(&["consume", "failed", "--limit=1"]).succeeds();
    both.project.run(&["failed", "retry", "3", "--force"]).exits(1);
    let shown = stdout_of(&both.php.run(&both.project, &["messenger:failed:show", "3", "-vv"]));
    assert!(shown.contains("exit code 1"), "{shown}");
}

fn failed_here_shown_and_retried_by_symfony(both: &Both) {
    both.dispatch_here(1, "not here");
    both.project.run(&["consume", "async", "--limit=2", "--sleep=50ms", "--time-limit=20"]).succeeds();
    assert_eq!((both.project.pending("async"), both.project.pending("failed")), (0, 1));
    let shown = stdout_of(&both.php.run(&both.project, &["messenger:failed:show", "1"]));
    assert!(shown.contains(r"App\Message\Note") && shown.contains("exit code 1"), "{shown}");
    both.php.run(&both.project, &["messenger:failed:retry", "1", "--force"]);
    assert_eq!((both.handled()[0]["by"].as_str(), both.project.pending("failed")), (Some("php"), 0));
}

fn with_phps_serialization_all_goes_both_ways(both: &Both) {
    let php = both.serialized_messages_go_both_ways();
    // The third message, which Symfony has stored two more times.
    let shown = stdout_of(&php.run(&both.project, &["messenger:failed:show", "5", "-vv"]));
    assert!(shown.contains(r"App\Message\Note") && shown.contains("exit code 1"), "{shown}");
    php.run(&both.project, &["messenger:failed:remove", "5", "--force"]);

    php.run(&both.project, &["dispatch", r#"{"n":4,"text":"not here"}"#]);
    both.project.run(&["consume", "async", "--limit=2", "--sleep=50ms", "--time-limit=20"]).succeeds();
    let shown = stdout_of(&php.run(&both.project, &["messenger:failed:show", "6", "-vv"]));
    assert!(shown.contains("exit code 1") && shown.contains("async"), "{shown}");
    php.run(&both.project, &["messenger:failed:retry", "6", "--force"]);
    assert_eq!((&both.handled()[2]["by"], both.project.pending("failed")), (&"php".into(), 0));
}

fn both_consume_one_queue_and_nothing_is_lost_or_doubled(both: &Both) {
    both.php.run(&both.project, &["messenger:setup-transports"]);
    both.php.run(&both.project, &["dispatch", r#"{"n":0}"#, "--times=100"]);
    let consume = ["messenger:consume", "async", "--sleep=1"];
    let mut theirs = ["theirs1", "theirs2"].map(|name| (name, both.php.start(&both.project, name, &consume)));
    // Symfony 5.4 locks without SKIP LOCKED, so that its workers can end in a deadlock with each other, and SQLite
    // tells it that the database is locked rather than letting it wait (its transactions begin with a read); a
    // process manager starts them again.
    let mut restart = || {
        for (name, process) in &mut theirs {
            if process.is_over() {
                *process = both.php.start(&both.project, name, &consume);
            }
        }
    };
    wait_until("Symfony's workers have begun", || {
        restart();
        both.php_takes_part()
    });
    let ours = ["ours1", "ours2"].map(|name| both.project.start(name, &["consume", "async", "--sleep=100ms"]));
    for n in 100..140 {
        both.dispatch_here(n, "");
    }
    wait_until("all are handled", || {
        restart();
        both.project.lines("handled").len() >= 140
    });
    wait_until("the queue is empty", || counts(both) == (0, 0));
    drop((ours, theirs));
    let (numbers, by) = both.numbers();
    assert_eq!(numbers, (0..140).collect::<Vec<_>>());
    assert!(by[0] > 0 && by[1] > 0, "{by:?}");
}

fn what_symfonys_worker_has_in_flight_is_left_to_it(both: &Both) {
    both.php.run(&both.project, &["dispatch", r#"{"n":1,"text":"slow"}"#]);
    let mut theirs = both.php.command(&both.project, &["messenger:consume", "async", "--limit=1"]);
    theirs.env("SLOW", "2000");
    let mut theirs = Running::start(&both.project, "theirs", theirs);
    wait_until("it is in flight", || both.project.json(&["status"])["transports"][0]["in_flight"] == 1);
    both.project.run(&["consume", "async", "--time-limit=1"]).succeeds();
    assert_eq!(theirs.ends(), Some(0));
    let handled = both.handled();
    assert_eq!((handled.len(), &handled[0]["by"]), (1, &"php".into()));
}

fn symfonys_worker_is_supervised_counted_and_scaled(both: &Both) {
    both.php.run(&both.project, &["messenger:setup-transports"]);
    for n in 0..6 {
        both.dispatch_here(n, "");
    }
    assert_eq!(both.project.json(&["cron", "--dry-run"])["workers"][0]["desired"], 3);
    let mut supervisor = both.supervise();
    wait_until("workers run", || !both.project.workers().is_empty());
    wait_until("all are handled", || both.project.pending("async") == 0 && both.handled().len() == 6);
    assert!(both.handled().iter().all(|note| note["by"] == "php"));
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
}

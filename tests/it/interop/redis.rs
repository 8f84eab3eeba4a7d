//! One queue on Redis for minutely and the real Symfony Messenger.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::both::{Both, on_each_symfony};
use super::php::{Php, Symfony};
use crate::support::redis_keys::Keys;
use crate::support::{Running, wait_until};

/// With what php-redis does to the entries by default, or with plain JSON (0).
fn on_redis(symfony: Symfony, serializer: u8) -> Option<Both> {
    let keys = Keys::create_blocking()?;
    let ours = ["async", "failed"].map(|queue| format!("{}&serializer={serializer}", keys.dsn(queue, 0)));
    // Symfony 5.4 leaves handled messages in the stream by default.
    let theirs = ours.clone().map(|dsn| format!("{dsn}&delete_after_ack=1"));
    let php = Php::new(symfony, theirs, "")?;
    Some(Both::on(keys, ours, php))
}

on_each_symfony! {
    wrapped_messages_go_both_ways
    plain_messages_go_both_ways
    with_phps_serialization_all_goes_both_ways
    a_delay_is_kept_to_on_either_side
    failed_at_symfonys_retried_here
    failed_here_retried_by_symfony
    both_consume_one_queue_and_nothing_is_lost_or_doubled
    delayed_messages_are_handled_once_whoever_finds_them_due
    what_symfonys_worker_has_in_flight_is_left_to_it
    symfonys_worker_is_supervised_counted_and_scaled
}

fn dispatched_by_symfony_handled_here(both: &Both) {
    both.php.run(&both.project, &["dispatch", r#"{"n":7,"text":"é \"x\" / 日本 😀"}"#]);
    assert_eq!(both.project.pending("async"), 1);
    both.project.run(&["consume", "async", "--limit=1"]).succeeds();
    let note = &both.handled()[0];
    assert_eq!((&note["by"], &note["n"], &note["text"]), (&"us".into(), &7.into(), &"é \"x\" / 日本 😀".into()));
    let headers: BTreeMap<String, String> = serde_json::from_str(&both.project.lines("headers").join("")).unwrap();
    assert_eq!(headers[r"X-Message-Stamp-App\Stamp\Tenant"], r#"[{"name":"tenant 0"}]"#);
    assert_eq!(both.project.pending("async"), 0);
}

fn dispatched_here_handled_by_symfony(both: &Both) {
    both.dispatch_here(7, "é / 日本 😀");
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=1"]);
    let note = &both.handled()[0];
    assert_eq!((&note["by"], &note["text"]), (&"php".into(), &"é / 日本 😀".into()));
    let status = both.project.json(&["status"]);
    assert_eq!((&status["transports"][0]["pending"], &status["transports"][0]["in_flight"]), (&0.into(), &0.into()));
}

fn wrapped_messages_go_both_ways(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    dispatched_by_symfony_handled_here(&both);
    let Some(both) = on_redis(symfony, 1) else { return };
    dispatched_here_handled_by_symfony(&both);
}

fn plain_messages_go_both_ways(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 0) else { return };
    dispatched_by_symfony_handled_here(&both);
    let Some(both) = on_redis(symfony, 0) else { return };
    dispatched_here_handled_by_symfony(&both);
}

fn with_phps_serialization_all_goes_both_ways(symfony: Symfony) {
    for serializer in [0, 1] {
        let Some(both) = on_redis(symfony, serializer) else { return };
        both.serialized_messages_go_both_ways();
    }
}

fn a_delay_is_kept_to_on_either_side(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":1}"#, "--delay=3600000"]);
    both.project.run(&["dispatch", r"App\Message\Note", r#"{"n":2}"#, "--delay=1h"]).succeeds();
    let status = both.project.json(&["status"]);
    assert_eq!((&status["transports"][0]["pending"], &status["transports"][0]["delayed"]), (&0.into(), &2.into()));
    // Delayed there, handled here, by a worker that waits.
    let mut ours = both.project.start("ours", &["consume", "async", "--sleep=600", "--limit=1"]);
    let begun = Instant::now();
    both.php.run(&both.project, &["dispatch", r#"{"n":3}"#, "--delay=1500"]);
    assert_eq!(ours.ends(), Some(0));
    assert!(begun.elapsed() > Duration::from_millis(1500));
    // And the other way.
    let begun = Instant::now();
    both.project.run(&["dispatch", r"App\Message\Note", r#"{"n":4}"#, "--delay=1500ms"]).succeeds();
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=1", "--time-limit=60"]);
    assert!(begun.elapsed() > Duration::from_millis(1500));
    assert_eq!(both.numbers(), (vec![3, 4], [1, 1]));
}

fn failed_at_symfonys_retried_here(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":1,"fail":true}"#]);
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=2", "--time-limit=20"]);
    assert_eq!((both.project.pending("async"), both.project.pending("failed")), (0, 1));
    // It fails here too, and is kept.
    both.project.run(&["consume", "failed", "--limit=1"]).succeeds();
    let status = both.project.json(&["status"]);
    let failed = &status["transports"][1];
    assert_eq!((&failed["name"], &failed["delayed"], &failed["in_flight"]), (&"failed".into(), &1.into(), &0.into()));
}

fn failed_here_retried_by_symfony(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    both.dispatch_here(1, "not here");
    both.project.run(&["consume", "async", "--limit=2", "--sleep=50ms", "--time-limit=20"]).succeeds();
    assert_eq!((both.project.pending("async"), both.project.pending("failed")), (0, 1));
    both.php.run(&both.project, &["messenger:consume", "failed", "--limit=1", "--time-limit=20"]);
    assert_eq!((both.handled()[0]["by"].as_str(), both.project.pending("failed")), (Some("php"), 0));
}

fn both_consume_one_queue_and_nothing_is_lost_or_doubled(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":0}"#, "--times=100"]);
    let _theirs = ["theirs1", "theirs2"].map(|name| {
        // PHP's workers need names of their own.
        let php = Php { transport_dsn: format!("{}&consumer={name}", both.php.transport_dsn), ..both.php.clone() };
        php.start(&both.project, name, &["messenger:consume", "async", "--sleep=1"])
    });
    wait_until("Symfony's workers have begun", || both.php_takes_part());
    let _ours = ["ours1", "ours2"].map(|name| both.project.start(name, &["consume", "async"]));
    for n in 100..130 {
        both.dispatch_here(n, "");
    }
    wait_until("all are handled", || both.project.lines("handled").len() >= 130);
    wait_until("the queue is empty", || both.project.json(&["status"])["transports"][0]["in_flight"] == 0);
    let (numbers, by) = both.numbers();
    assert_eq!(numbers, (0..130).collect::<Vec<_>>());
    assert!(by[0] > 0 && by[1] > 0, "{by:?}");
}

fn delayed_messages_are_handled_once_whoever_finds_them_due(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":0}"#, "--times=200", "--delay=2000"]);
    let _theirs = ["theirs1", "theirs2"].map(|name| {
        let php = Php { transport_dsn: format!("{}&consumer={name}", both.php.transport_dsn), ..both.php.clone() };
        php.start(&both.project, name, &["messenger:consume", "async", "--sleep=0.01"])
    });
    let _ours = ["ours1", "ours2"].map(|name| both.project.start(name, &["consume", "async"]));
    wait_until("all are handled", || both.project.lines("handled").len() >= 200);
    wait_until("the queue is empty", || {
        let queue = &both.project.json(&["status"])["transports"][0];
        ["pending", "delayed", "in_flight"].iter().all(|count| queue[count] == 0)
    });
    assert_eq!(both.numbers().0, (0..200).collect::<Vec<_>>());
}

fn what_symfonys_worker_has_in_flight_is_left_to_it(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":1,"text":"slow"}"#]);
    let mut theirs = both.php.command(&both.project, &["messenger:consume", "async", "--limit=1"]);
    theirs.env("SLOW", "2000");
    let mut theirs = Running::start(&both.project, "theirs", theirs);
    wait_until("it is in flight", || both.project.json(&["status"])["transports"][0]["in_flight"] == 1);
    both.project.run(&["consume", "async", "--time-limit=1"]).succeeds();
    assert_eq!(theirs.ends(), Some(0));
    assert_eq!(both.numbers(), (vec![1], [0, 1]));
}

fn symfonys_worker_is_supervised_counted_and_scaled(symfony: Symfony) {
    let Some(both) = on_redis(symfony, 1) else { return };
    for n in 0..6 {
        both.dispatch_here(n, "");
    }
    assert_eq!(both.project.json(&["cron", "--dry-run"])["workers"][0]["desired"], 3);
    let mut supervisor = both.supervise();
    wait_until("all are handled", || both.project.pending("async") == 0 && both.handled().len() >= 6);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    // Three workers, each under the name of its slot.
    assert_eq!(both.numbers().0, (0..6).collect::<Vec<_>>());
    assert!(both.handled().iter().all(|note| note["by"] == "php"));
}

//! One exchange on RabbitMQ for minutely and the real Symfony Messenger.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::both::{Both, on_each_symfony};
use super::php::{Php, Symfony};
use crate::support::exchanges::Exchanges;
use crate::support::{Running, wait_until};

fn on_a_broker(symfony: Symfony) -> Option<Both> {
    let exchanges = Exchanges::create_blocking()?;
    let dsns = ["async", "failed"].map(|queue| exchanges.dsn(queue));
    let php = Php::new(symfony, dsns.clone(), "")?;
    Some(Both::on(exchanges, dsns, php))
}

on_each_symfony! {
    dispatched_by_symfony_handled_here
    dispatched_here_handled_by_symfony
    with_phps_serialization_all_goes_both_ways
    either_side_sets_the_exchange_up
    a_delay_is_kept_to_on_either_side
    a_delay_beyond_the_brokers_bound_is_an_error_on_either_side
    failed_at_symfonys_retried_here
    failed_here_retried_by_symfony
    both_consume_one_queue_and_nothing_is_lost_or_doubled
    what_symfonys_worker_has_in_flight_is_left_to_it
    symfonys_worker_is_supervised_counted_and_scaled
}

/// What both sides count.
fn counts(both: &Both) -> (u64, u64) {
    (both.project.pending("async"), both.php.count(&both.project))
}

fn dispatched_by_symfony_handled_here(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":7,"text":"é \"x\" / 日本 😀"}"#]);
    assert_eq!(counts(&both), (1, 1));
    both.project.run(&["consume", "async", "--limit=1"]).succeeds();
    let note = &both.handled()[0];
    assert_eq!((&note["by"], &note["n"], &note["text"]), (&"us".into(), &7.into(), &"é \"x\" / 日本 😀".into()));
    let headers: BTreeMap<String, String> = serde_json::from_str(&both.project.lines("headers").join("")).unwrap();
    assert_eq!(headers[r"X-Message-Stamp-App\Stamp\Tenant"], r#"[{"name":"tenant 0"}]"#);
    assert_eq!(headers["Content-Type"], "application/json");
    assert_eq!(counts(&both), (0, 0));
}

fn dispatched_here_handled_by_symfony(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.dispatch_here(7, "é / 日本 😀");
    assert_eq!(counts(&both), (1, 1));
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=1"]);
    let note = &both.handled()[0];
    assert_eq!((&note["by"], &note["text"]), (&"php".into(), &"é / 日本 😀".into()));
    assert_eq!(counts(&both), (0, 0));
}

fn either_side_sets_the_exchange_up(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.php.run(&both.project, &["messenger:setup-transports"]);
    both.project.run(&["setup"]).succeeds();
    both.php.run(&both.project, &["messenger:setup-transports"]);
    both.dispatch_here(1, "");
    assert_eq!(counts(&both), (1, 1));
}

fn with_phps_serialization_all_goes_both_ways(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.serialized_messages_go_both_ways();
}

fn a_delay_is_kept_to_on_either_side(symfony: Symfony) {
    const DELAY: Duration = Duration::from_millis(1500);
    let Some(both) = on_a_broker(symfony) else { return };
    // Both use the same delay queue, which the broker would refuse if they declared it in different ways.
    let begun = Instant::now();
    both.php.run(&both.project, &["dispatch", r#"{"n":1}"#, "--delay=1500"]);
    both.project.run(&["dispatch", r"App\Message\Note", r#"{"n":2}"#, "--delay=1500ms"]).succeeds();
    let counted = counts(&both);
    // On a busy machine the first may be due by the time that both have counted.
    assert!(counted == (0, 0) || begun.elapsed() > DELAY, "{counted:?}");
    both.project.run(&["consume", "async", "--sleep=600", "--limit=1", "--time-limit=30"]).succeeds();
    assert!(begun.elapsed() > DELAY);
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=1", "--time-limit=60"]);
    assert_eq!(both.numbers(), (vec![1, 2], [1, 1]));
}

fn a_delay_beyond_the_brokers_bound_is_an_error_on_either_side(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    // Ten years. There the broker refuses the queue in which the message would wait; here it is not asked.
    let theirs = both.php.command(&both.project, &["dispatch", r#"{"n":1}"#, "--delay=315360000000"]).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&theirs.stdout), String::from_utf8_lossy(&theirs.stderr));
    assert!(!theirs.status.success() && told.contains("x-expires"), "{told}");
    let ours = both.project.run(&["dispatch", r"App\Message\Note", "{}", "--delay=87600h"]).exits(1);
    assert!(ours.stderr.contains("delayed for more than 3649 days"), "{ours:?}");
    assert_eq!(counts(&both), (0, 0));
}

fn failed_at_symfonys_retried_here(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":1,"fail":true}"#]);
    both.php.run(&both.project, &["messenger:consume", "async", "--limit=2", "--time-limit=20"]);
    assert_eq!((both.project.pending("async"), both.project.pending("failed")), (0, 1));
    // It fails here too, and is kept, in the queue for its next try.
    both.project.run(&["consume", "failed", "--limit=1"]).succeeds();
    wait_until("it comes again", || both.project.pending("failed") == 1);
}

fn failed_here_retried_by_symfony(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.dispatch_here(1, "not here");
    both.project.run(&["consume", "async", "--limit=2", "--sleep=50ms", "--time-limit=20"]).succeeds();
    assert_eq!((both.project.pending("async"), both.project.pending("failed")), (0, 1));
    both.php.run(&both.project, &["messenger:consume", "failed", "--limit=1", "--time-limit=20"]);
    assert_eq!((both.handled()[0]["by"].as_str(), both.project.pending("failed")), (Some("php"), 0));
}

fn both_consume_one_queue_and_nothing_is_lost_or_doubled(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":0}"#, "--times=100"]);
    let consume = ["messenger:consume", "async", "--sleep=1"];
    let theirs = ["theirs1", "theirs2"].map(|name| both.php.start(&both.project, name, &consume));
    wait_until("Symfony's workers have begun", || both.php_takes_part());
    let ours = ["ours1", "ours2"].map(|name| both.project.start(name, &["consume", "async"]));
    for n in 100..130 {
        both.dispatch_here(n, "");
    }
    wait_until("all are handled", || both.project.lines("handled").len() >= 130);
    // Not killed: the last messages are handled, and may not be acknowledged yet.
    for mut worker in theirs.into_iter().chain(ours) {
        worker.signal(Signal::SIGTERM);
        worker.ends();
    }
    wait_until("the queue is empty", || counts(&both) == (0, 0));
    let (numbers, by) = both.numbers();
    assert_eq!(numbers, (0..130).collect::<Vec<_>>());
    assert!(by[0] > 0 && by[1] > 0, "{by:?}");
}

fn what_symfonys_worker_has_in_flight_is_left_to_it(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    both.php.run(&both.project, &["dispatch", r#"{"n":1,"text":"slow"}"#]);
    let mut theirs = both.php.command(&both.project, &["messenger:consume", "async", "--limit=1"]);
    theirs.env("SLOW", "2000");
    let mut theirs = Running::start(&both.project, "theirs", theirs);
    wait_until("it is in flight", || both.project.pending("async") == 0);
    both.project.run(&["consume", "async", "--time-limit=1"]).succeeds();
    assert_eq!(theirs.ends(), Some(0));
    assert_eq!(both.numbers(), (vec![1], [0, 1]));
}

fn symfonys_worker_is_supervised_counted_and_scaled(symfony: Symfony) {
    let Some(both) = on_a_broker(symfony) else { return };
    for n in 0..6 {
        both.dispatch_here(n, "");
    }
    assert_eq!(both.project.json(&["cron", "--dry-run"])["workers"][0]["desired"], 3);
    let mut supervisor = both.supervise();
    wait_until("all are handled", || both.project.pending("async") == 0 && both.handled().len() >= 6);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    assert!(both.handled().iter().all(|note| note["by"] == "php"));
}

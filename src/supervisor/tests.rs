//! Supervisors from their first tick to their end, with real processes.

use std::fs;
use std::future::pending;
use std::time::Instant;

use super::fixture::{Pending, Stage, eventually, kill_dead, names, tick};
use super::*;
use crate::cache::CacheStore;

#[tokio::test]
async fn a_worker_outlives_its_supervisor_and_is_adopted_by_the_next() {
    let stage = Stage::new().sleepers("mail", &[], 1, 1);
    assert!(!stage.helper("tick one and be killed").status().unwrap().success());
    let worker = stage.pids();
    let supervisor = stage.supervisor();
    let report = tick(&supervisor).await;
    assert_eq!((report.plan.workers[0].running, report.started), (Some(1), vec![]));
    assert_eq!(stage.pids(), worker);

    kill_dead(worker[0]);
    eventually("the slot is free", || stage.live().is_empty());
    assert_eq!(tick(&supervisor).await.started.len(), 1);
}

#[tokio::test]
async fn a_dry_run_touches_nothing() {
    let stage = Stage::new().transport("async", Pending::Are(7)).sleepers("mail", &["async"], 1, 10);
    let report = stage.supervisor().dry_run().await;
    assert_eq!(report.plan.workers[0].start, 2);
    assert_eq!(fs::read_dir(&stage.dir).unwrap().count(), 0);
    assert_eq!(stage.promised(), names(&[]));
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_is_an_error_that_names_it() {
    let stage = Stage::new().sleepers("mail", &[], 1, 1);
    fs::write(stage.state_dir(), "").unwrap();
    let supervisor = stage.supervisor();
    let error = supervisor.lock(Lifetime::UntilNextCron).await.unwrap_err().to_string();
    assert!(error.contains("/var could not be created: "), "{error}");
    let report = tick(&supervisor).await;
    assert!(report.started.is_empty() && !report.failures.is_empty());
}

fn at_a_quick_pace(supervisor: Supervisor) -> Supervisor {
    supervisor.with_pace(Pace { tick: Duration::from_millis(50) })
}

#[tokio::test]
async fn under_cron_it_ticks_for_its_time_and_leaves_workers_and_promises() {
    let stage = Stage::new()
        .transport("own", Pending::Are(0))
        .transport("queue", Pending::Are(0))
        .auto_fallback("foreign", "queue")
        .transport("rest", Pending::Are(0))
        .transport("broken", Pending::Are(0))
        .transport("silent", Pending::Are(0))
        .sleepers("own", &["own"], 1, 1)
        .sleepers("silent", &["silent"], 1, 1)
        .with_own_workers()
        .sleepers("foreign", &["foreign"], 1, 1)
        .sleepers("rest", &["rest"], 0, 1)
        .sleepers("broken", &["broken"], 1, 1);
    fs::create_dir_all(stage.state_dir().join("slots/broken/0")).unwrap();
    let supervisor = at_a_quick_pace(stage.supervisor());
    // One of the workers says that it takes messages.
    stage.store.put("heartbeat/own", "worker-1", "", Duration::from_secs(60)).await.unwrap();
    let mut ticks = 0;
    let failures = supervisor
        .cron(Duration::from_secs(2), pending(), |_| {
            ticks += 1;
            if ticks == 2 {
                assert_eq!(stage.promised(), names(&["own", "foreign", "queue", "rest"]));
            }
        })
        .await;
    // A busy machine makes few of forty.
    assert!((2..=42).contains(&ticks), "{ticks} ticks");
    assert_eq!(failures.len(), 1);
    assert_eq!(stage.live().len(), 3);
    assert_eq!(stage.promised(), names(&["foreign", "queue", "rest"]));
}

#[tokio::test]
async fn a_signal_ends_it_between_ticks() {
    let stage = Stage::new().sleepers("mail", &[], 1, 1);
    let mut ticks = 0;
    let (sender, stop) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let stop = async { stop.await.unwrap() };
    let failures = stage
        .supervisor()
        .cron(Duration::from_secs(55), stop, |_| {
            ticks += 1;
            sender.take().unwrap().send(()).unwrap();
        })
        .await;
    assert_eq!((ticks, failures, stage.live().len()), (1, vec![], 1));
}

#[tokio::test]
async fn a_hung_transport_does_not_delay_a_signal() {
    let stage = Stage::new().transport("hung", Pending::Hang).sleepers("mail", &["hung"], 1, 1);
    let begun = Instant::now();
    stage.supervisor().supervise(stage.asked.notified(), |_| unreachable!("the tick was not finished")).await;
    assert!(begun.elapsed() < COUNT_TIMEOUT);
}

#[tokio::test]
async fn supervising_ends_with_no_promise_and_no_worker() {
    let stage = Stage::new()
        .transport("busy", Pending::Are(9))
        .transport("rest", Pending::Are(0))
        .sleepers("busy", &["busy"], 1, 3)
        .sleepers("rest", &["rest"], 0, 1);
    // A definition that has since been taken out of the configuration.
    let former = Stage::at(&stage.dir).sleepers("former", &[], 1, 1);
    tick(&former.supervisor()).await;

    let supervisor = at_a_quick_pace(stage.supervisor());
    let (sender, stop) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let on_tick = |_: &TickReport| {
        if stage.live().len() == 3 {
            sender.take().map(|sender| sender.send(()));
        }
    };
    supervisor.supervise(async { stop.await.unwrap() }, on_tick).await;
    assert_eq!(stage.promised(), names(&[]));
    assert_eq!(stage.live().len(), 3);
    assert_eq!(supervisor.stop_workers(pending()).await.unwrap(), []);
    assert_eq!(stage.live(), []);
}

#[tokio::test]
async fn a_second_signal_ends_the_wait_for_workers_that_do_not_finish() {
    let script = "trap 'echo no >> refused' TERM; echo $$ >> started; while :; do sleep 0.05; done";
    let stage = Stage::new().workers("mail", &[], 1, 1, script);
    let supervisor = stage.supervisor();
    tick(&supervisor).await;
    eventually("it refuses", || stage.lines("started").len() == 1);
    let hurry = async {
        while stage.lines("refused").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let left = supervisor.stop_workers(hurry).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(stage.live(), left);
}

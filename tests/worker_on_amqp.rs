//! Workers as processes on a broker: how they outlast it, and their own death.

#[path = "support/databases.rs"]
mod databases;
#[path = "support/exchanges.rs"]
mod exchanges;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::time::{Duration, Instant};

use exchanges::Exchanges;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::Proxy;
use support::{Project, wait_until};

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
    wait_until("the second message is handled", || project.lines("handled") == ["1", "2"]);
    assert!(!worker.is_over());
}

#[test]
fn some_of_a_transports_queues_can_be_consumed_alone() {
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

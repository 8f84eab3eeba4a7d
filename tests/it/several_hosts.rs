//! Several hosts: supervisors with state directories of their own, one queue, one cache, and one bound for all.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use tempfile::TempDir;

use crate::support::{Project, wait_until};

const MAX: usize = 3;

/// Hosts as folders, with another folder that they share.
struct Cluster {
    shared: TempDir,
}

impl Cluster {
    fn new() -> Self {
        Self { shared: tempfile::tempdir().unwrap() }
    }

    fn host(&self, autoscale: &str) -> Project {
        let shared = self.shared.path().display();
        Project::new(&format!(
            r#"
cache: "file:{shared}/cache"
transports:
  mail: "sqlite://{shared}/q.db?queue_name=mail"
routing: {{'*': mail}}
handlers:
  Note: {{exec: [sh, -c, 'printf "%s\\n" "$(cat)" >> {shared}/handled']}}
  Slow: {{exec: [sh, -c, 'while [ ! -e {shared}/go ]; do sleep 0.05; done; printf "%s\\n" "$(cat)" >> {shared}/handled']}}
workers:
  - name: mail
    transports: [mail]
    options: [--time-limit=600, --sleep=50ms]
    autoscale: {autoscale}
"#
        ))
    }

    fn handled(&self) -> Vec<String> {
        let text = fs::read_to_string(self.shared.path().join("handled")).unwrap_or_default();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

/// Workers that live on a host, by the kernel's account. What a worker is about to turn into a handler's program still
/// looks like it, but leads no session.
fn workers(host: &Project) -> usize {
    let command = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let consumes = |pid: i32| command(pid).split(|byte| *byte == 0).any(|argument| argument == b"consume");
    let leads = |pid: i32| getsid(Some(Pid::from_raw(pid))) == Ok(Pid::from_raw(pid));
    host.processes().into_iter().filter(|pid| consumes(*pid) && leads(*pid)).count()
}

/// Watches for a while.
fn never_more_than_max(hosts: &[&Project], how_long: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < how_long {
        let running: usize = hosts.iter().map(|host| workers(host)).sum();
        assert!(running <= MAX, "{running} workers");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn max_is_one_bound_for_all_hosts() {
    let cluster = Cluster::new();
    let scale = format!("{{desired_size: 1, min: 0, max: {MAX}, scope: cluster}}");
    let hosts = [cluster.host(&scale), cluster.host(&scale)];
    for n in 10..30 {
        hosts[0].run(&["dispatch", "Slow", &n.to_string()]).succeeds();
    }
    let supervisors: Vec<_> = hosts.iter().map(|host| host.start("supervise", &["supervise"])).collect();
    let all = || hosts.iter().map(workers).sum::<usize>();
    wait_until("as many work as may", || all() == MAX);
    never_more_than_max(&[&hosts[0], &hosts[1]], Duration::from_secs(6));
    for host in &hosts {
        let plan = host.json(&["cron", "--dry-run"]);
        assert_eq!((&plan["workers"][0]["running"], &plan["workers"][0]["start"]), (&MAX.into(), &0.into()));
    }

    // A killed worker's cluster slot becomes free, and any host may lease it.
    let victim = hosts.iter().flat_map(Project::workers).next().unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    wait_until("it is replaced", || all() == MAX && !hosts.iter().any(|host| host.workers().contains(&victim)));
    never_more_than_max(&[&hosts[0], &hosts[1]], Duration::from_secs(2));

    fs::write(cluster.shared.path().join("go"), "").unwrap();
    wait_until("everything is handled", || cluster.handled().len() == 20);
    assert_eq!(cluster.handled(), (10..30).map(|n| n.to_string()).collect::<Vec<_>>(), "each once");
    drop(supervisors);
}

#[test]
fn the_only_worker_moves_to_another_host_when_its_own_stops() {
    let cluster = Cluster::new();
    let scale = "{desired_size: 1, min: 1, max: 1, scope: cluster}";
    let (a, b) = (cluster.host(scale), cluster.host(scale));
    let mut first = a.start("supervise", &["supervise"]);
    wait_until("it works", || workers(&a) == 1);
    let _second = b.start("supervise", &["supervise"]);
    wait_until("the other host is looked after", || b.json(&["status"])["supervisor"]["running"] == true);
    never_more_than_max(&[&a, &b], Duration::from_secs(1));
    assert_eq!(workers(&b), 0);

    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends(), Some(0));
    wait_until("the other host works", || workers(&b) == 1);
    b.run(&["dispatch", "Note", "1"]).succeeds();
    wait_until("the message is handled", || cluster.handled() == ["1"]);
}

/// Its workers die with it, but the other hosts cannot know that: they might only be unreachable.
#[test]
fn the_slots_of_a_host_that_died_stay_leased_until_the_lease_expires() {
    let cluster = Cluster::new();
    let scale = format!("{{desired_size: 1, min: {MAX}, max: {MAX}, scope: cluster}}");
    let (a, b) = (cluster.host(&scale), cluster.host(&scale));
    let first = a.start("supervise", &["supervise"]);
    wait_until("it works", || workers(&a) == MAX);
    // The supervisor first, or it would replace the workers.
    drop(first);
    for pid in a.processes() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let plan = b.json(&["cron", "--dry-run"]);
    assert_eq!((&plan["workers"][0]["running"], &plan["workers"][0]["start"]), (&MAX.into(), &0.into()));
    // The host itself returns earlier, and takes its own slots over.
    let _back = a.start("supervise", &["supervise"]);
    wait_until("it works again", || workers(&a) == MAX);
    assert_eq!(workers(&b), 0);
}

#[test]
fn without_the_cache_no_worker_is_started_and_the_reason_is_reported() {
    let cluster = Cluster::new();
    let host = cluster.host("{desired_size: 1, max: 2, scope: cluster}");
    fs::write(cluster.shared.path().join("cache"), "not a folder").unwrap();
    let mut cron = host.start("supervise", &["supervise"]);
    wait_until("it is reported", || {
        host.lines("supervise.err").join("\n").contains("workers on all hosts could not be counted")
    });
    assert_eq!(workers(&host), 0);
    cron.signal(Signal::SIGTERM);
    assert_eq!(cron.ends(), Some(0));
}

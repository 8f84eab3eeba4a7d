//! Leases of several hosts, as folders that share a cache.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::super::fixture::eventually;
use super::file::LeaseFile;
use super::host_id::ID_LENGTH;
use super::*;
use crate::cache::{CacheStore, FileStore};
use crate::config::{Autoscale, ConsumeOptions};

/// Hosts with state directories of their own, and a cache that they share.
struct Cluster {
    dir: TempDir,
    cache: Arc<Cache>,
    definition: WorkerDefinition,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let definition = WorkerDefinition {
            name: "mail".into(),
            path: "workers[0]".into(),
            transports: vec!["async".into()],
            options: vec![],
            consume_options: ConsumeOptions { time_limit: Some(Duration::from_secs(60)), ..ConsumeOptions::default() },
            autoscale: Autoscale { desired_size: 1, min: 1, max: 3, scope: Scope::Cluster },
            command: None,
        };
        let cache = Arc::new(Cache::new(Arc::new(FileStore::new(dir.path().join("cache"))) as Arc<dyn CacheStore>));
        Self { dir, cache, definition }
    }

    fn host(&self, name: &str) -> Leases {
        Leases::new(Arc::clone(&self.cache), &self.dir.path().join(name))
    }

    async fn held(&self) -> Vec<u32> {
        self.host("nobody").held("mail").await.unwrap().into_iter().collect()
    }

    /// From now on the cache can neither be read nor written.
    fn lose_cache(&self) {
        let dir = self.dir.path().join("cache");
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::write(dir, "").unwrap();
    }
}

/// A program in a slot, in a session of its own, as a worker is.
struct Worker(Child);

impl Worker {
    fn in_slot(leases: &Leases, slot: u32) -> Self {
        let child = Command::new("setsid").args(["sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
        Self::record(leases, slot, child)
    }

    fn record(leases: &Leases, slot: u32, child: Child) -> Self {
        let pid = child.id();
        eventually("it leads a session", || session::members(pid).iter().any(|member| member.pid == pid));
        let claim = leases.slots.claim("mail", slot).unwrap().unwrap();
        claim.record(ProcessId::of(pid).unwrap(), vec!["sleep".into()]).unwrap();
        Self(child)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn dies(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.dies();
    }
}

fn remaining(leases: &Leases, slot: u32) -> Duration {
    LeaseFile::of(&leases.slots, "mail", slot).read().unwrap().remaining()
}

#[tokio::test]
async fn a_cluster_slot_is_leased_to_one_host_even_among_hosts_with_the_same_name() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    assert_ne!(a.owner().unwrap(), b.owner().unwrap());
    assert_eq!(a.owner().unwrap(), cluster.host("a").owner().unwrap());
    assert!(a.acquire(&cluster.definition, 0).await.unwrap());
    assert!(!b.acquire(&cluster.definition, 0).await.unwrap());
    assert!(b.acquire(&cluster.definition, 1).await.unwrap());
    assert_eq!(cluster.held().await, [0, 1]);
    let remaining = remaining(&a, 0);
    assert!(remaining > Duration::from_secs(120) && remaining <= Duration::from_secs(60) + GRACE, "{remaining:?}");
}

#[test]
fn a_lock_on_the_host_id_delays_no_supervisor() {
    let cluster = Cluster::new();
    let a = cluster.host("a");
    let owner = a.owner().unwrap();
    let path = cluster.dir.path().join("a/host-id");
    let locked = std::fs::File::open(&path).unwrap();
    locked.lock().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(a.owner().unwrap()));
    assert_eq!(receiver.recv_timeout(Duration::from_secs(30)), Ok(owner));
    // An empty file gets an id.
    std::fs::write(&path, "").unwrap();
    let again = cluster.host("a").owner().unwrap();
    assert_eq!(again, cluster.host("a").owner().unwrap());
    assert_eq!(std::fs::read(&path).unwrap().len(), ID_LENGTH);
}

#[tokio::test]
async fn only_a_lease_without_a_worker_is_released() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    for slot in 0..3 {
        assert!(a.acquire(&cluster.definition, slot).await.unwrap());
    }
    let mut worker = Worker::in_slot(&a, 0);
    let about_to_start = a.slots.claim("mail", 1).unwrap().unwrap();
    b.maintain_definition("mail").await.unwrap();
    assert_eq!(cluster.held().await, [0, 1, 2], "another host's leases are its own");
    a.maintain_definition("mail").await.unwrap();
    assert_eq!(cluster.held().await, [0, 1]);
    worker.dies();
    drop(about_to_start);
    a.maintain_definition("mail").await.unwrap();
    assert!(cluster.held().await.is_empty());
}

#[tokio::test]
async fn a_lease_is_renewed_while_its_worker_lives() {
    let cluster = Cluster::new();
    let a = cluster.host("a");
    let mut worker = Worker::in_slot(&a, 0);
    a.claim("mail", 0, RENEW_BELOW / 2, None).await.unwrap();
    a.maintain_definition("mail").await.unwrap();
    assert!(remaining(&a, 0) > RENEW_BELOW);
    assert!(worker.is_alive());
    assert!(!cluster.host("b").acquire(&cluster.definition, 0).await.unwrap());
}

#[tokio::test]
async fn the_lease_of_a_host_that_is_gone_expires() {
    let cluster = Cluster::new();
    assert!(cluster.host("gone").claim("mail", 0, Duration::ZERO, None).await.unwrap());
    assert!(cluster.held().await.is_empty());
    assert!(cluster.host("b").acquire(&cluster.definition, 0).await.unwrap());
}

#[tokio::test]
async fn a_worker_ends_before_its_lease_expires() {
    let cluster = Cluster::new();
    let a = cluster.host("a");
    let mut safe = Worker::in_slot(&a, 0);
    let mut finishing = Worker::in_slot(&a, 1);
    let mut overdue = Worker::in_slot(&a, 2);
    let mut from_before = Worker::in_slot(&a, 3);
    for (slot, left) in [(0, FINISH_BELOW), (1, KILL_BELOW), (2, Duration::ZERO)] {
        a.claim("mail", slot, left + Duration::from_secs(10), None).await.unwrap();
    }
    cluster.lose_cache();
    assert!(a.maintain_definition("mail").await.is_err());
    eventually("those whose leases expire have ended", || !finishing.is_alive() && !overdue.is_alive());
    assert!(safe.is_alive(), "there is time yet");
    assert!(from_before.is_alive(), "it was started when it needed no lease");
}

#[tokio::test]
async fn a_worker_that_loses_its_lease_is_asked_to_finish_once() {
    let cluster = Cluster::new();
    let a = cluster.host("a");
    let heard = cluster.dir.path().join("heard");
    let script = "trap 'echo term >> heard' TERM; trap 'echo fence >> heard' WINCH; echo ready >> heard; \
                  while :; do sleep 0.02; done";
    let mut command = Command::new("setsid");
    let worker = command.args(["sh", "-c", script]).current_dir(cluster.dir.path()).stdin(Stdio::null()).spawn();
    let worker = Worker::record(&a, 0, worker.unwrap());
    let has_heard = |lines: &str| std::fs::read_to_string(&heard).is_ok_and(|heard| heard == lines);
    eventually("it listens", || has_heard("ready\n"));
    a.claim("mail", 0, KILL_BELOW + Duration::from_secs(25), None).await.unwrap();
    cluster.lose_cache();
    assert!(a.maintain_definition("mail").await.is_err());
    eventually("it is asked", || has_heard("ready\nterm\n"));
    // By this supervisor, and by the next one.
    for host in [&a, &cluster.host("a")] {
        assert!(host.maintain_definition("mail").await.is_err());
    }
    assert!(
        a.has_asked_to_finish(a.slots.live("mail").unwrap()[0].record.as_ref().unwrap()),
        "nor when the host's workers stop"
    );
    // Signals that were sent before this one arrive before it.
    let pid = nix::unistd::Pid::from_raw(worker.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
    eventually("nothing else was sent", || has_heard("ready\nterm\nfence\n"));
}

#[test]
fn a_worker_that_is_asked_has_fifteen_seconds_to_finish() {
    // The longest time between two checks: the last one of a cron, and the first one of the next.
    let between_checks = Duration::from_secs(15);
    assert!(FINISH_BELOW - between_checks - KILL_BELOW >= Duration::from_secs(15));
    assert!(RENEW_BELOW > FINISH_BELOW && RENEWED_FOR > RENEW_BELOW);
}

#[tokio::test]
async fn a_worker_whose_cluster_slot_another_host_has_leased_is_killed() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    let mut worker = Worker::in_slot(&a, 0);
    a.claim("mail", 0, Duration::ZERO, None).await.unwrap();
    assert!(b.acquire(&cluster.definition, 0).await.unwrap());
    a.maintain_definition("mail").await.unwrap();
    eventually("it has ended", || !worker.is_alive());
    a.maintain_definition("mail").await.unwrap();
    assert_eq!(cluster.held().await, [0], "and the other host still has its lease");
}

#[tokio::test]
async fn without_the_cache_no_lease_is_acquired() {
    let cluster = Cluster::new();
    let a = cluster.host("a");
    assert!(a.acquire(&cluster.definition, 0).await.unwrap());
    cluster.lose_cache();
    assert!(a.acquire(&cluster.definition, 1).await.is_err());
    assert!(a.held("mail").await.is_err());
}

//! One bound for all hosts: definitions whose scope is the cluster.
//!
//! Such a definition has `max` *places*, each a claim in the cache that the hosts share. A host fills slot `n` only while
//! it holds place `n`; so there are never more workers than places, however many hosts there are.
//!
//! ```text
//!   lock slot n ▸ claim place n ▸ write the lease ▸ start the worker          (a crash in between leaves a place
//!                                                                              that is given back at the next tick)
//!   worker gone ▸ lock slot n ▸ give place n back
//! ```
//!
//! A claim ends by itself some time after the worker's time limit: a host that dies takes its workers with it, and gives
//! its places back without a word. While a worker is at work longer than that, its supervisor prolongs the claim. Where
//! it can't (the cache is down), the worker is ended before the claim is: the bound goes before the work, which is
//! delivered again.
//!
//! The *lease*, a file beside the slot, tells later supervisors of this host until when the place is held.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use nix::unistd::gethostname;
use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::process::{ProcessId, kill_session};
use super::slot::{LiveSlot, Record, Slots};
use super::state::{self, Mode, StateError};
use crate::cache::{Cache, CacheError};
use crate::config::{Scope, WorkerDefinition};

/// A place is held for this much longer than its worker's time limit.
const GRACE: Duration = Duration::from_secs(90);
/// A claim that ends sooner than this is prolonged.
const PROLONG: Duration = Duration::from_secs(75);
/// From when on it is prolonged, for how long.
const PROLONGED: Duration = Duration::from_secs(120);
/// A worker whose claim ends sooner than this is asked to finish. From one cron's last look to the next one's first it may
/// be 15 seconds, and from then on the worker has 15 more.
const FINISH: Duration = Duration::from_secs(50);
/// A worker whose claim ends sooner than this is killed: the next look may come this much later, with another cron.
const KILL: Duration = Duration::from_secs(20);
/// How the name begins of a file that is not a lease yet.
pub(super) const UNFINISHED: &str = ".lease-";
/// How long the cache may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Of the number that a host gives itself, in hexadecimal digits.
const ID_LENGTH: usize = 16;

/// The places of all definitions, as one host sees them.
pub(super) struct Places {
    cache: Arc<Cache>,
    state_dir: PathBuf,
    slots: Slots,
}

/// Until when a place is held. By this host's clock, counted from before the claim was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    until: SystemTime,
    /// The worker that has been asked to finish. Asked twice, it would stop at once.
    #[serde(default)]
    asked: Option<ProcessId>,
}

/// What is to be done about a worker whose place is claimed no longer than for `left`, and could not be prolonged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Wait,
    Finish,
    Kill,
}

impl Places {
    pub fn new(cache: Arc<Cache>, state_dir: &Path) -> Self {
        Self { cache, state_dir: state_dir.to_owned(), slots: Slots::new(state_dir) }
    }

    /// The places of a definition that some host holds.
    pub async fn held(&self, definition: &str) -> Result<BTreeSet<u32>, String> {
        let facts = in_time(self.cache.list(&group(definition))).await?;
        Ok(facts.iter().filter_map(|fact| fact.key.parse().ok()).collect())
    }

    /// Takes a place for a worker that is about to be started. The slot must be locked.
    pub async fn take(&self, definition: &WorkerDefinition, place: u32) -> Result<bool, String> {
        let limit = definition.time_limit().ok_or("its time limit cannot be read")?;
        self.claim(&definition.name, place, limit.saturating_add(GRACE), None).await
    }

    /// Takes a place or prolongs it. The lease is written after that, so that it never promises too much.
    async fn claim(
        &self,
        definition: &str,
        place: u32,
        ttl: Duration,
        asked: Option<ProcessId>,
    ) -> Result<bool, String> {
        let owner = self.owner().map_err(|error| error.to_string())?;
        let until = SystemTime::now() + ttl;
        let taken = in_time(self.cache.claim(&group(definition), &place.to_string(), &owner, ttl)).await?;
        if taken {
            self.write_lease(definition, place, Lease { until, asked }).map_err(|error| error.to_string())?;
        }
        Ok(taken)
    }

    /// Prolongs what runs out while its worker lives; gives back what has no worker any more.
    async fn keep(&self, definition: &str) -> Result<(), String> {
        let live = self.slots.live(definition).map_err(|error| error.to_string())?;
        join_all(live.iter().map(|slot| self.keep_one(slot))).await;
        let owner = self.owner().map_err(|error| error.to_string())?;
        let facts = in_time(self.cache.list(&group(definition))).await?;
        for fact in facts.iter().filter(|fact| fact.value == owner) {
            let Ok(place) = fact.key.parse() else { continue };
            if !live.iter().any(|slot| slot.slot == place) {
                self.give_back(definition, place, &owner).await?;
            }
        }
        Ok(())
    }

    /// With the slot locked, so that nobody is about to start a worker in it.
    async fn give_back(&self, definition: &str, place: u32, owner: &str) -> Result<(), String> {
        let Some(_slot) = self.slots.claim(definition, place).map_err(|error| error.to_string())? else {
            return Ok(());
        };
        let _ = std::fs::remove_file(self.lease_path(definition, place));
        in_time(self.cache.unclaim(&group(definition), &place.to_string(), owner)).await
    }

    async fn keep_one(&self, live: &LiveSlot) {
        let (definition, place) = (&live.definition, live.slot);
        let slot = format!("{definition}/{place}");
        let lease = self.lease(definition, place);
        let left = lease.map(|lease| left(lease.until));
        if left.is_some_and(|left| left >= PROLONG) {
            return;
        }
        let lost = match self.claim(definition, place, PROLONGED, lease.and_then(|lease| lease.asked)).await {
            Ok(true) => return,
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(slot, error, "the worker's place in the cluster cannot be prolonged now");
                false
            }
        };
        // Without a lease it was started when its scope was the host: such workers end by themselves.
        let (Some(lease), Some(left)) = (lease, left) else { return };
        let Some(process) = live.record.as_ref().map(|record| record.process) else { return };
        let ended = match if lost { Verdict::Kill } else { verdict(left) } {
            Verdict::Wait => return,
            Verdict::Finish if lease.asked == Some(process) => return,
            Verdict::Finish => {
                // Noted before: a crash in between asks it never, and not twice.
                match self.write_lease(definition, place, Lease { asked: Some(process), ..lease }) {
                    Ok(()) => process.terminate(),
                    Err(error) => {
                        tracing::error!(slot, %error, "a worker that loses its place cannot be asked to finish");
                        return;
                    }
                }
            }
            // With all that it has started.
            Verdict::Kill => kill_session(process.pid),
        };
        let left = left.as_secs();
        match ended {
            Ok(()) => {
                tracing::error!(slot, pid = process.pid, left, "ended a worker that loses its place in the cluster")
            }
            Err(error) => tracing::error!(slot, pid = process.pid, %error, "a worker without a place cannot be ended"),
        }
    }

    /// Has this worker been asked to finish, because it loses its place?
    pub fn have_asked(&self, worker: &Record) -> bool {
        let lease = self.lease(&worker.definition, worker.slot);
        lease.is_some_and(|lease| lease.asked == Some(worker.process))
    }

    fn lease_path(&self, definition: &str, place: u32) -> PathBuf {
        self.slots.path(definition, place).with_added_extension("lease")
    }

    fn lease(&self, definition: &str, place: u32) -> Option<Lease> {
        serde_json::from_slice(&std::fs::read(self.lease_path(definition, place)).ok()?).ok()
    }

    fn write_lease(&self, definition: &str, place: u32, lease: Lease) -> Result<(), StateError> {
        let path = self.lease_path(definition, place);
        state::create_dir(&self.slots.dir_of(definition))?;
        replace(&path, &lease).map_err(StateError::io(&path, "written"))
    }

    /// Who this host is among the others: a number of its own, kept in the state directory, and the host's name for
    /// people. The name alone would not do, as many hosts are called `localhost`.
    fn owner(&self) -> Result<String, StateError> {
        state::create_dir(&self.state_dir)?;
        let path = self.state_dir.join("host-id");
        let id = match read_id(&path)? {
            Some(id) => id,
            None => {
                create_id(&path).map_err(StateError::io(&path, "written"))?;
                // Another supervisor may have been first.
                let damaged = || std::io::Error::new(std::io::ErrorKind::InvalidData, "it is damaged; delete it");
                read_id(&path)?.ok_or_else(damaged).map_err(StateError::io(&path, "read"))?
            }
        };
        Ok(format!("{}:{id}", gethostname().unwrap_or_default().display()))
    }
}

impl Supervisor {
    /// Sees to the places of this host's workers. To be done at the beginning of every tick.
    pub(super) async fn keep_places(&self) {
        let shared = self.definitions.iter().filter(|definition| is_shared(definition));
        join_all(shared.map(|definition| async {
            if let Err(error) = self.places.keep(&definition.name).await {
                tracing::warn!(worker = definition.name, error, "places in the cluster are not up to date");
            }
        }))
        .await;
    }
}

/// Waits for the cache's answer, for a while.
async fn in_time<T>(asked: impl Future<Output = Result<T, CacheError>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the cache did not answer within {} s", TIMEOUT.as_secs())),
    }
}

/// Replaces a file whole. Not synced: it is to survive the supervisor, not the machine.
fn replace(path: &Path, lease: &Lease) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
    file.write_all(&serde_json::to_vec(lease)?)?;
    file.persist(path)?;
    Ok(())
}

/// The number of this host, if it has one. Without a lock, which whoever holds it would hold the supervisor up with.
fn read_id(path: &Path) -> Result<Option<String>, StateError> {
    let file = match state::open(path, Mode::Read) {
        Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut id = String::new();
    file.take(ID_LENGTH as u64 + 1).read_to_string(&mut id).map_err(StateError::io(path, "read"))?;
    // One that is empty is from a version that created it before it was written, and was killed in between.
    Ok((!id.is_empty()).then_some(id))
}

/// Gives this host a number, unless it has one: the file is there whole, or not at all.
fn create_id(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".host-id-").tempfile_in(dir)?;
    write!(file, "{:0ID_LENGTH$x}", fastrand::u64(..))?;
    if path.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        return file.persist(path).map(drop).map_err(Into::into);
    }
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

/// Does the definition have places that hosts share?
pub(super) fn is_shared(definition: &WorkerDefinition) -> bool {
    definition.autoscale.scope == Scope::Cluster
}

fn group(definition: &str) -> String {
    format!("places/{definition}")
}

fn left(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

fn verdict(left: Duration) -> Verdict {
    match left {
        _ if left < KILL => Verdict::Kill,
        _ if left < FINISH => Verdict::Finish,
        _ => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use tempfile::TempDir;

    use super::super::process::session;
    use super::*;
    use crate::cache::{FileStore, Store};
    use crate::config::Autoscale;
    use crate::supervisor::tests::eventually;

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
                options: vec!["--time-limit=60".into()],
                autoscale: Autoscale { desired_size: 1, min: 1, max: 3, scope: Scope::Cluster },
                command: None,
            };
            let cache = Arc::new(Cache::new(Arc::new(FileStore::new(dir.path().join("cache"))) as Arc<dyn Store>));
            Self { dir, cache, definition }
        }

        fn host(&self, name: &str) -> Places {
            Places::new(Arc::clone(&self.cache), &self.dir.path().join(name))
        }

        async fn held(&self) -> Vec<u32> {
            self.host("nobody").held("mail").await.unwrap().into_iter().collect()
        }

        /// From here on the cache can be neither read nor written.
        fn lose_cache(&self) {
            let dir = self.dir.path().join("cache");
            std::fs::remove_dir_all(&dir).unwrap();
            std::fs::write(dir, "").unwrap();
        }
    }

    /// A program in a slot, a session of its own, as a worker is.
    struct Worker(Child);

    impl Worker {
        fn in_slot(places: &Places, slot: u32) -> Self {
            let child = Command::new("setsid").args(["sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
            Self::record(places, slot, child)
        }

        fn record(places: &Places, slot: u32, child: Child) -> Self {
            let pid = child.id();
            eventually("it leads a session", || session(pid).iter().any(|member| member.pid == pid));
            let claim = places.slots.claim("mail", slot).unwrap().unwrap();
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

    fn remaining(places: &Places, place: u32) -> Duration {
        left(places.lease("mail", place).unwrap().until)
    }

    #[tokio::test]
    async fn a_place_is_one_hosts_even_where_hosts_have_one_name() {
        let cluster = Cluster::new();
        let (a, b) = (cluster.host("a"), cluster.host("b"));
        assert_ne!(a.owner().unwrap(), b.owner().unwrap());
        assert_eq!(a.owner().unwrap(), cluster.host("a").owner().unwrap());
        assert!(a.take(&cluster.definition, 0).await.unwrap());
        assert!(!b.take(&cluster.definition, 0).await.unwrap());
        assert!(b.take(&cluster.definition, 1).await.unwrap());
        assert_eq!(cluster.held().await, [0, 1]);
        let remaining = remaining(&a, 0);
        assert!(remaining > Duration::from_secs(120) && remaining <= Duration::from_secs(60) + GRACE, "{remaining:?}");
    }

    #[test]
    fn whoever_locks_the_hosts_number_holds_nobody_up() {
        let cluster = Cluster::new();
        let a = cluster.host("a");
        let owner = a.owner().unwrap();
        let path = cluster.dir.path().join("a/host-id");
        let locked = std::fs::File::open(&path).unwrap();
        locked.lock().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(a.owner().unwrap()));
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(owner));
        // A file that never got its number gets one.
        std::fs::write(&path, "").unwrap();
        let again = cluster.host("a").owner().unwrap();
        assert_eq!(again, cluster.host("a").owner().unwrap());
        assert_eq!(std::fs::read(&path).unwrap().len(), ID_LENGTH);
    }

    #[tokio::test]
    async fn what_has_no_worker_is_given_back_and_only_that() {
        let cluster = Cluster::new();
        let (a, b) = (cluster.host("a"), cluster.host("b"));
        for place in 0..3 {
            assert!(a.take(&cluster.definition, place).await.unwrap());
        }
        let mut worker = Worker::in_slot(&a, 0);
        let about_to_start = a.slots.claim("mail", 1).unwrap().unwrap();
        b.keep("mail").await.unwrap();
        assert_eq!(cluster.held().await, [0, 1, 2], "another host's places are its own");
        a.keep("mail").await.unwrap();
        assert_eq!(cluster.held().await, [0, 1]);
        worker.dies();
        drop(about_to_start);
        a.keep("mail").await.unwrap();
        assert!(cluster.held().await.is_empty());
    }

    #[tokio::test]
    async fn a_place_is_prolonged_while_its_worker_lives() {
        let cluster = Cluster::new();
        let a = cluster.host("a");
        let mut worker = Worker::in_slot(&a, 0);
        a.claim("mail", 0, PROLONG / 2, None).await.unwrap();
        a.keep("mail").await.unwrap();
        assert!(remaining(&a, 0) > PROLONG);
        assert!(worker.is_alive());
        assert!(!cluster.host("b").take(&cluster.definition, 0).await.unwrap());
    }

    #[tokio::test]
    async fn the_place_of_a_host_that_is_gone_is_free_after_its_time() {
        let cluster = Cluster::new();
        assert!(cluster.host("gone").claim("mail", 0, Duration::ZERO, None).await.unwrap());
        assert!(cluster.held().await.is_empty());
        assert!(cluster.host("b").take(&cluster.definition, 0).await.unwrap());
    }

    #[tokio::test]
    async fn a_worker_ends_before_its_place_does() {
        let cluster = Cluster::new();
        let a = cluster.host("a");
        let mut safe = Worker::in_slot(&a, 0);
        let mut finishing = Worker::in_slot(&a, 1);
        let mut overdue = Worker::in_slot(&a, 2);
        let mut from_before = Worker::in_slot(&a, 3);
        for (place, left) in [(0, FINISH), (1, KILL), (2, Duration::ZERO)] {
            a.claim("mail", place, left + Duration::from_secs(10), None).await.unwrap();
        }
        cluster.lose_cache();
        assert!(a.keep("mail").await.is_err());
        eventually("those whose places end have ended", || !finishing.is_alive() && !overdue.is_alive());
        assert!(safe.is_alive(), "there is time yet");
        assert!(from_before.is_alive(), "it was started when there were no places");
    }

    #[tokio::test]
    async fn a_worker_that_loses_its_place_is_asked_to_finish_once() {
        let cluster = Cluster::new();
        let a = cluster.host("a");
        let told = cluster.dir.path().join("told");
        let script = "trap 'echo term >> told' TERM; trap 'echo fence >> told' WINCH; echo ready >> told; \
                      while :; do sleep 0.02; done";
        let mut command = Command::new("setsid");
        let worker = command.args(["sh", "-c", script]).current_dir(cluster.dir.path()).stdin(Stdio::null()).spawn();
        let worker = Worker::record(&a, 0, worker.unwrap());
        let is_told = |lines: &str| std::fs::read_to_string(&told).is_ok_and(|told| told == lines);
        eventually("it listens", || is_told("ready\n"));
        a.claim("mail", 0, KILL + Duration::from_secs(25), None).await.unwrap();
        cluster.lose_cache();
        assert!(a.keep("mail").await.is_err());
        eventually("it is asked", || is_told("ready\nterm\n"));
        // By this supervisor, and by the next one.
        for host in [&a, &cluster.host("a")] {
            assert!(host.keep("mail").await.is_err());
        }
        assert!(
            a.have_asked(a.slots.live("mail").unwrap()[0].record.as_ref().unwrap()),
            "nor when the host's workers stop"
        );
        // Whatever was sent before is heard before.
        let pid = nix::unistd::Pid::from_raw(worker.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
        eventually("nothing else was sent", || is_told("ready\nterm\nfence\n"));
    }

    #[test]
    fn a_worker_that_is_asked_has_as_long_as_is_said_to_finish() {
        // The longest time between two looks: the last one that a cron takes before its end, and the next one's first.
        let between_looks = Duration::from_secs(15);
        assert!(FINISH - between_looks - KILL >= Duration::from_secs(15));
        assert!(PROLONG > FINISH && PROLONGED > PROLONG);
    }

    #[tokio::test]
    async fn a_worker_whose_place_is_another_hosts_is_ended() {
        let cluster = Cluster::new();
        let (a, b) = (cluster.host("a"), cluster.host("b"));
        let mut worker = Worker::in_slot(&a, 0);
        a.claim("mail", 0, Duration::ZERO, None).await.unwrap();
        assert!(b.take(&cluster.definition, 0).await.unwrap());
        a.keep("mail").await.unwrap();
        eventually("it has ended", || !worker.is_alive());
        a.keep("mail").await.unwrap();
        assert_eq!(cluster.held().await, [0], "and the other host still has its place");
    }

    #[tokio::test]
    async fn without_the_cache_no_place_is_taken() {
        let cluster = Cluster::new();
        let a = cluster.host("a");
        assert!(a.take(&cluster.definition, 0).await.unwrap());
        cluster.lose_cache();
        assert!(a.take(&cluster.definition, 1).await.is_err());
        assert!(a.held("mail").await.is_err());
    }
}

//! What the supervisor's tests share: a [`Stage`] with real processes, and ways to wait for them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use indexmap::IndexMap;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::cache::{Cache, CacheEntry, CacheError, CacheStore};
use crate::config::{Autoscale, ConsumeOptions, Scope};
use crate::heartbeat::PROMISE_TTL;
use crate::message::Encoded;
use crate::transport::{Counting, Counts, Liveness, Sender, Sent, Transport, TransportError};

/// Set for [`helper_process`]: what it is to do, and the stage's folder.
const HELPER: &str = "MINUTELY_TEST_HELPER";
const STAGE: &str = "MINUTELY_TEST_STAGE";

/// Waits for a value.
pub(super) fn soon<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a condition.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, || condition().then_some(()));
}

/// A store that only counts.
pub(super) struct Backlog {
    pending: Pending,
    asked: Arc<Notify>,
}

#[derive(Clone, Copy)]
pub(super) enum Pending {
    Are(u64),
    /// Counting never ends.
    Hang,
    Uncountable,
}

#[async_trait]
impl Sender for Backlog {
    async fn send(&self, _: &Encoded, _: Duration) -> Result<Sent, TransportError> {
        unreachable!("a supervisor sends nothing")
    }
}

#[async_trait]
impl Counting for Backlog {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        self.asked.notify_one();
        match self.pending {
            Pending::Are(pending) => Ok(pending.min(cap)),
            Pending::Hang | Pending::Uncountable => std::future::pending().await,
        }
    }

    async fn counts(&self, _: u64) -> Result<Counts, TransportError> {
        unreachable!("a supervisor needs only what is pending")
    }
}

/// Consumes nothing.
struct Nobody;

#[async_trait]
impl Liveness for Nobody {
    async fn is_running(&self, _: &[&str]) -> bool {
        false
    }
}

/// Heartbeats in memory: transport and time to live.
#[derive(Default)]
pub(super) struct Memory(Mutex<Vec<(String, String, Duration)>>);

#[async_trait]
impl CacheStore for Memory {
    async fn put(&self, group: &str, key: &str, _: &str, ttl: Duration) -> Result<(), CacheError> {
        self.remove(group, key).await?;
        self.0.lock().unwrap().push((group.to_owned(), key.to_owned(), ttl));
        Ok(())
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.0.lock().unwrap().retain(|entry| (entry.0.as_str(), entry.1.as_str()) != (group, key));
        Ok(())
    }

    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let (written_at, value) = (SystemTime::now(), String::new());
        let entries = self.0.lock().unwrap().clone();
        let entry = |(_, key, ttl)| CacheEntry { key, value: value.clone(), written_at, expires_at: written_at + ttl };
        Ok(entries.into_iter().filter(|entry| entry.0 == group).map(entry).collect())
    }

    async fn claim(&self, _: &str, _: &str, _: &str, _: Duration) -> Result<bool, CacheError> {
        unreachable!("no definition here is shared with other hosts")
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn unclaim(&self, _: &str, _: &str, _: &str) -> Result<(), CacheError> {
        unreachable!("no definition here is shared with other hosts")
    }
}

/// A folder with a configuration. The workers in its slots are killed at the end.
pub(super) struct Stage {
    pub dir: PathBuf,
    owned: Option<TempDir>,
    transports: Transports,
    /// Notified when a transport is asked to count.
    pub asked: Arc<Notify>,
    pub store: Arc<Memory>,
    pub definitions: Vec<WorkerDefinition>,
}

impl Stage {
    pub(super) fn new() -> Self {
        let owned = tempfile::tempdir().unwrap();
        // Where temporary folders are behind a symbolic link, workers see the real name.
        let dir = owned.path().canonicalize().unwrap();
        let mut stage = Self::at(&dir);
        stage.owned = Some(owned);
        stage
    }

    /// The stage of another process, or a second one in the same folder.
    pub(super) fn at(dir: &Path) -> Self {
        let (transports, asked, store) = (Transports::default(), Arc::default(), Arc::default());
        Self { dir: dir.to_owned(), owned: None, transports, asked, store, definitions: Vec::new() }
    }

    pub(super) fn transport(mut self, name: &str, pending: Pending) -> Self {
        let backlog = Arc::new(Backlog { pending, asked: Arc::clone(&self.asked) });
        let mut transport = Transport::sender(name, Arc::clone(&backlog));
        if !matches!(pending, Pending::Uncountable) {
            transport.counting = Some(backlog);
        }
        self.transports.insert(transport);
        self
    }

    /// An auto-fallback to a transport that is there.
    pub(super) fn auto_fallback(mut self, name: &str, target: &str) -> Self {
        self.transports.insert_auto_fallback(name, target, target, Arc::new(Nobody)).unwrap();
        self
    }

    pub(super) fn workers(mut self, name: &str, transports: &[&str], min: u32, max: u32, script: &str) -> Self {
        self.definitions.push(WorkerDefinition {
            name: name.to_owned(),
            path: format!("workers[{}]", self.definitions.len()),
            transports: transports.iter().map(|transport| (*transport).to_owned()).collect(),
            options: vec![],
            consume_options: ConsumeOptions::default(),
            autoscale: Autoscale { desired_size: 5, min, max, scope: Scope::Host },
            command: Some(["sh", "-c", script].map(ToOwned::to_owned).into()),
        });
        self
    }

    /// Workers that write their pids to `started`, and sleep.
    pub(super) fn sleepers(self, name: &str, transports: &[&str], min: u32, max: u32) -> Self {
        self.workers(name, transports, min, max, "echo $$ >> started; exec sleep 300")
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("var")
    }

    pub(super) fn supervisor(&self) -> Supervisor {
        let config = Config {
            interfaces: indexmap::IndexMap::new(),
            buses: crate::config::BusesConfig::default(),
            validation: Vec::new(),
            file: self.dir.join("config.yaml"),
            dir: self.dir.clone(),
            transports: IndexMap::new(),
            routing: IndexMap::new(),
            failure_transport: None,
            workers: self.definitions.clone(),
            stop_signals: Vec::new(),
            hooks: Vec::new(),
            handlers: IndexMap::new(),
            jobs: Vec::new(),
            serve: crate::config::ServeConfig::default(),
            state_dir: self.state_dir(),
            cache: None,
            heartbeat_ttl: Duration::from_secs(60),
            serializer: None,
            signing: None,
            php: crate::message::PhpClasses::default(),
            mailer: None,
            connections: IndexMap::new(),
        };
        // What stands for this program's own worker: transports and options are arguments of the script.
        let consume = ["sh", "-c", "exec sleep 300"].map(OsString::from).into();
        let cache = Arc::new(Cache::new(Arc::clone(&self.store) as Arc<dyn CacheStore>));
        Supervisor::new(&config, consume, Arc::new(self.transports.clone()), &cache)
    }

    /// With this program's own workers instead of scripts, for all definitions so far.
    pub(super) fn with_own_workers(mut self) -> Self {
        self.definitions.iter_mut().for_each(|definition| definition.command = None);
        self
    }

    /// The live workers.
    pub(super) fn live(&self) -> Vec<LiveSlot> {
        Slots::new(&self.state_dir()).all_live().unwrap()
    }

    /// The processes of all live workers.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.live().into_iter().filter_map(|slot| Some(slot.record?.process.pid)).collect()
    }

    /// The whole lines of a file.
    pub(super) fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(ToOwned::to_owned).collect()
    }

    /// The transports that the supervisor has promised.
    pub(super) fn promised(&self) -> BTreeSet<String> {
        let entries = self.store.0.lock().unwrap();
        let promises = || entries.iter().filter(|(_, owner, _)| owner.starts_with("supervisor@"));
        assert!(promises().all(|(_, _, ttl)| *ttl == PROMISE_TTL));
        promises().map(|(group, ..)| group.strip_prefix("heartbeat/").unwrap().to_owned()).collect()
    }

    /// This test program as another process, to do a task of [`helper_process`].
    pub(super) fn helper(&self, task: &str) -> Command {
        let mut helper = Command::new(std::env::current_exe().unwrap());
        helper.args(["--exact", "supervisor::fixture::helper_process", "--nocapture"]);
        helper.env(HELPER, task).env(STAGE, &self.dir).stdout(Stdio::null());
        helper
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        let in_slots = Slots::new(&self.state_dir()).all_live().unwrap_or_default();
        let in_slots = in_slots.into_iter().filter_map(|slot| Some(slot.record?.process.pid));
        let by_themselves = self.lines("started").into_iter().filter_map(|pid| pid.parse().ok());
        for pid in in_slots.chain(by_themselves) {
            // A worker leads its own session, so that all it started is in its group or has seen to that itself.
            let _ = killpg(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

/// A whole tick.
pub(super) async fn tick(supervisor: &Supervisor) -> TickReport {
    tick_within(supervisor, Budget::FULL).await
}

pub(super) async fn tick_within(supervisor: &Supervisor, budget: Budget) -> TickReport {
    supervisor.tick(budget, pin!(pending())).await.unwrap()
}

/// A budget for transports that hang.
pub(super) const IMPATIENT: Budget = Budget { count_timeout: Duration::from_millis(50), ..Budget::FULL };

pub(super) fn kill_dead(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
}

pub(super) fn names(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|name| (*name).to_owned()).collect()
}

/// Not a test: what [`Stage::helper`] runs.
#[tokio::test]
async fn helper_process() {
    let (Ok(task), Ok(dir)) = (std::env::var(HELPER), std::env::var(STAGE)) else { return };
    let stage = Stage::at(Path::new(&dir));
    match task.as_str() {
        "tick four" => {
            let stage = stage.sleepers("mail", &[], 4, 4);
            let supervisor = stage.supervisor();
            let tick = || tick(&supervisor);
            tokio::join!(tick(), tick(), tick(), tick(), tick());
        }
        "tick one and be killed" => {
            let stage = stage.sleepers("mail", &[], 1, 1);
            tick(&stage.supervisor()).await;
            kill_dead(std::process::id());
        }
        "work" => {
            let held = adopt_slot(&stage.state_dir()).expect("a worker");
            assert!(adopt_slot(&stage.state_dir()).is_none(), "taken twice");
            let mut child = Command::new("sleep").arg("300").spawn().unwrap();
            fs::write(Path::new(&dir).join("grandchild"), format!("{} {}\n", child.id(), held.name())).unwrap();
            child.wait().unwrap();
        }
        task => panic!("no such task: {task}"),
    }
}

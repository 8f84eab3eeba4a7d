//! The supervisor with real processes.

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
use crate::cache::{Cache, CacheError, Fact, Store};
use crate::config::{Autoscale, Scope};
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

/// A store that only counts: a number, nothing at all, or for ever.
struct Backlog {
    pending: Pending,
    /// Told when it is asked.
    asked: Arc<Notify>,
}

#[derive(Clone, Copy)]
enum Pending {
    Are(u64),
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
struct Memory(Mutex<Vec<(String, String, Duration)>>);

#[async_trait]
impl Store for Memory {
    async fn put(&self, group: &str, key: &str, _: &str, ttl: Duration) -> Result<(), CacheError> {
        self.remove(group, key).await?;
        self.0.lock().unwrap().push((group.to_owned(), key.to_owned(), ttl));
        Ok(())
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        self.0.lock().unwrap().retain(|fact| (fact.0.as_str(), fact.1.as_str()) != (group, key));
        Ok(())
    }

    async fn list(&self, group: &str) -> Result<Vec<Fact>, CacheError> {
        let (written_at, value) = (SystemTime::now(), String::new());
        let facts = self.0.lock().unwrap().clone();
        let fact = |(_, key, ttl)| Fact { key, value: value.clone(), written_at, expires_at: written_at + ttl };
        Ok(facts.into_iter().filter(|fact| fact.0 == group).map(fact).collect())
    }

    async fn claim(&self, _: &str, _: &str, _: &str, _: Duration) -> Result<bool, CacheError> {
        unreachable!("no definition here has places that hosts share")
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }

    async fn unclaim(&self, _: &str, _: &str, _: &str) -> Result<(), CacheError> {
        unreachable!("no definition here has places that hosts share")
    }
}

/// A folder with a configuration. Whatever lives in its slots is killed at the end.
struct Stage {
    dir: PathBuf,
    owned: Option<TempDir>,
    transports: Transports,
    asked: Arc<Notify>,
    store: Arc<Memory>,
    definitions: Vec<WorkerDefinition>,
}

impl Stage {
    fn new() -> Self {
        let owned = tempfile::tempdir().unwrap();
        // Where temporary folders are behind a symbolic link, workers see the real name.
        let dir = owned.path().canonicalize().unwrap();
        let mut stage = Self::at(&dir);
        stage.owned = Some(owned);
        stage
    }

    /// Another process's stage.
    fn at(dir: &Path) -> Self {
        let (transports, asked, store) = (Transports::default(), Arc::default(), Arc::default());
        Self { dir: dir.to_owned(), owned: None, transports, asked, store, definitions: Vec::new() }
    }

    fn transport(mut self, name: &str, pending: Pending) -> Self {
        let backlog = Arc::new(Backlog { pending, asked: Arc::clone(&self.asked) });
        let mut transport = Transport::sender(name, Arc::clone(&backlog));
        if !matches!(pending, Pending::Uncountable) {
            transport.counting = Some(backlog);
        }
        self.transports.insert(transport);
        self
    }

    /// An auto-fallback to a transport that is there.
    fn auto_fallback(mut self, name: &str, target: &str) -> Self {
        self.transports.insert_auto_fallback(name, target, target, Arc::new(Nobody)).unwrap();
        self
    }

    fn workers(mut self, name: &str, transports: &[&str], min: u32, max: u32, script: &str) -> Self {
        self.definitions.push(WorkerDefinition {
            name: name.to_owned(),
            path: format!("workers[{}]", self.definitions.len()),
            transports: transports.iter().map(|transport| (*transport).to_owned()).collect(),
            options: vec![],
            autoscale: Autoscale { desired_size: 5, min, max, scope: Scope::Host },
            command: Some(["sh", "-c", script].map(ToOwned::to_owned).into()),
        });
        self
    }

    /// Workers that say that they were started, and stay.
    fn sleepers(self, name: &str, transports: &[&str], min: u32, max: u32) -> Self {
        self.workers(name, transports, min, max, "echo $$ >> started; exec sleep 300")
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.join("var")
    }

    fn supervisor(&self) -> Supervisor {
        let config = Config {
            php_serialized: indexmap::IndexMap::new(),
            interfaces: indexmap::IndexMap::new(),
            file: self.dir.join("config.yaml"),
            dir: self.dir.clone(),
            transports: IndexMap::new(),
            routing: IndexMap::new(),
            failure_transport: None,
            workers: self.definitions.clone(),
            handlers: IndexMap::new(),
            state_dir: self.state_dir(),
            cache: None,
            heartbeat_ttl: Duration::from_secs(60),
            connections: IndexMap::new(),
        };
        // What stands for this program's own worker: transports and options are arguments of the script.
        let consume = ["sh", "-c", "exec sleep 300"].map(OsString::from).into();
        let cache = Arc::new(Cache::new(Arc::clone(&self.store) as Arc<dyn Store>));
        Supervisor::new(&config, consume, Arc::new(self.transports.clone()), &cache)
    }

    /// This program's own worker instead of a script, for all definitions.
    fn with_own_workers(mut self) -> Self {
        self.definitions.iter_mut().for_each(|definition| definition.command = None);
        self
    }

    fn live(&self) -> Vec<LiveSlot> {
        Slots::new(&self.state_dir()).all_live().unwrap()
    }

    /// The processes of all live workers.
    fn pids(&self) -> Vec<u32> {
        self.live().into_iter().filter_map(|slot| Some(slot.record?.process.pid)).collect()
    }

    /// The lines of a file, as far as they are written.
    fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(ToOwned::to_owned).collect()
    }

    /// For which transports the supervisor has promised something.
    fn promised(&self) -> BTreeSet<String> {
        let facts = self.store.0.lock().unwrap();
        let promises = || facts.iter().filter(|(_, owner, _)| owner.starts_with("supervisor@"));
        assert!(promises().all(|(_, _, ttl)| *ttl == PROMISE_TTL));
        promises().map(|(group, ..)| group.strip_prefix("heartbeat/").unwrap().to_owned()).collect()
    }

    /// This test program, doing something else in a process of its own.
    fn helper(&self, task: &str) -> Command {
        let mut helper = Command::new(std::env::current_exe().unwrap());
        helper.args(["--exact", "supervisor::tests::helper_process", "--nocapture"]);
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

fn kill_dead(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
}

fn names(expected: &[&str]) -> BTreeSet<String> {
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
            tokio::join!(supervisor.tick(), supervisor.tick(), supervisor.tick(), supervisor.tick(), supervisor.tick());
        }
        "tick one and be killed" => {
            let stage = stage.sleepers("mail", &[], 1, 1);
            stage.supervisor().tick().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn max_holds_under_fifty_overlapping_supervisors() {
    let stage = Stage::new().sleepers("mail", &[], 4, 4);
    // Five processes with five each, and twenty-five here; none of them asks for `supervisor.lock`.
    let helpers: Vec<_> = (0..5).map(|_| stage.helper("tick four").spawn().unwrap()).collect();
    let ticks = (0..25).map(|_| {
        let supervisor = stage.supervisor();
        tokio::spawn(async move { supervisor.tick().await })
    });
    for tick in ticks.collect::<Vec<_>>() {
        let report = tick.await.unwrap();
        assert_eq!(report.failures, []);
    }
    for mut helper in helpers {
        assert!(helper.wait().unwrap().success());
    }
    eventually("all have started", || stage.lines("started").len() >= 4);
    // One more tick finds nothing to do, and had a fifth worker been started, it would have had the time to say so.
    assert_eq!(stage.supervisor().tick().await.started, []);
    let mut started: Vec<u32> = stage.lines("started").iter().map(|pid| pid.parse().unwrap()).collect();
    let mut live = stage.pids();
    started.sort_unstable();
    live.sort_unstable();
    assert_eq!(started, live, "those that were ever started are the four in the slots");
    assert_eq!(live.len(), 4);
}

#[tokio::test]
async fn a_killed_worker_is_replaced_by_the_next_tick() {
    let stage = Stage::new().sleepers("mail", &[], 3, 3);
    let supervisor = stage.supervisor();
    assert_eq!(supervisor.tick().await.started.len(), 3);
    let killed = stage.live()[1].record.clone().unwrap();
    kill_dead(killed.process.pid);
    eventually("the slot is free", || stage.live().len() == 2);
    let started = supervisor.tick().await.started;
    assert_eq!(started.len(), 1);
    assert_eq!((started[0].slot, started[0].pid == killed.process.pid), (1, false));
    assert_eq!(supervisor.tick().await.started, []);
}

#[tokio::test]
async fn a_worker_outlives_its_supervisor_and_is_adopted_by_the_next() {
    let stage = Stage::new().sleepers("mail", &[], 1, 1);
    assert!(!stage.helper("tick one and be killed").status().unwrap().success());
    let worker = stage.pids();
    let supervisor = stage.supervisor();
    let report = supervisor.tick().await;
    assert_eq!((report.plan.workers[0].running, report.started), (Some(1), vec![]));
    assert_eq!(stage.pids(), worker);

    kill_dead(worker[0]);
    eventually("the slot is free", || stage.live().is_empty());
    assert_eq!(supervisor.tick().await.started.len(), 1);
}

#[tokio::test]
async fn a_worker_has_its_own_slot_open_and_no_other() {
    let stage = Stage::new().sleepers("mail", &[], 4, 4);
    let supervisor = stage.supervisor();
    let _lock = supervisor.lock(Term::Endless).await.unwrap().unwrap();
    supervisor.tick().await;
    eventually("all sleep", || stage.lines("started").len() == 4);
    let state_dir = stage.state_dir();
    for slot in stage.live() {
        let open = fs::read_dir(format!("/proc/{}/fd", slot.record.unwrap().process.pid)).unwrap();
        let open: Vec<PathBuf> = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
        let ours: BTreeSet<&Path> = open.iter().filter_map(|file| file.strip_prefix(&state_dir).ok()).collect();
        let own = format!("slots/mail/{}", slot.slot);
        assert_eq!(ours, [Path::new("log/worker-mail.log"), Path::new(&own)].into());
    }
}

#[tokio::test]
async fn a_worker_gets_its_surroundings() {
    let script = r#"echo "$PWD $MINUTELY_SLOT"; readlink /proc/self/fd/$MINUTELY_SLOT_FD >&2; cat; echo done"#;
    let stage = Stage::new().workers("mail", &[], 1, 1, script);
    stage.supervisor().tick().await;
    let log = "var/log/worker-mail.log";
    eventually("it is done", || stage.lines(log).contains(&"done".to_owned()));
    let (dir, slot) = (stage.dir.display(), stage.state_dir().join("slots/mail/0"));
    assert_eq!(stage.lines(log), [format!("{dir} mail/0"), slot.display().to_string(), "done".into()]);
}

#[tokio::test]
async fn a_worker_leads_a_session_of_its_own() {
    let stage = Stage::new().sleepers("mail", &[], 1, 1);
    stage.supervisor().tick().await;
    let pid = stage.pids()[0] as i32;
    assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))), Ok(Pid::from_raw(pid)));
}

#[tokio::test]
async fn an_overlong_log_is_put_aside() {
    let stage = Stage::new().workers("mail", &[], 1, 1, "echo new");
    let log = worker_log(&stage.state_dir(), "mail");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    // Sparse: it takes no room.
    fs::File::create(&log).unwrap().set_len((10 << 20) + 1).unwrap();
    stage.supervisor().tick().await;
    eventually("the new log is written", || stage.lines("var/log/worker-mail.log") == ["new"]);
    assert_eq!(fs::metadata(log.with_added_extension("1")).unwrap().len(), (10 << 20) + 1);
}

#[tokio::test]
async fn what_a_worker_of_ours_starts_does_not_hold_its_slot() {
    let script = "exec env MINUTELY_TEST_HELPER=work MINUTELY_TEST_STAGE=\"$PWD\" \"$0\" --exact \
                  supervisor::tests::helper_process --nocapture";
    let mut stage = Stage::new().workers("mail", &[], 1, 1, script);
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    stage.definitions[0].command.as_mut().unwrap().push(program);
    stage.supervisor().tick().await;
    let line = soon("the worker has started something", || stage.lines("grandchild").pop());
    let (grandchild, slot) = line.split_once(' ').unwrap();
    assert_eq!(slot, "mail/0");
    let grandchild = ProcessId::of(grandchild.parse().unwrap()).unwrap();
    kill_dead(stage.pids()[0]);
    eventually("the slot is free", || stage.live().is_empty());
    assert!(grandchild.is_alive());
    grandchild.terminate().unwrap();
}

#[test]
fn a_process_that_no_supervisor_started_adopts_nothing() {
    let stage = Stage::new();
    assert!(adopt_slot(&stage.state_dir()).is_none());
}

#[tokio::test]
async fn workers_follow_what_is_pending() {
    let stage = Stage::new()
        .transport("queue", Pending::Are(7))
        .auto_fallback("async", "queue")
        .transport("more", Pending::Are(4))
        .sleepers("mail", &["async", "more"], 0, 10);
    let supervisor = stage.supervisor();
    let report = supervisor.tick().await;
    let planned = &report.plan.workers[0];
    assert_eq!((planned.pending, planned.desired, planned.start), (Some(11), 3, 3));
    assert_eq!(report.started.iter().map(|started| started.slot).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(supervisor.tick().await.started, []);
}

#[tokio::test]
async fn workers_follow_what_is_pending_beside_a_transport_that_hangs() {
    let stage = Stage::new().transport("hung", Pending::Hang).transport("low", Pending::Are(9)).sleepers(
        "mail",
        &["hung", "low"],
        1,
        10,
    );
    let report = stage.supervisor().observe(Duration::from_millis(50)).await.into_plan();
    let planned = &report.plan.workers[0];
    assert_eq!((planned.pending, planned.desired, planned.start), (Some(9), 2, 2));
    let messages: Vec<_> = report.failures.iter().map(|failure| failure.message.as_str()).collect();
    assert_eq!(messages, ["pending could not be counted: transport \"hung\" did not answer within 50ms"]);
}

#[tokio::test]
async fn workers_beyond_a_lowered_max_still_count() {
    let stage = Stage::new().sleepers("mail", &[], 3, 3);
    stage.supervisor().tick().await;
    let lowest = stage.pids()[0];
    let mut stage = stage;
    stage.definitions[0].autoscale = Autoscale { min: 2, max: 2, ..stage.definitions[0].autoscale };
    kill_dead(lowest);
    eventually("a slot is free", || stage.live().len() == 2);
    let report = stage.supervisor().tick().await;
    assert_eq!((report.plan.workers[0].running, report.started), (Some(2), vec![]));
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
async fn what_cannot_be_counted_does_not_hold_up_the_others() {
    let stage = Stage::new()
        .transport("hung", Pending::Hang)
        .transport("mute", Pending::Uncountable)
        .transport("fine", Pending::Are(5))
        .sleepers("a", &["hung"], 1, 5)
        .sleepers("b", &["mute"], 0, 5)
        .sleepers("c", &["absent"], 0, 5)
        .sleepers("d", &["fine"], 0, 5);
    let supervisor = stage.supervisor();
    let mut report = supervisor.observe(Duration::from_millis(50)).await.into_plan();
    supervisor.act(&mut report).await;
    supervisor.promise(&report, Moment::Tick).await;
    let messages: Vec<_> = report.failures.iter().map(|failure| failure.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "pending could not be counted: transport \"hung\" did not answer within 50ms",
            "pending could not be counted: transport \"mute\" cannot count its messages",
            "pending could not be counted: there is no transport \"absent\"",
        ]
    );
    let started: Vec<_> = report.started.iter().map(|started| started.definition.as_str()).collect();
    assert_eq!(started, ["a", "d"]);
    assert_eq!(stage.promised(), names(&["fine"]));
}

#[tokio::test]
async fn a_missing_program_does_not_hold_up_the_others_and_promises_nothing() {
    let mut stage = Stage::new()
        .transport("one", Pending::Are(0))
        .transport("two", Pending::Are(0))
        .sleepers("a", &["one"], 2, 5)
        .sleepers("b", &["two"], 1, 5);
    stage.definitions[0].command = Some(vec!["/no/such/program".into()]);
    let report = stage.supervisor().tick().await;
    assert_eq!(report.failures.len(), 1);
    let Failure { definition, message } = &report.failures[0];
    assert_eq!(definition, "a");
    assert!(message.starts_with("the program \"/no/such/program\" could not be started in /"), "{message}");
    eventually("only the other one runs", || stage.live().iter().all(|slot| slot.definition == "b"));
    assert_eq!(stage.live().len(), 1);
    assert_eq!(stage.promised(), names(&["two"]));
}

#[tokio::test]
async fn a_slot_that_is_no_file_costs_only_that_slot() {
    let stage = Stage::new().sleepers("mail", &[], 2, 3);
    fs::create_dir_all(stage.state_dir().join("slots/mail/0")).unwrap();
    let report = stage.supervisor().tick().await;
    assert_eq!(report.started.iter().map(|started| started.slot).collect::<Vec<_>>(), [1, 2]);
    assert!(report.failures[0].message.ends_with("slots/mail/0 is not a regular file; move it away"));
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_is_an_error_that_names_it() {
    let stage = Stage::new().sleepers("mail", &[], 1, 1);
    fs::write(stage.state_dir(), "").unwrap();
    let supervisor = stage.supervisor();
    let error = supervisor.lock(Term::Cron).await.unwrap_err().to_string();
    assert!(error.contains("/var could not be created: "), "{error}");
    let report = supervisor.tick().await;
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
    let (told, stop) = tokio::sync::oneshot::channel();
    let mut told = Some(told);
    let stop = async { stop.await.unwrap() };
    let failures = stage
        .supervisor()
        .cron(Duration::from_secs(55), stop, |_| {
            ticks += 1;
            told.take().unwrap().send(()).unwrap();
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
    former.supervisor().tick().await;

    let supervisor = at_a_quick_pace(stage.supervisor());
    let (told, stop) = tokio::sync::oneshot::channel();
    let mut told = Some(told);
    let on_tick = |_: &TickReport| {
        if stage.live().len() == 3 {
            told.take().map(|told| told.send(()));
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
    supervisor.tick().await;
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

#[test]
fn the_last_tick_under_cron_is_over_before_the_next_cron() {
    assert!(term::LIFETIME + count_limit(Duration::ZERO) < Duration::from_secs(60));
    for left in 0..60 {
        let left = Duration::from_secs(left);
        assert!(count_limit(left) <= left + LAST_COUNT_TIMEOUT);
    }
}

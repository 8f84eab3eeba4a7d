//! Workers as processes in trouble: messages that fail for good, stores that hang, handlers that are killed.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::support::{Project, Running, wait_until};

const CONFIG: &str = r#"
failure_transport: failed
transports:
  high: {dsn: "sqlite:q.db?queue_name=high", retry_strategy: {max_retries: 0}}
  failed: {dsn: "sqlite:q.db?queue_name=failed", retry_strategy: {max_retries: 1, delay: 100}}
routing: {'*': high}
handlers:
  Note: {exec: [sh, -c, 'printf "%s\n" "$(cat)" >> handled']}
  Fail: {exec: [sh, -c, 'echo "$MINUTELY_TRANSPORT" >> tries; exit 1']}
  Never: {exec: [sh, -c, 'echo "$MINUTELY_TRANSPORT" >> nevers; exit 65']}
  Mended: {exec: [sh, -c, 'echo "$MINUTELY_TRANSPORT" >> tries; [ -e mended ]']}
  Killed: {exec: [sh, -c, 'echo "$MINUTELY_ATTEMPT" >> tries; [ -e go ] || kill -TERM $$']}
  Watched: {exec: [sh, -c, 'echo "$MINUTELY_ATTEMPT" >> tries; [ "$(wc -l < tries)" -ne 4 ] || exit 1; kill -TERM $$']}
  OutOfMemory: {exec: [sh, -c, 'echo "$MINUTELY_ATTEMPT" >> tries; kill -KILL $$']}
  Slow: {exec: [sh, -c, 'echo "$MINUTELY_ATTEMPT" >> slow; echo $$ > pid; while [ ! -e go ]; do sleep 0.02; done; echo done >> slow']}
"#;

fn dispatch(project: &Project, message_type: &str, body: &str) {
    project.run(&["dispatch", message_type, body]).succeeds();
}

/// Dispatches a message that its worker gives up.
fn failed(project: &Project, message_type: &str) {
    dispatch(project, message_type, "{}");
    project.run(&["consume", "high", "--limit=1"]).succeeds();
}

/// The numbers of pending, delayed and failed messages, according to `stats`.
fn stats(project: &Project, transport: &str) -> [u64; 3] {
    let stats = project.json(&["stats", transport]);
    let stats = &stats["transports"][transport];
    ["count", "delayed", "failed"].map(|key| stats[key].as_u64().unwrap_or_else(|| panic!("{key}: {stats}")))
}

fn times(project: &Project, what: &str) -> usize {
    project.log().matches(what).count()
}

#[test]
fn what_failed_for_good_is_parked_and_counted() {
    let project = Project::new(CONFIG);
    failed(&project, "Fail");
    assert_eq!(stats(&project, "failed"), [1, 0, 1]);
    let _worker = project.start("worker", &["consume", "failed", "--sleep=20ms"]);
    wait_until("it is parked", || times(&project, "parked on the failure transport") == 1);
    assert_eq!(
        project.lines("tries"),
        ["high"; 3],
        "its own strategy has one retry, and the handler sees its own transport"
    );
    failed(&project, "Never");
    wait_until("that is parked too", || times(&project, "parked on the failure transport") == 2);
    assert_eq!(project.lines("nevers"), ["high"; 2], "exit code 65 is not retried there either");
    assert_eq!(project.lines("tries").len(), 3, "nothing is tried while it is parked");
    wait_until("both are delayed", || stats(&project, "failed") == [0, 2, 2]);
    let status = project.json(&["status"]);
    let failed = status["transports"].as_array().unwrap().iter().find(|one| one["name"] == "failed").unwrap();
    assert_eq!((&failed["pending"], &failed["delayed"]), (&0.into(), &2.into()));
    let text = project.run(&["stats", "failed"]).succeeds().stdout;
    assert!(text.contains("failed keeps 2 that failed for good, 2 of them parked"), "{text}");
}

#[test]
fn a_worker_started_by_hand_tries_parked_messages_once() {
    let project = Project::new(CONFIG);
    for _ in 0..2 {
        failed(&project, "Mended");
    }
    let parked = |n| move |project: &Project| times(project, "parked on the failure transport") == n;
    let worker = project.start("worker", &["consume", "failed", "--sleep=20ms"]);
    wait_until("they are parked", || parked(2)(&project));
    wait_until("they are delayed", || stats(&project, "failed")[1] == 2);
    drop(worker);
    assert_eq!(project.lines("tries").len(), 2 + 4);
    project.run(&["consume", "failed", "--limit=2", "--time-limit=50"]).succeeds();
    assert_eq!(project.lines("tries").len(), 2 + 4 + 2, "each once");
    assert_eq!(stats(&project, "failed"), [0, 2, 2]);
    project.write("mended", "");
    project.run(&["consume", "failed", "--limit=2", "--time-limit=50"]).succeeds();
    assert_eq!(stats(&project, "failed"), [0, 0, 0]);
}

#[test]
fn a_supervised_worker_leaves_parked_messages_alone() {
    let workers = "workers:\n  - {transports: [failed], options: [--sleep=20ms, --time-limit=2]}\n";
    let project = Project::new(&format!("{CONFIG}{workers}"));
    failed(&project, "Never");
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it is parked", || times(&project, "parked on the failure transport") == 1);
    wait_until("three workers have come and gone", || times(&project, "stopped: the time limit") >= 3);
    assert_eq!(project.lines("nevers"), ["high"; 2]);
}

#[test]
fn a_failure_transport_of_one_transport_alone_discards_nothing() {
    let config = CONFIG
        .replace("failure_transport: failed\n", "")
        .replace("{max_retries: 0}", "{max_retries: 0}, failure_transport: failed");
    let project = Project::new(&config);
    failed(&project, "Never");
    project.run(&["consume", "failed", "--limit=1"]).succeeds();
    assert_eq!(project.lines("nevers"), ["high"; 2]);
    assert_eq!(stats(&project, "failed"), [0, 1, 1]);
}

/// A server that accepts connections and sends nothing.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn a_store_that_hangs_delays_neither_the_others_nor_the_end() {
    for (scheme, order) in [("redis", ["hang", "high"]), ("postgres", ["high", "hang"]), ("amqp", ["hang", "high"])] {
        let (_server, address) = silent();
        let hang = format!("  hang: '{scheme}://guest:guest@{address}/x'\nrouting");
        let project = Project::new(&CONFIG.replace("routing", &hang));
        let mut worker = project.start("worker", &["consume", order[0], order[1], "--sleep=50ms"]);
        wait_until("it works", || project.is_running("high"));
        let begun = Instant::now();
        for n in 1..=20 {
            dispatch(&project, "Note", &n.to_string());
            wait_until("it is handled", || project.lines("handled").len() == n);
        }
        // One timeout for each of the 20 would take 20 s, and more if the store is tried again.
        assert!(begun.elapsed() < Duration::from_secs(18), "{scheme}: {:?}", begun.elapsed());
        assert!(!project.is_running("hang"), "nobody takes messages from it");
        worker.signal(Signal::SIGTERM);
        let asked = Instant::now();
        assert_eq!(worker.ends(), Some(0), "{scheme}");
        assert!(asked.elapsed() < Duration::from_secs(20), "{scheme}: {:?}", asked.elapsed());
    }
}

#[test]
fn a_worker_stops_soon_although_its_cache_is_down() {
    let (_server, hanging) = silent();
    for cache in [hanging.as_str(), "127.0.0.1:1"] {
        let project = Project::new(&format!("cache: 'redis://{cache}'\n{CONFIG}"));
        let mut worker = project.start("worker", &["consume", "high", "--sleep=50ms"]);
        dispatch(&project, "Note", "1");
        wait_until("it works", || project.lines("handled").len() == 1);
        wait_until("it knows", || project.log().contains("no heartbeat"));
        worker.signal(Signal::SIGTERM);
        let asked = Instant::now();
        assert_eq!(worker.ends(), Some(0), "{cache}");
        assert!(asked.elapsed() < Duration::from_secs(4), "{cache}: {:?}", asked.elapsed());
    }
}

/// Waits until the handler runs, and returns its process group.
fn handler(project: &Project) -> Pid {
    wait_until("it is being handled", || project.lines("pid").len() == 1);
    Pid::from_raw(project.lines("pid")[0].parse().unwrap())
}

#[test]
fn a_handler_that_ends_with_its_host_uses_up_no_retry() {
    // The handler before its worker, and after it.
    for (handler_first, signal) in [(true, Signal::SIGTERM), (true, Signal::SIGKILL), (false, Signal::SIGTERM)] {
        let project = Project::new(CONFIG);
        dispatch(&project, "Slow", "{}");
        let mut worker = project.start("worker", &["consume", "high"]);
        let handler = handler(&project);
        if handler_first {
            killpg(handler, signal).unwrap();
            worker.signal(Signal::SIGTERM);
        } else {
            worker.signal(Signal::SIGTERM);
            wait_until("the worker hears it", || times(&project, "finishing the current messages") == 1);
            killpg(handler, signal).unwrap();
        }
        assert_eq!(worker.ends(), Some(0));
        wait_until("it waits for others", || project.pending("high") == 1);
        project.write("go", "");
        project.run(&["consume", "high", "--limit=1"]).succeeds();
        assert_eq!(project.lines("slow"), ["1", "1", "done"], "{signal}");
    }
}

#[test]
fn a_handler_ended_by_sigterm_is_run_again_however_few_retries_there_are() {
    let project = Project::new(CONFIG);
    dispatch(&project, "Killed", "{}");
    let _worker = project.start("worker", &["consume", "high", "--sleep=20ms"]);
    wait_until("it was tried twice", || project.lines("tries").len() >= 2);
    project.write("go", "");
    wait_until("it is done", || in_store(&project) == 0);
    assert!(project.lines("tries").iter().all(|attempt| attempt == "1"), "{:?}", project.lines("tries"));
    assert_eq!(stats(&project, "failed"), [0, 0, 0]);
}

#[test]
fn a_handler_that_is_repeatedly_ended_by_sigterm_uses_up_its_retries() {
    let project = Project::new(&CONFIG.replace("max_retries: 0}", "max_retries: 1, delay: 10}"));
    dispatch(&project, "Watched", "{}");
    let _worker = project.start("worker", &["consume", "high", "--sleep=20ms"]);
    wait_until("it is given up", || stats(&project, "failed")[0] == 1);
    // Three free interruptions, one that counts, three free ones again, and one without a retry left.
    assert_eq!(project.lines("tries"), ["1", "1", "1", "1", "2", "2", "2", "2"]);
    assert_eq!(in_store(&project), 0);
}

#[test]
fn a_stray_on_a_busy_worker_is_moved_to_the_failure_transport() {
    let project = Project::new(CONFIG);
    dispatch(&project, "Slow", "{}");
    let _worker = project.start("worker", &["consume", "high", "--concurrency=2", "--sleep=50ms"]);
    handler(&project);
    dispatch(&project, "Unheard", "{}");
    wait_until("it is put away", || project.pending("failed") == 1);
    assert_eq!(project.lines("slow"), ["1"], "the other is still in hand");
    project.write("go", "");
}

fn in_store(project: &Project) -> u64 {
    let status = project.json(&["status"]);
    let high = status["transports"].as_array().unwrap().iter().find(|one| one["name"] == "high").unwrap();
    ["pending", "delayed", "in_flight"].map(|key| high[key].as_u64().unwrap()).iter().sum()
}

#[test]
fn a_handler_killed_for_its_memory_uses_up_its_retries() {
    let project = Project::new(CONFIG);
    failed(&project, "OutOfMemory");
    assert_eq!(project.lines("tries"), ["1"]);
    assert_eq!(stats(&project, "failed"), [1, 0, 1]);
}

#[test]
fn a_worker_whose_failed_message_cannot_be_stored_is_not_running() {
    let (_server, address) = silent();
    let config = CONFIG.replace("sqlite:q.db?queue_name=failed", &format!("redis://{address}/x"));
    let project = Project::new(&config);
    let _worker = project.start("worker", &["consume", "high", "--sleep=50ms"]);
    wait_until("it works", || project.is_running("high"));
    dispatch(&project, "Fail", "{}");
    wait_until("nobody counts on it", || !project.is_running("high"));
    assert_eq!(project.lines("tries"), ["high"]);
}

/// Replaces the database by something else.
fn take_database_away(project: &Project) {
    move_database(project, ".", "kept");
    project.write("q.db", "this is no database, however long one looks at it. ".repeat(100));
}

fn move_database(project: &Project, from: &str, to: &str) {
    std::fs::create_dir_all(project.file(to)).unwrap();
    for name in ["q.db-shm", "q.db-wal", "q.db"] {
        let _ = std::fs::rename(project.file(from).join(name), project.file(to).join(name));
    }
}

#[test]
fn an_ending_worker_pauses_between_attempts_on_a_failing_store() {
    let project = Project::new(CONFIG);
    dispatch(&project, "Slow", "{}");
    let mut worker = project.start("worker", &["consume", "high"]);
    handler(&project);
    take_database_away(&project);
    worker.signal(Signal::SIGTERM);
    wait_until("the worker hears it", || times(&project, "finishing the current messages") == 1);
    project.write("go", "");
    assert_eq!(worker.ends(), Some(0));
    let tries = times(&project, "handled messages could not be acknowledged");
    assert!((1..20).contains(&tries), "{tries} times");
}

#[test]
fn a_worker_whose_store_is_gone_is_not_running_until_it_is_back() {
    let project = Project::new(CONFIG);
    dispatch(&project, "Note", "0");
    let worker: Running = project.start("worker", &["consume", "high", "--sleep=50ms"]);
    wait_until("it works", || project.is_running("high") && project.lines("handled") == ["0"]);
    take_database_away(&project);
    wait_until("nobody counts on it", || !project.is_running("high"));
    assert!(kill(Pid::from_raw(worker.pid()), None).is_ok(), "it goes on trying");
    move_database(&project, "kept", ".");
    wait_until("it is back", || project.is_running("high"));
    dispatch(&project, "Note", "1");
    wait_until("messages are taken", || project.lines("handled") == ["0", "1"]);
}

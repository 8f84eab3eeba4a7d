//! Dispatch and consume, in messages per second, and the same work through Symfony's own worker in the same run.
//!
//! ```text
//! cargo bench --bench throughput                      # every store that is found
//! cargo bench --bench throughput -- sqlite redis      # these
//! MESSAGES=20000 cargo bench --bench throughput
//! ```
//!
//! Ours is dispatched one by one, and then as many with `dispatch_all`. PHP consumes only a tenth of its backlog, because it is slower.
//!
//! One worker process with default settings and a handler that does nothing, on each side. PHP's side is
//! `tests/interop/console.php`; without PHP and Debian's Symfony packages only our own figures are printed. Processor time
//! is that of the worker process; both sides share the machine with the store.

#![allow(unreachable_pub, reason = "it shares modules with the tests")]

#[path = "../tests/it/support/databases.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod databases;
#[path = "../tests/it/support/exchanges.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod exchanges;
#[path = "../tests/it/support/redis_keys.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod redis_keys;

use std::future::IntoFuture;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use databases::{Database, Server};
use exchanges::Exchanges;
use minutely::App;
use minutely::handler::HandlerError;
use minutely::message::Message;
use nix::sys::resource::{UsageWho, getrusage};
use redis_keys::Keys;
use serde::{Deserialize, Serialize};

/// What is sent: the message of `tests/interop/console.php`.
#[derive(Serialize, Deserialize)]
struct Note {
    n: u32,
    text: String,
    fail: bool,
}

impl Message for Note {
    const TYPE: &'static str = r"App\Message\Note";
}

async fn do_nothing(_: Note) -> Result<(), HandlerError> {
    Ok(())
}

fn app() -> minutely::AppBuilder {
    App::builder().handle(do_nothing)
}

/// A store, by the DSN each side knows it by.
struct Store {
    name: &'static str,
    ours: String,
    theirs: String,
    /// For `doctrine://default`.
    database_url: String,
}

struct Figures {
    dispatch: f64,
    /// With `dispatch_all`; not measured for PHP.
    at_once: f64,
    consume: f64,
    /// Of the worker, in seconds per 10 000 messages.
    processor: f64,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    // The worker process is this program too.
    if arguments.peek().is_some_and(|argument| argument == "consume") {
        return minutely::cli::main(app());
    }
    let chosen: Vec<String> = arguments.collect();
    let messages: u32 = std::env::var("MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    println!("{messages} messages, one worker process, a handler that does nothing\n");
    println!(
        "{:<12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>8} {:>10} {:>10}",
        "store", "dispatch/s", "at once/s", "consume/s", "Symfony d/s", "Symfony c/s", "ratio", "CPU s/10k", "Symfony"
    );
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    for store in stores(dir.path()).into_iter().filter(|store| is_chosen(store.name)) {
        measure(&store, dir.path(), messages);
    }
    for (name, server) in [("postgres", Server::Postgres), ("mysql", Server::Mysql)] {
        if is_chosen(name) {
            measure_on(server, name, dir.path(), messages);
        }
    }
    if is_chosen("redis") {
        measure_on_redis(dir.path(), messages);
    }
    if is_chosen("amqp") {
        measure_on_a_broker(dir.path(), messages);
    }
    ExitCode::SUCCESS
}

fn stores(dir: &Path) -> Vec<Store> {
    let queue = format!("bench_{}", std::process::id());
    let sqlite = dir.join("bench.db").display().to_string();
    vec![Store {
        name: "sqlite",
        ours: format!("sqlite://{sqlite}?queue_name={queue}"),
        theirs: format!("doctrine://default?queue_name={queue}_php"),
        database_url: format!("sqlite:///{sqlite}"),
    }]
}

/// Measures in a database of its own.
fn measure_on(server: Server, name: &'static str, dir: &Path, messages: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Some(database) = runtime.block_on(Database::create(server)) else { return };
    let store = Store {
        name,
        ours: format!("{}?queue_name=ours", database.url()),
        theirs: "doctrine://default?queue_name=theirs".to_owned(),
        database_url: database.url().replace("postgres://", "postgresql://"),
    };
    measure(&store, dir, messages);
}

/// Measures with keys of its own.
fn measure_on_redis(dir: &Path, messages: u32) {
    let Some(keys) = Keys::create_blocking() else { return };
    let theirs = format!("{}&delete_after_ack=1", keys.dsn("theirs", 0));
    let store = Store { name: "redis", ours: keys.dsn("ours", 0), theirs, database_url: String::new() };
    measure(&store, dir, messages);
}

/// Measures with exchanges of its own. Both sides wait for the broker's confirms.
fn measure_on_a_broker(dir: &Path, messages: u32) {
    let Some(exchanges) = Exchanges::create_blocking() else { return };
    let theirs = format!("{}&confirm_timeout=30", exchanges.dsn("theirs"));
    let store = Store { name: "amqp", ours: exchanges.dsn("ours"), theirs, database_url: String::new() };
    measure(&store, dir, messages);
}

fn measure(store: &Store, dir: &Path, messages: u32) {
    let ours = match ours(store, dir, messages) {
        Ok(figures) => figures,
        Err(error) => return println!("{:<12} {error}", store.name),
    };
    let theirs = theirs(store, dir, messages);
    let (d, c, ratio, processor) = match theirs {
        Some(figures) => (
            format!("{:.0}", figures.dispatch),
            format!("{:.0}", figures.consume),
            format!("{:.1}x", ours.consume / figures.consume),
            format!("{:.2}", figures.processor),
        ),
        None => ("-".into(), "-".into(), "-".into(), "-".into()),
    };
    println!(
        "{:<12} {:>12.0} {:>12.0} {:>12.0} {d:>12} {c:>12} {ratio:>8} {:>10.2} {processor:>10}",
        store.name, ours.dispatch, ours.at_once, ours.consume, ours.processor
    );
}

fn ours(store: &Store, dir: &Path, messages: u32) -> Result<Figures, String> {
    let file = dir.join(format!("{}.yaml", store.name));
    std::fs::write(&file, format!("transports: {{async: '{}'}}\nrouting: {{'*': async}}\n", store.ours))
        .map_err(|error| error.to_string())?;
    let app = app().config_file(&file).build().map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let began = Instant::now();
    runtime.block_on(async {
        for n in 0..messages {
            let note = Note { n, text: "hello".to_owned(), fail: false };
            app.dispatch(&note).await.map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    })?;
    let dispatch = began.elapsed();
    let notes: Vec<Note> = (0..messages).map(|n| Note { n, text: "hello".to_owned(), fail: false }).collect();
    let began = Instant::now();
    for result in runtime.block_on(app.dispatch_all(&notes).into_future()) {
        result.map_err(|error| error.to_string())?;
    }
    let at_once = began.elapsed();

    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut worker = Command::new(program);
    worker.args(["consume", "async", "-q", "--config"]).arg(&file).arg(format!("--limit={}", 2 * messages));
    let (consume, processor) = timed(&mut worker)?;
    Ok(Figures {
        dispatch: rate(messages, dispatch),
        at_once: rate(messages, at_once),
        consume: rate(2 * messages, consume),
        processor: processor_time(2 * messages, processor),
    })
}

fn theirs(store: &Store, dir: &Path, messages: u32) -> Option<Figures> {
    let console = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/console.php");
    let php = |arguments: &[&str]| {
        let mut command = Command::new("php");
        command
            .arg(&console)
            .args(arguments)
            .current_dir(dir)
            .env("TRANSPORT_DSN", &store.theirs)
            .env("DATABASE_URL", &store.database_url)
            .env("CACHE_DIR", dir)
            .env("FAILURE_DSN", "in-memory://")
            .env("MAX_RETRIES", "1")
            .env("RETRY_DELAY", "10")
            .env_remove("HANDLED");
        command
    };
    let body = r#"{"n":0,"text":"hello","fail":false}"#;
    let times = format!("--times={messages}");
    // What starting PHP takes is not counted; the first start makes the container.
    timed(&mut php(&["list"])).ok()?;
    let (start, processor_start) = timed(&mut php(&["list"])).ok()?;
    let (dispatch, _) = timed(&mut php(&["dispatch", body, &times])).ok()?;
    let consumed = (messages / 10).max(1);
    let limit = format!("--limit={consumed}");
    let (consume, processor) = timed(&mut php(&["messenger:consume", "async", &limit])).ok()?;
    let less = |time: Duration, start: Duration| time.saturating_sub(start);
    Some(Figures {
        dispatch: rate(messages, less(dispatch, start)),
        at_once: 0.0,
        consume: rate(consumed, less(consume, start)),
        processor: processor_time(consumed, less(processor, processor_start)),
    })
}

fn rate(messages: u32, time: Duration) -> f64 {
    f64::from(messages) / time.as_secs_f64()
}

/// Seconds for 10 000 messages.
fn processor_time(messages: u32, time: Duration) -> f64 {
    time.as_secs_f64() / f64::from(messages) * 10_000.0
}

/// Runs a program. How long it took, and the processor time it used.
fn timed(command: &mut Command) -> Result<(Duration, Duration), String> {
    let before = children_processor_time();
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let took = began.elapsed();
    match status {
        Ok(status) if status.success() => Ok((took, children_processor_time().saturating_sub(before))),
        Ok(status) => Err(format!("{command:?} ended with {status}")),
        Err(error) => Err(format!("{command:?} could not be started: {error}")),
    }
}

fn children_processor_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0)))
        .sum()
}

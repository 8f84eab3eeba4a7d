//! One PHP handler in three ways, in messages per second: a process for each message (`exec`), one that stays (`stream`), and
//! Symfony's own worker.
//!
//! ```text
//! cargo bench --bench handlers                     # on SQLite and Redis
//! MESSAGES=5000 cargo bench --bench handlers -- redis
//! ```
//!
//! The handler is `tests/interop/handler.php` each time: it writes a line to a file. Each way finds the same backlog on a queue of its
//! own, and is one worker that handles one message after the other; `exec` consumes a tenth of the backlog, because it is slower. What
//! starting PHP and Symfony takes is not counted for Symfony's worker, and counted here. Processor time is that of the worker and its
//! programs; memory is what all of them have resident at the same time, at most, looked at every 5 ms.

#![allow(unreachable_pub, reason = "it shares modules with the tests")]

#[path = "../tests/it/support/redis_keys.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod redis_keys;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use minutely::App;
use minutely::message::Message;
use nix::sys::resource::{UsageWho, getrusage};
use redis_keys::Keys;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The message of `tests/interop/console.php`.
#[derive(Serialize, Deserialize)]
struct Note {
    n: u32,
    text: String,
    fail: bool,
}

impl Message for Note {
    const TYPE: &'static str = r"App\Message\Note";
}

/// How often memory is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// What a run took.
struct Used {
    time: Duration,
    processor: Duration,
    /// In bytes.
    memory: u64,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    // The worker process is this program too.
    if arguments.peek().is_some_and(|argument| argument == "consume") {
        return minutely::cli::main(App::builder());
    }
    let chosen: Vec<String> = arguments.collect();
    let messages: u32 = std::env::var("MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    println!("{messages} messages, one worker, a handler in PHP that writes a line to a file\n");
    println!(
        "{:<8} {:<18} {:>8} {:>12} {:>8} {:>10} {:>10}",
        "store", "way", "handled", "messages/s", "ratio", "CPU s/1k", "memory MiB"
    );
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    if is_chosen("sqlite") {
        let file = |way: &str| format!("sqlite://{}", folder.path().join(format!("{way}.db")).display());
        measure("sqlite", folder.path(), messages, &file, &|| "doctrine://default".to_owned());
    }
    if let Some(keys) = is_chosen("redis").then(Keys::create_blocking).flatten() {
        let symfony = || format!("{}&delete_after_ack=1", keys.dsn("symfony", 0));
        measure("redis", folder.path(), messages, &|way| keys.dsn(way, 0), &symfony);
    }
    ExitCode::SUCCESS
}

fn measure(store: &str, folder: &Path, messages: u32, ours: &dyn Fn(&str) -> String, theirs: &dyn Fn() -> String) {
    let symfony = symfony(store, folder, messages, &theirs());
    let symfonys_rate = symfony.as_ref().ok().map(|used| rate(messages, used));
    print(store, "Symfony's worker", messages, symfony, symfonys_rate);
    for (way, share) in [("stream", messages), ("exec", (messages / 10).max(1))] {
        let name = format!("{store}.{way}");
        print(store, way, share, by(way, folder.join(name), messages, share, &ours(way)), symfonys_rate);
    }
}

fn print(store: &str, way: &str, handled: u32, used: Result<Used, String>, symfonys_rate: Option<f64>) {
    match used {
        Ok(used) => {
            let rate = rate(handled, &used);
            let ratio = symfonys_rate.map_or("-".to_owned(), |symfonys| format!("{:.2}x", rate / symfonys));
            let processor = used.processor.as_secs_f64() / f64::from(handled) * 1000.0;
            let memory = used.memory as f64 / f64::from(1 << 20);
            println!("{store:<8} {way:<18} {handled:>8} {rate:>12.0} {ratio:>8} {processor:>10.2} {memory:>10.1}");
        }
        Err(error) => println!("{store:<8} {way:<18} {error}"),
    }
}

fn rate(messages: u32, used: &Used) -> f64 {
    f64::from(messages) / used.time.as_secs_f64()
}

/// One of minutely's ways, in a folder of its own. `share` of the messages are handled.
fn by(way: &str, folder: PathBuf, messages: u32, share: u32, dsn: &str) -> Result<Used, String> {
    let program = manifest_file(&format!("benches/php/{way}.php"));
    let config = json!({
        "transports": {"async": dsn},
        "routing": {"*": "async"},
        "handlers": {"*": {way: ["php", program]}},
    });
    let file = folder.join("config.json");
    fs::create_dir(&folder).and_then(|()| fs::write(&file, config.to_string())).map_err(|error| error.to_string())?;
    let app = App::builder().config_file(&file).build().map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        for n in 0..messages {
            let note = Note { n, text: "hello".to_owned(), fail: false };
            app.dispatch(&note).await.map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    })?;
    drop(app);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let handled = folder.join("handled");
    let mut worker = Command::new(program);
    worker.args(["consume", "async", "-q", "--config"]).arg(&file).arg(format!("--limit={share}"));
    let used = run(worker.env("HANDLED", &handled))?;
    has_handled(&handled, share)?;
    Ok(used)
}

fn symfony(store: &str, folder: &Path, messages: u32, dsn: &str) -> Result<Used, String> {
    let handled = folder.join(format!("{store}.symfony.handled"));
    let php = |arguments: &[&str]| {
        let mut command = Command::new("php");
        command
            .arg(manifest_file("tests/interop/console.php"))
            .args(arguments)
            .current_dir(folder)
            .env("CACHE_DIR", folder)
            .env("TRANSPORT_DSN", dsn)
            .env("FAILURE_DSN", "in-memory://")
            .env("DATABASE_URL", format!("sqlite:///{}", folder.join("symfony.db").display()))
            .env("MAX_RETRIES", "1")
            .env("RETRY_DELAY", "10")
            .env("HANDLED", &handled);
        command
    };
    // The first makes the container, and is not counted.
    run(&mut php(&["list"]))?;
    let start = run(&mut php(&["list"]))?;
    run(&mut php(&["dispatch", r#"{"n":0,"text":"hello"}"#, &format!("--times={messages}")]))?;
    let used = run(&mut php(&["messenger:consume", "async", &format!("--limit={messages}")]))?;
    has_handled(&handled, messages)?;
    Ok(Used {
        time: used.time.saturating_sub(start.time),
        processor: used.processor.saturating_sub(start.processor),
        memory: used.memory,
    })
}

fn manifest_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn has_handled(file: &Path, expected: u32) -> Result<(), String> {
    let lines = fs::read_to_string(file).unwrap_or_default().lines().count();
    (lines == expected as usize).then_some(()).ok_or_else(|| format!("{lines} of {expected} messages were handled"))
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<Used, String> {
    let before = children_processor_time();
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{command:?} could not be started: {error}"))?;
    let mut memory = 0;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None => memory = memory.max(resident(child.id())),
        }
        std::thread::sleep(INTERVAL);
    };
    if !status.success() {
        return Err(format!("{command:?} ended with {status}"));
    }
    let processor = children_processor_time().saturating_sub(before);
    Ok(Used { time: began.elapsed(), processor, memory })
}

/// What a process and all below it have resident. Pages that several of them share count in parts (PSS).
fn resident(root: u32) -> u64 {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // PID (NAME) STATE PARENT …, and a name may hold anything.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let is_below = |pid: u32| {
        let ancestors = std::iter::successors(Some(pid), |pid| parents.get(pid).copied().filter(|parent| *parent > 1));
        ancestors.take(parents.len()).any(|ancestor| ancestor == root)
    };
    parents.keys().filter(|pid| is_below(**pid)).map(|pid| proportional(*pid)).sum()
}

fn proportional(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn children_processor_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0)))
        .sum()
}

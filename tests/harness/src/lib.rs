//! A test harness whose tests can find out while they run that they are to be skipped: cargo's own decides at compile
//! time, and would count a test that found no server as passed.
//!
//! A test program of it has `harness = false` in `Cargo.toml`, and two lines at its top:
//!
//! ```ignore
//! #[macro_use]
//! extern crate harness;
//!
//! harness::main!();
//! ```
//!
//! Then `#[test]` is the harness's in all of its modules, for `fn` and for `async fn`, and [`skip`] makes a test one that
//! was ignored, with the reason. (`#[tokio::test]` knows cargo's own harness alone, and leaves nothing of the test here:
//! the program refuses to run while its sources hold one.)
//!
//! More tests run at once than there are processors, because most of them wait for processes and servers:
//! `--test-threads` and `RUST_TEST_THREADS` say how many. A test with `#[test(alone)]` runs after the others and beside none.
//! `MINUTELY_TEST_SLOWEST=20` lists the twenty slowest tests at the end.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use attribute::test;
#[doc(hidden)]
pub use inventory;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A function with `#[test]`.
#[doc(hidden)]
pub struct Test {
    pub module: &'static str,
    pub name: &'static str,
    pub alone: bool,
    pub function: fn(),
}

inventory::collect!(Test);

/// How many tests run at once for each processor, unless it is said otherwise.
const TESTS_PER_PROCESSOR: usize = 4;

/// Held by each test while it runs; by one that runs alone, exclusively.
static RUNNING: RwLock<()> = RwLock::new(());

/// How long each test took.
static DURATIONS: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// The program's `main`.
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            $crate::run(::std::path::Path::new(::core::concat!(
                ::core::env!("CARGO_MANIFEST_DIR"),
                "/",
                ::core::file!()
            )))
        }
    };
}

thread_local! {
    /// Why the test that this thread runs is skipped.
    static SKIPPED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes the test that this thread runs one that was ignored; the test is to return then. Where none may be skipped
/// (`MINUTELY_TEST_NO_SKIP=1`), it fails.
#[track_caller]
pub fn skip(reason: &str) {
    let allowed = std::env::var_os("MINUTELY_TEST_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "skipped, and MINUTELY_TEST_NO_SKIP allows that to none: {reason}");
    SKIPPED.set(Some(reason.to_owned()));
}

/// As [`skip`], also where none may be skipped: for what no machine of CI can have. The reason says which script runs it.
pub fn skip_always(reason: &str) {
    SKIPPED.set(Some(reason.to_owned()));
}

#[doc(hidden)]
pub fn run(main: &Path) -> ExitCode {
    if let Some(place) = main.parent().and_then(left_out) {
        eprintln!("{place}: write #[test] in place of #[tokio::test], which leaves the test out here");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or_else(|| number("RUST_TEST_THREADS")).or_else(default_threads);
    let mut tests: Vec<&Test> = inventory::iter::<Test>.into_iter().collect();
    tests.sort_by_key(|test| (test.alone, test.module, test.name));
    let tests = tests.into_iter().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, tests);
    if let Some(most) = number("MINUTELY_TEST_SLOWEST") {
        print_slowest(most);
    }
    conclusion.exit_code()
}

/// The number in a variable of the environment.
fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

fn default_threads() -> Option<usize> {
    Some(std::thread::available_parallelism().ok()?.get() * TESTS_PER_PROCESSOR)
}

fn print_slowest(most: usize) {
    let mut durations = DURATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    durations.sort_by_key(|(duration, _)| std::cmp::Reverse(*duration));
    for (duration, name) in durations.iter().take(most) {
        println!("{:8.2} s  {name}", duration.as_secs_f64());
    }
}

/// Where the program's sources have a test that is not registered: the file and its line.
fn left_out(source: &Path) -> Option<String> {
    if source.is_dir() {
        let mut entries = fs::read_dir(source).into_iter().flatten().flatten();
        return entries.find_map(|entry| left_out(&entry.path()));
    }
    let text = fs::read_to_string(source).ok()?;
    let line = text.lines().position(|line| line.trim_start().starts_with("#[tokio::test"))?;
    Some(format!("{}:{}", source.display(), line + 1))
}

/// Named as cargo's own harness does: by the path within the crate.
fn trial(test: &Test) -> Trial {
    let name = match test.module.split_once("::") {
        Some((_, module)) => format!("{module}::{}", test.name),
        None => test.name.to_owned(),
    };
    let Test { alone, function, .. } = *test;
    let timed = name.clone();
    Trial::ignorable_test(name, move || {
        // A lock is poisoned when a test fails while it holds it, which is no concern of the next one.
        let (_shared, _exclusive) = match alone {
            false => (Some(RUNNING.read().unwrap_or_else(PoisonError::into_inner)), None),
            true => (None, Some(RUNNING.write().unwrap_or_else(PoisonError::into_inner))),
        };
        let _timer = Timer { name: timed, started: Instant::now() };
        SKIPPED.take();
        function();
        Ok::<_, Failed>(SKIPPED.take().map_or(Completion::Completed, Completion::ignored_with))
    })
}

/// Notes how long a test took, also of one that fails.
struct Timer {
    name: String,
    started: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut durations = DURATIONS.lock().unwrap_or_else(PoisonError::into_inner);
        durations.push((self.started.elapsed(), std::mem::take(&mut self.name)));
    }
}

/// Runs an asynchronous test, on this thread and two more.
#[doc(hidden)]
pub fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a test has a runtime").block_on(test);
}

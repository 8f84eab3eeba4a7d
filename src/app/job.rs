//! A scheduled job that is a Rust function.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_yaml::{Mapping, Value};

use crate::config::Problem;
use crate::handler::{Handler, HandlerFn, from_fn};

/// A scheduled job that is an async function. Added with [`AppBuilder::job`](super::AppBuilder::job).
///
/// Its arguments are [those of a handler](crate::handler::Argument) that need no message, and [`Due`](crate::handler::Due). It
/// returns `()` or a `Result` with any error. What it returns is kept as the output of the run. A job that need not run now
/// returns [`HandlerError::skipped`](crate::handler::HandlerError::skipped): it gets its run back, and is tried again in the next
/// minute.
///
/// ```
/// use std::time::Duration;
///
/// use minutely::handler::{HandlerError, State};
/// use minutely::{App, Job};
///
/// #[derive(Clone)]
/// struct Files { dir: std::path::PathBuf }
///
/// async fn clean_up(State(files): State<Files>) -> Result<String, HandlerError> {
///     if !files.dir.exists() {
///         return Err(HandlerError::skipped("there is no folder yet"));
///     }
///     let count = std::fs::read_dir(&files.dir)?.count();
///     Ok(format!("{count} files are left"))
/// }
///
/// let app = App::builder()
///     .state(Files { dir: "/tmp/shop".into() })
///     .job(Job::new("clean-up", "hourly", clean_up).timezone("Europe/Vienna").timeout(Duration::from_secs(300)));
/// ```
///
/// Each run is a process of its own, `myapp cron run clean-up`, which outlives the supervisor that has started it (a task, under
/// a supervisor in a program that has not said how to call itself: [`App::supervisor`](crate::App::supervisor)). Its
/// [`CancellationToken`](crate::handler::CancellationToken) is cancelled at its timeout and at SIGTERM; five seconds later the
/// function is dropped.
#[must_use = "a job runs when it is added to an application"]
pub struct Job {
    pub(super) name: String,
    pub(super) settings: Mapping,
    pub(super) problems: Vec<Problem>,
    pub(super) function: Arc<dyn Handler>,
}

impl Job {
    /// A job that runs when its schedule says: `hourly`, `every 90s`, `5 4 * * 1`. By its name its last runs are kept; no job of the
    /// configuration may have it too.
    pub fn new<F: HandlerFn<Args>, Args: 'static>(name: impl Into<String>, schedule: &str, function: F) -> Self {
        const {
            assert!(
                !F::NEEDS_MESSAGE,
                "a job has no message: its arguments are `State<T>`, `Bus`, `Due`, `CancellationToken` or types that implement \
                 `Argument`"
            );
        }
        let name = name.into();
        let function = Arc::new(from_fn(function).named(name.clone()));
        Self { name, settings: Mapping::new(), problems: Vec::new(), function }.set("schedule", schedule)
    }

    /// Sets the time zone of the schedule, such as `Europe/Vienna`. Default: the system's.
    pub fn timezone(self, zone: &str) -> Self {
        self.set("timezone", zone)
    }

    /// Sets how long a run may take. Default: as long as it likes.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.set("timeout", format!("{}ms", timeout.as_millis()))
    }

    /// Sets any key of an entry under `cron` that has a meaning for a function: `overlap`, `catch_up`, `jitter`, `scope`. They are
    /// read and checked like those of a file, when the application is built.
    pub fn set(mut self, key: &str, value: impl Serialize) -> Self {
        match serde_yaml::to_value(value) {
            Ok(value) => drop(self.settings.insert(Value::from(key), value)),
            Err(error) => {
                let why = format!("cannot be written as YAML: {error}");
                self.problems.push(Problem::error(format!("job {}.{key}", self.name), why));
            }
        }
        self
    }
}

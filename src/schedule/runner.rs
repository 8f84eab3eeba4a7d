//! Runs a job once, in the process of `cron run`, and writes down how it went.

use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::future::{self, Either, FusedFuture, FutureExt};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::function::Functions;
use super::job::Job;
use super::report::{Report, Reports};
use super::shared_state::{LEASE, Outcome, RENEW_LEASE, Run, SharedState, parse_time, random_id};
use crate::bus::Bus;
use crate::cache::CacheError;
use crate::config::JobAction;
use crate::handler::{Due, Group, OUTPUT_TIMEOUT, Output, Verdict};
use crate::message::Envelope;
use crate::supervisor::{HeldSlot, SLOT_FD_VARIABLE, SLOT_VARIABLE, WORKER_VARIABLE};
use crate::threads;

/// A job that exits with this need not run now (`EX_TEMPFAIL` of `sysexits.h`).
const SKIPPED: i32 = 75;

/// Names the job in the environment of its program, and when the run was due.
const JOB_VARIABLE: &str = "MINUTELY_JOB";
const DUE_VARIABLE: &str = "MINUTELY_JOB_DUE";

/// How long the start of a program is tried while the system refuses processes, and how often about.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(500);

/// The end of a run is recorded until its lease has expired anyway, and tried so often.
const RECORD_TIMEOUT: Duration = LEASE;
const RECORD_PAUSE: Duration = Duration::from_millis(500);

/// How much of the output is kept with the run.
const KEPT_OUTPUT: usize = 2048;

/// Runs a job once.
pub(crate) struct Runner<'a> {
    pub job: &'a Job,
    pub shared: &'a SharedState,
    pub bus: &'a Bus,
    pub functions: &'a Functions,
    /// Where programs run: the configuration's folder.
    pub dir: &'a Path,
    pub state_dir: &'a Path,
    /// The key of what the run has taken; `None` when it was started by hand.
    pub taken: Option<&'a str>,
    /// By it what the run has started is found if this process is killed.
    pub mark: &'a str,
    /// Does the next supervisor report a failure?
    pub reports: bool,
    /// Does this process go on when the run has ended? Then a function that cannot be dropped goes on too, and its run lasts
    /// until it ends.
    pub process_goes_on: bool,
}

/// How a run went.
pub(crate) struct Ended {
    pub outcome: Outcome,
    exit_code: Option<i32>,
    why: Option<String>,
    output: String,
    /// Does its function still run, because it cannot be dropped?
    pub is_stuck: bool,
}

/// How far work has come.
enum InTime<T> {
    Ended(T),
    TimedOut,
    Stopped,
}

impl Ended {
    fn new(outcome: Outcome, why: String) -> Self {
        Self { outcome, exit_code: None, why: Some(why), output: String::new(), is_stuck: false }
    }

    fn well() -> Self {
        Self { outcome: Outcome::Succeeded, exit_code: None, why: None, output: String::new(), is_stuck: false }
    }

    /// Did it end as it should: well, or by its own decision not to run?
    pub(crate) fn is_well(&self) -> bool {
        matches!(self.outcome, Outcome::Succeeded | Outcome::Skipped)
    }
}

impl Runner<'_> {
    /// Runs the job. The slot is free afterwards. `stop` breaks the job off. `line` gets what it prints.
    pub(crate) async fn run(&self, slot: HeldSlot, stop: impl Future<Output = ()>, line: impl Fn(&str)) -> Ended {
        let name = self.job.name();
        let mut run = Run {
            id: random_id(),
            host: self.shared.host().to_owned(),
            pid: std::process::id(),
            due: self.taken.and_then(parse_time),
            started_at: Utc::now(),
            ended_at: None,
            outcome: None,
            exit_code: None,
            why: None,
            output: String::new(),
        };
        // Without it, nobody would notice if this process were killed.
        let note = slot.in_flight_path();
        if let Err(error) = std::fs::write(note, &run.id) {
            tracing::warn!(job = name, %error, "the run could not be noted beside its slot");
        }
        self.warn("the start of the run could not be recorded", self.shared.write(name, &run).await);
        tracing::info!(job = name, "started");

        let mut stop = pin!(stop.fuse());
        let ended = {
            let work = pin!(self.work(&run, stop.as_mut(), line));
            let lease = pin!(self.renew_lease());
            match future::select(work, lease).await {
                Either::Left((ended, _)) => ended,
                Either::Right((never, _)) => match never {},
            }
        };

        run.ended_at = Some(Utc::now());
        run.outcome = Some(ended.outcome);
        run.exit_code = ended.exit_code;
        run.why.clone_from(&ended.why);
        run.output = last_part(&ended.output, KEPT_OUTPUT).to_owned();
        self.log(&run);
        if self.reports && matches!(ended.outcome, Outcome::Failed | Outcome::Interrupted) {
            let report = Report { job: name.to_owned(), run: run.clone() };
            if let Err(error) = Reports::new(self.state_dir).save(&report) {
                tracing::error!(job = name, %error, "its failure cannot be reported by mail");
            }
        }
        // With it, the next look can do what is not done here.
        if let Err(error) = std::fs::write(note, format!("{}\n{}", run.id, run.to_json())) {
            tracing::debug!(job = name, %error, "the end of the run could not be noted");
        }
        if self.settle(&run, &mut stop).await
            && let Err(error) = std::fs::remove_file(note)
        {
            tracing::debug!(job = name, %error, "the note of the run could not be removed");
        }
        slot.free();
        ended
    }

    /// Records the end of the run, gives back what it has not used, and its lease. Tried until `stop` while the cache is down.
    /// `false`: the note of the run has to stay.
    async fn settle(&self, run: &Run, stop: &mut (impl FusedFuture<Output = ()> + Unpin)) -> bool {
        let deadline = Instant::now() + RECORD_TIMEOUT;
        if let (Some(Outcome::Skipped), Some(taken)) = (run.outcome, self.taken) {
            let give_back = || self.shared.skip(self.job, taken, Utc::now());
            if !self.insist(give_back, deadline, stop).await {
                tracing::warn!(job = self.job.name(), "its run could not be given back, and is not tried again");
            }
        }
        let is_recorded = self.insist(|| self.shared.write(self.job.name(), run), deadline, stop).await;
        if !is_recorded {
            tracing::warn!(job = self.job.name(), "the end of the run is not recorded; the next look does it");
        }
        if !self.job.has_lease() {
            return is_recorded;
        }
        let is_released = self.insist(|| self.shared.release(self.job), deadline, stop).await;
        if !is_released {
            tracing::warn!(job = self.job.name(), "its lease could not be released, and expires");
        }
        is_recorded && is_released
    }

    /// Tries something until it works, `deadline` or `stop`.
    async fn insist<F: Future<Output = Result<(), CacheError>>>(
        &self,
        attempt: impl Fn() -> F,
        deadline: Instant,
        stop: &mut (impl FusedFuture<Output = ()> + Unpin),
    ) -> bool {
        let mut is_told = false;
        loop {
            let Err(error) = attempt().await else { return true };
            if !is_told {
                tracing::warn!(job = self.job.name(), "the end of the run cannot be recorded: {error}");
                is_told = true;
            }
            if stop.is_terminated() || Instant::now() >= deadline {
                return false;
            }
            future::select(pin!(sleep(RECORD_PAUSE)), &mut *stop).await;
        }
    }

    fn warn<T>(&self, what: &str, result: Result<T, CacheError>) {
        if let Err(error) = result {
            tracing::warn!(job = self.job.name(), "{what}: {error}");
        }
    }

    fn log(&self, run: &Run) {
        let (job, took) = (self.job.name(), run.took(Utc::now()));
        let why = run.why.as_deref().unwrap_or_default();
        match run.outcome {
            Some(Outcome::Failed) => tracing::error!(job, ?took, "failed: {why}"),
            Some(Outcome::Interrupted) => tracing::warn!(job, ?took, "interrupted: {why}"),
            Some(Outcome::Skipped) => tracing::info!(job, ?took, "skipped itself: {why}"),
            _ => tracing::info!(job, ?took, "finished"),
        }
    }

    /// Never ends.
    async fn renew_lease(&self) -> std::convert::Infallible {
        loop {
            sleep(RENEW_LEASE).await;
            if self.job.has_lease() {
                match self.shared.lease(self.job).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!(job = self.job.name(), "another host runs it as well: the lease expired");
                    }
                    Err(error) => tracing::warn!(job = self.job.name(), "its lease cannot be renewed: {error}"),
                }
            }
        }
    }

    async fn work(&self, run: &Run, stop: impl Future<Output = ()>, line: impl Fn(&str)) -> Ended {
        match &self.job.config.action {
            JobAction::Command { .. } => {
                let output = self.output(&line);
                let ended = self.run_program(run, stop, &output).await;
                let ended = ended.unwrap_or_else(|error| Ended::new(Outcome::Failed, self.not_started(&error)));
                Ended { output: output.last_lines(), ..ended }
            }
            JobAction::Function => self.call(run, stop, line).await,
            #[cfg(feature = "http")]
            JobAction::Http(request) => {
                let output = self.output(&line);
                let requested = self.in_time(super::request::request(request, &output), stop).await;
                let timed_out = || format!("{}: {}", super::request::what(request), self.timed_out());
                let ended = match requested {
                    InTime::Ended(Ok(())) => Ended::well(),
                    InTime::Ended(Err(why)) => Ended::new(Outcome::Failed, why),
                    InTime::TimedOut => Ended::new(Outcome::Failed, timed_out()),
                    InTime::Stopped => Ended::new(Outcome::Interrupted, stopped()),
                };
                Ended { output: output.last_lines(), ..ended }
            }
            // Refused where the configuration is read.
            #[cfg(not(feature = "http"))]
            JobAction::Http(_) => Ended::new(Outcome::Failed, "HTTP is not in this build".to_owned()),
            JobAction::Dispatch { message_type, body, bus } => {
                match self.in_time(self.dispatch(message_type, body, bus.as_deref()), stop).await {
                    InTime::Ended(ended) => {
                        ended.output.lines().for_each(line);
                        ended
                    }
                    InTime::TimedOut => Ended::new(Outcome::Failed, self.timed_out()),
                    InTime::Stopped => Ended::new(Outcome::Interrupted, stopped()),
                }
            }
        }
    }

    async fn run_program(
        &self,
        run: &Run,
        stop: impl Future<Output = ()>,
        output: &Output<impl Fn(&str)>,
    ) -> io::Result<Ended> {
        let mut group = self.start(run).await?;
        let child = group.child();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let status = {
            let talk = pin!(future::join(output.read(stdout), output.read(stderr)));
            let end = pin!(async {
                let wait = pin!(group.wait(self.job.config.timeout));
                match future::select(wait, pin!(stop)).await {
                    Either::Left((status, _)) => Some(status),
                    Either::Right(_) => None,
                }
            });
            // Output that comes to its end first does not mean that the program has ended.
            match future::select(end, talk).await {
                Either::Left((status, talk)) => {
                    let _ = timeout(OUTPUT_TIMEOUT, talk).await;
                    status
                }
                Either::Right((_, end)) => end.await,
            }
        };
        let Some(status) = status else {
            group.end().await;
            return Ok(Ended::new(Outcome::Interrupted, stopped()));
        };
        Ok(match status? {
            Some(status) => judge(status),
            None => Ended::new(Outcome::Failed, self.timed_out()),
        })
    }

    /// What it prints: for the log, for `line`, and for the record of the run.
    fn output(&self, line: impl Fn(&str)) -> Output<impl Fn(&str)> {
        Output::new(move |text: &str| {
            tracing::info!(job = self.job.name(), "{text}");
            line(text);
        })
    }

    /// Its work, until it ends, takes too long, or is to stop.
    async fn in_time<T>(&self, work: impl Future<Output = T>, stop: impl Future<Output = ()>) -> InTime<T> {
        let limited = async {
            match self.job.config.timeout {
                None => InTime::Ended(work.await),
                Some(limit) => timeout(limit, work).await.map_or(InTime::TimedOut, InTime::Ended),
            }
        };
        match future::select(pin!(limited), pin!(stop)).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => InTime::Stopped,
        }
    }

    fn timed_out(&self) -> String {
        format!("timed out after {:?}", self.job.config.timeout.unwrap_or_default())
    }

    /// Starts the program. Waits if the system refuses a process, as handlers do.
    async fn start(&self, run: &Run) -> io::Result<Group> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut is_told = false;
        loop {
            match Group::start(&mut self.command(run)) {
                Err(error) if threads::is_refusal(&error) && Instant::now() < deadline => {
                    if !is_told {
                        tracing::info!(job = self.job.name(), "waiting for a process for the job: {error}");
                        is_told = true;
                    }
                }
                started => return started,
            }
            sleep(START_PAUSE.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    fn command(&self, run: &Run) -> Command {
        let JobAction::Command { command: words, environment } = &self.job.config.action else {
            return Command::new("");
        };
        let program = words.first().map(String::as_str).unwrap_or_default();
        let mut command =
            if program.contains('/') { Command::new(self.dir.join(program)) } else { Command::new(program) };
        command
            .args(words.iter().skip(1))
            .current_dir(self.dir)
            .envs(environment.iter().map(|(name, value)| (name, &value.0)))
            // The slot belongs to this process alone.
            .env_remove(SLOT_VARIABLE)
            .env_remove(SLOT_FD_VARIABLE)
            .env(WORKER_VARIABLE, self.mark)
            .env(JOB_VARIABLE, self.job.name())
            .env(DUE_VARIABLE, due_of(run).to_rfc3339_opts(SecondsFormat::Secs, false))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn not_started(&self, error: &io::Error) -> String {
        let JobAction::Command { command, .. } = &self.job.config.action else { return error.to_string() };
        let (program, advice) =
            (command.first().map(String::as_str).unwrap_or_default(), threads::advice_for_job(error));
        let right = threads::advice_for_program(error);
        format!("\"{program}\" cannot be started in {}: {error}{advice}{right}", self.dir.display())
    }

    async fn call(&self, run: &Run, stop: impl Future<Output = ()>, line: impl Fn(&str)) -> Ended {
        let due = Due(due_of(run).into());
        let Some(mut running) = self.functions.start(self.job.name(), due, self.bus) else {
            return Ended::new(Outcome::Failed, "its function is not in this program".to_owned());
        };
        let mut stop = pin!(stop.fuse());
        let called = self.in_time(&mut running.task, stop.as_mut()).await;
        let ended = match called {
            InTime::Ended(Ok(Ok(value))) => {
                for text in running.returned(&value).iter().flat_map(|text| text.lines()) {
                    tracing::info!(job = self.job.name(), "{text}");
                    line(text);
                }
                Ended::well()
            }
            InTime::Ended(Ok(Err(error))) => {
                let outcome = if error.verdict == Verdict::Skipped { Outcome::Skipped } else { Outcome::Failed };
                Ended::new(outcome, error.message)
            }
            InTime::Ended(Err(error)) => Ended::new(Outcome::Failed, error.to_string()),
            InTime::TimedOut => {
                let mut is_stuck = !running.end().await;
                if is_stuck && self.process_goes_on {
                    tracing::error!(
                        job = self.job.name(),
                        "{}, but its function computes on; the run lasts until it returns",
                        self.timed_out()
                    );
                    is_stuck = matches!(future::select(&mut running.task, stop).await, Either::Right(_));
                }
                Ended { is_stuck, ..Ended::new(Outcome::Failed, self.timed_out()) }
            }
            InTime::Stopped => {
                let is_stuck = !running.end().await;
                Ended { is_stuck, ..Ended::new(Outcome::Interrupted, stopped()) }
            }
        };
        Ended { output: running.last_lines(), ..ended }
    }

    async fn dispatch(&self, message_type: &str, body: &serde_json::Value, bus: Option<&str>) -> Ended {
        let bus = match bus.map(|name| self.bus.named(name)).transpose() {
            Ok(bus) => bus.unwrap_or_else(|| self.bus.clone()),
            Err(error) => return Ended::new(Outcome::Failed, error.to_string()),
        };
        match bus.dispatch_envelope(Envelope::from_json(message_type, body.to_string())).await {
            Err(error) => Ended::new(Outcome::Failed, error.to_string()),
            Ok(dispatched) => {
                let queued = dispatched.queued().into_iter().map(|queued| format!("queued on {}", queued.queued_on));
                let handled =
                    dispatched.handled_now().into_iter().map(|handled| format!("handled now: {}", handled.reason));
                let output = queued.chain(handled).collect::<Vec<_>>().join("\n");
                Ended { output, ..Ended::well() }
            }
        }
    }
}

/// When it was due, or when it was started by hand.
fn due_of(run: &Run) -> DateTime<Utc> {
    run.due.unwrap_or(run.started_at)
}

fn stopped() -> String {
    "it was asked to stop".to_owned()
}

/// What the end of the program means.
fn judge(status: ExitStatus) -> Ended {
    let ended = match status.code() {
        Some(0) => Ended::well(),
        Some(SKIPPED) => Ended::new(Outcome::Skipped, format!("exit code {SKIPPED}")),
        Some(code) => Ended::new(Outcome::Failed, format!("exit code {code}")),
        None => {
            let number = status.signal().unwrap_or_default();
            let signal =
                Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
            Ended::new(Outcome::Failed, format!("killed by {signal}"))
        }
    };
    Ended { exit_code: status.code(), ..ended }
}

/// The end of a text, at most this many bytes of whole characters.
fn last_part(text: &str, most: usize) -> &str {
    let start = (text.len().saturating_sub(most)..=text.len()).find(|at| text.is_char_boundary(*at));
    &text[start.unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_cut_between_characters() {
        assert_eq!(
            (last_part("abc", 5), last_part("abc", 2), last_part("aüü", 3), last_part("ü", 1)),
            ("abc", "bc", "ü", "")
        );
    }
}

//! `dispatch --ndjson`: dispatches a stream of messages, and says which were accepted.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;

use super::lines::{Line, Lines};
use super::report::{Done, Entry, Report};
use super::{Args, stamp};
use crate::app::Outgoing;
use crate::bus::{Dispatch, DispatchAll, DispatchError, Dispatched};
use crate::cli::output::{self, Format};
use crate::cli::signals::Signals;
use crate::cli::{App, End, Failure, Result};
use crate::message::TraceContext;
use crate::transport::TransportError;

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(250);
/// The most failures that are listed in the result.
const LISTED: usize = 100;

/// What became of the lines so far.
#[derive(Default)]
struct Totals {
    lines: u64,
    queued: u64,
    handled: u64,
    duplicates: u64,
    failed: u64,
    /// The first of those that failed.
    listed: Vec<(u64, String)>,
    /// The last line that was looked at, and what it is known again by.
    through: u64,
    last: String,
    /// Why there is no more, if that is not the end of the stream.
    stopped: Option<String>,
    /// Where to go on without a report: the line that ended the run.
    next: Option<u64>,
}

/// Lines that are dispatched together, and those among them that are no messages.
struct Group {
    lines: Vec<(u64, String)>,
    dispatches: Vec<Dispatch>,
    /// For each line, its place among the dispatches, or why it has none.
    places: Vec<Result<usize, String>>,
    /// The first line that is not a message, and why, if that ends the run.
    ends_with: Option<(u64, String)>,
}

pub(super) async fn run(app: &App, args: &Args, path: &Path) -> Result<End> {
    let (mut report, done) = match &args.report {
        Some(path) => Report::open(path).map(|(report, done)| (Some(report), done))?,
        None => (None, Done::before(args.from_line.unwrap_or(1))),
    };
    let is_stdin = path == Path::new("-");
    if is_stdin && std::io::stdin().is_terminal() {
        output::warning("reading messages from the terminal, one on each line; Ctrl-D ends it");
    }
    let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let unreadable = |error: String| Failure::Failed(format!("{name}: {error}"));
    let lines = Lines::of(Some(path).filter(|_| !is_stdin), done.clone());
    let lines = lines.map_err(|error| unreadable(format!("it cannot be read: {error}")))?;
    let mut totals = Totals { through: done.through(), last: done.last(), ..Totals::default() };
    let mut signals = Signals::listen()?;
    let mut groups = read_ahead(lines);
    let mut progress = Progress::new();
    let trace = TraceContext::of_process();
    while totals.stopped.is_none() {
        let group = tokio::select! {
            biased;
            () = signals.next() => {
                totals.stopped = Some("interrupted".to_owned());
                break;
            }
            group = groups.recv() => group,
        };
        let Some(lines) = group else { break };
        let lines = match lines {
            Ok(lines) => lines,
            Err(error) => {
                totals.stopped = Some(format!("{name}: {error}"));
                break;
            }
        };
        let mut group = Group::of(app, args, trace.as_ref(), lines);
        let mut dispatching = std::mem::take(&mut group.dispatches).into_iter().collect::<DispatchAll>().into_future();
        let results = loop {
            tokio::select! {
                biased;
                results = &mut dispatching => break results,
                () = signals.next() => match totals.stopped {
                    None => totals.stopped = Some("interrupted".to_owned()),
                    Some(_) => return Err(interrupted_twice(&totals)),
                },
            }
        };
        let entry = totals.add(group, results, done.through(), args.keep_going);
        if let (Some(report), Some(entry)) = (&mut report, entry) {
            report.add(&entry)?;
        }
        progress.show(&totals);
    }
    progress.end();
    // What was started for these messages, and kept for others.
    app.handlers.worker_stopped().await;
    totals.print(args)
}

fn interrupted_twice(totals: &Totals) -> Failure {
    let through = totals.through;
    Failure::Failed(format!("interrupted twice: the lines up to {through} were dispatched, and of those after it some"))
}

/// Reads the next group while one is dispatched.
fn read_ahead(mut lines: Lines) -> mpsc::Receiver<Result<Vec<Line>, String>> {
    let (sender, groups) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let group = lines.next().await;
            let is_last = group.as_ref().map_or(true, Vec::is_empty);
            if group.as_ref().is_ok_and(Vec::is_empty) || sender.send(group).await.is_err() || is_last {
                return;
            }
        }
    });
    groups
}

impl Group {
    fn of(app: &App, args: &Args, trace: Option<&TraceContext>, lines: Vec<Line>) -> Self {
        let mut group = Self { lines: Vec::new(), dispatches: Vec::new(), places: Vec::new(), ends_with: None };
        for Line { number, message, fingerprint } in lines {
            let message = message.map(|message| with_defaults(message, args, trace));
            let dispatch =
                message.and_then(|message| app.dispatch_outgoing(message).map_err(|error| error.to_string()));
            let place = match dispatch {
                Ok(dispatch) => {
                    group.dispatches.push(dispatch);
                    Ok(group.dispatches.len() - 1)
                }
                Err(why) if !args.keep_going => {
                    group.ends_with = Some((number, why));
                    break;
                }
                Err(why) => Err(why),
            };
            group.lines.push((number, fingerprint));
            group.places.push(place);
        }
        group
    }
}

/// What a line does not say, the arguments may.
fn with_defaults(message: Outgoing, args: &Args, trace: Option<&TraceContext>) -> Outgoing {
    let mut stamps: Vec<_> = args.stamps.iter().map(|text| stamp(text)).collect();
    stamps.extend(message.stamps);
    Outgoing {
        delay: message.delay.or(args.delay),
        transports: if message.transports.is_empty() { args.transports.clone() } else { message.transports },
        bus: message.bus.or_else(|| args.bus.clone()),
        stamps,
        trace: trace.cloned(),
        ..message
    }
}

impl Totals {
    /// Counts what became of a group. Returns what the report is to say, if there is anything.
    fn add(
        &mut self,
        group: Group,
        results: Vec<Result<Dispatched, DispatchError>>,
        before: u64,
        keep_going: bool,
    ) -> Option<Entry> {
        let mut results: Vec<_> = results.into_iter().map(Some).collect();
        let (queued, handled, duplicates) = (self.queued, self.handled, self.duplicates);
        let (mut failed, mut accepted_now) = (BTreeMap::new(), Vec::new());
        let is_empty = group.lines.is_empty();
        for ((number, fingerprint), place) in group.lines.into_iter().zip(group.places) {
            let result = match place {
                // Each place is that of one line.
                Ok(place) => results.get_mut(place).and_then(Option::take),
                Err(why) => {
                    failed.insert(number, why);
                    None
                }
            };
            match result {
                Some(Ok(dispatched)) => {
                    self.queued += u64::from(dispatched.is_queued());
                    self.handled += u64::from(dispatched.is_handled() && !dispatched.is_queued());
                    self.duplicates += u64::from(dispatched.is_duplicate());
                    if number <= before {
                        accepted_now.push(number);
                    }
                }
                Some(Err(error)) => {
                    if !keep_going || is_of_the_store(&error) {
                        let why = format!("line {number} could not be dispatched: {error}");
                        self.stopped.get_or_insert(why);
                        self.next.get_or_insert(number);
                    }
                    failed.insert(number, error.to_string());
                }
                None => {}
            }
            self.lines += 1;
            if number > self.through {
                (self.through, self.last) = (number, fingerprint);
            }
        }
        self.failed += failed.len() as u64;
        for (number, why) in &failed {
            if self.listed.len() < LISTED {
                self.listed.push((*number, why.clone()));
            }
        }
        if let Some((number, why)) = group.ends_with {
            self.stopped.get_or_insert(format!("line {number} is no message: {why}"));
        }
        (!is_empty).then(|| Entry {
            through: self.through,
            last: self.last.clone(),
            queued: self.queued - queued,
            handled: self.handled - handled,
            duplicates: self.duplicates - duplicates,
            failed,
            accepted_now,
        })
    }

    fn print(&self, args: &Args) -> Result<End> {
        let Self { lines, queued, handled, duplicates, failed, through, .. } = self;
        match args.format.format {
            Format::Json => output::json(&json!({
                "lines": lines, "queued": queued, "handled": handled, "duplicates": duplicates, "failed": failed,
                "through": through, "stopped": self.stopped,
                "failures": self.listed.iter().map(|(line, error)| json!({"line": line, "error": error})).collect::<Vec<_>>(),
            }))?,
            Format::Text => {
                for (line, why) in &self.listed {
                    output::warning(&format!("line {line} was not accepted: {why}"));
                }
                if *failed > self.listed.len() as u64 {
                    output::warning(&format!("and {} more", failed - self.listed.len() as u64));
                }
                output::line(format_args!(
                    "{lines} lines: {queued} queued, {handled} handled, {duplicates} duplicates, {failed} not accepted"
                ));
            }
        }
        if let Some(why) = &self.stopped {
            let next = match (&args.report, self.next) {
                (Some(_), _) => "the same command goes on from there".to_owned(),
                (None, None) => format!("--from-line={} goes on after them", through + 1),
                (None, Some(line)) if line == *through => format!("--from-line={line} goes on with the last of them"),
                (None, Some(line)) => format!(
                    "--from-line={line} goes on with the first that failed, and dispatches those after it once more (with \
                     --report=FILE, it would not)"
                ),
            };
            output::error(&format!("{why}\nthe lines up to {through} were looked at; {next}"));
        }
        Ok(if self.stopped.is_none() && *failed == 0 { End::Well } else { End::Failed })
    }
}

/// Whether it is not the message's fault, so that others would fail too.
fn is_of_the_store(error: &DispatchError) -> bool {
    let DispatchError::Sending { source, .. } = error else { return false };
    !matches!(
        source,
        TransportError::Unstorable { .. } | TransportError::Unwritable { .. } | TransportError::Unknown(_)
    )
}

/// A line on the terminal that says how far it is.
struct Progress {
    begun: Instant,
    shown: Option<Instant>,
    is_on: bool,
}

impl Progress {
    fn new() -> Self {
        let is_on = std::io::stderr().is_terminal() && !output::is_quiet();
        Self { begun: Instant::now(), shown: None, is_on }
    }

    fn show(&mut self, totals: &Totals) {
        if !self.is_on || self.shown.is_some_and(|shown| shown.elapsed() < SHOWN_EVERY) {
            return;
        }
        let rate = totals.lines as f64 / self.begun.elapsed().as_secs_f64();
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "\r{} lines, {rate:.0} a second, {} not accepted\x1b[K", totals.lines, totals.failed);
        let _ = stderr.flush();
        self.shown = Some(Instant::now());
    }

    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

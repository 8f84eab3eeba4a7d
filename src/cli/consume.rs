//! `minutely consume`: be a worker.

use std::time::SystemTime;

use serde_json::json;

use super::counts::is_failure_transport;
use super::output::{self, Format, FormatArg};
use super::signals::Signals;
use super::{App, End, Failure, Result, known};
use crate::config::{ConsumeOptions, Verbosity, WORKER_QUIET, WORKER_VERBOSE};
use crate::error::Error;
use crate::supervisor::{HeldSlot, adopt_slot};
use crate::worker::{InFlightFile, StopReason, StopToken, WorkerSummary, owner};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The first transport has priority: it is asked first, and again after each message. Quick messages are taken in \
batches, and then it is asked again after each batch. A batch is about 20 ms of work, and at most 200 messages.

On a failure transport, messages that fail all their retries again stay there, parked for a day. A worker that is \
started by hand and consumes only failure transports first tries each parked message once.

A worker finishes its current messages before it stops. It stops at a limit, on SIGTERM, SIGINT or SIGQUIT (or as \
`stop_worker_on_signals` says), when a handler asks for it, or when `minutely stop-workers` does. A second signal ends it at once; its current messages are then delivered again, \
by the supervisor's next tick where there is one, and otherwise after the transport's `redeliver_timeout` (AMQP: at once).

It stops with exit code 3 and leaves the messages where they are if there are no handlers at all, or none for any of \
the first ten messages of a transport: those messages are another application's.

With --format=json it prints its counts at the end, as one JSON object. Otherwise they are in the log.

Examples:
  minutely consume prio_high prio_normal
  minutely consume prio_low --time-limit=60 --sleep=20 --memory-limit=128M
  minutely consume prio_high --limit=10 -v
  minutely consume failed --time-limit=60 -v
  minutely consume --all --exclude-receivers=failed")]
pub(super) struct Args {
    /// The transports to consume, the most important first
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "TRANSPORT")]
    transports: Vec<String>,
    /// Consume all transports that can be consumed, in the order of the configuration, failure transports last
    #[arg(long)]
    all: bool,
    /// With --all: not this transport; may be given more than once
    #[arg(long, value_name = "TRANSPORT")]
    exclude_receivers: Vec<String>,
    #[command(flatten)]
    options: ConsumeOptions,
    #[command(flatten)]
    format: FormatArg,
    #[arg(long = &WORKER_QUIET[2..], hide = true)]
    worker_quiet: bool,
    #[arg(long = &WORKER_VERBOSE[2..], hide = true, value_name = "N", default_value_t = 0)]
    worker_verbose: u8,
}

impl Args {
    /// How much it prints: as the parser around it says, or as the supervisor says.
    pub(super) fn verbosity(&self, mut global: Verbosity) -> Verbosity {
        global.quiet |= self.worker_quiet;
        global.verbose = global.verbose.max(self.worker_verbose);
        global
    }

    /// How many threads it takes besides the first, where handlers are code: one for the heartbeat, and one more where
    /// handlers run beside each other.
    pub(super) fn threads(&self) -> usize {
        if self.options.concurrency > 1 || self.options.keepalive.is_some() { 2 } else { 1 }
    }
}

pub(super) async fn run(app: &App, args: &Args) -> Result<End> {
    let transports = transports(app, args)?;
    // Held until the process ends. Programs that handlers start must not hold it, or they would keep the slot taken.
    let slot = adopt_slot(&app.config.state_dir);
    if !app.handles_messages() {
        return Ok(stuck(slot.as_ref(), crate::app::NO_HANDLER));
    }
    let started = SystemTime::now();
    let mut signals = Signals::listen_for(&app.config.stop_signals)?;
    let mut stop = StopToken::new();
    // A person who asks for what failed, after mending what was wrong, as a rule; a supervisor asks every minute.
    let resume = slot.is_none() && transports.iter().all(|name| is_failure_transport(app, name));
    let in_flight = slot.as_ref().map(|slot| InFlightFile::new(slot.in_flight_path()));
    let worker =
        app.new_worker(&transports, args.options.clone()).map_err(usage)?.resuming(resume).recording(in_flight);

    tokio::spawn(app.stop_broadcast.clone().watch(stop.clone(), started));
    let at_signal = stop.clone();
    tracing::info!(transports = transports.join(", "), "consuming; Ctrl-C stops");
    let owner = owner();
    let result = {
        let run = worker.run(&owner, &mut stop);
        tokio::pin!(run);
        let mut signalled = false;
        loop {
            tokio::select! {
                result = &mut run => break result,
                () = signals.next() => {
                    if std::mem::replace(&mut signalled, true) {
                        return Err(Failure::Failed(stopped_at_once(app, &transports, &at_signal, slot.is_some())));
                    }
                    at_signal.request(StopReason::OsSignal);
                }
            }
        }
    };
    let summary = result?;
    tracing::info!(handled = summary.handled, failed = summary.failed, "stopped: {}", summary.reason);
    if args.format.format == Format::Json {
        let WorkerSummary { handled, failed, reason, .. } = &summary;
        output::json(
            &json!({ "handled": handled, "failed": failed, "reason": reason, "message": reason.to_string() }),
        )?;
    }
    let end = summary.problem.map_or(End::Well, |why| stuck(slot.as_ref(), &why));
    drop(slot);
    Ok(end)
}

/// What a worker leaves that a second signal ends, and when that goes on. `is_supervised`: a supervisor knows its messages.
fn stopped_at_once(app: &App, transports: &[String], stop: &StopToken, is_supervised: bool) -> String {
    const STOPPED: &str = "stopped at once";
    if stop.has_finished() {
        return format!(
            "{STOPPED}; all its messages were done, and hooks or programs that had not ended yet were ended"
        );
    }
    if is_supervised {
        return format!("{STOPPED}; its current messages are delivered again by the supervisor's next tick");
    }
    let mut times: Vec<(String, String)> = Vec::new();
    for name in transports {
        let Ok(transport) = app.transports.target(name) else { continue };
        // A broker that notices needs none.
        let after = transport.keeping_alive.as_ref().map(|keeping| keeping.redeliver_timeout());
        let when = after.map_or("at once".to_owned(), |after| format!("after redeliver_timeout ({after:?})"));
        match times.iter_mut().find(|(_, known)| *known == when) {
            Some((names, _)) => names.push_str(&format!(", {name}")),
            None => times.push((name.clone(), when)),
        }
    }
    let when: Vec<String> = match times.as_slice() {
        [(_, when)] => vec![when.clone()],
        several => several.iter().map(|(names, when)| format!("{when} from {names}")).collect(),
    };
    format!("{STOPPED}; its current messages are delivered again {}", when.join(", "))
}

/// The transports to consume, all of which exist.
fn transports(app: &App, args: &Args) -> Result<Vec<String>> {
    // clap does not say so where transports are named, because they exclude --all.
    if !args.all && !args.exclude_receivers.is_empty() {
        return Err(Failure::Usage("--exclude-receivers goes with --all, which stands for the transports".to_owned()));
    }
    for name in args.transports.iter().chain(&args.exclude_receivers) {
        known(app, name)?;
    }
    if !args.all {
        return Ok(args.transports.clone());
    }
    let all = app.consumable(&args.exclude_receivers).map_err(Error::from)?;
    if all.is_empty() {
        let why = if args.exclude_receivers.is_empty() { "there is no transport" } else { "no transport is left" };
        return Err(Failure::Usage(format!("{why} that a worker could consume")));
    }
    Ok(all)
}

fn usage(error: Error) -> Failure {
    match error {
        Error::Queues(text) => Failure::Usage(text),
        other => other.into(),
    }
}

/// Says why this worker can do nothing, also to the supervisor, which would otherwise start another one at once.
fn stuck(slot: Option<&HeldSlot>, why: &str) -> End {
    tracing::error!("{why}");
    if let Some(slot) = slot {
        slot.refuse(why);
    }
    End::Stuck
}

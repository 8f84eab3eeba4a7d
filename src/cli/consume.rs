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

A worker finishes its current messages before it stops. It stops at a limit, on SIGTERM, SIGINT or SIGQUIT, or when \
`minutely stop-workers` asks. A second signal ends it at once; its current messages are then delivered again.

It stops with exit code 3 and leaves the messages where they are if there are no handlers at all, or none for any of \
the first ten messages of a transport: those messages are another application's.

With --format=json it prints its counts at the end, as one JSON object. Otherwise they are in the log.

Examples:
  minutely consume prio_high prio_normal
  minutely consume prio_low --time-limit=60 --sleep=20 --memory-limit=128M
  minutely consume prio_high --limit=10 -v
  minutely consume failed --time-limit=60 -v")]
pub(super) struct Args {
    /// The transports to consume, the most important first
    #[arg(required = true, value_name = "TRANSPORT")]
    transports: Vec<String>,
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
    for name in &args.transports {
        known(app, name)?;
    }
    // Held until the process ends. Programs that handlers start must not hold it, or they would keep the slot taken.
    let slot = adopt_slot(&app.config.state_dir);
    if !app.handles_messages() {
        return Ok(stuck(slot.as_ref(), crate::app::NO_HANDLER));
    }
    let started = SystemTime::now();
    let mut signals = Signals::listen()?;
    let mut stop = StopToken::new();
    // A person who asks for what failed, after mending what was wrong, as a rule; a supervisor asks every minute.
    let resume = slot.is_none() && args.transports.iter().all(|name| is_failure_transport(app, name));
    let in_flight = slot.as_ref().map(|slot| InFlightFile::new(slot.in_flight_path()));
    let worker =
        app.new_worker(&args.transports, args.options.clone()).map_err(usage)?.resuming(resume).recording(in_flight);

    tokio::spawn(app.stop_broadcast.clone().watch(stop.clone(), started));
    let at_signal = stop.clone();
    tracing::info!(transports = args.transports.join(", "), "consuming; Ctrl-C stops");
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
                        return Err(Failure::Failed("stopped at once; its current messages are delivered again".to_owned()));
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

//! `minutely consume`: be a worker.

use std::time::{Duration, SystemTime};

use clap::Parser;
use serde_json::json;

use super::counts::is_failure_transport;
use super::output::{self, Format, FormatArg};
use super::signals::Signals;
use super::{App, End, Failure, Result, known};
use crate::config::{Config, Problem, parse_duration};
use crate::error::Error;
use crate::supervisor::{HeldSlot, adopt_slot};
use crate::worker::{InFlightFile, Limits, Options, Stop, StopReason, Summary, Worker, owner};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The first transport has priority: it is asked first, and again after each message. Quick messages are taken in batches, \
so that this holds to within a batch: 20 ms of work, as far as the last messages tell, and at most 200 messages.

On a failure transport, messages that fail again after their retries there stay, parked for a day. A worker that is \
started by hand and consumes only failure transports first tries each parked message once.

A worker finishes the message in hand before it stops: at a limit, at SIGTERM, SIGINT or SIGQUIT, or when \
`minutely stop-workers` asks. A second signal ends it at once; what it had in hand is then delivered again.

It stops with exit code 3, and leaves the messages where they are, when there is no handler at all, or when the first ten \
messages of a transport are all such that nothing here can handle them: those are another application's.

With --format=json it prints its counts at the end, as one JSON object; else they are in the log.

Examples:
  minutely consume prio_high prio_normal
  minutely consume prio_low --time-limit=60 --sleep=20 --memory-limit=128M
  minutely consume prio_high --limit=10 -v
  minutely consume failed --time-limit=60 -v")]
pub(super) struct Args {
    /// What to consume, in order of priority
    #[arg(required = true, value_name = "TRANSPORT")]
    transports: Vec<String>,
    /// Of transports with several queues (amqp:), consume this one alone; may be given more than once
    #[arg(long, value_name = "QUEUE")]
    queues: Vec<String>,
    /// Stop after this many messages
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Stop after this many failures
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    failure_limit: Option<u64>,
    /// Stop when the process uses more memory than this: bytes, or 128M, 1G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    memory_limit: Option<u64>,
    /// Stop after this long: seconds, or 500ms, 5m
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// Wait this long before asking again when nothing waits: seconds, or 500ms
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = parse_sleep)]
    sleep: Duration,
    /// Handle up to this many messages at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    concurrency: u16,
    /// Keep messages that take long from being delivered again: tell the transport every so often that they are still
    /// being handled (5 seconds when no time is given)
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "5", require_equals = true, value_parser = parse_sleep)]
    keepalive: Option<Duration>,
    /// Move messages that nothing here can handle to the failure transport, even when there is nothing else
    #[arg(long)]
    move_unhandleable: bool,
    /// Accepted for the sake of Symfony's worker options; there is no container to reset
    #[arg(long, hide = true)]
    no_reset: bool,
    #[command(flatten)]
    format: FormatArg,
}

impl Args {
    /// How many threads it takes besides the first, where handlers are code: one for the heartbeat, and one more where
    /// handlers run beside each other.
    pub(super) fn threads(&self) -> usize {
        if self.concurrency > 1 || self.keepalive.is_some() { 2 } else { 1 }
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
    let mut stop = Stop::new();
    let worker = Worker::new(
        &app.config,
        app.bus.clone(),
        &app.narrowed_to(&args.transports, &args.queues).map_err(usage)?,
        app.heartbeats.clone(),
        options(app, args, slot.as_ref()),
    )?;

    tokio::spawn(app.stop_signal.clone().watch(stop.clone(), started));
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
                        return Err(Failure::Failed("stopped at once; what was in hand is delivered again".to_owned()));
                    }
                    at_signal.request(StopReason::Signal);
                }
            }
        }
    };
    let summary = result?;
    tracing::info!(handled = summary.handled, failed = summary.failed, "stopped: {}", summary.reason);
    if args.format.format == Format::Json {
        let Summary { handled, failed, reason, .. } = &summary;
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

fn options(app: &App, args: &Args, slot: Option<&HeldSlot>) -> Options {
    Options {
        // A person who asks for what failed, after mending what was wrong, as a rule; a supervisor asks every minute.
        resume: slot.is_none() && args.transports.iter().all(|name| is_failure_transport(app, name)),
        transports: args.transports.clone(),
        limits: Limits {
            messages: args.limit,
            failures: args.failure_limit,
            memory: args.memory_limit,
            time: args.time_limit,
        },
        sleep: args.sleep,
        concurrency: args.concurrency.into(),
        keepalive: args.keepalive,
        move_unhandleable: args.move_unhandleable,
        in_flight: slot.map(|slot| InFlightFile::new(slot.in_flight_path())),
    }
}

/// What is wrong with the options of workers that are this program's own.
pub(super) fn check_workers(config: &Config) -> Vec<Problem> {
    #[derive(Parser)]
    #[command(no_binary_name = true, disable_help_flag = true)]
    struct Only {
        #[command(flatten)]
        global: super::GlobalArgs,
        #[command(flatten)]
        args: Args,
    }
    let own = config.workers.iter().filter(|worker| worker.command.is_none());
    own.filter_map(|worker| {
        let arguments = worker.transports.iter().chain(&worker.options);
        let error = Only::try_parse_from(arguments).err()?;
        let text = error.to_string();
        let text: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim).collect();
        let text = text.join(" ").trim().trim_start_matches("error: ").to_owned();
        Some(Problem::error(format!("{}.options", worker.path), format!("{text}; `minutely consume --help` lists all")))
    })
    .collect()
}

/// A size in bytes: `1000`, `512K`, `128M`, `1G`, as Symfony reads it (a kilobyte has 1024).
fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches(['k', 'm', 'g']);
    let factor = match lower.trim_end_matches('b').bytes().last() {
        Some(b'k') => 1 << 10,
        Some(b'm') => 1 << 20,
        Some(b'g') => 1 << 30,
        _ => 1,
    };
    let size = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).filter(|size| *size > 0);
    size.ok_or_else(|| "a size is a number of bytes, or a number with K, M or G: 128M".to_owned())
}

/// A worker that never sleeps would keep a processor busy doing nothing.
fn parse_sleep(text: &str) -> Result<Duration, String> {
    let sleep = parse_duration(text).map_err(|error| error.to_string())?;
    if sleep < Duration::from_millis(1) { Err("at least 1ms".to_owned()) } else { Ok(sleep) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_symfony_reads_them() {
        for (text, bytes) in [("1000", 1000), ("512k", 512 << 10), ("128M", 128 << 20), ("1GB", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "0", "1T", "99999999999G", "1.5M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

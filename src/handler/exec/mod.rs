//! A program as a handler: it gets the body on standard input and the metadata in environment variables, and its exit
//! code is the result.

mod group;
mod output;

use std::collections::HashSet;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{self, Either};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use super::{Handler, HandlerContext, HandlerError, Verdict};
use crate::config::ExecConfig;
use crate::message::{Envelope, Headers, ReceivedStamp, RedeliveryStamp, TransportMessageIdStamp, headers_to_json};
use crate::threads;

pub(crate) use group::Group;
pub(crate) use output::Output;

/// Variables that are for this process alone. A handler that runs minutely itself must not mistake the worker's slot for
/// its own, nor a request that was admitted here.
const WITHHELD: [&str; 3] = ["MINUTELY_SLOT", "MINUTELY_SLOT_FD", "MINUTELY_CGI_REQUEST"];

/// The message is invalid and will stay invalid (`EX_DATAERR` in `sysexits.h`).
const UNRECOVERABLE: i32 = 65;

/// A temporary failure (`EX_TEMPFAIL` in `sysexits.h`).
const TRY_AGAIN: i32 = 75;

/// A shell's exit code if the program that it ran was ended by SIGTERM or SIGKILL: 128 plus the signal.
const TERMINATED: i32 = 143;
const KILLED: i32 = 137;

/// How long output is still read after the program has ended. What it printed is there at once, but processes that it
/// left in the background may keep the pipe open for ever.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long to wait if the system refuses to start a process, because there are too many processes or open files. The
/// pause between two attempts doubles, from the first to the longest.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The largest size of `MINUTELY_HEADERS`, in bytes. Linux refuses variables of 128 KiB or more, and all variables
/// share their space with the arguments.
const MAX_HEADERS: usize = 96 * 1024;

/// How many characters of the command line are part of the handler's name.
const MAX_NAME: usize = 100;

/// Runs a program for each message.
pub(crate) struct Exec {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    timeout: Option<Duration>,
    dir: PathBuf,
}

impl Exec {
    /// A handler that runs the program in the folder `dir`. A program with a `/` in its name is a path relative to
    /// `dir`; any other is looked up in `PATH`.
    pub(crate) fn new(config: &ExecConfig, dir: &Path) -> Self {
        let mut words = config.exec.iter().cloned();
        let program = words.next().unwrap_or_default();
        Self {
            name: name_of(&config.exec),
            program: if program.contains('/') { dir.join(program) } else { program.into() },
            arguments: words.collect(),
            timeout: config.timeout,
            dir: dir.to_owned(),
        }
    }

    /// Starts the program. Waits if the system refuses a process (or an open file): that is not the message's fault.
    async fn start(&self, envelope: &Envelope) -> Result<Group, HandlerError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut pause = FIRST_PAUSE;
        loop {
            let refused = match Group::start(&mut self.command(envelope)) {
                Err(error) if threads::is_refusal(&error) && Instant::now() < deadline => error,
                started => return started.map_err(|error| self.not_started(&error)),
            };
            if pause == FIRST_PAUSE {
                let (handler, advice) = (&self.name, threads::advice(&refused));
                tracing::warn!(handler, "waiting for a process for the handler{advice}");
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn not_started(&self, error: &io::Error) -> HandlerError {
        let verdict = match error.kind() {
            // The message is part of the environment. If that is refused, a retry does not help.
            io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidInput => Verdict::Unrecoverable,
            _ if threads::is_refusal(error) => Verdict::NotBegun,
            _ => Verdict::Retry,
        };
        let (program, dir, advice) = (self.program.display(), self.dir.display(), threads::advice(error));
        let right = threads::advice_for_program(error);
        failure("NotStarted", 0, verdict, format!("\"{program}\" cannot be started in {dir}: {error}{advice}{right}"))
    }

    fn command(&self, envelope: &Envelope) -> Command {
        let received = envelope.last::<ReceivedStamp>();
        let retries = envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count);
        let mut command = Command::new(&self.program);
        for variable in WITHHELD {
            command.env_remove(variable);
        }
        command
            .args(&self.arguments)
            .current_dir(&self.dir)
            .env("MINUTELY_MESSAGE_TYPE", envelope.message_type())
            .env("MINUTELY_MESSAGE_ID", message_id(envelope))
            .env("MINUTELY_TRANSPORT", received.map(|stamp| stamp.transport_name).unwrap_or_default())
            .env("MINUTELY_ATTEMPT", retries.saturating_add(1).to_string())
            .env("MINUTELY_HEADERS", headers_for_environment(envelope.json_headers()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program for one message.
    async fn run(&self, envelope: &Envelope) -> Result<(), HandlerError> {
        let (id, message_type) = (message_id(envelope), envelope.message_type());
        let output = Output::new(|line: &str| tracing::info!(id, message_type, handler = self.name, "{line}"));
        let mut group = self.start(envelope).await?;
        let child = group.child();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());

        // Concurrently: a program may print before it has read everything.
        let streams = pin!(future::join3(feed(stdin, envelope.body()), output.read(stdout), output.read(stderr)));
        let end = pin!(group.wait(self.timeout));
        let status = match future::select(end, streams).await {
            Either::Left((status, streams)) => {
                let _ = timeout(OUTPUT_TIMEOUT, streams).await;
                status?
            }
            Either::Right((_, end)) => end.await?,
        };
        match status {
            Some(status) => result_of(status, &output.last_lines()),
            None => Err(timed_out(self.timeout.unwrap_or_default(), &output.last_lines())),
        }
    }
}

#[async_trait]
impl Handler for Exec {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        self.run(context.envelope()).await.map(|()| Value::Null)
    }
}

/// Writes the body to the program's standard input. A program need not read all of it.
async fn feed(stdin: Option<ChildStdin>, body: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(body).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::warn!(%error, "the body could not be written to the program's standard input");
    }
}

/// What the program's exit status means for the message.
fn result_of(status: ExitStatus, output: &str) -> Result<(), HandlerError> {
    let (what, verdict) = match status.code() {
        Some(0) => return Ok(()),
        Some(UNRECOVERABLE) => (format!("exit code {UNRECOVERABLE}, which asks for no retry"), Verdict::Unrecoverable),
        Some(TRY_AGAIN) => (format!("exit code {TRY_AGAIN}, which asks for a retry"), Verdict::RetryAlways(None)),
        // A program may also exit with these by itself, so they count only if the worker is asked to stop.
        Some(code @ (TERMINATED | KILLED)) => (format!("exit code {code}"), Verdict::Interrupted { if_stopping: true }),
        Some(code) => (format!("exit code {code}"), Verdict::Retry),
        None => (format!("killed by {}", signal_name(status)), killed(status)),
    };
    Err(failure("Failed", status.code().unwrap_or_default(), verdict, with_output(what, output)))
}

/// The verdict for a program that was killed by others (and not by its timeout). SIGTERM says nothing about the message
/// at first. SIGKILL may come from the kernel, because handling the message took too much memory.
fn killed(status: ExitStatus) -> Verdict {
    match status.signal().map(Signal::try_from) {
        Some(Ok(Signal::SIGTERM)) => Verdict::Interrupted { if_stopping: false },
        Some(Ok(Signal::SIGKILL)) => Verdict::Interrupted { if_stopping: true },
        _ => Verdict::Retry,
    }
}

fn timed_out(limit: Duration, output: &str) -> HandlerError {
    failure("TimedOut", 0, Verdict::Retry, with_output(format!("timed out after {limit:?}"), output))
}

fn failure(class: &str, code: i32, verdict: Verdict, message: String) -> HandlerError {
    HandlerError { verdict, class: format!("minutely::exec::{class}"), code: code.into(), message }
}

fn with_output(what: String, output: &str) -> String {
    if output.is_empty() { what } else { format!("{what}: {output}") }
}

fn signal_name(status: ExitStatus) -> String {
    let number = status.signal().unwrap_or_default();
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// The message's id on the transport that it was received from; empty if it is handled during its dispatch.
fn message_id(envelope: &Envelope) -> String {
    let stamp = envelope.last::<ReceivedStamp>().and_then(|_| envelope.last::<TransportMessageIdStamp>());
    match stamp.map(|stamp| stamp.id) {
        None => String::new(),
        Some(serde_json::Value::String(id)) => id,
        Some(id) => id.to_string(),
    }
}

/// The headers as JSON. If they are too large for the environment (usually because of PHP's stack traces), the largest
/// are left out: a handler can do without them, but not without the message.
fn headers_for_environment(mut headers: Headers) -> String {
    let json = headers_to_json(&headers);
    if json.len() <= MAX_HEADERS {
        return json;
    }
    let alone = |name: &str, value: &str| headers_to_json(&Headers::from([(name, value)])).len();
    let mut sizes: Vec<(usize, String)> =
        headers.iter().map(|(name, value)| (alone(name, value), name.to_owned())).collect();
    sizes.sort_by(|a, b| b.cmp(a));
    let mut length = json.len();
    let mut left_out = HashSet::new();
    for (size, name) in sizes {
        if length <= MAX_HEADERS {
            break;
        }
        if left_out.len() < 3 {
            tracing::warn!(header = name, "left out of MINUTELY_HEADERS, which would be too large");
        }
        // `size` has two braces. One makes up for the comma; the other is not part of the whole.
        length -= size - 1;
        left_out.insert(name);
    }
    if left_out.len() > 3 {
        tracing::warn!(headers = left_out.len(), "headers left out of MINUTELY_HEADERS in total");
    }
    headers.retain(|name, _| !left_out.contains(name));
    headers_to_json(&headers)
}

/// The command line. If it is too long, it is cut, and a checksum keeps it distinct.
fn name_of(words: &[String]) -> String {
    let line = shell_words::join(words);
    let shown = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match shown.char_indices().nth(MAX_NAME) {
        None => format!("exec {shown}"),
        Some((end, _)) => format!("exec {}… ({:08x})", &shown[..end], checksum(line.as_bytes())),
    }
}

/// 32-bit FNV-1a. The standard library's hash may change between versions, and the names of handlers in queued messages
/// must not.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests;

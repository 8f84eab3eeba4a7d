//! A program as a handler: the body on its standard input, the facts in its environment, its exit code the outcome.

mod group;
mod output;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{self, Either};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use super::{Handler, HandlerError, Verdict};
use crate::config::ExecConfig;
use crate::message::{Envelope, Headers, ReceivedStamp, RedeliveryStamp, TransportMessageIdStamp, headers_to_json};

use group::Group;
use output::Output;

/// A worker's own affairs: a program it runs that is minutely too must not take the worker's slot for its own.
const WITHHELD: [&str; 2] = ["MINUTELY_SLOT", "MINUTELY_SLOT_FD"];

/// The input was bad, and will be bad again (`EX_DATAERR` of `sysexits.h`).
const UNRECOVERABLE: i32 = 65;

/// Something passing is in the way (`EX_TEMPFAIL` of `sysexits.h`).
const TRY_AGAIN: i32 = 75;

/// How long output is read on when the program has ended. What it printed is there at once; what it has left in the
/// background may hold the pipe open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How large `MINUTELY_HEADERS` may become. Linux takes no variable of 128 KiB or more, and all of them together share
/// their room with the arguments.
const HEADERS_MOST: usize = 96 * 1024;

/// How many characters of a command line are part of the handler's name.
const NAME_MOST: usize = 100;

/// Runs a program for each message.
pub struct Exec {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    timeout: Option<Duration>,
    dir: PathBuf,
}

impl Exec {
    /// A handler that runs the program in `dir`. A program with a `/` in its name is a path that starts there too; any
    /// other is looked up in `PATH`.
    pub fn new(config: &ExecConfig, dir: &Path) -> Self {
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

    fn start(&self, envelope: &Envelope) -> Result<Group, HandlerError> {
        Group::start(&mut self.command(envelope)).map_err(|error| {
            // The message is in the environment; where that is refused, no retry will make it acceptable.
            let never = matches!(error.kind(), io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidInput);
            let verdict = if never { Verdict::Unrecoverable } else { Verdict::Retry };
            let (program, dir) = (self.program.display(), self.dir.display());
            failure("NotStarted", 0, verdict, format!("\"{program}\" cannot be started in {dir}: {error}"))
        })
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
            .env("MINUTELY_HEADERS", headers_for_environment(envelope.encode().headers))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

#[async_trait]
impl Handler for Exec {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, envelope: &Envelope) -> Result<(), HandlerError> {
        let (id, message_type) = (message_id(envelope), envelope.message_type());
        let output = Output::new(|line: &str| tracing::info!(id, message_type, handler = self.name, "{line}"));
        let mut group = self.start(envelope)?;
        let child = group.child();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());

        // All at once: a program may print before it has read everything.
        let talk = pin!(future::join3(feed(stdin, envelope.body()), output.read(stdout), output.read(stderr)));
        let end = pin!(group.wait(self.timeout));
        let status = match future::select(end, talk).await {
            Either::Left((status, talk)) => {
                let _ = timeout(LAST_WORDS, talk).await;
                status?
            }
            Either::Right((_, end)) => end.await?,
        };
        match status {
            Some(status) => judge(status, &output.last_lines()),
            None => Err(timed_out(self.timeout.unwrap_or_default(), &output.last_lines())),
        }
    }
}

/// Gives the program the body. One that does not want to read it all is free not to.
async fn feed(stdin: Option<ChildStdin>, body: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(body).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::warn!(%error, "the program could not be given the whole body");
    }
}

/// What the end of the program means for the message.
fn judge(status: ExitStatus, output: &str) -> Result<(), HandlerError> {
    let (what, verdict) = match status.code() {
        Some(0) => return Ok(()),
        Some(UNRECOVERABLE) => (format!("exit code {UNRECOVERABLE}, which asks for no retry"), Verdict::Unrecoverable),
        Some(TRY_AGAIN) => (format!("exit code {TRY_AGAIN}, which asks for a retry"), Verdict::RetryAlways(None)),
        Some(code) => (format!("exit code {code}"), Verdict::Retry),
        None => (format!("killed by {}", signal_name(status)), Verdict::Retry),
    };
    Err(failure("Failed", status.code().unwrap_or_default(), verdict, with_output(what, output)))
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

/// The message's id on the transport it was received from; empty when it is handled during its dispatch.
fn message_id(envelope: &Envelope) -> String {
    let stamp = envelope.last::<ReceivedStamp>().and_then(|_| envelope.last::<TransportMessageIdStamp>());
    match stamp.map(|stamp| stamp.id) {
        None => String::new(),
        Some(serde_json::Value::String(id)) => id,
        Some(id) => id.to_string(),
    }
}

/// The headers as JSON. Where there is too much of them for the environment (PHP's stack traces, as a rule), the largest
/// are left out: a program can do without them, and not without the message.
fn headers_for_environment(mut headers: Headers) -> String {
    loop {
        let json = headers_to_json(&headers);
        let largest = headers.iter().max_by_key(|(_, value)| value.len()).map(|(name, _)| name.clone());
        match largest {
            Some(name) if json.len() > HEADERS_MOST => {
                tracing::warn!(header = name, "left out of MINUTELY_HEADERS, which would be too large");
                headers.shift_remove(&name);
            }
            _ => return json,
        }
    }
}

/// The command line, as far as it fits; what does not fit stays distinct by a checksum.
fn name_of(words: &[String]) -> String {
    let line = shell_words::join(words);
    let shown = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match shown.char_indices().nth(NAME_MOST) {
        None => format!("exec {shown}"),
        Some((end, _)) => format!("exec {}… ({:08x})", &shown[..end], checksum(line.as_bytes())),
    }
}

/// 32-bit FNV-1a. The standard library's hash may change with its version, and would take the names of handlers in
/// queued messages with it.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests;

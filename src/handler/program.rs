//! Programs of handlers: how they are named and started, and what their end means for a message.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::exec::Group;
use super::{CancellationToken, HandlerError, Verdict};
use crate::threads;

/// Variables that are for this process alone. A handler that runs minutely itself must not mistake the worker's slot for
/// its own, nor a request that was admitted here. Each message belongs to its own trace, or to none.
const WITHHELD: [&str; 5] = ["MINUTELY_SLOT", "MINUTELY_SLOT_FD", "MINUTELY_CGI_REQUEST", "TRACEPARENT", "TRACESTATE"];

/// The message is invalid and will stay invalid (`EX_DATAERR` in `sysexits.h`).
const UNRECOVERABLE: i32 = 65;

/// A temporary failure (`EX_TEMPFAIL` in `sysexits.h`).
const TRY_AGAIN: i32 = 75;

/// The message failed, and the worker is to stop: the first code after those of `sysexits.h`, which neither shells nor the
/// usual languages exit with by themselves.
const STOP_WORKER: i32 = 79;

/// A shell's exit code if the program that it ran was ended by SIGTERM or SIGKILL: 128 plus the signal.
const TERMINATED: i32 = 143;
const KILLED: i32 = 137;

/// How long to wait if the system refuses to start a process, because there are too many processes or open files. The
/// pause between two attempts doubles, from the first to the longest.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How many characters of the command line are part of the handler's name.
const MAX_NAME: usize = 100;

/// A program that handles messages.
pub(crate) struct Program {
    /// The kind of handler: `exec`, for example.
    kind: &'static str,
    name: String,
    file: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
}

impl Program {
    /// The program and its arguments, to be run in the folder `dir`. A program with a `/` in its name is a path relative to
    /// `dir`; any other is looked up in `PATH`.
    pub(crate) fn new(kind: &'static str, words: &[String], dir: &Path) -> Self {
        let (name, mut words) = (name_of(kind, words), words.iter().cloned());
        let file = words.next().unwrap_or_default();
        let file = if file.contains('/') { dir.join(file) } else { file.into() };
        Self { kind, name, file, arguments: words.collect(), dir: dir.to_owned() }
    }

    /// The handler's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The command that starts it, with pipes to it and from it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        for variable in WITHHELD {
            command.env_remove(variable);
        }
        command
            .args(&self.arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it. Waits if the system refuses a process (or an open file), until the worker is asked to stop: that is not the
    /// message's fault.
    pub(crate) async fn start(
        &self,
        command: impl Fn() -> Command,
        cancellation: &CancellationToken,
    ) -> Result<Group, HandlerError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut pause = FIRST_PAUSE;
        loop {
            let refused = match Group::start(&mut command()) {
                Err(error)
                    if threads::is_refusal(&error) && Instant::now() < deadline && !cancellation.is_cancelled() =>
                {
                    error
                }
                started => return started.map_err(|error| self.not_started(&error)),
            };
            if pause == FIRST_PAUSE {
                let (handler, advice) = (&self.name, threads::advice(&refused));
                tracing::warn!(handler, "waiting for a process for the handler{advice}");
            }
            // One that is cancelled tries once more, and then says what the system has refused.
            let _ = timeout(pause.mul_f64(0.5 + fastrand::f64()), cancellation.cancelled()).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn not_started(&self, error: &io::Error) -> HandlerError {
        let verdict = match error.kind() {
            // The message is part of the command. If that is refused, a retry does not help.
            io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidInput => Verdict::Unrecoverable,
            _ if threads::is_refusal(error) => Verdict::NotBegun,
            _ => Verdict::Retry,
        };
        let (program, dir, advice) = (self.file.display(), self.dir.display(), threads::advice(error));
        let right = threads::advice_for_program(error);
        self.failure("NotStarted", verdict, format!("\"{program}\" cannot be started in {dir}: {error}{advice}{right}"))
    }

    /// A failure of this kind of handler.
    pub(super) fn failure(&self, class: &str, verdict: Verdict, message: String) -> HandlerError {
        let class = format!("minutely::{}::{class}", self.kind);
        HandlerError { verdict, class, ..HandlerError::failed(message) }
    }

    /// The failure that this end of the program means. `None` if it has ended well.
    pub(crate) fn failure_of(&self, status: ExitStatus, output: &str) -> Option<HandlerError> {
        let (what, verdict) = match status.code() {
            Some(0) => return None,
            Some(UNRECOVERABLE) => {
                (format!("exit code {UNRECOVERABLE}, which asks for no retry"), Verdict::Unrecoverable)
            }
            Some(TRY_AGAIN) => (format!("exit code {TRY_AGAIN}, which asks for a retry"), Verdict::RetryAlways(None)),
            // A program may also exit with these by itself, so they count only if the worker is asked to stop.
            Some(code @ (TERMINATED | KILLED)) => {
                (format!("exit code {code}"), Verdict::Interrupted { if_stopping: true })
            }
            Some(STOP_WORKER) => (format!("exit code {STOP_WORKER}, which stops the worker"), Verdict::Retry),
            Some(code) => (format!("exit code {code}"), Verdict::Retry),
            None => (format!("killed by {}", signal_name(status)), killed(status)),
        };
        let failure = self.failure("Failed", verdict, with_output(what, output));
        let code = status.code().unwrap_or_default();
        Some(HandlerError { code: code.into(), stops_worker: code == STOP_WORKER, ..failure })
    }

    /// The failure of a program that took too long.
    pub(super) fn timed_out(&self, limit: Duration, output: &str) -> HandlerError {
        self.failure("TimedOut", Verdict::Retry, with_output(format!("timed out after {limit:?}"), output))
    }
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

/// What happened, with the last lines that the program has printed.
pub(crate) fn with_output(what: String, output: &str) -> String {
    if output.is_empty() { what } else { format!("{what}: {output}") }
}

fn signal_name(status: ExitStatus) -> String {
    let number = status.signal().unwrap_or_default();
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// The command line. If it is too long, it is cut, and a checksum keeps it distinct.
fn name_of(kind: &str, words: &[String]) -> String {
    let line = shell_words::join(words);
    let shown = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match shown.char_indices().nth(MAX_NAME) {
        None => format!("{kind} {shown}"),
        Some((end, _)) => format!("{kind} {}… ({:08x})", &shown[..end], checksum(line.as_bytes())),
    }
}

/// 32-bit FNV-1a. The standard library's hash may change between versions, and the names of handlers in queued messages
/// must not.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_distinct() {
        let name = |words: &[&str]| name_of("exec", &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(name(&["php", "bin/send email.php"]), "exec php 'bin/send email.php'");
        assert_eq!(name(&["sh", "-c", "a &&\n  b"]), "exec sh -c 'a && b'");
        let long = "é".repeat(300);
        let (one, other) = (name(&["sh", "-c", &format!("{long}1")]), name(&["sh", "-c", &format!("{long}2")]));
        assert_ne!(one, other);
        assert!(one.chars().count() < 120, "{one}");
        assert_eq!(checksum(b"foobar"), 0xbf9c_f968, "as published for FNV-1a");
    }
}

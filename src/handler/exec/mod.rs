//! A program as a handler: it gets the body on standard input and the metadata in environment variables, and its exit
//! code is the result.

mod group;
mod output;

use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{self, Either};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use super::metadata::{Metadata, headers_within};
use super::program::Program;
use super::stream::protocol;
use super::{BatchHandler, Handler, HandlerContext, HandlerError};
use crate::config::ExecConfig;
use crate::message::{Envelope, TraceContext};

pub(crate) use group::{GRACE, Group};
pub(crate) use output::Output;

/// How long output is still read after the program has ended. What it printed is there at once, but processes that it
/// left in the background may keep the pipe open for ever.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// The largest size of `MINUTELY_HEADERS`, in bytes. Linux refuses variables of 128 KiB or more, and all variables
/// share their space with the arguments.
const MAX_HEADERS: usize = 96 * 1024;

/// Runs a program for each message.
pub(crate) struct Exec {
    program: Program,
    timeout: Option<Duration>,
}

impl Exec {
    /// A handler that runs the program in the folder `dir`.
    pub(crate) fn new(config: &ExecConfig, dir: &Path) -> Self {
        Self { program: Program::new("exec", &config.exec, dir), timeout: config.timeout }
    }

    fn command(&self, envelope: &Envelope, trace: Option<&TraceContext>) -> Command {
        let Metadata { id, transport, attempt } = Metadata::of(envelope);
        let mut command = self.program.command();
        if let Some(trace) = trace {
            command.env("TRACEPARENT", trace.to_string());
            command.envs(trace.state().map(|state| ("TRACESTATE", state)));
        }
        command
            .env("MINUTELY_MESSAGE_TYPE", envelope.message_type())
            .env("MINUTELY_MESSAGE_ID", id)
            .env("MINUTELY_TRANSPORT", transport)
            .env("MINUTELY_ATTEMPT", attempt.to_string())
            .env("MINUTELY_HEADERS", headers_within(MAX_HEADERS, "MINUTELY_HEADERS", envelope.json_headers()));
        command
    }

    /// Runs the program for one message.
    async fn run(&self, envelope: &Envelope, trace: Option<&TraceContext>) -> Result<(), HandlerError> {
        self.run_with(envelope, envelope.body(), || self.command(envelope, trace)).await
    }

    /// Runs the program with this input. The log names the message in the envelope.
    async fn run_with(
        &self,
        envelope: &Envelope,
        input: &[u8],
        command: impl Fn() -> Command,
    ) -> Result<(), HandlerError> {
        let (id, message_type, handler) = (Metadata::of(envelope).id, envelope.message_type(), self.program.name());
        let log = |line: &str| tracing::info!(id, message_type, handler, "{line}");
        let Ended { status, output } = run(&self.program, command, input, self.timeout, log).await?;
        match status {
            Some(status) => self.program.failure_of(status, &output).map_or(Ok(()), Err),
            None => Err(self.program.timed_out(self.timeout.unwrap_or_default(), &output)),
        }
    }
}

/// How a program has ended.
pub(crate) struct Ended {
    /// `None` if it took too long, and was ended with all that it had started.
    pub(crate) status: Option<ExitStatus>,
    /// The last lines that it has printed.
    pub(crate) output: String,
}

/// Runs a program to its end with this input, for this long at most. If this is dropped before, the program is killed with all
/// that it has started.
pub(crate) async fn run(
    program: &Program,
    command: impl Fn() -> Command,
    input: &[u8],
    limit: Option<Duration>,
    log: impl Fn(&str),
) -> Result<Ended, HandlerError> {
    let output = Output::new(log);
    let mut group = program.start(command).await?;
    let child = group.child();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());

    // Concurrently: a program may print before it has read everything.
    let streams = pin!(future::join3(feed(stdin, input), output.read(stdout), output.read(stderr)));
    let end = pin!(group.wait(limit));
    let status = match future::select(end, streams).await {
        Either::Left((status, streams)) => {
            let _ = timeout(OUTPUT_TIMEOUT, streams).await;
            status?
        }
        Either::Right((_, end)) => end.await?,
    };
    Ok(Ended { status, output: output.last_lines() })
}

#[async_trait]
impl Handler for Exec {
    fn name(&self) -> &str {
        self.program.name()
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        self.run(context.envelope(), context.trace()).await.map(|()| Value::Null)
    }
}

/// Several messages: a line for each, as for a program that stays, and one exit code for all.
#[async_trait]
impl BatchHandler for Exec {
    fn name(&self) -> &str {
        self.program.name()
    }

    async fn handle(&self, messages: &[Envelope], _: &HandlerContext<'_>) -> Vec<Result<Value, HandlerError>> {
        // Each message belongs to its own trace. Variables only have room for one: that of the first.
        let traces: Vec<_> = messages.iter().map(|of| TraceContext::of(of).map(|cause| cause.child())).collect();
        let (input, unwritable) = lines(messages, &traces);
        let handled = match (0..messages.len()).find(|at| unwritable[*at].is_none()) {
            None => Ok(()),
            Some(at) => {
                let (first, trace) = (&messages[at], traces[at].as_ref());
                let count = unwritable.iter().filter(|error| error.is_none()).count();
                let command = || {
                    let mut command = self.command(first, trace);
                    command.env("MINUTELY_BATCH", count.to_string());
                    command
                };
                self.run_with(first, &input, command).await
            }
        };
        let of = |error: Option<HandlerError>| error.map_or_else(|| handled.clone().map(|()| Value::Null), Err);
        unwritable.into_iter().map(of).collect()
    }
}

/// A line for each message that can be written, and for each message why it cannot.
fn lines(messages: &[Envelope], traces: &[Option<TraceContext>]) -> (Vec<u8>, Vec<Option<HandlerError>>) {
    let (mut lines, mut unwritable) = (Vec::new(), Vec::new());
    for (n, (message, trace)) in (1..).zip(messages.iter().zip(traces)) {
        match protocol::request(n, message, trace.as_ref()) {
            Ok(line) => {
                lines.extend(line);
                lines.push(b'\n');
                unwritable.push(None);
            }
            Err(error) => unwritable.push(Some(error)),
        }
    }
    (lines, unwritable)
}

/// Writes the body to the program's standard input. A program need not read all of it.
pub(crate) async fn feed(stdin: Option<ChildStdin>, body: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(body).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::warn!(%error, "the body could not be written to the program's standard input");
    }
}

#[cfg(test)]
mod tests;

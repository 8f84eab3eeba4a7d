//! A program as a handler: it gets the body on standard input and the metadata in environment variables, and its exit
//! code is the result.

mod group;
mod output;
mod run;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::process::Command;

use super::metadata::{Metadata, headers_within};
use super::program::Program;
use super::stream::batch::Requests;
use super::{BatchHandler, CancellationToken, Handler, HandlerContext, HandlerError};
use crate::config::ExecConfig;
use crate::message::{Envelope, TraceContext};

pub(crate) use group::{GRACE, Group};
pub(crate) use output::Output;
pub(crate) use run::{Ended, OUTPUT_TIMEOUT, run};

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

    /// Runs the program with this input. The log names the message in the envelope.
    async fn run_with(
        &self,
        envelope: &Envelope,
        input: &[u8],
        command: impl Fn() -> Command,
        cancellation: &CancellationToken,
    ) -> Result<(), HandlerError> {
        let (id, message_type, handler) = (Metadata::of(envelope).id, envelope.message_type(), self.program.name());
        let log = |line: &str| tracing::info!(id, message_type, handler, "{line}");
        let Ended { status, output, .. } = run(&self.program, command, input, self.timeout, log, cancellation).await?;
        match status {
            Some(status) => self.program.failure_of(status, &output).map_or(Ok(()), Err),
            None => Err(self.program.timed_out(self.timeout.unwrap_or_default(), &output)),
        }
    }
}

#[async_trait]
impl Handler for Exec {
    fn name(&self) -> &str {
        self.program.name()
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let (envelope, trace) = (context.envelope(), context.trace());
        let command = || self.command(envelope, trace);
        self.run_with(envelope, envelope.body(), command, context.cancellation()).await.map(|()| Value::Null)
    }
}

/// Several messages: a line for each, as for a program that stays, and one exit code for all.
#[async_trait]
impl BatchHandler for Exec {
    fn name(&self) -> &str {
        self.program.name()
    }

    async fn handle(&self, messages: &[Envelope], context: &HandlerContext<'_>) -> Vec<Result<Value, HandlerError>> {
        let requests = Requests::new(messages, 1);
        let Some(first) = requests.first(messages) else { return requests.results(Ok(Vec::new())) };
        let (input, count) = ([requests.lines.join(&b'\n'), vec![b'\n']].concat(), requests.ids.len());
        // Variables only have room for one trace: that of the first.
        let trace = TraceContext::of(first).map(|cause| cause.child());
        let command = || {
            let mut command = self.command(first, trace.as_ref());
            command.env("MINUTELY_BATCH", count.to_string());
            command
        };
        let handled = self.run_with(first, &input, command, context.cancellation()).await;
        requests.results(handled.map(|()| vec![Ok(Value::Null); count]))
    }
}

#[cfg(test)]
mod tests;

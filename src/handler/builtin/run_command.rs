//! Symfony's `RunCommandMessage`: runs a command of the console that the configuration names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{log_of, read};
use crate::handler::exec;
use crate::handler::program::Program;
use crate::handler::{Handler, HandlerContext, HandlerError, Verdict};

/// PHP's exit code after an exception that nothing has caught, and after a fatal error.
const UNCAUGHT: i32 = 255;

/// Runs console commands.
pub(crate) struct RunCommand {
    name: String,
    console: Vec<String>,
    timeout: Option<Duration>,
    dir: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunCommandMessage {
    /// The command and its arguments, quoted as in a shell.
    input: String,
    #[serde(default = "yes")]
    throw_on_failure: bool,
    #[serde(default)]
    catch_exceptions: bool,
}

fn yes() -> bool {
    true
}

impl RunCommand {
    /// A handler that runs commands with this program, in the folder `dir`.
    pub(crate) fn new(console: &[String], timeout: Option<Duration>, dir: &Path) -> Self {
        let name = Program::new("console", console, dir).name().to_owned();
        Self { name, console: console.to_vec(), timeout, dir: dir.to_owned() }
    }
}

#[async_trait]
impl Handler for RunCommand {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let message: RunCommandMessage = read(context.envelope(), "`input`")?;
        let words = shell_words::split(&message.input)
            .map_err(|error| HandlerError::unrecoverable(format!("the command's input cannot be split: {error}")))?;
        if words.is_empty() {
            return Err(HandlerError::unrecoverable("the message names no command"));
        }
        let program = Program::new("console", &[self.console.clone(), words].concat(), &self.dir);
        let (limit, log) = (self.timeout, log_of(context.envelope(), program.name()));
        let ran = exec::run(&program, || program.command(), b"", limit, log, context.cancellation()).await?;
        let Some(status) = ran.status else {
            return Err(program.timed_out(self.timeout.unwrap_or_default(), &ran.output));
        };
        let context = json!({ "exitCode": status.code(), "output": ran.stdout + &ran.stderr });
        let Some(mut failure) = program.failure_of(status, &ran.output) else { return Ok(context) };
        let Some(code) = status.code() else { return Err(failure) };
        let throws = message.throw_on_failure || (code == UNCAUGHT && !message.catch_exceptions);
        if !throws {
            return Ok(context);
        }
        // The codes of consoles say nothing about retries, nor to the worker.
        if !matches!(failure.verdict, Verdict::Interrupted { .. }) {
            failure.verdict = Verdict::Retry;
            failure.stops_worker = false;
        }
        Err(failure)
    }
}

//! Symfony's `RunProcessMessage`: runs the program that the message names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{log_of, read};
use crate::handler::exec;
use crate::handler::program::Program;
use crate::handler::{Handler, HandlerContext, HandlerError, Verdict};

/// Runs programs.
pub(crate) struct RunProcess {
    timeout: Option<Duration>,
    dir: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunProcessMessage {
    #[serde(default)]
    command: Vec<Value>,
    cwd: Option<String>,
    #[serde(default)]
    env: Value,
    #[serde(default)]
    input: Value,
    /// Seconds.
    timeout: Option<f64>,
    /// For a shell.
    command_line: Option<String>,
}

impl RunProcess {
    /// A handler that runs programs in the folder `dir` where the message names no other.
    pub(crate) fn new(timeout: Option<Duration>, dir: &Path) -> Self {
        Self { timeout, dir: dir.to_owned() }
    }

    /// The shorter one of the message's time limit and the configuration's.
    fn limit(&self, seconds: Option<f64>) -> Result<Option<Duration>, HandlerError> {
        let own = match seconds {
            // As in Symfony.
            None => None,
            Some(0.0) => None,
            Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|error| {
                HandlerError::unrecoverable(format!("the message's timeout cannot be used: {error}"))
            })?),
        };
        Ok(own.into_iter().chain(self.timeout).min())
    }
}

#[async_trait]
impl Handler for RunProcess {
    fn name(&self) -> &str {
        "RunProcessMessage"
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let message: RunProcessMessage = read(context.envelope(), "`command` or `commandLine`")?;
        let limit = self.limit(message.timeout)?;
        let words = words(&message)?;
        let environment = environment(&message.env)?;
        let input = if message.input.is_null() { String::new() } else { text(&message.input, "input")? };
        let dir = message.cwd.as_ref().map_or_else(|| self.dir.clone(), |cwd| self.dir.join(cwd));
        let program = Program::new("process", &words, &dir);
        let command = || {
            let mut command = program.command();
            for (name, value) in &environment {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            command
        };
        let log = log_of(context.envelope(), program.name());
        let ran = exec::run(&program, command, input.as_bytes(), limit, log, context.cancellation()).await?;
        let Some(status) = ran.status else {
            return Err(program.timed_out(limit.unwrap_or_default(), &ran.output));
        };
        match program.failure_of(status, &ran.output) {
            None => Ok(json!({ "exitCode": status.code(), "output": ran.stdout, "errorOutput": ran.stderr })),
            // The exit codes of programs at large say nothing about retries, nor to the worker.
            Some(failure) if matches!(failure.verdict, Verdict::Interrupted { .. }) => Err(failure),
            Some(failure) => Err(HandlerError { verdict: Verdict::Retry, stops_worker: false, ..failure }),
        }
    }
}

/// The program and its arguments.
fn words(message: &RunProcessMessage) -> Result<Vec<String>, HandlerError> {
    if let Some(line) = &message.command_line {
        // Symfony's placeholders stand for variables of the environment.
        return Ok(vec!["sh".to_owned(), "-c".to_owned(), line.replace("\"${:", "\"${")]);
    }
    let words: Vec<String> = message.command.iter().map(|word| text(word, "command")).collect::<Result<_, _>>()?;
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(HandlerError::unrecoverable("the message names no program")),
    }
}

/// The variables to set, or to remove.
fn environment(env: &Value) -> Result<Vec<(String, Option<String>)>, HandlerError> {
    let empty = Map::new();
    let variables = match env {
        Value::Null => &empty,
        // An empty array of PHP.
        Value::Array(items) if items.is_empty() => &empty,
        Value::Object(variables) => variables,
        _ => return Err(HandlerError::unrecoverable("the message's env is not a map of names to texts")),
    };
    let valid = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    let of = |(name, value): (&String, &Value)| match value {
        _ if !valid(name) => Err(HandlerError::unrecoverable("the message's env has a name that no variable can have")),
        Value::Bool(false) => Ok((name.clone(), None)),
        value => Ok((name.clone(), Some(text(value, "env")?))),
    };
    variables.iter().map(of).collect()
}

/// A value of PHP as text.
fn text(value: &Value, what: &str) -> Result<String, HandlerError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(true) => "1".to_owned(),
        Value::Bool(false) | Value::Null => String::new(),
        _ => {
            return Err(HandlerError::unrecoverable(format!(
                "the message's {what} has something in it that is no text"
            )));
        }
    };
    if text.contains('\0') {
        return Err(HandlerError::unrecoverable(format!("the message's {what} has a NUL character in it")));
    }
    Ok(text)
}

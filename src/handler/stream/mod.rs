//! A program that stays as a handler: it gets each message as a line, and answers with a line. `docs/stream.md` is its protocol.
//!
//! Each message that is being handled has a process of its own. A process that has answered waits for the next message, so
//! that there are never more than messages are handled at once.

mod process;
mod protocol;
#[cfg(test)]
mod tests;

use std::mem::take;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use self::process::{About, NoAnswer, Process};
use super::metadata::Metadata;
use super::program::{Program, with_output};
use super::{CancellationToken, Handler, HandlerContext, HandlerError, Verdict};
use crate::config::StreamConfig;
use crate::message::Envelope;

/// The pause before a program is started again that has ended without an answer. It doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How much of a line that is no answer is shown, in bytes.
const SHOWN: usize = 200;

/// Tells the program that it is started as a stream handler; the value is the version of the protocol.
const VARIABLE: &str = "MINUTELY_STREAM";

/// Runs a program that handles one message after the other.
pub(crate) struct Stream {
    program: Program,
    timeout: Option<Duration>,
    max_messages: Option<u64>,
    max_memory: Option<u64>,
    pool: Mutex<Pool>,
}

/// The processes that have no message at the moment.
#[derive(Default)]
struct Pool {
    idle: Vec<Process>,
    /// Those that were asked to end.
    ending: JoinSet<()>,
    /// How many in a row have ended without an answer.
    failed_starts: u32,
    /// No process is started before this.
    not_before: Option<Instant>,
    /// The number of the last message.
    last_id: u64,
}

/// How one exchange with a process went.
enum Exchange {
    /// The program's answer.
    Answered(Result<Value, HandlerError>),
    /// The program had ended well before it read the message: it may end after any answer.
    EndedBefore,
}

impl Stream {
    /// A handler that runs the program in the folder `dir`.
    pub(crate) fn new(config: &StreamConfig, dir: &Path) -> Self {
        let StreamConfig { program, timeout, max_messages, max_memory } = config;
        let program = Program::new("stream", program, dir);
        let (timeout, max_messages, max_memory) = (*timeout, *max_messages, *max_memory);
        Self { program, timeout, max_messages, max_memory, pool: Mutex::default() }
    }

    async fn run(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        let id = self.next_id();
        let request = protocol::request(id, context.envelope())?;
        if let Some(process) = self.take_idle()
            && let Exchange::Answered(answer) = self.exchange(process, id, &request, context.envelope()).await
        {
            return answer;
        }
        let process = self.start(context.cancellation()).await?;
        match self.exchange(process, id, &request, context.envelope()).await {
            Exchange::Answered(answer) => answer,
            Exchange::EndedBefore => {
                let why = "the program has ended without an answer (exit code 0)";
                Err(self.program.failure("Ended", Verdict::Retry, why.to_owned()))
            }
        }
    }

    async fn exchange(&self, mut process: Process, id: u64, request: &[u8], envelope: &Envelope) -> Exchange {
        let (was_used, limit) = (process.answered > 0, self.timeout.unwrap_or(Duration::MAX));
        let about = About { id: Metadata::of(envelope).id, message_type: envelope.message_type().to_owned() };
        let answered = timeout(limit, process.exchange(about, request)).await;
        let output = process.last_lines();
        let nonsense = |line: &[u8], why: &str| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]).into_owned();
            let what = format!("the program has written what is no answer ({why}): {shown:?}");
            Err(self.program.failure("NoAnswer", Verdict::Retry, with_output(what, &output)))
        };
        let answer = match answered {
            Ok(Ok(line)) => match protocol::read_answer(id, &line) {
                Ok(answer) => {
                    self.put_back(process);
                    return Exchange::Answered(answer);
                }
                Err(why) => {
                    process.end().await;
                    nonsense(&line, &why)
                }
            },
            Ok(Err(NoAnswer::Ended(status))) => {
                let failure = status.map(|status| (status.success(), self.program.failure_of(status, &output)));
                match failure {
                    Some((true, _)) if was_used => return Exchange::EndedBefore,
                    Some((_, Some(failure))) => Err(failure),
                    Some((_, None)) => {
                        let what = "the program has ended without an answer (exit code 0)".to_owned();
                        Err(self.program.failure("Ended", Verdict::Retry, with_output(what, &output)))
                    }
                    None => {
                        let what = "the program has closed its standard output without an answer".to_owned();
                        Err(self.program.failure("Ended", Verdict::Retry, with_output(what, &output)))
                    }
                }
            }
            Ok(Err(NoAnswer::TooLong)) => {
                process.end().await;
                nonsense(b"", "its line is longer than 1 MiB")
            }
            Ok(Err(NoAnswer::Io(error))) => {
                process.end().await;
                nonsense(b"", &format!("its output cannot be read: {error}"))
            }
            Err(_) => {
                process.end().await;
                Err(self.program.timed_out(limit, &output))
            }
        };
        if !was_used {
            self.pool().note_failure();
        }
        Exchange::Answered(answer)
    }

    /// Starts a process, after a pause if the last ones have ended without an answer.
    async fn start(&self, cancellation: &CancellationToken) -> Result<Process, HandlerError> {
        let not_before = self.pool().not_before;
        if let Some(not_before) = not_before.filter(|not_before| *not_before > Instant::now()) {
            let handler = self.program.name();
            tracing::warn!(handler, "waiting before the program is started again, as it has ended without an answer");
            tokio::select! {
                () = sleep_until(not_before) => {}
                () = cancellation.cancelled() => {
                    let why = "the worker stops before the program is started again".to_owned();
                    return Err(self.program.failure("NotStarted", Verdict::NotBegun, why));
                }
            }
        }
        let command = || {
            let mut command = self.program.command();
            command.env(VARIABLE, "1");
            command
        };
        let group = self.program.start(command).await.inspect_err(|_| self.pool().note_failure())?;
        let process = Process::new(self.program.name().to_owned(), group);
        process.ok_or_else(|| self.program.failure("NotStarted", Verdict::Retry, "it has no pipes".to_owned()))
    }

    /// A process that waits for a message.
    fn take_idle(&self) -> Option<Process> {
        let mut pool = self.pool();
        while let Some(mut process) = pool.idle.pop() {
            if process.is_ready() {
                return Some(process);
            }
            pool.ending.spawn(process.finish());
        }
        None
    }

    /// Keeps a process for the next message, or ends it if it has done or grown enough.
    fn put_back(&self, mut process: Process) {
        let is_worn = self.max_messages.is_some_and(|most| process.answered >= most);
        let is_worn = is_worn || self.max_memory.is_some_and(|most| process.memory().is_some_and(|now| now > most));
        let mut pool = self.pool();
        (pool.failed_starts, pool.not_before) = (0, None);
        // Those that have ended.
        while pool.ending.try_join_next().is_some() {}
        if is_worn {
            pool.ending.spawn(process.finish());
        } else {
            pool.idle.push(process);
        }
    }

    fn next_id(&self) -> u64 {
        let mut pool = self.pool();
        pool.last_id += 1;
        pool.last_id
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn note_failure(&mut self) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failed_starts.min(10)).min(LONGEST_PAUSE);
        self.failed_starts = self.failed_starts.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
    }
}

#[async_trait]
impl Handler for Stream {
    fn name(&self) -> &str {
        self.program.name()
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        self.run(context).await
    }

    async fn worker_stopped(&self) {
        let (idle, mut ending) = {
            let mut pool = self.pool();
            (take(&mut pool.idle), take(&mut pool.ending))
        };
        for process in idle {
            ending.spawn(process.finish());
        }
        while ending.join_next().await.is_some() {}
    }
}

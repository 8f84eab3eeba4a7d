//! A program that stays as a handler: it gets each message as a line, and answers with a line. `docs/stream.md` is its protocol.
//!
//! Each message that is being handled has a process of its own. A process that has answered waits for the next message, so
//! that there are never more than messages are handled at once.

pub(super) mod batch;
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
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use self::batch::{Answers, Requests};
use self::process::{About, NoAnswer, Process};
use super::metadata::Metadata;
use super::program::{Program, with_output};
use super::{BatchHandler, CancellationToken, Handler, HandlerContext, HandlerError, Verdict};
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
    /// A process has answered.
    freed: Notify,
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

/// What goes to the program at once.
struct Messages<'a> {
    /// For the log.
    first: &'a Envelope,
    ids: Vec<u64>,
    /// Its line, with its end.
    line: Vec<u8>,
    /// Is it a list?
    is_list: bool,
}

impl Messages<'_> {
    fn read_answers(&self, line: &[u8]) -> Result<Answers, String> {
        match self.ids.as_slice() {
            [id] if !self.is_list => Ok(vec![protocol::read_answer(*id, line)?]),
            ids => batch::read_answers(ids, line),
        }
    }
}

/// How one exchange with a process went.
enum Exchange {
    /// The program's answers, or why there are none.
    Answered(Result<Answers, HandlerError>),
    /// The program had ended well before it read the message: it may end after any answer.
    EndedBefore,
}

impl Stream {
    /// A handler that runs the program in the folder `dir`.
    pub(crate) fn new(config: &StreamConfig, dir: &Path) -> Self {
        let StreamConfig { program, timeout, max_messages, max_memory } = config;
        let program = Program::new("stream", program, dir);
        let (timeout, max_messages, max_memory) = (*timeout, *max_messages, *max_memory);
        Self { program, timeout, max_messages, max_memory, pool: Mutex::default(), freed: Notify::new() }
    }

    /// Has messages handled at once: one, or where the program gets lists a list.
    async fn run(&self, messages: Messages<'_>, context: &HandlerContext<'_>) -> Result<Answers, HandlerError> {
        loop {
            let process = self.process(context.cancellation()).await?;
            // Only one that was used can have ended before, so the one that is started after all those is the last.
            if let Exchange::Answered(answers) = self.exchange(process, &messages).await {
                return answers;
            }
        }
    }

    /// A process that waits for a message, or a new one. Where that cannot be started yet, whichever is there first.
    async fn process(&self, cancellation: &CancellationToken) -> Result<Process, HandlerError> {
        if let Some(process) = self.take_idle() {
            return Ok(process);
        }
        tokio::select! {
            biased;
            started = self.start(cancellation) => started,
            process = self.next_idle() => Ok(process),
        }
    }

    /// The next process that has answered.
    async fn next_idle(&self) -> Process {
        loop {
            // Before the look, so that none is missed.
            let freed = self.freed.notified();
            if let Some(process) = self.take_idle() {
                return process;
            }
            freed.await;
        }
    }

    async fn exchange(&self, mut process: Process, messages: &Messages<'_>) -> Exchange {
        let (was_used, limit) = (process.answered > 0, self.timeout.unwrap_or(Duration::MAX));
        let envelope = messages.first;
        let about = About { id: Metadata::of(envelope).id, message_type: envelope.message_type().to_owned() };
        let answered = timeout(limit, process.exchange(about, &messages.line)).await;
        // Its last lines are those until its end.
        let nonsense = async |mut process: Process, line: &[u8], why: &str| {
            process.end().await;
            let shown = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]).into_owned();
            let what = format!("the program has written what is no answer ({why}): {shown:?}");
            self.program.failure("NoAnswer", Verdict::Retry, with_output(what, &process.last_lines()))
        };
        let failure = match answered {
            Ok(Ok(line)) => match messages.read_answers(&line) {
                Ok(answers) => {
                    self.put_back(process);
                    return Exchange::Answered(Ok(answers));
                }
                Err(why) => nonsense(process, &line, &why).await,
            },
            Ok(Err(NoAnswer::Ended(Some(status)))) => {
                let output = process.last_lines();
                match self.program.failure_of(status, &output) {
                    None if was_used => return Exchange::EndedBefore,
                    None => self.ended(&output),
                    Some(failure) => failure,
                }
            }
            Ok(Err(NoAnswer::Ended(None))) => {
                let what = "the program has closed its standard output without an answer".to_owned();
                self.program.failure("Ended", Verdict::Retry, with_output(what, &process.last_lines()))
            }
            Ok(Err(NoAnswer::TooLong(beginning))) => {
                nonsense(process, &beginning, "its line is longer than 1 MiB").await
            }
            Ok(Err(NoAnswer::Io(error))) => {
                nonsense(process, b"", &format!("its output cannot be read: {error}")).await
            }
            Err(_) => {
                process.end().await;
                self.program.timed_out(limit, &process.last_lines())
            }
        };
        if !was_used {
            self.pool().note_failure();
        }
        Exchange::Answered(Err(failure))
    }

    fn ended(&self, output: &str) -> HandlerError {
        let what = "the program has ended without an answer (exit code 0)".to_owned();
        self.program.failure("Ended", Verdict::Retry, with_output(what, output))
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
        let group = self.program.start(command, cancellation).await.inspect_err(|_| self.pool().note_failure())?;
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
            drop(pool);
            self.freed.notify_one();
        }
    }

    /// The first of so many numbers for messages.
    fn next_ids(&self, count: usize) -> u64 {
        let mut pool = self.pool();
        let first = pool.last_id + 1;
        pool.last_id += count as u64;
        first
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
        let (id, first) = (self.next_ids(1), context.envelope());
        let mut line = protocol::request(id, first, context.trace())?;
        line.push(b'\n');
        let mut answers = self.run(Messages { first, ids: vec![id], line, is_list: false }, context).await?;
        answers.pop().unwrap_or_else(|| Err(self.ended("")))
    }

    async fn worker_stopped(&self) {
        self.rest().await;
    }
}

/// Several messages: a line with a list of them, and one with a list of answers.
#[async_trait]
impl BatchHandler for Stream {
    fn name(&self) -> &str {
        self.program.name()
    }

    async fn handle(&self, messages: &[Envelope], context: &HandlerContext<'_>) -> Vec<Result<Value, HandlerError>> {
        let requests = Requests::new(messages, self.next_ids(messages.len()));
        let Some(first) = requests.first(messages) else { return requests.results(Ok(Vec::new())) };
        let (ids, mut line) = (requests.ids.clone(), requests.list());
        line.push(b'\n');
        let answered = self.run(Messages { first, ids, line, is_list: true }, context).await;
        requests.results(answered)
    }

    async fn worker_stopped(&self) {
        self.rest().await;
    }
}

impl Stream {
    /// Ends the processes that wait.
    async fn rest(&self) {
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

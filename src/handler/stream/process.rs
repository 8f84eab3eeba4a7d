//! One running stream program: a message in, an answer out.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{self, Either};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::handler::exec::{GRACE, Group, OUTPUT_TIMEOUT, Output};
use crate::memory;

/// The longest line that a program may write as an answer.
const LONGEST_LINE: usize = 1 << 20;

/// How long a program that has closed its output may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A program that is running. When this is dropped, it is killed with all that it has started.
pub(super) struct Process {
    group: Group,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    log: Arc<Log>,
    reading: JoinHandle<()>,
    /// How many messages it has answered.
    pub(super) answered: u64,
    /// Has it answered without reading all of a message?
    is_spent: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The program has ended, or closed its output and was ended for that.
    Ended(Option<ExitStatus>),
    /// It has written too long a line, which begins with this.
    TooLong(Vec<u8>),
    /// A pipe cannot be read.
    Io(io::Error),
}

type LogLine = Box<dyn Fn(&str) + Send + Sync>;

/// What the program prints on standard error, logged with the message that it has at the moment.
struct Log {
    output: Output<LogLine>,
    /// A line that has not ended yet.
    line: Mutex<Vec<u8>>,
    about: Arc<Mutex<About>>,
}

/// The message that a program has at the moment.
#[derive(Default, Clone)]
pub(super) struct About {
    pub(super) id: String,
    pub(super) message_type: String,
}

impl Process {
    /// Takes over a program that has been started. `None` if its pipes are missing, which does not happen.
    pub(super) fn new(handler: String, mut group: Group) -> Option<Self> {
        let child = group.child();
        let (stdin, stdout, stderr) = (child.stdin.take()?, child.stdout.take()?, child.stderr.take()?);
        let about: Arc<Mutex<About>> = Arc::default();
        let message = Arc::clone(&about);
        let log = move |line: &str| {
            let About { id, message_type } = message.lock().unwrap_or_else(PoisonError::into_inner).clone();
            tracing::info!(id, message_type, handler, "{line}");
        };
        let log = Arc::new(Log { output: Output::new(Box::new(log)), line: Mutex::default(), about });
        let reader = Arc::clone(&log);
        let reading = tokio::spawn(async move { reader.output.read_on(Some(stderr), &reader.line).await });
        let stdout = BufReader::new(stdout);
        Some(Self { group, stdin: Some(stdin), stdout, log, reading, answered: 0, is_spent: false })
    }

    /// Whether it is ready for a message: running, and silent.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.is_spent {
            return false;
        }
        match self.stdout.fill_buf().now_or_never() {
            // What it has started may keep its output open after its end.
            None => matches!(self.group.child().try_wait(), Ok(None)),
            Some(Ok([])) => false,
            Some(Ok(bytes)) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
                tracing::warn!(
                    "a stream program has written to its standard output without a message, and is replaced: {text}"
                );
                false
            }
            Some(Err(_)) => false,
        }
    }

    /// Gives it a line, and returns the line that it answers, without its end. `about` is for its log.
    pub(super) async fn exchange(&mut self, about: About, request: &[u8]) -> Result<Vec<u8>, NoAnswer> {
        // What it had printed before its last answer, and has not been read yet, belongs to that message.
        tokio::task::yield_now().await;
        // A line that came after the last answer, and has no end.
        self.log.output.end_line(&self.log.line);
        *self.log.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
        self.log.output.forget();
        let exchanged = {
            let (stdin, stdout) = (&mut self.stdin, &mut self.stdout);
            let write = pin!(async {
                let Some(stdin) = stdin else { return };
                // That the program reads no more shows in its answer, or in its end.
                if stdin.write_all(request).await.is_ok() {
                    let _ = stdin.flush().await;
                }
            });
            let read = pin!(read_line(stdout));
            let exchange = pin!(async {
                match future::select(write, read).await {
                    Either::Left(((), read)) => (read.await, false),
                    Either::Right((line, _)) => (line, true),
                }
            });
            // What it has started may keep its output open after its end.
            let end = pin!(self.group.wait(None));
            match future::select(exchange, end).await {
                Either::Left((exchanged, _)) => exchanged,
                Either::Right((_, exchange)) => timeout(OUTPUT_TIMEOUT, exchange).await.unwrap_or((Ok(None), true)),
            }
        };
        let (line, is_spent) = exchanged;
        self.is_spent |= is_spent;
        match line? {
            Some(line) => {
                self.answered += 1;
                Ok(line)
            }
            None => Err(NoAnswer::Ended(self.wait_for_end().await)),
        }
    }

    /// Its exit status, after it has ended or closed its output. All that it has printed has been read by then.
    async fn wait_for_end(&mut self) -> Option<ExitStatus> {
        drop(self.stdin.take());
        let status = self.group.wait(Some(END_TIMEOUT)).await.ok().flatten();
        let _ = timeout(OUTPUT_TIMEOUT, &mut self.reading).await;
        status
    }

    /// The last lines of its standard error, since it has got the last message. What it has printed of a line belongs to that
    /// message too, and not to the next one.
    pub(super) fn last_lines(&self) -> String {
        self.log.output.end_line(&self.log.line);
        self.log.output.last_lines()
    }

    /// The memory that it uses, in bytes, without that of processes that it has started.
    pub(super) fn memory(&mut self) -> Option<u64> {
        memory::resident(self.group.child().id()?)
    }

    /// Lets it end by itself, because no further message comes; asks it to (SIGTERM) if it does not, and kills it at last.
    pub(super) async fn finish(mut self) {
        drop(self.stdin.take());
        let _ = self.group.wait(Some(GRACE)).await;
        let _ = timeout(OUTPUT_TIMEOUT, &mut self.reading).await;
    }

    /// Ends it and all that it has started: it is in the middle of something. All that it has printed has been read by then.
    pub(super) async fn end(&mut self) {
        self.group.end().await;
        let _ = timeout(OUTPUT_TIMEOUT, &mut self.reading).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Reads a line, without its end; `None` at the end of the output. A line that has no end is none.
async fn read_line(from: &mut BufReader<ChildStdout>) -> Result<Option<Vec<u8>>, NoAnswer> {
    let mut line = Vec::new();
    loop {
        let bytes = from.fill_buf().await.map_err(NoAnswer::Io)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(bytes.len());
        if line.len() + length > LONGEST_LINE {
            line.extend_from_slice(&bytes[..length]);
            return Err(NoAnswer::TooLong(line));
        }
        line.extend_from_slice(&bytes[..length]);
        from.consume(length + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

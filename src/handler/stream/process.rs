//! One running stream program: a message in, an answer out.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{self, Either};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::handler::exec::{GRACE, Group, Output};

/// The longest line that a program may write as an answer.
const LONGEST_LINE: usize = 1 << 20;

/// How long output is still read after the program has ended, as with `exec`.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

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
    /// It has written too long a line.
    TooLong,
    /// A pipe cannot be read.
    Io(io::Error),
}

type LogLine = Box<dyn Fn(&str) + Send + Sync>;

/// What the program prints on standard error, logged with the message that it has at the moment.
struct Log {
    output: Output<LogLine>,
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
        let log = Arc::new(Log { output: Output::new(Box::new(log)), about });
        let reader = Arc::clone(&log);
        let reading = tokio::spawn(async move { reader.output.read(Some(stderr)).await });
        let stdout = BufReader::new(stdout);
        Some(Self { group, stdin: Some(stdin), stdout, log, reading, answered: 0, is_spent: false })
    }

    /// Whether it is ready for a message: running, and silent.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.is_spent {
            return false;
        }
        match self.stdout.fill_buf().now_or_never() {
            None => true,
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
        *self.log.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
        self.log.output.forget();
        let line = {
            let stdin = &mut self.stdin;
            let write = pin!(async {
                let Some(stdin) = stdin else { return };
                // That the program reads no more shows in its answer, or in its end.
                if stdin.write_all(request).await.is_ok() {
                    let _ = stdin.flush().await;
                }
            });
            let read = pin!(read_line(&mut self.stdout));
            match future::select(write, read).await {
                Either::Left(((), read)) => read.await,
                Either::Right((line, _)) => {
                    self.is_spent = true;
                    line
                }
            }
        };
        match line {
            Ok(Some(line)) => {
                self.answered += 1;
                Ok(line)
            }
            Ok(None) => Err(NoAnswer::Ended(self.wait_for_end().await)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(NoAnswer::TooLong),
            Err(error) => Err(NoAnswer::Io(error)),
        }
    }

    /// Its exit status, after it has closed its output. All that it has printed has been read by then.
    async fn wait_for_end(&mut self) -> Option<ExitStatus> {
        drop(self.stdin.take());
        let status = self.group.wait(Some(END_TIMEOUT)).await.ok().flatten();
        let _ = timeout(OUTPUT_TIMEOUT, &mut self.reading).await;
        status
    }

    /// The last lines of its standard error, since it has got the last message.
    pub(super) fn last_lines(&self) -> String {
        self.log.output.last_lines()
    }

    /// The memory that it uses, in bytes, without that of processes that it has started.
    pub(super) fn memory(&mut self) -> Option<u64> {
        let pid = Pid::from_u32(self.group.child().id()?);
        let mut system = System::new().ok()?;
        let what = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
        system.process(pid).map(sysinfo::Process::memory)
    }

    /// Lets it end by itself, because no further message comes; asks it to (SIGTERM) if it does not, and kills it at last.
    pub(super) async fn finish(mut self) {
        drop(self.stdin.take());
        let _ = self.group.wait(Some(GRACE)).await;
        let _ = timeout(OUTPUT_TIMEOUT, &mut self.reading).await;
    }

    /// Ends it and all that it has started: it is in the middle of something.
    pub(super) async fn end(mut self) {
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
async fn read_line(from: &mut BufReader<ChildStdout>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(bytes.len());
        if line.len() + length > LONGEST_LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.extend_from_slice(&bytes[..length]);
        from.consume(length + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

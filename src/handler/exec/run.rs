//! Runs a program to its end. Its output is logged, and the end of it is kept.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use futures_util::future::{self, Either};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use super::output::Output;
use crate::handler::program::Program;
use crate::handler::{CancellationToken, HandlerError};

/// How long output is still read after a program has ended. What it printed is there at once, but processes that it left in the
/// background may keep the pipe open for ever.
pub(crate) const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// How much of standard output and of standard error is kept, in bytes: the end.
const KEPT: usize = 16 * 1024;

/// How a program has ended.
pub(crate) struct Ended {
    /// `None` if it took too long, and was ended with all that it had started.
    pub(crate) status: Option<ExitStatus>,
    /// The last lines that it has printed.
    pub(crate) output: String,
    /// The end of its standard output.
    pub(crate) stdout: String,
    /// The end of its standard error.
    pub(crate) stderr: String,
}

/// Runs a program to its end with this input, for this long at most. If this is dropped before, the program is killed with all
/// that it has started. Fails if it cannot be started, also because the worker stops before the system allows it.
pub(crate) async fn run(
    program: &Program,
    command: impl Fn() -> Command,
    input: &[u8],
    limit: Option<Duration>,
    log: impl Fn(&str),
    cancellation: &CancellationToken,
) -> Result<Ended, HandlerError> {
    let log = Output::new(log);
    let mut group = program.start(command, cancellation).await?;
    let child = group.child();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut printed, mut printed_errors) = (Vec::new(), Vec::new());
    let status = {
        // Concurrently: a program may print before it has read everything.
        let streams = future::join3(
            feed(stdin, input),
            read(stdout, &log, &mut printed),
            read(stderr, &log, &mut printed_errors),
        );
        let streams = pin!(streams);
        let end = pin!(group.wait(limit));
        match future::select(end, streams).await {
            Either::Left((status, streams)) => {
                let _ = timeout(OUTPUT_TIMEOUT, streams).await;
                status?
            }
            Either::Right((_, end)) => end.await?,
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(KEPT)..]).into_owned();
    Ok(Ended { status, output: log.last_lines(), stdout: text(printed), stderr: text(printed_errors) })
}

/// Reads a pipe to its end. Keeps the last bytes, at most twice [`KEPT`].
async fn read(pipe: Option<impl AsyncRead + Unpin>, log: &Output<impl Fn(&str)>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let (mut buffer, mut line) = ([0; 8192], Vec::new());
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => {
                kept.extend_from_slice(&buffer[..read]);
                if kept.len() > 2 * KEPT {
                    kept.drain(..kept.len() - KEPT);
                }
                log.take(&buffer[..read], &mut line);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log.line(format!("(the program's output cannot be read: {error})").as_bytes());
                break;
            }
        }
    }
    log.line(&line);
}

/// Writes the input to the program's standard input. A program need not read all of it.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(input).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::warn!(%error, "the body could not be written to the program's standard input");
    }
}

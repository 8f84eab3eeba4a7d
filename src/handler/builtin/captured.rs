//! Runs a program to its end, and keeps what it prints as a result.

use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use futures_util::future::{self, Either};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::handler::HandlerError;
use crate::handler::exec::{Output, feed};
use crate::handler::metadata::Metadata;
use crate::handler::program::Program;
use crate::message::Envelope;

/// How much of standard output and of standard error is kept, in bytes: the end.
const KEPT: usize = 16 * 1024;

/// How long output is still read after the program has ended, as with `exec`.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// How a program has ended.
pub(super) struct Ran {
    /// `None`: it took too long, and was ended.
    pub(super) status: Option<ExitStatus>,
    /// The end of what it has printed.
    pub(super) output: String,
    /// The end of its standard error.
    pub(super) error_output: String,
    /// The last lines of both.
    pub(super) last_lines: String,
}

/// Runs a program for a message.
pub(super) async fn run(
    program: &Program,
    command: impl Fn() -> Command,
    input: &[u8],
    limit: Option<Duration>,
    envelope: &Envelope,
) -> Result<Ran, HandlerError> {
    let (id, message_type, handler) = (Metadata::of(envelope).id, envelope.message_type(), program.name());
    let log = Output::new(|line: &str| tracing::info!(id, message_type, handler, "{line}"));
    let mut group = program.start(command).await?;
    let child = group.child();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut output, mut error_output) = (Vec::new(), Vec::new());
    let status = {
        let streams =
            future::join3(feed(stdin, input), read(stdout, &log, &mut output), read(stderr, &log, &mut error_output));
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
    Ok(Ran { status, output: text(output), error_output: text(error_output), last_lines: log.last_lines() })
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
            Err(_) => break,
        }
    }
    log.line(&line);
}

//! Reads a stream of lines, each a message as JSON, in groups of a bounded size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::report::{Done, fingerprint};
use crate::app::Outgoing;

/// The most lines of a group.
const GROUP: usize = 4096;
/// The most bytes of a group, unless it is one line.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// The longest line, in bytes.
const LONGEST: usize = 16 * 1024 * 1024;
/// How long a line waits for others.
const WAIT: Duration = Duration::from_millis(100);
/// How much is read at a time, and how often ahead.
const BLOCK: usize = 256 * 1024;
const BLOCKS: usize = 2;

/// A line that is to be dispatched.
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) message: Result<Outgoing, String>,
    /// By which a later run knows it again.
    pub(super) fingerprint: String,
}

/// Lines of a stream.
pub(super) struct Lines {
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    /// Where in the block to go on.
    position: usize,
    /// The beginning of the current line, from former blocks.
    begun: Vec<u8>,
    is_too_long: bool,
    has_ended: bool,
    /// How many lines were read.
    number: u64,
    done: Done,
}

/// The text of a line, if it is not too long.
type Text = Option<Vec<u8>>;

impl Lines {
    /// The lines of a file, or of standard input.
    pub(super) fn of(path: Option<&Path>, done: Done) -> io::Result<Self> {
        let source: Box<dyn Read + Send> = match path {
            Some(path) => Box::new(File::open(path)?),
            None => Box::new(io::stdin()),
        };
        let (sender, blocks) = mpsc::channel(BLOCKS);
        // A thread of its own, as reading a pipe may take for ever. It ends with the stream, or with the program.
        thread::Builder::new().name("read".to_owned()).spawn(move || read(source, &sender))?;
        Ok(Self {
            blocks,
            block: Vec::new(),
            position: 0,
            begun: Vec::new(),
            is_too_long: false,
            has_ended: false,
            number: 0,
            done,
        })
    }

    /// The next lines that are to be dispatched: those that are there, or come within a short time. None at the end.
    pub(super) async fn next(&mut self) -> Result<Vec<Line>, String> {
        let (mut group, mut bytes, mut until) = (Vec::new(), 0, None::<Instant>);
        while group.len() < GROUP && bytes < GROUP_BYTES {
            let text = match (self.line().now_or_never(), until) {
                (Some(line), _) => line?,
                (None, None) => self.line().await?,
                (None, Some(until)) => match timeout_at(until, self.line()).await {
                    Ok(line) => line?,
                    Err(_) => break,
                },
            };
            let Some(text) = text else { break };
            let number = self.number;
            if !self.is_wanted(&text)? {
                continue;
            }
            let fingerprint = fingerprint(text.as_deref());
            let message = match text {
                Some(text) => {
                    bytes += text.len();
                    Outgoing::from_json(&text).map_err(|error| error.to_string())
                }
                None => Err(format!("it is longer than {} MiB", LONGEST / 1024 / 1024)),
            };
            group.push(Line { number, message, fingerprint });
            until = until.or_else(|| Some(Instant::now() + WAIT));
        }
        if group.is_empty() && self.number < self.done.through() {
            let (found, through) = (self.number, self.done.through());
            return Err(format!("it has {found} lines, but {through} were dispatched: is it another input?"));
        }
        Ok(group)
    }

    /// Whether the current line is to be dispatched: it is no empty line, and was not accepted before.
    fn is_wanted(&self, text: &Text) -> Result<bool, String> {
        if !self.done.fits(self.number, || fingerprint(text.as_deref())) {
            let number = self.number;
            return Err(format!("its line {number} is not the one that was dispatched: is it another input?"));
        }
        let is_empty = text.as_ref().is_some_and(|text| text.iter().all(u8::is_ascii_whitespace));
        Ok(!is_empty && !self.done.has(self.number))
    }

    /// The next line, without its end. None at the end of the stream. Cancel safe.
    async fn line(&mut self) -> Result<Option<Text>, String> {
        loop {
            let rest = &self.block[self.position..];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                self.begin(length);
                self.position += 1;
                return Ok(Some(self.end()));
            }
            self.begin(rest.len());
            if self.has_ended {
                let has_text = !self.begun.is_empty() || self.is_too_long;
                return Ok(has_text.then(|| self.end()));
            }
            match self.blocks.recv().await {
                Some(Ok(block)) => (self.block, self.position) = (block, 0),
                Some(Err(error)) => return Err(format!("it cannot be read: {error}")),
                None => self.has_ended = true,
            }
        }
    }

    /// Adds so many bytes to the current line.
    fn begin(&mut self, length: usize) {
        let part = &self.block[self.position..self.position + length];
        self.position += length;
        self.is_too_long |= self.begun.len() + length > LONGEST;
        if self.is_too_long {
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(part);
        }
    }

    fn end(&mut self) -> Text {
        self.number += 1;
        let text = std::mem::take(&mut self.begun);
        if std::mem::take(&mut self.is_too_long) { None } else { Some(text) }
    }
}

fn read(mut source: impl Read, blocks: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut block = vec![0; BLOCK];
        let read = match source.read(&mut block) {
            Ok(0) => return,
            Ok(length) => {
                block.truncate(length);
                Ok(block)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let is_error = read.is_err();
        // Nobody reads on.
        if blocks.blocking_send(read).is_err() || is_error {
            return;
        }
    }
}

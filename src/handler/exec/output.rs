//! A program's output: logged line by line as it comes. The last lines are kept for the error's text.

use std::collections::VecDeque;
use std::io;
use std::str::from_utf8;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// How many lines are kept for the error's text.
pub(super) const KEPT_LINES: usize = 20;

/// How many bytes of them are kept. Every further retry carries the error's text in its headers.
pub(super) const KEPT_BYTES: usize = 4096;

/// Longer lines are cut into pieces of this many bytes. A piece of invalid UTF-8 may triple in size, and still fits
/// into [`KEPT_BYTES`].
const LINE: usize = 1024;

/// How many bytes of one message's output are logged, so that a program that prints without end does not fill the disk.
/// A line counts as at least [`LINE_COST`] bytes.
pub(super) const LOGGED: usize = 1 << 20;

/// What a line costs at least: the log adds to each when it came and from which message.
const LINE_COST: usize = 32;

/// Collects what a program prints on all its pipes.
pub(crate) struct Output<L> {
    state: Mutex<State>,
    log: L,
}

#[derive(Default)]
struct State {
    kept: VecDeque<String>,
    kept_bytes: usize,
    logged: usize,
}

impl<L: Fn(&str)> Output<L> {
    /// An empty output. `log` is called for every line, up to [`LOGGED`] bytes.
    pub(crate) fn new(log: L) -> Self {
        Self { state: Mutex::default(), log }
    }

    /// Reads lines until the pipe's end. Holds at most [`LINE`] bytes at a time.
    pub(crate) async fn read(&self, pipe: Option<impl AsyncRead + Unpin>) {
        self.read_on(pipe, &Mutex::default()).await;
    }

    /// The same for a program that stays: `line` holds the line that has not ended yet, so that [`Self::end_line`] can end it.
    pub(crate) async fn read_on(&self, pipe: Option<impl AsyncRead + Unpin>, line: &Mutex<Vec<u8>>) {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; 8192];
        loop {
            match pipe.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) => self.take(&buffer[..read], &mut line.lock().unwrap_or_else(PoisonError::into_inner)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.line(format!("(the program's output cannot be read: {error})").as_bytes());
                    break;
                }
            }
        }
        self.end_line(line);
    }

    /// Takes what there is of a line as a whole one.
    pub(crate) fn end_line(&self, line: &Mutex<Vec<u8>>) {
        let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
        self.line(&line);
        line.clear();
    }

    /// The last lines.
    pub(crate) fn last_lines(&self) -> String {
        self.state().kept.make_contiguous().join("\n")
    }

    /// Begins anew, for the next message of a program that stays.
    pub(crate) fn forget(&self) {
        *self.state() = State::default();
    }

    /// Takes further bytes. `line` holds a line that has not ended yet: at most [`LINE`] bytes.
    pub(crate) fn take(&self, bytes: &[u8], line: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut part = part;
            while line.len() + part.len() > LINE {
                let (head, rest) = part.split_at(LINE - line.len());
                line.extend_from_slice(head);
                part = rest;
                let end = whole_characters(line);
                self.line(&line[..end]);
                line.drain(..end);
            }
            line.extend_from_slice(part);
            if line.ends_with(b"\n") {
                self.line(line);
                line.clear();
            }
        }
    }

    /// Takes a whole line.
    pub(crate) fn line(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        if line.is_empty() {
            return;
        }
        let mut state = self.state();
        let logged_before = state.logged;
        state.logged = logged_before.saturating_add(line.len().max(LINE_COST));
        if state.logged <= LOGGED {
            (self.log)(&line);
        } else if logged_before <= LOGGED {
            (self.log)("(the rest of the output is not logged)");
        }
        state.keep(line);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, line: String) {
        self.kept_bytes += line.len();
        self.kept.push_back(line);
        while self.kept.len() > KEPT_LINES || self.kept_bytes > KEPT_BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.len();
        }
    }
}

/// How many bytes of a cut line to take so that no character is split.
fn whole_characters(line: &[u8]) -> usize {
    match from_utf8(line) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => line.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> (Vec<String>, String) {
        let logged = Mutex::new(Vec::new());
        let output = Output::new(|line: &str| logged.lock().unwrap().push(line.to_owned()));
        let mut line = Vec::new();
        for chunk in chunks {
            output.take(chunk, &mut line);
            assert!(line.len() <= LINE);
        }
        output.line(&line);
        let last = output.last_lines();
        drop(output);
        (logged.into_inner().unwrap(), last)
    }

    #[test]
    fn lines_are_assembled_from_pieces() {
        let (lines, last) = lines_of(&[b"one\ntw", b"o\r\n\n", b"", b"three"]);
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(last, "one\ntwo\nthree");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = format!("a{}", "é".repeat(2 * LINE));
        let (lines, _) = lines_of(&[text.as_bytes()]);
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= LINE));
        assert_eq!(lines.concat(), text);
    }

    #[test]
    fn what_is_kept_and_what_is_logged_is_bounded() {
        let line = [vec![0xff; LINE - 1], vec![b'\n']].concat();
        let (lines, last) = lines_of(&vec![line.as_slice(); 4000]);
        assert!(lines.iter().map(String::len).sum::<usize>() <= LOGGED + 100);
        assert_eq!(lines.last().unwrap(), "(the rest of the output is not logged)");
        assert!(!last.is_empty() && last.len() <= KEPT_BYTES + KEPT_LINES);
        let (lines, _) = lines_of(&[&b"y\n".repeat(1 << 20)]);
        assert_eq!(lines.len(), LOGGED / LINE_COST + 1);
        let (_, last) = lines_of(&[(1..=100).map(|n| format!("{n}\n")).collect::<String>().as_bytes()]);
        assert_eq!(last.lines().count(), KEPT_LINES);
        assert!(last.ends_with("\n99\n100"));
    }

    proptest! {
        #[test]
        fn the_lines_do_not_depend_on_how_output_is_split(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..5000),
            size in 1..3000_usize,
        ) {
            let whole = lines_of(&[&bytes]);
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(whole, lines_of(&chunks));
        }
    }
}

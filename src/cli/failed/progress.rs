//! How far a long operation is: a line on a terminal, which is written over.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Nothing is shown before this time, and then as often.
const INTERVAL: Duration = Duration::from_millis(500);

/// Shown on standard error, if that is a terminal.
pub(super) struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: u64,
    next: Instant,
    is_shown: bool,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: Option<u64>) -> Self {
        Self { what, total, done: 0, next: Instant::now() + INTERVAL, is_shown: false }
    }

    /// One more is done.
    pub(super) fn step(&mut self) {
        self.done += 1;
        if Instant::now() < self.next || !io::stderr().is_terminal() {
            return;
        }
        let of = self.total.map(|total| format!(" of {}", total.max(self.done))).unwrap_or_default();
        let _ = write!(io::stderr(), "\r\x1b[K{} {}{of}", self.what, self.done);
        (self.next, self.is_shown) = (Instant::now() + INTERVAL, true);
    }

    /// Makes room for other output.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

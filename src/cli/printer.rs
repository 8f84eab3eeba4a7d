//! Prints what a program prints, without ever waiting for whoever reads it: a reader that stops reading must not hold up
//! what else this process does, such as ending a program that takes too long.

use std::cell::RefCell;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use super::output;

/// Prints lines in a thread of its own. As many wait as are given to it: the output of a run is bounded.
pub(super) struct Printer {
    lines: mpsc::Sender<String>,
    ended: oneshot::Receiver<()>,
    /// Where the system refuses the thread: printed at the end.
    kept: RefCell<Vec<String>>,
}

impl Printer {
    pub(super) fn start() -> Self {
        let (lines, received) = mpsc::channel::<String>();
        let (printed, ended) = oneshot::channel();
        // A refused thread takes the receiver with it.
        let _ = thread::Builder::new().spawn(move || {
            received.iter().for_each(output::line);
            let _ = printed.send(());
        });
        Self { lines, ended, kept: RefCell::default() }
    }

    /// Prints a line, sooner or later.
    pub(super) fn line(&self, text: &str) {
        if let Err(mpsc::SendError(text)) = self.lines.send(text.to_owned()) {
            self.kept.borrow_mut().push(text);
        }
    }

    /// Waits until everything is printed.
    pub(super) async fn finish(self) {
        drop(self.lines);
        let _ = self.ended.await;
        self.kept.into_inner().iter().for_each(output::line);
    }
}

//! Signals that ask the program to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, Result};

/// SIGTERM, SIGINT and SIGQUIT.
pub(super) struct Signals {
    signals: [Signal; 3],
}

impl Signals {
    /// From now on, these signals no longer end the process by themselves.
    pub(super) fn listen() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")));
        let signals = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?, listen(SignalKind::quit())?];
        Ok(Self { signals })
    }

    /// Returns at the next signal.
    pub(super) async fn next(&mut self) {
        let [term, int, quit] = &mut self.signals;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

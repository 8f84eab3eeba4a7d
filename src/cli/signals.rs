//! Signals that ask the program to end.

use std::future::poll_fn;
use std::task::Poll;

use futures_util::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, Result};

/// The signals that the program listens for.
pub(super) struct Signals {
    signals: Vec<Signal>,
}

impl Signals {
    /// SIGTERM, SIGINT and SIGQUIT no longer end the process by themselves from now on.
    pub(super) fn listen() -> Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        Self::listen_for(&kinds.map(|kind| kind.as_raw_value()))
    }

    /// The same for the signals with these numbers.
    pub(super) fn listen_for(numbers: &[i32]) -> Result<Self> {
        let listen = |number: &i32| signal(SignalKind::from_raw(*number));
        let signals = numbers.iter().map(listen).collect::<std::io::Result<_>>();
        let signals = signals.map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?;
        Ok(Self { signals })
    }

    /// Whether one has come since the last was told.
    pub(super) fn have_come(&mut self) -> bool {
        self.next().now_or_never().is_some()
    }

    /// Returns at the next signal.
    pub(super) async fn next(&mut self) {
        poll_fn(|context| {
            let is_there = self.signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if is_there { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

//! Waiting for the locks of other connections.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::{Fault, SqlError};

/// How long to wait for locks of other connections in total: longer than dozens of busy processes take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest of the random pauses between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long to keep trying a request that meets locks.
pub(super) struct Patience {
    deadline: Instant,
}

impl Patience {
    /// Starts with the first attempt.
    pub(super) fn new() -> Self {
        Self { deadline: Instant::now() + PATIENCE }
    }

    /// Whether to try again after this result: if a lock was in the way, and after a pause, until the time is over.
    pub(super) async fn tries_again<T>(&self, result: &Result<T, SqlError>) -> bool {
        let is_busy = result.as_ref().is_err_and(|error| error.fault() == Fault::Busy);
        if !is_busy || Instant::now() >= self.deadline {
            return false;
        }
        sleep(LONGEST_PAUSE.mul_f64(fastrand::f64())).await;
        true
    }
}

//! Counting what is pending, delayed and in flight, and parked messages.

use async_trait::async_trait;

use super::super::{Counting, Counts, Parking, TransportError};
use super::ids::{millis, now};
use super::{Redis, scripts};

/// How many entries are counted at most, where Redis does not know the number.
const MAX_COUNTED: u64 = 100_000;

impl Redis {
    async fn count(&self, cap: u64) -> Result<Counts, TransportError> {
        let action = "counting";
        let mut count = self.invocation(&scripts::COUNT);
        count.arg(&self.queue.group).arg(now()).arg(millis(self.queue.redeliver_timeout)).arg(cap.min(MAX_COUNTED));
        let counted = self.connection.run(async |connection| count.invoke_async(connection).await).await;
        let (is_there, pending, delayed, in_flight): (bool, u64, u64, u64) =
            counted.map_err(|error| self.error(action, error))?;
        if !is_there && !self.queue.auto_setup {
            return Err(self.not_set_up());
        }
        Ok(Counts { pending: pending.min(cap), delayed: delayed.min(cap), in_flight: in_flight.min(cap) })
    }
}

#[async_trait]
impl Counting for Redis {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap).await.map(|counts| counts.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        self.count(cap).await
    }
}

#[async_trait]
impl Parking for Redis {
    async fn parked(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap).await.map(|counts| counts.delayed)
    }

    async fn resume(&self) -> Result<(), TransportError> {
        let (action, now) = ("resuming parked messages", now());
        loop {
            let mut resume = self.invocation(&scripts::RESUME);
            resume.arg(now);
            let more: bool = self
                .connection
                .run(async |connection| resume.invoke_async(connection).await)
                .await
                .map_err(|error| self.error(action, error))?;
            if !more {
                break;
            }
        }
        self.connection.changed(&self.queue.stream);
        Ok(())
    }
}

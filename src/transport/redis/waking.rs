//! Waking consumers: by the changes that the server reports, and when a delayed message is due.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::super::{TransportError, Waking};
use super::Redis;

#[async_trait]
impl Waking for Redis {
    async fn wake(&self) -> Result<(), TransportError> {
        let (mut changes, next_due) = {
            let state = self.state();
            (state.changes.clone(), state.next_due)
        };
        if !self.connection.listen().await.map_err(|error| self.error("waiting", error))? {
            return std::future::pending().await;
        }
        let until_due = async {
            match next_due {
                Some(due) => tokio::time::sleep(due.duration_since(SystemTime::now()).unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = changes.changed() => {}
            () = until_due => {}
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        // There is no notification of messages whose consumer is gone.
        self.connection.reports_changes().then(|| self.queue.claim_interval.min(self.queue.redeliver_timeout))
    }
}

//! Parked messages. Theirs is the one delay whose queue is known by its name, so that it can be counted and emptied.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::ShortString;

use super::super::{PARKED_FOR, Parking, TransportError};
use super::publishing::To;
use super::{Amqp, consuming};
use crate::connection::amqp::AmqpFailure;

#[async_trait]
impl Parking for Amqp {
    async fn parked(&self, cap: u64) -> Result<u64, TransportError> {
        let mut sum: u64 = 0;
        for queue in &self.queues {
            for name in self.parking_queues(queue).map_err(|failure| self.error("counting", failure))? {
                let count = self.count_parked(&name).await.map_err(|failure| self.error("counting", failure))?;
                sum = sum.saturating_add(count);
            }
        }
        Ok(sum.min(cap))
    }

    /// Each is sent to its queue and then acknowledged, so that a crash in between leaves it twice, and never not at
    /// all.
    async fn resume(&self) -> Result<(), TransportError> {
        for queue in &self.queues {
            for name in self.parking_queues(queue).map_err(|failure| self.error("resuming parked messages", failure))? {
                self.resume_of(queue, &name)
                    .await
                    .map_err(|failure| self.error("resuming parked messages", failure))?;
            }
        }
        Ok(())
    }
}

impl Amqp {
    /// Where messages of this queue are parked: in one queue, or in the queues of two days where each day has its own.
    pub(super) fn parking_queues(&self, queue: &ShortString) -> Result<Vec<ShortString>, AmqpFailure> {
        let millis = u64::try_from(PARKED_FOR.as_millis()).unwrap_or(u64::MAX);
        let (now, since) = (Utc::now(), DateTime::<Utc>::from(SystemTime::now() - PARKED_FOR));
        let at = |at| self.topology.delay_queue_of(at, millis, queue.as_str(), true);
        let mut names = vec![at(since), at(now)];
        names.dedup();
        let name = |name| {
            ShortString::try_new(name).map_err(|_| {
                AmqpFailure::own(self.connection.location(), "the name of the queue for parked messages is too long")
            })
        };
        names.into_iter().map(name).collect()
    }

    pub(super) async fn count_parked(&self, name: &ShortString) -> Result<u64, AmqpFailure> {
        // A channel of its own, because the broker closes it if a queue does not exist.
        let channel = self.connection.channel().await?;
        match consuming::count(&channel, std::slice::from_ref(name))
            .await
            .map_err(|error| self.connection.failure(error))
        {
            Ok(count) => {
                let _ = channel.close(200, "counted".into()).await;
                Ok(count)
            }
            Err(failure) if failure.is_missing() => Ok(0),
            Err(failure) => Err(failure),
        }
    }

    /// `name` is where messages of the queue are parked.
    async fn resume_of(&self, queue: &ShortString, name: &ShortString) -> Result<(), AmqpFailure> {
        // No more than there are now: what fails meanwhile is parked again.
        let many = self.count_parked(name).await?;
        if many == 0 {
            return Ok(());
        }
        let channel = self.connection.channel().await?;
        for _ in 0..many {
            let got = channel.basic_get(name.clone(), BasicGetOptions::default()).await;
            let Some(message) = got.map_err(|error| self.connection.failure(error))? else { break };
            let delivery = message.delivery;
            let (to, data) = (To::Queue(queue), &delivery.data);
            self.publishing.publish(to, data, delivery.properties.clone(), Duration::ZERO).await?;
            let acked = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await;
            acked.map_err(|error| self.connection.failure(error))?;
        }
        let _ = channel.close(200, "resumed".into()).await;
        Ok(())
    }
}

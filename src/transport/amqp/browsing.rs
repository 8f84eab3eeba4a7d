//! Goes through the messages of a queue, one by one: for `failed` on a broker that has no ids.
//!
//! A message is received, and put back behind the others by sending it again. If it were given back instead, the broker
//! would mark it as redelivered (Symfony's consumers take that for a failure), and quorum queues count how often that
//! happens, and drop it in the end. A crash in between leaves the message twice, never not at all.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::super::{Browsing, MessageId, PARKED_FOR, Received, TransportError};
use super::consuming::{ConsumedQueue, Consuming};
use super::publishing::To;
use super::{Amqp, Settlement, received};
use crate::connection::amqp::AmqpFailure;

#[async_trait]
impl Browsing for Amqp {
    async fn next(&self, parked: bool) -> Result<Option<Received>, TransportError> {
        let action = "receiving";
        let consuming = if parked { self.parked_consuming().await } else { self.consuming().await.map(Some) };
        let Some(consuming) = consuming.map_err(|failure| self.error(action, failure))? else { return Ok(None) };
        match consuming.take(1, false).await {
            Ok(taken) => Ok(taken.into_iter().map(received).next()),
            Err(error) => {
                self.broken(&consuming).await;
                Err(self.error(action, self.connection.failure(error)))
            }
        }
    }

    async fn put_back(&self, message: &Received) -> Result<(), TransportError> {
        let action = "putting back";
        let (id, Ok(content)) = (&message.id, &message.message) else { return Ok(()) };
        // Otherwise the broker has requeued it with its channel.
        let Some(held) = self.held(id).await else { return Ok(()) };
        let delay = if held.is_parked { PARKED_FOR } else { Duration::ZERO };
        let sent = self.publishing.publish(To::Queue(&held.queue), &content.body, held.properties, delay).await;
        sent.map_err(|failure| self.error(action, failure))?;
        self.settle(action, std::slice::from_ref(id), Settlement::Ack).await
    }

    async fn is_held(&self, id: &MessageId) -> bool {
        self.held(id).await.is_some()
    }
}

impl Amqp {
    /// A channel on the queues in which messages are parked. `None` if there are none.
    async fn parked_consuming(&self) -> Result<Option<Arc<Consuming>>, AmqpFailure> {
        let mut parked = self.parked.lock().await;
        if let Some(open) = parked.as_ref().filter(|consuming| consuming.is_open()) {
            return Ok(Some(Arc::clone(open)));
        }
        *parked = None;
        let mut queues = Vec::new();
        for queue in &self.queues {
            for name in self.parking_queues(queue)? {
                if self.count_parked(&name).await? > 0 {
                    queues.push(ConsumedQueue { name, pushes: false, parks_for: Some(queue.clone()) });
                }
            }
        }
        if queues.is_empty() {
            return Ok(None);
        }
        let open = Arc::new(Consuming::new(self.connection.channel().await?, queues, 1));
        *parked = Some(Arc::clone(&open));
        Ok(Some(open))
    }
}

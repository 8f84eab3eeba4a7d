//! Sends many messages before the broker has confirmed the first.
//!
//! The broker confirms messages by their numbers, and returns those that it cannot route before it confirms them. Which of
//! them was returned, the driver only knows where one message is sent at a time; here it is found by its content.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::time::timeout;

use super::{Publishing, To, mandatory, millis};
use crate::connection::amqp::AmqpFailure;

/// A message to be sent with others.
pub(in crate::transport::amqp) struct Outgoing<'m> {
    pub(in crate::transport::amqp) body: &'m [u8],
    pub(in crate::transport::amqp) properties: BasicProperties,
    pub(in crate::transport::amqp) delay: Duration,
}

/// A message that was sent.
struct Published {
    exchange: ShortString,
    key: ShortString,
    confirmation: PublisherConfirm,
}

impl Publishing {
    /// Sends messages to the exchange, with its default routing key. Returns a result for each when the broker has
    /// confirmed all of them, or does not answer any more.
    pub(in crate::transport::amqp) async fn publish_all(
        &self,
        messages: &[Outgoing<'_>],
    ) -> Vec<Result<(), AmqpFailure>> {
        if messages.is_empty() {
            return Vec::new();
        }
        let _place = self.places.acquire().await;
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(failure) => return messages.iter().map(|_| Err(failure.clone())).collect(),
        };
        let mut delays = HashMap::new();
        let mut published = Vec::with_capacity(messages.len());
        let mut takes_more = true;
        for message in messages {
            // A broker that is short of memory or disk takes no more, without a word.
            let patience = if takes_more { self.topology.confirm_timeout } else { Duration::ZERO };
            let begun = timeout(patience, self.begin(&channel, message, &mut delays)).await;
            takes_more &= begun.is_ok();
            published.push(begun.unwrap_or_else(|_| Err(self.unconfirmed())));
        }
        let (results, has_answered) = self.confirmed(messages, published).await;
        if has_answered && takes_more {
            self.idle().push(channel);
        }
        results
    }

    async fn begin(
        &self,
        channel: &Channel,
        message: &Outgoing<'_>,
        delays: &mut HashMap<u64, ShortString>,
    ) -> Result<Published, AmqpFailure> {
        let (mut exchange, mut key) = self.address(To::Exchange);
        let millis = millis(message.delay);
        if millis > 0 {
            key = match delays.get(&millis) {
                Some(queue) => queue.clone(),
                None => {
                    let queue = self.delay_queue(channel, millis, &exchange, &key, false).await?;
                    delays.entry(millis).or_insert(queue).clone()
                }
            };
            exchange = self.topology.delays.exchange.clone();
        }
        let properties = message.properties.clone();
        let sending = channel.basic_publish(exchange.clone(), key.clone(), mandatory(), message.body, properties);
        let confirmation = sending.await.map_err(|error| self.connection.failure(error))?;
        Ok(Published { exchange, key, confirmation })
    }

    /// Waits for the confirmations, as long as they come. Also returns whether all have come.
    async fn confirmed(
        &self,
        messages: &[Outgoing<'_>],
        published: Vec<Result<Published, AmqpFailure>>,
    ) -> (Vec<Result<(), AmqpFailure>>, bool) {
        let (mut results, mut addresses, mut returned) = (Vec::new(), Vec::new(), Vec::new());
        let mut late = Vec::new();
        let mut patience = self.topology.confirm_timeout;
        for one in published {
            let (result, address) = match one {
                Ok(Published { exchange, key, mut confirmation }) => {
                    let result = match timeout(patience, &mut confirmation).await {
                        Ok(confirmed) => {
                            let (confirmed, message) = without_returned(confirmed);
                            returned.extend(message);
                            self.outcome(confirmed)
                        }
                        Err(_) => {
                            // Of the others, those count that were confirmed meanwhile.
                            patience = Duration::ZERO;
                            late.push(confirmation);
                            Err(self.unconfirmed())
                        }
                    };
                    (result, Some((exchange, key)))
                }
                Err(failure) => (Err(failure), None),
            };
            results.push(result);
            addresses.push(address);
        }
        // One that has come meanwhile may have what was returned of another.
        let come = late.into_iter().filter_map(FutureExt::now_or_never);
        returned.extend(come.filter_map(|confirmed| without_returned(confirmed).1));
        let mut found = BTreeSet::new();
        for message in returned {
            let is_it = |n: &usize| {
                let address = &addresses[*n];
                !found.contains(n)
                    && address.as_ref().is_some_and(|(exchange, key)| {
                        (exchange, key) == (&message.delivery.exchange, &message.delivery.routing_key)
                    })
                    && messages[*n].body == message.delivery.data
                    && messages[*n].properties == message.delivery.properties
            };
            match (0..messages.len()).find(is_it) {
                Some(n) => {
                    found.insert(n);
                    results[n] = Err(self.unroutable(&message.delivery.exchange, &message.delivery.routing_key));
                }
                // Which one it is cannot be told, so that none can be reported as stored.
                None => {
                    for result in results.iter_mut().filter(|result| result.is_ok()) {
                        *result = Err(self.unroutable(&message.delivery.exchange, &message.delivery.routing_key));
                    }
                }
            }
        }
        (results, !patience.is_zero())
    }
}

/// The broker's answer, and the message that it has returned before, which may be another one.
fn without_returned(
    confirmed: lapin::Result<Confirmation>,
) -> (lapin::Result<Confirmation>, Option<BasicReturnMessage>) {
    match confirmed {
        Ok(Confirmation::Ack(message)) => (Ok(Confirmation::Ack(None)), message),
        Ok(Confirmation::Nack(message)) => (Ok(Confirmation::Nack(None)), message),
        other => (other, None),
    }
}

//! Sends a message to the transports that routing, or the message itself, names.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{DispatchError, Middleware, Next, Routing};
use crate::message::{
    BusNameStamp, DelayStamp, Envelope, HandledNowStamp, ReceivedStamp, SentStamp, TransportNamesStamp,
};
use crate::transport::{Sent, Transports};

/// What Symfony's default bus is called; a Symfony worker refuses messages of buses that it does not know.
const BUS: &str = "messenger.bus.default";

pub(super) struct Send {
    pub(super) routing: Arc<Routing>,
    pub(super) transports: Arc<Transports>,
}

#[async_trait]
impl Middleware for Send {
    async fn handle(&self, envelope: Envelope, next: Next<'_>) -> Result<Envelope, DispatchError> {
        if envelope.last::<ReceivedStamp>().is_some() {
            return next.run(envelope).await;
        }
        let names = match envelope.last::<TransportNamesStamp>() {
            Some(stamp) => stamp.transports,
            None => self.routing.transports(envelope.message_type(), envelope.interfaces()),
        };
        if names.is_empty() {
            let reason = format!("\"{}\" is not routed to any transport", envelope.message_type());
            return next.run(envelope.with(&HandledNowStamp { transport_name: None, reason })).await;
        }
        let envelope = self.send(envelope, &names).await?;
        // Handled once, however many transports say so, and after it is safe on those that queue.
        if envelope.last::<HandledNowStamp>().is_some() { next.run(envelope).await } else { Ok(envelope) }
    }
}

impl Send {
    async fn send(&self, envelope: Envelope, names: &[String]) -> Result<Envelope, DispatchError> {
        let mut envelope = envelope;
        if envelope.last::<BusNameStamp>().is_none() {
            envelope.add(&BusNameStamp { bus_name: BUS.to_owned() });
        }
        let delay = envelope.last::<DelayStamp>().map_or(Duration::ZERO, |stamp| Duration::from_millis(stamp.delay));
        let encoded = envelope.encode();
        for name in names {
            let sent = match self.transports.get(name) {
                Ok(transport) => transport.send(&encoded, delay).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(Sent::Queued { transport, id, reason }) => {
                    envelope.add(&SentStamp { transport_name: name.clone(), queued_on: transport, id: id.0, reason })
                }
                Ok(Sent::HandleNow { reason }) => {
                    envelope.add(&HandledNowStamp { transport_name: Some(name.clone()), reason });
                }
                Err(source) => return Err(DispatchError::Sending { source, sent: envelope.all() }),
            }
        }
        Ok(envelope)
    }
}

//! `traceable`: a span of `tracing` around each message, and an event with the time that it took.

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::Instrument;

use super::{DispatchError, Middleware, Next};
use crate::message::{Envelope, ReceivedStamp};

pub(super) struct Traceable;

#[async_trait]
impl Middleware for Traceable {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let begun = Instant::now();
        let received = envelope.last::<ReceivedStamp>().map(|stamp| stamp.transport_name);
        let doing = if received.is_some() { "handle" } else { "dispatch" };
        let (bus, message_type) = (next.bus().name(), envelope.message_type());
        let span = tracing::debug_span!("message", doing, bus, message_type, transport = received);
        async move {
            let result = next.run(envelope).await;
            let took = begun.elapsed();
            match &result {
                Ok(_) => tracing::debug!(?took, "done"),
                Err(error) => tracing::debug!(?took, %error, "failed"),
            }
            result
        }
        .instrument(span)
        .await
    }
}

//! `add_bus_name_stamp_middleware`: writes the bus's name on each message, so that the worker that receives it knows on which
//! bus to handle it.

use async_trait::async_trait;

use super::{DispatchError, Middleware, Next};
use crate::message::{BusNameStamp, Envelope, ReceivedStamp};

pub(super) struct AddBusName;

#[async_trait]
impl Middleware for AddBusName {
    async fn handle(&self, mut envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        // What was received goes back as it came.
        if envelope.last::<BusNameStamp>().is_none() && envelope.last::<ReceivedStamp>().is_none() {
            envelope.add(&BusNameStamp { bus_name: next.bus().name().to_owned() });
        }
        next.run(envelope).await
    }
}

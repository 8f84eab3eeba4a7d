//! A transport that delivers one message: one that was taken from it by its id.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::transport::{MessageId, Received, Receiver, Transport, TransportError};

/// Delivers one message. Everything else is up to the receiver that it came from.
struct Taken {
    message: Mutex<Option<Received>>,
    receiver: Arc<dyn Receiver>,
}

/// The same transport, but a worker receives only this message, which was taken from it. `None` if nothing can be
/// consumed there.
pub(crate) fn only(transport: &Transport, message: Received) -> Option<Transport> {
    let receiver = Arc::clone(transport.receiver.as_ref()?);
    let mut only = transport.clone();
    only.receiver = Some(Arc::new(Taken { message: Mutex::new(Some(message)), receiver }));
    // It waits for no other message.
    (only.waking, only.prefetching, only.queues) = (None, None, None);
    Some(only)
}

#[async_trait]
impl Receiver for Taken {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(if up_to == 0 { None } else { message.take() }.into_iter().collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.receiver.ack(ids).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.receiver.reject(ids).await
    }
}

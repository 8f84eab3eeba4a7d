//! A transport that delivers one message, which was received from it before: for `failed retry`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::message::{Encoded, Envelope, ErrorDetailsStamp};
use crate::serializer::Serializers;
use crate::transport::{MessageId, Received, Receiver, Retrying, Transport, TransportError};

/// Delivers one message. Everything else is up to the transport that it came from.
pub(crate) struct Taken {
    message: Mutex<Option<Received>>,
    receiver: Arc<dyn Receiver>,
    retrying: Option<Arc<dyn Retrying>>,
    transport: String,
    serializers: Arc<Serializers>,
    /// The error with which it failed again.
    error: Mutex<Option<String>>,
    /// Whether it was acknowledged; the error, if that failed.
    acknowledged: Mutex<Option<Result<(), String>>>,
}

/// The same transport, but a worker receives only this message, which was taken from it. `None` if nothing can be
/// consumed there.
pub(crate) fn only(
    transport: &Transport,
    message: Received,
    serializers: Arc<Serializers>,
) -> Option<(Transport, Arc<Taken>)> {
    let taken = Arc::new(Taken {
        message: Mutex::new(Some(message)),
        receiver: Arc::clone(transport.receiver.as_ref()?),
        retrying: transport.retrying.clone(),
        transport: transport.name().to_owned(),
        serializers,
        error: Mutex::default(),
        acknowledged: Mutex::default(),
    });
    let mut only = transport.clone();
    only.receiver = Some(taken.clone());
    if only.retrying.is_some() {
        only.retrying = Some(taken.clone());
    }
    // It waits for no other message.
    (only.waking, only.prefetching, only.queues, only.counting) = (None, None, None, None);
    Some((only, taken))
}

impl Taken {
    /// Whether a worker has taken the message. It does not while there is no permit for it.
    pub(crate) fn was_received(&self) -> bool {
        self.message.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// The error with which the message failed again and was kept.
    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the message is still there, if it was not acknowledged after it was handled.
    pub(crate) fn why_not_removed(&self) -> Option<String> {
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = match acknowledged {
            Some(Ok(())) => return None,
            Some(Err(error)) => error,
            None => "its store does not answer".to_owned(),
        };
        Some(format!("it is handled again after redeliver_timeout, because it could not be acknowledged: {why}"))
    }
}

#[async_trait]
impl Receiver for Taken {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(if up_to == 0 { None } else { message.take() }.into_iter().collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        let result = self.receiver.ack(ids).await;
        let known = result.as_ref().copied().map_err(ToString::to_string);
        *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        result
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.receiver.reject(ids).await
    }
}

#[async_trait]
impl Retrying for Taken {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let read = self.serializers.decode(&self.transport, message).map(|(envelope, _)| envelope);
        let stamps = read.unwrap_or_else(|_| Envelope::stamps_of(message));
        let error = stamps.last::<ErrorDetailsStamp>().map(|stamp| stamp.exception_message);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        match &self.retrying {
            Some(retrying) => retrying.retry(id, message, delay).await,
            // Only a transport that can do it is wrapped.
            None => Ok(()),
        }
    }
}

//! What a message passes on its way.

use std::sync::Arc;

use async_trait::async_trait;

use super::DispatchError;
use crate::message::Envelope;

/// Sees each message on its way: when it is dispatched, and again (with a
/// [`ReceivedStamp`](crate::message::ReceivedStamp)) when a worker has received it.
///
/// ```
/// use minutely::bus::{DispatchError, Middleware, Next};
/// use minutely::message::Envelope;
///
/// struct Log;
///
/// #[async_trait::async_trait]
/// impl Middleware for Log {
///     async fn handle(&self, envelope: Envelope, next: Next<'_>) -> Result<Envelope, DispatchError> {
///         println!("{} is coming", envelope.message_type());
///         next.run(envelope).await
///     }
/// }
/// ```
#[async_trait]
pub trait Middleware: Send + Sync {
    /// Passes the message on with `next.run(envelope)`, or not; before, after and instead it may do what it likes.
    async fn handle(&self, envelope: Envelope, next: Next<'_>) -> Result<Envelope, DispatchError>;
}

/// The rest of a message's way.
pub struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
}

impl<'a> Next<'a> {
    pub(super) fn new(all: &'a [Arc<dyn Middleware>]) -> Self {
        Self { rest: all }
    }

    /// Goes on. At the end of the way the message is returned as it arrived there.
    pub async fn run(self, envelope: Envelope) -> Result<Envelope, DispatchError> {
        match self.rest.split_first() {
            Some((first, rest)) => first.handle(envelope, Next { rest }).await,
            None => Ok(envelope),
        }
    }
}

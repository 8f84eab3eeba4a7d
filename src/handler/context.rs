//! What a handler is called with.

use std::any::Any;

use super::{CancellationToken, HandlerError, States};
use crate::message::{Envelope, RedeliveryStamp, TraceContext};

/// What a handler is called with: the message in its envelope, and the application's states.
///
/// Functions as handlers get what they need as [arguments](super::Argument).
pub struct HandlerContext<'a> {
    envelope: &'a Envelope,
    states: &'a States,
    cancellation: &'a CancellationToken,
    extensions: &'a [&'a (dyn Any + Send + Sync)],
}

impl<'a> HandlerContext<'a> {
    /// A context; `extensions` are found by their types.
    pub(crate) fn new(
        envelope: &'a Envelope,
        states: &'a States,
        cancellation: &'a CancellationToken,
        extensions: &'a [&'a (dyn Any + Send + Sync)],
    ) -> Self {
        Self { envelope, states, cancellation, extensions }
    }

    /// The message in its envelope.
    pub fn envelope(&self) -> &Envelope {
        self.envelope
    }

    /// The number of this attempt to handle the message, starting at 1.
    pub fn attempt(&self) -> u32 {
        self.envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count).saturating_add(1)
    }

    /// Is cancelled when the worker is asked to stop.
    pub fn cancellation(&self) -> &CancellationToken {
        self.cancellation
    }

    /// The span that handles the message, if the message belongs to a trace.
    pub fn trace(&self) -> Option<&'a TraceContext> {
        self.extension()
    }

    /// A state of the application. A lazy one is created now if it does not exist yet.
    pub async fn state<T: Clone + Send + Sync + 'static>(&self) -> Result<T, HandlerError> {
        self.states.get().await
    }

    /// Something that the caller has added: the bus.
    pub(crate) fn extension<T: 'static>(&self) -> Option<&'a T> {
        self.extensions.iter().find_map(|extension| extension.downcast_ref())
    }
}

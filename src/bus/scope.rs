//! What a message that is being handled leaves to the messages that are dispatched meanwhile.

use std::sync::Arc;

use super::deferred::Deferred;
use crate::message::{RouterContextStamp, TraceContext};

/// What the messages that a handler dispatches have in common with the one that it handles. Empty where nothing is being
/// handled.
#[derive(Clone, Default)]
pub(super) struct Scope {
    /// Where messages wait until the outermost one has been handled.
    pub(super) deferred: Option<Arc<Deferred>>,
    /// The span that handles the message.
    pub(super) trace: Option<Arc<TraceContext>>,
    /// The address that its links begin with.
    pub(super) router: Option<Arc<RouterContextStamp>>,
}

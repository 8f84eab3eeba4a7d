//! Calls a message's handlers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;

use super::{DispatchError, HandlingFailed, Middleware, Next};
use crate::config::nearest;
use crate::handler::{Handler, HandlerError, Handlers};
use crate::message::{Envelope, HandledStamp};

pub(super) struct Handle {
    pub(super) handlers: Arc<Handlers>,
}

#[async_trait]
impl Middleware for Handle {
    /// Every handler gets its turn, whatever became of those before it; one that has succeeded in an earlier try does not
    /// run again.
    async fn handle(&self, envelope: Envelope, next: Next<'_>) -> Result<Envelope, DispatchError> {
        let handlers = self.handlers.for_type(envelope.message_type(), envelope.interfaces());
        if handlers.is_empty() {
            let known = self.handlers.iter().map(|(pattern, _)| pattern);
            let nearest = nearest(envelope.message_type(), known).map(str::to_owned);
            return Err(DispatchError::NoHandler { message_type: envelope.message_type().to_owned(), nearest });
        }
        let done: Vec<String> = envelope.all::<HandledStamp>().into_iter().map(|stamp| stamp.handler_name).collect();
        let mut failures = Vec::new();
        let mut stamped = envelope.clone();
        for handler in handlers.iter().filter(|handler| !done.iter().any(|name| name == handler.name())) {
            match call(handler.as_ref(), &envelope).await {
                Ok(()) => stamped
                    .add(&HandledStamp { result: serde_json::Value::Null, handler_name: handler.name().to_owned() }),
                Err(error) => failures.push((handler.name().to_owned(), error)),
            }
        }
        if failures.is_empty() {
            return next.run(stamped).await;
        }
        Err(DispatchError::Handling(Box::new(HandlingFailed { envelope: stamped, failures })))
    }
}

/// Calls a handler. A panic is its failure, and not the worker's.
async fn call(handler: &dyn Handler, envelope: &Envelope) -> Result<(), HandlerError> {
    AssertUnwindSafe(handler.handle(envelope)).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(HandlerError::failed(format!("the handler panicked: {}", text.unwrap_or("no message"))))
    })
}

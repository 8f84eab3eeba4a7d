//! Calls a message's handlers.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexSet;
use serde_json::Value;

use super::{DispatchError, HandlingFailed, Middleware, Next};
use crate::config::nearest;
use crate::handler::{Handler, HandlerContext, HandlerError, Handlers, caught};
use crate::message::{Envelope, HandledStamp, TraceContext, UnhandledStamp};

pub(super) struct HandleMiddleware {
    pub(super) handlers: Arc<Handlers>,
    /// A message without a handler is no mistake: nobody is interested in this event.
    pub(super) allow_no_handlers: bool,
}

#[async_trait]
impl Middleware for HandleMiddleware {
    /// Calls every handler, also after another one has failed. A handler that has succeeded in an earlier attempt is
    /// not called again (as in Symfony's `HandleMessageMiddleware`).
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let handlers = self.handlers.for_message(&envelope, next.bus().name());
        if handlers.is_empty() && self.allow_no_handlers {
            tracing::debug!(
                message_type = envelope.message_type(),
                bus = next.bus().name(),
                "there is no handler for it"
            );
            return next.run(envelope.with(&UnhandledStamp {})).await;
        }
        if handlers.is_empty() {
            return Err(self.no_handler(&envelope, next.bus().name()));
        }
        let done: Vec<String> = envelope.all::<HandledStamp>().into_iter().map(|stamp| stamp.handler_name).collect();
        let mut envelope = envelope;
        let mut next = next;
        let trace = TraceContext::of(&envelope).map(|cause| cause.child());
        if let Some(span) = &trace {
            tracing::debug!(
                trace_id = span.trace_id(),
                span_id = span.span_id(),
                message_type = envelope.message_type(),
                "handle"
            );
        }
        next.scope_mut().trace = trace.clone().map(Arc::new);
        let mut failures = Vec::new();
        for handler in handlers.iter().filter(|handler| !done.iter().any(|name| name == handler.name())) {
            let handler_name = handler.name().to_owned();
            let called = {
                let bus: &(dyn Any + Send + Sync) = next.bus();
                let trace = trace.iter().map(|trace| trace as &(dyn Any + Send + Sync));
                let extensions: Vec<_> = std::iter::once(bus).chain(trace).chain(next.extensions()).collect();
                let context = HandlerContext::new(&envelope, &self.handlers.states, next.cancellation(), &extensions);
                call(handler.as_ref(), &context).await
            };
            match called {
                Ok(result) => envelope.add(&HandledStamp { result, handler_name }),
                Err(error) => failures.push((handler_name, error)),
            }
        }
        if failures.is_empty() {
            return next.run(envelope).await;
        }
        Err(DispatchError::Handling(Box::new(HandlingFailed { envelope, failures })))
    }
}

impl HandleMiddleware {
    fn no_handler(&self, envelope: &Envelope, bus: &str) -> DispatchError {
        let message_type = envelope.message_type().to_owned();
        let elsewhere = self.handlers.for_type(&message_type, envelope.interfaces());
        let (here, other_buses): (Vec<_>, Vec<_>) =
            elsewhere.into_iter().partition(|handler| handler.options.is_on(bus));
        let only_from: IndexSet<String> =
            here.iter().flat_map(|handler| &handler.options.from_transports).cloned().collect();
        let only_on: IndexSet<String> = other_buses.iter().filter_map(|handler| handler.options.bus.clone()).collect();
        let known = self.handlers.iter().map(|(pattern, _)| pattern).filter(|pattern| !pattern.ends_with('*'));
        let nearest = nearest(&message_type, known).filter(|_| only_from.is_empty() && only_on.is_empty());
        DispatchError::NoHandler {
            nearest: nearest.map(str::to_owned),
            only_from: only_from.into_iter().collect(),
            only_on: only_on.into_iter().collect(),
            bus: bus.to_owned(),
            message_type,
        }
    }
}

/// Calls a handler. A panic counts as a failure of the handler, and does not end the worker.
async fn call(handler: &dyn Handler, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
    caught(async { handler.handle(context).await }).await.unwrap_or_else(|text| {
        Err(HandlerError {
            class: "minutely::handler::Panicked".to_owned(),
            ..HandlerError::failed(format!("the handler panicked: {text}"))
        })
    })
}

//! A Rust function as a handler.

use std::future::Future;
use std::marker::PhantomData;

use async_trait::async_trait;

use super::{Handler, HandlerError};
use crate::message::{Envelope, Message};

/// An async function of a message. A handler that needs the envelope implements [`Handler`] itself.
pub struct Typed<M, F> {
    name: String,
    function: F,
    message: PhantomData<fn(M)>,
}

impl<M, F, R> Typed<M, F>
where
    M: Message,
    F: Fn(M) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    /// A handler that goes by its message's type. Give it a name of its own with [`Typed::named`] where one message has
    /// several handlers: the name is what tells a retry which of them have succeeded.
    pub fn new(function: F) -> Self {
        Self::named(format!("handler of {}", M::TYPE), function)
    }

    /// A handler with a name. Keep the name when the code changes.
    pub fn named(name: impl Into<String>, function: F) -> Self {
        Self { name: name.into(), function, message: PhantomData }
    }
}

#[async_trait]
impl<M, F, R> Handler for Typed<M, F>
where
    M: Message,
    F: Fn(M) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, envelope: &Envelope) -> Result<(), HandlerError> {
        let message = envelope.message::<M>().map_err(|error| {
            HandlerError::unrecoverable(format!("the body is no {}: {error}", std::any::type_name::<M>()))
        })?;
        (self.function)(message).await
    }
}

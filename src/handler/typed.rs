//! A Rust function as a handler.

use std::any::type_name;
use std::future::Future;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Handler, HandlerError};
use crate::message::{Envelope, Message};

type Function<M> = dyn Fn(M, &Envelope) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync;

/// An async function or closure that handles messages of type `M`.
///
/// ```
/// use minutely::handler::{HandlerError, Typed};
/// # use minutely::message::Message;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # impl Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
///
/// async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
///     if !message.to.contains('@') {
///         return Err(HandlerError::unrecoverable(format!("\"{}\" is no address", message.to)));
///     }
///     Ok(())
/// }
/// let handler = Typed::new(send_email);
///
/// // With the envelope, whose stamps say how the message got here.
/// let handler = Typed::with_envelope(|message: SendEmail, envelope| async move {
///     println!("{} has {} headers", envelope.message_type(), envelope.headers().len());
///     send_email(message).await
/// })
/// .named("send_email");
/// ```
pub struct Typed<M> {
    name: String,
    function: Box<Function<M>>,
}

impl<M: Message> Typed<M> {
    /// A handler that gets the message.
    ///
    /// It goes by the function's path (`shop::mail::send_email`), which changes when the function is moved; a message
    /// that waits for its retry at that moment is then handled again by all its handlers. [`Typed::named`] avoids that.
    pub fn new<F, R>(function: F) -> Self
    where
        F: Fn(M) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self { name: type_name::<F>().to_owned(), function: Box::new(move |message, _| function(message).boxed()) }
    }

    /// A handler that gets the message and its envelope.
    pub fn with_envelope<F, R>(function: F) -> Self
    where
        F: Fn(M, Envelope) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let name = type_name::<F>().to_owned();
        Self { name, function: Box::new(move |message, envelope| function(message, envelope.clone()).boxed()) }
    }

    /// The same handler under a name of your choice. Keep the name when the code changes.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }
}

#[async_trait]
impl<M: Message> Handler for Typed<M> {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, envelope: &Envelope) -> Result<(), HandlerError> {
        let message = envelope.message::<M>().map_err(|error| HandlerError {
            class: "minutely::handler::WrongBody".to_owned(),
            ..HandlerError::unrecoverable(format!(
                "the body of \"{}\" is no {}: {error}",
                envelope.message_type(),
                type_name::<M>()
            ))
        })?;
        (self.function)(message, envelope).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde::{Deserialize, Serialize};

    use super::super::Verdict;
    use super::*;
    use crate::message::ReceivedStamp;

    #[derive(Serialize, Deserialize)]
    struct Add {
        n: u32,
    }

    impl Message for Add {
        const TYPE: &'static str = r"App\Add";
    }

    async fn nothing(_: Add) -> Result<(), HandlerError> {
        Ok(())
    }

    #[tokio::test]
    async fn a_function_gets_the_message() {
        let sum = Arc::new(AtomicU32::new(0));
        let handler = Typed::new({
            let sum = Arc::clone(&sum);
            move |message: Add| {
                let sum = Arc::clone(&sum);
                async move {
                    sum.fetch_add(message.n, Ordering::Relaxed);
                    Ok(())
                }
            }
        });
        handler.handle(&Envelope::new(&Add { n: 3 }).unwrap()).await.unwrap();
        assert_eq!(sum.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_function_may_have_the_envelope_too() {
        let handler = Typed::with_envelope(|message: Add, envelope| async move {
            let from = envelope.last::<ReceivedStamp>().map(|stamp| stamp.transport_name);
            Err(HandlerError::failed(format!("{} from {from:?}", message.n)))
        });
        let envelope = Envelope::new(&Add { n: 3 }).unwrap().with(&ReceivedStamp { transport_name: "mail".into() });
        assert_eq!(handler.handle(&envelope).await.unwrap_err().message, "3 from Some(\"mail\")");
    }

    #[tokio::test]
    async fn a_body_of_another_shape_is_not_retried() {
        let error = Typed::new(nothing).handle(&Envelope::from_json(Add::TYPE, "{\"n\":\"x\"}")).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unrecoverable);
        for part in [r"App\Add", "typed::tests::Add", "expected u32"] {
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn a_function_is_known_by_its_path_or_by_the_name_it_is_given() {
        assert!(Typed::new(nothing).name().ends_with("typed::tests::nothing"));
        assert_eq!(Typed::new(nothing).named("add").name(), "add");
    }
}

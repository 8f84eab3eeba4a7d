//! A Rust function as a handler.

use std::any::type_name;
use std::future::Future;
use std::marker::PhantomData;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;

use super::argument::{Argument, MessageType};
use super::{Handler, HandlerContext, HandlerError, States};

/// An async function that can be a handler. Its arguments are what it needs, in any order ([`Argument`]). It returns
/// `()` or a `Result`.
///
/// `Args` is the tuple of its arguments, which the compiler infers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not an async function that can handle messages",
    note = "a handler is an `async fn`, or a closure that returns a future, of up to eight arguments; each is its message (a \
            type that implements `Message`), `State<T>`, `Bus`, `Envelope`, `Stamped<S>`, `Attempt` or `CancellationToken`",
    note = "it returns `()` or `Result<T, E>`, where `T` can be serialized and `E` is `HandlerError`, an error, \
            `anyhow::Error`, `Box<dyn Error + Send + Sync>`, `String` or `&str`",
    note = "its future is `Send`: it holds nothing across an `.await` that cannot be sent to another thread, such as an `Rc`"
)]
pub trait HandlerFn<Args>: Send + Sync + 'static {
    /// How many of its arguments are messages.
    #[doc(hidden)]
    const MESSAGES: usize;

    /// Has it arguments that only a message has?
    #[doc(hidden)]
    const NEEDS_MESSAGE: bool;

    /// Has it arguments that only a job has?
    #[doc(hidden)]
    const NEEDS_JOB: bool;

    /// The message among its arguments.
    #[doc(hidden)]
    fn message() -> Option<MessageType>;

    /// What the application lacks for its arguments.
    #[doc(hidden)]
    fn missing(states: &States) -> Vec<String>;

    /// Gets the arguments, and calls the function.
    #[doc(hidden)]
    fn call<'a>(&'a self, context: &'a HandlerContext<'a>) -> BoxFuture<'a, Result<Value, HandlerError>>;
}

macro_rules! handler_fn {
    ($($argument:ident),*) => {
        impl<F, R, T, $($argument),*> HandlerFn<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R + Send + Sync + 'static,
            R: Future<Output = T> + Send + 'static,
            T: HandlerReturn + 'static,
            $($argument: Argument,)*
        {
            const MESSAGES: usize = 0 $(+ <$argument as Argument>::MESSAGE.is_some() as usize)*;
            const NEEDS_MESSAGE: bool = false $(|| <$argument as Argument>::OF_MESSAGE)*;
            const NEEDS_JOB: bool = false $(|| <$argument as Argument>::OF_JOB)*;

            fn message() -> Option<MessageType> {
                let all: &[Option<MessageType>] = &[$(<$argument as Argument>::MESSAGE),*];
                all.iter().copied().flatten().next()
            }

            #[allow(unused_variables, reason = "a job may have no arguments")]
            fn missing(states: &States) -> Vec<String> {
                let all: Vec<Option<String>> = vec![$($argument::missing(states)),*];
                all.into_iter().flatten().collect()
            }

            #[allow(unused_variables, reason = "a job may have no arguments")]
            fn call<'a>(&'a self, context: &'a HandlerContext<'a>) -> BoxFuture<'a, Result<Value, HandlerError>> {
                async move {
                    $(
                        #[allow(non_snake_case, reason = "a variable is named like its type parameter")]
                        let $argument = $argument::extract(context).await?;
                    )*
                    self($($argument),*).await.into_result()
                }
                .boxed()
            }
        }
    };
}

handler_fn!();
handler_fn!(A);
handler_fn!(A, B);
handler_fn!(A, B, C);
handler_fn!(A, B, C, D);
handler_fn!(A, B, C, D, E);
handler_fn!(A, B, C, D, E, G);
handler_fn!(A, B, C, D, E, G, H);
handler_fn!(A, B, C, D, E, G, H, I);

/// What a handler function may return.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "it returns `()` or `Result<T, E>`, where `T` can be serialized and `E` is `HandlerError`, an error, \
            `anyhow::Error`, `Box<dyn Error + Send + Sync>`, `String` or `&str`"
)]
pub trait HandlerReturn {
    /// The result that is kept, as JSON.
    fn into_result(self) -> Result<Value, HandlerError>;
}

impl HandlerReturn for () {
    fn into_result(self) -> Result<Value, HandlerError> {
        Ok(Value::Null)
    }
}

impl<T: Serialize, E: Into<HandlerError>> HandlerReturn for Result<T, E> {
    fn into_result(self) -> Result<Value, HandlerError> {
        let result = serde_json::to_value(self.map_err(Into::into)?);
        // The message was handled, and must not be handled again.
        Ok(result.unwrap_or_else(|error| {
            tracing::error!(%error, "the value that a handler returned cannot be written as JSON, and is dropped");
            Value::Null
        }))
    }
}

/// A function as a [`Handler`]. Made by [`from_fn`].
pub struct FunctionHandler<F, Args> {
    name: Option<String>,
    function: F,
    arguments: PhantomData<fn(Args)>,
}

/// Makes a handler of an async function, to register it for a wildcard or an interface, or under a name of its own.
///
/// ```
/// use std::sync::Arc;
///
/// use minutely::App;
/// use minutely::handler::from_fn;
/// use minutely::message::Envelope;
///
/// async fn audit(envelope: Envelope) {
///     println!("{} was handled", envelope.message_type());
/// }
///
/// let app = App::builder().handler(r"App\Message\*", Arc::new(from_fn(audit).named("audit")));
/// ```
///
/// Its name is the function's path (`shop::mail::send_email`), which changes if the function is moved. A message that
/// waits for its retry at that moment is then handled again by all its handlers. [`FunctionHandler::named`] avoids
/// that.
pub fn from_fn<F: HandlerFn<Args>, Args: 'static>(function: F) -> FunctionHandler<F, Args> {
    FunctionHandler { name: None, function, arguments: PhantomData }
}

impl<F: HandlerFn<Args>, Args> FunctionHandler<F, Args> {
    /// The same handler under a name of your choice. Keep the name when the code changes.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }
}

/// Whether the compiler numbers functions with such a name, so that it changes with the code around it.
fn is_numbered(path: &str) -> bool {
    path.ends_with("{{closure}}") || path.contains("}}#") || !path.contains("::")
}

#[async_trait]
impl<F: HandlerFn<Args>, Args: 'static> Handler for FunctionHandler<F, Args> {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| type_name::<F>())
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        self.function.call(context).await
    }

    fn problems(&self, states: &States) -> Vec<String> {
        let mut problems = F::missing(states);
        if self.name.is_none() && is_numbered(type_name::<F>()) {
            problems.push(
                "is a closure, whose name changes with the code around it, so that a retry could run it again although it has \
                 succeeded; give it a name with `.handle_named(\"…\", …)` or `from_fn(…).named(\"…\")`"
                    .to_owned(),
            );
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde::{Deserialize, Serialize};

    use super::super::{Attempt, CancellationToken, Stamped, State, Verdict};
    use super::*;
    use crate::message::{DelayStamp, Envelope, Message, ReceivedStamp, RedeliveryStamp};

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

    fn add(n: u32) -> Envelope {
        Envelope::new(&Add { n }).unwrap()
    }

    async fn call(handler: &dyn Handler, envelope: &Envelope, states: &States) -> Result<Value, HandlerError> {
        handler.handle(&HandlerContext::new(envelope, states, &CancellationToken::default(), &[])).await
    }

    async fn failure<F: HandlerFn<Args>, Args: 'static>(function: F) -> HandlerError {
        call(&from_fn(function), &add(3), &States::default()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_function_gets_its_arguments_in_any_order() {
        let mut states = States::default();
        states.insert(Arc::new(AtomicU32::new(5)));
        states.insert("Ada");
        #[expect(clippy::too_many_arguments, reason = "one of each kind")]
        async fn all(
            State(sum): State<Arc<AtomicU32>>,
            Attempt(attempt): Attempt,
            message: Add,
            State(name): State<&'static str>,
            Stamped(received): Stamped<ReceivedStamp>,
            delayed: Option<Stamped<DelayStamp>>,
            envelope: Envelope,
            cancellation: CancellationToken,
        ) -> Result<String, &'static str> {
            sum.fetch_add(message.n, Ordering::Relaxed);
            let (from, cancelled) = (received.transport_name, cancellation.is_cancelled());
            Ok(format!("{name} {attempt} {from} {delayed:?} {} {cancelled}", envelope.message_type()))
        }
        let handler = from_fn(all);
        assert_eq!(handler.problems(&states), Vec::<String>::new());
        let stamp = RedeliveryStamp { retry_count: 2, redelivered_at: String::new() };
        let envelope = add(3).with(&stamp).with(&ReceivedStamp { transport_name: "mail".into() });
        let result = call(&handler, &envelope, &states).await.unwrap();
        assert_eq!(result, r"Ada 3 mail None App\Add false");
        assert_eq!(states.get::<Arc<AtomicU32>>().await.unwrap().load(Ordering::Relaxed), 8);
        let error = call(&handler, &add(3), &states).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unrecoverable);
        assert!(error.message.ends_with("has no Symfony\\Component\\Messenger\\Stamp\\ReceivedStamp"), "{error}");
    }

    #[tokio::test]
    async fn a_handler_may_fail_with_any_error() {
        async fn io(_: Add) -> Result<(), HandlerError> {
            Err(std::io::Error::other("disk"))?
        }
        async fn boxed(_: Add) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            Err("box".into())
        }
        async fn text(_: Add) -> Result<(), String> {
            Err("text".to_owned())
        }
        async fn in_between(_: Add) -> Result<(), HandlerError> {
            let number: u32 = "x".parse()?;
            if number > 0 {
                Err("never")?;
            }
            Ok(())
        }
        let io = failure(io).await;
        assert_eq!(
            (io.message.as_str(), io.class.as_str(), io.verdict),
            ("disk", "std::io::error::Error", Verdict::Retry)
        );
        let boxed = failure(boxed).await;
        assert_eq!((boxed.message.as_str(), boxed.class.as_str()), ("box", "minutely::HandlerError"));
        assert_eq!(failure(text).await.message, "text");
        assert_eq!(failure(in_between).await.class, "core::num::error::ParseIntError");
    }

    #[tokio::test]
    async fn a_body_of_another_shape_is_not_retried() {
        let envelope = Envelope::from_json(Add::TYPE, "{\"n\":\"x\"}");
        let error = call(&from_fn(nothing), &envelope, &States::default()).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unrecoverable);
        for part in [r"App\Add", "function::tests::Add", "expected u32"] {
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn a_function_is_named_by_its_path_and_a_closure_needs_a_name() {
        let states = States::default();
        let function = from_fn(nothing);
        assert!(function.name().ends_with("function::tests::nothing"));
        assert_eq!(function.problems(&states), Vec::<String>::new());
        let closure = || from_fn(|_: Add| async {});
        assert!(closure().problems(&states)[0].starts_with("is a closure"));
        assert_eq!(closure().named("add").problems(&states), Vec::<String>::new());
        assert_eq!(closure().named("add").name(), "add");
    }

    #[test]
    fn a_missing_state_is_reported_when_the_application_is_built() {
        async fn needs(_: Add, _: State<String>) {}
        let problems = from_fn(needs).problems(&States::default());
        assert!(problems[0].starts_with("needs a state of type alloc::string::String; add one with"), "{problems:?}");
    }
}

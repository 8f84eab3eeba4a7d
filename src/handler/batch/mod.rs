//! Handlers that get several messages at once.
//!
//! Each message is handled by its worker as ever, and waits in the [`Batch`](collecting::Batch) of its handler until that is
//! complete: then the last one takes all of them to the handler, and each gets its own result. So each message is
//! acknowledged, retried and moved by itself. Messages that wait do not count for the worker's concurrency, and the batch
//! counts as one message. Each worker has batches of its own.

mod collecting;
mod places;

pub(crate) use places::{Place, Places};

use std::fmt::Display;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::Instant;

use self::collecting::{Answered, Entry, Joined};
use self::places::HandlerId;
use super::panic::caught;
use super::{Handler, HandlerContext, HandlerError, HandlerReturn, Verdict};
use crate::message::{Envelope, Message};

/// How long a batch waits for further messages, where nothing else is said.
pub(crate) const WAIT: Duration = Duration::from_secs(1);

/// When a batch is complete: at its size (or 8 MiB of bodies), after some time, or as soon as the worker has nothing else to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    size: usize,
    wait: Duration,
}

impl BatchOptions {
    /// Batches of at most this many messages.
    pub fn new(size: usize) -> Self {
        Self { size: size.max(1), wait: WAIT }
    }

    /// How long the first message of a batch waits for others, at most. The default is a second.
    #[must_use]
    pub fn wait(self, time: Duration) -> Self {
        Self { wait: time, ..self }
    }
}

/// Handles several messages at once.
#[async_trait]
pub trait BatchHandler: Send + Sync {
    /// Its name, as that of a [`Handler`].
    fn name(&self) -> &str;

    /// Handles messages, and returns a result for each, in their order. A message without a result has failed. The context is
    /// that of one of the messages.
    async fn handle(&self, messages: &[Envelope], context: &HandlerContext<'_>) -> Vec<Result<Value, HandlerError>>;

    /// As [`Handler::worker_stopped`].
    async fn worker_stopped(&self) {}
}

/// What a function that handles a batch may return: `()`, a `Result` for all messages, or a list with a `Result` for each.
pub trait BatchReturn {
    /// A result for each message.
    fn into_results(self, messages: usize) -> Vec<Result<Value, HandlerError>>;
}

impl BatchReturn for () {
    fn into_results(self, messages: usize) -> Vec<Result<Value, HandlerError>> {
        (0..messages).map(|_| Ok(Value::Null)).collect()
    }
}

impl<E: Into<HandlerError>> BatchReturn for Result<(), E> {
    fn into_results(self, messages: usize) -> Vec<Result<Value, HandlerError>> {
        match self.map_err(Into::into) {
            Ok(()) => ().into_results(messages),
            Err(error) => vec![Err(error); messages],
        }
    }
}

impl<R: HandlerReturn> BatchReturn for Vec<R> {
    fn into_results(self, _messages: usize) -> Vec<Result<Value, HandlerError>> {
        self.into_iter().map(HandlerReturn::into_result).collect()
    }
}

/// Makes a handler of an async function that takes a list of messages. Register it for the type with
/// [`AppBuilder::handler`](crate::AppBuilder::handler), or use [`AppBuilder::handle_batch`](crate::AppBuilder::handle_batch).
pub fn from_batch_fn<M, F, R>(name: impl Into<String>, options: BatchOptions, function: F) -> Batched<BatchFn<F, M>>
where
    M: Message + Send + Sync + 'static,
    F: Fn(Vec<M>) -> R + Send + Sync + 'static,
    R: Future + Send + 'static,
    R::Output: BatchReturn + Send,
{
    Batched::new(options, BatchFn { name: name.into(), function, message: PhantomData })
}

/// A function that handles a batch. Made by [`from_batch_fn`].
pub struct BatchFn<F, M> {
    name: String,
    function: F,
    message: PhantomData<fn(M)>,
}

#[async_trait]
impl<M, F, R> BatchHandler for BatchFn<F, M>
where
    M: Message + Send + Sync + 'static,
    F: Fn(Vec<M>) -> R + Send + Sync + 'static,
    R: Future + Send + 'static,
    R::Output: BatchReturn + Send,
{
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, messages: &[Envelope], _: &HandlerContext<'_>) -> Vec<Result<Value, HandlerError>> {
        let read: Vec<_> = messages.iter().map(Envelope::message::<M>).collect();
        // One that is of another shape does not keep the others from being handled.
        let wrong: Vec<Option<HandlerError>> = read.iter().map(|read| read.as_ref().err().map(wrong_body)).collect();
        let usable: Vec<M> = read.into_iter().filter_map(Result::ok).collect();
        let count = usable.len();
        let results = if count == 0 { Vec::new() } else { (self.function)(usable).await.into_results(count) };
        let mut results = results.into_iter();
        let each = wrong.into_iter().map(|wrong| match wrong {
            Some(error) => Err(error),
            None => results.next().unwrap_or_else(|| Err(without_result())),
        });
        each.collect()
    }
}

fn wrong_body(error: &impl Display) -> HandlerError {
    HandlerError { class: "minutely::handler::WrongBody".to_owned(), ..HandlerError::unrecoverable(error) }
}

fn without_result() -> HandlerError {
    HandlerError::failed("the handler has returned no result for this message of its batch")
}

/// A handler that collects messages for one that takes several at once.
pub struct Batched<H> {
    handler: H,
    options: BatchOptions,
    /// By which workers find the batch that they collect for it.
    id: HandlerId,
}

impl<H: BatchHandler> Batched<H> {
    /// Collects messages for this handler.
    pub fn new(options: BatchOptions, handler: H) -> Self {
        Self { handler, options, id: HandlerId::new() }
    }
}

#[async_trait]
impl<H: BatchHandler> Handler for Batched<H> {
    fn name(&self) -> &str {
        self.handler.name()
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        // Nobody brings further messages to a dispatch, which waits for its result.
        let Some(place) = context.extension::<Place>() else {
            let results = self.handler.handle(std::slice::from_ref(context.envelope()), context).await;
            return results.into_iter().next().unwrap_or_else(|| Err(without_result()));
        };
        let batch = place.batch(self.id, self.options);
        let answer = match batch.join(context.envelope(), place).await {
            Joined::Answered(answer) => answer,
            Joined::Leads(entries, answer) => {
                self.run(entries, context, place).await;
                answer.await
            }
        };
        match answer {
            Ok(Answered { result, took }) => {
                place.include(took);
                result
            }
            // The one that ran the batch was dropped.
            Err(_) => {
                let error = HandlerError::failed("the batch with this message was broken off");
                Err(HandlerError { verdict: Verdict::Interrupted { if_stopping: true }, ..error })
            }
        }
    }

    async fn worker_stopped(&self) {
        self.handler.worker_stopped().await;
    }
}

impl<H: BatchHandler> Batched<H> {
    async fn run(&self, entries: Vec<Entry>, context: &HandlerContext<'_>, place: &Place) {
        // Without those whose message was given up meanwhile.
        let (messages, answers): (Vec<Envelope>, Vec<_>) = entries
            .into_iter()
            .filter(|entry| !entry.answer.is_closed())
            .map(|entry| (entry.message, entry.answer))
            .unzip();
        let Ok(count @ 1..) = u32::try_from(messages.len()) else { return };
        let begun = Instant::now();
        let handled = caught(self.handler.handle(&messages, context)).await;
        let took = begun.elapsed();
        place.exclude(took);
        if handled.as_ref().is_ok_and(|results| results.len() > messages.len()) {
            let (handler, results) = (self.handler.name(), handled.as_ref().map_or(0, Vec::len));
            tracing::warn!(
                handler,
                results,
                messages = count,
                "a handler has returned more results than it got messages"
            );
        }
        let mut results = handled.map(Vec::into_iter);
        for answer in answers {
            let result = match &mut results {
                Ok(results) => results.next().unwrap_or_else(|| Err(without_result())),
                Err(panic) => Err(HandlerError {
                    class: "minutely::handler::Panicked".to_owned(),
                    ..HandlerError::failed(format!("the handler panicked with this message in its batch: {panic}"))
                }),
            };
            let _ = answer.send(Answered { result, took: took / count });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::App;

    const CONFIG: &str = "
failure_transport: failed
transports:
  pages: {dsn: 'redis://localhost/pages', retry_strategy: {max_retries: 1, delay: 1000, jitter: 0}}
  failed: 'redis://localhost/failed'
routing: {Index: pages}
";

    #[derive(Serialize, Deserialize)]
    struct Index {
        page: u32,
    }

    impl Message for Index {
        const TYPE: &'static str = "Index";
    }

    /// An application that handles so many pages at once, and the sizes of its batches.
    fn app(size: usize) -> (crate::testing::TestApp, Arc<Mutex<Vec<usize>>>) {
        let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = Arc::clone(&sizes);
        let index = move |pages: Vec<Index>| {
            seen.lock().unwrap().push(pages.len());
            async move {
                let of = |index: &Index| match index.page {
                    7 => Err(HandlerError::unrecoverable("seven")),
                    8 => Err(HandlerError::failed("eight")),
                    9 => panic!("nine"),
                    _ => Ok(()),
                };
                pages.iter().map(of).collect::<Vec<_>>()
            }
        };
        let options = BatchOptions::new(size).wait(Duration::from_secs(600));
        let app = App::builder().config_text(CONFIG).handle_batch("index", options, index).test();
        (app.unwrap_or_else(|error| panic!("{error}")), sizes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_fills_batches_and_each_message_has_its_own_result() {
        let (app, sizes) = app(50);
        for page in (10..128).chain([7, 8]) {
            app.dispatch(&Index { page }).await.unwrap();
        }
        let begun = Instant::now();
        let worked = app.work_until_idle().await;
        // One is given up at once, the other after its retry.
        assert_eq!((worked.handled, worked.failed), (118, 3));
        assert_eq!(*sizes.lock().unwrap(), [50, 50, 20, 1]);
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not wait for messages that do not come");
        assert_eq!(app.failed::<Index>().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_fails_the_messages_of_its_batch_and_not_the_worker() {
        let (app, sizes) = app(2);
        for page in [10, 9, 11] {
            app.dispatch(&Index { page }).await.unwrap();
        }
        let worked = app.work_until_idle().await;
        // The two are retried together, and fail for good.
        assert_eq!((worked.handled, worked.failed), (1, 4));
        assert_eq!(*sizes.lock().unwrap(), [2, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_handled_during_its_dispatch_waits_for_no_other() {
        let (app, sizes) = app(50);
        let begun = Instant::now();
        app.dispatch(&Index { page: 1 }).to(Vec::<String>::new()).await.unwrap();
        assert_eq!((sizes.lock().unwrap().as_slice(), begun.elapsed()), (&[1][..], Duration::ZERO));
    }

    const TWO: &str = "
transports: {a: 'redis://localhost/a', b: 'redis://localhost/b'}
";

    #[tokio::test(start_paused = true)]
    async fn workers_of_one_process_have_batches_of_their_own() {
        let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = Arc::clone(&sizes);
        let index = move |pages: Vec<Index>| {
            seen.lock().unwrap().push(pages.len());
            async {}
        };
        let options = BatchOptions::new(2).wait(Duration::from_secs(5));
        let app = App::builder().config_text(TWO).handle_batch("index", options, index).test();
        let app = app.unwrap_or_else(|error| panic!("{error}"));
        for transport in ["a", "b"] {
            app.dispatch(&Index { page: 1 }).to([transport]).await.unwrap();
        }
        let workers = ["a", "b"].map(|transport| app.worker([transport]).limit(1).spawn().unwrap());
        for worker in workers {
            assert_eq!(worker.wait().await.unwrap().handled, 1);
        }
        assert_eq!(*sizes.lock().unwrap(), [1, 1], "what one worker collects is not in the hands of the other");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_a_batch_is_within_the_concurrency() {
        let (now, most) = (Arc::new(Mutex::new(0_usize)), Arc::new(Mutex::new(0_usize)));
        let (running, highest) = (Arc::clone(&now), Arc::clone(&most));
        let index = |_: Vec<Index>| async {};
        let log = move |_: Index| {
            let (running, highest) = (Arc::clone(&running), Arc::clone(&highest));
            async move {
                let count = {
                    let mut running = running.lock().unwrap();
                    *running += 1;
                    *running
                };
                let before = *highest.lock().unwrap();
                *highest.lock().unwrap() = before.max(count);
                tokio::time::sleep(Duration::from_secs(1)).await;
                *running.lock().unwrap() -= 1;
            }
        };
        let options = BatchOptions::new(10);
        let app = App::builder().config_text(TWO).handle_batch("index", options, index).handle_named("log", log).test();
        let app = app.unwrap_or_else(|error| panic!("{error}"));
        for page in 0..20 {
            app.dispatch(&Index { page }).to(["a"]).await.unwrap();
        }
        let summary = app.worker(["a"]).concurrency(2).limit(20).spawn().unwrap().wait().await.unwrap();
        assert_eq!((summary.handled, *most.lock().unwrap()), (20, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_batch_is_shared_and_that_before_it_counts_for_nobody() {
        let index = |_: Vec<Index>| tokio::time::sleep(Duration::from_millis(100));
        let handler = from_batch_fn("index", BatchOptions::new(2).wait(Duration::from_secs(600)), index);
        let places = Places::new(1);
        let (states, token) = (super::super::States::default(), super::super::CancellationToken::default());
        let message = Envelope::new(&Index { page: 1 }).unwrap();
        let handle = async |after| {
            tokio::time::sleep(Duration::from_secs(after)).await;
            let place = places.take();
            let extensions: [&(dyn std::any::Any + Send + Sync); 1] = [&*place];
            let context = HandlerContext::new(&message, &states, &token, &extensions);
            handler.handle(&context).await.unwrap();
            place.worked()
        };
        let (first, second) = tokio::join!(handle(0), handle(10));
        assert_eq!((first.as_millis(), second.as_millis()), (50, 50));
        assert_eq!(places.away(), 0);
    }
}

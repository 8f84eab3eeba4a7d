//! Handlers that get several messages at once.
//!
//! Each message is handled by its worker as ever, and waits in the [`Batch`] of its handler until that is complete: then the
//! last one takes all of them to the handler, and each gets its own result. So each message is acknowledged, retried and
//! moved by itself. Messages that wait do not count for the worker's concurrency.

use std::fmt::Display;
use std::future::Future;
use std::marker::PhantomData;
use std::mem::take;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::{Handler, HandlerContext, HandlerError, HandlerReturn, Verdict};
use crate::message::{Envelope, Message, ReceivedStamp};

/// A batch with messages of this size is complete, in bytes of their bodies.
const MAX_BYTES: usize = 8 << 20;

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
    batch: Batch,
}

impl<H: BatchHandler> Batched<H> {
    /// Collects messages for this handler.
    pub fn new(options: BatchOptions, handler: H) -> Self {
        Self {
            handler,
            batch: Batch { options, waiting: Mutex::default(), flush: Notify::new(), added: Notify::new() },
        }
    }
}

#[async_trait]
impl<H: BatchHandler> Handler for Batched<H> {
    fn name(&self) -> &str {
        self.handler.name()
    }

    async fn handle(&self, context: &HandlerContext<'_>) -> Result<Value, HandlerError> {
        // Nobody brings further messages to a dispatch, which waits for its result.
        if context.envelope().last::<ReceivedStamp>().is_none() {
            let results = self.handler.handle(std::slice::from_ref(context.envelope()), context).await;
            return results.into_iter().next().unwrap_or_else(|| Err(without_result()));
        }
        let answer = match self.batch.join(context.envelope()).await {
            Joined::Answered(answer) => answer,
            Joined::Leads(entries, answer) => {
                self.run(entries, context).await;
                answer.await
            }
        };
        // The one that ran the batch was dropped.
        answer.unwrap_or_else(|_| {
            let error = HandlerError::failed("the batch with this message was broken off");
            Err(HandlerError { verdict: Verdict::Interrupted { if_stopping: true }, ..error })
        })
    }

    async fn worker_stopped(&self) {
        self.handler.worker_stopped().await;
    }

    fn batch(&self) -> Option<&Batch> {
        Some(&self.batch)
    }
}

impl<H: BatchHandler> Batched<H> {
    async fn run(&self, entries: Vec<Entry>, context: &HandlerContext<'_>) {
        // Without those whose message was given up meanwhile.
        let (messages, answers): (Vec<Envelope>, Vec<_>) = entries
            .into_iter()
            .filter(|entry| !entry.answer.is_closed())
            .map(|entry| (entry.message, entry.answer))
            .unzip();
        if messages.is_empty() {
            return;
        }
        let handled = AssertUnwindSafe(self.handler.handle(&messages, context)).catch_unwind().await;
        let mut results = handled.map(Vec::into_iter).ok();
        for answer in answers {
            let result = match &mut results {
                Some(results) => results.next().unwrap_or_else(|| Err(without_result())),
                None => Err(HandlerError {
                    class: "minutely::handler::Panicked".to_owned(),
                    ..HandlerError::failed("the handler panicked with this message in its batch")
                }),
            };
            let _ = answer.send(result);
        }
    }
}

/// The messages that wait for a handler of several at once.
pub struct Batch {
    options: BatchOptions,
    waiting: Mutex<Waiting>,
    /// Tells those that wait that nobody else comes.
    flush: Notify,
    /// Tells the worker that a message waits.
    added: Notify,
}

/// The batch that is not complete yet.
#[derive(Default)]
struct Waiting {
    /// How many batches were complete before.
    number: u64,
    /// How many messages have joined, those of earlier batches included.
    joined: u64,
    entries: Vec<Entry>,
    /// The size of their bodies.
    bytes: usize,
}

struct Entry {
    id: u64,
    message: Envelope,
    answer: oneshot::Sender<Result<Value, HandlerError>>,
}

type Answer = oneshot::Receiver<Result<Value, HandlerError>>;

/// What became of a message that has waited.
enum Joined {
    /// Another one of its batch has had it handled.
    Answered(Result<Result<Value, HandlerError>, oneshot::error::RecvError>),
    /// These are for the caller to have handled. The answer to its own message is there after that, or as soon as another has
    /// it handled.
    Leads(Vec<Entry>, Answer),
}

impl Batch {
    /// How many messages wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().entries.len()
    }

    /// Lets the messages that wait be handled now.
    pub(crate) fn flush(&self) {
        self.flush.notify_waiters();
    }

    /// Returns when a message has begun to wait.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// Adds a message, and waits until its batch is complete.
    async fn join(&self, message: &Envelope) -> Joined {
        let (sender, mut answer) = oneshot::channel();
        // Before the message is there, so that no flush is missed.
        let flushed = self.flush.notified();
        let place = {
            let mut waiting = self.lock();
            let (number, id) = (waiting.number, waiting.joined);
            waiting.joined += 1;
            waiting.bytes = waiting.bytes.saturating_add(message.body().len());
            waiting.entries.push(Entry { id, message: message.clone(), answer: sender });
            if waiting.entries.len() >= self.options.size || waiting.bytes >= MAX_BYTES {
                return Joined::Leads(waiting.complete(), answer);
            }
            // Made last: dropping it locks as well.
            Place { batch: self, number, id }
        };
        self.added.notify_one();
        let deadline = Instant::now() + self.options.wait;
        tokio::select! {
            answer = &mut answer => return Joined::Answered(answer),
            () = sleep_until(deadline) => {}
            () = flushed => {}
        }
        Joined::Leads(place.complete(), answer)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Takes the batch as it is. The next message begins another one.
    fn complete(&mut self) -> Vec<Entry> {
        self.number += 1;
        self.bytes = 0;
        take(&mut self.entries)
    }
}

/// The place of a message in a batch that is not complete. When this is dropped, the message waits no more.
struct Place<'a> {
    batch: &'a Batch,
    number: u64,
    id: u64,
}

impl Place<'_> {
    /// Takes the batch, unless another one of its messages has.
    fn complete(&self) -> Vec<Entry> {
        let mut waiting = self.batch.lock();
        if waiting.number == self.number { waiting.complete() } else { Vec::new() }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.batch.lock();
        if waiting.number == self.number
            && let Some(at) = waiting.entries.iter().position(|entry| entry.id == self.id)
        {
            let entry = waiting.entries.remove(at);
            waiting.bytes = waiting.bytes.saturating_sub(entry.message.body().len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
}

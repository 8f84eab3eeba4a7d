//! Dispatches many messages at once: each passes the middleware, and those for one transport are stored together.

use std::collections::VecDeque;
use std::future::{IntoFuture, ready};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use indexmap::IndexMap;
use tokio::sync::{Mutex, mpsc};
use tokio::task::coop::unconstrained;

use super::outlet::{Outlet, Submission};
use super::{Dispatch, DispatchError, Dispatched};

/// The most messages that are stored in one step. As many may be on their way while those are stored.
const STEP: usize = 1024;
/// The most bytes of bodies in one step, unless it is of one message.
const STEP_BYTES: usize = 8 * 1024 * 1024;

/// Messages that are dispatched when this is awaited. A collection of [`Dispatch`]es, each with its own bus, delay and
/// stamps.
///
/// The result has one entry for each message, in their order. They are sent in their order: a message comes to its transport
/// after those before it.
///
/// ```
/// # use minutely::App;
/// # use minutely::config::Config;
/// # use minutely::message::Message;
/// use minutely::bus::DispatchAll;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendEmail { to: String }
/// # impl Message for SendEmail { const TYPE: &'static str = r"App\Message\SendEmail"; }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let config = Config::builder().transport("mail", "in-memory://").route(SendEmail::TYPE, ["mail"]);
/// # let app = App::builder().config(config).build()?;
/// let messages = ["ada", "bob"].map(|name| SendEmail { to: format!("{name}@example.com") });
/// for result in app.dispatch_all(&messages).await {
///     println!("queued as {}", result?.queued()[0].id);
/// }
///
/// // Different ones, with delays and stamps of their own:
/// let hour = std::time::Duration::from_secs(3600);
/// let both = [app.dispatch(&messages[0]), app.dispatch(&messages[1]).delay(hour)];
/// let results = both.into_iter().collect::<DispatchAll>().await;
/// assert!(results.iter().all(Result::is_ok));
/// # Ok::<(), minutely::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// - Each message passes the middleware by itself. What a middleware holds while it waits for `next.run(envelope)`, it may
///   hold for some thousand messages at a time.
/// - Those that are stored in the same transport are stored together, as far as its store can: in steps of about a thousand.
///   A message that was refused does not keep others out.
/// - Those that are handled during their dispatch are handled one after the other, in no certain order.
/// - An error of the connection while messages are stored leaves open whether they were. They are reported as failed, and
///   to dispatch them again may store them twice. The same holds if this is dropped before it is ready.
#[must_use = "nothing is dispatched until this is awaited"]
pub struct DispatchAll {
    dispatches: Vec<Dispatch>,
}

impl FromIterator<Dispatch> for DispatchAll {
    fn from_iter<I: IntoIterator<Item = Dispatch>>(dispatches: I) -> Self {
        Self { dispatches: dispatches.into_iter().collect() }
    }
}

impl DispatchAll {
    /// Changes each dispatch: `.each(|one| one.to(["mail"]))`.
    pub fn each(self, change: impl FnMut(Dispatch) -> Dispatch) -> Self {
        self.dispatches.into_iter().map(change).collect()
    }
}

impl IntoFuture for DispatchAll {
    type Output = Vec<Result<Dispatched, DispatchError>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        run(self.dispatches).boxed()
    }
}

/// A message on its way through the middleware, with its number.
type Chain = BoxFuture<'static, (usize, Result<Dispatched, DispatchError>)>;

/// Messages that wait to be stored.
#[derive(Default)]
struct Waiting {
    submissions: VecDeque<Submission>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, submission: Submission) {
        self.bytes += submission.envelope.body().len();
        self.submissions.push_back(submission);
    }

    fn has_room(&self) -> bool {
        self.submissions.len() < STEP && self.bytes < STEP_BYTES
    }
}

/// A message starts after the one before it has come to its transport or to its end. So they come in their order, and none
/// waits for another that cannot go on: whenever nothing moves, those that have come so far are stored.
async fn run(dispatches: Vec<Dispatch>) -> Vec<Result<Dispatched, DispatchError>> {
    let mut results: Vec<_> = dispatches.iter().map(|_| None).collect();
    let (outlet, mut submissions) = mpsc::unbounded_channel();
    let turn = Arc::new(Mutex::new(()));
    let mut dispatches = dispatches.into_iter().enumerate();
    // The one that has not come to its transport yet.
    let mut newest: Option<(usize, Chain)> = None;
    let mut others = FuturesUnordered::<Chain>::new();
    let mut waiting = Waiting::default();
    let mut storing: Option<BoxFuture<'static, ()>> = None;
    // Whether a message that claims a key is under way. It is stored before the next one begins: if this process is killed
    // in between, one key stays claimed for nothing, and not those of all.
    let mut alone = false;
    loop {
        alone &= newest.is_some() || !others.is_empty() || storing.is_some();
        if newest.is_none()
            && !alone
            && waiting.has_room()
            && others.len() < 2 * STEP
            && let Some((number, dispatch)) = dispatches.next()
        {
            alone = dispatch.claims_a_key();
            let outlet = Outlet::together(outlet.clone(), number, Arc::clone(&turn));
            newest = Some((number, dispatch.run_with(outlet).map(move |result| (number, result)).boxed()));
        }
        if newest.is_none() && others.is_empty() && storing.is_none() {
            return results.into_iter().flatten().collect();
        }
        tokio::select! {
            biased;
            (number, result) = in_place(newest.as_mut().map(|(_, chain)| chain)) => {
                results[number] = Some(result);
                newest = None;
            }
            // Not held up for the sake of other tasks: that would look as if nothing moved.
            Some(submission) = unconstrained(submissions.recv()) => {
                if newest.as_ref().is_some_and(|(number, _)| *number == submission.number) {
                    others.extend(newest.take().map(|(_, chain)| chain));
                }
                waiting.push(submission);
            }
            Some((number, result)) = others.next() => results[number] = Some(result),
            () = in_place(storing.as_mut()) => storing = None,
            // Nothing moves.
            () = ready(()), if storing.is_none() && !waiting.submissions.is_empty() => {
                storing = Some(store(std::mem::take(&mut waiting).submissions).boxed());
            }
        }
    }
}

/// Waits for a future that stays where it is. Never returns if there is none.
async fn in_place<T>(future: Option<&mut BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Stores messages, those for one transport together, and tells each its result.
async fn store(submissions: VecDeque<Submission>) {
    let mut by_transport = IndexMap::<String, Vec<Submission>>::new();
    // A middleware may have stopped waiting.
    for submission in submissions.into_iter().filter(|submission| !submission.answer.is_closed()) {
        by_transport.entry(submission.transport.name().to_owned()).or_default().push(submission);
    }
    for submissions in by_transport.into_values() {
        let Some(transport) = submissions.first().map(|submission| Arc::clone(&submission.transport)) else { continue };
        let (messages, answers): (Vec<_>, Vec<_>) =
            submissions.into_iter().map(|one| ((one.envelope, one.delay), one.answer)).unzip();
        for (answer, result) in answers.into_iter().zip(transport.send_all(messages).await) {
            let _ = answer.send(result);
        }
    }
}

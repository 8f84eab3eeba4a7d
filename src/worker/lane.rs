//! One source as a worker deals with it: what it was asked and told, and how it answers.
//!
//! Everything that goes to a store is a future that its lane keeps and goes on with, so that nobody waits for a store that
//! hangs but the messages that are there, and an answer that comes late is heard all the same.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use super::Source;
use super::held::Held;
use crate::transport::{MessageId, Received, TransportError};

/// How long a store may take to answer before the sources after it have their turn.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// How long a source may fail, or not answer, before its heartbeat stops.
const GRACE: Duration = Duration::from_secs(10);

/// How long a store may take to answer when it is time to stop.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// The waits after a store failed: doubled each time, from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What a store says.
pub(super) enum Answer {
    /// What was received.
    Received(Result<Vec<Received>, TransportError>),
    /// These were acknowledged, or not.
    Acknowledged(Vec<MessageId>, Result<(), TransportError>),
    /// These were given back, or not.
    GivenBack(Vec<Unwanted>, Result<(), TransportError>),
    /// So many messages were kept alive, or not.
    KeptAlive(usize, Result<(), TransportError>),
}

/// A message that is to be given back.
pub(super) struct Unwanted {
    pub(super) id: MessageId,
    /// The message itself, where it has not begun and can be handled here after all.
    pub(super) received: Option<Received>,
}

/// Something that a store was asked or told, and since when.
struct Pending {
    since: Instant,
    answer: BoxFuture<'static, Answer>,
}

impl Pending {
    fn new(answer: impl Future<Output = Answer> + Send + 'static) -> Option<Self> {
        Some(Self { since: Instant::now(), answer: answer.boxed() })
    }
}

pub(super) struct Lane {
    pub(super) source: Arc<Source>,
    /// The wait after its last failure; none when it is well.
    backoff: Option<Duration>,
    /// It is not asked before.
    pub(super) next: Instant,
    /// It is not told anything before: it has failed.
    tell_from: Instant,
    /// Its last answer was long in coming: the others do not wait for the next.
    slow: bool,
    asked: Option<Pending>,
    told: Option<Pending>,
    keeping: Option<Pending>,
    /// Handled, and still in the store.
    handled: Vec<MessageId>,
    /// To be given back.
    unwanted: Vec<Unwanted>,
    /// How many of its messages have failed and wait for that to be stored, and since when.
    settling: usize,
    settling_since: Option<Instant>,
    /// Since when it has not answered, or has failed.
    failing_since: Option<Instant>,
    /// The size of its largest message lately, in bytes.
    pub(super) largest: usize,
}

impl Lane {
    pub(super) fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            backoff: None,
            next: Instant::now(),
            tell_from: Instant::now(),
            slow: false,
            asked: None,
            told: None,
            keeping: None,
            handled: Vec::new(),
            unwanted: Vec::new(),
            settling: 0,
            settling_since: None,
            failing_since: None,
            largest: 0,
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn is_well(&self) -> bool {
        self.backoff.is_none()
    }

    /// Asks for messages, if it is time to. Where something of an earlier batch is not seen to, that comes first: one batch
    /// at most is thus handled and not acknowledged, and a crash repeats no more than that.
    pub(super) fn ask(&mut self, up_to: usize, held: &mut Held) {
        if self.next > Instant::now() {
            return;
        }
        self.tell(held);
        if self.asked.is_some() || self.told.is_some() || self.settling > 0 {
            return;
        }
        let source = Arc::clone(&self.source);
        self.failing_since.get_or_insert_with(Instant::now);
        self.asked = Pending::new(async move { Answer::Received(source.receiver.receive(up_to).await) });
    }

    /// Has nothing more fetched ahead, and takes what has been.
    pub(super) fn stop_fetching(&mut self) {
        let Some(prefetching) = self.source.transport.prefetching.clone() else { return };
        let before = self.asked.take();
        self.asked = Pending::new(async move {
            let received = match before {
                Some(pending) => match pending.answer.await {
                    Answer::Received(received) => received,
                    _ => Ok(Vec::new()),
                },
                None => Ok(Vec::new()),
            };
            let fetched = prefetching.stop_fetching().await;
            // What one of them has brought is there, whatever has become of the other.
            Answer::Received(match (received, fetched) {
                (Ok(received), Ok(fetched)) => Ok(received.into_iter().chain(fetched).collect()),
                (Ok(messages), Err(error)) | (Err(error), Ok(messages)) if !messages.is_empty() => {
                    tracing::error!(%error, "what was fetched ahead comes again later");
                    Ok(messages)
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            })
        });
    }

    /// Until when that is waited for; none when it is there.
    pub(super) fn fetching_until(&self) -> Option<Instant> {
        self.source.transport.prefetching.as_ref()?;
        self.asked.as_ref().map(|pending| pending.since + LAST_PATIENCE).filter(|until| *until > Instant::now())
    }

    /// Until when the sources after this one wait for its answer; none when they do not.
    pub(super) fn waited_for_until(&self) -> Option<Instant> {
        let pending = [&self.asked, &self.told].into_iter().flatten().map(|pending| pending.since);
        let since = pending.chain(self.settling_since).min()?;
        (self.backoff.is_none() && !self.slow).then_some(since + PATIENCE)
    }

    /// It was waited for, and the others go on without it.
    pub(super) fn is_slow(&mut self) {
        self.slow = true;
    }

    /// When its heartbeat is to stop, unless it can be asked before, and answers.
    pub(super) fn silent_from(&self) -> Option<Instant> {
        // What failed and cannot be stored keeps it from being asked, too.
        let since = [self.failing_since, self.settling_since].into_iter().flatten().min();
        since.map(|since| since + GRACE)
    }

    /// It has answered well.
    pub(super) fn works(&mut self) {
        self.backoff = None;
        self.tell_from = Instant::now();
        self.failing_since = [&self.asked, &self.told].into_iter().flatten().map(|pending| pending.since).min();
    }

    pub(super) fn failed(&mut self) {
        let backoff = self.backoff.map_or(FIRST_BACKOFF, |last| (2 * last).min(LONGEST_BACKOFF));
        self.backoff = Some(backoff);
        self.next = Instant::now() + backoff;
        self.tell_from = self.next;
    }

    pub(super) fn had_nothing(&mut self) {
        // One that tells of what comes need not be asked as often as others.
        let quiet = self.source.transport.waking.as_ref().and_then(|waking| waking.poll_interval());
        self.next = Instant::now() + quiet.unwrap_or_default();
    }

    /// A message failed, and what becomes of it is about to be stored.
    pub(super) fn settles(&mut self) {
        self.settling += 1;
        self.settling_since.get_or_insert_with(Instant::now);
    }

    /// That is over, for one of them. True where it was the last.
    pub(super) fn has_settled(&mut self) -> bool {
        self.settling -= 1;
        if self.settling == 0 {
            self.settling_since = None;
        }
        self.settling == 0
    }

    /// A message was handled. How many wait to be acknowledged by now.
    pub(super) fn handled(&mut self, id: MessageId) -> usize {
        self.handled.push(id);
        self.handled.len()
    }

    /// When the store is to be told what it has not been told; none when there is nothing, or something is under way.
    pub(super) fn to_tell_at(&self) -> Option<Instant> {
        let anything = !self.handled.is_empty() || !self.unwanted.is_empty();
        (anything && self.told.is_none()).then_some(self.tell_from)
    }

    /// These are to be given back.
    pub(super) fn unwanted(&mut self, messages: impl IntoIterator<Item = Unwanted>) {
        self.unwanted.extend(messages);
    }

    /// Tells the store what there is to tell: first what was handled, then what is given back. One thing at a time, and
    /// nothing to one that has just failed.
    pub(super) fn tell(&mut self, held: &mut Held) {
        if self.to_tell_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.failing_since.get_or_insert_with(Instant::now);
        let source = Arc::clone(&self.source);
        if !self.handled.is_empty() {
            let ids = std::mem::take(&mut self.handled);
            self.told = Pending::new(async move {
                let result = source.receiver.ack(&ids).await;
                Answer::Acknowledged(ids, result)
            });
        } else if !self.unwanted.is_empty() {
            let messages = std::mem::take(&mut self.unwanted);
            let ids: Vec<MessageId> = messages.iter().map(|message| message.id.clone()).collect();
            let deliveries = held.release(&source, &ids);
            self.told = Pending::new(async move {
                let result = match &source.transport.releasing {
                    Some(releasing) => releasing.release(&deliveries).await,
                    None => Ok(()),
                };
                Answer::GivenBack(messages, result)
            });
        }
    }

    /// What could not be acknowledged is kept for the next time.
    pub(super) fn acknowledge_later(&mut self, ids: Vec<MessageId>) {
        self.handled.splice(0..0, ids);
    }

    /// Starts the `redeliver_timeout` of what is held anew, unless the store has not even answered to the last time.
    pub(super) fn keep_alive(&mut self, held: &mut Held) {
        if self.keeping.is_some() {
            return;
        }
        let source = Arc::clone(&self.source);
        let now = SystemTime::now();
        let deliveries = held.renew(&source, now);
        if deliveries.is_empty() {
            return;
        }
        self.keeping = Pending::new(async move {
            let result = match &source.transport.keeping_alive {
                Some(keeping) => keeping.keep_alive(&deliveries, now).await,
                None => Ok(()),
            };
            Answer::KeptAlive(deliveries.len(), result)
        });
    }

    /// What the store says next.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        for pending in [&mut self.told, &mut self.asked, &mut self.keeping] {
            let Some(Pending { since, answer }) = pending else { continue };
            if let Poll::Ready(answer) = answer.poll_unpin(context) {
                if !matches!(answer, Answer::KeptAlive(..)) {
                    self.slow = since.elapsed() > PATIENCE;
                }
                *pending = None;
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    }

    /// Until when a worker that ends waits for what is under way, or to be told; none when there is nothing. A store that has
    /// hung for long already is not waited for; but one that is about to answer is, because what it has handed out would
    /// be in flight for nobody.
    pub(super) fn under_way_until(&self) -> Option<Instant> {
        let pending = [&self.asked, &self.told].into_iter().flatten().map(|pending| pending.since);
        pending.chain(self.to_tell_at()).max().map(|since| since + LAST_PATIENCE)
    }
}

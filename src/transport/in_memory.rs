//! `in-memory://`: keeps messages in this process, and loses them when it ends. For tests, and for programs that are
//! their own only worker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::options::REDELIVER_TIMEOUT;
use super::{
    Counting, Counts, Delivery, Factory, FactoryContext, KeepingAlive, Listed, Listing, MessageId, Moving, Parking,
    Place, Receipt, Received, Receiver, Releasing, Retrying, Sender, Sent, SettingUp, Taking, ToSend, Transport,
    TransportError, TransportSpec, Waking,
};
use crate::clock;
use crate::config::{Definition, Problem, Setting};
use crate::message::Encoded;

pub(super) const SCHEMES: &[&str] = &["in-memory"];

/// The longest delay. Longer ones could overflow.
const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Keeps messages in this process. Clones share one queue.
#[derive(Clone)]
pub struct InMemory {
    name: String,
    redeliver_timeout: Duration,
    store: Arc<Store>,
}

/// Queues between which messages can move in one step.
struct Store {
    number: u64,
    state: Mutex<State>,
    /// Notified when a message in any queue was added or is due again.
    changed: Notify,
    /// Notified when a message has left its queue.
    left: Notify,
}

#[derive(Default)]
struct State {
    last_id: u64,
    queues: HashMap<String, Queue>,
}

#[derive(Default)]
struct Queue {
    messages: BTreeMap<u64, Stored>,
    /// Those not in flight, by the time they are due.
    waiting: BTreeSet<(Instant, u64)>,
    /// Those in flight, by the time they were received.
    in_flight: BTreeSet<(Instant, u64)>,
    /// How many deliveries there have been.
    deliveries: u64,
}

struct Stored {
    message: Encoded,
    due: Instant,
    received: Option<Instant>,
    /// The number of its last delivery, unique in its queue.
    delivery: u64,
}

impl Stored {
    fn receipt(&self) -> Receipt {
        Receipt(self.delivery.to_string())
    }
}

impl Default for Store {
    fn default() -> Self {
        static STORES: AtomicU64 = AtomicU64::new(0);
        let number = STORES.fetch_add(1, Ordering::Relaxed);
        Self { number, state: Mutex::default(), changed: Notify::new(), left: Notify::new() }
    }
}

impl Queue {
    fn insert(&mut self, id: u64, message: Encoded, due: Instant) {
        self.messages.insert(id, Stored { message, due, received: None, delivery: 0 });
        self.waiting.insert((due, id));
    }

    fn remove(&mut self, id: u64) -> Option<Stored> {
        let stored = self.messages.remove(&id)?;
        match stored.received {
            Some(received) => self.in_flight.remove(&(received, id)),
            None => self.waiting.remove(&(stored.due, id)),
        };
        Some(stored)
    }

    /// Sets since when a message is in flight, or that it is not.
    fn mark(&mut self, id: u64, received: Option<Instant>) {
        let Some(stored) = self.messages.get_mut(&id) else { return };
        match stored.received {
            Some(at) => self.in_flight.remove(&(at, id)),
            None => self.waiting.remove(&(stored.due, id)),
        };
        match received {
            Some(at) => self.in_flight.insert((at, id)),
            None => self.waiting.insert((stored.due, id)),
        };
        stored.received = received;
    }

    /// Makes messages pending that have been in flight for too long.
    fn redeliver(&mut self, now: Instant, timeout: Duration) {
        while let Some(&(received, id)) = self.in_flight.first()
            && now.duration_since(received) >= timeout
        {
            self.mark(id, None);
        }
    }

    /// Whether the message is in flight with one of these receipts.
    fn is_held(&self, id: u64, receipts: &[Receipt]) -> bool {
        let stored = self.messages.get(&id).filter(|stored| stored.received.is_some());
        stored.is_some_and(|stored| receipts.contains(&stored.receipt()))
    }

    fn due(&self, now: Instant) -> impl Iterator<Item = u64> {
        self.waiting.range(..=(now, u64::MAX)).map(|(_, id)| *id)
    }
}

impl InMemory {
    /// A new, empty queue.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), redeliver_timeout: REDELIVER_TIMEOUT.default_value(), store: Arc::default() }
    }

    /// Sets how long a message may be in flight before it is pending again. The default is an hour.
    #[must_use]
    pub fn with_redeliver_timeout(mut self, timeout: Duration) -> Self {
        self.redeliver_timeout = timeout;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under the lock panics between two changes that belong together.
        self.store.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `action` with the queue, up to date.
    fn with_queue<T>(&self, action: impl FnOnce(&mut Queue, Instant) -> T) -> T {
        let mut state = self.state();
        let queue = state.queues.entry(self.name.clone()).or_default();
        let now = Instant::now();
        queue.redeliver(now, self.redeliver_timeout);
        action(queue, now)
    }

    fn add(&self, state: &mut State, message: &Encoded, delay: Duration) -> Sent {
        state.last_id += 1;
        let id = state.last_id;
        state.queues.entry(self.name.clone()).or_default().insert(id, message.clone(), after(delay));
        Sent::Queued { transport: self.name.clone(), id: MessageId(id.to_string()), reason: None }
    }

    fn remove(&self, ids: &[MessageId]) {
        self.with_queue(|queue, _| {
            for id in numbers(ids) {
                queue.remove(id);
            }
        });
        self.store.left.notify_waiters();
    }
}

#[async_trait]
impl Sender for InMemory {
    /// Stores a message. Unlike in other transports, it does not survive this process.
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let sent = self.add(&mut self.state(), message, delay);
        self.store.changed.notify_waiters();
        Ok(sent)
    }

    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        let mut state = self.state();
        let sent = messages.iter().map(|one| Ok(self.add(&mut state, &one.message, one.delay))).collect();
        drop(state);
        self.store.changed.notify_waiters();
        sent
    }
}

#[async_trait]
impl Receiver for InMemory {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        Ok(self.with_queue(|queue, now| {
            let ids: Vec<u64> = queue.due(now).take(up_to).collect();
            ids.into_iter()
                .filter_map(|id| {
                    queue.mark(id, Some(now));
                    queue.deliveries += 1;
                    let stored = queue.messages.get_mut(&id)?;
                    stored.delivery = queue.deliveries;
                    Some(received(id, stored))
                })
                .collect()
        }))
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.remove(ids);
        Ok(())
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.remove(ids);
        Ok(())
    }
}

#[async_trait]
impl Counting for InMemory {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        Ok(self.counts(cap).await?.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        Ok(self.with_queue(|queue, now| {
            let pending = up_to(queue.due(now), cap);
            let delayed = up_to(queue.waiting.iter().rev().take_while(|(due, _)| *due > now), cap);
            Counts { pending, delayed, in_flight: up_to(queue.in_flight.iter(), cap) }
        }))
    }
}

#[async_trait]
impl SettingUp for InMemory {
    async fn setup(&self) -> Result<(), TransportError> {
        Ok(())
    }
}

#[async_trait]
impl Listing for InMemory {
    async fn list(&self, after: Option<&MessageId>, limit: usize) -> Result<Vec<Listed>, TransportError> {
        let Some(first) = after.map_or(Some(0), |id| number(id).and_then(|id| id.checked_add(1))) else {
            return Ok(vec![]);
        };
        Ok(self.with_queue(|queue, now| {
            queue.messages.range(first..).take(limit).map(|(id, stored)| listed(*id, stored, now)).collect()
        }))
    }

    async fn find(&self, id: &MessageId) -> Result<Option<Listed>, TransportError> {
        let Some(id) = number(id) else { return Ok(None) };
        Ok(self.with_queue(|queue, now| queue.messages.get(&id).map(|stored| listed(id, stored, now))))
    }
}

#[async_trait]
impl Taking for InMemory {
    async fn take(&self, id: &MessageId) -> Result<Option<Received>, TransportError> {
        let Some(id) = number(id) else { return Ok(None) };
        Ok(self.with_queue(|queue, now| {
            queue.messages.get(&id).filter(|stored| stored.received.is_none())?;
            queue.mark(id, Some(now));
            queue.deliveries += 1;
            let stored = queue.messages.get_mut(&id)?;
            stored.delivery = queue.deliveries;
            Some(received(id, stored))
        }))
    }
}

#[async_trait]
impl Releasing for InMemory {
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError> {
        self.with_queue(|queue, _| {
            for (id, receipts) in held(deliveries) {
                if queue.is_held(id, receipts) {
                    queue.mark(id, None);
                }
            }
        });
        self.store.changed.notify_waiters();
        Ok(())
    }
}

#[async_trait]
impl Parking for InMemory {
    async fn parked(&self, cap: u64) -> Result<u64, TransportError> {
        Ok(self.counts(cap).await?.delayed)
    }

    async fn resume(&self) -> Result<(), TransportError> {
        self.with_queue(|queue, now| {
            let delayed: Vec<u64> =
                queue.waiting.iter().rev().take_while(|(due, _)| *due > now).map(|(_, id)| *id).collect();
            for id in delayed {
                if let Some(stored) = queue.remove(id) {
                    queue.insert(id, stored.message, now);
                }
            }
        });
        self.store.changed.notify_waiters();
        Ok(())
    }
}

#[async_trait]
impl KeepingAlive for InMemory {
    fn redeliver_timeout(&self) -> Duration {
        self.redeliver_timeout
    }

    async fn keep_alive(&self, deliveries: &[Delivery], _now: SystemTime) -> Result<(), TransportError> {
        self.with_queue(|queue, now| {
            for (id, receipts) in held(deliveries) {
                if queue.is_held(id, receipts) {
                    queue.mark(id, Some(now));
                }
            }
        });
        Ok(())
    }
}

#[async_trait]
impl Waking for InMemory {
    async fn wake(&self) -> Result<(), TransportError> {
        let mut changed = std::pin::pin!(self.store.changed.notified());
        // Enabled before the queue is checked below, so that no change is missed.
        changed.as_mut().enable();
        let next = self.with_queue(|queue, _| {
            let due = queue.waiting.first().map(|(due, _)| *due);
            let redelivered =
                queue.in_flight.first().and_then(|(received, _)| received.checked_add(self.redeliver_timeout));
            due.into_iter().chain(redelivered).min()
        });
        match next {
            Some(at) => {
                let _ = tokio::time::timeout_at(at, changed).await;
            }
            None => changed.await,
        }
        Ok(())
    }
}

#[async_trait]
impl Retrying for InMemory {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        if let Some(id) = number(id) {
            self.with_queue(|queue, _| {
                if queue.remove(id).is_some() {
                    queue.insert(id, message.clone(), after(delay));
                }
            });
            self.store.changed.notify_waiters();
            self.store.left.notify_waiters();
        }
        Ok(())
    }
}

#[async_trait]
impl Moving for InMemory {
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError> {
        let Some(destination) = destination.get::<QueuePlace>().filter(|place| place.store == self.store.number) else {
            return Ok(None);
        };
        if let Some(id) = number(id) {
            let mut state = self.state();
            if state.queues.get_mut(&self.name).and_then(|queue| queue.remove(id)).is_some() {
                let queue = state.queues.entry(destination.queue.clone()).or_default();
                queue.insert(id, message.clone(), Instant::now());
            }
            drop(state);
            self.store.changed.notify_waiters();
            self.store.left.notify_waiters();
        }
        Ok(Some(id.clone()))
    }

    fn place(&self) -> Place {
        Place::new(QueuePlace { store: self.store.number, queue: self.name.clone() })
    }
}

/// The location of a queue.
#[derive(Debug)]
struct QueuePlace {
    /// The number of the store.
    store: u64,
    queue: String,
}

impl From<InMemory> for Transport {
    fn from(queue: InMemory) -> Self {
        let queue = Arc::new(queue);
        let mut transport = Self::queue(&queue.name, Arc::clone(&queue));
        transport.counting = Some(queue.clone());
        transport.setting_up = Some(queue.clone());
        transport.listing = Some(queue.clone());
        transport.taking = Some(queue.clone());
        transport.releasing = Some(queue.clone());
        transport.keeping_alive = Some(queue.clone());
        transport.parking = Some(queue.clone());
        transport.waking = Some(queue.clone());
        transport.retrying = Some(queue.clone());
        transport.moving = Some(queue);
        transport
    }
}

/// Creates [`InMemory`] transports. Those with the same name, from the same factory, share a queue.
#[derive(Default)]
pub struct InMemoryFactory {
    store: Arc<Store>,
}

/// How many messages a set of queues holds.
#[cfg(feature = "testing")]
pub(crate) struct Backlog {
    /// Due, or in flight.
    pub(crate) now: usize,
    /// Delayed.
    pub(crate) later: usize,
}

#[cfg(feature = "testing")]
impl InMemoryFactory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.store.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What these queues hold at this moment.
    pub(crate) fn backlog(&self, queues: &[String]) -> Backlog {
        let (state, now) = (self.state(), Instant::now());
        let queues = queues.iter().filter_map(|name| state.queues.get(name));
        queues.fold(Backlog { now: 0, later: 0 }, |sum, queue| {
            let due = queue.due(now).count();
            Backlog { now: sum.now + due + queue.in_flight.len(), later: sum.later + queue.waiting.len() - due }
        })
    }

    /// The messages of a queue, oldest first.
    pub(crate) fn messages(&self, queue: &str) -> Vec<Encoded> {
        let state = self.state();
        let queue = state.queues.get(queue).map(|queue| &queue.messages);
        queue.into_iter().flatten().map(|(_, stored)| stored.message.clone()).collect()
    }

    /// Is ready when a message has left its queue.
    pub(crate) fn left(&self) -> tokio::sync::futures::Notified<'_> {
        self.store.left.notified()
    }
}

const OPTIONS: [Definition; 2] = [REDELIVER_TIMEOUT.definition, SERIALIZE.definition];
const SERIALIZE: Setting<bool> =
    Setting::php_flag("serialize", "true", "accepted for Symfony's sake; messages are always kept in their wire form");

impl Factory for InMemoryFactory {
    fn schemes(&self) -> &'static [&'static str] {
        SCHEMES
    }

    fn options(&self) -> Vec<Definition> {
        OPTIONS.to_vec()
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let redeliver_timeout = options.get(&REDELIVER_TIMEOUT);
        // Symfony's option, with nothing to choose here: messages are always kept in their wire form.
        options.get(&SERIALIZE);
        options.finish()?;
        Ok(InMemory { name: spec.name.clone(), redeliver_timeout, store: Arc::clone(&self.store) }.into())
    }

    fn warnings(&self, spec: &TransportSpec) -> Vec<Problem> {
        vec![spec.warning("messages on in-memory:// are seen by no other process, and lost when this one ends")]
    }
}

fn after(delay: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(delay).unwrap_or(now + A_CENTURY)
}

fn number(id: &MessageId) -> Option<u64> {
    id.0.parse().ok()
}

fn numbers(ids: &[MessageId]) -> impl Iterator<Item = u64> {
    ids.iter().filter_map(number)
}

fn held(deliveries: &[Delivery]) -> impl Iterator<Item = (u64, &[Receipt])> {
    deliveries.iter().filter_map(|delivery| Some((number(&delivery.id)?, &delivery.receipts[..])))
}

fn up_to(items: impl Iterator, cap: u64) -> u64 {
    items.take(usize::try_from(cap).unwrap_or(usize::MAX)).count() as u64
}

fn received(id: u64, stored: &Stored) -> Received {
    Received { id: MessageId(id.to_string()), receipt: stored.receipt(), message: Ok(stored.message.clone()) }
}

fn listed(id: u64, stored: &Stored, now: Instant) -> Listed {
    let ago = now.saturating_duration_since(stored.due);
    let ahead = stored.due.saturating_duration_since(now);
    let available_at = clock::now().checked_sub(ago).and_then(|time| time.checked_add(ahead));
    Listed { received: received(id, stored), available_at, in_flight: stored.received.is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_delay_follows_the_clock_of_the_timers() {
        let (queue, hour) = (InMemory::new("mail"), Duration::from_secs(3600));
        queue.send(&Encoded::default(), hour).await.unwrap();
        assert!(queue.receive(1).await.unwrap().is_empty());
        let begun = Instant::now();
        queue.wake().await.unwrap();
        assert!(begun.elapsed() >= hour);
        assert_eq!(queue.receive(1).await.unwrap().len(), 1);
    }
}

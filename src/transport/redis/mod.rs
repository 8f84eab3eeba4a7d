//! `redis:`: a queue in a Redis stream, the same that Symfony Messenger's Redis transport uses.
//!
//! A stream keeps entries in the order of their ids. A consumer group knows which of them are in flight, with which
//! consumer and for how long. Delayed messages wait in a sorted set beside the stream, and consumers move the due ones
//! to the stream. Whatever changes more than one of these is a script (see [`scripts`]), and so a single step.

mod changing;
mod entry;
mod ids;
mod listing;
mod options;
mod scripts;
mod taking;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;

use self::entry::Wrapping;
use self::ids::{delayed_id, due, millis, new_uniqid, now, own_name};
use self::options::Queue;
use self::taking::{BEGINNING, MAX_RECEIVED};
use super::{
    Connecting, Counting, Counts, Delivery, Factory, FactoryContext, KeepingAlive, MessageId, Moving, Parking, Place,
    Receipt, Received, Receiver, Releasing, Retrying, Sender, Sent, SettingUp, Transport, TransportError,
    TransportSpec, Waking,
};
use crate::config::{Definition, Problem};
use crate::connection::redis::{RedisConnection, RedisFailure};
use crate::connection::{self, Connections, StoreKind};
use crate::message::Encoded;

/// Suffix of the stream's name for the set of its delayed messages.
const DELAYED_SET: &str = "__queue";
/// How many entries are counted at most, where Redis does not know the number.
const MAX_COUNTED: u64 = 100_000;

/// A queue in a stream.
pub(crate) struct Redis {
    name: String,
    queue: Queue,
    /// The sorted set of delayed messages.
    delayed: String,
    consumer: String,
    connection: Arc<RedisConnection>,
    state: Mutex<State>,
    /// Whether the groups have been checked, and consumers that are gone removed.
    has_begun: AtomicBool,
}

/// What the last poll has found.
struct State {
    /// Where the search for abandoned messages continues.
    cursor: String,
    /// The changes that the server had reported before it.
    changes: watch::Receiver<u64>,
    /// When the next delayed message is due.
    next_due: Option<SystemTime>,
    /// If the consumer's name is configured: the last message received of those that were in flight at the start.
    own: Option<String>,
}

impl Redis {
    fn new(name: &str, queue: Queue, connection: Arc<RedisConnection>) -> Self {
        let delayed = format!("{}{DELAYED_SET}", queue.stream);
        let own = queue.consumer.as_ref().map(|_| "0".to_owned());
        let consumer = queue.consumer.clone().unwrap_or_else(own_name);
        let mut changes = connection.subscribe([&queue.stream, &delayed]);
        // There has been no poll yet.
        changes.mark_changed();
        Self {
            name: name.to_owned(),
            delayed,
            consumer,
            state: Mutex::new(State { cursor: BEGINNING.to_owned(), changes, next_due: None, own }),
            has_begun: AtomicBool::new(false),
            queue,
            connection,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock is held leaves nothing half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, action: &'static str, error: RedisFailure) -> TransportError {
        if error.is_missing() { self.not_set_up() } else { TransportError::store(&self.name, action, error) }
    }

    fn not_set_up(&self) -> TransportError {
        let Queue { stream, group, .. } = &self.queue;
        let what = format!("stream \"{stream}\" with group \"{group}\" in {}", self.connection.location());
        TransportError::NotSetUp { transport: self.name.clone(), what }
    }

    fn invocation<'s>(&self, script: &'s redis::Script) -> redis::ScriptInvocation<'s> {
        let mut invocation = script.prepare_invoke();
        invocation.key(&self.queue.stream).key(&self.delayed);
        invocation
    }

    fn bound(&self) -> String {
        self.queue.stream_max_entries.map_or(String::new(), |most| most.to_string())
    }

    /// Creates the group, and the stream if it is missing.
    async fn create_group(&self, action: &'static str) -> Result<(), TransportError> {
        let mut create = redis::cmd("XGROUP");
        // From the beginning: existing messages were sent for this group.
        create.arg("CREATE").arg(&self.queue.stream).arg(&self.queue.group).arg("0").arg("MKSTREAM");
        match self.connection.run(async |connection| create.exec_async(connection).await).await {
            Err(error) if !error.is_there_already() => Err(self.error(action, error)),
            _ => Ok(()),
        }
    }

    fn entry(&self, message: &Encoded) -> Result<Vec<u8>, TransportError> {
        entry::entry(&self.name, message, self.queue.wrapping)
    }

    async fn count(&self, cap: u64) -> Result<Counts, TransportError> {
        let action = "counting";
        let mut count = self.invocation(&scripts::COUNT);
        count.arg(&self.queue.group).arg(now()).arg(millis(self.queue.redeliver_timeout)).arg(cap.min(MAX_COUNTED));
        let counted = self.connection.run(async |connection| count.invoke_async(connection).await).await;
        let (is_there, pending, delayed, in_flight): (bool, u64, u64, u64) =
            counted.map_err(|error| self.error(action, error))?;
        if !is_there && !self.queue.auto_setup {
            return Err(self.not_set_up());
        }
        Ok(Counts { pending: pending.min(cap), delayed: delayed.min(cap), in_flight: in_flight.min(cap) })
    }
}

#[async_trait]
impl Sender for Redis {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let action = "sending";
        let queued = |id| Ok(Sent::Queued { transport: self.name.clone(), id, reason: None });
        if delay.is_zero() {
            let mut add = redis::cmd("XADD");
            add.arg(&self.queue.stream);
            if !self.queue.auto_setup {
                add.arg("NOMKSTREAM");
            }
            if let Some(most) = self.queue.stream_max_entries {
                add.arg("MAXLEN").arg("~").arg(most);
            }
            add.arg("*").arg("message").arg(self.entry(message)?);
            let id: Result<Option<String>, _> =
                self.connection.run(async |connection| add.query_async(connection).await).await;
            let id = id.map_err(|error| self.error(action, error))?;
            self.connection.changed(&self.queue.stream);
            return queued(MessageId(id.ok_or_else(|| self.not_set_up())?));
        }
        let (due, uniqid) = (due(delay), new_uniqid());
        let member = entry::member(&self.name, message, &uniqid)?;
        if !self.queue.auto_setup {
            let exists = redis::cmd("EXISTS").arg(&self.queue.stream).clone();
            let exists = self.connection.run(async |connection| exists.query_async(connection).await).await;
            if !exists.map_err(|error| self.error(action, error))? {
                return Err(self.not_set_up());
            }
        }
        let add = redis::cmd("ZADD").arg(&self.delayed).arg("NX").arg(due).arg(member).clone();
        self.connection
            .run(async |connection| add.exec_async(connection).await)
            .await
            .map_err(|error| self.error(action, error))?;
        self.connection.changed(&self.queue.stream);
        queued(delayed_id(due, &uniqid))
    }
}

#[async_trait]
impl Receiver for Redis {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        let action = "receiving";
        let up_to = up_to.min(MAX_RECEIVED);
        if up_to == 0 {
            return Ok(Vec::new());
        }
        let entries = match self.take(up_to).await {
            Err(error) if error.is_missing() && self.queue.auto_setup => {
                // Even if there is nothing to receive: a missing stream cannot notify of its first message.
                self.create_group(action).await?;
                self.take(up_to).await
            }
            entries => entries,
        };
        let entries = entries.map_err(|error| self.error(action, error))?;
        let receipt = Receipt(self.consumer.clone());
        Ok(entries.into_iter().map(|entry| entry::received(entry, receipt.clone())).collect())
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.finish("acknowledging", ids, self.queue.delete_after_ack).await
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.finish("rejecting", ids, self.queue.delete_after_reject).await
    }
}

#[async_trait]
impl Counting for Redis {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap).await.map(|counts| counts.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        self.count(cap).await
    }
}

#[async_trait]
impl SettingUp for Redis {
    async fn setup(&self) -> Result<(), TransportError> {
        let action = "setting up";
        self.check_groups().await.map_err(|error| self.error(action, error))?;
        self.create_group(action).await
    }
}

#[async_trait]
impl Releasing for Redis {
    /// The receipt is the consumer's name. Redis cannot tell consumers apart that share a name (option `consumer`).
    async fn release(&self, deliveries: &[Delivery]) -> Result<(), TransportError> {
        let mut by_consumer: HashMap<&str, Vec<MessageId>> = HashMap::new();
        for delivery in deliveries {
            for receipt in &delivery.receipts {
                by_consumer.entry(&receipt.0).or_default().push(delivery.id.clone());
            }
        }
        for (consumer, ids) in by_consumer {
            self.change("releasing", &scripts::RELEASE, &[&self.queue.group, consumer], &ids).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Parking for Redis {
    async fn parked(&self, cap: u64) -> Result<u64, TransportError> {
        self.count(cap).await.map(|counts| counts.delayed)
    }

    async fn resume(&self) -> Result<(), TransportError> {
        let (action, now) = ("resuming parked messages", now());
        loop {
            let mut resume = self.invocation(&scripts::RESUME);
            resume.arg(now);
            let more: bool = self
                .connection
                .run(async |connection| resume.invoke_async(connection).await)
                .await
                .map_err(|error| self.error(action, error))?;
            if !more {
                break;
            }
        }
        self.connection.changed(&self.queue.stream);
        Ok(())
    }
}

#[async_trait]
impl KeepingAlive for Redis {
    fn redeliver_timeout(&self) -> Duration {
        self.queue.redeliver_timeout
    }

    async fn keep_alive(&self, deliveries: &[Delivery], _now: SystemTime) -> Result<(), TransportError> {
        let ids: Vec<MessageId> = deliveries.iter().map(|delivery| delivery.id.clone()).collect();
        self.change("keeping alive", &scripts::KEEP_ALIVE, &[&self.queue.group, &self.consumer], &ids).await
    }
}

#[async_trait]
impl Waking for Redis {
    async fn wake(&self) -> Result<(), TransportError> {
        let (mut changes, next_due) = {
            let state = self.state();
            (state.changes.clone(), state.next_due)
        };
        if !self.connection.listen().await.map_err(|error| self.error("waiting", error))? {
            return std::future::pending().await;
        }
        let until_due = async {
            match next_due {
                Some(due) => tokio::time::sleep(due.duration_since(SystemTime::now()).unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = changes.changed() => {}
            () = until_due => {}
        }
        Ok(())
    }

    fn poll_interval(&self) -> Option<Duration> {
        // There is no notification of messages whose consumer is gone.
        self.connection.reports_changes().then(|| self.queue.claim_interval.min(self.queue.redeliver_timeout))
    }
}

#[async_trait]
impl Connecting for Redis {
    fn server(&self) -> &str {
        self.connection.location().server()
    }

    fn connection(&self) -> &str {
        self.connection.location().as_str()
    }

    async fn limit(&self) -> Result<Option<u64>, TransportError> {
        let info = self
            .connection
            .run(async |connection| redis::cmd("INFO").arg("clients").query_async::<String>(connection).await)
            .await;
        let info = info.map_err(|error| self.error("asking for the limit of connections", error))?;
        Ok(info.lines().find_map(|line| line.strip_prefix("maxclients:")?.trim().parse().ok()))
    }

    fn close_idle(&self) {
        self.connection.close_idle();
    }
}

#[async_trait]
impl Retrying for Redis {
    async fn retry(&self, id: &MessageId, message: &Encoded, delay: Duration) -> Result<(), TransportError> {
        let action = "retrying";
        let bound = self.bound();
        if delay.is_zero() {
            self.put(action, id, &self.queue.stream, &self.entry(message)?, None, &bound).await.map(drop)
        } else {
            let member = entry::member(&self.name, message, &new_uniqid())?;
            self.put(action, id, &self.delayed, &member, Some(due(delay)), &bound).await.map(drop)
        }
    }
}

#[async_trait]
impl Moving for Redis {
    async fn move_to(
        &self,
        id: &MessageId,
        message: &Encoded,
        destination: &Place,
    ) -> Result<Option<MessageId>, TransportError> {
        let same_store = |place: &&StreamPlace| {
            place.database == self.connection.location().as_str() && place.wrapping == self.queue.wrapping
        };
        let Some(StreamPlace { stream, bound, .. }) = destination.get::<StreamPlace>().filter(same_store) else {
            return Ok(None);
        };
        let moved = self.put("moving", id, stream, &self.entry(message)?, None, bound).await?;
        Ok(Some(moved.map_or_else(|| id.clone(), MessageId)))
    }

    fn place(&self) -> Place {
        Place::new(StreamPlace {
            database: self.connection.location().to_string(),
            wrapping: self.queue.wrapping,
            stream: self.queue.stream.clone(),
            bound: self.bound(),
        })
    }
}

/// Where a queue is. All groups of the stream read what moves there.
#[derive(Debug)]
struct StreamPlace {
    /// The server and the number of the database.
    database: String,
    /// Entries move only between queues that wrap messages in the same way.
    wrapping: Wrapping,
    stream: String,
    /// The maximum length of the stream; empty if it is not limited.
    bound: String,
}

impl Redis {
    fn into_transport(self) -> Transport {
        let queue = Arc::new(self);
        let mut transport = Transport::queue(&queue.name, Arc::clone(&queue));
        transport.counting = Some(queue.clone());
        transport.setting_up = Some(queue.clone());
        transport.listing = Some(queue.clone());
        transport.releasing = Some(queue.clone());
        transport.keeping_alive = Some(queue.clone());
        transport.parking = Some(queue.clone());
        transport.waking = Some(queue.clone());
        transport.connecting = Some(queue.clone());
        transport.retrying = Some(queue.clone());
        transport.moving = Some(queue);
        transport
    }
}

/// Creates the transports of `redis:`. Those on one database share one connection.
#[derive(Default)]
pub struct RedisFactory {
    connections: Connections,
}

impl RedisFactory {
    pub(super) fn new(connections: &Connections) -> Self {
        Self { connections: connections.clone() }
    }
}

impl Factory for RedisFactory {
    fn schemes(&self) -> &'static [&'static str] {
        StoreKind::Redis.schemes()
    }

    fn options(&self) -> Vec<Definition> {
        [&options::OPTIONS[..], &connection::redis::OPTIONS].concat()
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let (address, queue) = options::read(spec, &mut options);
        let connection = self.connections.redis(address).map_err(|error| spec.dsn_problem(error.to_string()));
        if let Err(problem) = &connection {
            options.push(problem.clone());
        }
        options.finish()?;
        let connection = connection.map_err(|problem| vec![problem])?;
        Ok(Redis::new(&spec.name, queue, connection).into_transport())
    }

    fn warnings(&self, spec: &TransportSpec) -> Vec<Problem> {
        let (_, queue) = options::read(spec, &mut spec.options());
        let mut warnings = Vec::new();
        if queue.stream_max_entries.is_some() {
            let message =
                "stream_max_entries drops the oldest messages when there are more, even if they were not handled";
            warnings.push(spec.warning(message));
        }
        if queue.consumer.is_some() {
            let message =
                "workers that share the name `consumer` take each other's messages; without it each has its own";
            warnings.push(spec.warning(message));
        }
        warnings
    }
}

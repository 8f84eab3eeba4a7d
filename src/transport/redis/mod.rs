//! `redis:`: a queue in a Redis stream, the same that Symfony Messenger's Redis transport uses.
//!
//! A stream keeps entries in the order of their ids. A consumer group knows which of them are in flight, with which
//! consumer and for how long. Delayed messages wait in a sorted set beside the stream, and consumers move the due ones
//! to the stream. Whatever changes more than one of these is a script (see [`scripts`]), and so a single step.

mod changing;
mod counting;
mod entry;
mod ids;
mod listing;
mod options;
mod scripts;
mod sending;
mod taking;
mod waking;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::sync::watch;

use self::ids::own_name;
use self::options::Queue;
use self::taking::BEGINNING;
use super::{Connecting, Factory, FactoryContext, SettingUp, Transport, TransportError, TransportSpec};
use crate::config::{Definition, Problem};
use crate::connection::redis::{RedisConnection, RedisFailure};
use crate::connection::{self, Connections, StoreKind};
use crate::message::Encoded;

/// Suffix of the stream's name for the set of its delayed messages.
const DELAYED_SET: &str = "__queue";

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
    /// The members of messages that were taken by their ids and are in flight here. There are a few, in `failed retry`.
    taken: HashMap<String, Vec<u8>>,
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
            state: Mutex::new(State {
                cursor: BEGINNING.to_owned(),
                changes,
                next_due: None,
                own,
                taken: HashMap::new(),
            }),
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

impl Redis {
    fn into_transport(self) -> Transport {
        let queue = Arc::new(self);
        let mut transport = Transport::queue(&queue.name, Arc::clone(&queue));
        transport.counting = Some(queue.clone());
        transport.setting_up = Some(queue.clone());
        transport.listing = Some(queue.clone());
        transport.taking = Some(queue.clone());
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
pub(super) struct RedisFactory {
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

//! The transports under test: how to open them, and what each can do.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use minutely::message::Encoded;
use minutely::testing::conformance;
use minutely::transport::{
    Delivery, Factory, InMemoryFactory, MessageId, Receipt, Received, Sent, Transport, TransportError,
};

use crate::support::applications::{build, transports};
use crate::support::databases::{Database, Server};
use crate::support::exchanges::Exchanges;
use crate::support::redis_keys::Keys;

/// How long to wait for anything, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    InMemory,
    Sqlite,
    Postgres,
    Mysql,
    Redis,
    Amqp,
}

/// A transport under test, which can be consumed.
pub struct Queue(Arc<Transport>);

impl Deref for Queue {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.0
    }
}

impl Queue {
    pub fn of(transport: impl Into<Arc<Transport>>) -> Arc<Self> {
        Arc::new(Self(transport.into()))
    }

    pub async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        self.sender.send(message, delay).await
    }

    pub async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        self.receiver.as_ref().unwrap().receive(up_to).await
    }

    pub async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.receiver.as_ref().unwrap().ack(ids).await
    }

    pub async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.receiver.as_ref().unwrap().reject(ids).await
    }
}

/// One test's own stores, empty.
pub struct Stage {
    kind: Kind,
    dir: tempfile::TempDir,
    /// Where the transport has a database server: this test's database.
    database: Option<Database>,
    /// Where it is Redis: keys of this test's own, in this database.
    keys: Option<Keys>,
    redis_database: u32,
    /// Where it is a broker: exchanges of this test's own.
    exchanges: Option<Exchanges>,
    /// Where queues live in the process, "another process" means the same factory.
    in_memory: Arc<InMemoryFactory>,
}

impl Stage {
    /// None where the server is missing, and the test is to be skipped.
    pub async fn new(kind: Kind) -> Option<Self> {
        let database = match kind {
            Kind::InMemory | Kind::Sqlite | Kind::Redis | Kind::Amqp => None,
            Kind::Postgres => Some(Database::create(Server::Postgres).await?),
            Kind::Mysql => Some(Database::create(Server::Mysql).await?),
        };
        let keys = if kind == Kind::Redis { Some(Keys::create().await?) } else { None };
        let exchanges = if kind == Kind::Amqp { Some(Exchanges::create().await?) } else { None };
        let (dir, in_memory) = (tempfile::tempdir().unwrap(), Arc::new(InMemoryFactory::default()));
        Some(Self { kind, dir, database, keys, redis_database: 0, exchanges, in_memory })
    }

    /// The project's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Opens a queue as another process would: sharing no connection with what was opened before.
    pub fn open(&self, queue: &str) -> Arc<Queue> {
        self.open_with(queue, "{}")
    }

    /// Opens a queue with further options, as YAML.
    pub fn open_with(&self, queue: &str, options: &str) -> Arc<Queue> {
        match self.kind {
            Kind::InMemory => {
                let factory = Arc::clone(&self.in_memory) as Arc<dyn Factory>;
                Queue::of(conformance::open(factory, self.dir.path(), queue, "in-memory://", options))
            }
            Kind::Sqlite => {
                let dsn = format!("sqlite:var/queue.db?queue_name={queue}");
                open(queue, &dsn, options, self.dir.path())
            }
            Kind::Postgres | Kind::Mysql => {
                let dsn = format!("{}?queue_name={queue}", self.database().url());
                open(queue, &dsn, options, self.dir.path())
            }
            Kind::Amqp => {
                let exchanges = self.exchanges.as_ref().unwrap();
                // Queues with names of this test's own.
                let [a, b] = ["a", "b"].map(|queue| exchanges.name(queue));
                let options = options.replace("{a: ~, b: ~}", &format!("{{{a}: ~, {b}: ~}}"));
                open(queue, &exchanges.dsn(queue), &options, self.dir.path())
            }
            Kind::Redis => {
                let dsn = self.keys().dsn(queue, self.redis_database);
                open(queue, &dsn, options, self.dir.path())
            }
        }
    }

    /// What a test on Redis may use.
    pub fn keys(&self) -> &Keys {
        self.keys.as_ref().unwrap()
    }

    /// The database of a test on a server.
    pub fn database(&self) -> &Database {
        self.database.as_ref().unwrap()
    }
}

/// The stores of one test of the suite: one by the first folder that a queue is opened with, another by any other.
pub struct Stores {
    here: Stage,
    first: OnceLock<PathBuf>,
    elsewhere: OnceLock<Stage>,
}

impl Stores {
    /// None where the server is missing, and the test is to be skipped.
    pub fn new(kind: Kind) -> Option<Self> {
        let here = block_on(Stage::new(kind))?;
        Some(Self { here, first: OnceLock::new(), elsewhere: OnceLock::new() })
    }

    pub fn open(&self, dir: &Path, queue: &str, options: &str) -> Arc<Transport> {
        let stage = if self.first.get_or_init(|| dir.to_owned()) == dir {
            &self.here
        } else {
            self.elsewhere.get_or_init(|| self.another())
        };
        Arc::clone(&stage.open_with(queue, options).0)
    }

    /// Made on a thread of its own, as the test's runtime runs on this one.
    fn another(&self) -> Stage {
        let kind = self.here.kind;
        let mut stage = std::thread::spawn(move || block_on(Stage::new(kind)).unwrap()).join().unwrap();
        stage.redis_database = 1;
        stage
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

/// Opens one transport, by its DSN and further options as YAML, in a project in this folder. As another process would: it
/// shares no connection with what was opened before.
pub fn open(name: &str, dsn: &str, options: &str, dir: &Path) -> Arc<Queue> {
    let app = build(transports([(name, dsn)], options), dir).unwrap();
    Queue::of(app.transports().get(name).unwrap())
}

/// Opens several transports, by name and DSN, as one process does.
pub fn open_all(dsns: &[(&str, String)], dir: &Path) -> Vec<Arc<Queue>> {
    let app = build(transports(dsns.iter().map(|(name, dsn)| (*name, dsn.as_str())), "{}"), dir).unwrap();
    dsns.iter().map(|(name, _)| Queue::of(app.transports().get(name).unwrap())).collect()
}

/// A message with this body.
pub fn message(body: impl Into<Bytes>) -> Encoded {
    let headers = [("type", "App\\Message\\Test"), ("Content-Type", "application/json")].into();
    Encoded { body: body.into(), headers }
}

/// Sends a message, and returns its id.
pub async fn send(transport: &Queue, body: impl Into<Bytes>) -> MessageId {
    send_later(transport, body, Duration::ZERO).await
}

pub async fn send_later(transport: &Queue, body: impl Into<Bytes>, delay: Duration) -> MessageId {
    match transport.send(&message(body), delay).await.unwrap() {
        Sent::Queued { id, transport: name, .. } => {
            assert_eq!(name, transport.name());
            id
        }
        Sent::HandleNow { reason } => panic!("not queued: {reason}"),
    }
}

/// Receives everything that is due. A broker may hand it out in several parts.
pub async fn receive_all(transport: &Queue) -> Vec<Received> {
    let mut all = vec![];
    loop {
        let part = transport.receive(1000).await.unwrap();
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

/// Receives everything that is due, and returns the bodies.
pub async fn receive_bodies(transport: &Queue) -> Vec<String> {
    bodies(&receive_all(transport).await)
}

pub fn bodies(received: &[Received]) -> Vec<String> {
    received.iter().map(|received| String::from_utf8(message_of(received).body.to_vec()).unwrap()).collect()
}

pub fn message_of(received: &Received) -> &Encoded {
    received.message.as_ref().unwrap()
}

pub fn ids(received: &[Received]) -> Vec<MessageId> {
    received.iter().map(|received| received.id.clone()).collect()
}

/// The deliveries of received messages.
pub fn deliveries(received: &[Received]) -> Vec<Delivery> {
    received.iter().map(Received::delivery).collect()
}

/// Deliveries of messages that were never received, with another message's receipt.
pub fn never_received(ids: &[MessageId], receipt: &Receipt) -> Vec<Delivery> {
    ids.iter().map(|id| Delivery { id: id.clone(), receipts: vec![receipt.clone()] }).collect()
}

/// Receives until a message arrives.
pub async fn receive_eventually(transport: &Queue) -> Received {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(received) = transport.receive(1).await.unwrap().pop() {
            return received;
        }
        assert!(Instant::now() < deadline, "no message came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

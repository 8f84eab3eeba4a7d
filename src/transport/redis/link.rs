//! The one connection that a process has to a server, shared by all of its transports there.
//!
//! It is opened by the first request and again by the first one after it broke. What was under way when it broke fails,
//! as nobody knows whether the server has done it.
//!
//! The server tells of changes without being asked: client-side caching in its broadcasting mode (`CLIENT TRACKING … BCAST
//! PREFIX`) reports every key that somebody else changes, over the same connection and at no cost while nothing happens. A
//! blocking read would keep that connection from everything else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::sync::{Mutex, watch};

use super::DELAYED_SET;
use super::error::{RedisFailure, ends_connection};
use super::options::Address;
use crate::threads;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take. It ends the wait for a server that has vanished without a word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A way to a server. Opens nothing before it is asked something.
pub(super) struct Link {
    client: Client,
    place: Arc<str>,
    open: Mutex<Option<Open>>,
    /// The streams of this process, and for each the count of changes of it and of the messages that are to come to it.
    bells: Arc<Bells>,
    /// Does the server tell of changes now?
    tells: Arc<AtomicBool>,
}

struct Open {
    connection: MultiplexedConnection,
    /// Set when the connection has ended.
    ended: Arc<AtomicBool>,
}

impl Link {
    pub(super) fn new(address: &Address) -> RedisResult<Self> {
        // Whoever connects with TLS first decides on the cryptography; another choice than this one would do as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            client: match address.certificates() {
                Some(certificates) => Client::build_with_tls(address.connection_info()?, certificates)?,
                None => Client::open(address.connection_info()?)?,
            },
            place: address.place().into(),
            open: Mutex::new(None),
            bells: Arc::default(),
            tells: Arc::default(),
        })
    }

    /// The server and the database, without secrets.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Be told of this stream, from the next connection on.
    pub(super) fn watch(&self, stream: &str) {
        lock(&self.bells).entry(stream.to_owned()).or_default();
    }

    /// Does something on the connection, and returns the answer.
    pub(super) async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, RedisFailure> {
        let (mut connection, ended) = self.connection().await.map_err(|error| self.failure(error))?;
        work(&mut connection).await.map_err(|error| {
            if ends_connection(&error) {
                ended.store(true, Ordering::Relaxed);
            }
            self.failure(error)
        })
    }

    /// What has been told of a stream up to now, to be compared with later.
    pub(super) fn told(&self, stream: &str) -> watch::Receiver<u64> {
        // A new receiver has seen all that was there before.
        lock(&self.bells).entry(stream.to_owned()).or_default().subscribe()
    }

    /// A stream has changed, and the server does not tell of it, because this process has done it.
    pub(super) fn ring(&self, stream: &str) {
        ring(&self.bells, stream);
    }

    /// Is the server telling of changes? Connects, if need be.
    pub(super) async fn listen(&self) -> Result<bool, RedisFailure> {
        self.connection().await.map_err(|error| self.failure(error))?;
        Ok(self.tells())
    }

    /// Is the server telling of changes at present?
    pub(super) fn tells(&self) -> bool {
        self.tells.load(Ordering::Relaxed)
    }

    /// Closes the connection until something is asked.
    pub(super) fn rest(&self) {
        // While somebody opens it there is nothing to close.
        if let Ok(mut open) = self.open.try_lock() {
            *open = None;
            self.tells.store(false, Ordering::Relaxed);
        }
    }

    /// An error found in an answer.
    pub(super) fn failure(&self, error: RedisError) -> RedisFailure {
        RedisFailure::new(&self.place, error)
    }

    /// An error that the server knows nothing of.
    pub(super) fn refusal(&self, reason: String) -> RedisFailure {
        RedisFailure::own(&self.place, reason)
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, Arc<AtomicBool>)> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| !open.ended.load(Ordering::Relaxed)) {
            return Ok((open.connection.clone(), Arc::clone(&open.ended)));
        }
        *open = None;
        self.tells.store(false, Ordering::Relaxed);
        let ended = Arc::new(AtomicBool::new(false));
        let mut connection = self.connect(&ended).await?;
        self.ask_to_be_told(&mut connection).await?;
        *open = Some(Open { connection: connection.clone(), ended: Arc::clone(&ended) });
        Ok((connection, ended))
    }

    async fn connect(&self, ended: &Arc<AtomicBool>) -> RedisResult<MultiplexedConnection> {
        let (bells, ended, tells) = (Arc::clone(&self.bells), Arc::clone(ended), Arc::clone(&self.tells));
        let push = move |info: PushInfo| {
            if info.kind == PushKind::Disconnection {
                ended.store(true, Ordering::Relaxed);
                tells.store(false, Ordering::Relaxed);
            }
            match info.data.first() {
                Some(Value::Array(keys)) if info.kind == PushKind::Invalidate => {
                    for key in keys {
                        if let Value::BulkString(key) = key {
                            let key = String::from_utf8_lossy(key);
                            ring(&bells, key.strip_suffix(DELAYED_SET).unwrap_or(&key));
                        }
                    }
                }
                // All keys are gone, or the connection is: who waits finds out by looking.
                _ => ring_all(&bells),
            }
            Ok::<_, std::convert::Infallible>(())
        };
        if let ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } =
            self.client.get_connection_info().addr()
        {
            threads::for_lookup(host).await?;
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_push_sender(push);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// A server that does not allow it, or does not know it, is asked again and again instead.
    async fn ask_to_be_told(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let prefixes = shortest(lock(&self.bells).keys().cloned().collect());
        // Without any it would tell of all keys there are.
        if prefixes.is_empty() {
            return Ok(());
        }
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST").arg("NOLOOP");
        for prefix in prefixes {
            tracking.arg("PREFIX").arg(prefix);
        }
        match tracking.exec_async(connection).await {
            Ok(()) => self.tells.store(true, Ordering::Relaxed),
            Err(error) if error.is_io_error() || error.is_timeout() => return Err(error),
            Err(error) => tracing::info!(server = %self.place, %error, "the server does not tell of new messages"),
        }
        Ok(())
    }
}

type Bells = Lock<HashMap<String, watch::Sender<u64>>>;

fn lock(bells: &Bells) -> MutexGuard<'_, HashMap<String, watch::Sender<u64>>> {
    // A panic while the lock is held leaves at worst an entry out.
    bells.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ring(bells: &Bells, stream: &str) {
    if let Some(bell) = lock(bells).get(stream) {
        bell.send_modify(|count| *count += 1);
    }
}

fn ring_all(bells: &Bells) {
    for bell in lock(bells).values() {
        bell.send_modify(|count| *count += 1);
    }
}

/// The names that none of the others begins: the server refuses prefixes that overlap.
fn shortest(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup_by(|name, before| name.starts_with(before.as_str()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_prefix_begins_another() {
        let names = ["prio_low", "a", "prio", "ab", "b", "abc"].map(str::to_owned);
        assert_eq!(shortest(names.to_vec()), ["a", "b", "prio"]);
        assert_eq!(shortest(vec![]), Vec::<String>::new());
    }
}

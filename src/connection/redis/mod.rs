//! The one connection that a process has to a Redis server.
//!
//! The first request opens it, and the first request after it broke opens it again. Requests in progress when it breaks
//! fail.
//!
//! The server notifies of changes over the same connection: client-side caching in broadcasting mode
//! (`CLIENT TRACKING … BCAST PREFIX`) names every key that another client changes. A blocking read, in contrast, would
//! block the connection for everything else.

mod address;
mod error;
mod search;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, Value,
};
use tokio::sync::{Mutex, watch};

pub(crate) use self::address::{Address, OPTIONS};
pub(crate) use self::error::RedisFailure;
use self::error::ends_connection;
use super::Location;
use super::notifier::Notifier;
use crate::threads;

/// A connection to a server. Opens with the first request.
///
/// Where several servers are named, each connection is to the one that has the keys then: the primary that sentinels know,
/// or a node of a cluster.
pub(crate) struct RedisConnection {
    address: Address,
    /// For the server, if it is always the same.
    client: Option<Client>,
    location: Location,
    open: Mutex<Option<Open>>,
    /// The keys whose changes are waited for.
    changes: Arc<Notifier<String>>,
    /// Whether the server reports changes at present.
    reports_changes: Arc<AtomicBool>,
}

struct Open {
    connection: MultiplexedConnection,
    /// Set when the connection has ended.
    ended: Arc<AtomicBool>,
}

impl RedisConnection {
    pub(crate) fn new(address: &Address) -> RedisResult<Self> {
        // The first to install a TLS provider wins; any provider works here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            client: address.client()?,
            location: address.location(),
            address: address.clone(),
            open: Mutex::new(None),
            changes: Arc::default(),
            reports_changes: Arc::default(),
        })
    }

    /// The server and the database.
    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// Runs a request on the connection, and returns the response.
    pub(crate) async fn run<T>(
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

    /// The total count of changes of these keys, as reported by the server from the next connection on.
    pub(crate) fn subscribe<const N: usize>(&self, keys: [&str; N]) -> watch::Receiver<u64> {
        self.changes.subscribe(keys.map(str::to_owned))
    }

    /// Counts a change that this process made: the server does not report it.
    pub(crate) fn changed(&self, key: &str) {
        self.changes.notify(&key.to_owned());
    }

    /// Whether the server reports changes. Connects if necessary.
    pub(crate) async fn listen(&self) -> Result<bool, RedisFailure> {
        self.connection().await.map_err(|error| self.failure(error))?;
        Ok(self.reports_changes())
    }

    /// Whether the server reports changes at present.
    pub(crate) fn reports_changes(&self) -> bool {
        self.reports_changes.load(Ordering::Relaxed)
    }

    /// Closes the connection until the next request.
    pub(crate) fn close_idle(&self) {
        // While another task opens it, there is nothing to close.
        if let Ok(mut open) = self.open.try_lock() {
            *open = None;
            self.reports_changes.store(false, Ordering::Relaxed);
        }
    }

    /// An error found in a response.
    pub(crate) fn failure(&self, error: RedisError) -> RedisFailure {
        RedisFailure::new(&self.location, error)
    }

    /// An error that was found without the server.
    pub(crate) fn refusal(&self, reason: String) -> RedisFailure {
        RedisFailure::own(&self.location, reason)
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, Arc<AtomicBool>)> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| !open.ended.load(Ordering::Relaxed)) {
            return Ok((open.connection.clone(), Arc::clone(&open.ended)));
        }
        *open = None;
        self.reports_changes.store(false, Ordering::Relaxed);
        let ended = Arc::new(AtomicBool::new(false));
        let mut connection = self.connect(&ended).await?;
        self.track_changes(&mut connection).await?;
        *open = Some(Open { connection: connection.clone(), ended: Arc::clone(&ended) });
        Ok((connection, ended))
    }

    async fn connect(&self, ended: &Arc<AtomicBool>) -> RedisResult<MultiplexedConnection> {
        let (changes, ended) = (Arc::clone(&self.changes), Arc::clone(ended));
        let reports_changes = Arc::clone(&self.reports_changes);
        let push = move |info: PushInfo| {
            if info.kind == PushKind::Disconnection {
                ended.store(true, Ordering::Relaxed);
                reports_changes.store(false, Ordering::Relaxed);
            }
            match info.data.first() {
                Some(Value::Array(keys)) if info.kind == PushKind::Invalidate => {
                    for key in keys {
                        if let Value::BulkString(key) = key {
                            changes.notify(&String::from_utf8_lossy(key).into_owned());
                        }
                    }
                }
                // All keys were removed, or the connection was lost: anything may have changed.
                _ => changes.notify_all(),
            }
            Ok::<_, std::convert::Infallible>(())
        };
        // Ends the wait for a server that is gone without closing the connection.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.address.connect_timeout))
            .set_response_timeout(Some(self.address.answer_timeout))
            .set_push_sender(push);
        let client = self.find_server().await?;
        if let ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } = client.get_connection_info().addr()
        {
            threads::wait_for_lookup_thread(host).await?;
        }
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        if self.client.is_none() && !search::is_primary(&mut connection).await? {
            let why = "the primary has changed, and not all servers know yet";
            return Err((ErrorKind::Client, why).into());
        }
        Ok(connection)
    }

    /// The server that has the keys now.
    async fn find_server(&self) -> RedisResult<Client> {
        match (&self.client, self.address.several()) {
            (Some(client), _) => Ok(client.clone()),
            (None, Some(several)) => search::find(&self.address, several).await,
            (None, None) => Err((ErrorKind::InvalidClientConfig, "no server is named").into()),
        }
    }

    /// Asks the server to report changes. If it does not allow or support that, consumers poll.
    async fn track_changes(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let prefixes = shortest(self.changes.keys());
        // Without prefixes, it would report changes of all keys.
        if prefixes.is_empty() {
            return Ok(());
        }
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST").arg("NOLOOP");
        for prefix in prefixes {
            tracking.arg("PREFIX").arg(prefix);
        }
        match tracking.exec_async(connection).await {
            Ok(()) => self.reports_changes.store(true, Ordering::Relaxed),
            Err(error) if error.is_io_error() || error.is_timeout() => return Err(error),
            Err(error) => {
                tracing::info!(server = %self.location, %error, "the server does not notify of new messages; workers poll");
            }
        }
        Ok(())
    }
}

/// The names without those that have another name as a prefix: the server refuses overlapping prefixes.
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

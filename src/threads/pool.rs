//! Waiting for a thread of the blocking pool, before a library needs one to connect to a server.

use std::any::Any;
use std::io;
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "redis",
    feature = "amqp",
    feature = "http",
    feature = "mail"
))]
use std::net::IpAddr;
use std::panic::catch_unwind;
use std::thread;
use std::time::Duration;

use nix::Error as Errno;
use tokio::time::Instant;

use super::{advice, is_refusal};

/// How long to wait for a thread.
const THREAD_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Waits until the blocking pool has a thread to look up this host name with. To be called right before connecting: the
/// libraries look names up on the blocking pool, and tokio panics if it cannot have a thread. Returns at once for an
/// address.
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "redis",
    feature = "amqp",
    feature = "http",
    feature = "mail"
))]
pub(crate) async fn wait_for_lookup_thread(host: &str) -> io::Result<()> {
    let is_address = host.starts_with('/') || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_address { Ok(()) } else { wait_for_pool_thread().await }
}

/// Runs what takes a while, and waits for nobody, on the blocking pool.
#[cfg(feature = "mail")]
pub(crate) async fn run_on_pool<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    wait_for_pool_thread().await?;
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

async fn wait_for_pool_thread() -> io::Result<()> {
    let deadline = Instant::now() + THREAD_TIMEOUT;
    loop {
        match pool_thread().await {
            Err(error) if Instant::now() < deadline && is_refusal(&error) => tokio::time::sleep(RETRY_PAUSE).await,
            result => return result.map_err(with_advice),
        }
    }
}

async fn pool_thread() -> io::Result<()> {
    // A thread is tried before tokio starts one, because tokio's panic would be printed. If another process takes the
    // last thread in between, the panic is caught.
    let tried = thread::Builder::new().spawn(|| ())?;
    let _ = tried.join();
    let refused = |_: Box<dyn Any + Send>| io::Error::from(Errno::EAGAIN);
    // Now the pool has a thread for a while, and further tasks of the pool wait for that one.
    catch_unwind(|| tokio::task::spawn_blocking(|| ())).map_err(refused)?.await.map_err(io::Error::other)
}

fn with_advice(error: io::Error) -> io::Error {
    let advice = advice(&error);
    if advice.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}{advice}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_for_a_refusal_says_what_to_do() {
        assert!(with_advice(Errno::EAGAIN.into()).to_string().contains("lower `max`"));
        assert_eq!(with_advice(io::Error::other("other")).to_string(), "other");
    }

    #[test]
    fn a_runtime_of_one_thread_has_a_pool_for_lookups() {
        let runtime = crate::threads::one_thread().unwrap();
        runtime.block_on(async {
            wait_for_pool_thread().await.unwrap();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        });
    }
}

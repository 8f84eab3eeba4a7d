//! Threads, processes and open files, where few are allowed.
//!
//! A host that limits the processes of a user (`ulimit -u`, RLIMIT_NPROC) counts every thread, and refuses further ones with
//! EAGAIN. So this program has few: what is quick is done by the thread that asks. What needs another one waits for it, or
//! fails with an error that names the limit; and the supervisor looks at the limit before it starts workers.
//!
//! Descriptors (`ulimit -n`) and memory that are used up are refusals too: they pass, and say nothing about a message.

use std::any::Any;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use nix::Error as Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// How long a thread of the pool stays when it has nothing to do. It looks up a name now and then.
const POOL_KEEPS: Duration = Duration::from_secs(2);

/// How many threads the pool has at most.
const POOL_MOST: usize = 4;

/// How long a thread is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// How many descriptors a runtime takes, and some for what is done first, such as reading the configuration.
const DESCRIPTORS: usize = 8;

/// A runtime of one thread, this one.
pub(crate) fn one_thread() -> io::Result<Runtime> {
    ask_for_descriptors()?;
    Builder::new_current_thread().enable_all().thread_keep_alive(POOL_KEEPS).max_blocking_threads(POOL_MOST).build()
}

/// A runtime with `threads` besides this one, so that what computes here does not hold up the heartbeat. Where threads are
/// used up it has none.
pub(crate) fn several_threads(threads: usize) -> io::Result<Runtime> {
    ask_for_descriptors()?;
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().thread_keep_alive(POOL_KEEPS).max_blocking_threads(POOL_MOST);
    // Tokio panics where it gets no thread, so that the system is asked before.
    let asked: Vec<_> = (0..threads).map_while(|_| thread::Builder::new().spawn(thread::park).ok()).collect();
    let available = asked.len();
    for thread in asked {
        thread.thread().unpark();
        let _ = thread.join();
    }
    if available == threads
        && let Ok(runtime) = catch_unwind(AssertUnwindSafe(|| builder.build()))
    {
        return runtime;
    }
    one_thread()
}

/// Tokio panics where it gets no descriptors for its signals, so that the system is asked before.
fn ask_for_descriptors() -> io::Result<()> {
    let asked: io::Result<Vec<_>> = (0..DESCRIPTORS).map(|_| UnixDatagram::unbound()).collect();
    asked.map(drop)
}

/// Returns when this process has a thread to look up this host's name with, which the libraries do where tokio panics when
/// it can have none. To be called right before connecting. An address needs no look.
pub(crate) async fn for_lookup(host: &str) -> io::Result<()> {
    let is_address = host.starts_with('/') || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_address { Ok(()) } else { for_pool().await }
}

/// The same for libraries that use the pool of threads in any case.
pub(crate) async fn for_pool() -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match pool_thread().await {
            Err(error) if Instant::now() < deadline && is_refusal(&error) => tokio::time::sleep(BETWEEN_TRIES).await,
            result => return result.map_err(with_advice),
        }
    }
}

async fn pool_thread() -> io::Result<()> {
    // The system is asked before tokio is, whose panic would be printed. Where another process is quicker in between, the
    // panic is caught.
    let asked = thread::Builder::new().spawn(|| ())?;
    let _ = asked.join();
    let refused = |_: Box<dyn Any + Send>| io::Error::from(Errno::EAGAIN);
    // From here on the pool has a thread for a while, and whatever it is asked waits for that one.
    catch_unwind(|| tokio::task::spawn_blocking(|| ())).map_err(refused)?.await.map_err(io::Error::other)
}

/// Did the system refuse a process, a thread or what these need, because too much of it is in use now?
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    used_up(error).is_some()
}

/// What to do about an error, where it is such a refusal.
pub(crate) fn advice(error: &io::Error) -> String {
    used_up(error).map_or(String::new(), |used_up| format!("; {used_up}"))
}

/// What is used up, and what to do.
fn used_up(error: &io::Error) -> Option<String> {
    let here = |limit: Option<u64>| limit.map_or(String::new(), |limit| format!(", {limit} here"));
    Some(match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => format!(
            "the processes and threads that this user may have (`ulimit -u`{}) are used up: lower `max` of the workers, \
             or their `--concurrency`",
            here(process_limit())
        ),
        Errno::EMFILE => format!(
            "the open files that a process may have (`ulimit -n`{}) are used up: raise that limit, or lower the workers' \
             `--concurrency`",
            here(soft_limit(Resource::RLIMIT_NOFILE))
        ),
        Errno::ENFILE => {
            "the open files of the whole system are used up: lower `max` of the workers, or raise the system's \
                          limit (`sysctl fs.file-max`)"
                .into()
        }
        Errno::ENOMEM => {
            "the memory that can be had is used up: lower `max` of the workers, or their `--concurrency`".into()
        }
        _ => return None,
    })
}

fn with_advice(error: io::Error) -> io::Error {
    let advice = advice(&error);
    if advice.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}{advice}")) }
}

/// How many processes and threads this user may have; none where there is no bound.
pub(crate) fn process_limit() -> Option<u64> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    soft_limit(Resource::RLIMIT_NPROC)
}

fn soft_limit(resource: Resource) -> Option<u64> {
    let (soft, _) = getrlimit(resource).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_limit() {
        let refused = io::Error::from(Errno::EAGAIN);
        assert!(advice(&refused).contains("`ulimit -u`"));
        assert!(with_advice(refused).to_string().contains("lower `max`"));
        assert!(advice(&Errno::EMFILE.into()).contains("(`ulimit -n`"));
        assert!(advice(&Errno::ENFILE.into()).contains("`sysctl fs.file-max`"));
        assert!(advice(&Errno::ENOMEM.into()).contains("memory"));
        let other = io::Error::from(Errno::ENOENT);
        assert_eq!(advice(&other), "");
    }

    #[test]
    fn what_computes_does_not_hold_up_what_runs_beside_it() {
        let runtime = several_threads(1).unwrap();
        runtime.block_on(async {
            let (said, heard) = std::sync::mpsc::channel();
            tokio::spawn(async move { said.send(()).unwrap() });
            // As a handler that computes does: without giving the others a turn.
            heard.recv_timeout(Duration::from_secs(60)).unwrap();
        });
    }

    #[test]
    fn a_runtime_of_one_thread_starts_none_until_a_name_is_looked_up() {
        let runtime = one_thread().unwrap();
        runtime.block_on(async {
            for_lookup("localhost").await.unwrap();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        });
    }
}

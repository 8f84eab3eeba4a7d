//! Threads, processes and open files on hosts that allow few.
//!
//! A host that limits the processes of a user (`ulimit -u`, RLIMIT_NPROC) counts every thread, and refuses further ones
//! with EAGAIN. So this program uses few: what is quick is done on the thread that needs it. Code that needs another
//! thread waits for one, or fails with an error that names the limit. The supervisor checks the limit before it starts
//! workers.
//!
//! Running out of open files (`ulimit -n`) or of memory is handled in the same way: it is temporary, and not a
//! message's fault.

#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "redis",
    feature = "amqp",
    feature = "http",
    feature = "mail"
))]
mod pool;

use std::io;
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use nix::Error as Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use tokio::runtime::{Builder, Runtime};

#[cfg(feature = "mail")]
pub(crate) use self::pool::run_on_pool;
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "redis",
    feature = "amqp",
    feature = "http",
    feature = "mail"
))]
pub(crate) use self::pool::wait_for_lookup_thread;

/// How long an idle thread of the blocking pool stays. The pool looks up a host name, or reads a file, from time to time.
const POOL_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The most threads in the blocking pool.
const MAX_POOL_THREADS: usize = 4;

/// How many descriptors a runtime needs, and some more for reading the configuration.
const RUNTIME_DESCRIPTORS: usize = 8;

/// A runtime on this thread alone.
pub(crate) fn one_thread() -> io::Result<Runtime> {
    check_descriptors()?;
    with_small_pool(&mut Builder::new_current_thread()).build()
}

/// A runtime with `threads` threads besides this one, so that a handler that computes does not delay the heartbeat. If
/// the system refuses the threads, the runtime uses only this thread.
pub(crate) fn several_threads(threads: usize) -> io::Result<Runtime> {
    check_descriptors()?;
    let mut builder = Builder::new_multi_thread();
    with_small_pool(builder.worker_threads(threads));
    // Tokio panics if a thread is refused, so it is tried first.
    let tried: Vec<_> = (0..threads).map_while(|_| thread::Builder::new().spawn(thread::park).ok()).collect();
    let available = tried.len();
    for thread in tried {
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

fn with_small_pool(builder: &mut Builder) -> &mut Builder {
    builder.enable_all().thread_keep_alive(POOL_KEEP_ALIVE).max_blocking_threads(MAX_POOL_THREADS)
}

/// Tokio panics if descriptors for its signal handling are refused, so they are tried first.
fn check_descriptors() -> io::Result<()> {
    let tried: io::Result<Vec<_>> = (0..RUNTIME_DESCRIPTORS).map(|_| UnixDatagram::unbound()).collect();
    tried.map(drop)
}

/// Whether the system refused a process, a thread, a descriptor or memory because too much of it is in use at the
/// moment.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    exhausted(error).is_some()
}

/// What to do about such an error, as a text to append to it; empty for other errors.
pub(crate) fn advice(error: &io::Error) -> String {
    exhausted(error).map_or(String::new(), |exhausted| format!("; {exhausted}"))
}

/// The same for the program of a job, which has no workers to lower.
pub(crate) fn advice_for_job(error: &io::Error) -> String {
    if !is_refusal(error) {
        return String::new();
    }
    "; the host is short of processes, open files or memory: raise the limits of this user (`ulimit -a`), or let fewer jobs run \
     at once (`jitter`, other schedules)"
        .to_owned()
}

/// The same for any program: what to do if its file may not be executed.
pub(crate) fn advice_for_program(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; if its file is not executable, try `chmod +x`",
        _ => "",
    }
}

/// Which resource is used up, and what to do.
fn exhausted(error: &io::Error) -> Option<String> {
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

/// How many processes and threads this user may have; `None` if there is no limit.
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
    fn a_refusal_names_its_limit() {
        let refused = io::Error::from(Errno::EAGAIN);
        assert!(advice(&refused).contains("`ulimit -u`"));
        assert!(advice(&refused).contains("lower `max`"));
        assert!(advice(&Errno::EMFILE.into()).contains("(`ulimit -n`"));
        assert!(advice(&Errno::ENFILE.into()).contains("`sysctl fs.file-max`"));
        assert!(advice(&Errno::ENOMEM.into()).contains("memory"));
        let for_job = advice_for_job(&io::Error::from(Errno::EAGAIN));
        assert!(for_job.contains("`jitter`") && !for_job.contains("worker"));
        assert!(advice_for_program(&Errno::EACCES.into()).contains("chmod +x"));
        assert_eq!(advice_for_program(&Errno::ENOENT.into()), "");
        let other = io::Error::from(Errno::ENOENT);
        assert_eq!((advice(&other), advice_for_job(&other)), (String::new(), String::new()));
    }

    #[test]
    fn a_task_that_computes_does_not_delay_others() {
        let runtime = several_threads(1).unwrap();
        runtime.block_on(async {
            let (sender, receiver) = std::sync::mpsc::channel();
            tokio::spawn(async move { sender.send(()).unwrap() });
            // Blocks the thread, as a handler that computes does.
            receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        });
    }
}

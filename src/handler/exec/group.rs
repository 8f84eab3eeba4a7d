//! A program and all processes that it starts, which end together.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How long a program that is asked to end (SIGTERM) may take before it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The interval of checking whether all processes of a group are gone.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A program that runs in a process group of its own. If this is dropped while the program runs, the whole group is
/// killed, so that nothing goes on with a message that will be delivered to another consumer.
pub(crate) struct Group {
    child: Child,
    /// `None` once the group must get no more signals: after its end, another group may have the same id.
    id: Option<Pid>,
}

impl Group {
    /// Starts the program.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, id })
    }

    /// The program itself, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the program's end. After `limit`, ends the whole group and returns `None`.
    pub(crate) async fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        let in_time = match limit {
            None => Some(self.child.wait().await),
            Some(limit) => timeout(limit, self.child.wait()).await.ok(),
        };
        let Some(status) = in_time else {
            self.end().await;
            return Ok(None);
        };
        // What the program left in the background is meant to go on.
        self.id = None;
        status.map(Some)
    }

    /// Asks all processes of the group to end, waits, and kills those that are left.
    pub(crate) async fn end(&mut self) {
        self.signal(Some(Signal::SIGTERM));
        let gone = async {
            let _ = self.child.wait().await;
            while self.signal(None) {
                sleep(POLL_INTERVAL).await;
            }
        };
        let gone = timeout(GRACE, gone).await.is_ok();
        if !gone {
            self.signal(Some(Signal::SIGKILL));
            let _ = self.child.wait().await;
        }
        self.id = None;
    }

    /// Sends a signal to the group; with `None`, only checks it. Returns whether any process is left.
    fn signal(&self, signal: Option<Signal>) -> bool {
        self.id.is_some_and(|id| killpg(id, signal).is_ok())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Some(Signal::SIGKILL));
    }
}

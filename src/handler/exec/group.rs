//! A program with everything it starts, ended together.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How long a program that is asked to end may take, before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How often to look whether all of a group have gone.
const GLANCE: Duration = Duration::from_millis(20);

/// A program that runs in a process group of its own. When it is dropped while the program runs, all of the group is
/// killed: nothing goes on for a message that will be delivered to somebody else.
pub(super) struct Group {
    child: Child,
    /// `None` once the group needs no more signals, or may be another's: its number is free when all have gone.
    id: Option<Pid>,
}

impl Group {
    /// Starts the program.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, id })
    }

    /// The program itself, for its pipes.
    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the program's end. When it has not come after `limit`, ends the whole group; the answer is then `None`.
    pub(super) async fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        let in_time = match limit {
            None => Some(self.child.wait().await),
            Some(limit) => timeout(limit, self.child.wait()).await.ok(),
        };
        let Some(status) = in_time else {
            self.end().await;
            return Ok(None);
        };
        // What the program has left in the background is meant to be there.
        self.id = None;
        status.map(Some)
    }

    /// Asks all to end, waits for a while, and kills whoever is left.
    async fn end(&mut self) {
        self.signal(Some(Signal::SIGTERM));
        let gone = async {
            let _ = self.child.wait().await;
            while self.signal(None) {
                sleep(GLANCE).await;
            }
        };
        let gone = timeout(GRACE, gone).await.is_ok();
        if !gone {
            self.signal(Some(Signal::SIGKILL));
            let _ = self.child.wait().await;
        }
        self.id = None;
    }

    /// Sends a signal to all, or with `None` only looks. Is anyone there?
    fn signal(&self, signal: Option<Signal>) -> bool {
        self.id.is_some_and(|id| killpg(id, signal).is_ok())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Some(Signal::SIGKILL));
    }
}

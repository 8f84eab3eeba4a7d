//! The program `crontab`: reads and replaces a user's crontab. One editor at a time.

use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::super::{Failure, Result};

/// How long `crontab` may take. It asks nothing but the disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// A longer crontab (in bytes) is not a crontab.
pub(super) const LONGEST: u64 = 16 << 20;
/// What is kept of its errors, in bytes.
const LONGEST_ERROR: u64 = 16 << 10;
/// How long another editor of the same crontab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A user's crontab.
pub(super) struct Crontab {
    /// `None`: the user's that this process runs as.
    user: Option<String>,
    /// How people call these commands: the program, and what precedes a command's name.
    called: String,
}

/// The right to edit a crontab, which other runs of this program respect. Released when it is dropped.
pub(super) struct EditLock {
    _file: File,
}

impl Crontab {
    pub(super) fn of(user: Option<&str>, called: String) -> Self {
        Self { user: user.map(str::to_owned), called }
    }

    /// What to type for a command, for messages.
    pub(super) fn typed(&self, command: &str) -> String {
        format!("{} {command}", self.called)
    }

    /// Whose it is, for messages.
    pub(super) fn owner(&self) -> String {
        let own = || User::from_uid(geteuid()).ok().flatten().map(|user| user.name);
        self.user.clone().or_else(own).unwrap_or_else(|| format!("user {}", geteuid()))
    }

    /// The user that `--user` names.
    pub(super) fn named(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The owner's home folder, where cron starts commands.
    pub(super) fn home(&self) -> Option<PathBuf> {
        let user = match &self.user {
            Some(name) => User::from_name(name),
            None => User::from_uid(geteuid()),
        };
        user.ok().flatten().map(|user| user.dir)
    }

    /// Waits until no other run of this program edits this crontab. The lock is one of the owner's home folder, because
    /// that is the owner's, and is there; where it cannot be locked (it is missing, or on NFS), of `/tmp`.
    pub(super) async fn lock(&self) -> Result<EditLock> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        let folders = self.home().into_iter().chain([PathBuf::from("/tmp")]);
        let mut why = None;
        for folder in folders {
            let file = match File::open(&folder) {
                Ok(file) => file,
                Err(error) => {
                    why = Some(error);
                    continue;
                }
            };
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(EditLock { _file: file }),
                    Err(TryLockError::Error(error)) => {
                        why = Some(error);
                        break;
                    }
                    Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                        return Err(Failure::Failed(format!(
                            "another program has had {} locked for {} s, perhaps to edit the crontab; nothing is changed",
                            folder.display(),
                            LOCK_PATIENCE.as_secs()
                        )));
                    }
                    Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
                }
            }
        }
        let why = why.map(|error| error.to_string()).unwrap_or_default();
        Err(Failure::Failed(format!("neither the home folder nor /tmp can be locked: {why}; nothing is changed")))
    }

    /// Its text. Empty if there is none.
    pub(super) async fn read(&self) -> Result<Vec<u8>> {
        let output = self.run(&["-l"], None).await?;
        if output.stdout.len() as u64 > LONGEST {
            return Err(Failure::Failed(format!("the crontab of {} has more than {LONGEST} bytes", self.owner())));
        }
        let said = said(&output).to_ascii_lowercase();
        // The second is BusyBox.
        let there_is_none = said.contains("no crontab") || said.contains("no such file or directory");
        match output.status.success() || (there_is_none && output.stdout.is_empty()) {
            true => self.as_it_is(output.stdout).await,
            false => Err(self.failure("could not be read", &output)),
        }
    }

    /// The bytes of a crontab that was listed as this. Debian's `crontab -l` shows a carriage return as `\r` and a backspace as
    /// `\b`; what is listed so and written back would be other commands. Its editor gets the bytes themselves.
    async fn as_it_is(&self, listed: Vec<u8>) -> Result<Vec<u8>> {
        if !listed.windows(2).any(|pair| matches!(pair, b"\\r" | b"\\b")) {
            return Ok(listed);
        }
        // It changes nothing, so that nothing is written.
        let edited = self.run(&["-e"], None).await?;
        if edited.status.success() && as_listed(&edited.stdout) == listed {
            return Ok(edited.stdout);
        }
        Err(self.failure(
            "has carriage returns or backspaces, which `crontab -l` shows as text and `crontab -e` did not tell",
            &edited,
        ))
    }

    /// Replaces it as a whole, or leaves it as it is.
    pub(super) async fn write(&self, text: &[u8]) -> Result<()> {
        // An empty crontab is one that is not there, as before the first line was added.
        let (arguments, input): (&[&str], _) = if text.is_empty() { (&["-r"], None) } else { (&["-"], Some(text)) };
        let output = self.run(arguments, input).await?;
        if output.status.success() {
            return Ok(());
        }
        let mut failure = self.failure("could not be replaced, and is as it was", &output);
        if let Failure::Failed(text_of_failure) = &mut failure
            && !text.ends_with(b"\n")
        {
            text_of_failure
                .push_str("\nits last line has no line end: open it with `crontab -e`, add one, save, and try again");
        }
        Err(failure)
    }

    async fn run(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<Output> {
        let mut command = Command::new("crontab");
        if let Some(user) = &self.user {
            command.args(["-u", user]);
        }
        // Debian's would print its own heading otherwise, and add it once more with each change.
        command.args(arguments).env("CRONTAB_NOHEADER", "Y").env("LC_ALL", "C");
        command.env("VISUAL", "cat").env("EDITOR", "cat");
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let child = child.map_err(|error| {
            Failure::Failed(match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("there is no program `crontab` in PATH; {}", self.without_crontab())
                }
                _ => format!("`crontab` could not be started: {error}"),
            })
        })?;
        match tokio::time::timeout(PATIENCE, exchange(child, input.unwrap_or_default())).await {
            Ok(output) => output.map_err(|error| Failure::Failed(format!("`crontab` could not be used: {error}"))),
            Err(_) => {
                Err(Failure::Failed(format!("`crontab` has not ended within {} s, and was killed", PATIENCE.as_secs())))
            }
        }
    }

    /// What to do where there is no cron.
    fn without_crontab(&self) -> String {
        format!(
            "install cron (Debian, Ubuntu: `apt install cron`), paste the line that `{}` prints into your hosting provider's \
             form, or let systemd do it (`{}`)",
            self.typed("crontab"),
            self.typed("systemd")
        )
    }

    fn failure(&self, what: &str, output: &Output) -> Failure {
        let said = said(output);
        let owner = self.owner();
        let advice = if said.contains("not allowed") || said.contains("not authorized") {
            format!(
                "\n{owner} may not use cron here: ask the administrator for a line \"{owner}\" in /etc/cron.allow (or for \
                 none in /etc/cron.deny); or {}",
                self.without_crontab()
            )
        } else if said.contains("must be privileged") {
            "\nonly root may edit another user's crontab".to_owned()
        } else {
            String::new()
        };
        let said = if said.is_empty() { format!("`crontab` ended with {}", output.status) } else { said };
        Failure::Failed(format!("the crontab of {owner} {what}: {said}{advice}"))
    }
}

/// Gives a program its input and takes its output, side by side.
async fn exchange(mut child: Child, input: &[u8]) -> io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that ends before it has read all says why.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let read_out = async {
        match stdout {
            Some(stdout) => stdout.take(LONGEST + 1).read_to_end(&mut out).await.map(drop),
            None => Ok(()),
        }
    };
    let read_err = async {
        match stderr {
            Some(stderr) => stderr.take(LONGEST_ERROR).read_to_end(&mut err).await.map(drop),
            None => Ok(()),
        }
    };
    tokio::try_join!(write, read_out, read_err)?;
    Ok(Output { status: child.wait().await?, stdout: out, stderr: err })
}

/// How Debian's `crontab -l` shows these bytes.
fn as_listed(text: &[u8]) -> Vec<u8> {
    let shown = text.iter().flat_map(|byte| match byte {
        b'\r' => b"\\r",
        0x08 => b"\\b",
        _ => std::slice::from_ref(byte),
    });
    shown.copied().collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

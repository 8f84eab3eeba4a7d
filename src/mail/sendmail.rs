//! Sends mail with the program `sendmail`, which most mail servers bring along.

use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::{self, Either};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::draft::Prepared;
use super::error::MailError;
use crate::config::{Dsn, Problem};

/// The program, if none is named.
const PROGRAM: &str = "/usr/sbin/sendmail";

/// Options that say in what form the mail comes, and where its recipients are. Here it comes on standard input, and they are
/// arguments.
const OTHER_FORMS: [&str; 3] = ["-bs", "-t", "--read-recipients"];

/// How much of what the program prints is read, in bytes.
const MAX_OUTPUT: u64 = 4096;

/// How long output is still read after the program has ended.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// What is wrong with the mail itself (`sysexits.h`): its data, its recipient, the recipient's host.
const PERMANENT: [i32; 3] = [65, 67, 68];

pub(super) struct Sendmail {
    program: String,
    arguments: Vec<String>,
    dir: PathBuf,
    timeout: Duration,
}

impl Sendmail {
    pub(super) fn new(dsn: &Dsn, path: &str, dir: PathBuf, timeout: Duration) -> Result<Self, Vec<Problem>> {
        let problem = |what: String| vec![Problem::error(path, what)];
        let mut command = PROGRAM.to_owned();
        for (name, value) in dsn.parameters() {
            match name {
                "command" => command = value.to_owned(),
                name => return Err(vec![Problem::unknown(path, "parameter", name, ["command"])]),
            }
        }
        let words = shell_words::split(&command)
            .map_err(|_| problem("its command has a quote that does not end".to_owned()))?;
        let mut words = words.into_iter().filter(|word| !OTHER_FORMS.contains(&word.as_str()));
        let program = words.next().ok_or_else(|| problem("its command is empty".to_owned()))?;
        Ok(Self { program, arguments: words.collect(), dir, timeout })
    }

    pub(super) async fn send(&self, mail: &Prepared) -> Result<(), MailError> {
        let program = &self.program;
        let mut command = Command::new(program);
        command.args(&self.arguments).arg("-i");
        if let Some(from) = mail.envelope.from() {
            command.arg("-f").arg::<&std::ffi::OsStr>(from.as_ref());
        }
        command.arg("--").args(mail.envelope.to().iter().map(ToString::to_string)).current_dir(&self.dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|error| MailError::temporary(format!("{program} cannot be started: {error}")))?;
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let write = async {
            let Some(mut stdin) = stdin else { return };
            // A program that ends before it has read everything says why by its exit code.
            let _ = stdin.write_all(&local_lines(&mail.content)).await;
            let _ = stdin.shutdown().await;
        };
        let mut output = Vec::new();
        let read = async {
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(MAX_OUTPUT).read_to_end(&mut output).await;
                // It must not wait for a reader.
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            }
        };
        let all = async {
            let (ended, read) = (pin!(future::join(write, child.wait())), pin!(read));
            match future::select(ended, read).await {
                // What it has started in the background may keep the pipe open.
                Either::Left((((), status), read)) => {
                    let _ = timeout(OUTPUT_TIMEOUT, read).await;
                    status
                }
                Either::Right(((), ended)) => ended.await.1,
            }
        };
        let Ok(status) = timeout(self.timeout, all).await else {
            let seconds = self.timeout.as_secs_f64();
            return Err(MailError::temporary(format!(
                "{program} has not taken it within {seconds} s (`mailer.timeout`)"
            )));
        };
        let status = status.map_err(|error| MailError::temporary(format!("{program}: {error}")))?;
        if status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output).trim().to_owned();
        let output = if output.is_empty() { String::new() } else { format!(": {output}") };
        let why = format!("{program}: {status}{output}");
        let code = status.code().unwrap_or_default();
        let error = if PERMANENT.contains(&code) { MailError::permanent(why) } else { MailError::temporary(why) };
        Err(error.with_code(code.into()))
    }
}

/// With line ends as programs have them; the server writes those of SMTP.
fn local_lines(content: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(content.len());
    for (n, byte) in content.iter().enumerate() {
        if !(*byte == b'\r' && content.get(n + 1) == Some(&b'\n')) {
            lines.push(*byte);
        }
    }
    lines
}

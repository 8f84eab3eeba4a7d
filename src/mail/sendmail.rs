//! Sends mail with the program `sendmail`, which most mail servers bring along.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use super::draft::Prepared;
use super::error::MailError;
use crate::config::{Dsn, Problem};
use crate::handler::{CancellationToken, Ended, HandlerError, Program, run, with_output};

/// The program, if none is named.
const PROGRAM: &str = "/usr/sbin/sendmail";

/// Options that say in what form the mail comes, and where its recipients are. Here it comes on standard input, and they are
/// arguments.
const OTHER_FORMS: [&str; 3] = ["-bs", "-t", "--read-recipients"];

/// What is wrong with the mail itself (`sysexits.h`): its data, its recipient, the recipient's host.
const PERMANENT: [i32; 3] = [65, 67, 68];

pub(super) struct Sendmail {
    /// As errors show it.
    file: String,
    program: Program,
    timeout: Duration,
}

impl Sendmail {
    pub(super) fn new(dsn: &Dsn, path: &str, dir: &Path, timeout: Duration) -> Result<Self, Vec<Problem>> {
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
        let words: Vec<String> = words.into_iter().filter(|word| !OTHER_FORMS.contains(&word.as_str())).collect();
        let file = words.first().ok_or_else(|| problem("its command is empty".to_owned()))?.clone();
        Ok(Self { file, program: Program::new("sendmail", &words, dir), timeout })
    }

    pub(super) async fn send(&self, mail: &Prepared) -> Result<(), HandlerError> {
        let (file, handler) = (&self.file, self.program.name());
        let log = |line: &str| tracing::info!(handler, "{line}");
        let command = || self.command(mail);
        let (content, never) = (local_lines(&mail.content), CancellationToken::default());
        let Ended { status, output, .. } =
            run(&self.program, command, &content, Some(self.timeout), log, &never).await?;
        let Some(status) = status else {
            let seconds = self.timeout.as_secs_f64();
            let why = format!("{file} has not taken it within {seconds} s (`mailer.timeout`)");
            return Err(MailError::temporary(with_output(why, &output)).into());
        };
        match status.code() {
            Some(0) => Ok(()),
            Some(code) => {
                let why = with_output(format!("{file}: exit code {code}"), &output);
                let is_permanent = PERMANENT.contains(&code);
                let error = if is_permanent { MailError::permanent(why) } else { MailError::temporary(why) };
                Err(error.with_code(code.into()).into())
            }
            // By a signal: what that means is the same for all programs.
            None => self.program.failure_of(status, &output).map_or(Ok(()), Err),
        }
    }

    fn command(&self, mail: &Prepared) -> Command {
        let mut command = self.program.command();
        command.arg("-i");
        if let Some(from) = mail.envelope.from() {
            command.arg("-f").arg::<&std::ffi::OsStr>(from.as_ref());
        }
        command.arg("--").args(mail.envelope.to().iter().map(ToString::to_string));
        command
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

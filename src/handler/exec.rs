//! A program as a handler: the body on its standard input, the facts in its environment, its exit code the outcome.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Handler, HandlerError, Verdict};
use crate::config::ExecConfig;
use crate::message::{Envelope, ReceivedStamp, RedeliveryStamp, TransportMessageIdStamp, headers_to_json};

/// A worker's own affairs: a program it runs that is minutely too must not take the worker's slot for its own.
const WITHHELD: [&str; 2] = ["MINUTELY_SLOT", "MINUTELY_SLOT_FD"];

/// The input was bad, and will be bad again (`EX_DATAERR` of sysexits.h).
const UNRECOVERABLE: i32 = 65;
/// A passing trouble (`EX_TEMPFAIL` of sysexits.h).
const TRY_AGAIN: i32 = 75;

/// Between the request to end and the kill.
const GRACE: Duration = Duration::from_secs(5);

/// How long output is still read when the program has ended, and something it has started holds on to the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What of the output is kept with a failure.
const KEPT_LINES: usize = 20;

/// Longer lines are cut into pieces of this many bytes.
const LINE_MOST: usize = 2_000;

/// Linux takes no environment variable larger than 128 KiB, name and end included.
const VARIABLE_MOST: usize = 128 * 1024 - 64;

/// Runs a program for each message.
pub struct Exec {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    timeout: Option<Duration>,
    dir: PathBuf,
}

impl Exec {
    /// A handler that runs the program in `dir`, which is also where a relative path to it starts.
    pub fn new(config: &ExecConfig, dir: &Path) -> Self {
        let (program, arguments) = config
            .exec
            .split_first()
            .map_or((String::new(), Vec::new()), |(program, arguments)| (program.clone(), arguments.to_vec()));
        // A bare name is looked up in PATH; anything else is a path.
        let program = if program.contains('/') { dir.join(program) } else { program.into() };
        let timeout = config.timeout;
        Self { name: format!("exec {}", shell_words::join(&config.exec)), program, arguments, timeout, dir: dir.into() }
    }

    fn command(&self, envelope: &Envelope) -> Result<Command, HandlerError> {
        let headers = headers_to_json(&envelope.encode().headers);
        if headers.len() > VARIABLE_MOST {
            let size = headers.len();
            return Err(HandlerError::unrecoverable(format!(
                "{size} bytes of headers are too many for the environment"
            )));
        }
        let id = envelope.last::<TransportMessageIdStamp>().map(|stamp| text(&stamp.id)).unwrap_or_default();
        let transport = envelope.last::<ReceivedStamp>().map(|stamp| stamp.transport_name).unwrap_or_default();
        let mut command = Command::new(&self.program);
        for variable in WITHHELD {
            command.env_remove(variable);
        }
        command
            .args(&self.arguments)
            .current_dir(&self.dir)
            .env("MINUTELY_MESSAGE_TYPE", envelope.message_type())
            .env("MINUTELY_MESSAGE_ID", id)
            .env("MINUTELY_TRANSPORT", transport)
            .env("MINUTELY_ATTEMPT", attempt(envelope).to_string())
            .env("MINUTELY_HEADERS", headers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }

    fn start(&self, envelope: &Envelope) -> Result<Child, HandlerError> {
        self.command(envelope)?.spawn().map_err(|error| HandlerError {
            class: "minutely::exec::NotStarted".to_owned(),
            ..HandlerError::failed(format!(
                "\"{}\" could not be started in {}: {error}",
                self.program.display(),
                self.dir.display()
            ))
        })
    }

    /// Waits for the end; `None`: it did not come in time.
    async fn wait(&self, child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
        match self.timeout {
            None => child.wait().await.map(Some),
            Some(time) => timeout(time, child.wait()).await.ok().transpose(),
        }
    }
}

#[async_trait]
impl Handler for Exec {
    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, envelope: &Envelope) -> Result<(), HandlerError> {
        let mut child = self.start(envelope)?;
        // Ends the whole group when this future is dropped: nothing goes on for a message that is delivered again.
        let mut group = Group::of(&child);
        let output = Output::read(&mut child, envelope);
        let input = child.stdin.take().map(|mut stdin| {
            let body = envelope.body().clone();
            // A program that does not want to read it all is free not to.
            tokio::spawn(async move { drop(stdin.write_all(&body).await) })
        });
        let status = match self.wait(&mut child).await? {
            Some(status) => Some(status),
            None => {
                group.end(&mut child).await;
                None
            }
        };
        group.is_over();
        if let Some(input) = input {
            input.abort();
        }
        judge(status, self.timeout, &output.last_words().await)
    }
}

/// What the end of the program means for the message.
fn judge(status: Option<ExitStatus>, timeout: Option<Duration>, output: &str) -> Result<(), HandlerError> {
    let Some(status) = status else {
        let time = timeout.unwrap_or_default().as_secs_f64();
        return Err(failure(
            "minutely::exec::TimedOut",
            0,
            Verdict::Retry,
            &format!("it took longer than {time} s"),
            output,
        ));
    };
    let (what, code, verdict) = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(UNRECOVERABLE), _) => ("exit code 65, no retry".to_owned(), UNRECOVERABLE, Verdict::Unrecoverable),
        (Some(TRY_AGAIN), _) => ("exit code 75, try again".to_owned(), TRY_AGAIN, Verdict::RetryAlways(None)),
        (Some(code), _) => (format!("exit code {code}"), code, Verdict::Retry),
        (None, signal) => (format!("ended by signal {}", signal.unwrap_or_default()), 0, Verdict::Retry),
    };
    Err(failure("minutely::exec::Failed", code, verdict, &what, output))
}

fn failure(class: &str, code: i32, verdict: Verdict, what: &str, output: &str) -> HandlerError {
    let message = if output.is_empty() { what.to_owned() } else { format!("{what}: {output}") };
    HandlerError { verdict, class: class.to_owned(), code: code.into(), message }
}

fn attempt(envelope: &Envelope) -> u32 {
    envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count).saturating_add(1)
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The program and whatever it has started.
struct Group {
    leader: Option<Pid>,
}

impl Group {
    fn of(child: &Child) -> Self {
        Self { leader: child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw) }
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // It may have ended a moment ago.
            let _ = killpg(leader, signal);
        }
    }

    /// Asks it to end, waits for a while, and kills what is left.
    async fn end(&mut self, child: &mut Child) {
        self.signal(Signal::SIGTERM);
        let _ = timeout(GRACE, child.wait()).await;
        self.signal(Signal::SIGKILL);
        let _ = child.wait().await;
    }

    /// The program has ended by itself. What it has left in the background is its own business.
    fn is_over(&mut self) {
        self.leader = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// What a program prints: logged line by line, and the end of it kept.
struct Output {
    kept: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Output {
    fn read(child: &mut Child, envelope: &Envelope) -> Self {
        let kept: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let id = envelope.last::<TransportMessageIdStamp>().map(|stamp| text(&stamp.id)).unwrap_or_default();
        let reader = |pipe: Box<dyn AsyncRead + Send + Unpin>| {
            let (kept, id, message_type) = (Arc::clone(&kept), id.clone(), envelope.message_type().to_owned());
            tokio::spawn(lines(pipe, move |line| {
                tracing::info!(id, message_type, "| {line}");
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > KEPT_LINES {
                    kept.pop_front();
                }
            }))
        };
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|pipe| reader(Box::new(pipe))));
        readers.extend(child.stderr.take().map(|pipe| reader(Box::new(pipe))));
        Self { kept, readers }
    }

    /// The last lines. Reads on for a moment only: something in the background may hold the pipe open for ever.
    async fn last_words(self) -> String {
        for mut reader in self.readers {
            if timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// Reads lines until the end. Holds no more than one of them, whatever comes.
async fn lines(pipe: impl AsyncRead + Unpin, mut each: impl FnMut(String)) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    let mut tell = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if !text.is_empty() {
            each(text);
        }
    };
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        for byte in &buffer[..read] {
            if *byte != b'\n' {
                line.push(*byte);
            }
            if *byte == b'\n' || line.len() >= LINE_MOST {
                tell(&mut line);
            }
        }
    }
    tell(&mut line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DelayStamp, Headers};

    fn shell(script: &str) -> (tempfile::TempDir, Exec) {
        exec(&["sh", "-c", script], None)
    }

    fn exec(words: &[&str], timeout: Option<Duration>) -> (tempfile::TempDir, Exec) {
        let dir = tempfile::tempdir().unwrap();
        let config = ExecConfig { exec: words.iter().map(|word| (*word).to_owned()).collect(), timeout };
        let exec = Exec::new(&config, dir.path());
        (dir, exec)
    }

    async fn failure_of(script: &str) -> HandlerError {
        let (_dir, exec) = shell(script);
        exec.handle(&Envelope::from_json("a", "{}")).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_program_gets_the_body_and_the_facts() {
        let (dir, exec) = shell(
            "cat > body; echo \"$MINUTELY_MESSAGE_TYPE|$MINUTELY_MESSAGE_ID|$MINUTELY_TRANSPORT|$MINUTELY_ATTEMPT\" > facts; \
             printf %s \"$MINUTELY_HEADERS\" > headers",
        );
        let envelope = Envelope::from_json(r"App\Mail", "{\"é\": 1 }")
            .with(&TransportMessageIdStamp { id: 7.into() })
            .with(&ReceivedStamp { transport_name: "mail".into() })
            .with(&RedeliveryStamp { retry_count: 2, redelivered_at: String::new() })
            .with(&DelayStamp { delay: 5 });
        exec.handle(&envelope).await.unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("body"), "{\"é\": 1 }");
        assert_eq!(read("facts"), "App\\Mail|7|mail|3\n");
        let headers: Headers = serde_json::from_str(&read("headers")).unwrap();
        assert_eq!(headers["type"], r"App\Mail");
        assert!(headers.keys().any(|name| name.ends_with("DelayStamp")));
    }

    #[tokio::test]
    async fn exit_codes_say_what_becomes_of_the_message() {
        for (script, verdict) in [
            ("exit 1", Verdict::Retry),
            ("exit 65", Verdict::Unrecoverable),
            ("exit 75", Verdict::RetryAlways(None)),
            ("kill -9 $$", Verdict::Retry),
        ] {
            assert_eq!(failure_of(script).await.verdict, verdict, "{script}");
        }
        assert_eq!(failure_of("exit 42").await.code, 42);
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_with_a_failure() {
        let error = failure_of("seq 1 1000; echo an error >&2; exit 1").await;
        assert!(error.message.contains("an error") && error.message.contains("1000"), "{error}");
        assert!(error.message.lines().count() <= KEPT_LINES, "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let (dir, exec) = exec(&["bin/missing"], None);
        let error = exec.handle(&Envelope::from_json("a", "{}")).await.unwrap_err();
        assert!(
            error.message.contains("bin/missing") && error.message.contains(&*dir.path().to_string_lossy()),
            "{error}"
        );
        assert_eq!(error.verdict, Verdict::Retry);
    }

    #[tokio::test]
    async fn a_program_need_not_read_and_may_print_at_the_same_time() {
        let body = "x".repeat(3 << 20);
        let (_dir, ignoring) = shell("exit 0");
        ignoring.handle(&Envelope::from_json("a", body.clone())).await.unwrap();
        let (_dir, echoing) = shell("tee /dev/stderr");
        echoing.handle(&Envelope::from_json("a", body)).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_is_ended_with_all_it_has_started() {
        let (dir, exec) = exec(
            &["sh", "-c", "trap '' TERM; sleep 600 & echo $! > grandchild; echo waiting; wait"],
            Some(Duration::from_millis(300)),
        );
        let envelope = Envelope::from_json("a", "{}");
        let handling = exec.handle(&envelope);
        let error = timeout(GRACE + Duration::from_secs(20), handling).await.unwrap().unwrap_err();
        assert!(error.message.contains("longer than 0.3 s") && error.message.contains("waiting"), "{error}");
        assert_gone(&dir).await;
    }

    #[tokio::test]
    async fn dropping_the_handling_ends_the_program() {
        let (dir, exec) = exec(&["sh", "-c", "sleep 600 & echo $! > grandchild; wait"], None);
        let handling = tokio::spawn(async move { exec.handle(&Envelope::from_json("a", "{}")).await });
        let file = dir.path().join("grandchild");
        while std::fs::read_to_string(&file).unwrap_or_default().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        handling.abort();
        assert_gone(&dir).await;
    }

    async fn assert_gone(dir: &tempfile::TempDir) {
        let pid = std::fs::read_to_string(dir.path().join("grandchild")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_there = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..500 {
            if !is_there() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("process {pid} still lives");
    }

    #[tokio::test]
    async fn what_is_left_in_the_background_does_not_hold_up_the_message() {
        let (_dir, exec) = shell("sleep 6 & exit 0");
        let envelope = Envelope::from_json("a", "{}");
        let handling = exec.handle(&envelope);
        timeout(Duration::from_secs(5), handling).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn endless_lines_and_odd_bytes_are_borne() {
        let error = failure_of("head -c 5000000 /dev/zero; printf '\\377\\n'; exit 1").await;
        assert!(error.message.len() < 2 * KEPT_LINES * LINE_MOST);
    }

    #[tokio::test]
    async fn headers_too_large_for_the_environment_are_told() {
        let (_dir, exec) = shell("exit 0");
        let mut envelope = Envelope::from_json("a", "{}");
        envelope.add(&RedeliveryStamp { retry_count: 0, redelivered_at: "x".repeat(200_000) });
        let error = exec.handle(&envelope).await.unwrap_err();
        assert!(error.message.contains("bytes of headers"), "{error}");
    }
}

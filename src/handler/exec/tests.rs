use std::fs;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::timeout;

use super::group::GRACE;
use super::output::KEPT_BYTES;
use super::*;
use crate::handler::{States, Verdict};
use crate::message::{DelayStamp, ErrorDetailsStamp, Headers, ReceivedStamp, RedeliveryStamp, TransportMessageIdStamp};

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

fn exec(words: &[&str], timeout: Option<Duration>) -> (TempDir, Exec) {
    let dir = tempfile::tempdir().unwrap();
    let config = ExecConfig { exec: words.iter().map(|word| (*word).to_owned()).collect(), timeout };
    let exec = Exec::new(&config, dir.path());
    (dir, exec)
}

fn shell(script: &str) -> (TempDir, Exec) {
    exec(&["sh", "-c", script], None)
}

fn message(body: impl Into<bytes::Bytes>) -> Envelope {
    Envelope::from_json("a", body)
}

async fn run(exec: &Exec, envelope: &Envelope) -> Result<(), HandlerError> {
    timeout(DEADLINE, handle(exec, envelope)).await.expect("the handler hangs")
}

async fn handle(exec: &Exec, envelope: &Envelope) -> Result<(), HandlerError> {
    let (states, cancellation) = (States::default(), CancellationToken::default());
    let context = HandlerContext::new(envelope, &states, &cancellation, &[]);
    Handler::handle(exec, &context).await.map(drop)
}

async fn failure_of(script: &str) -> HandlerError {
    let (_dir, exec) = shell(script);
    run(&exec, &message("{}")).await.unwrap_err()
}

/// The pid that a script has written into a file of its folder.
async fn pid_in(dir: &TempDir, file: &str) -> Pid {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(dir.path().join(file)).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            return Pid::from_raw(pid.parse().unwrap());
        }
        assert!(started.elapsed() < DEADLINE, "{file} was not written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_alive(pid: Pid) -> bool {
    // A zombie is dead, though where nothing reaps orphans it stays.
    let zombie = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    kill(pid, None).is_ok() && !zombie()
}

async fn assert_gone(pid: Pid) {
    let started = Instant::now();
    while is_alive(pid) {
        assert!(started.elapsed() < DEADLINE, "process {pid} still lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_program_gets_the_body_and_the_metadata() {
    let (dir, exec) = shell(
        "cat > body; printf %s \"$MINUTELY_HEADERS\" > headers; \
         echo \"$MINUTELY_MESSAGE_TYPE|$MINUTELY_MESSAGE_ID|$MINUTELY_TRANSPORT|$MINUTELY_ATTEMPT\" > facts",
    );
    let envelope = Envelope::from_json(r"App\Mail", "{\"é\": 1 }")
        .with(&TransportMessageIdStamp { id: 7.into() })
        .with(&ReceivedStamp { transport_name: "mail".into() })
        .with(&RedeliveryStamp { retry_count: 2, redelivered_at: String::new() })
        .with(&DelayStamp { delay: 5 });
    run(&exec, &envelope).await.unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("body"), "{\"é\": 1 }");
    assert_eq!(read("facts"), "App\\Mail|7|mail|3\n");
    let headers: Headers = serde_json::from_str(&read("headers")).unwrap();
    assert_eq!(headers, envelope.encode().headers);
}

#[tokio::test]
async fn a_message_that_is_handled_during_its_dispatch_has_no_id_and_no_transport() {
    let (dir, exec) = shell("echo \"$MINUTELY_MESSAGE_ID|$MINUTELY_TRANSPORT|$MINUTELY_ATTEMPT\" > facts");
    // The id is another queue's, where the message was before.
    run(&exec, &message("{}").with(&TransportMessageIdStamp { id: 7.into() })).await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("facts")).unwrap(), "||1\n");
}

#[tokio::test]
async fn a_program_with_a_slash_is_relative_to_the_configurations_folder() {
    let (dir, exec) = exec(&["bin/handle", "with space", "$HOME;"], None);
    fs::create_dir(dir.path().join("bin")).unwrap();
    let script = "#!/bin/sh\npwd -P > where; printf '%s\\n' \"$@\" > arguments\n";
    // Not written by this process: another test's fork could hold it open for writing (ETXTBSY).
    let write = std::process::Command::new("sh")
        .args(["-c", "printf %s \"$1\" > bin/handle && chmod +x bin/handle", "sh", script])
        .current_dir(dir.path())
        .status();
    assert!(write.unwrap().success());
    run(&exec, &message("{}")).await.unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("arguments"), "with space\n$HOME;\n");
    assert_eq!(Path::new(read("where").trim_end()), dir.path().canonicalize().unwrap());
}

#[tokio::test]
async fn exit_codes_decide_about_the_message() {
    for (script, verdict, code, text) in [
        ("exit 1", Verdict::Retry, 1, "exit code 1"),
        ("exit 65", Verdict::Unrecoverable, 65, "exit code 65, which asks for no retry"),
        ("exit 75", Verdict::RetryAlways(None), 75, "exit code 75, which asks for a retry"),
        ("kill -9 $$", Verdict::Interrupted { if_stopping: true }, 0, "killed by SIGKILL"),
        ("kill $$", Verdict::Interrupted { if_stopping: false }, 0, "killed by SIGTERM"),
        ("kill -ABRT $$", Verdict::Retry, 0, "killed by SIGABRT"),
        ("exit 143", Verdict::Interrupted { if_stopping: true }, 143, "exit code 143"),
    ] {
        let error = failure_of(script).await;
        assert_eq!((error.verdict, error.code, error.message.as_str()), (verdict, code, text), "{script}");
        assert_eq!(error.class, "minutely::exec::Failed");
    }
}

#[tokio::test]
async fn the_last_lines_are_kept_with_a_failure() {
    let error = failure_of("seq 1 1000; echo an error >&2; exit 1").await;
    assert!(error.message.contains("an error") && error.message.contains("1000"), "{error}");
    assert!(error.message.len() <= KEPT_BYTES + 100, "{error}");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_named() {
    let (dir, missing) = exec(&["bin/missing"], None);
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("bin/text"), "text").unwrap();
    let not_executable = Exec::new(&ExecConfig { exec: vec!["bin/text".into()], timeout: None }, dir.path());
    for (exec, program) in [(missing, "bin/missing"), (not_executable, "bin/text")] {
        let error = run(&exec, &message("{}")).await.unwrap_err();
        assert!(error.message.contains(program), "{error}");
        assert!(error.message.contains(&format!("in {}", dir.path().display())), "{error}");
        assert_eq!((error.verdict, error.class.as_str()), (Verdict::Retry, "minutely::exec::NotStarted"));
    }
}

#[tokio::test]
async fn a_type_that_cannot_be_an_environment_variable_is_not_retried() {
    let (_dir, exec) = shell("exit 0");
    for message_type in ["a\0b".to_owned(), "x".repeat(200_000)] {
        let error = run(&exec, &Envelope::from_json(message_type, "{}")).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unrecoverable, "{error}");
    }
}

#[tokio::test]
async fn headers_too_large_for_the_environment_are_left_out() {
    let (dir, exec) = shell("printf %s \"$MINUTELY_HEADERS\" > headers");
    let details = ErrorDetailsStamp {
        exception_class: "E".into(),
        exception_code: 0.into(),
        exception_message: "m".into(),
        flatten_exception: "x".repeat(200_000).into(),
    };
    run(&exec, &message("{}").with(&DelayStamp { delay: 5 }).with(&details)).await.unwrap();
    let text = fs::read_to_string(dir.path().join("headers")).unwrap();
    let headers: Headers = serde_json::from_str(&text).unwrap();
    assert!(headers.names().any(|name| name.ends_with("DelayStamp")), "{text:.300}");
    assert!(!headers.names().any(|name| name.ends_with("ErrorDetailsStamp")), "{text:.300}");
}

#[tokio::test]
async fn a_program_need_not_read_and_may_print_while_it_reads() {
    let body = "x".repeat(3 << 20);
    for script in
        ["exit 0", "head -c 10 > /dev/null", "exec 0<&-; sleep 0.05", "tee /dev/stderr", "yes | head -c 3000000; cat"]
    {
        let (_dir, exec) = shell(script);
        run(&exec, &message(body.clone())).await.unwrap_or_else(|error| panic!("{script}: {error}"));
    }
}

#[tokio::test]
async fn a_program_may_close_its_output_and_go_on() {
    let (dir, exec) = shell("exec 0<&- >&- 2>&-; sleep 0.1; : > done");
    run(&exec, &message("{}")).await.unwrap();
    assert!(dir.path().join("done").exists());
}

#[tokio::test]
async fn endless_lines_and_invalid_utf8_do_no_harm() {
    let error = failure_of("head -c 5000000 /dev/zero; printf '\\377\\n'; exit 1").await;
    assert!(error.message.ends_with('\u{fffd}') && error.message.len() <= KEPT_BYTES + 100);
}

#[tokio::test]
async fn a_program_that_times_out_is_ended_with_all_it_has_started() {
    let (dir, exec) =
        exec(&["sh", "-c", "sleep 600 & echo $! > grandchild; echo waiting; wait"], Some(Duration::from_millis(300)));
    let started = Instant::now();
    let error = run(&exec, &message("{}")).await.unwrap_err();
    assert_eq!(error.message, "timed out after 300ms: waiting");
    assert_eq!((error.verdict, error.class.as_str()), (Verdict::Retry, "minutely::exec::TimedOut"));
    assert!(started.elapsed() < GRACE, "it was not waited for longer than necessary");
    assert_gone(pid_in(&dir, "grandchild").await).await;
}

#[tokio::test]
async fn a_program_is_given_time_to_end_even_behind_its_shell() {
    let inner = "trap 'sleep 0.3; : > tidied; exit' TERM; echo $$ > pid; while :; do sleep 0.01; done";
    let outer = "sh -c \"$0\" & wait";
    let (dir, exec) = exec(&["sh", "-c", outer, inner], Some(Duration::from_millis(500)));
    run(&exec, &message("{}")).await.unwrap_err();
    assert!(dir.path().join("tidied").exists());
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed() {
    let (dir, exec) = exec(
        &["sh", "-c", "trap '' TERM; sleep 600 & echo $! > grandchild; while :; do sleep 0.05; done"],
        Some(Duration::from_millis(300)),
    );
    let error = run(&exec, &message("{}")).await.unwrap_err();
    assert_eq!(error.message, "timed out after 300ms");
    assert_gone(pid_in(&dir, "grandchild").await).await;
}

#[tokio::test]
async fn dropping_the_future_kills_all_that_was_started() {
    let (dir, exec) = shell("trap '' TERM; sleep 600 & echo $! > grandchild; wait");
    let handling = tokio::spawn(async move { handle(&exec, &message("{}")).await });
    let grandchild = pid_in(&dir, "grandchild").await;
    assert!(is_alive(grandchild));
    handling.abort();
    assert_gone(grandchild).await;
}

#[tokio::test]
async fn a_background_process_does_not_delay_the_message() {
    let (dir, exec) = shell("sleep 600 & echo $! > background; echo bye; exit 3");
    let error = run(&exec, &message("x".repeat(1 << 20))).await.unwrap_err();
    assert_eq!(error.message, "exit code 3: bye");
    let background = pid_in(&dir, "background").await;
    assert!(is_alive(background), "it is none of our business");
    kill(background, Signal::SIGKILL).unwrap();
}

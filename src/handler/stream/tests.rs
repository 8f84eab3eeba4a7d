use std::fs;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;
use crate::handler::States;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Answers each message by its body: a shell with no more than it needs.
const PROGRAM: &str = r#"
echo $$ >> pids
while read -r line; do
  id=${line#*\"id\":}; id=${id%%,*}
  case $line in
    *'"body":"ok"'*) echo "{\"id\":$id,\"ok\":true,\"result\":$$}" ;;
    *'"body":"fail"'*) echo "no such order" >&2; echo "{\"id\":$id,\"error\":\"no order\",\"retry\":false}" ;;
    *'"body":"die"'*) echo "out of memory" >&2; exit 3 ;;
    *'"body":"orphan"'*) sleep 600 & echo $! > grandchild; echo "gone" >&2; exit 3 ;;
    *'"body":"last"'*) sleep 600 & echo $! > grandchild; echo "{\"id\":$id,\"ok\":true}"; exit 4 ;;
    *'"body":"part"'*) printf 'half a line' >&2; sleep 0.2; echo "{\"id\":$id,\"ok\":true}" ;;
    *'"body":"end"'*) echo "{\"id\":$id,\"ok\":true}"; exit 0 ;;
    *'"body":"echo"'*) echo "hello" ;;
    *'"body":"twice"'*) echo "{\"id\":$id,\"ok\":true}"; echo "{\"id\":$id,\"ok\":true}" ;;
    *'"body":"long"'*) head -c 3000000 /dev/zero; sleep 600 ;;
    *'"body":"hang"'*) sleep 600 & echo $! > grandchild; wait ;;
    *'"body":"close"'*) exec >&-; sleep 600 ;;
  esac
done
echo ended >> ended
"#;

struct Scene {
    dir: TempDir,
    stream: Stream,
}

impl Scene {
    fn new(adjust: impl FnOnce(&mut StreamConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = ["sh", "-c", PROGRAM].map(str::to_owned).to_vec();
        let mut config = StreamConfig { program, timeout: None, max_messages: None, max_memory: None };
        adjust(&mut config);
        let stream = Stream::new(&config, dir.path());
        Self { dir, stream }
    }

    async fn handle(&self, body: &str) -> Result<Value, HandlerError> {
        let (envelope, states) = (Envelope::from_json("App", format!("\"{body}\"")), States::default());
        let cancellation = CancellationToken::default();
        let context = HandlerContext::new(&envelope, &states, &cancellation, &[]);
        timeout(DEADLINE, Handler::handle(&self.stream, &context)).await.expect("the handler hangs")
    }

    /// The pids of all processes that were started.
    fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.dir.path().join("pids")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Ends the process that the program has started.
    fn end_grandchild(&self) {
        let pid = fs::read_to_string(self.dir.path().join("grandchild")).unwrap();
        kill(Pid::from_raw(pid.trim().parse().unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    fn has_ended(&self) -> bool {
        self.dir.path().join("ended").exists()
    }
}

async fn assert_gone(pid: i32) {
    let started = std::time::Instant::now();
    let zombie = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    while kill(Pid::from_raw(pid), None).is_ok() && !zombie() {
        assert!(started.elapsed() < DEADLINE, "process {pid} still lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_process_answers_message_after_message() {
    let scene = Scene::new(|_| ());
    let first = scene.handle("ok").await.unwrap();
    for _ in 0..20 {
        assert_eq!(scene.handle("ok").await.unwrap(), first);
        let error = scene.handle("fail").await.unwrap_err();
        assert_eq!((error.verdict, error.message.as_str()), (Verdict::Unrecoverable, "no order"));
    }
    assert_eq!(scene.pids().len(), 1);
    Handler::worker_stopped(&scene.stream).await;
    assert!(scene.has_ended(), "it was let to its end");
    assert_ne!(scene.handle("ok").await.unwrap(), first, "and is started again for another worker");
}

#[tokio::test]
async fn messages_at_once_have_a_process_each() {
    let scene = Scene::new(|_| ());
    let all = futures_util::future::join_all((0..4).map(|_| scene.handle("ok"))).await;
    let answered: std::collections::BTreeSet<i64> = all.into_iter().map(|pid| pid.unwrap().as_i64().unwrap()).collect();
    assert_eq!((answered.len(), scene.pids().len()), (4, 4));
    let again = scene.handle("ok").await.unwrap().as_i64().unwrap();
    assert!(answered.contains(&again) && scene.pids().len() == 4);
}

#[tokio::test]
async fn a_program_that_dies_fails_its_message_and_is_started_again() {
    let scene = Scene::new(|_| ());
    scene.handle("ok").await.unwrap();
    let error = scene.handle("die").await.unwrap_err();
    assert_eq!((error.verdict, error.code, error.message.as_str()), (Verdict::Retry, 3, "exit code 3: out of memory"));
    scene.handle("ok").await.unwrap();
    assert_eq!(scene.pids().len(), 2);
    // It may end after any answer; that costs no message.
    scene.handle("end").await.unwrap();
    scene.handle("ok").await.unwrap();
    let pid = scene.handle("ok").await.unwrap().as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_gone(i32::try_from(pid).unwrap()).await;
    let after = scene.handle("ok").await;
    // Where the end is seen in time, another process takes the message; else it is retried.
    assert!(after.is_ok() || after.unwrap_err().verdict == Verdict::Interrupted { if_stopping: true });
    scene.handle("ok").await.unwrap();
}

#[tokio::test]
async fn a_program_that_dies_is_noticed_although_what_it_has_started_keeps_its_output_open() {
    let scene = Scene::new(|config| config.timeout = Some(DEADLINE));
    for _ in 0..2 {
        let error = scene.handle("orphan").await.unwrap_err();
        assert_eq!((error.verdict, error.code, error.message.as_str()), (Verdict::Retry, 3, "exit code 3: gone"));
        scene.end_grandchild();
        // What it has answered before its end counts.
        scene.handle("last").await.unwrap();
        let last = *scene.pids().last().unwrap();
        assert_gone(last).await;
        scene.handle("ok").await.unwrap();
        scene.end_grandchild();
    }
}

#[tokio::test]
async fn a_line_without_an_end_belongs_to_the_message_that_it_was_printed_for() {
    let scene = Scene::new(|_| ());
    scene.handle("part").await.unwrap();
    let error = scene.handle("die").await.unwrap_err();
    assert_eq!(error.message, "exit code 3: out of memory");
}

#[tokio::test]
async fn a_program_that_writes_nonsense_fails_its_message_and_is_replaced() {
    let scene = Scene::new(|_| ());
    for (body, expected) in [
        ("echo", "no answer (it is no JSON object): \"hello\""),
        ("long", "its line is longer than 1 MiB): \"\\0"),
        ("close", "has closed its standard output without an answer"),
    ] {
        let error = scene.handle(body).await.unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert_eq!(error.verdict, Verdict::Retry);
        scene.handle("ok").await.unwrap();
    }
    assert_eq!(scene.pids().len(), 4);
    scene.handle("twice").await.unwrap();
    // The second answer is not taken for that of the next message.
    let next = scene.handle("ok").await;
    assert!(next.is_ok() || next.unwrap_err().message.contains("and not for"));
    scene.handle("ok").await.unwrap();
    assert_eq!(scene.pids().len(), 5);
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_ended_with_all_it_has_started() {
    let scene = Scene::new(|config| config.timeout = Some(Duration::from_millis(500)));
    let error = scene.handle("hang").await.unwrap_err();
    assert_eq!((error.verdict, error.message.as_str()), (Verdict::Retry, "timed out after 500ms"));
    let grandchild = fs::read_to_string(scene.dir.path().join("grandchild")).unwrap();
    assert_gone(grandchild.trim().parse().unwrap()).await;
}

#[tokio::test]
async fn dropping_the_future_or_the_handler_kills_the_program() {
    let scene = Scene::new(|_| ());
    scene.handle("ok").await.unwrap();
    let idle = scene.pids()[0];
    drop(timeout(Duration::from_millis(200), scene.handle("hang")).await);
    assert_gone(idle).await;
    scene.handle("ok").await.unwrap();
    let idle = scene.pids()[1];
    let Scene { dir: _dir, stream } = scene;
    drop(stream);
    assert_gone(idle).await;
}

#[tokio::test]
async fn a_program_is_replaced_after_so_many_messages_or_so_much_memory() {
    let scene = Scene::new(|config| config.max_messages = Some(2));
    for _ in 0..5 {
        scene.handle("ok").await.unwrap();
    }
    assert_eq!(scene.pids().len(), 3);
    let scene = Scene::new(|config| config.max_memory = Some(1));
    for _ in 0..3 {
        scene.handle("ok").await.unwrap();
    }
    assert_eq!(scene.pids().len(), 3);
}

#[tokio::test]
async fn a_program_that_dies_at_once_is_started_with_pauses() {
    let scene =
        Scene::new(|config| config.program = ["sh", "-c", "echo broken >&2; exit 4"].map(str::to_owned).to_vec());
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(scene.handle("ok").await.unwrap_err().message, "exit code 4: broken");
    }
    // 100 ms, then 200.
    assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
    let missing = Scene::new(|config| config.program = vec!["bin/missing".to_owned()]);
    let error = missing.handle("ok").await.unwrap_err();
    assert_eq!((error.verdict, error.class.as_str()), (Verdict::Retry, "minutely::stream::NotStarted"));
}

#[tokio::test]
async fn a_large_message_goes_through_also_while_the_program_writes() {
    let program = ["sh", "-c", "head -c 300000 >&2; while read -r line; do echo '{\"ok\":true}'; done"];
    let scene = Scene::new(|config| config.program = program.map(str::to_owned).to_vec());
    // The beginning goes to its standard error, what is left of the line is answered.
    scene.handle(&"x".repeat(3 << 20)).await.unwrap();
    let early = ["sh", "-c", "read -r -n 1 c || true; echo '{\"ok\":true}'; sleep 600"];
    let scene = Scene::new(|config| config.program = early.map(str::to_owned).to_vec());
    scene.handle(&"x".repeat(3 << 20)).await.unwrap();
    assert!(scene.stream.take_idle().is_none(), "it has the rest of a message before it");
}

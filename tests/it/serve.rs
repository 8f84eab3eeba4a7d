//! `minutely serve`: requests over real sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Project, Running, process_exists, wait_until};

const TOKEN: &str = "correct-horse-battery-staple";
const CONSUME: &str = "/api/_action/message-queue/consume";

const CONFIG: &str = r#"
serve: {token: '%env(TOKEN)%', max_body: 2000, max_connections: 3, read_timeout: 1s}
failure_transport: failed
transports:
  sync: sync://
  mail: "sqlite:q.db?queue_name=mail"
  auto: auto-fallback://auto?target=mail&fallback=sync
  failed: "sqlite:q.db?queue_name=failed"
  lost: "redis://127.0.0.1:1/lost"
routing:
  'App\Mail': mail
  'App\Slow': mail
  'App\Bad': mail
  'App\Auto': auto
  'App\Lost': lost
handlers:
  'App\Mail': {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  'App\Auto': {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  'App\Now': {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  'App\Slow': {exec: [sh, -c, 'echo begun >> begun; while [ ! -e go ]; do sleep 0.05; done; echo done >> handled']}
  'App\Bad': {exec: [sh, -c, 'echo no luck >&2; exit 3']}
"#;

/// A running server, and the project it runs in.
struct Served {
    project: Project,
    server: Running,
    address: String,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        self
    }

    /// An error that says something.
    #[track_caller]
    fn refuses(self, status: u16, text: &str) {
        let answer = self.is(status);
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(text) && !error.contains(TOKEN), "{error}");
    }
}

impl Served {
    fn new(config: &str) -> Self {
        let project = Project::new(config);
        project.write(".env.local", format!("TOKEN={TOKEN}\n"));
        let server = project.start("serve", &["serve", "--listen", "127.0.0.1:0"]);
        let mut address = None;
        wait_until("it listens", || {
            let line = project.lines("serve.err").into_iter().find(|line| line.contains("listening on http://"));
            address = line.and_then(|line| Some(line.split_once("http://")?.1.split(';').next()?.to_owned()));
            address.is_some()
        });
        Self { project, server, address: address.unwrap() }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends this, and reads until the server closes the connection.
    fn send(&self, text: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect();
        stream.write_all(text.as_ref()).unwrap();
        Answer::read(&read_all(stream))
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        self.send(request(method, path, body))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &body.to_string())
    }

    fn consume(&self, receiver: &str) -> Answer {
        self.post(CONSUME, &json!({ "receiver": receiver }))
    }
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn read_all(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn it_does_not_start_without_a_good_token_and_never_tells_it() {
    let project = Project::new("serve: {}");
    let run = project.run(&["serve"]).exits(2);
    assert!(run.stderr.contains("serve.token is missing"), "{run:?}");
    project.write("config.yaml", "serve: {token: s3cret}");
    let run = project.run(&["serve"]).exits(2);
    assert!(run.stderr.contains("shorter than 16") && !run.stderr.contains("s3cret"), "{run:?}");
}

#[test]
fn only_health_is_told_without_the_token() {
    let served = Served::new(CONFIG);
    let health = served.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").is(200);
    assert_eq!(health.json(), json!({ "status": "ok" }));
    served.send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n").is(200);
    for (path, method) in [("/cron", "POST"), ("/dispatch", "POST"), (CONSUME, "POST"), ("/", "GET"), ("/other", "GET")]
    {
        for header in ["", "Authorization: Bearer wrong-horse-battery-staple\r\n", "Authorization: Basic x\r\n"] {
            let answer = served.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n"));
            assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
            answer.refuses(401, "Authorization: Bearer TOKEN");
        }
    }
    served.request("GET", "/other", "").refuses(404, "/dispatch");
    let wrong = served.request("GET", "/dispatch", "");
    assert!(wrong.head.contains("allow: post"), "{}", wrong.head);
    wrong.refuses(405, "takes POST");
    served.request("DELETE", "/cron", "").refuses(405, "POST or GET");
    let told = served.project.log() + &served.project.lines("serve.err").join("\n");
    assert!(!told.contains("horse"), "{told}");
}

#[test]
fn curl_dispatches_and_learns_what_became_of_the_message() {
    let served = Served::new(CONFIG);
    let curl = |body: &str| {
        let output = Command::new("curl")
            .args(["-sS", "-w", " %{http_code}", "-H", &format!("Authorization: Bearer {TOKEN}"), "-d", body])
            .arg(format!("http://{}/dispatch", served.address))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once(' ').unwrap();
        (status.to_owned(), serde_json::from_str::<Value>(body).unwrap())
    };
    let (status, queued) = curl(r#"{"type": "App\\Mail", "body": {"to": "ada"}}"#);
    assert_eq!((status.as_str(), &queued["outcome"], &queued["queued_on"]), ("202", &json!("queued"), &json!("mail")));
    assert_eq!(served.project.pending("mail"), 1);
    let (status, handled) = curl(r#"{"type": "App\\Now", "body": {"n": 1.0}}"#);
    assert_eq!((status.as_str(), &handled["outcome"]), ("200", &json!("handled")));
    assert_eq!(served.project.lines("handled"), [r#"{"n": 1.0}"#], "as it is written");
    let (status, _) = curl(r#"{"type": "App\\Mail", "delay": "1h", "transports": ["failed"]}"#);
    assert_eq!(status, "202");
    // `lost` cannot be counted.
    let transports = served.project.run(&["status", "--format", "json"]).exits(1).json()["transports"].clone();
    assert!(transports.as_array().unwrap().iter().any(|one| one["name"] == "failed" && one["delayed"] == 1));
}

#[test]
fn a_message_that_cannot_be_dispatched_is_an_error() {
    let served = Served::new(CONFIG);
    served.request("POST", "/dispatch", "{").refuses(400, "must be JSON such as");
    served.request("POST", "/dispatch", "").refuses(400, "must be JSON such as");
    served.post("/dispatch", &json!({ "body": {} })).refuses(422, "missing field `type`");
    served.post("/dispatch", &json!({ "type": "" })).refuses(422, "type is empty");
    served.post("/dispatch", &json!({ "type": "a", "delay": "soon" })).refuses(422, "delay: a duration is");
    served.post("/dispatch", &json!({ "type": "App\\Mial" })).refuses(422, "did you mean");
    served.post("/dispatch", &json!({ "type": "App\\Mail", "transports": ["mial"] })).refuses(400, "mail");
    served.post("/dispatch", &json!({ "type": "App\\Bad", "transports": ["sync"] })).refuses(500, "exit code 3");
    served.post("/dispatch", &json!({ "type": "App\\Lost" })).refuses(503, "lost");
    let log = served.project.lines("serve.err").join("\n");
    assert_eq!(log.matches("that was to be dispatched for a request was not").count(), 2, "{log}");
}

#[test]
fn a_request_consumes_until_nothing_is_pending() {
    let served = Served::new(CONFIG);
    for n in 0..3 {
        served.post("/dispatch", &json!({ "type": "App\\Mail", "body": n })).is(202);
    }
    served.post("/dispatch", &json!({ "type": "App\\Bad" })).is(202);
    let begun = Instant::now();
    let answer = served.consume("mail").is(200);
    assert_eq!(answer.json(), json!({ "handledMessages": 3, "failedMessages": 1 }));
    assert_eq!(served.consume("mail").is(200).json(), json!({ "handledMessages": 0, "failedMessages": 0 }));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(served.project.lines("handled").len(), 3);
    assert!(!served.project.is_running("mail"), "nobody may rely on it");
    served.consume("mial").refuses(400, "mail");
    served.consume("sync").refuses(400, "handled at once");
    served.consume("lost").refuses(503, "does not answer");
    served.request("POST", CONSUME, "receiver=mail").refuses(400, "{\"receiver\":\"async\"}");
}

#[test]
fn a_store_that_hangs_or_is_not_there_is_no_empty_queue() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().port();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for dsn in [
        format!("postgres://u@127.0.0.1:{silent}/db"),
        format!("amqp://u:p@127.0.0.1:{silent}/%2f/messages"),
        format!("postgres://u@127.0.0.1:{closed}/db"),
        format!("amqp://u:p@127.0.0.1:{closed}/%2f/messages"),
    ] {
        let config = CONFIG.replace("redis://127.0.0.1:1/lost", &dsn);
        let served = Served::new(&config);
        served.consume("lost").refuses(503, "does not answer");
    }
}

#[test]
fn a_receiver_is_consumed_by_one_request_at_a_time_and_slow_handlers_are_finished() {
    let served = Served::new(&CONFIG.replace("max_body", "consume_time: 300ms, max_body"));
    served.post("/dispatch", &json!({ "type": "App\\Slow" })).is(202);
    served.post("/dispatch", &json!({ "type": "App\\Slow" })).is(202);
    let mut first = served.connect();
    first.write_all(request("POST", CONSUME, r#"{"receiver":"mail"}"#).as_bytes()).unwrap();
    wait_until("it handles", || served.project.lines("begun").len() == 1);
    let begun = Instant::now();
    served.consume("mail").refuses(409, "another request consumes");
    served.consume("auto").refuses(409, "another request consumes");
    served.consume("failed").is(200);
    // In another process.
    let mut cgi = served.project.command(&["cgi"]);
    let body = r#"{"receiver":"mail"}"#;
    served.project.write("body", body);
    cgi.env("REQUEST_METHOD", "POST").env("PATH_INFO", CONSUME);
    cgi.env("CONTENT_LENGTH", body.len().to_string()).env("HTTP_AUTHORIZATION", format!("Bearer {TOKEN}"));
    let output = cgi.stdin(std::fs::File::open(served.project.file("body")).unwrap()).output().unwrap();
    assert!(output.stdout.starts_with(b"Status: 409 Conflict\r\n"), "{output:?}");
    wait_until("the second message is not begun any more", || begun.elapsed() > Duration::from_millis(300));
    served.project.write("go", "");
    let answer = Answer::read(&read_all(first)).is(200);
    assert_eq!(answer.json()["handledMessages"], 1);
    assert_eq!((served.project.lines("handled").len(), served.project.pending("mail")), (1, 1));
    assert_eq!(served.consume("mail").is(200).json()["handledMessages"], 1);
}

#[test]
fn what_was_begun_for_a_client_that_goes_away_is_finished() {
    let served = Served::new(CONFIG);
    let mut client = served.connect();
    let body = json!({ "type": "App\\Slow", "transports": ["sync"] }).to_string();
    client.write_all(request("POST", "/dispatch", &body).as_bytes()).unwrap();
    wait_until("it handles", || served.project.lines("begun").len() == 1);
    drop(client);
    served.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").is(200);
    served.project.write("go", "");
    wait_until("it is handled", || served.project.lines("handled").len() == 1);
}

#[test]
fn a_client_may_close_its_side_after_the_request() {
    let served = Served::new(CONFIG);
    let mut client = served.connect();
    client.write_all(request("POST", "/dispatch", r#"{"type":"App\\Mail"}"#).as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    Answer::read(&read_all(client)).is(202);
    let mut client = served.connect();
    let whole = request("POST", "/dispatch", r#"{"type":"App\\Mail"}"#);
    client.write_all(&whole.as_bytes()[..whole.len() - 5]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let text = read_all(client);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    assert_eq!(served.project.pending("mail"), 1, "half a message is none");
}

#[test]
fn what_is_too_long_is_refused_and_the_client_learns_it() {
    // Those that are refused are connections until the rest of what their clients send has come.
    let served = Served::new(&CONFIG.replace("max_connections: 3", "max_connections: 20"));
    let body = "x".repeat(500_000);
    served.request("POST", "/dispatch", &body).refuses(413, "longer than 2000 bytes");
    let chunked = format!(
        "POST /dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n7A120\r\n{body}\r\n0\r\n\r\n"
    );
    served.send(chunked).refuses(413, "longer than 2000 bytes");
    served.send(format!("POST /dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n{body}")).is(401);
    served.send(format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000))).is(431);
    served.send("nonsense\r\n\r\n").is(400);
    served.send("POST /dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n").is(400);
    served.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").is(200);
}

#[test]
fn slow_clients_are_told_so_and_closed() {
    let served = Served::new(CONFIG);
    let begun = Instant::now();
    served.send("GET /health HTTP/1.1\r\nHost").refuses(408, "serve.read_timeout");
    let head =
        format!("POST /dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n{{");
    served.send(head).refuses(408, "serve.read_timeout");
    // One that sends nothing, at the beginning and after a request, is closed without a word.
    assert_eq!(read_all(served.connect()), "");
    let mut idle = served.connect();
    let keep = request("POST", CONSUME, r#"{"receiver":"failed"}"#).replace("Connection: close\r\n", "");
    idle.write_all(keep.as_bytes()).unwrap();
    Answer::read(&read_all(idle)).is(200);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}

#[test]
fn too_many_connections_are_told_to_come_back() {
    let served = Served::new(&CONFIG.replace("read_timeout: 1s", "read_timeout: 30s"));
    let held: Vec<TcpStream> = (0..3).map(|_| served.connect()).collect();
    let mut refused = None;
    wait_until("the server has seen them", || {
        let answer = served.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        let is_refused = answer.status == 503;
        refused = Some(answer);
        is_refused
    });
    let refused = refused.unwrap();
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    refused.refuses(503, "serve.max_connections");
    drop(held);
    wait_until("they are gone", || served.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status == 200);
}

#[test]
fn at_sigterm_requests_at_hand_are_answered() {
    let mut served = Served::new(CONFIG);
    served.post("/dispatch", &json!({ "type": "App\\Slow" })).is(202);
    served.post("/dispatch", &json!({ "type": "App\\Slow" })).is(202);
    let mut client = served.connect();
    client.write_all(request("POST", CONSUME, r#"{"receiver":"mail"}"#).as_bytes()).unwrap();
    let idle = served.connect();
    wait_until("it handles", || served.project.lines("begun").len() == 1);
    served.server.signal(Signal::SIGTERM);
    wait_until("it no longer listens", || TcpStream::connect(&served.address).is_err());
    assert!(!served.server.is_over());
    served.project.write("go", "");
    assert_eq!(Answer::read(&read_all(client)).is(200).json()["handledMessages"], 1);
    assert_eq!(served.server.ends(), Some(0));
    assert_eq!(served.project.pending("mail"), 1, "the other one is not begun");
    drop(idle);
}

const JOBS: &str = r#"
serve: {token: '%env(TOKEN)%'}
transports: {mail: "sqlite:q.db"}
handlers: {'App\Mail': {exec: [sh, -c, 'cat >> handled']}}
workers:
  - {name: mail, transports: [mail], options: [--time-limit=30], autoscale: {desired_size: 1, min: 1, max: 2}}
cron:
  - {name: web, schedule: every 2s, command: [sh, -c, 'echo "$MINUTELY_JOB_DUE" >> web'], scope: web}
  - {name: cli, schedule: every 1s, command: [sh, -c, 'echo ran >> cli'], scope: cli}
  - {name: slow, schedule: every 1s, command: [sh, -c, 'echo ran >> slow; while [ ! -e go ]; do sleep 0.05; done']}
"#;

#[test]
fn a_ping_runs_what_is_due_and_starts_workers_without_waiting_for_them() {
    let served = Served::new(JOBS);
    let workers = served.request("POST", "/cron", "").is(200).json()["workers"].clone();
    assert_eq!(workers["started"][0]["name"], "mail", "{workers}");
    wait_until("jobs have run", || {
        served.request("GET", "/cron", "").is(200);
        !served.project.lines("web").is_empty() && !served.project.lines("slow").is_empty()
    });
    let mut left_out = false;
    wait_until("the slow one is left out", || {
        let report = served.request("POST", "/cron", "").is(200).json();
        left_out = report["left_out"].as_array().unwrap().iter().any(|job| job["name"] == "slow");
        left_out
    });
    assert_eq!(served.project.lines("slow").len(), 1, "it runs");
    assert_eq!(served.project.lines("cli"), Vec::<String>::new());
    let workers = served.project.workers();
    assert_eq!(workers.len(), 1);
    assert!(process_exists(workers[0]));
    served.project.write("go", "");
    let listed = served.project.run(&["cron", "list"]).succeeds().stdout;
    assert!(listed.contains("(scope: web)") && listed.contains("(scope: cli)"), "{listed}");
}

#[test]
fn concurrent_pings_start_nothing_twice() {
    let served = Served::new(JOBS);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| served.request("POST", "/cron", "").is(200));
            }
        });
    }
    let due = served.project.lines("web");
    let mut once = due.clone();
    once.sort();
    once.dedup();
    assert!(due.len() >= 2 && once.len() == due.len(), "{due:?}");
    assert_eq!((served.project.lines("slow").len(), served.project.workers().len()), (1, 1));
    served.project.write("go", "");
}

#[test]
fn beside_a_supervisor_a_ping_runs_jobs_and_leaves_the_workers_to_it() {
    let served = Served::new(JOBS);
    let _supervisor = served.project.start("supervise", &["supervise"]);
    wait_until("it supervises", || served.project.workers().len() == 1);
    let report = served.request("POST", "/cron", "").is(200).json();
    assert_eq!(report["workers"]["reason"], "another supervisor is at work", "{report}");
    wait_until("both run jobs", || {
        served.request("POST", "/cron", "").is(200);
        !served.project.lines("web").is_empty() && !served.project.lines("cli").is_empty()
    });
    served.project.write("go", "");
}

#[test]
fn a_job_or_a_worker_that_cannot_be_started_is_an_error() {
    let served = Served::new(&format!("cache: 'redis://127.0.0.1:1'\n{JOBS}"));
    let report = served.request("POST", "/cron", "").is(500).json();
    assert!(report["error"].as_str().unwrap().contains("web: "), "{report}");
}

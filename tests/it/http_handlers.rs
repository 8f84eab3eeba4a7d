//! Messages that are sent to a URL, and Symfony's messages that run or request something.

use std::io::Write;
use std::time::Duration;

use crate::support::http_server::{HttpServer, answer};
use crate::support::{Project, Run};

fn project(handlers: &str) -> Project {
    Project::new(&format!(
        "failure_transport: failed\ntransports:\n  mail: {{dsn: 'sqlite:q.db?queue_name=mail', retry_strategy: {{max_retries: 1, delay: 10, \
         jitter: 0}}}}\n  failed: 'sqlite:q.db?queue_name=failed'\nrouting: {{'*': mail}}\nhandlers:\n{handlers}\n"
    ))
}

/// Handles what is pending, with its retries.
fn consume(project: &Project, messages: u32) -> Run {
    let limit = format!("--limit={messages}");
    project.run(&["consume", "mail", &limit, "--sleep=10ms", "--time-limit=50"]).succeeds()
}

#[test]
fn a_message_is_sent_with_all_that_is_known_of_it() {
    let server = HttpServer::answering("200 OK", r#"{"sent":true}"#);
    let url = server.url("/hook?key=s3cret");
    let project = project(&format!("  App\\Mail: {{http: {{url: '{url}', headers: {{X-Token: s3cret}}}}}}"));
    project.run(&["dispatch", r"App\Mail", r#"{"to":"ada"}"#]).succeeds();
    consume(&project, 1);
    let [request] = &server.requests()[..] else { panic!("{:?}", server.requests()) };
    let lower = request.to_lowercase();
    assert!(request.starts_with("POST /hook?key=s3cret HTTP/1.1\r\n"), "{request}");
    for part in [
        "\r\ncontent-type: application/json\r\n",
        "\r\nminutely-message-type: app\\mail\r\n",
        "\r\nminutely-message-id: 1\r\n",
        "\r\nminutely-transport: mail\r\n",
        "\r\nminutely-attempt: 1\r\n",
        "\r\nminutely-headers: {\"type\":\"app\\\\mail\"",
        "\r\nx-token: s3cret\r\n",
        "\r\n\r\n{\"to\":\"ada\"}",
    ] {
        assert!(lower.contains(part), "{part} is not in {request}");
    }
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 0));
    let debug = project.run(&["debug"]).succeeds().stdout;
    assert!(debug.contains("http POST http://127.0.0.1:") && debug.contains("/hook?***"), "{debug}");
    assert!(!project.log().contains("s3cret") && !debug.contains("s3cret"));
}

#[test]
fn the_answer_decides_whether_a_message_is_sent_again() {
    for (status, headers, requests, failed) in [
        ("422 Unprocessable Content", "", 1, 1),
        ("410 Gone", "Retry-After: 0\r\n", 1, 1),
        ("500 Internal Server Error", "", 2, 1),
        ("301 Moved Permanently", "Location: /elsewhere\r\n", 2, 1),
    ] {
        let server = HttpServer::start(move |_, to| answer(to, status, headers, "what is wrong"));
        let project = project(&format!("  Mail: {{http: '{}'}}", server.url("/")));
        project.run(&["dispatch", "Mail", "{}"]).succeeds();
        consume(&project, requests);
        assert_eq!(server.requests().len(), requests as usize, "{status}");
        assert_eq!((project.pending("mail"), project.pending("failed")), (0, failed), "{status}");
        let (log, code) = (project.log(), &status[..3]);
        assert!(log.contains(code), "{status}: {log}");
        assert!(code == "301" || log.contains("what is wrong"), "{status}: {log}");
    }
    // More often than `max_retries` says.
    let left = std::sync::atomic::AtomicU32::new(4);
    let server = HttpServer::start(move |_, to| match left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) {
        1 => answer(to, "204 No Content", "", ""),
        _ => answer(to, "503 Service Unavailable", "Retry-After: 0\r\n", ""),
    });
    let project = project(&format!("  Mail: {{http: '{}'}}", server.url("/")));
    project.run(&["dispatch", "Mail", "{}"]).succeeds();
    consume(&project, 4);
    assert_eq!((server.requests().len(), project.pending("failed")), (4, 0));
}

#[test]
fn a_server_that_hangs_or_answers_without_end_does_no_harm() {
    let server = HttpServer::start(|_, _| std::thread::sleep(Duration::from_secs(60)));
    let project = project(&format!("  Mail: {{http: '{}', timeout: 300ms}}", server.url("/?s3cret")));
    project.run(&["dispatch", "Mail", "{}"]).succeeds();
    consume(&project, 2);
    let log = project.log();
    assert!(log.contains("timed out after 300ms") && !log.contains("s3cret"), "{log}");
    assert_eq!(project.pending("failed"), 1);

    let endless = HttpServer::start(|_, to| {
        let _ = to.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while to.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let project = self::project(&format!("  Mail: {{http: '{}'}}", endless.url("/")));
    project.run(&["dispatch", "Mail", "{}"]).succeeds();
    consume(&project, 1);
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 0), "2xx means that it is handled");
}

#[test]
fn several_messages_are_one_request_and_each_has_its_own_result() {
    // The number of the batch's message is not that in its body.
    let server = HttpServer::start(|request, to| {
        let list: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        let answers = list.as_array().unwrap().iter().map(|message| match message["body"]["n"].as_u64() {
            Some(2) => format!(r#"{{"id":{},"error":"not two","retry":false}}"#, message["id"]),
            _ => format!(r#"{{"id":{},"ok":true}}"#, message["id"]),
        });
        let answers: Vec<String> = answers.chain([r#"{"id":99,"ok":true}"#.to_owned()]).collect();
        answer(to, "200 OK", "", &format!("[{}]", answers.join(",")));
    });
    let handler = format!("  Index: {{http: '{}', batch: {{size: 10, wait: 60s}}}}", server.url("/"));
    let project = self::project(&handler);
    for n in 1..=4 {
        project.run(&["dispatch", "Index", &format!("{{\"n\":{n}}}")]).succeeds();
    }
    consume(&project, 4);
    let [request] = &server.requests()[..] else { panic!("{:?}", server.requests()) };
    assert!(request.to_lowercase().contains("\r\nminutely-batch: 4\r\n"), "{request}");
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 1));
    let log = project.log();
    assert!(log.contains("not two") && log.contains("left aside"), "{log}");

    let down = HttpServer::answering("503 Service Unavailable", "");
    let project = self::project(&handler.replace(&server.url("/"), &down.url("/")));
    for _ in 0..2 {
        project.run(&["dispatch", "Index", "{}"]).succeeds();
    }
    consume(&project, 4);
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 2), "each has had its retry");
}

const RUN_COMMAND: &str = r"Symfony\Component\Console\Messenger\RunCommandMessage";
const RUN_PROCESS: &str = r"Symfony\Component\Process\Messenger\RunProcessMessage";
const PING_WEBHOOK: &str = r"Symfony\Component\HttpClient\Messenger\PingWebhookMessage";

#[test]
fn symfonys_messages_run_what_they_say_where_that_is_wanted() {
    let server = HttpServer::answering("200 OK", "pong");
    let project = project(&format!(
        "  {RUN_COMMAND}: {{console: [sh, console]}}\n  {RUN_PROCESS}: builtin\n  {PING_WEBHOOK}: {{builtin: true, timeout: 20s}}"
    ));
    project.write("console", "printf '%s|' \"$@\" >> ran; exit $2");
    std::fs::create_dir(project.file("sub")).unwrap();
    let process = r#"{"command":["sh","-c","echo $A $(basename $PWD) $(cat) >> ../ran"],"cwd":"sub","env":{"A":"b"},"input":"in","timeout":5}"#;
    let webhook =
        format!(r#"{{"method":"POST","url":"{}","options":{{"json":{{"a":1}}}},"throw":true}}"#, server.url("/ping"));
    for (message_type, body) in [
        (RUN_COMMAND, r#"{"input":"app:send 0 'x y'","throwOnFailure":true,"catchExceptions":false}"#),
        (RUN_COMMAND, r#"{"input":"app:warn 3","throwOnFailure":false,"catchExceptions":false}"#),
        (RUN_PROCESS, process),
        (PING_WEBHOOK, &webhook),
    ] {
        project.run(&["dispatch", message_type, body]).succeeds();
    }
    consume(&project, 4);
    assert_eq!((project.pending("mail"), project.pending("failed")), (0, 0), "{}", project.log());
    assert_eq!(project.lines("ran").join("\n"), "app:send|0|x y|app:warn|3|b sub in");
    assert!(server.requests().concat().ends_with("\r\n\r\n{\"a\":1}"), "{:?}", server.requests());

    let config = std::fs::read_to_string(project.file("config.yaml")).unwrap();
    project.write("config.yaml", config.replace("max_retries: 1", "max_retries: 0"));
    for (message_type, body, why) in [
        (RUN_COMMAND, r#"{"input":"app:send 4"}"#, "exit code 4"),
        (RUN_PROCESS, r#"{"command":["sh","-c","echo no disk >&2; exit 5"]}"#, "exit code 5: no disk"),
        (RUN_PROCESS, r#"{"command":[]}"#, "the message names no program"),
        (RUN_PROCESS, r#"{"command":["sleep","600"],"timeout":0.2}"#, "timed out after 200ms"),
        (PING_WEBHOOK, r#"{"method":"GET","url":"file:///etc/passwd"}"#, "must be a URL that begins with https://"),
    ] {
        let before = project.pending("failed");
        project.run(&["dispatch", message_type, body]).succeeds();
        consume(&project, 1);
        assert_eq!(project.pending("failed"), before + 1, "{body}");
        assert!(project.log().contains(why), "{why}: {}", project.log());
    }
}

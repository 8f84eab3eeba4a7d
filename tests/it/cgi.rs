//! `minutely cgi`: by its environment, and started by a web server.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Project, Running, process_exists, wait_until};

const TOKEN: &str = "correct-horse-battery-staple";

const CONFIG: &str = r#"
serve: {token: correct-horse-battery-staple, max_body: 2000, read_timeout: 1s, request_timeout: 3s}
transports: {mail: "sqlite:q.db", sync: 'sync://'}
routing: {'App\Mail': mail}
handlers:
  'App\Mail': {exec: [sh, -c, 'cat >> handled']}
  'App\Env': {exec: [sh, -c, 'env > seen']}
  'App\Slow': {exec: [sh, -c, 'echo begun >> begun; while [ ! -e go ]; do sleep 0.05; done; echo done >> handled']}
workers: [{name: mail, transports: [mail], options: [--time-limit=30], autoscale: {desired_size: 1, min: 1, max: 1}}]
cron: [{name: tick, schedule: every 1s, command: [sh, -c, 'env > ticked; sleep 300'], scope: web}]
"#;

/// The program as a web server starts it.
fn cgi(project: &Project, method: &str, path: &str, length: &str) -> Command {
    let mut command = project.command(&["cgi"]);
    command
        .env("GATEWAY_INTERFACE", "CGI/1.1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("CONTENT_LENGTH", length)
        .env("HTTP_PROXY", "http://attacker.example")
        .env("QUERY_STRING", "a=b")
        .env("REMOTE_ADDR", "192.0.2.1")
        .env("SSL_CLIENT_CERT", "of the client")
        .env("SSL_CERT_DIR", "/certificates")
        .env("HTTP_AUTHORIZATION", format!("Bearer {TOKEN}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it with this body, and reads what it prints, to the end.
fn run(mut command: Command, body: &str) -> (String, Value) {
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(body.as_bytes());
    let (mut text, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    child.wait().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?} {errors}"));
    let status = head.lines().next().unwrap().to_owned();
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn post(project: &Project, path: &str, body: &Value) -> (String, Value) {
    let body = body.to_string();
    run(cgi(project, "POST", path, &body.len().to_string()), &body)
}

#[test]
fn requests_are_answered_as_by_the_server() {
    let project = Project::new(CONFIG);
    let (status, body) = run(cgi(&project, "GET", "/health", ""), "");
    assert_eq!((status.as_str(), body), ("Status: 200 OK", json!({ "status": "ok" })));
    assert_eq!(run(cgi(&project, "HEAD", "/health", ""), "").0, "Status: 200 OK");
    let (status, body) = post(&project, "/dispatch", &json!({ "type": "App\\Mail", "body": 1 }));
    assert_eq!((status.as_str(), &body["queued_on"]), ("Status: 202 Accepted", &json!("mail")));
    let (status, body) = post(&project, "/api/_action/message-queue/consume", &json!({ "receiver": "mail" }));
    assert_eq!((status.as_str(), &body["handledMessages"]), ("Status: 200 OK", &json!(1)));
    for (change, expected) in [
        (("HTTP_AUTHORIZATION", ""), "Status: 401 Unauthorized"),
        (("HTTP_AUTHORIZATION", "Bearer wrong-horse-battery-staple"), "Status: 401 Unauthorized"),
        (("PATH_INFO", ""), "Status: 404 Not Found"),
        (("PATH_INFO", "/../health"), "Status: 404 Not Found"),
        (("REQUEST_METHOD", "PUT"), "Status: 405 Method Not Allowed"),
        (("CONTENT_LENGTH", "2001"), "Status: 413 Content Too Large"),
        (("CONTENT_LENGTH", "99999999999999999999999"), "Status: 413 Content Too Large"),
        (("CONTENT_LENGTH", "-1"), "Status: 400 Bad Request"),
        (("CONTENT_LENGTH", "100"), "Status: 400 Bad Request"),
        (("CONTENT_LENGTH", ""), "Status: 400 Bad Request"),
    ] {
        let mut command = cgi(&project, "POST", "/dispatch", "2");
        command.env(change.0, change.1);
        let (status, body) = run(command, "{}");
        assert_eq!(status, expected, "{change:?}");
        assert!(body["error"].is_string(), "{body}");
    }
    let mut passed_on = cgi(&project, "GET", "/cron", "");
    passed_on.env_remove("HTTP_AUTHORIZATION").env("REDIRECT_HTTP_AUTHORIZATION", format!("Bearer {TOKEN}"));
    assert_eq!(run(passed_on, "").0, "Status: 200 OK");
}

#[test]
fn a_request_is_looked_at_whatever_the_web_server_has_inherited() {
    let project = Project::new(CONFIG);
    for authorization in [None, Some("Bearer wrong-horse-battery-staple")] {
        let mut command = cgi(&project, "POST", "/dispatch", "2");
        command.env("MINUTELY_CGI_REQUEST", "POST /cron 0").env_remove("HTTP_AUTHORIZATION");
        command.envs(authorization.map(|value| ("HTTP_AUTHORIZATION", value)));
        let (status, body) = run(command, "{}");
        assert_eq!(status, "Status: 401 Unauthorized", "{body}");
    }
    assert_eq!(project.workers().len(), 0);
    let mut health = cgi(&project, "GET", "/health", "");
    health.env("MINUTELY_CGI_REQUEST", "HEAD /cron 0");
    assert_eq!(run(health, "").1, json!({ "status": "ok" }));
}

#[test]
fn a_web_server_that_ends_the_program_still_gets_an_answer() {
    let project = Project::new(CONFIG);
    post(&project, "/dispatch", &json!({ "type": "App\\Slow", "transports": ["mail"] }));
    let body = json!({ "receiver": "mail" }).to_string();
    let mut child =
        cgi(&project, "POST", "/api/_action/message-queue/consume", &body.len().to_string()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    wait_until("it handles the message", || !project.lines("begun").is_empty());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    project.write("go", "");
    let (mut text, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    child.wait().unwrap();
    assert!(text.starts_with("Status: 200 OK\r\n") && text.contains(r#""handledMessages":1"#), "{text} {errors}");
}

#[test]
fn what_a_request_starts_holds_no_pipe_and_sees_no_header() {
    let project = Project::new(CONFIG);
    let begun = Instant::now();
    // Each reads to the end of the output; job and worker go on for longer.
    wait_until("the job has run", || {
        assert_eq!(run(cgi(&project, "POST", "/cron", ""), "").0, "Status: 200 OK");
        project.file("ticked").exists() && !fs::read_to_string(project.file("ticked")).unwrap().is_empty()
    });
    assert!(begun.elapsed() < Duration::from_secs(40));
    let workers = project.workers();
    assert_eq!(workers.len(), 1);
    assert!(process_exists(workers[0]));
    post(&project, "/dispatch", &json!({ "type": "App\\Env" }));
    let worker = fs::read_to_string(format!("/proc/{}/environ", workers[0])).unwrap();
    for seen in
        [fs::read_to_string(project.file("ticked")).unwrap(), fs::read_to_string(project.file("seen")).unwrap(), worker]
    {
        assert!(seen.contains("PATH="), "{seen}");
        assert!(seen.contains("SSL_CERT_DIR=/certificates"), "{seen}");
        for secret in
            [TOKEN, "attacker", "QUERY_STRING", "REQUEST_METHOD", "REMOTE_ADDR", "HTTP_", "SSL_CLIENT", "CGI_REQUEST"]
        {
            assert!(!seen.contains(secret), "{secret}: {seen}");
        }
    }
}

#[test]
fn a_body_that_does_not_come_ends_the_request() {
    let project = Project::new(CONFIG);
    let mut child = cgi(&project, "POST", "/dispatch", "20").spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"{").unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.starts_with("Status: 408 Request Timeout\r\n"), "{text}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_takes_longer_than_the_answer_is_finished() {
    let project = Project::new(CONFIG);
    let body = json!({ "type": "App\\Slow", "transports": ["sync"] }).to_string();
    let mut child = cgi(&project, "POST", "/dispatch", &body.len().to_string()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let (mut text, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(text.starts_with("Status: 504 Gateway Timeout\r\n"), "{text}");
    assert_eq!((project.lines("begun").len(), project.lines("handled").len()), (1, 0));
    project.write("go", "");
    assert!(child.wait().unwrap().success());
    assert_eq!(project.lines("handled"), ["done"]);
}

#[test]
fn a_wrong_configuration_is_an_answer_too_and_a_terminal_is_told_what_this_is_for() {
    let project = Project::new("serve: {token: short}");
    let (status, body) = run(cgi(&project, "GET", "/health", ""), "");
    assert_eq!(status, "Status: 500 Internal Server Error");
    assert!(!body["error"].as_str().unwrap().contains("short"), "{body}");
    let logged = cgi(&project, "GET", "/health", "").output().unwrap().stderr;
    let logged = String::from_utf8(logged).unwrap();
    assert!(logged.contains("serve.token") && !logged.contains("short}"), "{logged}");
    project.write("config.yaml", CONFIG);
    let told = project.run(&["cgi"]).exits(2).stderr;
    assert!(told.contains("started by a web server"), "{told}");
}

#[test]
fn it_works_under_a_web_server() {
    let found = Command::new("python3").args(["-c", "import http.server as s; s.CGIHTTPRequestHandler"]).output();
    if !found.is_ok_and(|found| found.status.success()) {
        return harness::skip("no python3 with a web server that runs CGI programs (until 3.14)");
    }
    let project = Project::new(CONFIG);
    let program = env!("CARGO_BIN_EXE_minutely");
    let config = project.file("config.yaml");
    // Python's server drops the header, as Apache does.
    let script = format!(
        "#!/bin/sh\nexport HTTP_AUTHORIZATION='Bearer {TOKEN}'\nexec {program} --config {} cgi\n",
        config.display()
    );
    project.write("cgi-bin/minutely.cgi", script);
    fs::set_permissions(project.file("cgi-bin/minutely.cgi"), fs::Permissions::from_mode(0o755)).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // As root it would run the program as nobody, who may not enter this folder.
    let code = format!(
        "import http.server as s, os; s.nobody_uid = os.getuid; \
         s.test(HandlerClass=s.CGIHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    );
    let mut server = Command::new("python3");
    server.args(["-c", &code]).current_dir(project.path());
    server.stdin(Stdio::null());
    let _server = Running::start(&project, "server", server);
    wait_until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let curl = |path: &str, arguments: &[&str]| {
        let url = format!("http://127.0.0.1:{port}/cgi-bin/minutely.cgi{path}");
        let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(arguments).arg(url).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    };
    assert_eq!(curl("/health", &[]), json!({ "status": "ok" }));
    assert_eq!(curl("/dispatch", &["-d", r#"{"type":"App\\Mail","body":1}"#])["outcome"], "queued");
    assert_eq!(curl("/cron", &["-X", "POST", "-d", ""])["workers"]["started"][0]["name"], "mail");
    wait_until("the worker handles it", || project.lines("handled").len() == 1);
}

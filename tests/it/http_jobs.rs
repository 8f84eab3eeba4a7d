//! Scheduled jobs that request a URL.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::skip;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::http_server::{HttpServer, answer};
use crate::support::{Project, Run, Running, wait_until};

/// A project whose one job makes this request.
fn project(request: &str, further: &str) -> Project {
    Project::new(&format!("cron: [{{name: ping, schedule: '@yearly', http: {request}{further}}}]"))
}

fn run(project: &Project) -> Run {
    project.run(&["cron", "run", "ping"])
}

fn last_run(project: &Project) -> Value {
    project.json(&["cron", "list"])[0]["last_run"].clone()
}

/// Everything that may be read of a run.
fn told(project: &Project, run: &Run) -> String {
    let listed = project.run(&["cron", "list", "--format", "json"]).stdout;
    let checked = project.run(&["-vv", "config", "check"]);
    [&run.stdout, &run.stderr, &project.log(), &listed, &checked.stdout, &checked.stderr].map(String::as_str).concat()
}

#[test]
fn a_url_is_requested_and_its_answer_is_kept() {
    let server = HttpServer::answering("200 OK", "3 mails sent\n1 order closed\n");
    let project = project(&format!("'{}'", server.url("/cron.php?job=1")), "");
    let run = run(&project).succeeds();
    let begin = format!("GET http://127.0.0.1:{}/cron.php?*** answers 200 OK", server.port);
    assert_eq!(run.stdout, format!("{begin}\n3 mails sent\n1 order closed\n"));
    let kept = last_run(&project);
    assert_eq!((&kept["result"], &kept["output"]), (&"succeeded".into(), &run.stdout.trim_end().into()));
    let [request] = &server.requests()[..] else { panic!("{:?}", server.requests()) };
    assert!(request.starts_with("GET /cron.php?job=1 HTTP/1.1\r\n"), "{request}");
    assert!(request.to_lowercase().contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", server.port)), "{request}");
    assert!(request.to_lowercase().contains("\r\nuser-agent: minutely/"), "{request}");
}

#[test]
fn method_headers_body_and_login_are_sent_and_never_shown() {
    let server = HttpServer::answering("500 Internal Server Error", "the disk is full\n");
    let url = server.url("/run?key=s3cret").replace("http://", "http://ada:s3cret%21@");
    let request = format!("{{url: '{url}', method: POST, headers: {{X-Token: '%env(TOKEN)%'}}, body: 'a=s3cret'}}");
    let project = project(&request, "");
    project.write(".env", "TOKEN=s3cret");
    let run = run(&project).exits(1);
    let why = format!("POST http://127.0.0.1:{}/run?*** answers 500 Internal Server Error", server.port);
    assert!(run.stderr.contains(&format!("failed: {why}")), "{run:?}");
    let kept = last_run(&project);
    assert_eq!((&kept["result"], &kept["why"]), (&"failed".into(), &why.clone().into()));
    assert_eq!(kept["output"], format!("{why}\nthe disk is full"));
    let request = server.requests().concat();
    // ada:s3cret!
    for sent in [
        "POST /run?key=s3cret",
        "uthorization: Basic YWRhOnMzY3JldCE=\r\n",
        "\r\nx-token: s3cret\r\n",
        "\r\n\r\na=s3cret",
    ] {
        assert!(request.contains(sent), "{sent} is not in {request}");
    }
    let told = told(&project, &run);
    assert!(!told.contains("s3cret") && !told.contains("YWRh"), "{told}");
}

#[test]
fn the_failure_of_a_request_is_told_by_cron_with_the_last_lines_of_the_answer() {
    let server = HttpServer::answering("503 Service Unavailable", "maintenance\n");
    let project = Project::new(&format!("cron: [{{name: ping, schedule: every 1s, http: '{}'}}]", server.url("/")));
    let _cron = project.start("cron", &["cron"]);
    wait_until("it is told", || project.lines("cron.err").iter().any(|line| line == "    maintenance"));
    let told = project.lines("cron.err").join("\n");
    assert!(told.contains("error: job ping failed: GET http://127.0.0.1:"), "{told}");
    assert!(told.contains("answers 503 Service Unavailable (started at "), "{told}");
}

#[test]
fn a_server_that_is_not_there_resets_or_breaks_off_is_a_failure() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = run(&project(&format!("'http://127.0.0.1:{free}/'"), "")).exits(1);
    assert!(refused.stderr.contains("/: cannot connect: ") && refused.stderr.contains("refused"), "{refused:?}");
    let unknown = run(&project("'http://nowhere.invalid/'", "")).exits(1);
    assert!(unknown.stderr.contains("http://nowhere.invalid/: cannot connect: "), "{unknown:?}");
    for (begin, expected) in [
        ("", "no answer: "),
        ("SSH-2.0-OpenSSH_9.2\r\n", "no answer: "),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun", "answers 200 OK, but the answer breaks off: "),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
            "answers 200 OK, but the answer breaks off: ",
        ),
    ] {
        let server = HttpServer::start(move |_, to| to.write_all(begin.as_bytes()).unwrap());
        let project = project(&format!("'{}'", server.url("/")), "");
        let run = run(&project).exits(1);
        assert!(run.stderr.contains(expected), "{begin:?}: {run:?}");
        assert!(!begin.ends_with("begun") || run.stdout.ends_with("\nbegun\n"), "{begin:?}: {run:?}");
    }
}

#[test]
fn a_server_that_hangs_or_drips_is_given_up_at_the_timeout() {
    for begin in ["", "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"] {
        let server = HttpServer::start(move |_, to| {
            let _ = to.write_all(begin.as_bytes());
            while begin.is_empty() || to.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let project = project(&format!("'{}'", server.url("/slow")), ", timeout: 500ms");
        let started = Instant::now();
        let run = run(&project).exits(1);
        assert!(run.stderr.contains("/slow: timed out after 500ms"), "{run:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_request_is_broken_off_at_sigterm() {
    let server = HttpServer::start(|_, _| std::thread::sleep(Duration::from_secs(600)));
    let project = project(&format!("'{}'", server.url("/")), "");
    let mut running = project.start("run", &["cron", "run", "ping"]);
    wait_until("it is asked", || server.requests().len() == 1);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ends(), Some(1));
    assert_eq!(last_run(&project)["result"], "interrupted");
}

#[test]
fn an_answer_without_end_is_cut() {
    let server = HttpServer::start(|_, to| {
        let line = format!("{}\n", "x".repeat(100_000));
        let _ = to.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while to.write_all(line.as_bytes()).is_ok() {}
    });
    let project = project(&format!("'{}'", server.url("/")), "");
    let run = run(&project).exits(1);
    assert!(run.stderr.contains("answers 200 OK, but is longer than 64 MiB; the rest was not read"), "{run:?}");
    assert!(run.stdout.len() < 2_000_000 && project.log().len() < 4_000_000);
}

#[test]
fn redirects_are_followed_and_what_is_secret_stays_at_its_host() {
    let other = HttpServer::answering("200 OK", "here\n");
    let at = other.url("/new?key=s3cret");
    let server = HttpServer::start(move |request, to| match request.split(' ').nth(1).unwrap() {
        "/a" => answer(to, "302 Found", "Location: /b?key=s3cret\r\n", ""),
        "/loop" => answer(to, "307 Temporary Redirect", "Location: /loop\r\n", ""),
        "/file" => answer(to, "301 Moved Permanently", "Location: file:///etc/passwd\r\n", ""),
        "/nowhere" => answer(to, "302 Found", "", "no location"),
        "/moved" => answer(to, "301 Moved Permanently", &format!("Location: {at}\r\n"), ""),
        _ => answer(to, "307 Temporary Redirect", &format!("Location: {at}\r\n"), ""),
    });
    let login = |path: &str| server.url(path).replace("http://", "http://ada:s3cret@");
    let request = |path: &str, further: &str| {
        let project = project(&format!("{{url: '{}', headers: {{X-Token: s3cret}}{further}}}", login(path)), "");
        let run = run(&project);
        let told = told(&project, &run);
        assert!(!told.contains("s3cret"), "{told}");
        run
    };
    let followed = request("/a", ", method: POST, body: s3cret").succeeds();
    let end = format!("answers 200 OK (redirected to http://127.0.0.1:{}/new?***)\nhere\n", other.port);
    assert!(followed.stdout.ends_with(&end), "{followed:?}");
    let [first, second] = &server.requests()[..] else { panic!("{:?}", server.requests()) };
    assert!(first.starts_with("POST /a ") && first.ends_with("\r\n\r\ns3cret"), "{first}");
    // As browsers do it after 302.
    assert!(second.starts_with("GET /b?key=s3cret ") && second.ends_with("\r\n\r\n"), "{second}");
    assert!(second.contains("x-token: s3cret") && second.contains("uthorization: Basic"), "{second}");
    let [third] = &other.requests()[..] else { panic!("{:?}", other.requests()) };
    assert!(third.starts_with("GET /new?key=s3cret ") && !third.to_lowercase().contains("x-token"), "{third}");
    assert!(!third.to_lowercase().contains("authorization"), "{third}");

    let body = request("/elsewhere", ", method: POST, body: s3cret").exits(1);
    assert!(body.stderr.contains("is redirected with what it sends, to another host: http://127.0.0.1:"), "{body:?}");
    // Without the body, it would seem to have succeeded there.
    let moved = request("/moved", ", method: POST, body: s3cret").exits(1);
    assert!(moved.stderr.contains("is redirected with what it sends, to another host"), "{moved:?}");
    assert!(request("/loop", "").exits(1).stderr.contains("is redirected more than 10 times"));
    assert!(request("/file", "").exits(1).stderr.contains("is redirected to what is neither https: nor http:"));
    assert!(request("/nowhere", "").exits(1).stderr.contains("answers 302 Found"));
    assert_eq!(other.requests().len(), 1);
}

#[test]
fn a_server_is_verified_by_its_certificate() {
    let files = tempfile::tempdir().unwrap();
    let (key, certificate) = (files.path().join("key.pem"), files.path().join("certificate.pem"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    command.args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]);
    let Ok(made) = command.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output() else {
        return skip("openssl is not installed");
    };
    assert!(made.status.success(), "{made:?}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let project = project(&format!("'https://localhost:{port}/'"), "");
    let mut server = Command::new("openssl");
    server
        .args(["s_server", "-www", "-quiet", "-accept", &port.to_string()])
        .arg("-key")
        .arg(&key)
        .arg("-cert")
        .arg(&certificate);
    server.stdin(Stdio::null());
    let _server = Running::start(&project, "server", server);
    wait_until("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());

    let unverified = run(&project).exits(1);
    assert!(
        unverified.stderr.contains(": cannot connect: ") && unverified.stderr.contains("certificate"),
        "{unverified:?}"
    );
    let with_authorities =
        |file: &std::path::Path| project.command(&["cron", "run", "ping"]).env("SSL_CERT_FILE", file).output().unwrap();
    let verified = with_authorities(&certificate);
    assert!(verified.status.success(), "{verified:?}");
    let none = files.path().join("none.pem");
    fs::write(&none, "").unwrap();
    let none = String::from_utf8(with_authorities(&none).stderr).unwrap();
    assert!(none.contains("no authority for TLS is known here"), "{none}");
}

#[test]
fn the_proxy_that_the_environment_names_is_used() {
    let proxy = HttpServer::answering("200 OK", "by the proxy\n");
    let project = Project::new(
        "cron:
  - {name: plain, schedule: '@yearly', http: 'http://nowhere.invalid/cron'}
  - {name: tls, schedule: '@yearly', http: 'https://nowhere.invalid/cron', timeout: 10s}",
    );
    let address = proxy.url("").replace("http://", "http://ada:s3cret@");
    let run = |job: &str, variable: &str, address: &str| {
        let output = project.command(&["cron", "run", job]).env(variable, address).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, told) = run("plain", "http_proxy", &address);
    assert!(code == Some(0) && told.ends_with("\nby the proxy\n"), "{told}");
    let (code, told) = run("tls", "https_proxy", &address);
    // What it answers is no TLS.
    assert!(code == Some(1) && !told.contains("s3cret"), "{told}");
    let [plain, tls] = &proxy.requests()[..] else { panic!("{:?}", proxy.requests()) };
    assert!(plain.starts_with("GET http://nowhere.invalid/cron HTTP/1.1\r\n"), "{plain}");
    assert!(tls.starts_with("CONNECT nowhere.invalid:443 HTTP/1.1\r\n"), "{tls}");
    // ada:s3cret
    assert!(
        [plain, tls].iter().all(|request| request.contains("uthorization: Basic YWRhOnMzY3JldA==")),
        "{plain}{tls}"
    );
    let (_, told) = run("plain", "http_proxy", "socks5://127.0.0.1:1");
    assert!(told.contains("only http:// is"), "{told}");
}

#[test]
fn what_is_wrong_with_a_request_is_found_before_it_is_sent() {
    let project = Project::new(
        r#"
cron:
  - {name: a, schedule: daily, http: example.com/s3cret}
  - {name: b, schedule: daily, http: 'ftp://ada:s3cret@example.com/'}
  - {name: c, schedule: daily, http: {method: get}}
  - {name: d, schedule: daily, http: {url: 'https://example.com', headers: {"X\nY": a, A: "a\nHost: s3cret", Content-Length: 3, a: b}}}
  - {name: e, schedule: daily, http: {url: 'https://example.com', body: s3cret}}
  - {name: f, schedule: daily, http: 'https://example.com', command: [f], environment: {A: b}}
  - {name: g, schedule: daily, http: 'https://example.com', environment: {A: b}}
  - {name: h, schedule: daily, http: {url: 'https://example.com', haeders: {}}, timeout: 0}
  - {name: i, schedule: daily, http: ['https://example.com']}
"#,
    );
    let told = project.run(&["config", "check"]).exits(2).stderr;
    for expected in [
        "cron[0].http: is no URL: relative URL without a base; write a URL such as https://example.com/cron",
        "cron[1].http: must be a URL that begins with https:// or http://",
        "cron[2].http: `url` is missing",
        "cron[2].http.method: must be one of GET, HEAD, POST",
        "cron[3].http.headers.\"X\\nY\": must be the name of a header",
        "cron[3].http.headers.A: must be one line",
        "cron[3].http.headers.Content-Length: is set by the request itself",
        "cron[3].http.headers.a: is there already",
        "cron[4].http.body: is not sent with GET; set `method: POST`",
        "cron[5].http: stands beside `command`",
        "cron[6].environment: belongs to a `command`; `http` has no environment",
        "cron[7].http: unknown key \"haeders\", did you mean \"headers\"?",
        "cron[7].timeout: must be more than 0",
        "cron[8].http: must be a URL such as https://example.com/cron, or a mapping with `url`, not a list",
    ] {
        assert!(told.contains(expected), "{expected} is not in {told}");
    }
    assert!(!told.contains("s3cret"), "{told}");
}

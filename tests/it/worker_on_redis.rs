//! Workers as processes on a Redis server: what they cost while idle, how soon they start, how they survive a restart
//! of the server and their own death, and TLS.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::private_redis::PrivateRedis;
use crate::support::{Project, wait_until};

/// Two streams on one server.
const CONFIG: &str = r#"
transports:
  high: "%env(SERVER)%/high"
  low: "%env(SERVER)%/low"
routing: {'*': low}
handlers:
  Note: {exec: [sh, -c, 'cat >> handled; date +%%s%%N > at; echo >> handled']}
  Slow: {exec: [sh, -c, 'echo begun >> slow; while [ ! -e go ]; do sleep 0.05; done; echo done >> slow']}
workers:
  - {transports: [low], options: [--time-limit=600], autoscale: {desired_size: 10, min: 0, max: 2}}
"#;

fn project(server: &PrivateRedis) -> Project {
    let project = Project::new(CONFIG);
    project.write(".env", format!("SERVER={}\n", server.url()));
    project
}

/// The connections except this test's: how long each has been idle, in seconds.
fn connections(server: &PrivateRedis) -> Vec<u64> {
    let mut connection = server.connect().unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
    let others = list.lines().filter(|line| !line.contains("cmd=client"));
    others.map(|line| line.split(" idle=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()).collect()
}

fn dispatch(project: &Project, message_type: &str, body: &str) {
    let report = project.json(&["dispatch", message_type, body]);
    assert_eq!(report["outcome"], "queued", "{report}");
}

#[test]
fn an_idle_worker_sends_no_requests_has_one_connection_and_starts_at_once() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let project = project(&server);
    let _worker = project.start("worker", &["consume", "high", "low"]);
    wait_until("the worker is quiet", || matches!(connections(&server)[..], [quiet] if quiet >= 3));
    // Not through the program, whose start takes as long as everything else.
    let mut connection = server.connect().unwrap();
    let (body, headers) = (r#""1""#, r#"{"type":"Note","Content-Type":"application/json"}"#);
    let message = format!(r#"{{"body":{body},"headers":{headers}}}"#);
    let sent = std::time::SystemTime::now();
    redis::cmd("XADD").arg("low").arg("*").arg("message").arg(message).query::<()>(&mut connection).unwrap();
    wait_until("the message is handled", || project.lines("handled") == ["1"] && !project.lines("at").is_empty());
    let sent = sent.duration_since(std::time::UNIX_EPOCH).unwrap();
    let handled = Duration::from_nanos(project.lines("at")[0].parse().unwrap());
    // Some milliseconds; a busy machine may take its time.
    assert!(handled.saturating_sub(sent) < Duration::from_secs(2), "{:?}", handled - sent);
    println!("handled after {:?}", handled - sent);
}

#[test]
fn a_worker_outlasts_its_server() {
    let Some(mut server) = PrivateRedis::start(&[]) else { return };
    let project = project(&server);
    let mut worker = project.start("worker", &["consume", "high", "low"]);
    dispatch(&project, "Note", "1");
    wait_until("the first message is handled", || project.lines("handled") == ["1"]);
    server.kill();
    wait_until("the worker notices", || project.log().contains("trying again"));
    server.start_again();
    dispatch(&project, "Note", "2");
    wait_until("the second message is handled", || project.lines("handled") == ["1", "2"]);
    assert!(!worker.is_over());
}

#[test]
fn a_killed_workers_message_is_redelivered_at_the_next_tick() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let project = project(&server);
    dispatch(&project, "Slow", "1");
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it is being handled", || project.lines("slow").len() == 1);
    let first = project.workers();
    let begun = Instant::now();
    kill(Pid::from_raw(first[0]), Signal::SIGKILL).unwrap();
    wait_until("it is handled again, by another worker", || project.lines("slow").len() == 2);
    assert!(begun.elapsed() < Duration::from_secs(30), "not after redeliver_timeout");
    assert!(project.workers() != first);
    project.write("go", "");
    wait_until("the message is gone", || {
        let status = project.json(&["status"]);
        let low = status["transports"].as_array().unwrap().iter().find(|one| one["name"] == "low").unwrap();
        low["pending"] == 0 && low["in_flight"] == 0
    });
}

#[test]
fn a_supervisor_has_no_connection_between_its_ticks() {
    let Some(server) = PrivateRedis::start(&[]) else { return };
    let project = project(&server);
    let _supervisor = project.start("supervisor", &["supervise"]);
    wait_until("the supervisor runs", || project.is_running("low"));
    wait_until("it holds no connection", || connections(&server).is_empty());
}

#[test]
fn tls_works_with_a_server_whose_certificate_is_trusted() {
    let project = Project::new(CONFIG);
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=CA:FALSE",
        ])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(project.path())
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        return harness::skip("openssl is not installed");
    }
    let (key, certificate) = (project.file("key.pem"), project.file("cert.pem"));
    let tls = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = ["--tls-port", &tls.to_string(), "--tls-auth-clients", "no"].map(str::to_owned);
    let files = [("--tls-cert-file", &certificate), ("--tls-key-file", &key), ("--tls-ca-cert-file", &certificate)];
    let files = files.iter().flat_map(|(option, file)| [(*option).to_owned(), file.display().to_string()]);
    let options: Vec<String> = options.into_iter().chain(files).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let Some(_server) = PrivateRedis::start(&options) else { return };
    project.write(".env", format!("SERVER=rediss://localhost:{tls}\n"));
    let refused = project.run(&["stats", "low"]);
    assert!(refused.stderr.contains("certificate"), "{refused:?}");
    let mut command = project.command(&["stats", "low"]);
    let output = command.env("SSL_CERT_FILE", &certificate).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // Or named in the DSN, as a file or a folder, relative to the config file's folder and not to the current one.
    std::fs::create_dir(project.file("trusted")).unwrap();
    std::fs::copy(&certificate, project.file("trusted/server.pem")).unwrap();
    for named in ["cafile]=cert.pem", "capath]=trusted"] {
        project.write("config.yaml", CONFIG.replace("/low\"", &format!("/low?ssl[{named}\"")));
        let mut command = project.command(&["--config", "../config.yaml", "stats", "low"]);
        let output = command.current_dir(project.file("trusted")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

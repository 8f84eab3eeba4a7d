//! Mail, sent to a mail server: `SendEmailMessage` as PHP writes it, and `Minutely\Mail`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Connection;

use crate::support::{Project, Run, Running, mail_server, wait_until};

const CONFIG: &str = r#"
transports:
  async: {dsn: "sqlite:q.db?queue_name=async", retry_strategy: {max_retries: 1, delay: 100}}
  failed: "sqlite:q.db?queue_name=failed"
  sync: sync://
failure_transport: failed
routing:
  Symfony\Component\Mailer\Messenger\SendEmailMessage: async
  Minutely\Mail: async
mailer: {dsn: '%env(MAILER_DSN)%', from: 'Shop <shop@example.com>', timeout: 3s, files: files}
"#;

const MAIL: &str = r#"{"to":"ada@example.com","subject":"s","text":"t"}"#;
const SYMFONY_MAIL: &str = r"Symfony\Component\Mailer\Messenger\SendEmailMessage";

/// A project and a mail server.
struct Mailing {
    project: Project,
    port: String,
    _server: Running,
}

impl Mailing {
    /// `None` where there is no mail server for tests, and the test is to be skipped.
    fn new(certificate: &[&str]) -> Option<Self> {
        let project = Project::new(CONFIG);
        fs::create_dir(project.file("files")).unwrap();
        let (server, port) = mail_server::start(&project, certificate)?;
        let mailing = Self { project, port, _server: server };
        mailing.dsn(&format!("smtp://127.0.0.1:{}", mailing.port));
        Some(mailing)
    }

    fn dsn(&self, dsn: &str) {
        self.project.write(".env", format!("MAILER_DSN={dsn}\n"));
    }

    /// Sends it during the command.
    fn send(&self, mail: &str) -> Run {
        self.project.run(&["dispatch", r"Minutely\Mail", mail, "--transport", "sync"])
    }

    fn mails(&self) -> Vec<Value> {
        mail_server::mails(&self.project)
    }

    /// Handles what is due, with retries.
    fn consume(&self, transport: &str) {
        self.project.run(&["consume", transport, "--time-limit", "2", "--move-unhandleable"]);
    }
}

/// Puts a message into the queue as PHP would.
fn insert(project: &Project, body: &str) {
    project.run(&["setup"]).succeeds();
    let url = format!("sqlite://{}", project.file("q.db").display());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let insert = sqlx::query(
            "INSERT INTO messenger_messages (body, headers, queue_name, created_at, available_at)
             VALUES (?, '[]', 'async', '2026-01-01 00:00:00', '2026-01-01 00:00:00')",
        );
        insert.bind(body).execute(&mut database).await.unwrap();
    });
}

fn php(arguments: &[&str]) -> Option<String> {
    if !Path::new("/usr/share/php/Symfony/Component/Mailer").is_dir() {
        harness::skip("Debian's php-symfony-mailer is not installed, .ci/run has its name");
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/mail.php");
    let output = Command::new("php").arg(script).args(arguments).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

fn part<'a>(mail: &'a Value, kind: &str) -> &'a Value {
    mail["parts"].as_array().unwrap().iter().find(|part| part["type"] == kind).unwrap_or_else(|| panic!("{mail}"))
}

#[test]
fn a_mail_of_symfony_arrives_with_text_html_attachments_and_headers() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let Some(email) = php(&["email"]) else { return };
    insert(&mailing.project, &email);
    insert(&mailing.project, &php(&["raw"]).unwrap());
    mailing.consume("async");
    let mails = mailing.mails();
    assert_eq!(mails.len(), 2, "{}", mailing.project.log());
    let (mail, headers) = (&mails[0], &mails[0]["headers"]);
    // As Symfony finds its envelope.
    assert_eq!(mail["from"], "bounces@example.com");
    assert_eq!(
        mail["to"],
        serde_json::json!(["ada@example.com", "bob@example.com", "c@example.com", "hidden@example.com"])
    );
    assert_eq!(headers["From"], "Shöp <shop@example.com>");
    assert_eq!(headers["To"], "ada@example.com, Bob <bob@example.com>");
    assert_eq!(headers["Subject"], "Grüße aus dem Shop");
    assert_eq!((&headers["Reply-To"], &headers["X-Custom"]), (&"answers@example.com".into(), &"välue".into()));
    assert_eq!(headers["X-Priority"], "2 (High)");
    assert!(headers["Bcc"].is_null() && headers["Return-Path"].is_null() && headers["Message-ID"].is_string());
    assert_eq!(mail["multipart"], serde_json::json!(["multipart/mixed", "multipart/alternative", "multipart/related"]));
    assert_eq!(part(mail, "text/html")["disposition"], Value::Null);
    let (html, image) = (part(mail, "text/html"), part(mail, "image/png"));
    let id = image["id"].as_str().unwrap().trim_matches(['<', '>']);
    assert!(html["text"].as_str().unwrap().contains(&format!("Hällo <img src=\"cid:{id}\">")), "{html}");
    assert_eq!(image["text"], "\u{89}PNG\u{ff}\0");
    let file = mail["parts"].as_array().unwrap().iter().find(|part| part["disposition"] == "attachment").unwrap();
    assert_eq!((&file["name"], &file["text"]), (&"ä.txt".into(), &"content of a file".into()));
    assert_eq!((&mails[1]["from"], &mails[1]["headers"]["Subject"]), (&"s@example.com".into(), &"raw".into()));
    assert_eq!(mails[1]["to"], serde_json::json!(["r@example.com"]));
}

#[test]
fn files_are_attached_from_the_folders_that_are_allowed_alone() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let project = &mailing.project;
    project.write("files/a.txt", "in the folder");
    project.write("secret.txt", "not in it");
    project.write("files/.env.local", "hidden");
    std::os::unix::fs::symlink(project.file("secret.txt"), project.file("files/link.txt")).unwrap();
    let inside = project.file("files/a.txt").display().to_string();
    for path in
        [inside.as_str(), "secret.txt", "files/link.txt", "/etc/passwd", "files/../secret.txt", "files/.env.local"]
    {
        let mail =
            serde_json::json!({"to": "ada@example.com", "subject": "s", "text": "t", "attachments": [{"path": path}]});
        project.run(&["dispatch", r"Minutely\Mail", &mail.to_string()]).succeeds();
    }
    if let Some(mail) = php(&["file", &inside]) {
        insert(project, &mail);
    }
    mailing.consume("async");
    let mails = mailing.mails();
    assert!((1..=2).contains(&mails.len()), "{}", project.log());
    assert!(mails.iter().all(|mail| mail.to_string().contains("in the folder")), "{mails:?}");
    assert_eq!(project.log().matches("in none of the folders").count(), 5, "{}", project.log());
}

/// From the first step of the tutorial to its last: synchronous, queued, retried, failed, reviewed, sent after all.
#[test]
fn a_mail_is_sent_at_once_or_queued_retried_failed_and_reviewed() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let project = &mailing.project;
    let dispatch = |to: &str, more: &[&str]| {
        let mail = format!(r#"{{"to":"{to}","subject":"Your trip","text":"booked"}}"#);
        project.run(&[&["dispatch", r"Minutely\Mail", &mail], more].concat())
    };
    dispatch("Ada <now@example.com>", &["--transport", "sync"]).succeeds();
    assert_eq!(mailing.mails()[0]["to"][0], "now@example.com");
    assert_eq!(mailing.mails()[0]["headers"]["From"], "Shop <shop@example.com>");
    for to in ["later@example.com", "busy@example.com", "nobody@example.com", "no address"] {
        dispatch(to, &[]).succeeds();
    }
    assert_eq!(mailing.mails().len(), 1);
    mailing.consume("async");
    assert_eq!(mailing.mails().len(), 2);
    assert_eq!(project.pending("failed"), 3);
    let log = project.log();
    for what in ["4.3.0 try again later", "no such user", "is no address"] {
        assert!(log.contains(what), "{what}: {log}");
    }
    assert_eq!(log.matches("retry 1").count(), 1, "only what may succeed is tried again: {log}");
    let shown = project.run(&["failed", "show"]).succeeds().stdout;
    assert!(shown.contains("4.3.0 try again later"), "{shown}");
    // The server takes it now, and the other two not even then.
    project.write("free", "");
    project.run(&["failed", "retry", "--force"]);
    let mails = mailing.mails();
    assert_eq!((mails.len(), &mails[2]["to"][0]), (3, &"busy@example.com".into()), "{}", project.log());
    let left = project.run(&["failed", "show"]).succeeds().stdout;
    assert!(left.contains("no such user") && left.contains("is no address") && !left.contains("try again"), "{left}");
}

#[test]
fn a_server_that_stops_answering_fails_the_attempt_and_not_the_worker() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let project = &mailing.project;
    project.run(&["dispatch", r"Minutely\Mail", r#"{"to":"slow@example.com","subject":"s","text":"t"}"#]).succeeds();
    let begun = Instant::now();
    project.run(&["consume", "async", "--limit", "1"]);
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(project.log().contains("has not taken it within 3 s"), "{}", project.log());
    project.write(".env", "MAILER_DSN=smtp://127.0.0.1:1\n");
    project.run(&["consume", "async", "--limit", "1", "--time-limit", "10"]);
    assert!(project.log().contains("the mail server 127.0.0.1:1"), "{}", project.log());
}

#[test]
fn a_mail_that_the_server_has_taken_is_sent_whatever_becomes_of_the_connection() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    mailing.project.write("no-quit", "");
    mailing.send(MAIL).succeeds();
    mailing.project.run(&["dispatch", r"Minutely\Mail", MAIL]).succeeds();
    mailing.project.run(&["consume", "async", "--limit", "1", "--time-limit", "20"]).succeeds();
    assert_eq!(mailing.mails().len(), 2, "{}", mailing.project.log());
    assert_eq!((mailing.project.pending("async"), mailing.project.pending("failed")), (0, 0));
}

#[test]
fn a_mail_is_not_sent_as_commands_to_a_server_that_does_not_wait_for_it() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    mailing.project.write("confused", "");
    let text = mailing.send(MAIL).exits(1).stderr;
    assert!(text.contains("answers DATA with 250 OK, which is no answer to it"), "{text}");
}

#[test]
fn refused_recipients_are_named_and_nobody_gets_the_mail() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let refused = mailing
        .send(r#"{"to":["ada@example.com","busy@example.com"],"bcc":"nobody@example.com","subject":"s","text":"t"}"#);
    let text = refused.exits(1).stderr;
    assert!(
        text.contains(
            "refuses the recipient busy@example.com: 451 4.3.0 try again later; nobody@example.com: 550 5.1.1 no such user \
             (so the other recipients do not get the mail either)"
        ),
        "{text}"
    );
    assert_eq!(mailing.mails().len(), 0);
}

#[test]
fn what_keeps_a_mail_server_and_its_dsn_apart_is_said() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let port = &mailing.port;
    // One that waits for TLS to begin says nothing at first.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    for (dsn, said) in [
        (format!("smtp://ada:hunter2@127.0.0.1:{port}"), "offers no login (PLAIN, LOGIN) without encryption"),
        (format!("smtps://127.0.0.1:{port}"), "write smtp://, or use its port for TLS"),
        (format!("smtp://127.0.0.1:{port}?require_tls=1"), "offers no encryption (STARTTLS)"),
        (format!("smtp://127.0.0.1:{silent_port}"), "if TLS begins at once at this port, write smtps://"),
    ] {
        mailing.dsn(&dsn);
        let failed = mailing.send(MAIL).exits(1);
        assert!(failed.stderr.contains(said) && !failed.stderr.contains("hunter2"), "{dsn}: {failed:?}");
    }
}

#[test]
fn parameters_of_the_dsn_have_an_effect_or_are_told() {
    let Some(mailing) = Mailing::new(&[]) else { return };
    let port = &mailing.port;
    mailing.dsn(&format!("smtp://127.0.0.1:{port}?source_ip=127.0.0.2&max_per_second=2&ping_threshold=5"));
    mailing.send(MAIL).succeeds();
    assert_eq!(mailing.mails()[0]["peer"], "127.0.0.2");
    let checked = mailing.project.run(&["config", "check"]).succeeds();
    let text = checked.stdout + &checked.stderr;
    assert!(text.contains("its parameter max_per_second has no effect here: the `rate_limiter`"), "{text}");
    assert!(text.contains("its parameter ping_threshold has no effect here"), "{text}");
    for (dsn, said) in [
        ("smtp://h?source_ip=there", "source_ip must be an IP address"),
        ("smtp://h?peer_fingerprint=ab", "peer_fingerprint is not supported"),
        ("smtp://h?max_per_secnd=1", "parameter"),
    ] {
        mailing.dsn(dsn);
        let wrong = mailing.project.run(&["config", "check"]).exits(2);
        assert!((wrong.stdout.clone() + &wrong.stderr).contains(said), "{wrong:?}");
    }
}

#[test]
fn what_is_wrong_with_a_mail_is_said_of_its_place() {
    let project = Project::new(CONFIG);
    project.write(".env", "MAILER_DSN=null://null\n");
    for (mail, said) in [
        (r#"{"to": 5}"#, "to: invalid type: integer `5`, expected an address, or a list of addresses"),
        (r#"{"to": ["a@b.c", 5]}"#, "to[1]: invalid type: integer `5`"),
        (r#"{"to": ["a@b.c", "ada"]}"#, "to[1]: \"ada\" is no address"),
        (r#"{"attachments": [{}, {"path": []}]}"#, "attachments[1].path: invalid type"),
        (r#"{"attachments": [{"text": "a", "path": "b"}]}"#, "attachments[0]: an attachment has one of"),
        (r#"{"attachments": [{"base64": "?"}]}"#, "attachments[0]: its `base64` is not base64"),
        (r#"{"too": "a@b.c"}"#, "unknown field `too`"),
    ] {
        let failed = project.run(&["dispatch", r"Minutely\Mail", mail, "--transport", "sync"]).exits(1);
        assert!(failed.stderr.contains(said), "{mail}: {failed:?}");
    }
}

#[test]
fn attachments_are_bounded_together() {
    let project = Project::new(CONFIG.replace("files: files", "files: files, max_attachments: 3K").as_str());
    project.write(".env", "MAILER_DSN=null://null\n");
    fs::create_dir(project.file("files")).unwrap();
    project.write("files/a", "a".repeat(1024));
    let send = |files: usize, text: usize| {
        let files = (0..files).map(|_| serde_json::json!({"path": "files/a"}));
        let attachments: Vec<_> = files.chain([serde_json::json!({"text": "b".repeat(text)})]).collect();
        let mail = serde_json::json!({"to": "ada@example.com", "text": "t", "attachments": attachments});
        project.run(&["dispatch", r"Minutely\Mail", &mail.to_string(), "--transport", "sync"])
    };
    send(2, 1024).succeeds();
    for (files, text) in [(2, 1025), (3, 1), (0, 4000)] {
        let refused = send(files, text).exits(1);
        assert!(refused.stderr.contains("larger than 3072 bytes together (`mailer.max_attachments`)"), "{refused:?}");
    }
}

#[test]
fn a_login_needs_tls_and_a_wrong_one_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-out"])
        .args([certificate.as_os_str(), "-keyout".as_ref(), key.as_os_str()])
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let Some(mailing) = Mailing::new(&[&certificate, &key]) else { return };
    let port = &mailing.port;
    let send = |dsn: String| {
        mailing.dsn(&dsn);
        mailing.send(MAIL)
    };
    let unknown = send(format!("smtp://ada:p%40ss%2Fword@localhost:{port}")).exits(1);
    assert!(unknown.stderr.contains("ertificate") && unknown.stderr.contains("`ca_file`"), "{unknown:?}");
    let wrong = send(format!("smtp://ada:hunter2@localhost:{port}?ca_file={certificate}")).exits(1);
    assert!(wrong.stderr.contains("535") && !wrong.stderr.contains("hunter2"), "{wrong:?}");
    send(format!("smtp://ada:p%40ss%2Fword@localhost:{port}?ca_file={certificate}")).succeeds();
    send(format!("smtp://ada:p%40ss%2Fword@localhost:{port}?verify_peer=0")).succeeds();
    let mails = mailing.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!((&mails[0]["user"], &mails[0]["tls"]), (&"ada".into(), &true.into()));
    mailing.project.write("repeat", "");
    let repeated = send(format!("smtp://ada:hunter2@localhost:{port}?ca_file={certificate}")).exits(1);
    let text = repeated.stderr + &mailing.project.log();
    assert!(text.contains("535 5.7.8 cannot AUTH PLAIN ***"), "{text}");
    for secret in ["hunter2", "AGFkYQBodW50ZXIy", "aHVudGVyMg"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn sendmail_gets_the_mail_and_its_exit_code_says_whether_it_is_tried_again() {
    let project = Project::new(CONFIG);
    project.write("sendmail", "#!/bin/sh\necho \"$@\" > arguments\ncat > mail\necho full >&2\nexit $(cat code)\n");
    let mut mode = fs::metadata(project.file("sendmail")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    fs::set_permissions(project.file("sendmail"), mode).unwrap();
    let program = project.file("sendmail").display().to_string();
    project.write(".env", format!("MAILER_DSN=sendmail://default?command={program}%20-x%20-t\n"));
    let mail = r#"{"to":["ada@example.com"],"bcc":"hidden@example.com","subject":"s","text":"t"}"#;
    let send = || project.run(&["dispatch", r"Minutely\Mail", mail, "--transport", "sync"]);
    project.write("code", "0");
    send().succeeds();
    assert_eq!(project.lines("arguments"), ["-x -i -f shop@example.com -- ada@example.com hidden@example.com"]);
    let mail = fs::read_to_string(project.file("mail")).unwrap();
    assert!(mail.contains("\nSubject: s\n") && !mail.contains("hidden@") && !mail.contains('\r'), "{mail}");
    project.write("code", "75");
    let failed = send().exits(1);
    assert!(failed.stderr.contains("exit code 75: full"), "{failed:?}");
    for (code, retried) in [("75", 1), ("67", 0)] {
        project.write("code", code);
        project.run(&["dispatch", SYMFONY_MAIL, "{}"]).succeeds();
        let mail = r#"{"to":"ada@example.com","subject":"s","text":"t"}"#;
        project.run(&["dispatch", r"Minutely\Mail", mail]).succeeds();
        let before = project.log().matches("retry 1").count();
        project.run(&["consume", "async", "--time-limit", "2"]);
        assert_eq!(project.log().matches("retry 1").count() - before, retried, "{}", project.log());
    }
    assert!(project.log().contains("no SendEmailMessage of Symfony"), "{}", project.log());
}

#[test]
fn a_sendmail_that_takes_too_long_is_ended_with_what_it_has_started() {
    let project = Project::new(CONFIG.replace("timeout: 3s", "timeout: 500ms").as_str());
    project.write("sendmail", "#!/bin/sh\nsleep 600 & echo $! > child\necho waiting >&2\nwait\n");
    fs::set_permissions(project.file("sendmail"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    project.write(".env", "MAILER_DSN=sendmail://default?command=./sendmail\n");
    let failed = project.run(&["dispatch", r"Minutely\Mail", MAIL, "--transport", "sync"]).exits(1);
    assert!(failed.stderr.contains("has not taken it within 0.5 s (`mailer.timeout`): waiting"), "{failed:?}");
    let child = fs::read_to_string(project.file("child")).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    wait_until("what sendmail has started is gone", || {
        fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
    });
}

//! `examples/axum.rs` as it is used: its server, supervisor and workers are processes of this program, which asks by HTTP
//! and looks into a mail server and a folder.

use std::env;
use std::fs::File;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::signal::Signal;

use crate::support::{Project, Running, mail_server, wait_until};

#[path = "../../examples/axum.rs"]
#[allow(unused, reason = "its own tests are run with the examples")]
mod program;

/// Set in the environment of the example's processes.
const PROGRAM: &str = "MINUTELY_TEST_AXUM";

/// Runs the example instead of tests, if the environment says so.
pub fn instead_of_tests() -> Option<ExitCode> {
    env::var_os(PROGRAM).map(|_| program::main())
}

struct Shop {
    project: Project,
    address: String,
    mail_port: String,
    _mail_server: Running,
    server: Option<Running>,
}

impl Shop {
    /// `None` where there is no mail server for tests, and the test is to be skipped.
    fn open() -> Option<Self> {
        let project = Project::new("");
        let (mail_server, mail_port) = mail_server::start(&project, &[])?;
        let mut shop = Self { project, address: String::new(), mail_port, _mail_server: mail_server, server: None };
        let serve = shop.command(&["serve", "--listen=127.0.0.1:0"]);
        shop.server = Some(Running::start(&shop.project, "server", serve));
        wait_until("the server listens", || {
            let lines = shop.project.lines("server.out");
            shop.address = lines.iter().find_map(|line| line.strip_prefix("listening on ")).unwrap_or("").to_owned();
            !shop.address.is_empty()
        });
        Some(shop)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(arguments)
            .current_dir(self.project.path())
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap())
            .env(PROGRAM, "1")
            .env("MAILER_DSN", format!("smtp://127.0.0.1:{}", self.mail_port))
            .stdin(Stdio::null());
        command
    }

    /// The status of the answer.
    fn curl(&self, arguments: &[&str], path: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "answer", "-w", "%{http_code}"]).args(arguments).arg(format!("{}{path}", self.address));
        String::from_utf8(curl.current_dir(self.project.path()).output().unwrap().stdout).unwrap()
    }

    fn sign_up(&self, address: &str) -> String {
        let body = serde_json::json!({ "address": address }).to_string();
        self.curl(&["-H", "content-type: application/json", "-d", &body], "/signups")
    }

    fn upload(&self, name: &str) -> String {
        let mut file = File::create(self.project.file("upload")).unwrap();
        image::RgbImage::new(640, 320).write_to(&mut file, image::ImageFormat::Png).unwrap();
        self.curl(&["-T", "upload"], &format!("/pictures/{name}"))
    }

    fn welcomed(&self) -> Vec<String> {
        let mails = mail_server::mails(&self.project);
        mails.iter().map(|mail| mail["to"][0].as_str().unwrap().to_owned()).collect()
    }

    fn has_thumbnail(&self, name: &str) -> bool {
        let file = self.project.file("pictures").join(name);
        image::image_dimensions(file).is_ok_and(|size| size == (64, 32))
    }

    fn is_running(&self, transport: &str) -> bool {
        self.command(&["queue", "alive", transport]).stdout(Stdio::null()).status().unwrap().success()
    }

    fn count(&self, transport: &str) -> u64 {
        let stats = self.command(&["queue", "stats", transport, "--format=json"]).output().unwrap();
        let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
        stats["transports"][transport]["count"].as_u64().unwrap()
    }
}

#[test]
fn a_web_server_does_its_work_at_once_or_queues_it_while_its_workers_run() {
    let Some(mut shop) = Shop::open() else { return };
    // Done when the answer comes.
    assert_eq!(shop.sign_up("ada@example.com"), "200");
    assert_eq!(shop.welcomed(), ["ada@example.com"]);
    assert_eq!(shop.upload("cat.png"), "200");
    assert!(shop.has_thumbnail("cat.thumb.png"));
    // What cannot be done is said to who asks, and is not kept.
    assert_eq!(shop.sign_up("nobody@example.com"), "503");
    assert_eq!((shop.count("mail"), shop.count("failed")), (0, 0));

    let supervise = shop.command(&["queue", "supervise"]);
    let mut supervisor = Running::start(&shop.project, "supervisor", supervise);
    wait_until("workers run", || shop.is_running("mail") && shop.is_running("pictures"));
    assert_eq!(shop.sign_up("bob@example.com"), "202");
    assert_eq!(shop.upload("dog.png"), "202");
    assert_eq!(shop.sign_up("nobody@example.com"), "202");
    wait_until("the mail is sent", || shop.welcomed() == ["ada@example.com", "bob@example.com"]);
    wait_until("the thumbnail is made", || shop.has_thumbnail("dog.thumb.png"));
    wait_until("what cannot be sent is kept", || shop.count("failed") == 1);

    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    assert_eq!(shop.sign_up("eve@example.com"), "200");
    let mut server = shop.server.take().unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ends(), Some(0));
}

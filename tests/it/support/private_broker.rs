//! A RabbitMQ of a test's own, with TLS, whose users log in by their certificates.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::skip;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The program itself: what is on the path changes to another user first.
const PROGRAMS: &str = "/usr/lib/rabbitmq/lib";
/// Where Erlang's nodes find each other. The first broker on a host starts the program there, which stays.
const EPMD: &str = "127.0.0.1:4369";

/// A broker on a free port. Killed when it goes.
pub struct PrivateBroker {
    port: u16,
    process: Child,
}

impl PrivateBroker {
    /// With its files in `dir`. It has this certificate and its key, trusts this authority, and knows the user `localhost`. None
    /// where it cannot be started, and the test is to be skipped.
    pub fn start(dir: &Path, [authority, certificate, key]: [&Path; 3]) -> Option<Self> {
        let Some(program) = program() else {
            skip(&format!("RabbitMQ is not installed in {PROGRAMS}"));
            return None;
        };
        if TcpStream::connect(EPMD).is_err() {
            skip(&format!("no epmd listens on {EPMD}, which a running broker has started"));
            return None;
        }
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, distribution) = (free(), free());
        let config = format!(
            "listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\nssl_options.keyfile = {}\nssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\nssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = EXTERNAL\ndefault_user = localhost\ndefault_pass = unused\n",
            authority.display(),
            certificate.display(),
            key.display()
        );
        fs::write(dir.join("rabbitmq.conf"), config).unwrap();
        fs::write(dir.join("plugins"), "[rabbitmq_auth_mechanism_ssl].\n").unwrap();
        let log = fs::File::create(dir.join("output")).unwrap();
        let mut command = Command::new(program);
        command
            .env("HOME", dir)
            .env("RABBITMQ_NODENAME", format!("minutely{}_{port}@localhost", std::process::id()))
            .env("RABBITMQ_DIST_PORT", distribution.to_string());
        for (variable, file) in [
            ("MNESIA_BASE", "mnesia"),
            ("LOG_BASE", "log"),
            ("CONFIG_FILE", "rabbitmq.conf"),
            ("ENABLED_PLUGINS_FILE", "plugins"),
            ("FEATURE_FLAGS_FILE", "flags"),
            ("PID_FILE", "pid"),
        ] {
            command.env(format!("RABBITMQ_{variable}"), dir.join(file));
        }
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut broker = Self { port, process: command.spawn().unwrap() };
        let deadline = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let is_over = broker.process.try_wait().unwrap().is_some() || Instant::now() > deadline;
            assert!(!is_over, "{}", fs::read_to_string(dir.join("output")).unwrap());
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(broker)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.process.id() as i32), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    let versions = fs::read_dir(PROGRAMS).ok()?.flatten();
    versions.map(|version| version.path().join("sbin/rabbitmq-server")).find(|program| program.exists())
}

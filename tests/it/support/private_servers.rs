//! Database servers of a test's own, to stop and start at will.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::databases::Server;

/// A server on a free port, with its data in a folder that goes with it. Killed when it goes.
pub struct PrivateServer {
    server: Server,
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
    /// Has it a certificate?
    encrypts: bool,
}

impl PrivateServer {
    /// None where the server's programs are not installed, and the test is to be skipped.
    pub fn start(server: Server) -> Option<Self> {
        let Some(programs) = programs(server) else {
            skip(&format!("{server:?} is not installed"));
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut private = Self { server, dir, port, process: None, encrypts: false };
        private.initialise(&programs);
        private.start_again();
        Some(private)
    }

    /// The URL of a database, for this login (`user` or `user:password`).
    pub fn url(&self, login: &str, database: &str) -> String {
        let scheme = if self.server == Server::Postgres { "postgres" } else { "mysql" };
        format!("{scheme}://{login}@127.0.0.1:{}/{database}", self.port)
    }

    /// The administrator's login, and a database that is always there.
    pub fn admin_url(&self) -> String {
        match self.server {
            Server::Postgres => self.url("postgres", "postgres"),
            Server::Mysql => self.url("root", "mysql"),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server at once, without a clean shutdown.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // PostgreSQL is several processes, which outlive the first when that is killed; this is its way to end all.
        let signal = if self.server == Server::Postgres { Signal::SIGQUIT } else { Signal::SIGKILL };
        let _ = kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), signal);
        process.wait().unwrap();
    }

    /// Starts it again after [`PrivateServer::kill`], and waits until it responds.
    pub fn start_again(&mut self) {
        let programs = programs(self.server).unwrap();
        let data = self.data();
        let mut command = match self.server {
            Server::Postgres => {
                let _ = fs::remove_file(data.join("postmaster.pid"));
                let mut command = as_user("postgres", &programs.join("postgres"));
                command.arg("-D").arg(&data).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
                command.arg("-k").arg(self.dir.path()).arg("-p").arg(self.port.to_string());
                if self.encrypts {
                    command.args(["-c", "ssl=on"]);
                }
                command
            }
            Server::Mysql => {
                let mut command = Command::new(programs.join("mariadbd"));
                command.arg("--no-defaults").arg("--user=root").arg(option("datadir", &data));
                command.arg(option("socket", &self.dir.path().join("socket")));
                command.arg("--bind-address=127.0.0.1").arg(format!("--port={}", self.port));
                if self.encrypts {
                    command.arg(option("ssl-cert", &data.join("server.crt")));
                    command.arg(option("ssl-key", &data.join("server.key")));
                }
                command
            }
        };
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let log = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(log.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.answers() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes PostgreSQL demand passwords from now on. At first it trusts everyone.
    pub fn ask_for_passwords(&mut self) {
        fs::write(self.data().join("pg_hba.conf"), "host all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        self.kill();
        self.start_again();
    }

    /// Offers encryption from now on. On PostgreSQL the user `encrypted` may not connect otherwise. False where
    /// there is no program to make a certificate with.
    pub fn encrypt(&mut self) -> bool {
        let (key, certificate) = (self.data().join("server.key"), self.data().join("server.crt"));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
        let Ok(output) = command.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output() else {
            skip("openssl is not installed");
            return false;
        };
        assert!(output.status.success(), "{output:?}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        if self.server == Server::Postgres {
            if let Some(id) = id_of("postgres") {
                chown(&key, Some(id), None).unwrap();
            }
            let rules = "hostssl all encrypted 127.0.0.1/32 trust\nhost all encrypted 127.0.0.1/32 reject\n\
                         host all all 127.0.0.1/32 trust\n";
            fs::write(self.data().join("pg_hba.conf"), rules).unwrap();
        }
        self.kill();
        self.encrypts = true;
        self.start_again();
        true
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn initialise(&self, programs: &Path) {
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(self.data()).unwrap();
        let mut command = match self.server {
            Server::Postgres => {
                if let Some(id) = id_of("postgres") {
                    chown(self.dir.path(), Some(id), None).unwrap();
                    chown(self.data(), Some(id), None).unwrap();
                }
                let mut command = as_user("postgres", &programs.join("initdb"));
                command.args(["-A", "trust", "-U", "postgres", "--no-sync", "--no-locale", "-E", "UTF8", "-D"]);
                command.arg(self.data());
                command
            }
            Server::Mysql => {
                let mut command = Command::new("mariadb-install-db");
                command.args(["--no-defaults", "--user=root", "--skip-test-db"]);
                command.arg("--auth-root-authentication-method=normal").arg(option("datadir", &self.data()));
                // Two installations at once are not to meet in the system's.
                command.env("TMPDIR", self.dir.path());
                command
            }
        };
        let output = command.current_dir("/").output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn answers(&self) -> bool {
        if TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            return false;
        }
        let url = self.admin_url();
        let server = self.server;
        let asked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.is_ready(&url))
        });
        asked.join().unwrap()
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where the server's programs are.
fn programs(server: Server) -> Option<PathBuf> {
    match server {
        Server::Postgres => {
            let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
            let mut folders: Vec<_> = versions.flatten().map(|version| version.path().join("bin")).collect();
            folders.sort();
            folders.into_iter().rfind(|folder| folder.join("postgres").exists())
        }
        Server::Mysql => ["/usr/sbin", "/usr/local/sbin", "/usr/bin"]
            .map(PathBuf::from)
            .into_iter()
            .find(|folder| folder.join("mariadbd").exists()),
    }
}

/// A program that refuses to run as root, for root.
fn as_user(user: &str, program: &Path) -> Command {
    if id_of(user).is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--clear-groups", "--regid", user, "--pdeathsig", "KILL"]).arg(program);
    command
}

/// A user's id. Only for root: no other user can become that user.
fn id_of(user: &str) -> Option<u32> {
    if fs::metadata("/proc/self").map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata)).ok()? != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(2)?.parse().ok()
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

//! A Redis server of a test's own, to stop and start at will.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::skip;
use redis::{Client, Connection, RedisResult};

/// A server on a free port, with its data in a folder that goes with it. What it has taken in is on the disk at once.
/// Killed when it goes.
pub struct PrivateRedis {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
    options: Vec<String>,
    /// The file of a sentinel, which it writes to.
    sentinel: Option<PathBuf>,
}

impl PrivateRedis {
    /// A sentinel, which takes the primary `main` for dead after half a second of silence.
    pub fn start_sentinel(primary: &Self) -> Option<Self> {
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n",
            primary.port
        );
        Self::start_with(Some(&settings), &[])
    }

    /// With further arguments. None where the server is not installed, and the test is to be skipped.
    pub fn start(options: &[&str]) -> Option<Self> {
        Self::start_with(None, options)
    }

    fn start_with(sentinel: Option<&str>, options: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            skip("redis-server is not installed");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        let sentinel = sentinel.map(|settings| {
            let file = dir.path().join("sentinel.conf");
            fs::write(&file, settings).unwrap();
            file
        });
        let mut server = Self { dir, port, process: None, options, sentinel };
        server.start_again();
        Some(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A Unix socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn connect(&self) -> RedisResult<Connection> {
        Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(10))
    }

    /// Ends the server at once, with nothing put in order.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts it after [`PrivateRedis::kill`], and waits until it answers.
    pub fn start_again(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(self.sentinel.as_deref());
        command.arg("--port").arg(self.port.to_string()).args(["--bind", "127.0.0.1", "--dir"]).arg(self.dir.path());
        if self.sentinel.is_some() {
            command.arg("--sentinel");
        } else {
            command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
            command.arg("--unixsocket").arg(self.socket());
        }
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let log = command.args(&self.options).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(log.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.answers() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One that asks for a password does.
    fn answers(&self) -> bool {
        match self.connect().and_then(|mut connection| redis::cmd("PING").exec(&mut connection)) {
            Ok(()) => true,
            Err(error) => error.to_string().to_lowercase().contains("authentication"),
        }
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

//! A project folder of a test's own, and the program run in it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The result of running the program.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A folder with a `config.yaml`. When it is dropped, everything that still runs in it is killed.
pub struct Project {
    dir: TempDir,
}

impl Project {
    pub fn new(config: &str) -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap() };
        project.write("config.yaml", config);
        project
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The file's lines; none if it does not exist.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// The program, to run in the folder, without the caller's environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minutely"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).output().unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--format", "json"]).collect();
        self.run(&arguments).succeeds().json()
    }

    /// Starts the program in a process group of its own, its output in `<name>.out` and `<name>.err`.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Running {
        Running::start(self, name, self.command(arguments))
    }

    /// Everything in the log under `var`.
    pub fn log(&self) -> String {
        let files = fs::read_dir(self.file("var/log")).into_iter().flatten().flatten();
        files.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default()).collect()
    }

    pub fn pending(&self, transport: &str) -> u64 {
        self.json(&["stats", transport])["transports"][transport]["count"].as_u64().unwrap()
    }

    /// The live workers' pids, according to `status`.
    pub fn workers(&self) -> Vec<i32> {
        let status = self.json(&["status"]);
        let pids = status["workers"].as_array().unwrap().iter().filter_map(|worker| worker["pid"].as_i64());
        pids.map(|pid| i32::try_from(pid).unwrap()).collect()
    }

    pub fn is_running(&self, transport: &str) -> bool {
        match self.run(&["alive", transport]).code {
            Some(0) => true,
            Some(1) => false,
            other => panic!("alive: {other:?}"),
        }
    }

    /// Processes that run in the folder.
    pub fn processes(&self) -> Vec<i32> {
        let home = fs::canonicalize(self.path()).unwrap();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&home)))
            .collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // Twice: what the first round kills may have started something meanwhile.
        for _ in 0..2 {
            for pid in self.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// A running program. Killed with its process group when it is dropped.
pub struct Running(Child);

impl Running {
    pub fn start(project: &Project, name: &str, mut command: Command) -> Self {
        let out = fs::File::create(project.file(&format!("{name}.out"))).unwrap();
        let err = fs::File::create(project.file(&format!("{name}.err"))).unwrap();
        Self(command.stdout(out).stderr(err).process_group(0).spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for the end, and returns the exit code.
    #[track_caller]
    pub fn ends(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the program ends", || {
            code = self.0.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }

    pub fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Waits for a condition; fails the test if it does not become true. Checking takes at most a third of the time, so
/// that checks that start a process leave the processor to what they wait for.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    loop {
        let look = Instant::now();
        if condition() {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        std::thread::sleep((look.elapsed() * 2).max(Duration::from_millis(20)));
    }
}

pub fn process_exists(pid: i32) -> bool {
    // A zombie is no longer a process, but only its exit code.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

//! The small Symfony application of `tests/interop/console.php`, on a store that both sides share.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Project, Run, Running};

/// Is the real Symfony Messenger here? Says so when it is not, unless nothing may be skipped.
pub fn is_here() -> bool {
    let autoload = std::path::Path::new("/usr/share/php/Symfony/Component/Messenger/autoload.php");
    let php = Command::new("php").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let here = autoload.exists() && php.is_ok_and(|status| status.success());
    if !here {
        let why = "skipped: php and Debian's php-symfony-messenger and php-symfony-*-messenger are not installed";
        assert!(std::env::var_os("MINUTELY_TEST_NO_SKIP").is_none(), "{why}");
        println!("{why}");
    }
    here
}

/// How PHP knows the store.
#[derive(Clone, Default)]
pub struct Php {
    pub transport_dsn: String,
    pub failure_dsn: String,
    pub database_url: String,
}

impl Php {
    pub fn command(&self, project: &Project, arguments: &[&str]) -> Command {
        let console: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/interop/console.php"].iter().collect();
        let mut command = Command::new("php");
        command
            .arg(console)
            .args(arguments)
            .current_dir(project.path())
            .env("TRANSPORT_DSN", &self.transport_dsn)
            .env("FAILURE_DSN", &self.failure_dsn)
            .env("DATABASE_URL", &self.database_url)
            .env("HANDLED", "handled")
            .env("MAX_RETRIES", "1")
            .env("RETRY_DELAY", "10")
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn run(&self, project: &Project, arguments: &[&str]) -> Run {
        let output = self.command(project, arguments).output().unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
        .succeeds()
    }

    pub fn start(&self, project: &Project, name: &str, arguments: &[&str]) -> Running {
        Running::start(project, name, self.command(project, arguments))
    }

    pub fn count(&self, project: &Project) -> u64 {
        self.run(project, &["count"]).stdout.trim().parse().unwrap()
    }
}

//! The small Symfony application of `tests/interop/console.php`, on a store that both sides share.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Project, Run, Running};

/// The folder of the Symfony beside the system's: `…/usr/share/php` of what `scripts/symfony-beside` unpacked.
const VARIABLE: &str = "MINUTELY_TEST_SYMFONY";

/// Which Symfony.
#[derive(Clone, Copy, Debug)]
pub enum Symfony {
    /// That of the installed packages.
    System,
    /// Another release's.
    Beside,
}

impl Symfony {
    /// None where it is not here, and the test is to be skipped.
    pub fn folder(self) -> Option<PathBuf> {
        let folder = match self {
            Self::System => PathBuf::from("/usr/share/php"),
            Self::Beside => env::var_os(VARIABLE).map_or_else(
                || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("symfony/trixie/usr/share/php"),
                PathBuf::from,
            ),
        };
        let php = Command::new("php").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let bridge = "Symfony/Component/Messenger/Bridge";
        let parts = ["Symfony/Bundle/FrameworkBundle", "Symfony/Component/Messenger", "Doctrine/Persistence"];
        let bridges = ["Amqp", "Doctrine", "Redis"].map(|name| format!("{bridge}/{name}"));
        let mut parts = parts.into_iter().chain(bridges.iter().map(String::as_str));
        if php.is_ok_and(|status| status.success()) && parts.all(|part| folder.join(part).is_dir()) {
            return Some(folder);
        }
        harness::skip(&match self {
            Self::System => {
                "PHP and Debian's packages of Symfony are not installed, .ci/run has their names".to_owned()
            }
            Self::Beside => format!(
                "no Symfony in {}; {VARIABLE} says where one is, scripts/symfony-beside brings one",
                folder.display()
            ),
        });
        None
    }
}

/// The application, and how it knows the store.
#[derive(Clone)]
pub struct Php {
    pub symfony: PathBuf,
    pub transport_dsn: String,
    pub failure_dsn: String,
    pub database_url: String,
    /// The service that writes its messages.
    pub serializer: &'static str,
    /// A file of `tests/interop` with more of the application.
    pub extension: Option<&'static str>,
}

impl Php {
    /// None where this Symfony is not here, and the test is to be skipped. The DSNs are those of `async` and `failed`.
    pub fn new(symfony: Symfony, dsns: [String; 2], database_url: &str) -> Option<Self> {
        let [transport_dsn, failure_dsn] = dsns;
        let (symfony, database_url) = (symfony.folder()?, database_url.to_owned());
        Some(Self { symfony, transport_dsn, failure_dsn, database_url, serializer: "", extension: None })
    }

    /// What the application finds in its environment, whoever starts it.
    pub fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("SYMFONY", &self.symfony)
            .env("CACHE_DIR", env!("CARGO_TARGET_TMPDIR"))
            .env("TRANSPORT_DSN", &self.transport_dsn)
            .env("FAILURE_DSN", &self.failure_dsn)
            .env("DATABASE_URL", &self.database_url)
            .env("SERIALIZER", self.serializer)
            .env("HANDLED", "handled")
            .env("MAX_RETRIES", "1")
            .env("RETRY_DELAY", "10")
            .env("EXTENSION", self.extension.map_or_else(PathBuf::new, interop))
    }

    /// The same application with Symfony's default: PHP's `serialize()`.
    pub fn serializing(&self) -> Self {
        Self { serializer: "messenger.transport.native_php_serializer", ..self.clone() }
    }

    pub fn command(&self, project: &Project, arguments: &[&str]) -> Command {
        let mut command = Command::new("php");
        command.arg(interop("console.php")).args(arguments).current_dir(project.path()).stdin(Stdio::null());
        self.environment(&mut command);
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

/// A file of `tests/interop`.
fn interop(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/interop", name].iter().collect()
}

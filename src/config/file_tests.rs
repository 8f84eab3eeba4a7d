//! The configuration as it is on disk: real files, and those that come with the program.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Autoscale, Scope, read};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

#[test]
fn the_shipped_configuration_is_valid() {
    let (config, problems) = read(&shipped("config.yaml")).unwrap();
    assert_eq!(problems.to_string(), "");
    let scale: Vec<_> = config.workers.iter().map(|worker| (worker.name.as_str(), worker.autoscale)).collect();
    let autoscale = |desired_size| Autoscale { desired_size, min: 1, max: 10, scope: Scope::Host };
    assert_eq!(scale, [("prio_high", autoscale(5)), ("prio_normal", autoscale(10)), ("prio_low", autoscale(20))]);
    assert!(config.workers.iter().all(|worker| worker.options[0] == "--time-limit=60"));
    assert_eq!(config.failure_transport.as_deref(), Some("failed"));
}

#[test]
fn the_shipped_handlers_work_in_many_processes_at_once() {
    let (config, _) = read(&shipped("config.yaml")).unwrap();
    let dir = folder(&[]);
    let body = format!("{{\"text\":\"{}\"}}", "words and words ".repeat(100));
    let mut running = Vec::new();
    for n in 0..10 {
        for words in config.handlers.values().flatten().filter_map(|handler| handler.program()) {
            let mut child = Command::new(&words[0])
                .args(&words[1..])
                .current_dir(dir.path())
                .env("MINUTELY_MESSAGE_TYPE", r"App\Message\Normal\Note")
                .env("MINUTELY_MESSAGE_ID", n.to_string())
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
            running.push(child);
        }
    }
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }

    let handled = fs::read_to_string(dir.path().join("var/handled.log")).unwrap();
    let mut ids: Vec<usize> = handled
        .lines()
        .map(|line| {
            let words: Vec<_> = line.splitn(5, ' ').collect();
            assert_eq!((words[2], words[4]), (r"App\Message\Normal\Note", body.as_str()), "no line is torn apart");
            words[3].parse().unwrap()
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..10).collect::<Vec<_>>());

    let words = fs::read_to_string(dir.path().join("var/words.log")).unwrap();
    assert!(words.lines().count() == 10 && words.lines().all(|line| line.ends_with(" 301")), "{words}");

    let archive = fs::read_dir(dir.path().join("var")).unwrap().map(|entry| entry.unwrap().path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|end| end == "gz")).unwrap();
    let unzipped = Command::new("gzip").arg("-dc").arg(archive).output().unwrap();
    let unzipped = String::from_utf8(unzipped.stdout).unwrap();
    assert_eq!(unzipped.lines().filter(|line| *line == body).count(), 10);
}

#[test]
fn the_crontab_has_one_line() {
    let crontab = fs::read_to_string(shipped("crontab.example")).unwrap();
    let lines: Vec<_> = crontab.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(lines, ["* * * * * cd /path/to/app && ./minutely cron"]);
}

#[test]
fn paths_and_env_files_are_relative_to_the_configurations_folder() {
    let dir = folder(&[
        ("app.yaml", b"transports: {a: '%env(MINUTELY_TEST_DSN)%', b: '%env(MINUTELY_TEST_OTHER)%'}\nstate_dir: s"),
        (".env", b"MINUTELY_TEST_DSN=sqlite:a.db\nMINUTELY_TEST_OTHER=sqlite:b.db\n"),
        (".env.local", b"MINUTELY_TEST_DSN='sqlite:%kernel.project_dir%/c.db'\n"),
    ]);
    let (config, problems) = read(&dir.path().join("app.yaml")).unwrap();
    assert_eq!(problems.to_string(), "");
    assert_eq!(config.transports["a"].dsn.0, format!("sqlite:{}/c.db", dir.path().display()));
    assert_eq!(config.transports["b"].dsn.0, "sqlite:b.db");
    assert_eq!(config.state_dir, dir.path().join("s"));
    assert_eq!(config.file, dir.path().join("app.yaml"));
}

#[test]
fn a_file_that_cannot_be_a_configuration_says_why() {
    let long = vec![b'#'; 2 * 1024 * 1024];
    let dir = folder(&[
        ("latin1.yaml", b"a: 1\nb: caf\xe9\n"),
        ("broken.yaml", b"transports:\n  a: [\n"),
        ("twice.yaml", b"workers: []\nworkers: []\n"),
        ("empty.yaml", b""),
        ("long.yaml", &long),
    ]);
    for (name, expected) in [
        ("none.yaml", "there is no such file (looked at "),
        ("", "is a folder, not a configuration file"),
        ("latin1.yaml", "is not UTF-8 text (line 2); save it as UTF-8"),
        ("broken.yaml", "is not valid YAML: "),
        ("twice.yaml", "is not valid YAML: \"workers\" occurs twice in one mapping at line "),
        ("empty.yaml", "the file is empty; `init` writes a first one"),
        ("long.yaml", "is longer than 1024 KiB, so it is no configuration"),
    ] {
        let path = dir.path().join(name);
        let text = read(&path).expect_err(name).to_string();
        assert!(text.starts_with(&format!("{}: {expected}", path.display())), "{name}: {text}");
    }
    let broken = read(&dir.path().join("broken.yaml")).unwrap_err().to_string();
    assert!(broken.contains("line 3 column 1"), "{broken}");
}

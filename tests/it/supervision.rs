//! The supervisor and its workers as processes.

use std::collections::BTreeSet;

use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpgid};
use serde_json::json;

use crate::support::{Project, Running, process_exists, wait_until};

/// `max: 4`, and workers that outlive a test unless it ends them.
const CONFIG: &str = r#"
failure_transport: failed
transports:
  mail: auto-fallback://mail?target=mail_queue&fallback=sync
  mail_queue: "sqlite:q.db?queue_name=mail"
  failed: "sqlite:q.db?queue_name=failed"
  sync: sync://
routing: {'*': mail}
handlers:
  Note: {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  Slow: {exec: [sh, -c, 'echo begun >> slow; while [ ! -e go ]; do sleep 0.05; done; echo done >> slow']}
workers:
  - name: mail
    transports: [mail]
    options: [--time-limit=600, --sleep=50ms]
    autoscale: {desired_size: 2, max: 4}
"#;

fn queue(project: &Project, message_type: &str, messages: usize) {
    for n in 0..messages {
        project.run(&["dispatch", message_type, &n.to_string(), "--transport=mail_queue"]).succeeds();
    }
}

/// The process groups in which handlers' shells run: one for each run of a handler. A shell that is starting a program
/// is there twice for an instant, so shells are not counted themselves.
fn handler_runs(project: &Project) -> BTreeSet<Pid> {
    let command = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let shells = project.processes().into_iter().filter(|pid| command(pid).starts_with("sh\0"));
    shells.filter_map(|pid| getpgid(Some(Pid::from_raw(pid))).ok()).collect()
}

fn pids(project: &Project) -> BTreeSet<i32> {
    project.workers().into_iter().collect()
}

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let project = Project::new(CONFIG);
    let plan = project.json(&["cron", "--dry-run"]);
    let worker = &plan["workers"][0];
    assert_eq!(worker["name"], "mail");
    assert_eq!(worker["transports"], json!(["mail"]));
    assert_eq!(
        (&worker["pending"], &worker["running"], &worker["desired"], &worker["start"]),
        (&json!(0), &json!(0), &json!(1), &json!(1))
    );
    assert!(!worker["reason"].as_str().unwrap().is_empty());
    let files: Vec<_> = std::fs::read_dir(project.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["config.yaml"]);
}

#[test]
fn the_plan_follows_the_pending_messages() {
    let project = Project::new(CONFIG);
    for (messages, desired) in [(2, 1), (1, 2), (6, 4)] {
        queue(&project, "Note", messages);
        assert_eq!(project.json(&["cron", "--dry-run"])["workers"][0]["desired"], desired);
    }
}

#[test]
fn supervise_starts_workers_and_stops_them_with_itself() {
    let project = Project::new(CONFIG);
    let mut supervisor = project.start("supervise", &["supervise"]);
    wait_until("a worker runs", || pids(&project).len() == 1);
    wait_until("it pings", || project.is_running("mail"));
    assert_eq!(project.json(&["dispatch", "Note", "1"])["outcome"], "queued");
    wait_until("the message is handled", || project.lines("handled") == ["1"]);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    assert!(project.processes().is_empty());
    assert_eq!(project.json(&["dispatch", "Note", "2"])["outcome"], "handled");
    // Also where there is no terminal: in a container, and under systemd.
    let log = project.lines("supervise.err");
    for what in ["supervising", "started a worker", "0 pending, one worker per 2", "all workers have finished"] {
        assert!(log.iter().any(|line| line.contains(what)), "{what} is not in {log:?}");
    }
    assert!(!log.iter().any(|line| line.contains("WARN") || line.contains("ERROR")), "{log:?}");
}

#[test]
fn a_second_supervisor_leaves_the_first_alone() {
    let project = Project::new(CONFIG);
    let _first = project.start("supervise", &["supervise"]);
    wait_until("the first is at work", || project.json(&["status"])["supervisor"]["running"] == true);
    let second = project.run(&["cron"]).succeeds();
    assert_eq!((second.stdout, second.stderr), (String::new(), String::new()));
}

#[test]
fn a_cron_that_starts_late_ends_in_time_for_the_next() {
    let project = Project::new(CONFIG);
    let _cron = project.start("cron", &["cron"]);
    let started = chrono::Utc::now();
    wait_until("it is at work, and has said so", || project.json(&["status"])["supervisor"]["pid"].is_number());
    let record: serde_json::Value = serde_json::from_str(&project.lines("var/supervisor.lock").concat()).unwrap();
    let until: chrono::DateTime<chrono::Utc> = serde_json::from_value(record["until"].clone()).unwrap();
    assert_eq!(until.timestamp() % 60, 55, "wherever in the minute it has started");
    assert!(until > started && until - started < chrono::TimeDelta::seconds(70));
}

#[test]
fn a_supervisor_without_progress_is_replaced() {
    let project = Project::new(CONFIG);
    let mut stuck = project.start("supervise", &["supervise"]);
    wait_until("a worker runs", || pids(&project).len() == 1);
    let worker = pids(&project);
    stuck.signal(Signal::SIGSTOP);
    let lock = std::fs::File::options().write(true).open(project.file("var/supervisor.lock")).unwrap();
    lock.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(150)).unwrap();
    let next = project.start("cron", &["cron"]);
    wait_until("the stuck one is killed", || stuck.is_over());
    wait_until("the next one is at work", || project.json(&["status"])["supervisor"]["pid"] == next.pid());
    assert_eq!(pids(&project), worker, "its worker lives on");
    let expected = format!("killed the supervisor, which made no progress, to take its place pid={}", stuck.pid());
    assert!(project.lines("cron.err").join("\n").contains(&expected) && project.log().contains(&expected));
}

/// Environment variable that makes [`sleeps_uninterruptibly`] run.
const SLEEPS: &str = "MINUTELY_TEST_SLEEPS";

/// Not a test: a supervisor that is stuck, when another test runs this program for it. It holds the lock, and starts a
/// program with `vfork`, whose first step is to open a named pipe that has no writer. Until that program is executed,
/// the kernel keeps this thread in the uninterruptible sleep (`D`) of a process that waits for a disk.
#[test]
fn sleeps_uninterruptibly() {
    if std::env::var_os(SLEEPS).is_none() {
        return;
    }
    let lock = std::fs::File::options().write(true).open("var/supervisor.lock").unwrap();
    lock.try_lock().unwrap();
    let mut open_pipe = PosixSpawnFileActions::init().unwrap();
    open_pipe.add_open(0, "pipe", OFlag::O_RDONLY, Mode::empty()).unwrap();
    posix_spawn(c"/bin/true", &open_pipe, &PosixSpawnAttr::init().unwrap(), &[c"true"], &[c"A=B"]).unwrap();
}

#[test]
fn a_supervisor_that_waits_for_a_disk_is_reported_and_not_replaced() {
    let project = Project::new(CONFIG);
    let mut first = project.start("supervise", &["supervise"]);
    wait_until("it has recorded itself", || project.json(&["status"])["supervisor"]["pid"] == first.pid());
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends(), Some(0));

    nix::unistd::mkfifo(&project.file("pipe"), Mode::S_IRWXU).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    // One test at a time runs in the program's first thread, whose state is the process's.
    command.args(["sleeps_uninterruptibly", "--test-threads=1"]).env(SLEEPS, "1").current_dir(project.path());
    let stuck = Running::start(&project, "stuck", command);
    let sleeps = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", stuck.pid())).unwrap();
        stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('D'))
    };
    wait_until("it waits for what it has started", || sleeps() && project.processes().len() == 2);

    let mut record: serde_json::Value = serde_json::from_str(&project.lines("var/supervisor.lock").concat()).unwrap();
    let mut system = sysinfo::System::new().unwrap();
    let pid = sysinfo::Pid::from_u32(stuck.pid().try_into().unwrap());
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[pid]), false);
    record["pid"] = stuck.pid().into();
    record["process_started_at"] = system.process(pid).unwrap().start_time().into();
    project.write("var/supervisor.lock", record.to_string());
    let lock = std::fs::File::options().write(true).open(project.file("var/supervisor.lock")).unwrap();
    lock.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(150)).unwrap();

    let next = project.run(&["cron"]).exits(1);
    let expected = "is not replaced: it waits for a disk or a network file system that does not answer; see to that";
    assert!(next.stderr.contains(expected) && project.log().contains(expected), "{next:?}");
    assert!(sleeps(), "it was left alone");
}

#[test]
fn two_configurations_in_one_folder_do_not_share_a_state_directory_unnoticed() {
    let project = Project::new(CONFIG);
    project.write("other.yaml", CONFIG.replace("name: mail", "name: other"));
    let first = project.start("supervise", &["supervise"]);
    wait_until("a worker runs", || pids(&project).len() == 1);
    let real = std::fs::canonicalize(project.path()).unwrap();
    let (ours, other) = (real.join("other.yaml"), real.join("config.yaml"));
    let expected = format!("is in use by another configuration, {}: give {}", other.display(), ours.display());
    let is_refused = || {
        let run = project.run(&["--config", "other.yaml", "cron"]).exits(1);
        assert!(run.stderr.contains(&expected) && project.log().contains(&expected), "{run:?}");
    };
    is_refused();
    let run = project.run(&["--config", "other.yaml", "stop-workers"]).exits(1);
    assert!(run.stderr.contains(&expected) && run.stdout.is_empty(), "{run:?}");
    let run = project.run(&["--config", "other.yaml", "status", "--format", "json"]).succeeds();
    assert!(run.stderr.starts_with("warning: ") && run.stderr.contains(&expected), "{run:?}");
    assert_eq!(run.json()["workers"][0]["definition"], "mail", "{run:?}");
    let run = project.run(&["status"]).succeeds();
    assert_eq!(run.stderr, "", "one's own is nothing to warn of");
    first.signal(Signal::SIGKILL);
    drop(first);
    is_refused();
    project.write("other.yaml", format!("{CONFIG}\nstate_dir: other\n").replace("name: mail", "name: other"));
    let _second = project.start("other", &["--config", "other.yaml", "cron"]);
    wait_until("the other one's worker runs", || project.file("other/slots/other/0").exists());
}

#[test]
fn files_with_messages_are_readable_only_by_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let project = Project::new(&CONFIG.replace("q.db", "var/q.db"));
    for folder in ["var", "var/log", "var/cache", "var/slots", "var/slots/mail"] {
        std::fs::create_dir(project.file(folder)).unwrap();
        std::fs::set_permissions(project.file(folder), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    queue(&project, "Slow", 1);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("a message is being handled", || project.lines("slow").len() == 1);
    wait_until("the worker pings", || project.is_running("mail"));
    let mut folders = vec![project.file("var")];
    let mut files = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            // Some are temporary.
            let Ok(metadata) = entry.symlink_metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry);
            } else {
                files.push((entry.strip_prefix(project.path()).unwrap().to_owned(), metadata.permissions().mode()));
            }
        }
    }
    let open: Vec<_> = files.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(open.is_empty(), "{open:?}");
    for expected in ["var/q.db", "var/q.db-wal", "var/supervisor.lock", "var/slots/mail/0", "var/log/worker-mail.log"] {
        assert!(files.iter().any(|(file, _)| file == std::path::Path::new(expected)), "{expected}: {files:?}");
    }
    for folder in ["var/log/minutely.", "var/cache/", "var/slots/mail/0."] {
        assert!(files.iter().any(|(file, _)| file.to_str().unwrap().starts_with(folder)), "{folder}: {files:?}");
    }
}

#[test]
fn max_holds_under_fifty_crons_at_once() {
    let project = Project::new(CONFIG);
    queue(&project, "Slow", 12);
    let crons: Vec<_> = (0..50).map(|n| project.start(&format!("cron{n}"), &["cron"])).collect();
    wait_until("as many as may be are at work", || project.lines("slow").len() == 4);
    // The crons that lost are gone or about to end; the workers stay.
    let at_work = pids(&project);
    assert_eq!(at_work.len(), 4);
    let begun = std::time::Instant::now();
    while begun.elapsed().as_millis() < 1500 {
        assert_eq!(pids(&project), at_work);
    }
    assert_eq!(project.lines("slow").len(), 4, "no fifth worker has begun");
    drop(crons);
    assert_eq!(pids(&project), at_work, "workers outlive their supervisor");
}

#[test]
fn a_killed_worker_is_replaced_at_the_next_tick() {
    let project = Project::new(CONFIG);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("a worker runs", || pids(&project).len() == 1);
    let first = pids(&project);
    kill(Pid::from_raw(*first.first().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("another one runs", || pids(&project).len() == 1 && pids(&project) != first);
}

#[test]
fn a_killed_workers_message_is_redelivered_at_the_next_tick() {
    let project = Project::new(CONFIG);
    queue(&project, "Slow", 1);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it is being handled", || project.lines("slow").len() == 1);
    let first = pids(&project);
    kill(Pid::from_raw(*first.first().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("it is handled again, by another worker", || project.lines("slow").len() == 2);
    assert!(pids(&project) != first);
    assert_eq!(handler_runs(&project).len(), 1, "the dead worker's program was ended before");
    project.write("go", "");
    wait_until("the message is gone", || {
        let status = project.json(&["status"]);
        let mail = status["transports"].as_array().unwrap().iter().find(|one| one["name"] == "mail").unwrap();
        mail["pending"] == 0 && mail["in_flight"] == 0
    });
}

#[test]
fn a_process_that_a_handler_started_late_is_ended_before_its_message_is_handled_again() {
    let late = "echo begun >> slow; sleep 8; sh -c 'echo late >> late; while :; do sleep 0.1; done' & wait";
    let handler = format!("handlers:\n  Late: {{exec: [sh, -c, \"{late}\"]}}");
    let project = Project::new(&CONFIG.replace("handlers:", &handler));
    queue(&project, "Late", 1);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("what the handler starts late is there", || project.lines("late").len() == 1);
    let first = handler_runs(&project);
    assert_eq!(first.len(), 1);
    kill(Pid::from_raw(*pids(&project).first().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("it is handled again", || project.lines("slow").len() == 2);
    assert!(handler_runs(&project).is_disjoint(&first), "nothing of the first time goes on");
}

#[test]
fn a_transport_that_hangs_does_not_delay_the_messages_of_others() {
    let config = r#"
transports:
  a: "sqlite:a.db"
  b: "B_DSN"
routing: {'*': a}
handlers: {Slow: {exec: [sh, -c, 'echo begun >> slow; while [ ! -e go ]; do sleep 0.05; done']}}
workers:
  - {name: both, transports: [CONSUMED], options: [--time-limit=600, --sleep=50ms, --concurrency=2], autoscale: {desired_size: 5, max: 1}}
"#;
    let config = |b: &str, consumed: &str| config.replace("B_DSN", b).replace("CONSUMED", consumed);
    let project = Project::new(&config("sqlite:b.db", "b, a"));
    for transport in ["a", "b"] {
        project.run(&["dispatch", "Slow", "1", &format!("--transport={transport}")]).succeeds();
    }
    let supervisor = project.start("first", &["supervise"]);
    wait_until("both are being handled", || project.lines("slow").len() == 2);
    supervisor.signal(Signal::SIGKILL);
    kill(Pid::from_raw(*pids(&project).first().unwrap()), Signal::SIGKILL).unwrap();

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    project.write("config.yaml", config(&format!("postgres://u@{}/db", silent.local_addr().unwrap()), "a"));
    let supervisor = project.start("second", &["supervise"]);
    wait_until("the message of the one that answers is handled again", || project.lines("slow").len() == 3);
    supervisor.signal(Signal::SIGKILL);

    project.write("config.yaml", config("sqlite:b.db", "a"));
    assert_eq!(project.pending("b"), 0);
    let _supervisor = project.start("third", &["supervise"]);
    wait_until("the other one answers again, and has its message", || project.pending("b") == 1);
}

#[test]
fn messages_of_another_consumer_are_left_to_it() {
    let project = Project::new(CONFIG);
    queue(&project, "Slow", 1);
    // A worker that no supervisor has started, like a PHP one on the same table.
    let other = project.start("other", &["consume", "mail_queue"]);
    wait_until("it is being handled", || project.lines("slow").len() == 1);
    other.signal(Signal::SIGKILL);
    let _supervisor = project.start("supervise", &["supervise", "-v"]);
    queue(&project, "Note", 1);
    wait_until("workers are at work", || project.lines("handled").len() == 1);
    let begun = std::time::Instant::now();
    wait_until("a tick has passed", || begun.elapsed().as_secs() >= 6);
    assert_eq!(project.lines("slow").len(), 1);
}

#[test]
fn a_worker_outlives_its_supervisor_and_is_adopted() {
    let project = Project::new(CONFIG);
    let supervisor = project.start("first", &["supervise"]);
    wait_until("a worker runs", || pids(&project).len() == 1);
    let worker = pids(&project);
    supervisor.signal(Signal::SIGKILL);
    drop(supervisor);
    assert!(worker.iter().all(|pid| process_exists(*pid)));
    let _second = project.start("second", &["supervise", "-v"]);
    wait_until("the second is at work", || project.json(&["status"])["supervisor"]["running"] == true);
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 2 {
        assert_eq!(pids(&project), worker);
    }
}

#[test]
fn a_lock_that_guards_the_crontab_line_is_not_handed_to_the_workers() {
    let project = Project::new(CONFIG);
    let program = env!("CARGO_BIN_EXE_minutely");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("exec 9>guard; exec {program} supervise")]).current_dir(project.path());
    let mut supervisor = command.spawn().unwrap();
    wait_until("a worker runs", || pids(&project).len() == 1);
    let holds_guard = |pid: i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|file| file.ends_with("guard"))
    };
    assert!(holds_guard(i32::try_from(supervisor.id()).unwrap()));
    wait_until("the worker is past its start", || project.is_running("mail"));
    assert!(pids(&project).iter().all(|pid| !holds_guard(*pid)));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
}

#[test]
fn any_program_can_be_a_worker() {
    let project = Project::new(
        r#"
transports: {mail: "sqlite:q.db?queue_name=mail"}
workers:
  - name: other
    transports: [mail]
    command: [sh, -c, 'echo "$@" >> arguments; exec sleep 600', worker, '{transports}', '{options}']
    options: [--sleep=3]
"#,
    );
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it runs", || project.lines("arguments").len() == 1);
    assert_eq!(project.lines("arguments"), ["mail --sleep=3 --time-limit=60"]);
    wait_until("the supervisor speaks for it", || project.is_running("mail"));
    assert_eq!(project.workers().len(), 1);
}

#[test]
fn no_worker_is_started_if_none_is_needed() {
    let project = Project::new(&CONFIG.replace("max: 4}", "max: 4, min: 0}"));
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("the supervisor promises to look again", || project.is_running("mail"));
    assert!(project.workers().is_empty());
    assert_eq!(project.json(&["dispatch", "Note", "1"])["outcome"], "queued");
    wait_until("a worker comes and handles it", || project.lines("handled") == ["1"]);
}

#[test]
fn a_missing_program_is_reported_and_others_start() {
    let project = Project::new(
        &CONFIG.replace("workers:", "workers:\n  - {name: gone, transports: [failed], command: [/nowhere/program]}"),
    );
    let mut supervisor = project.start("supervise", &["supervise"]);
    wait_until("the other worker runs", || project.workers().len() == 1);
    wait_until("it is reported", || project.lines("supervise.err").join("\n").contains("/nowhere/program"));
    supervisor.signal(Signal::SIGTERM);
    supervisor.ends();
}

#[test]
fn an_unwritable_state_directory_is_reported() {
    let project = Project::new(&format!("{CONFIG}\nstate_dir: config.yaml/var\n"));
    let run = project.run(&["cron"]).exits(1);
    assert!(run.stderr.contains("config.yaml/var"), "{run:?}");
}

#[test]
fn workers_can_be_turned_off() {
    let project = Project::new("transports: {mail: \"sqlite:q.db\"}\nworkers: []\n");
    let run = project.run(&["cron"]).succeeds();
    assert_eq!((run.stdout, run.stderr), (String::new(), String::new()));
}

#[test]
fn explain_says_what_was_decided_and_what_is_in_the_way() {
    let project = Project::new(CONFIG);
    let before = project.json(&["explain", "mail"]);
    let in_the_way = |explained: &serde_json::Value| explained["workers"][0]["in_the_way"].as_array().unwrap().clone();
    assert_eq!(in_the_way(&before), ["no supervisor has looked within the last hour: is the crontab line in place?"]);
    queue(&project, "Slow", 1);
    let mut supervisor = project.start("supervise", &["supervise"]);
    wait_until("a worker has the message", || !project.lines("slow").is_empty());
    queue(&project, "Slow", 8);
    wait_until("there are as many workers as there may be", || pids(&project).len() == 4);
    let explained = project.json(&["explain", "mail"]);
    let worker = &explained["workers"][0];
    assert_eq!((&worker["name"], &worker["desired"], &worker["running"]), (&json!("mail"), &json!(3), &json!(4)));
    assert_eq!(in_the_way(&explained), Vec::<String>::new());
    assert_eq!(worker["would_change"], json!(["4 workers are wanted from 7 pending messages on"]));
    let started: u64 = worker["ticks"].as_array().unwrap().iter().map(|tick| tick["started"].as_u64().unwrap()).sum();
    assert_eq!((started, &explained["damaged"]), (4, &json!(0)));
    let text = project.run(&["explain"]).succeeds().stdout;
    assert!(
        text.contains("8 or more pending, one worker per 2: max 4 wanted, 1 running, 3 to start (started 3)"),
        "{text}"
    );
    project.write("go", "");
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
}

#[test]
fn explain_tells_of_workers_that_end_at_once() {
    let project = Project::new(&CONFIG.replace("options: [", "command: ['false']\n    options: ["));
    let mut supervisor = project.start("supervise", &["supervise"]);
    let says_so = || project.run(&["explain"]).stdout.contains("workers end within seconds of their start");
    wait_until("enough workers have ended", says_so);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
}

#[test]
fn explain_suggests_a_worker_definition_for_a_name_that_is_none() {
    let run = Project::new(CONFIG).run(&["explain", "mial"]).exits(2);
    assert!(run.stderr.contains("mail"), "{}", run.stderr);
}

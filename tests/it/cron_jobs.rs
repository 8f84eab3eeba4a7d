//! Scheduled jobs as processes.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Project, process_exists, wait_until};

/// A job that runs this shell script.
fn script(name: &str, schedule: &str, script: &str, further: &str) -> String {
    format!("  - {{name: {name}, schedule: '{schedule}', command: [sh, -c, '{script}'], {further}}}\n")
}

fn project(jobs: &[String]) -> Project {
    Project::new(&format!("cron:\n{}", jobs.concat()))
}

fn job(project: &Project, name: &str) -> Value {
    let jobs = project.json(&["cron", "list"]);
    jobs.as_array().unwrap().iter().find(|job| job["name"] == name).unwrap().clone()
}

#[test]
fn a_job_runs_when_it_is_due_and_its_runs_are_kept() {
    let project = project(&[script("tick", "every 1s", "echo hello; echo ran >> ran", "")]);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it has run three times", || project.lines("ran").len() >= 3);
    wait_until("a run is recorded", || job(&project, "tick")["runs"][1]["result"] == "succeeded");
    let tick = job(&project, "tick");
    assert_eq!((&tick["interval"], &tick["schedule"]), (&"every 1s".into(), &"every second".into()));
    let run = &tick["runs"][1];
    assert_eq!((&run["exit_code"], &run["output"]), (&0.into(), &"hello".into()));
    assert!(tick["next_run"].is_string() && run["duration"].as_f64().is_some_and(|seconds| seconds < 30.0));
    assert!(project.log().contains("hello job=\"tick\""), "{}", project.log());
    assert!(!project.lines("supervise.err").iter().any(|line| line.contains("hello")));
    assert_eq!(project.json(&["status"])["jobs"][0]["name"], "tick");
    let shown = project.run(&["cron", "list"]).succeeds().stdout;
    assert!(shown.contains("every second") && shown.contains("succeeded"), "{shown}");
}

#[test]
fn a_failed_job_is_told_with_its_name_and_output_and_a_good_one_is_not() {
    let bad = script("bad", "every 1s", "echo the disk is full >&2; exit 3", "");
    let project = project(&[bad, script("good", "every 1s", "echo fine", "")]);
    let _cron = project.start("cron", &["cron"]);
    wait_until("both have run", || project.log().contains("fine"));
    wait_until("it is told", || project.lines("cron.err").iter().any(|line| line.contains("the disk is full")));
    let told = project.lines("cron.err").join("\n");
    assert!(told.contains("error: job bad failed: exit code 3 (started at "), "{told}");
    assert!(told.contains("\n    the disk is full") && !told.contains("fine"), "{told}");
    assert!(project.log().contains("failed: exit code 3 job=\"bad\""), "{}", project.log());
    assert!(project.file("var/job-reports").read_dir().unwrap().count() < 3, "what was told is removed");
    let run = job(&project, "bad")["last_run"].clone();
    assert!(run["result"] == "failed" || run["result"] == "running", "{run}");
}

#[test]
fn a_slow_job_outlives_its_supervisor_and_is_not_started_twice() {
    let slow = "echo begun >> begun; while [ ! -e go ]; do sleep 0.05; done; echo too late; exit 1";
    let project = project(&[script("slow", "every 1s", slow, ""), script("tick", "every 1s", "echo ran >> ran", "")]);
    let mut first = project.start("first", &["supervise"]);
    wait_until("it has begun", || project.lines("begun").len() == 1);
    let pid = job(&project, "slow")["last_run"]["pid"].as_i64().unwrap();
    let ran = project.lines("ran").len();
    wait_until("the other one runs meanwhile", || project.lines("ran").len() > ran + 1);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends(), Some(0));
    assert!(process_exists(i32::try_from(pid).unwrap()));
    let _second = project.start("second", &["supervise"]);
    let ran = project.lines("ran").len();
    wait_until("the second one is at work", || project.lines("ran").len() > ran + 2);
    assert_eq!((project.lines("begun").len(), job(&project, "slow")["running"].clone()), (1, true.into()));
    project.run(&["cron", "run", "slow"]).exits(1);
    project.write("go", "");
    wait_until("its end is told by the second", || project.lines("second.err").join("").contains("job slow failed"));
    assert!(project.lines("second.err").iter().any(|line| line.trim() == "too late"));
    wait_until("it is run again", || project.lines("begun").len() > 1);
}

#[test]
fn a_job_that_takes_too_long_is_ended_with_all_that_it_has_started() {
    let hang = "sleep 300 & echo $! > child; wait";
    let project = project(&[script("hang", "every 1h", hang, "timeout: 500ms")]);
    let run = project.run(&["cron", "run", "hang"]).exits(1);
    assert!(run.stderr.contains("failed: timed out after 500ms"), "{run:?}");
    let child: i32 = project.lines("child")[0].parse().unwrap();
    wait_until("its child is gone", || !process_exists(child));
    assert_eq!(job(&project, "hang")["last_run"]["result"], "failed");
}

#[test]
fn a_run_that_is_killed_leaves_nothing_running_is_told_and_blocks_nothing() {
    let slow = "echo $$ >> begun; while [ ! -e go ]; do sleep 0.05; done";
    let project = project(&[script("slow", "every 1s", slow, "")]);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it has begun", || {
        job(&project, "slow")["last_run"]["pid"].is_number() && project.lines("begun").len() == 1
    });
    let program: i32 = project.lines("begun")[0].parse().unwrap();
    let runner = job(&project, "slow")["last_run"]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(runner).unwrap()), Signal::SIGKILL).unwrap();
    wait_until("the program is ended", || !process_exists(program));
    wait_until("it is run again", || project.lines("begun").len() == 2);
    wait_until("it is told", || project.lines("supervise.err").join("").contains("job slow failed: it was killed"));
    let killed = |run: &Value| run["pid"] == runner && run["result"] == "interrupted";
    assert!(job(&project, "slow")["runs"].as_array().unwrap().iter().any(killed));
    let told = project.lines("supervise.err").join("\n");
    assert!(!told.contains("WARN") && told.matches("was killed, or").count() == 1, "once: {told}");
    project.write("go", "");
}

#[test]
fn a_run_by_hand_that_is_killed_leaves_nothing_running_before_the_next_one() {
    let slow = "echo $$ >> begun; while [ ! -e go ]; do sleep 0.05; done";
    let project = project(&[script("slow", "@yearly", slow, "")]);
    for n in 0..2 {
        let by_hand = project.start("by-hand", &["cron", "run", "slow"]);
        wait_until("it has begun", || project.lines("begun").len() == n + 1);
        let programs = project.lines("begun");
        let earlier = programs[..n].iter().filter(|pid| process_exists(pid.parse().unwrap()));
        assert_eq!(earlier.count(), 0, "it runs twice at once");
        by_hand.signal(Signal::SIGKILL);
    }
    let program: i32 = project.lines("begun")[1].parse().unwrap();
    assert!(process_exists(program));
    project.write("config.yaml", "cron: []");
    let mut cron = project.start("cron", &["cron"]);
    assert_eq!(cron.ends(), Some(0));
    assert!(!process_exists(program), "also when the job is removed");
    let told: Vec<String> = project.lines("cron.err").into_iter().filter(|line| !line.starts_with(' ')).collect();
    assert!(told.len() == 2 && told.iter().all(|line| line.contains("job slow failed: it was killed")), "{told:?}");
}

#[test]
fn a_run_whose_configuration_is_broken_at_the_moment_is_given_back() {
    let project = project(&[script("tick", "every 1s", "echo ran >> ran", "")]);
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it runs", || !project.lines("ran").is_empty());
    project.write("config.yaml", "cron: {");
    let told = "its process could not begin (exit code 2; see ";
    wait_until("it is told", || project.lines("supervise.err").iter().any(|line| line.contains(told)));
    let told = project.lines("supervise.err").join("\n");
    assert!(told.contains("log/jobs.log); it is tried again in the next minute"), "{told}");
}

#[test]
fn a_job_may_dispatch_a_message() {
    let project = Project::new(
        r#"
handlers: {'App\Note': {exec: [sh, -c, 'cat >> handled; echo >> handled']}}
cron: [{name: note, schedule: every 1s, dispatch: {type: App\Note, body: {days: 30, tags: [a]}}}]
"#,
    );
    let _supervisor = project.start("supervise", &["supervise"]);
    wait_until("it is handled", || {
        project.lines("handled").first().is_some_and(|line| line == r#"{"days":30,"tags":["a"]}"#)
    });
}

#[test]
fn a_job_dispatches_on_the_bus_that_it_names() {
    let project = Project::new(
        r#"
default_bus: command.bus
buses: {command.bus: {}, event.bus: {}}
handlers:
  'App\Note':
    - {exec: [sh, -c, 'echo command >> handled'], bus: command.bus}
    - {exec: [sh, -c, 'echo event >> handled'], bus: event.bus}
cron: [{name: note, schedule: daily, dispatch: {type: App\Note, bus: event.bus}}]
"#,
    );
    project.run(&["cron", "run", "note"]).succeeds();
    assert_eq!(project.lines("handled"), ["event"]);
}

#[test]
fn several_hosts_run_each_due_time_once_and_one_that_is_killed_leaves_no_gap() {
    let shared = tempfile::tempdir().unwrap();
    let dir = shared.path().display();
    let config = format!(
        "cache: 'file:{dir}/cache'\ncron:\n{}",
        script("tick", "every 1s", &format!("echo $MINUTELY_JOB_DUE >> {dir}/due"), "overlap: allow, catch_up: all")
    );
    let hosts = [Project::new(&config), Project::new(&config)];
    let dues = || {
        let text = fs::read_to_string(shared.path().join("due")).unwrap_or_default();
        text.lines().map(|line| chrono::DateTime::parse_from_rfc3339(line).unwrap().timestamp()).collect::<Vec<_>>()
    };
    let mut supervisors = hosts.each_ref().map(|host| host.start("supervise", &["supervise"]));
    wait_until("both have run some", || dues().len() >= 5);
    supervisors[0].signal(Signal::SIGKILL);
    supervisors[0].ends();
    let count = dues().len();
    wait_until("the other one goes on", || dues().len() >= count + 4);
    supervisors[1].signal(Signal::SIGTERM);
    supervisors[1].ends();
    // Those that run still may write.
    let begun = Instant::now();
    let missing = || {
        let dues: BTreeSet<i64> = dues().into_iter().collect();
        (*dues.first().unwrap()..=*dues.last().unwrap()).filter(|second| !dues.contains(second)).collect::<Vec<_>>()
    };
    while !missing().is_empty() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // A run that was taken by the host in the moment of its death is lost: one at most.
    assert!(missing().len() <= 1, "{:?}", dues());
    let unique: BTreeSet<i64> = dues().into_iter().collect();
    assert_eq!(unique.len(), dues().len(), "{:?}", dues());
}

#[test]
fn run_runs_a_job_at_once_and_exits_as_it_went() {
    let skip = script("skip", "@yearly", "exit 75", "");
    let hello = script("hello", "@yearly", "echo $GREETING $MINUTELY_JOB", "environment: {GREETING: hello}");
    let project = project(&[skip, hello, script("bad", "@yearly", "exit 1", "")]);
    assert_eq!(project.run(&["cron", "run", "hello"]).succeeds().stdout, "hello hello\n");
    project.run(&["cron", "run", "skip"]).succeeds();
    assert_eq!(job(&project, "skip")["last_run"]["result"], "skipped itself");
    project.run(&["cron", "run", "bad"]).exits(1);
    let unknown = project.run(&["cron", "run", "helo"]).exits(2);
    assert!(unknown.stderr.contains("unknown job \"helo\", did you mean \"hello\"?"), "{unknown:?}");
}

#[test]
fn a_program_that_may_not_be_executed_is_told_with_what_to_do() {
    let project = Project::new("cron:\n  - {name: plain, schedule: daily, command: [./plain.sh]}\n");
    project.write("plain.sh", "#!/bin/sh\n");
    let run = project.run(&["cron", "run", "plain"]).exits(1);
    assert!(run.stderr.contains("cannot be started in ") && run.stderr.contains("try `chmod +x`"), "{run:?}");
}

#[test]
fn force_starts_all_jobs_now() {
    let project = project(&[script("a", "@yearly", "echo a >> ran", ""), script("b", "@yearly", "echo b >> ran", "")]);
    let _cron = project.start("cron", &["cron", "--force"]);
    wait_until("both have run", || project.lines("ran").len() == 2);
    wait_until("both are recorded", || {
        ["a", "b"].iter().all(|name| job(&project, name)["last_run"]["result"] == "succeeded")
    });
}

#[test]
fn a_job_after_boot_runs_once() {
    let project = project(&[
        script("boot", "@reboot", "echo booted >> booted", ""),
        script("tick", "every 1s", "echo >> ran", ""),
    ]);
    for n in 1..3 {
        let mut supervisor = project.start("supervise", &["supervise"]);
        let ran = project.lines("ran").len();
        wait_until("jobs are run", || project.lines("ran").len() > ran + 1);
        supervisor.signal(Signal::SIGTERM);
        supervisor.ends();
        assert_eq!(project.lines("booted").len(), 1, "supervisor {n}");
    }
}

#[test]
fn next_shows_what_runs_next() {
    let project = Project::new(
        "cron:
  - {name: early, schedule: 0 3 * * *, timezone: Asia/Tokyo, command: ['true']}
  - {name: late, schedule: 0 4 * * *, timezone: Asia/Tokyo, command: ['true']}",
    );
    let runs = project.json(&["cron", "next", "-n", "3"]);
    let runs = runs.as_array().unwrap();
    assert_eq!(runs.len(), 3);
    assert!(runs.iter().all(|run| run["time"].as_str().unwrap().ends_with(":00:00Z")));
    assert!(runs[0]["time"].as_str() < runs[1]["time"].as_str() && runs[0]["name"] != runs[1]["name"]);
    let shown = project.run(&["cron", "next", "-n", "1"]).succeeds().stdout;
    assert!(shown.contains(":00:00 +09:00"), "{shown}");
}

#[test]
fn everything_wrong_with_jobs_is_found_at_once() {
    let project = Project::new(
        r#"
cron:
  - {name: a, schedule: 61 * * * *, command: [a]}
  - {name: a, schedule: daily, command: [./missing]}
  - {name: b, schedule: 0 0 30 2 *, command: [b], timezone: Mars}
  - {name: c, schedule: dialy, command: [c], overlap: maybe}
  - {name: d, schedule: daily}
  - {name: e, schedule: daily, command: [e], dispatch: {type: E}}
  - {name: f, schedule: daily, dispatch: {type: F}, environment: {A: b}}
  - {name: g/h, schedule: daily, command: [g]}
  - {schedule: daily, command: [h], timeout: 0}
  - {name: i, schedule: daily, command: php i}
"#,
    );
    let told = project.run(&["config", "check"]).exits(2).stderr;
    for expected in [
        "cron[0].schedule: minute: \"61\" cannot be read; 0 to 59 is possible",
        "cron[1].name: \"a\" is the name of cron[0] already",
        "cron[1].command[0]: ",
        "cron[2].timezone: unknown time zone \"Mars\"",
        "cron[3].schedule: \"dialy\" is no schedule; did you mean \"daily\"?",
        "cron[3].overlap: must be one of skip, allow, queue",
        "cron[4]: `command`, `dispatch` or `http` is missing",
        "cron[5].dispatch: stands beside `command`",
        "cron[6].environment: belongs to a `command`",
        "cron[7].name: must be a name",
        "cron[8]: `name` is missing",
        "cron[8].timeout: must be more than 0",
        "cron[9].command: must be a list, because no shell takes it apart: [php, i]",
    ] {
        assert!(told.contains(expected), "{expected} is not in {told}");
    }
}

#[test]
fn a_message_that_nothing_takes_is_doubtful() {
    let project = Project::new("cron: [{name: a, schedule: daily, dispatch: {type: App\\Note}}]");
    let told = project.run(&["config", "check"]).succeeds();
    let expected =
        "cron[0].dispatch.type: messages of type \"App\\Note\" are not routed, and there is no handler for them";
    assert!(told.stderr.contains(expected), "{told:?}");
    assert!(told.stdout.contains("1 scheduled job"), "{told:?}");
}

#[test]
fn alive_tells_whether_cron_runs_and_since_when_it_does_not() {
    let project = project(&[]);
    let never = project.run(&["alive", "cron"]).exits(1);
    assert_eq!(never.stdout, "cron is not running: it was not seen within a day\n");
    assert!(!project.file("var").exists(), "asking creates nothing");
    let project = Project::new(
        "transports: {mail: 'sqlite:q.db'}\nworkers: [{transports: [mail], autoscale: {desired_size: 1, min: 0, max: 1}}]\n",
    );
    let mut supervisor = project.start("supervise", &["supervise"]);
    wait_until("it is seen", || project.run(&["alive", "cron", "-q"]).code == Some(0));
    let status = project.json(&["status"])["cron"].clone();
    assert_eq!((&status["running"], &status["hosts"][0]["kind"]), (&true.into(), &"supervise".into()));
    assert_eq!(status["hosts"][0]["here"], true);
    // One that finds it at work.
    project.run(&["cron"]).succeeds();
    let hosts = project.json(&["alive", "cron"])["hosts"].clone();
    let cron = hosts.as_array().unwrap().iter().find(|host| host["kind"] == "cron").unwrap();
    assert!(cron["running"] == true && cron["age"].as_u64().unwrap() < 60, "{hosts}");
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    let hosts = project.json(&["alive", "cron"])["hosts"].clone();
    let supervise = hosts.as_array().unwrap().iter().find(|host| host["kind"] == "supervise").unwrap();
    assert_eq!(supervise["running"], false, "{hosts}");
    let shown = project.run(&["status"]).succeeds().stdout;
    assert!(shown.contains("cron is running: `cron` was last seen here "), "{shown}");
    assert!(shown.contains("  not running: `supervise` was last seen here "), "{shown}");
}

#[test]
fn a_cron_that_is_broken_off_leaves_transports_running_that_the_next_one_looks_at() {
    let config = "transports: {sync: 'sync://', mail: 'auto-fallback://mail?target=queue&fallback=sync', queue: 'sqlite:q.db'}\n\
         routing: {Note: mail}\nhandlers: {Note: [{exec: [cat]}]}\n\
         workers: [{transports: [mail], autoscale: {desired_size: 1, min: 0, max: 1}}]\n";
    let project = Project::new(config);
    assert_eq!(project.json(&["dispatch", "Note", "1"])["outcome"], "handled", "cron was never there");
    let mut cron = project.start("cron", &["cron"]);
    wait_until("it promises to look again", || project.is_running("mail"));
    cron.signal(Signal::SIGTERM);
    assert_eq!(cron.ends(), Some(0));
    assert!(project.workers().is_empty() && project.is_running("mail"), "without a worker");
    assert_eq!(project.json(&["dispatch", "Note", "2"])["outcome"], "queued");
    assert_eq!(project.json(&["alive", "cron"])["running"], true);
}

#[test]
fn a_dry_run_shows_which_jobs_are_due_and_changes_nothing() {
    let slow = "echo begun >> begun; while [ ! -e go ]; do sleep 0.05; done";
    let project = project(&[
        script("slow", "every 1s", slow, "overlap: queue"),
        script("tick", "every 1s", "echo ran >> ran", ""),
        script("rare", "@yearly", "true", ""),
        script("boot", "@reboot", "true", ""),
    ]);
    let due = |project: &Project| project.json(&["cron", "--dry-run"])["jobs"].as_array().unwrap().clone();
    let new = due(&project);
    assert_eq!((new.len(), &new[0]["name"], &new[0]["start"]), (1, &"boot".into(), &true.into()), "{new:?}");
    assert!(!project.file("var").exists());
    let mut supervisor = project.start("supervise", &["supervise"]);
    wait_until("they run", || project.lines("ran").len() > 1 && project.lines("begun").len() == 1);
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.ends(), Some(0));
    wait_until("both are due again", || due(&project).len() == 2);
    wait_until("the last run of one is over", || due(&project)[1]["start"] == true);
    let due = due(&project);
    assert_eq!((&due[0]["name"], &due[0]["start"]), (&"slow".into(), &false.into()), "{due:?}");
    assert_eq!(due[0]["why"], "it waits for the run that goes on");
    assert_eq!((&due[1]["name"], &due[1]["why"]), (&"tick".into(), &Value::Null), "{due:?}");
    let ran = project.lines("ran").len();
    let shown = project.run(&["cron", "--dry-run"]).succeeds().stdout;
    assert!(shown.contains("No workers are defined.") && shown.contains("it waits for the run"), "{shown}");
    assert_eq!((project.lines("ran").len(), project.lines("begun").len()), (ran, 1));
    project.write("go", "");
}

#[test]
fn a_reader_that_reads_nothing_does_not_hold_up_the_run() {
    use std::io::Read;
    use std::process::Stdio;

    // More than a pipe holds.
    let project = project(&[script("much", "@yearly", "yes 123456789 | head -c 300000; sleep 300", "timeout: 2s")]);
    let mut run =
        project.command(&["cron", "run", "much"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("it times out, and is over", || {
        project.file("var").exists() && job(&project, "much")["last_run"]["result"] == "failed"
    });
    wait_until("the job may run again", || job(&project, "much")["running"] == false);
    assert!(run.try_wait().unwrap().is_none(), "what it has printed is kept for the reader");
    let mut printed = String::new();
    run.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!((printed.lines().count(), run.wait().unwrap().code()), (30_000, Some(1)));
}

#[test]
fn a_run_whose_output_nobody_reads_can_be_stopped() {
    let project = project(&[script("much", "@yearly", "yes 123456789 | head -c 300000", "")]);
    let mut command = project.command(&["cron", "run", "much"]);
    let mut run = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    wait_until("it is over", || {
        project.file("var").exists() && job(&project, "much")["last_run"]["result"] == "succeeded"
    });
    kill(Pid::from_raw(i32::try_from(run.id()).unwrap()), Signal::SIGTERM).unwrap();
    wait_until("it ends", || run.try_wait().unwrap().is_some());
}

#[test]
fn a_time_zone_of_the_environment_that_is_none_is_told() {
    let project = project(&[script("early", "5 4 * * *", "true", "")]);
    let with = |zone: &str, arguments: &[&str]| {
        let output = project.command(arguments).env("TZ", zone).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let told = with("Europe/Wien", &["config", "check"]);
    let expected =
        "cron[0].timezone: is missing, and the environment variable TZ is \"Europe/Wien\", which is no time zone";
    assert!(told.contains(expected) && told.contains("did you mean \"Europe/"), "{told}");
    let told = with("Asia/Kathmandu", &["config", "check"]);
    assert!(!told.contains("TZ"), "{told}");
    assert!(with("Asia/Kathmandu", &["cron", "list"]).contains("04:05:00 +05:45"));
    project.write("config.yaml", "cron: [{name: a, schedule: daily, timezone: UTC, command: ['true']}]");
    assert!(!with("Europe/Wien", &["config", "check"]).contains("TZ"), "no job needs it");
}

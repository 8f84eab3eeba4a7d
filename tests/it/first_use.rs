//! Using the program for the first time, and calling it from other programs.

use std::process::Command;

use serde_json::json;

use crate::support::{Project, Run, Running, wait_until};

const CONFIG: &str = r#"
failure_transport: failed
transports:
  sync: sync://
  mail: auto-fallback://mail?target=mail_queue&fallback=sync
  also_mail: auto-fallback://also_mail?target=mail_queue&fallback=sync
  mail_queue: "sqlite:q.db?queue_name=mail"
  prio_high: "sqlite:q.db?queue_name=high"
  failed: "sqlite:q.db?queue_name=failed"
routing:
  'App\Mail': mail
  'App\AsyncMessage': mail_queue
interfaces:
  'App\Report': ['App\AsyncMessage', 'App\Loggable']
  'App\Urgent': Contao\CoreBundle\Messenger\Message\HighPriorityMessageInterface
handlers:
  'App\Mail': {exec: [sh, -c, 'cat >> handled; echo >> handled']}
  'App\Loggable': {exec: [sh, -c, 'cat >> logged; echo >> logged']}
workers: []
"#;

fn empty_folder() -> Project {
    let project = Project::new("");
    std::fs::remove_file(project.file("config.yaml")).unwrap();
    project
}

/// Runs a line as a person would type it, or cron would run it.
fn shell(project: &Project, line: &str) -> Command {
    let mut command = Command::new("sh");
    let path = std::env::var_os("PATH").unwrap();
    command.args(["-c", line]).current_dir(project.path()).env_clear().env("PATH", path);
    command
}

fn run(mut command: Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn following_the_advice_of_init_leads_to_a_handled_message() {
    let project = empty_folder();
    let steps = project.run(&["init"]).succeeds().stdout;
    let line = |what: &str| steps.lines().map(str::trim).find(|line| line.contains(what)).expect(what).to_owned();

    run(shell(&project, &line(" config check"))).succeeds();
    let output = run(shell(&project, &line(" dispatch "))).succeeds();
    assert!(output.stdout.contains("handled now"), "{output:?}");
    assert_eq!(project.lines("var/handled.log").len(), 1);
    let output = run(shell(&project, &line("cat "))).succeeds();
    assert!(output.stdout.contains(r#"App\Message\High\Note"#) && output.stdout.contains("Hello"), "{output:?}");

    let crontab = line("* * * * * ");
    let _cron = Running::start(&project, "cron", shell(&project, crontab.trim_start_matches("* * * * * ")));
    wait_until("workers of all three priorities run", || {
        ["prio_high", "prio_normal", "prio_low"].iter().all(|name| project.is_running(name))
    });
    let output = run(shell(&project, &line(" dispatch "))).succeeds();
    assert!(output.stdout.contains("queued on prio_high_queue"), "{output:?}");
    wait_until("a worker has handled it", || project.lines("var/handled.log").len() == 2);
    let output = run(shell(&project, &line(" status"))).succeeds();
    assert!(output.stdout.contains("prio_high (prio_high_queue)"), "{output:?}");
    assert_eq!(project.lines("cron.err"), Vec::<String>::new());
}

#[test]
fn init_does_not_overwrite_a_file() {
    let project = Project::new("# mine\n");
    let output = project.run(&["init"]).exits(2);
    assert!(output.stderr.contains("config.yaml is there already"), "{output:?}");
    assert_eq!(project.lines("config.yaml"), ["# mine"]);
    let output = project.run(&["init", "--config", "no/such/folder.yaml"]).exits(1);
    assert!(output.stderr.contains("no/such/folder.yaml cannot be written"), "{output:?}");
    let output = project.run(&["init", "-q", "--config", "other.yaml"]).succeeds();
    assert_eq!((output.stdout, output.stderr), (String::new(), String::new()));
    project.run(&["config", "check", "--config", "other.yaml"]).succeeds();
}

#[test]
fn without_a_configuration_the_error_says_how_to_begin() {
    let project = empty_folder();
    for command in [&["status"][..], &["cron"], &["dispatch", "A"], &["config", "check"]] {
        let output = project.run(command).exits(2);
        assert!(output.stderr.contains("minutely init"), "{output:?}");
    }
    let output = project.run(&[]).exits(2);
    assert!(output.stderr.contains("minutely init") && output.stderr.contains("dispatch"), "{output:?}");
    assert_eq!(std::fs::read_dir(project.path()).unwrap().count(), 0);
}

#[test]
fn quiet_commands_print_nothing_on_success() {
    let project = Project::new(CONFIG);
    for command in [
        &["dispatch", r"App\Mail", "1"][..],
        &["setup"],
        &["stop-workers"],
        &["config", "check"],
        &["consume", "mail", "--time-limit=100ms"],
        &["stats"],
        &["status"],
        &["debug"],
        &["cron", "--dry-run"],
        &["cron"],
        &["supervise"],
    ] {
        let output = project.run(&[command, &["-q"]].concat()).succeeds();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "{command:?}");
    }
    let output = project.run(&["alive", "mail", "-q"]).exits(1);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    let output = project.run(&["dispatch", "Nobody", "-q"]).exits(1);
    assert!(output.stderr.contains("no handler"), "{output:?}");
}

#[test]
fn a_worker_ends_with_its_counts() {
    let project = Project::new(CONFIG);
    for n in ["1", "2", "3"] {
        project.run(&["dispatch", r"App\Mail", n, "--transport=mail_queue"]).succeeds();
    }
    let counts = project.json(&["consume", "mail", "--limit=3"]);
    let expected = json!({
        "handled": 3, "failed": 0, "reason": "message_limit", "message": "the message limit is reached",
    });
    assert_eq!(counts, expected);
    let counts = project.json(&["consume", "mail", "--time-limit=100ms"]);
    assert_eq!((&counts["handled"], &counts["reason"]), (&json!(0), &json!("time_limit")));
}

#[test]
fn an_alias_and_its_target_are_one_queue() {
    let project = Project::new(CONFIG);
    project.run(&["dispatch", r"App\Mail", "1", "--transport=mail_queue"]).succeeds();
    let status = project.json(&["status"]);
    let queues: Vec<_> =
        status["transports"].as_array().unwrap().iter().map(|one| (&one["name"], &one["also"])).collect();
    let expected = [
        (json!("sync"), json!([])),
        (json!("mail"), json!(["also_mail", "mail_queue"])),
        (json!("prio_high"), json!([])),
        (json!("failed"), json!([])),
    ];
    assert_eq!(queues, expected.iter().map(|(name, also)| (name, also)).collect::<Vec<_>>());
    assert_eq!(status["transports"][1]["pending"], 1);
    let text = project.run(&["status"]).succeeds().stdout;
    assert_eq!(text.lines().filter(|line| line.contains("mail")).count(), 1, "{text}");
    assert!(text.contains("mail (also_mail, mail_queue)"), "{text}");
}

#[test]
fn a_type_is_routed_and_handled_by_its_interfaces() {
    let project = Project::new(CONFIG);
    assert_eq!(project.json(&["dispatch", r"App\Report", "1"])["queued_on"], "mail_queue");
    project.run(&["consume", "mail", "--limit=1"]).succeeds();
    assert_eq!(project.lines("logged"), ["1"]);
    // Nothing in the file routes the priorities' interfaces.
    assert_eq!(project.json(&["dispatch", r"App\Urgent", "2"])["queued_on"], "prio_high");
    let known = project.json(&["debug", r"App\Report"]);
    let expected = json!({"messages": [{
        "type": r"App\Report", "interfaces": [r"App\AsyncMessage", r"App\Loggable"], "transports": ["mail_queue"],
        "handlers": ["exec sh -c 'cat >> logged; echo >> logged'"],
        "handler_options": [{
            "handler": "exec sh -c 'cat >> logged; echo >> logged'", "from_transport": [], "priority": 0, "bus": null,
        }],
    }], "jobs": []});
    assert_eq!(known, expected);
    let all = project.run(&["debug"]).succeeds().stdout;
    assert!(all.contains(r"App\Urgent") && all.contains("HighPriorityMessageInterface"), "{all}");
}

#[test]
fn contaos_crontab_line_and_configuration_are_understood() {
    let project = Project::new(include_str!("../fixtures/contao.yaml"));
    project.write(".env", "DATABASE_URL=sqlite:///%kernel.project_dir%/data.db\n");
    let output = project.run(&["config", "check"]).succeeds();
    for expected in [
        "contao.messenger.workers[0]: is not started",
        "contao.messenger.workers[2]: is not started",
        "add `command: php bin/console messenger:consume {transports} {options}`",
    ] {
        assert!(output.stderr.contains(expected), "{expected} is not in:\n{}", output.stderr);
    }
    let plan = project.json(&["contao:cron", "--dry-run"]);
    assert_eq!(plan["workers"].as_array().unwrap().iter().filter(|worker| worker["start"] == 0).count(), 3, "{plan}");

    // With a handler here, there is nothing to warn of: what Symfony writes by default is read.
    let handlers = "handlers: {'*': {exec: [cat]}}\n";
    project.write("config.yaml", format!("{handlers}{}", include_str!("../fixtures/contao.yaml")));
    let output = project.run(&["config", "check"]).succeeds();
    assert_eq!(output.stderr, "");

    // With the line, neither.
    let worker = "-\n                command: php bin/console messenger:consume {transports} {options}\n";
    project.write(
        "config.yaml",
        include_str!("../fixtures/contao.yaml")
            .replace("-\n                # Read", &format!("{worker}                # Read")),
    );
    let output = project.run(&["config", "check"]).succeeds();
    assert_eq!(output.stderr, "");
}

//! Reads `cron`: the jobs that run by a schedule. What the schedules say is checked in `schedule`.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexMap;
use serde_json::Value;

use super::definition::{Definition, Kind, Missing, Setting};
use super::handlers::read_program;
use super::routes::check_type;
use super::section::{Node, Reader, join};
use super::workers::read_name;
use super::{CatchUp, JobAction, JobConfig, JobScope, Overlap, Secret};

/// The key `cron`.
pub(super) const CRON: Definition = Definition {
    default: Missing::Value("[]"),
    ..Definition::new("cron", Kind::List(&Kind::Section(JOB)), "jobs that run by a schedule: see [cron](cron.md)")
};

const JOB: &[Definition] = &[
    NAME,
    SCHEDULE,
    COMMAND,
    DISPATCH,
    TIMEZONE,
    SCOPE,
    TIMEOUT.definition,
    OVERLAP.definition,
    CATCH_UP.definition,
    JITTER.definition,
    ENVIRONMENT,
];

const NAME: Definition = Definition::new(
    "name",
    Kind::Text("text"),
    "the name in `cron list`, in the log and in mails; its last runs are kept by it",
)
.required()
.example("backup");
const SCHEDULE: Definition = Definition::new(
    "schedule",
    Kind::Text("text"),
    "when it runs: `hourly`, `every 90s`, `at 2026-12-24 18:00`, or a crontab expression",
)
.required()
.example("daily, or 5 4 * * 1");
const COMMAND: Definition = Definition::new(
    "command",
    Kind::List(&Kind::Text("text")),
    "a program to run and its arguments, as a list; no shell reads them",
)
.or("none: `dispatch`");
const DISPATCH: Definition =
    Definition::new("dispatch", Kind::Section(MESSAGE), "a message to dispatch; it is routed like any other")
        .or("none: `command`");
const MESSAGE: &[Definition] = &[TYPE, BODY];
const TYPE: Definition =
    Definition::new("type", Kind::Text("type"), "the message's type").required().example(r"App\Message\CleanUp");
const BODY: Definition = Definition::new("body", Kind::Anything, "the message, written as YAML").or("`{}`");
const TIMEZONE: Definition =
    Definition::new("timezone", Kind::Text("text"), "the time zone of the schedule, such as `Europe/Vienna`")
        .or("the system's");
const SCOPE: Definition = Definition::new(
    "scope",
    Kind::OneOrMore(&Kind::Choice(&["cli", "web"])),
    "what runs it: `cron` and `supervise` (`cli`), or requests to `POST /cron` (`web`)",
)
.or("both");
const TIMEOUT: Setting<Option<Duration>> =
    Setting::duration("timeout", "", "how long it may run; then it is ended with all that it has started").optional();
const OVERLAP: Setting<String> = Setting::choice(
    "overlap",
    &["skip", "allow", "queue"],
    "skip",
    "when it is due while it still runs: leave that run out, run both at once, or run it afterwards",
);
const CATCH_UP: Setting<String> = Setting::choice(
    "catch_up",
    &["once", "all", "none"],
    "once",
    "when runs were missed, because nothing ran here: run once, once for each, or not at all",
);
const JITTER: Setting<Duration> =
    Setting::duration("jitter", "0", "runs are late by up to this much, each by another time");
const ENVIRONMENT: Definition =
    Definition::new("environment", Kind::Map(&Kind::Text("text")), "further environment variables of the program");

/// A later run would often meet the next one.
const LONGEST_JITTER: Duration = Duration::from_secs(86_400);

/// All jobs.
pub(super) fn read_jobs(node: Node, reader: &mut Reader) -> Vec<JobConfig> {
    let items = node.items("a list of jobs, or [] for none", reader).unwrap_or_default();
    let jobs: Vec<JobConfig> = items.into_iter().filter_map(|item| read_one(item, reader)).collect();
    let mut names: HashMap<&str, &str> = HashMap::new();
    for job in &jobs {
        if let Some(other) = names.insert(&job.name, &job.path) {
            reader.error(&join(&job.path, "name"), format!("\"{}\" is the name of {other} already", job.name));
        }
    }
    jobs
}

fn read_one(node: Node, reader: &mut Reader) -> Option<JobConfig> {
    let mut section = node.section(JOB, "a mapping with `name`, `schedule` and `command` or `dispatch`", reader)?;
    let path = section.path.clone();
    let name = section.require(&NAME, reader).and_then(|node| read_name(&node, reader));
    let schedule = section.require(&SCHEDULE, reader).and_then(|node| node.text("a schedule, such as daily", reader));
    let timezone = section.take("timezone").map(|node| node.filled_text("a time zone, such as Europe/Vienna", reader));
    let scope = section.take("scope").map(|node| read_scope(node, reader)).unwrap_or_default();
    let timeout = section.take("timeout").and_then(|node| {
        let timeout: Duration = node.read(&TIMEOUT.definition, reader)?;
        if timeout.is_zero() {
            reader.error(&node.path, "must be more than 0; leave it out to let the job take as long as it likes");
        }
        Some(timeout)
    });
    let overlap = match section.get(&OVERLAP, reader).as_str() {
        "allow" => Overlap::Allow,
        "queue" => Overlap::Queue,
        _ => Overlap::Skip,
    };
    let catch_up = match section.get(&CATCH_UP, reader).as_str() {
        "all" => CatchUp::All,
        "none" => CatchUp::None,
        _ => CatchUp::Once,
    };
    let jitter = section.get(&JITTER, reader);
    if jitter > LONGEST_JITTER {
        reader.error(&join(&path, "jitter"), "must not be more than 24h");
    }
    let environment = section.take("environment");
    let action = match (section.take("command"), section.take("dispatch")) {
        (Some(command), None) => {
            let environment = environment.map(|node| read_environment(node, reader)).unwrap_or_default();
            read_program(command, reader).map(|command| JobAction::Command { command, environment })
        }
        (None, Some(message)) => {
            if let Some(environment) = environment {
                reader.error(&environment.path, "belongs to a `command`; a message has no environment");
            }
            read_message(message, reader)
        }
        (None, None) => {
            reader.error(&path, "`command` or `dispatch` is missing: the program to run, or the message to dispatch");
            None
        }
        (Some(_), Some(dispatch)) => {
            reader.error(&dispatch.path, "stands beside `command`; a job has one of the two");
            None
        }
    };
    let timezone = match timezone {
        None => None,
        Some(read) => Some(read?),
    };
    Some(JobConfig {
        name: name?,
        path,
        schedule: schedule?,
        timezone,
        action: action?,
        scope,
        timeout,
        overlap,
        catch_up,
        jitter,
    })
}

fn read_scope(node: Node, reader: &mut Reader) -> JobScope {
    const EXPECTED: &str = "cli, web, or [cli, web]";
    let path = node.path.clone();
    let Some(items) = node.items_or_one(EXPECTED, reader) else { return JobScope::default() };
    if items.is_empty() {
        reader.error(&path, format!("is empty, so that nothing would run the job; it must be {EXPECTED}"));
        return JobScope::default();
    }
    let mut scope = JobScope { cli: false, web: false };
    for item in items {
        match item.text(EXPECTED, reader).as_deref() {
            Some("cli") => scope.cli = true,
            Some("web") => scope.web = true,
            Some(_) => drop(item.mismatch::<()>(EXPECTED, reader)),
            None => {}
        }
    }
    scope
}

fn read_message(node: Node, reader: &mut Reader) -> Option<JobAction> {
    let mut section =
        node.section(MESSAGE, r"a message, such as {type: App\Message\CleanUp, body: {days: 30}}", reader)?;
    let body = section.take("body");
    let message_type = section.require(&TYPE, reader).and_then(|node| {
        let message_type = node.filled_text("a message's type", reader)?;
        check_type(&message_type, &node.path, reader);
        Some(message_type)
    });
    let body = match body {
        None => Value::Object(serde_json::Map::new()),
        Some(node) => {
            let path = node.path.clone();
            match serde_json::to_value(node.tree(reader)?) {
                Ok(body) => body,
                Err(error) => {
                    reader.error(&path, format!("cannot be written as JSON: {error}"));
                    return None;
                }
            }
        }
    };
    Some(JobAction::Dispatch { message_type: message_type?, body })
}

fn read_environment(node: Node, reader: &mut Reader) -> IndexMap<String, Secret> {
    let mut environment = IndexMap::new();
    for (name, node) in node.entries("a mapping of names to texts", reader).unwrap_or_default() {
        if name.is_empty() || name.contains(['=', '\0']) {
            reader.error(&node.path, "must be the name of an environment variable, without = in it");
        }
        if let Some(value) = node.text("text", reader) {
            environment.insert(name, Secret(value));
        }
    }
    environment
}

//! Reads `cron`: the jobs that run by a schedule. What the schedules say is checked in `schedule`.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexMap;
use serde_json::Value;

use super::buses::read_bus_name;
use super::definition::{Definition, Kind, Missing, Setting};
use super::env::Environment;
use super::environments::Origins;
use super::handlers::read_program;
use super::http_request::{REQUEST, read_request};
use super::placeholder::Placeholders;
use super::problem::{Problem, Problems};
use super::routes::check_type;
use super::section::{Node, Reader, join};
use super::workers::read_name;
use super::{BusesConfig, CatchUp, Config, JobAction, JobConfig, JobScope, Overlap, Secret};

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
    HTTP,
    TIMEZONE,
    SCOPE,
    TIMEOUT.definition,
    OVERLAP.definition,
    CATCH_UP.definition,
    JITTER.definition,
    ENVIRONMENT,
];

/// What a job does, each by its key.
const ACTIONS: [Definition; 3] = [COMMAND, DISPATCH, HTTP];

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
.or("none: `dispatch` or `http`");
const DISPATCH: Definition =
    Definition::new("dispatch", Kind::Section(MESSAGE), "a message to dispatch; it is routed like any other")
        .or("none: `command` or `http`");
const HTTP: Definition = Definition::new("http", REQUEST, "a URL to request; any other answer than 2xx is a failure")
    .or("none: `command` or `dispatch`");
const MESSAGE: &[Definition] = &[TYPE, BODY, BUS];
const TYPE: Definition =
    Definition::new("type", Kind::Text("type"), "the message's type").required().example(r"App\Message\CleanUp");
const BODY: Definition = Definition::new("body", Kind::Anything, "the message, written as YAML").or("`{}`");
const BUS: Definition = Definition::new("bus", Kind::Text("bus"), "dispatches it on this bus").or("`default_bus`");
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
    Setting::duration("timeout", "", "how long it may run; then it is ended with all that it has started")
        .or("none; 5m for `http`");
/// A server that does not answer must not keep the process of a run for ever.
const HTTP_TIMEOUT: Duration = Duration::from_secs(300);
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

/// Adds a job that is a function of the application to those of the configuration.
pub(crate) fn add_job(name: &str, settings: serde_yaml::Mapping, config: &mut Config, problems: &mut Problems) {
    let path = format!("job {}", name.escape_debug());
    let environment = Environment::load(&config.dir, std::env::vars_os(), &mut Problems::new(""));
    let placeholders = Placeholders::new(&environment, &config.dir);
    let mut reader =
        Reader { placeholders, dir: &config.dir, problems: Problems::new(&problems.file), origins: Origins::default() };
    let mut settings = settings;
    settings.insert("name".into(), name.into());
    let job = read_one(Node::new(&path, settings.into()), true, &config.buses, &mut reader);
    let mut found = reader.problems;
    if let Some(other) = config.jobs.iter().find(|other| other.name == name) {
        let why = format!("{} has this name already; give one of them another", other.path);
        found.push(Problem::error(&path, why));
    }
    problems.list.extend(found.list);
    config.jobs.extend(job);
}

/// All jobs.
pub(super) fn read_jobs(node: Node, buses: &BusesConfig, reader: &mut Reader) -> Vec<JobConfig> {
    let items = node.items("a list of jobs, or [] for none", reader).unwrap_or_default();
    let jobs: Vec<JobConfig> = items.into_iter().filter_map(|item| read_one(item, false, buses, reader)).collect();
    let mut names: HashMap<&str, &str> = HashMap::new();
    for job in &jobs {
        if let Some(other) = names.insert(&job.name, &job.path) {
            reader.error(&join(&job.path, "name"), format!("\"{}\" is the name of {other} already", job.name));
        }
    }
    jobs
}

fn read_one(node: Node, is_function: bool, buses: &BusesConfig, reader: &mut Reader) -> Option<JobConfig> {
    let mut section =
        node.section(JOB, "a mapping with `name`, `schedule` and `command`, `dispatch` or `http`", reader)?;
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
    let given: Vec<_> = ACTIONS.iter().filter_map(|key| Some((key.name, section.take(key.name)?))).collect();
    let action = if is_function {
        only_settings(given.into_iter().map(|(_, node)| node).chain(environment), reader)
    } else {
        read_action(given, environment, &path, buses, reader)
    };
    let timeout = timeout.or(matches!(action, Some(JobAction::Http(_))).then_some(HTTP_TIMEOUT));
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

/// A function has no action besides itself.
fn only_settings(others: impl Iterator<Item = Node>, reader: &mut Reader) -> Option<JobAction> {
    others.for_each(|other| reader.error(&other.path, "means nothing for a job that is a function"));
    Some(JobAction::Function)
}

/// What a job does: one of [`ACTIONS`].
fn read_action(
    mut given: Vec<(&str, Node)>,
    environment: Option<Node>,
    path: &str,
    buses: &BusesConfig,
    reader: &mut Reader,
) -> Option<JobAction> {
    if given.is_empty() {
        let what = "the program to run, the message to dispatch, or the URL to request";
        reader.error(path, format!("`command`, `dispatch` or `http` is missing: {what}"));
        return None;
    }
    for (_, more) in &given[1..] {
        reader.error(&more.path, format!("stands beside `{}`; a job has one of them", given[0].0));
    }
    let is_alone = given.len() == 1;
    let (key, node) = given.swap_remove(0);
    if key != COMMAND.name
        && is_alone
        && let Some(environment) = &environment
    {
        reader.error(&environment.path, format!("belongs to a `command`; `{key}` has no environment"));
    }
    let action = match key {
        "dispatch" => read_message(node, buses, reader),
        "http" => read_request(node, reader).map(JobAction::Http),
        _ => {
            let environment = environment.map(|node| read_environment(node, reader)).unwrap_or_default();
            read_program(node, reader).map(|command| JobAction::Command { command, environment })
        }
    };
    action.filter(|_| is_alone)
}

fn read_message(node: Node, buses: &BusesConfig, reader: &mut Reader) -> Option<JobAction> {
    let mut section =
        node.section(MESSAGE, r"a message, such as {type: App\Message\CleanUp, body: {days: 30}}", reader)?;
    let body = section.take("body");
    let bus = section.take("bus").map(|node| read_bus_name(&node, buses, reader));
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
    // One that does not exist has been reported.
    let bus = bus.map_or(Some(None), |bus| bus.map(Some))?;
    Some(JobAction::Dispatch { message_type: message_type?, body, bus })
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

//! Reads `handlers`: what handles messages.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use indexmap::IndexMap;

use super::buses::read_bus_name;
use super::consume_options::parse_size;
use super::definition::{Definition, Kind, Setting, UNBOUNDED};
use super::http_request::{CALL, read_call};
use super::routes::check_pattern;
use super::section::{Node, Reader, Section};
use super::transports::Declared;
use super::{BatchConfig, BusesConfig, ExecConfig, HandlerAction, HandlerConfig, HttpRequest, StreamConfig};

/// The key `handlers`.
pub(super) const HANDLERS: Definition = Definition::new(
    "handlers",
    Kind::Map(&Kind::OneOrMore(&Kind::Either(&[Kind::Choice(&[BUILTIN_TEXT]), Kind::Section(HANDLER)]))),
    "what handles a message, by type or wildcard",
);

const HANDLER: &[Definition] = &[
    EXEC,
    STREAM,
    HTTP,
    CONSOLE,
    BUILTIN.definition,
    TIMEOUT.definition,
    MAX_MESSAGES.definition,
    MAX_MEMORY,
    BATCH,
    FROM_TRANSPORT,
    BUS,
    PRIORITY.definition,
];

/// What handles the message, each by its key.
const ACTIONS: [Definition; 5] = [EXEC, STREAM, HTTP, CONSOLE, BUILTIN.definition];

const EXEC: Definition = Definition::new(
    "exec",
    Kind::List(&Kind::Text("text")),
    "a program that is started for each message, and its arguments, as a list",
)
.or("none: `stream`, `http`, `console` or `builtin`")
.example("[php, bin/handle.php]");
const STREAM: Definition = Definition::new(
    "stream",
    Kind::List(&Kind::Text("text")),
    "a program that stays, and gets each message as a line: see [stream programs](stream.md)",
)
.or("none")
.example("[php, bin/worker.php]");
const HTTP: Definition = Definition::new("http", CALL, "a URL that each message is sent to").or("none");
const CONSOLE: Definition = Definition::new(
    "console",
    Kind::List(&Kind::Text("text")),
    r"for `Symfony\Component\Console\Messenger\RunCommandMessage`: the program that runs the message's command",
)
.or("none")
.example("[php, bin/console]");
const BUILTIN: Setting<bool> = Setting::flag(
    "builtin",
    "false",
    "runs what a message of Symfony's says: see [built-in handlers](handlers.md#built-in-handlers)",
);
const BUILTIN_TEXT: &str = "builtin";
const TIMEOUT: Setting<Option<Duration>> =
    Setting::duration("timeout", "", "how long a message may take").or("none; 1m for `http` and webhooks");
#[cfg(feature = "http")]
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_MESSAGES: Setting<Option<u64>> = Setting::whole(
    "max_messages",
    1,
    UNBOUNDED,
    "",
    "with `stream`: after so many messages, another process takes the program's place",
)
.optional();
const MAX_MEMORY: Definition = Definition::new(
    "max_memory",
    Kind::Text("size"),
    "with `stream`: the same, when it uses more memory than this after a message",
)
.example("128M");
const BATCH: Definition = Definition::new(
    "batch",
    Kind::Section(BATCH_KEYS),
    "with `exec`, `stream` and `http`: the program or server gets several messages at once",
);
const BATCH_KEYS: &[Definition] = &[SIZE.definition, WAIT.definition];
const SIZE: Setting<u64> = Setting::whole("size", 1, 10_000, "10", "at most so many");
const WAIT: Setting<Duration> =
    Setting::duration("wait", "1s", "how long the first waits for others; only while the worker expects more");
const FROM_TRANSPORT: Definition = Definition::new(
    "from_transport",
    Kind::OneOrMore(&Kind::Text("transport")),
    "handles only messages that were received from this transport, or from one of these",
)
.or("all");
const BUS: Definition = Definition::new("bus", Kind::Text("bus"), "handles only messages on this bus").or("all");
const PRIORITY: Setting<f64> = Setting::number(
    "priority",
    -HIGHEST_PRIORITY,
    HIGHEST_PRIORITY,
    "0",
    "a whole number; a message's handlers are called from the highest to the lowest",
);
const HIGHEST_PRIORITY: f64 = 1_000_000.0;

const FORM: &str = "a handler such as `exec: [php, bin/handle.php]`, or a list of handlers";

/// The messages of Symfony that are handled here without further ado.
const RUN_COMMAND: &str = r"Symfony\Component\Console\Messenger\RunCommandMessage";
const RUN_PROCESS: &str = r"Symfony\Component\Process\Messenger\RunProcessMessage";
const PING_WEBHOOK: &str = r"Symfony\Component\HttpClient\Messenger\PingWebhookMessage";

/// The handlers of each type or wildcard, in the order of the file.
pub(super) fn read_handlers(
    entries: IndexMap<String, Node>,
    transports: &Declared,
    buses: &BusesConfig,
    reader: &mut Reader,
) -> IndexMap<String, Vec<HandlerConfig>> {
    let mut handlers = IndexMap::new();
    for (pattern, node) in entries {
        check_pattern(&pattern, &node.path, reader);
        let path = node.path.clone();
        let items = node.items_or_one(FORM, reader).unwrap_or_default();
        if items.is_empty() {
            reader.error(&path, format!("must be {FORM}, and is empty"));
        }
        let read = items.into_iter().filter_map(|item| read_one(&pattern, item, transports, buses, reader)).collect();
        handlers.insert(pattern, read);
    }
    handlers
}

fn read_one(
    pattern: &str,
    node: Node,
    transports: &Declared,
    buses: &BusesConfig,
    reader: &mut Reader,
) -> Option<HandlerConfig> {
    if node.shown() == format!("\"{BUILTIN_TEXT}\"") {
        let action = builtin(pattern, &node.path, None, reader)?;
        return Some(HandlerConfig { action, from_transports: Vec::new(), bus: None, priority: 0, batch: None });
    }
    let mut section = node.section(HANDLER, FORM, reader)?;
    let path = section.path.clone();
    let from_transports = read_from_transport(&mut section, transports, reader);
    let bus = section.take("bus").and_then(|node| read_bus_name(&node, buses, reader));
    let priority = read_priority(&mut section, reader);
    let timeout = read_timeout(&mut section, reader);
    let worn = ["max_messages", "max_memory"].map(|key| section.take(key));
    let batch = section.take("batch");
    let given: Vec<_> = ACTIONS.iter().filter_map(|key| Some((key.name, section.take(key.name)?))).collect();
    if given.is_empty() {
        reader.error(&path, "what handles the message is missing: `exec`, `stream`, `http`, `console` or `builtin`");
        return None;
    }
    for (_, more) in &given[1..] {
        reader.error(&more.path, format!("stands beside `{}`; a handler has one of them", given[0].0));
    }
    let is_alone = given.len() == 1;
    let (key, node) = given.into_iter().next()?;
    if key != STREAM.name {
        for node in worn.iter().flatten() {
            reader.error(&node.path, format!("belongs to `stream`; with `{key}` there is no program that stays"));
        }
    }
    if let Some(node) = batch.as_ref().filter(|_| ![EXEC.name, STREAM.name, HTTP.name].contains(&key)) {
        reader.error(&node.path, format!("belongs to `exec`, `stream` or `http`; `{key}` gets one message at a time"));
    }
    let batch = batch.and_then(|node| {
        let mut section = node.section(BATCH_KEYS, "a mapping such as {size: 50, wait: 1s}", reader)?;
        let (size, wait) = (section.get(&SIZE, reader), section.get(&WAIT, reader));
        Some(BatchConfig { size: usize::try_from(size).unwrap_or(usize::MAX), wait })
    });
    let action = match key {
        "stream" => read_stream(node, timeout, worn, reader),
        "http" => read_call(node, reader).and_then(|request| http(request, timeout)),
        "console" => {
            let (path, console) = (node.path.clone(), read_program(node, reader)?);
            if pattern != RUN_COMMAND {
                reader.error(&path, format!("runs the commands of {RUN_COMMAND}, and is for that type alone"));
            }
            Some(HandlerAction::Console { console, timeout })
        }
        "builtin" => match node.read::<bool>(&BUILTIN.definition, reader)? {
            true => builtin(pattern, &node.path, timeout, reader),
            false => {
                reader.error(&node.path, "handles nothing; leave the whole entry out");
                None
            }
        },
        _ => read_program(node, reader).map(|exec| HandlerAction::Exec(ExecConfig { exec, timeout })),
    };
    let action = action.filter(|_| is_alone)?;
    Some(HandlerConfig { action, from_transports, bus, priority, batch })
}

fn read_stream(
    node: Node,
    timeout: Option<Duration>,
    worn: [Option<Node>; 2],
    reader: &mut Reader,
) -> Option<HandlerAction> {
    let [max_messages, max_memory] = worn;
    let max_messages = max_messages.and_then(|node| node.read(&MAX_MESSAGES.definition, reader));
    let max_memory = max_memory.and_then(|node| {
        let text = node.text("a size, such as 128M", reader)?;
        parse_size(&text).map_err(|why| reader.error(&node.path, why)).ok()
    });
    let program = read_program(node, reader)?;
    Some(HandlerAction::Stream(StreamConfig { program, timeout, max_messages, max_memory }))
}

/// The handler that is here for one of Symfony's messages.
fn builtin(pattern: &str, path: &str, timeout: Option<Duration>, reader: &mut Reader) -> Option<HandlerAction> {
    match pattern {
        RUN_PROCESS => Some(HandlerAction::RunProcess { timeout }),
        PING_WEBHOOK => {
            let action = webhook(timeout);
            if action.is_none() {
                reader.error(path, "HTTP is not in this build: build minutely with its cargo feature `http`");
            }
            action
        }
        RUN_COMMAND => {
            reader.error(path, "needs the program that runs the command: write `console: [php, bin/console]` instead");
            None
        }
        _ => {
            reader.error(path, format!("there is none for this type; there are for {RUN_PROCESS} and {PING_WEBHOOK}"));
            None
        }
    }
}

#[cfg(feature = "http")]
#[allow(clippy::unnecessary_wraps, reason = "without the feature there is none")]
fn http(request: HttpRequest, timeout: Option<Duration>) -> Option<HandlerAction> {
    Some(HandlerAction::Http { request, timeout: timeout.unwrap_or(HTTP_TIMEOUT) })
}

#[cfg(feature = "http")]
#[allow(clippy::unnecessary_wraps, reason = "without the feature there is none")]
fn webhook(timeout: Option<Duration>) -> Option<HandlerAction> {
    Some(HandlerAction::PingWebhook { timeout: timeout.unwrap_or(HTTP_TIMEOUT) })
}

#[cfg(not(feature = "http"))]
fn http(_: HttpRequest, _: Option<Duration>) -> Option<HandlerAction> {
    None
}

#[cfg(not(feature = "http"))]
fn webhook(_: Option<Duration>) -> Option<HandlerAction> {
    None
}

fn read_timeout(section: &mut Section, reader: &mut Reader) -> Option<Duration> {
    let node = section.take("timeout")?;
    let timeout: Duration = node.read(&TIMEOUT.definition, reader)?;
    if timeout.is_zero() {
        reader.error(&node.path, "must be more than 0; leave it out to let the handler take as long as it likes");
    }
    Some(timeout)
}

fn read_from_transport(section: &mut Section, transports: &Declared, reader: &mut Reader) -> Vec<String> {
    const EXPECTED: &str = "the name of a transport, or a list of such names";
    let Some(node) = section.take("from_transport") else { return Vec::new() };
    let path = node.path.clone();
    let items = node.items_or_one(EXPECTED, reader).unwrap_or_default();
    if items.is_empty() {
        reader.error(&path, "is empty, so that it would handle nothing; leave it out for messages of all transports");
    }
    items.iter().filter_map(|item| transports.name(item, reader)).collect()
}

fn read_priority(section: &mut Section, reader: &mut Reader) -> i32 {
    let Some(node) = section.take("priority") else { return 0 };
    let priority: f64 = node.read(&PRIORITY.definition, reader).unwrap_or_default();
    if priority.fract() != 0.0 {
        reader.error(&node.path, "must be a whole number");
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is within bounds that fit")]
    let priority = priority as i32;
    priority
}

/// A program and its arguments, as a list.
pub(super) fn read_program(node: Node, reader: &mut Reader) -> Option<Vec<String>> {
    if !node.is_list() {
        let words = node.text("a list, such as [php, bin/handle.php]", reader)?;
        let list = shell_words::split(&words).unwrap_or_default().join(", ");
        // The words may contain a password. Only those of a short, plain command are repeated, as they were written.
        let plain = words.len() <= 60 && !words.contains(['@', '%']) && is_as_written(&node, &words);
        let example = if plain { list } else { "program, argument".into() };
        reader.error(&node.path, format!("must be a list, because no shell takes it apart: [{example}]"));
        return None;
    }
    let path = node.path.clone();
    let items = node.items("a list of texts", reader)?;
    let count = items.len();
    let exec: Vec<String> = items.iter().filter_map(|item| item.text("text", reader)).collect();
    match exec.first() {
        None if count == 0 => reader.error(&path, "must name a program, and is empty"),
        Some(program) if program.is_empty() => reader.error(&format!("{path}[0]"), "must name a program, and is empty"),
        // Values from the environment are not repeated.
        Some(program) if exec.len() == count && items.first().is_some_and(|item| is_as_written(item, program)) => {
            warn_of_missing(program, &format!("{path}[0]"), reader);
        }
        _ => {}
    }
    (exec.len() == count && count > 0).then_some(exec)
}

/// Whether the text is literally in the file, without placeholders.
fn is_as_written(node: &Node, text: &str) -> bool {
    node.shown() == format!("\"{text}\"")
}

/// Warns of a missing program. It is not a mistake, because a deployment may add it at any time. A program without a
/// `/` is looked up in the `PATH` of the worker, which may be cron's.
fn warn_of_missing(program: &str, path: &str, reader: &mut Reader) {
    if !program.contains('/') {
        return;
    }
    let file = reader.dir.join(program);
    if let Some(why) = not_executable(&file) {
        reader.warning(path, format!("{} {why}", file.display()));
    }
}

fn not_executable(file: &Path) -> Option<&'static str> {
    match file.metadata() {
        Err(_) => Some("does not exist, or cannot be accessed"),
        Ok(found) if !found.is_file() => Some("is not a file"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Some("is not executable; try chmod +x"),
        Ok(_) => None,
    }
}

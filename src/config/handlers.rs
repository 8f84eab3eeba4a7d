//! Reads `handlers`: what handles messages.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use indexmap::IndexMap;

use super::definition::{Definition, Kind, Setting};
use super::routes::check_pattern;
use super::section::{Node, Reader, Section};
use super::transports::Declared;
use super::{ExecConfig, HandlerAction, HandlerConfig};

/// The key `handlers`.
pub(super) const HANDLERS: Definition = Definition::new(
    "handlers",
    Kind::Map(&Kind::OneOrMore(&Kind::Section(HANDLER))),
    "what handles a message, by type or wildcard",
);

const HANDLER: &[Definition] = &[EXEC, TIMEOUT.definition, FROM_TRANSPORT, PRIORITY.definition];

const EXEC: Definition =
    Definition::new("exec", Kind::List(&Kind::Text("text")), "the program and its arguments, as a list")
        .required()
        .example("[php, bin/handle.php]");
const TIMEOUT: Setting<Option<Duration>> = Setting::duration("timeout", "", "how long the program may run").optional();
const FROM_TRANSPORT: Definition = Definition::new(
    "from_transport",
    Kind::OneOrMore(&Kind::Text("transport")),
    "handles only messages that were received from this transport, or from one of these",
)
.or("all");
const PRIORITY: Setting<f64> = Setting::number(
    "priority",
    -HIGHEST_PRIORITY,
    HIGHEST_PRIORITY,
    "0",
    "a whole number; a message's handlers are called from the highest to the lowest",
);
const HIGHEST_PRIORITY: f64 = 1_000_000.0;

const FORM: &str = "a handler such as `exec: [php, bin/handle.php]`, or a list of handlers";

/// The handlers of each type or wildcard, in the order of the file.
pub(super) fn read_handlers(
    entries: IndexMap<String, Node>,
    transports: &Declared,
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
        handlers.insert(pattern, items.into_iter().filter_map(|item| read_one(item, transports, reader)).collect());
    }
    handlers
}

fn read_one(node: Node, transports: &Declared, reader: &mut Reader) -> Option<HandlerConfig> {
    let mut section = node.section(HANDLER, FORM, reader)?;
    let from_transports = read_from_transport(&mut section, transports, reader);
    let priority = read_priority(&mut section, reader);
    let timeout = read_timeout(&mut section, reader);
    let exec = read_program(section.require(&EXEC, reader)?, reader)?;
    let action = HandlerAction::Exec(ExecConfig { exec, timeout });
    Some(HandlerConfig { action, from_transports, priority })
}

fn read_timeout(section: &mut Section, reader: &mut Reader) -> Option<Duration> {
    let node = section.take("timeout")?;
    let timeout: Duration = node.read(&TIMEOUT.definition, reader)?;
    if timeout.is_zero() {
        reader.error(&node.path, "must be more than 0; leave it out to let the program take as long as it likes");
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

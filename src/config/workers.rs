//! Reads `workers`, the worker definitions.

use std::collections::HashMap;

use super::consume_options::{self, ConsumeOptions};
use super::definition::{Definition, Kind, Missing, Setting};
use super::section::{Node, Reader, Section, join};
use super::transports::{Declared, TransportKind};
use super::{Autoscale, Scope, WorkerDefinition};

/// The key `workers`.
pub(super) const WORKERS: Definition = Definition {
    default: Missing::Value("[]"),
    ..Definition::new("workers", LIST, "what the supervisor keeps running")
};

const LIST: Kind = Kind::List(&Kind::Section(WORKER));
const WORKER: &[Definition] = &[TRANSPORTS, OPTIONS, NAME, COMMAND, AUTOSCALE];

const TRANSPORTS: Definition = Definition::new(
    "transports",
    Kind::OneOrMore(&Kind::Text("transport")),
    "what is consumed, the most important first",
)
.required()
.example("[async]");
const OPTIONS: Definition = Definition {
    default: Missing::Value(DEFAULT_TIME_LIMIT),
    ..Definition::new(
        "options",
        Kind::List(&Kind::Argument),
        "options of [`consume`](commands.md#minutely-consume); a time limit is added if missing",
    )
};
const NAME: Definition =
    Definition::new("name", Kind::Text("text"), "the name in `status` and in the log").or("from the transports");
const COMMAND: Definition = Definition::new(
    "command",
    Kind::Either(&[Kind::List(&Kind::Text("text")), Kind::Text("text")]),
    "another program to run",
)
.or("`consume` of this program");
const AUTOSCALE: Definition = Definition::new(
    "autoscale",
    Kind::Either(&[Kind::Section(BOUNDS), Kind::Off(BOUNDS)]),
    "how many workers run; `false`: one",
)
.or("one worker");

const BOUNDS: &[Definition] =
    &[ENABLED.definition, DESIRED_SIZE.definition, MIN.definition, MAX.definition, SCOPE.definition];
const ENABLED: Setting<bool> = Setting::flag("enabled", "true", "`false` is the same as no `autoscale`");
const DESIRED_SIZE: Setting<u64> =
    Setting::whole("desired_size", 1, LARGEST_DESIRED_SIZE, "1", "how many pending messages there are for each worker")
        .required()
        .example("5");
const MIN: Setting<u64> = Setting::whole("min", 0, LARGEST_MAX, "1", "the fewest workers that run; may be 0");
const MAX: Setting<u64> = Setting::whole("max", 1, LARGEST_MAX, "10", "the most workers that run");
const SCOPE: Setting<String> = Setting::choice(
    "scope",
    &["host", "cluster"],
    "host",
    "whether `min` and `max` hold for each host, or for all hosts together",
);

/// The default time limit: cron starts the next supervisor after a minute.
const DEFAULT_TIME_LIMIT: &str = "--time-limit=60";

/// The largest `max`. More processes than any host can run.
const LARGEST_MAX: u64 = 10_000;

/// Together with the largest `max`, too small to overflow a count.
const LARGEST_DESIRED_SIZE: u64 = 1_000_000_000;

/// The longest name. It is a folder's name too, with a number added.
const LONGEST_NAME: usize = 100;

/// All worker definitions, with unique names.
pub(super) fn read_workers(node: Node, transports: &Declared, reader: &mut Reader) -> Vec<WorkerDefinition> {
    let items = node.items("a list of workers, or [] for none", reader).unwrap_or_default();
    let definitions = items.into_iter().filter_map(|item| read_one(item, transports, reader)).collect();
    name_all(definitions, reader)
}

/// A definition without its name, and the name in the file.
fn read_one(node: Node, transports: &Declared, reader: &mut Reader) -> Option<(WorkerDefinition, Option<Node>)> {
    let mut section = node.section(WORKER, "a mapping with `transports`", reader)?;
    let name = section.take("name");
    let consumed = section.require(&TRANSPORTS, reader).map(|node| read_transports(node, transports, reader));
    let command = section.take("command");
    let (options, consume_options) = read_options(section.take("options"), command.is_none(), reader);
    let definition = WorkerDefinition {
        name: String::new(),
        path: section.path.clone(),
        transports: consumed.unwrap_or_default(),
        options,
        consume_options,
        autoscale: section.take("autoscale").map(|node| read_autoscale(node, reader)).unwrap_or_default(),
        command: command.and_then(|node| read_command(node, reader)),
    };
    if definition.autoscale.scope == Scope::Cluster && definition.consume_options.time_limit.is_none() {
        let expected = "needs a time limit that can be read, such as --time-limit=60, where autoscale.scope is cluster";
        reader.error(&join(&section.path, "options"), expected);
    }
    Some((definition, name))
}

fn read_transports(node: Node, transports: &Declared, reader: &mut Reader) -> Vec<String> {
    let path = node.path.clone();
    let Some(items) = node.items_or_one("the name of a transport, or a list of such names", reader) else {
        return Vec::new();
    };
    if items.is_empty() {
        reader.error(&path, "must name a transport to consume, and is empty");
    }
    let mut consumed: Vec<String> = Vec::new();
    for item in &items {
        let Some(name) = transports.name(item, reader) else { continue };
        let why_not = match transports.kind(&name) {
            TransportKind::Queue => None,
            TransportKind::Sync => {
                Some("ends at sync://, where messages are handled at once and nothing waits for a worker")
            }
            TransportKind::InMemory => {
                Some("ends at in-memory://, and a worker, being another process, cannot see that memory")
            }
        };
        if let Some(why_not) = why_not {
            reader.error(&item.path, format!("\"{name}\" cannot be consumed: it {why_not}"));
        }
        if consumed.contains(&name) {
            reader.error(&item.path, format!("\"{name}\" is in this list already"));
        } else {
            consumed.push(name);
        }
    }
    consumed
}

/// The arguments of the worker's program, and what they say. Another program than this one may have any others.
fn read_options(node: Option<Node>, is_own: bool, reader: &mut Reader) -> (Vec<String>, ConsumeOptions) {
    let expected = "a list of options, such as [--time-limit=60, --sleep=5]";
    let path = node.as_ref().map_or_else(String::new, |node| node.path.clone());
    let items = node.and_then(|node| node.items(expected, reader)).unwrap_or_default();
    let mut arguments: Vec<(String, String)> = Vec::new();
    for item in items {
        let Some(option) = item.filled_text("an option, such as --sleep=5", reader) else { continue };
        if option.starts_with('-') && option.split('=').next().is_some_and(|name| name.trim_end().contains(' ')) {
            reader.error(&item.path, format!("{} is two arguments: write --option=value, or two items", item.shown()));
            continue;
        }
        arguments.push((item.path, option));
    }
    let texts = |arguments: &[(String, String)]| arguments.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
    if consume_options::time_limit_among(&texts(&arguments)).is_none() {
        arguments.push((path, DEFAULT_TIME_LIMIT.to_owned()));
    }
    let options = texts(&arguments);
    let (consume_options, mistakes) = consume_options::read(&arguments);
    if is_own {
        mistakes.into_iter().for_each(|mistake| reader.problems.push(mistake));
    }
    let time_limit = consume_options::time_limit_among(&options).flatten();
    (options, ConsumeOptions { time_limit, ..consume_options })
}

/// `autoscale`, with `enabled: false` as Symfony's way to turn it off.
fn read_autoscale(node: Node, reader: &mut Reader) -> Autoscale {
    if node.is_false() {
        return Autoscale::default();
    }
    let expected = "a mapping such as {desired_size: 5, min: 1, max: 10}";
    let Some(mut section) = node.section(BOUNDS, expected, reader) else {
        return Autoscale::default();
    };
    if section.get(&ENABLED, reader) { read_bounds(&mut section, reader) } else { Autoscale::default() }
}

fn read_bounds(section: &mut Section, reader: &mut Reader) -> Autoscale {
    let desired_size = section
        .require(&DESIRED_SIZE.definition, reader)
        .and_then(|node| node.read(&DESIRED_SIZE.definition, reader))
        .unwrap_or(1);
    let min_path = join(&section.path, "min");
    let min = section.get(&MIN, reader);
    let max_node = section.take("max");
    let max_given = max_node.is_some();
    let max: Option<u64> =
        max_node.map_or_else(|| Some(MAX.default_value()), |node| node.read(&MAX.definition, reader));
    if let Some(max) = max.filter(|max| *max < min) {
        let default = if max_given { "" } else { ", the default" };
        reader.error(&min_path, format!("must not be more than max: min is {min}, max is {max}{default}"));
    }
    let scope = section.take("scope").and_then(|node| read_scope(&node, reader)).unwrap_or(Scope::Host);
    // Both are at most LARGEST_MAX.
    let bounded = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Autoscale {
        desired_size,
        min: bounded(min),
        max: bounded(max.unwrap_or_else(|| MAX.default_value()).max(min)),
        scope,
    }
}

fn read_scope(node: &Node, reader: &mut Reader) -> Option<Scope> {
    match node.text("host or cluster", reader)?.as_str() {
        "host" => Some(Scope::Host),
        "cluster" => Some(Scope::Cluster),
        _ => {
            let Kind::Choice(scopes) = SCOPE.definition.kind else { return None };
            reader.unknown(node, "scope", scopes.iter().copied())
        }
    }
}

/// A list of arguments, or one text that is split like in a shell.
fn read_command(node: Node, reader: &mut Reader) -> Option<Vec<String>> {
    let path = node.path.clone();
    let command: Vec<String> = if node.is_list() {
        let items = node.items("a list of texts", reader)?;
        items.iter().map(|item| item.text("text", reader)).collect::<Option<_>>()?
    } else {
        let text = node.text("a command, such as php bin/console messenger:consume {transports} {options}", reader)?;
        match shell_words::split(&text) {
            Ok(words) => words,
            Err(_) => {
                reader.error(&path, "has a quote that is not closed");
                return None;
            }
        }
    };
    if command.first().is_none_or(|program| program.trim().is_empty()) {
        reader.error(&path, "must name a program, and is empty");
        return None;
    }
    for argument in &command {
        if matches!(argument.as_str(), "{transport}" | "{option}" | "{Transports}" | "{Options}") {
            let known = "only {transports} and {options} are filled in";
            reader.warning(&path, format!("{argument} is passed on as it is: {known}"));
        }
    }
    Some(command)
}

/// Gives each definition its name: the one in the file, or a unique one made from its transports.
fn name_all(definitions: Vec<(WorkerDefinition, Option<Node>)>, reader: &mut Reader) -> Vec<WorkerDefinition> {
    // Names in the file come first: generated ones have to avoid them.
    let mut taken: HashMap<String, String> = HashMap::new();
    let mut named = Vec::with_capacity(definitions.len());
    for (mut definition, name) in definitions {
        if let Some(name) = name.and_then(|node| read_name(&node, reader)) {
            if let Some(other) = taken.insert(name.clone(), definition.path.clone()) {
                let path = join(&definition.path, "name");
                reader.error(&path, format!("\"{name}\" is the name of {other} already"));
            }
            definition.name = name;
        }
        named.push(definition);
    }
    for definition in named.iter_mut().filter(|definition| definition.name.is_empty()) {
        definition.name = made_name(&definition.transports, &taken);
        taken.insert(definition.name.clone(), definition.path.clone());
    }
    // The mistakes in the transports of these have been reported, and later checks need at least one transport.
    named.retain(|definition| !definition.transports.is_empty());
    named
}

pub(super) fn read_name(node: &Node, reader: &mut Reader) -> Option<String> {
    let name = node.text("a name", reader)?;
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || name.len() > LONGEST_NAME || !name.chars().all(fits_name) {
        let expected = "a name of 1 to 100 letters, digits and characters of _ . + -, starting with a letter or digit";
        return node.mismatch(expected, reader);
    }
    Some(name)
}

fn fits_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.+-".contains(c)
}

fn made_name(transports: &[String], taken: &HashMap<String, String>) -> String {
    let mut name: String = transports.join("+").chars().map(|c| if fits_name(c) { c } else { '_' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert_str(0, "worker");
    }
    // Leaves room for the number that makes it unique.
    name.truncate(LONGEST_NAME - 10);
    if !taken.contains_key(&name) {
        return name;
    }
    (2_u64..)
        .map(|n| format!("{name}-{n}"))
        .find(|numbered| !taken.contains_key(numbered))
        .expect("a finite map cannot hold every number")
}

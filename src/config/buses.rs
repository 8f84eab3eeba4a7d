//! Reads `buses` and `default_bus`: which buses there are, and what their messages pass.

use indexmap::IndexMap;

use super::definition::{Definition, Kind, Setting};
use super::problem::{Problem, displayable};
use super::section::{Node, Reader, Section};

/// The name of the only bus of an application that does not name its buses. Symfony's workers refuse messages of buses that
/// they do not know, and every application without `buses` has this one.
pub(crate) const DEFAULT_BUS: &str = "messenger.bus.default";

/// The key `buses`.
pub(super) const BUSES: Definition = Definition::new(
    "buses",
    Kind::Map(&Kind::Section(BUS)),
    "the buses, each under a name of your choice, and what messages pass on them",
)
.or("one: `messenger.bus.default`");

const BUS: &[Definition] = &[DEFAULT_MIDDLEWARE, MIDDLEWARE];
const DEFAULT_MIDDLEWARE: Definition = Definition::new(
    "default_middleware",
    Kind::Either(&[Kind::Flag, Kind::Choice(&["allow_no_handlers"]), Kind::Section(DEFAULTS)]),
    "whether messages pass the usual middleware, which sends and handles them; `allow_no_handlers`: yes, and a message may have no handler",
)
.or("true");
const MIDDLEWARE: Definition = Definition::new(
    "middleware",
    Kind::OneOrMore(&Kind::Either(&[Kind::Text("name"), Kind::Map(&Kind::Anything)])),
    "the names of further middleware, which messages pass in this order before they are sent or handled",
);
const DEFAULTS: &[Definition] = &[ENABLED.definition, ALLOW_NO_HANDLERS.definition, ALLOW_NO_SENDERS.definition];
const ENABLED: Setting<bool> = Setting::flag("enabled", "true", "`false`: messages pass none of the usual middleware");
const ALLOW_NO_HANDLERS: Setting<bool> =
    Setting::flag("allow_no_handlers", "false", "a message need not have a handler: for events");
const ALLOW_NO_SENDERS: Setting<bool> =
    Setting::flag("allow_no_senders", "true", "a message need not be routed to a transport: it is handled at once");

/// The key `default_bus`.
pub(super) const DEFAULT: Definition =
    Definition::new("default_bus", Kind::Text("bus"), "the bus on which a message is dispatched where none is named")
        .or("the only one of `buses`");

const FORM: &str = "a bus such as `middleware: [validation]`";
const FORM_OF_MIDDLEWARE: &str = "the name of a middleware";

/// Symfony's names of services begin with this, and the short names stand for them.
const SERVICE_PREFIX: &str = "messenger.middleware.";

/// An entry under `buses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BusConfig {
    /// Its name.
    pub(crate) name: String,
    /// Its place in the file.
    pub(crate) path: String,
    /// Is the usual middleware there?
    pub(crate) default_middleware: bool,
    /// May a message have no handler?
    pub(crate) allow_no_handlers: bool,
    /// May a message be routed to no transport?
    pub(crate) allow_no_senders: bool,
    /// What it adds, in order.
    pub(crate) middleware: Vec<MiddlewareConfig>,
}

/// A middleware that a bus names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MiddlewareConfig {
    /// Its name, without Symfony's prefix.
    pub(crate) id: String,
    /// Its place in the file.
    pub(crate) path: String,
    /// Is it written where Symfony has its buses? Then it may be a service that PHP alone knows.
    pub(crate) is_symfonys: bool,
}

/// The buses of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BusesConfig {
    /// All of them; empty if the file names none.
    pub(crate) all: Vec<BusConfig>,
    /// The name of the default one.
    pub(crate) default: String,
}

impl BusConfig {
    /// A bus with the usual middleware alone.
    pub(crate) fn usual(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: String::new(),
            default_middleware: true,
            allow_no_handlers: false,
            allow_no_senders: true,
            middleware: Vec::new(),
        }
    }
}

impl Default for BusesConfig {
    fn default() -> Self {
        Self { all: Vec::new(), default: DEFAULT_BUS.to_owned() }
    }
}

impl BusesConfig {
    /// The names of all buses.
    pub(crate) fn names(&self) -> Vec<&str> {
        if self.all.is_empty() { vec![DEFAULT_BUS] } else { self.all.iter().map(|bus| bus.name.as_str()).collect() }
    }
}

/// The buses, in the order of the file, and which is the default one.
pub(super) fn read_buses(entries: IndexMap<String, Node>, default: Option<Node>, reader: &mut Reader) -> BusesConfig {
    let mut buses = BusesConfig::default();
    let place = entries.values().next().map(|node| node.path.clone());
    for (name, node) in entries {
        if name.trim().is_empty() {
            reader.error(&node.path, "a bus needs a name");
            continue;
        }
        let path = node.path.clone();
        let bus = if node.is_null() { None } else { read_bus(&name, node, reader) };
        buses.all.push(bus.unwrap_or_else(|| BusConfig { path, ..BusConfig::usual(&name) }));
    }
    match (default, buses.all.as_slice()) {
        (Some(node), _) => {
            if let Some(name) = read_bus_name(&node, &buses, reader) {
                buses.default = name;
            }
        }
        (None, []) => {}
        (None, [only]) => buses.default.clone_from(&only.name),
        (None, all) => {
            let names: Vec<&str> = all.iter().map(|bus| bus.name.as_str()).collect();
            let message = format!(
                "`default_bus` is missing: with several buses it says which one is meant where none is named, of {}",
                names.join(", ")
            );
            reader.error(&place.unwrap_or_default(), message);
        }
    }
    buses
}

/// The name of a bus that there is.
pub(super) fn read_bus_name(node: &Node, buses: &BusesConfig, reader: &mut Reader) -> Option<String> {
    let name = node.filled_text("the name of a bus", reader)?;
    let known = buses.names();
    if known.contains(&name.as_str()) {
        return Some(name);
    }
    reader.problems.push(Problem::unknown(&node.path, "bus", &displayable(&name), known));
    None
}

fn read_bus(name: &str, node: Node, reader: &mut Reader) -> Option<BusConfig> {
    let is_symfonys = node.path.starts_with("framework.");
    let mut section = node.section(BUS, FORM, reader)?;
    let mut bus = BusConfig { path: section.path.clone(), ..BusConfig::usual(name) };
    read_defaults(&mut section, &mut bus, reader);
    if let Some(node) = section.take("middleware") {
        let items = node.items_or_one(FORM_OF_MIDDLEWARE, reader).unwrap_or_default();
        let read = items.into_iter().filter_map(|item| read_middleware(item, is_symfonys, reader));
        bus.middleware = read.collect();
    }
    Some(bus)
}

fn read_defaults(section: &mut Section, bus: &mut BusConfig, reader: &mut Reader) {
    let Some(node) = section.take("default_middleware") else { return };
    if node.is_mapping() {
        let Some(mut defaults) = node.section(DEFAULTS, "true, false or a mapping", reader) else { return };
        bus.allow_no_handlers = defaults.get(&ALLOW_NO_HANDLERS, reader);
        bus.allow_no_senders = defaults.get(&ALLOW_NO_SENDERS, reader);
        if let Some(enabled) = defaults.take("enabled") {
            read_enabled(&enabled, bus, reader);
        }
    } else {
        read_enabled(&node, bus, reader);
    }
}

/// Symfony's short form of an event bus is the text `allow_no_handlers`.
fn read_enabled(node: &Node, bus: &mut BusConfig, reader: &mut Reader) {
    let Some(text) = node.text("true, false or allow_no_handlers", reader) else { return };
    match text.as_str() {
        "true" => {}
        "false" => bus.default_middleware = false,
        "allow_no_handlers" => bus.allow_no_handlers = true,
        _ => drop(node.mismatch::<()>("true, false or allow_no_handlers", reader)),
    }
}

/// `validation`, `{id: validation}`, or `doctrine_transaction: [custom]`, whose arguments are PHP's.
fn read_middleware(node: Node, is_symfonys: bool, reader: &mut Reader) -> Option<MiddlewareConfig> {
    let path = node.path.clone();
    let id = if node.is_mapping() {
        let mut entries = node.entries(FORM_OF_MIDDLEWARE, reader)?;
        match entries.iter().position(|(key, _)| key == "id") {
            Some(at) => entries.swap_remove(at).1.filled_text(FORM_OF_MIDDLEWARE, reader)?,
            None if entries.len() == 1 => entries.swap_remove(0).0,
            None => {
                reader.error(&path, format!("must be {FORM_OF_MIDDLEWARE}, perhaps with its arguments"));
                return None;
            }
        }
    } else {
        node.filled_text(FORM_OF_MIDDLEWARE, reader)?
    };
    let id = id.strip_prefix(SERVICE_PREFIX).unwrap_or(&id).to_owned();
    Some(MiddlewareConfig { id, path, is_symfonys })
}

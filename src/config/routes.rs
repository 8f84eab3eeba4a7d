//! Reads `routing`, and the types and wildcards that are keys there and under `handlers`.

use indexmap::{IndexMap, IndexSet};

use super::definition::{Definition, Kind};
use super::section::{Node, Reader};
use super::transports::Declared;
use crate::message::{HIGH_PRIORITY, LOW_PRIORITY, NORMAL_PRIORITY};

/// The key `routing`.
pub(super) const ROUTING: Definition = Definition::new(
    "routing",
    Kind::Map(&Kind::Either(&[NAMES, Kind::Section(ROUTE)])),
    "which transports a message goes to, by type or wildcard",
);

const ROUTE: &[Definition] = &[SENDERS];
const SENDERS: Definition = Definition::new("senders", NAMES, "Symfony's long form of the list").required();
const NAMES: Kind = Kind::OneOrMore(&Kind::Text("transport"));

/// The key `interfaces`.
pub(super) const INTERFACES: Definition = Definition::new(
    "interfaces",
    Kind::Map(&Kind::OneOrMore(&Kind::Text("type"))),
    "further names that a type is routed and handled by, such as its PHP interfaces",
);

/// The default routes of Contao's priorities: to Contao's transport for the priority, or to that of the shipped
/// configuration.
const PRIORITIES: [(&str, [&str; 2]); 3] = [
    (HIGH_PRIORITY, ["contao_prio_high", "prio_high"]),
    (NORMAL_PRIORITY, ["contao_prio_normal", "prio_normal"]),
    (LOW_PRIORITY, ["contao_prio_low", "prio_low"]),
];

/// Which transports each type goes to, in sending order.
pub(super) fn read_routing(
    entries: IndexMap<String, Node>,
    transports: &Declared,
    reader: &mut Reader,
) -> IndexMap<String, Vec<String>> {
    let mut routing = IndexMap::new();
    for (pattern, node) in entries {
        check_pattern(&pattern, &node.path, reader);
        routing.insert(pattern, read_senders(node, transports, reader));
    }
    routing
}

/// Adds the routes of the priorities that the file does not route itself.
pub(super) fn add_priorities(routing: &mut IndexMap<String, Vec<String>>, transports: &Declared) {
    for (interface, names) in PRIORITIES {
        if let Some(name) = names.into_iter().find(|name| transports.all.contains_key(*name)) {
            routing.entry(interface.to_owned()).or_insert_with(|| vec![name.to_owned()]);
        }
    }
}

/// The interfaces of each type, most specific first.
pub(super) fn read_interfaces(entries: IndexMap<String, Node>, reader: &mut Reader) -> IndexMap<String, Vec<String>> {
    let mut interfaces = IndexMap::new();
    for (message_type, node) in entries {
        check_type(&message_type, &node.path, reader);
        let items = node.items_or_one("the name of an interface, or a list of such names", reader).unwrap_or_default();
        let names: IndexSet<String> = items.iter().filter_map(|item| read_interface(item, reader)).collect();
        interfaces.insert(message_type, names.into_iter().collect());
    }
    interfaces
}

fn read_interface(node: &Node, reader: &mut Reader) -> Option<String> {
    let name = node.filled_text("the name of an interface", reader)?;
    check_type(&name, &node.path, reader);
    Some(name)
}

/// Checks that a name is a type and not a wildcard.
pub(super) fn check_type(name: &str, path: &str, reader: &mut Reader) {
    if name.contains('*') {
        reader.error(path, "must be one type, and no wildcard");
    } else {
        check_pattern(name, path, reader);
    }
}

/// Reads one name, a list of names, or `{senders: [...]}`. A name that occurs twice counts once, as in Symfony.
fn read_senders(node: Node, transports: &Declared, reader: &mut Reader) -> Vec<String> {
    let expected = "the name of a transport, or a list of such names";
    let node = if node.is_mapping() {
        let section = node.section(ROUTE, expected, reader);
        section.and_then(|mut section| section.require(&SENDERS, reader))
    } else {
        Some(node)
    };
    let Some((path, senders)) = node.and_then(|node| Some((node.path.clone(), node.items_or_one(expected, reader)?)))
    else {
        return Vec::new();
    };
    if senders.is_empty() {
        reader.error(&path, format!("must be {expected}, and is empty; leave a type out to have it handled at once"));
    }
    let names: IndexSet<String> = senders.iter().filter_map(|node| transports.name(node, reader)).collect();
    names.into_iter().collect()
}

/// Checks that a name is a type, or one of Symfony's wildcards: `*`, or a namespace with `\*` at its end.
pub(super) fn check_pattern(pattern: &str, path: &str, reader: &mut Reader) {
    let prefix = pattern.strip_suffix(r"\*").unwrap_or(pattern);
    if pattern == "*" {
        return;
    }
    if pattern.trim().is_empty() || prefix.is_empty() {
        reader.error(path, r"must be a message's type, `*`, or a namespace such as `App\Message\*`");
    } else if prefix.contains('*') {
        reader.error(path, r"a wildcard is `*` alone, or `\*` at the end of a namespace, such as `App\Message\*`");
    } else if prefix.starts_with('\\') {
        reader.error(path, format!("types are written without the \\ in front: {}", pattern.trim_start_matches('\\')));
    } else if prefix.contains(r"\\") {
        reader.error(
            path,
            format!(
                r"has two \ in a row; only within double quotes YAML wants that: '{}'",
                pattern.replace(r"\\", r"\")
            ),
        );
    }
}

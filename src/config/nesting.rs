//! Finds the keys in their possible places: at the top of the file, or where Symfony and Contao have them.

use indexmap::IndexMap;
use serde_yaml::Value;

use super::definition::{Definition, Support};
use super::keys;
use super::problem::{Problem, displayable, nearest};
use super::section::{Node, Reader, join};
use super::value::plain_text;

/// The values of all keys, wherever they are in the file.
pub(super) struct Sources {
    found: Vec<(&'static str, Node)>,
    doctrine: Option<Value>,
}

impl Sources {
    /// Reads the whole file. A file with `framework` or `contao` at its top belongs to a Symfony application. It may
    /// have any other keys, unless they look like typing errors.
    pub(super) fn find(root: Node, reader: &mut Reader) -> Self {
        let mut sources = Self { found: Vec::new(), doctrine: None };
        let entries = root.entries("a mapping", reader).unwrap_or_default();
        let nested = entries.iter().any(|(key, _)| key == "framework" || key == "contao");
        let mut applications = Vec::new();
        for (key, node) in entries {
            if let Some(known) = keys::names().find(|known| *known == key) {
                sources.add(known, node);
            } else if key == "framework" || key == "contao" {
                applications.push((key, node));
            } else if nested {
                refuse_typo(&key, keys::names().chain(["framework", "contao"]), node.parent(&key), reader);
                if key == "doctrine" {
                    sources.doctrine = Some(node.into_value());
                }
            } else {
                let known = keys::names().chain(["framework", "contao"]);
                reader.problems.push(Problem::unknown(node.parent(&key), "key", &displayable(&key), known));
            }
        }
        for (key, node) in applications {
            sources.add_application(&key, node, reader);
        }
        sources
    }

    /// The entries of a mapping that may be in several places. Each entry may occur only once.
    pub(super) fn entries(&mut self, key: &str, expected: &str, reader: &mut Reader) -> IndexMap<String, Node> {
        let mut merged: IndexMap<String, Node> = IndexMap::new();
        for node in self.take(key) {
            for (name, entry) in node.entries(expected, reader).unwrap_or_default() {
                match merged.get(&name) {
                    Some(other) => reader.error(&entry.path, format!("is set a second time: see {}", other.path)),
                    None => {
                        merged.insert(name, entry);
                    }
                }
            }
        }
        merged
    }

    /// A value that may be in one place only.
    pub(super) fn one(&mut self, key: &str, reader: &mut Reader) -> Option<Node> {
        let mut nodes = self.take(key).into_iter();
        let first = nodes.next()?;
        for other in nodes {
            reader.error(&other.path, format!("is set a second time: see {}", first.path));
        }
        Some(first)
    }

    /// Adds the connections of `doctrine.dbal` that are not in `connections` already.
    pub(super) fn add_doctrine_connections(&mut self, connections: &mut IndexMap<String, Node>) {
        let Some(Value::Mapping(dbal)) = self.doctrine.as_mut().and_then(|doctrine| doctrine.get_mut("dbal")) else {
            return;
        };
        let mut found = Vec::new();
        if let Some(url) = dbal.shift_remove("url") {
            let name = dbal.get("default_connection").and_then(Value::as_str).unwrap_or("default");
            found.push((name.to_owned(), Node::new("doctrine.dbal.url", url)));
        }
        if let Some(Value::Mapping(named)) = dbal.shift_remove("connections") {
            found.extend(
                named.into_iter().filter_map(|(name, connection)| doctrine_url(&plain_text(&name)?, connection)),
            );
        }
        for (name, node) in found {
            if !node.is_null() {
                connections.entry(name).or_insert(node);
            }
        }
    }

    fn add(&mut self, key: &'static str, node: Node) {
        if !node.is_null() {
            self.found.push((key, node));
        }
    }

    fn take(&mut self, key: &str) -> Vec<Node> {
        self.found.extract_if(.., |(name, _)| *name == key).map(|(_, node)| node).collect()
    }

    /// Takes what is under `framework.messenger.serializer`.
    fn add_serializer(&mut self, node: Node, reader: &mut Reader) {
        for (key, node) in node.entries("a mapping", reader).unwrap_or_default() {
            match key.as_str() {
                _ if node.is_nothing() => {}
                "default_serializer" => self.add("serializer", node),
                "symfony_serializer" => read_symfony_serializer(node, reader),
                _ => {
                    let known = ["default_serializer", "symfony_serializer"];
                    reader.problems.push(Problem::unknown(node.parent(&key), "key", &displayable(&key), known));
                }
            }
        }
    }

    /// Takes Symfony's rate limiters, which may be under `limiters`.
    fn add_limiters(&mut self, node: Node) {
        let path = node.path.clone();
        let Value::Mapping(mut limiters) = node.into_value() else { return };
        let (path, limiters) = match limiters.shift_remove("limiters") {
            Some(limiters) => (join(&path, "limiters"), limiters),
            None => {
                limiters.shift_remove("enabled");
                (path, Value::Mapping(limiters))
            }
        };
        self.add("rate_limiter", Node::new(path, limiters));
    }

    /// Takes the keys from `framework.messenger` or `contao.messenger`, which is its name.
    fn add_application(&mut self, name: &str, application: Node, reader: &mut Reader) {
        if !application.is_mapping() {
            return;
        }
        let known = if name == "framework" { keys::SYMFONY } else { keys::CONTAO };
        for (key, node) in application.entries("a mapping", reader).unwrap_or_default() {
            if key == "rate_limiter" && name == "framework" {
                self.add_limiters(node);
                continue;
            }
            if key != "messenger" {
                refuse_typo(&key, ["messenger"], node.parent(&key), reader);
                continue;
            }
            // `messenger: false` and `messenger: ~` turn it off in Symfony.
            if node.is_null() || node.is_false() || node.turns_itself_off() {
                continue;
            }
            for (key, node) in node.entries("a mapping", reader).unwrap_or_default() {
                match known.iter().find(|known| known.name == key) {
                    Some(Definition { name, support: Support::Used, .. }) => self.add(name, node),
                    Some(Definition { name: "serializer", .. }) => self.add_serializer(node, reader),
                    Some(php) => node.warn_if_ignored(php.support, reader),
                    None => {
                        let known = known.iter().map(|known| known.name);
                        reader.problems.push(Problem::unknown(node.parent(&key), "key", &displayable(&key), known));
                    }
                }
            }
        }
    }
}

fn read_symfony_serializer(node: Node, reader: &mut Reader) {
    for (key, node) in node.entries("a mapping", reader).unwrap_or_default() {
        if key == "format" && node.text("the name of a format", reader).is_some_and(|format| format != "json") {
            reader.warning(&node.path, "is ignored: messages are always read and written as JSON");
        }
    }
}

fn doctrine_url(name: &str, connection: Value) -> Option<(String, Node)> {
    let Value::Mapping(mut connection) = connection else { return None };
    let url = connection.shift_remove("url")?;
    let path = join(&join("doctrine.dbal.connections", name), "url");
    Some((name.to_owned(), Node::new(path, url)))
}

/// Checks a key that may be anything, unless it is similar to one of ours.
fn refuse_typo<'k>(key: &str, known: impl IntoIterator<Item = &'k str>, path: &str, reader: &mut Reader) {
    if let Some(near) = nearest(key, known) {
        reader.error(path, format!("unknown key \"{}\", did you mean \"{near}\"?", displayable(key)));
    }
}

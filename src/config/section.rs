//! Typed reading of a YAML tree: every value knows its path, and mistakes become [`Problem`]s.
//!
//! A [`Node`] is read once, by the method for its expected type. `None` means that a mistake has been reported: the
//! caller goes on with a default, so that all mistakes are shown at once, and none twice. Messages show a value as it
//! is in the file, and so never the value of an environment variable. Of anything like a URL they show only the scheme.

use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::definition::{Definition, Setting, Support};
use super::environments::Origins;
use super::placeholder::Placeholders;
use super::problem::{Problem, Problems, displayable, may_hold_password};
use super::value::{FromValue, Mismatch, plain_text};

/// The context for reading values.
pub(super) struct Reader<'a> {
    /// Resolves placeholders.
    pub(super) placeholders: Placeholders<'a>,
    /// The folder that relative paths start from.
    pub(super) dir: &'a Path,
    /// The problems found so far.
    pub(super) problems: Problems,
    /// Where values are that the section of an environment has set.
    pub(super) origins: Origins,
}

impl Reader<'_> {
    pub(super) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(path, message));
    }

    pub(super) fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem::warning(path, message));
    }

    /// Reports a name that is not allowed. Always returns `None`, for the caller to return.
    pub(super) fn unknown<'n, T>(
        &mut self,
        node: &Node,
        what: &str,
        known: impl IntoIterator<Item = &'n str>,
    ) -> Option<T> {
        self.problems.push(Problem::unknown(&node.path, what, &node.as_name(), known));
        None
    }
}

/// A value with its place in the file. Placeholders are not resolved yet.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// `workers[1].transports[0]`.
    pub(super) path: String,
    value: Value,
}

impl Node {
    pub(super) fn new(path: impl Into<String>, value: Value) -> Self {
        Self { path: path.into(), value }
    }

    /// The path of the mapping that has this value under `key`.
    pub(super) fn parent(&self, key: &str) -> &str {
        self.path.strip_suffix(key).map_or("", |path| path.strip_suffix('.').unwrap_or(path))
    }

    /// Whether it is null, as in `workers: ~`.
    pub(super) fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// Whether it is `false`, which turns a section off in Symfony.
    pub(super) fn is_false(&self) -> bool {
        self.value == Value::Bool(false)
    }

    /// Whether it is null, or an empty list or mapping.
    pub(super) fn is_nothing(&self) -> bool {
        match &self.value {
            Value::Sequence(items) => items.is_empty(),
            Value::Mapping(entries) => entries.is_empty(),
            value => value.is_null(),
        }
    }

    /// Whether it is a section with `enabled: false`.
    pub(super) fn turns_itself_off(&self) -> bool {
        self.value.get("enabled") == Some(&Value::Bool(false))
    }

    /// The value as it is in the file.
    pub(super) fn into_value(self) -> Value {
        self.value
    }

    pub(super) fn is_mapping(&self) -> bool {
        self.value.is_mapping()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_sequence()
    }

    /// The entries of a mapping with any keys. As in PHP, `[]` is an empty mapping.
    pub(super) fn entries(self, expected: &str, reader: &mut Reader) -> Option<Vec<(String, Node)>> {
        let mapping = match self.value {
            Value::Mapping(mapping) => mapping,
            Value::Sequence(ref items) if items.is_empty() => Mapping::new(),
            _ => return self.mismatch(expected, reader),
        };
        let mut entries = Vec::with_capacity(mapping.len());
        for (key, value) in mapping {
            match plain_text(&key) {
                Some(key) => {
                    let path = reader.origins.place(join(&self.path, &key));
                    entries.push((key, Node::new(path, value)));
                }
                None => reader.error(&self.path, format!("a key must be text, not {}", shown(&key))),
            }
        }
        Some(entries)
    }

    /// A mapping with these keys; any other key is a problem. A key without effect is left out, with a warning.
    pub(super) fn section(self, keys: &'static [Definition], expected: &str, reader: &mut Reader) -> Option<Section> {
        let path = self.path.clone();
        let mut known = Vec::new();
        for (name, node) in self.entries(expected, reader)? {
            match keys.iter().find(|key| key.name == name).map(|key| key.support) {
                Some(Support::Used) => known.push((name, node)),
                Some(support) => node.warn_if_ignored(support, reader),
                None => {
                    let used = keys.iter().filter(|key| key.support == Support::Used).map(|key| key.name);
                    reader.problems.push(Problem::unknown(node.parent(&name), "key", &displayable(&name), used));
                }
            }
        }
        Some(Section { path, entries: known })
    }

    /// Warns about a key without effect, unless its value is the default.
    pub(super) fn warn_if_ignored(&self, support: Support, reader: &mut Reader) {
        if let Support::Ignored { why, .. } = support
            && !self.is_nothing()
        {
            reader.warning(&self.path, format!("is ignored: {why}"));
        }
    }

    /// The items of a list. `{  }` is an empty list, as PHP writes it.
    pub(super) fn items(self, expected: &str, reader: &mut Reader) -> Option<Vec<Node>> {
        let items = match self.value {
            Value::Sequence(items) => items,
            Value::Mapping(ref entries) if entries.is_empty() => Vec::new(),
            _ => return self.mismatch(expected, reader),
        };
        let path = self.path;
        Some(items.into_iter().enumerate().map(|(n, item)| Node::new(format!("{path}[{n}]"), item)).collect())
    }

    /// The items of a list; a single value is a list with one item.
    pub(super) fn items_or_one(self, expected: &str, reader: &mut Reader) -> Option<Vec<Node>> {
        if self.is_list() { self.items(expected, reader) } else { Some(vec![self]) }
    }

    /// Text. Numbers and booleans are accepted as they are written.
    pub(super) fn text(&self, expected: &str, reader: &mut Reader) -> Option<String> {
        let Some(text) = plain_text(&self.resolved(reader)?) else { return self.mismatch(expected, reader) };
        if text.contains('\0') {
            reader.error(&self.path, "must not contain a NUL character");
            return None;
        }
        Some(text)
    }

    /// Text that is not empty.
    pub(super) fn filled_text(&self, expected: &str, reader: &mut Reader) -> Option<String> {
        let text = self.text(expected, reader)?;
        if text.trim().is_empty() {
            reader.error(&self.path, format!("must be {expected}, and is empty"));
            return None;
        }
        Some(text)
    }

    /// A value of a definition's kind.
    pub(super) fn read<T: FromValue>(&self, definition: &Definition, reader: &mut Reader) -> Option<T> {
        match T::from_value(&definition.kind, &self.resolved(reader)?) {
            Ok(value) => Some(value),
            Err(Mismatch::Kind) => self.mismatch(&definition.kind.expected(), reader),
            Err(Mismatch::Because(why)) => {
                reader.error(&self.path, format!("{} is no duration here: {why}", self.shown()));
                None
            }
        }
    }

    /// The whole tree with resolved placeholders.
    pub(super) fn tree(self, reader: &mut Reader) -> Option<Value> {
        match self.value {
            Value::Mapping(_) => {
                let mut mapping = Mapping::new();
                for (key, node) in self.entries("a mapping", reader)? {
                    if let Some(value) = node.tree(reader) {
                        mapping.insert(key.into(), value);
                    }
                }
                Some(Value::Mapping(mapping))
            }
            Value::Sequence(_) => {
                let items = self.items("a list", reader)?;
                Some(Value::Sequence(items.into_iter().filter_map(|node| node.tree(reader)).collect()))
            }
            _ => self.resolved(reader),
        }
    }

    /// The value as it may be shown.
    pub(super) fn shown(&self) -> String {
        shown(&self.value)
    }

    /// Like [`Node::shown`], without quotes around text.
    fn as_name(&self) -> String {
        match &self.value {
            Value::String(text) => displayable(text),
            other => shown(other),
        }
    }

    /// Reports what was expected and what was found. Always returns `None`, for the caller to return.
    pub(super) fn mismatch<T>(&self, expected: &str, reader: &mut Reader) -> Option<T> {
        match self.value {
            Value::Tagged(ref tagged) => {
                reader.error(&self.path, format!("must be {expected}; YAML tags ({}) mean nothing here", tagged.tag));
            }
            _ => reader.error(&self.path, format!("must be {expected}, not {}", self.shown())),
        }
        None
    }

    fn resolved(&self, reader: &mut Reader) -> Option<Value> {
        match &self.value {
            Value::String(text) => reader
                .placeholders
                .resolve(text)
                .map_err(|message| reader.problems.push(Problem::error(&self.path, message)))
                .ok(),
            Value::Tagged(_) => self.mismatch("a plain value", reader),
            other => Some(other.clone()),
        }
    }
}

/// A mapping with known keys.
pub(super) struct Section {
    /// Its place in the file.
    pub(super) path: String,
    entries: Vec<(String, Node)>,
}

impl Section {
    /// Takes the value of a key. A null value counts as missing.
    pub(super) fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.swap_remove(at).1).filter(|node| !node.is_null())
    }

    /// Like [`Section::take`], but a missing key is a problem. The message says what the key is for.
    pub(super) fn require(&mut self, definition: &Definition, reader: &mut Reader) -> Option<Node> {
        let node = self.take(definition.name);
        if node.is_none() {
            reader.error(&self.path, format!("`{}` is missing: {}", definition.name, definition.advice()));
        }
        node
    }

    /// The value of a setting, or its default if it is missing or wrong.
    pub(super) fn get<T: FromValue>(&mut self, setting: &Setting<T>, reader: &mut Reader) -> T {
        let node = self.take(setting.definition.name);
        node.and_then(|node| node.read(&setting.definition, reader)).unwrap_or_else(|| setting.default_value())
    }
}

/// The path of a key within a mapping. Keys that would make a path ambiguous are quoted.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && !key.contains(|c: char| c == '.' || c == '[' || c.is_whitespace() || c.is_control());
    let key = if may_hold_password(key) {
        displayable(key)
    } else if plain {
        key.to_owned()
    } else {
        format!("{key:?}")
    };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("\"{}\"", displayable(text)),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Tagged(_) => "a tagged value".to_owned(),
    }
}

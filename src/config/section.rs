//! Typed reading of a YAML tree: every value knows its path, and what is wrong with it becomes a [`Problem`].
//!
//! A [`Node`] is read once, by the method for what it should be. `None` then means "told already": the caller goes on
//! with a default and the person sees all mistakes at once, none of them twice. Messages show a value as it stands in
//! the file, so never what an environment variable holds, and of anything like a URL no more than its scheme.

use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::definition::{Definition, FromValue, Mismatch, Setting, Support, plain_text};
use super::placeholder::Placeholders;
use super::problem::{Problem, Problems};

/// What reading a value needs.
pub(super) struct Reader<'a> {
    /// Fills placeholders in.
    pub(super) placeholders: Placeholders<'a>,
    /// The folder that relative paths start from.
    pub(super) dir: &'a Path,
    /// What was found so far.
    pub(super) problems: Problems,
}

impl Reader<'_> {
    pub(super) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(path, message));
    }

    pub(super) fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem::warning(path, message));
    }

    /// A name that is none of those allowed. Always `None`, for the caller to return.
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

/// A value at its place in the file, placeholders not yet filled in.
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

    /// Nothing, as in `workers: ~`.
    pub(super) fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// `false`, with which Symfony turns a section off.
    pub(super) fn is_false(&self) -> bool {
        self.value == Value::Bool(false)
    }

    /// Nothing, or a list or mapping with nothing in it.
    pub(super) fn is_nothing(&self) -> bool {
        match &self.value {
            Value::Sequence(items) => items.is_empty(),
            Value::Mapping(entries) => entries.is_empty(),
            value => value.is_null(),
        }
    }

    /// A section with `enabled: false` in it.
    pub(super) fn turns_itself_off(&self) -> bool {
        self.value.get("enabled") == Some(&Value::Bool(false))
    }

    /// The value as it stands in the file.
    pub(super) fn into_value(self) -> Value {
        self.value
    }

    pub(super) fn is_mapping(&self) -> bool {
        self.value.is_mapping()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_sequence()
    }

    /// Is there an entry of this name, with something in it?
    pub(super) fn has_entry(&self, key: &str) -> bool {
        self.value.get(key).is_some_and(|value| !value.is_null())
    }

    /// The entries of a mapping whose keys are free. To PHP `[]` is an empty mapping, and so it is here.
    pub(super) fn entries(self, expected: &str, reader: &mut Reader) -> Option<Vec<(String, Node)>> {
        let mapping = match self.value {
            Value::Mapping(mapping) => mapping,
            Value::Sequence(ref items) if items.is_empty() => Mapping::new(),
            _ => return self.mismatch(expected, reader),
        };
        let mut entries = Vec::with_capacity(mapping.len());
        for (key, value) in mapping {
            match plain_text(&key) {
                Some(key) => entries.push((key.clone(), Node::new(join(&self.path, &key), value))),
                None => reader.error(&self.path, format!("a key must be text, not {}", shown(&key))),
            }
        }
        Some(entries)
    }

    /// A mapping with these keys; any other key is a problem. A key that has no effect is warned of and left out.
    pub(super) fn section(self, keys: &'static [Definition], expected: &str, reader: &mut Reader) -> Option<Section> {
        let path = self.path.clone();
        let mut known = Vec::new();
        for (name, node) in self.entries(expected, reader)? {
            match keys.iter().find(|key| key.name == name).map(|key| key.support) {
                Some(Support::Used) => known.push((name, node)),
                Some(support) => node.warn_if_ignored(support, reader),
                None => {
                    let used = keys.iter().filter(|key| key.support == Support::Used).map(|key| key.name);
                    reader.problems.push(Problem::unknown(&path, "key", &displayable(&name), used));
                }
            }
        }
        Some(Section { path, entries: known })
    }

    /// Warns of a key without effect, unless nothing is said with it.
    pub(super) fn warn_if_ignored(&self, support: Support, reader: &mut Reader) {
        if let Support::Ignored { why, .. } = support
            && !self.is_nothing()
        {
            reader.warning(&self.path, format!("is ignored: {why}"));
        }
    }

    /// The items of a list. As PHP writes an empty one: `{  }`.
    pub(super) fn items(self, expected: &str, reader: &mut Reader) -> Option<Vec<Node>> {
        let items = match self.value {
            Value::Sequence(items) => items,
            Value::Mapping(ref entries) if entries.is_empty() => Vec::new(),
            _ => return self.mismatch(expected, reader),
        };
        let path = self.path;
        Some(items.into_iter().enumerate().map(|(n, item)| Node::new(format!("{path}[{n}]"), item)).collect())
    }

    /// The items of a list, or the one value that stands for a list of one.
    pub(super) fn items_or_one(self, expected: &str, reader: &mut Reader) -> Option<Vec<Node>> {
        if self.is_list() { self.items(expected, reader) } else { Some(vec![self]) }
    }

    /// Text. Numbers and booleans are taken as they are written.
    pub(super) fn text(&self, expected: &str, reader: &mut Reader) -> Option<String> {
        let Some(text) = plain_text(&self.resolved(reader)?) else { return self.mismatch(expected, reader) };
        if text.contains('\0') {
            reader.error(&self.path, "must not contain a NUL character");
            return None;
        }
        Some(text)
    }

    /// Text with something in it.
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

    /// The whole tree with its placeholders filled in.
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

    /// As [`Node::shown`], without quotes around text.
    fn as_name(&self) -> String {
        match &self.value {
            Value::String(text) => displayable(text),
            other => shown(other),
        }
    }

    /// Says what was expected and what is there. Always `None`, for the caller to return.
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
    /// Where it stands.
    pub(super) path: String,
    entries: Vec<(String, Node)>,
}

impl Section {
    /// Takes the value of a key out. A null value is none.
    pub(super) fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.swap_remove(at).1).filter(|node| !node.is_null())
    }

    /// As [`Section::take`], where a missing key is a problem. The message says what the key is for.
    pub(super) fn require(&mut self, definition: &Definition, reader: &mut Reader) -> Option<Node> {
        let node = self.take(definition.name);
        if node.is_none() {
            reader.error(&self.path, format!("`{}` is missing: {}", definition.name, definition.advice()));
        }
        node
    }

    /// The value of a setting, or its default where it is missing or wrong.
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

/// `scheme://…`, or `user:password@host`.
fn may_hold_password(text: &str) -> bool {
    text.contains("://") || (text.contains('@') && text.contains(':'))
}

/// Text for a message: short, on one line, and with nothing of a URL that could be a password.
pub(super) fn displayable(text: &str) -> String {
    const LONGEST: usize = 60;
    if may_hold_password(text) {
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        let plain = scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        return if plain && !scheme.is_empty() { format!("{scheme}:…") } else { "…".to_owned() };
    }
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    // In names of types every backslash would be doubled.
    short.replace(r"\\", r"\").replace("\\'", "'").replace("\\\"", "\"")
}

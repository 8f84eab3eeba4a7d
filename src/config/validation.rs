//! Reads `validation`: what messages must be like.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde_json::Value;

use super::definition::{Definition, Kind};
use super::routes::check_pattern;
use super::section::{Node, Reader};

/// The key `validation`.
pub(super) const VALIDATION: Definition = Definition::new(
    "validation",
    Kind::Map(&Kind::Section(RULES)),
    "what messages must be like, by type or wildcard; an invalid one is refused, and not tried again",
);
const RULES: &[Definition] = &[SCHEMA, GROUPS];
const SCHEMA: Definition = Definition::new("schema", SCHEMA_KIND, "a JSON schema: a file, or the schema itself");
const GROUPS: Definition = Definition::new(
    "groups",
    Kind::Map(&SCHEMA_KIND),
    "further schemas by name, for messages whose `ValidationStamp` names them",
);
const SCHEMA_KIND: Kind = Kind::Either(&[Kind::Text("path"), Kind::Map(&Kind::Anything)]);

const FORM: &str = "a rule such as `schema: schemas/mail.json`";

/// A schema for messages.
#[cfg_attr(not(feature = "validation"), allow(dead_code, reason = "read where messages are checked"))]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SchemaConfig {
    /// The type or wildcard that it is for.
    pub(crate) pattern: String,
    /// For messages that name this group alone.
    pub(crate) group: Option<String>,
    /// Its place in the file.
    pub(crate) path: String,
    /// The schema.
    pub(crate) source: SchemaSource,
}

/// Where a schema is.
#[cfg_attr(not(feature = "validation"), allow(dead_code, reason = "read where messages are checked"))]
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SchemaSource {
    /// In this file, relative to the configuration's folder.
    File(PathBuf),
    /// In the configuration.
    Inline(Value),
}

/// All schemas, in the order of the file.
pub(super) fn read_validation(entries: IndexMap<String, Node>, reader: &mut Reader) -> Vec<SchemaConfig> {
    let mut schemas = Vec::new();
    for (pattern, node) in entries {
        check_pattern(&pattern, &node.path, reader);
        let Some(mut section) = node.section(RULES, FORM, reader) else { continue };
        let (schema, groups) = (section.take("schema"), section.take("groups"));
        if schema.is_none() && groups.is_none() {
            reader.error(&section.path, format!("must be {FORM}"));
        }
        let groups = groups.and_then(|node| node.entries("a mapping of names to schemas", reader)).unwrap_or_default();
        let all = schema
            .map(|node| (None, node))
            .into_iter()
            .chain(groups.into_iter().map(|(name, node)| (Some(name), node)));
        for (group, node) in all {
            let path = node.path.clone();
            if let Some(source) = read_schema(node, reader) {
                schemas.push(SchemaConfig { pattern: pattern.clone(), group, path, source });
            }
        }
    }
    schemas
}

fn read_schema(node: Node, reader: &mut Reader) -> Option<SchemaSource> {
    let expected = "the path of a JSON schema, or the schema itself";
    if !node.is_mapping() {
        return node.filled_text(expected, reader).map(|file| SchemaSource::File(file.into()));
    }
    let path = node.path.clone();
    match serde_json::to_value(node.tree(reader)?) {
        Ok(schema) => Some(SchemaSource::Inline(schema)),
        Err(error) => {
            reader.error(&path, format!("must be {expected}: {error}"));
            None
        }
    }
}

//! Validates a value against a JSON schema. Supports the part of draft 2020-12 that [`schema`](super::schema()) uses.
//! For tests: a complete validator would add too many dependencies.

use regex_lite::Regex;
use serde_json::{Map, Value};

/// Validates a value. The error says where it is invalid, and by which keyword. Unknown keywords are mistakes in the
/// schema.
pub(crate) fn validate(value: &Value, schema: &Value) -> Result<(), String> {
    Validator { root: schema }.check(value, schema, "")
}

struct Validator<'a> {
    root: &'a Value,
}

impl Validator<'_> {
    fn check(&self, value: &Value, schema: &Value, at: &str) -> Result<(), String> {
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => return Err(format!("{at}: nothing is allowed")),
            schema => schema.as_object().expect("a schema is a boolean or an object"),
        };
        for (keyword, argument) in keywords {
            if !self.holds(keyword, argument, keywords, value, at)? {
                return Err(format!("{at}: {keyword} {argument}: {value}"));
            }
        }
        Ok(())
    }

    fn is_valid(&self, value: &Value, schema: &Value) -> bool {
        self.check(value, schema, "").is_ok()
    }

    /// Whether the value satisfies a keyword. The error is that of a part of the value.
    fn holds(
        &self,
        keyword: &str,
        argument: &Value,
        keywords: &Map<String, Value>,
        value: &Value,
        at: &str,
    ) -> Result<bool, String> {
        let schemas = || argument.as_array().expect("a list of schemas");
        Ok(match (keyword, value) {
            ("$schema" | "$defs" | "title" | "description" | "default" | "examples" | "then", _) => true,
            ("$ref", _) => {
                let pointer = argument.as_str().and_then(|reference| reference.strip_prefix('#')).unwrap();
                self.check(value, self.root.pointer(pointer).expect(pointer), at)?;
                true
            }
            ("type", _) => match argument {
                Value::Array(types) => types.iter().any(|name| is_of(name, value)),
                name => is_of(name, value),
            },
            ("const", _) => value == argument,
            ("enum", _) => schemas().contains(value),
            ("not", _) => !self.is_valid(value, argument),
            ("anyOf", _) => schemas().iter().any(|schema| self.is_valid(value, schema)),
            ("allOf", _) => {
                schemas().iter().try_for_each(|schema| self.check(value, schema, at))?;
                true
            }
            ("if", _) => {
                if self.is_valid(value, argument) {
                    self.check(value, &keywords["then"], at)?;
                }
                true
            }
            ("minimum", Value::Number(number)) => number.as_f64() >= argument.as_f64(),
            ("maximum", Value::Number(number)) => number.as_f64() <= argument.as_f64(),
            ("pattern", Value::String(text)) => Regex::new(argument.as_str().unwrap()).unwrap().is_match(text),
            ("items", Value::Array(items)) => {
                items.iter().enumerate().try_for_each(|(n, item)| self.check(item, argument, &format!("{at}/{n}")))?;
                true
            }
            ("maxItems", Value::Array(items)) => items.len() as u64 <= argument.as_u64().unwrap(),
            ("maxProperties", Value::Object(entries)) => entries.len() as u64 <= argument.as_u64().unwrap(),
            ("required", Value::Object(entries)) => {
                schemas().iter().all(|name| entries.contains_key(name.as_str().unwrap()))
            }
            ("propertyNames", Value::Object(entries)) => {
                entries.keys().try_for_each(|name| self.check(&name.as_str().into(), argument, at))?;
                true
            }
            ("properties", Value::Object(entries)) => {
                for (name, entry) in entries {
                    if let Some(schema) = argument.get(name) {
                        self.check(entry, schema, &format!("{at}/{name}"))?;
                    }
                }
                true
            }
            ("patternProperties", Value::Object(entries)) => {
                for (pattern, schema) in argument.as_object().unwrap() {
                    let pattern = Regex::new(pattern).unwrap();
                    for (name, entry) in entries.iter().filter(|(name, _)| pattern.is_match(name)) {
                        self.check(entry, schema, &format!("{at}/{name}"))?;
                    }
                }
                true
            }
            ("additionalProperties", Value::Object(entries)) => {
                let known = keywords.get("properties");
                let additional = entries.iter().filter(|(name, _)| known.is_none_or(|known| known.get(name).is_none()));
                for (name, entry) in additional {
                    self.check(entry, argument, &format!("{at}/{name}"))?;
                }
                true
            }
            (
                "minimum"
                | "maximum"
                | "pattern"
                | "items"
                | "maxItems"
                | "maxProperties"
                | "required"
                | "propertyNames"
                | "properties"
                | "patternProperties"
                | "additionalProperties",
                _,
            ) => true,
            (unknown, _) => panic!("the schema uses \"{unknown}\", which is not checked here"),
        })
    }
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type is text") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("\"{other}\" is no type"),
    }
}

//! The JSON schema of the configuration file, for editors and for checks in a pipeline: JSON Schema, draft 2020-12.
//!
//! It is generated from the same definitions as the checks of `minutely config check`, and accepts every value that
//! they accept. It cannot check what depends on the whole file, for example whether a transport exists.

use serde_json::{Map, Value, json};

use super::definition::{Definition, Kind, Missing, OptionsOf, Support};
use super::keys;

/// The options for some DSN schemes.
#[derive(Debug, Clone)]
pub struct SchemeOptions {
    /// The schemes, in lower case.
    pub schemes: Vec<&'static str>,
    /// The options in such DSNs, or beside them.
    pub options: Vec<Definition>,
}

/// A file with one of these keys belongs to an application, and may have any other keys.
const APPLICATIONS: [(&str, &str, &[Definition]); 2] =
    [("framework", "where Symfony has its keys", keys::SYMFONY), ("contao", "where Contao has its keys", keys::CONTAO)];

/// The schema, with the options of the given transports and caches.
pub fn schema(transports: &[SchemeOptions], caches: &[SchemeOptions]) -> Value {
    let schema = Schema { transports, caches };
    let mut properties = schema.properties(keys::KEYS);
    for (name, help, known) in APPLICATIONS {
        let messenger = json!({ "anyOf": [schema.section(known), schema.disabled(known), { "const": null }] });
        let application = json!({
            "description": help,
            "type": ["object", "null"],
            "properties": { "messenger": messenger },
        });
        properties.insert(name.to_owned(), application);
    }
    let names: Vec<&String> = properties.keys().collect();
    let application = APPLICATIONS.map(|(name, ..)| json!({ "required": [name] }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of minutely",
        "type": "object",
        "if": { "not": { "anyOf": application } },
        "then": { "propertyNames": { "enum": names } },
        "properties": properties,
        "$defs": {
            "placeholder": {
                "description": "A placeholder such as %env(NAME)%",
                "type": "string",
                "pattern": r"%(env\(.+\)|kernel\.[a-z_]+)%",
            },
        },
    })
}

struct Schema<'a> {
    transports: &'a [SchemeOptions],
    caches: &'a [SchemeOptions],
}

impl Schema<'_> {
    fn properties(&self, definitions: &[Definition]) -> Map<String, Value> {
        let written = definitions.iter().filter(|definition| !is_always_refused(definition));
        written.map(|definition| (definition.name.to_owned(), self.property(definition))).collect()
    }

    /// A value, with its help. Null is the same as leaving the key out.
    fn property(&self, definition: &Definition) -> Value {
        let mut property = Map::new();
        property.insert("description".to_owned(), description(definition).into());
        if let Missing::Value(default) = definition.default {
            property.insert("default".to_owned(), scalar(default));
        }
        if let Some(example) = definition.example {
            property.insert("examples".to_owned(), json!([scalar(example)]));
        }
        let mut values = self.values(&definition.kind);
        if definition.default != Missing::Required && !values.is_empty() {
            values.push(json!({ "const": null }));
        }
        if !values.is_empty() {
            property.insert("anyOf".to_owned(), values.into());
        }
        Value::Object(property)
    }

    fn value(&self, kind: &Kind) -> Value {
        let mut values = self.values(kind);
        match values.len() {
            0 => json!({}),
            1 => values.remove(0),
            _ => json!({ "anyOf": values }),
        }
    }

    /// The schema of a value; empty if it may be anything.
    fn values(&self, kind: &Kind) -> Vec<Value> {
        let placeholder = || json!({ "$ref": "#/$defs/placeholder" });
        let text_of = |pattern: &str| json!({ "type": "string", "pattern": pattern });
        match kind {
            Kind::Text(_) => vec![json!({ "type": ["string", "number", "boolean"] })],
            Kind::Choice(values) => vec![json!({ "enum": values }), placeholder()],
            Kind::Flag => vec![json!({ "type": "boolean" }), placeholder()],
            Kind::PhpFlag => {
                let texts = text_of("^([Tt]rue|[Ff]alse|[Oo]n|[Oo]ff|[Yy]es|[Nn]o|0|1|)$");
                vec![json!({ "type": "boolean" }), json!({ "enum": [0, 1] }), texts, placeholder()]
            }
            Kind::Whole(min, max) => vec![whole(*min, *max), text_of("^ *[0-9]+ *$"), placeholder()],
            Kind::WholeDuration(_) => vec![whole(0, u32::MAX.into()), text_of("^[0-9]*$"), placeholder()],
            Kind::Number(min, max) => {
                let number = json!({ "type": "number", "minimum": min, "maximum": max });
                vec![number, text_of(r"^ *[0-9.eE+-]+ *$"), placeholder()]
            }
            Kind::Timeout => {
                vec![json!({ "type": "number", "minimum": 0 }), text_of(r"^[0-9.eE+-]*$"), placeholder()]
            }
            Kind::Duration(_) => {
                let text = text_of(r"^ *[0-9]+(\.[0-9]+)? *(ms|s|m|h)? *$");
                vec![json!({ "type": "number", "minimum": 0 }), text, placeholder()]
            }
            Kind::List(item) => vec![self.list(item), json!({ "type": "object", "maxProperties": 0 })],
            Kind::OneOrMore(one) => {
                let mut values = self.values(one);
                values.push(self.list(one));
                values
            }
            Kind::Map(value) => {
                let map = json!({ "type": "object", "additionalProperties": nullable(self.value(value)) });
                vec![map, empty_list()]
            }
            Kind::Section(keys) => vec![self.section(keys), empty_list()],
            Kind::Off(keys) => vec![json!({ "const": false }), self.disabled(keys)],
            Kind::Either(kinds) => kinds.iter().flat_map(|kind| self.values(kind)).collect(),
            Kind::Options(_) => vec![json!({ "type": "object" }), empty_list()],
            Kind::Anything => Vec::new(),
        }
    }

    fn list(&self, item: &Kind) -> Value {
        json!({ "type": "array", "items": self.value(item) })
    }

    /// A mapping with these keys and no others.
    fn section(&self, definitions: &[Definition]) -> Value {
        let required: Vec<&str> = definitions
            .iter()
            .filter(|definition| definition.default == Missing::Required)
            .map(|definition| definition.name)
            .collect();
        let mut section = json!({
            "type": "object",
            "properties": self.properties(definitions),
            "additionalProperties": false,
        });
        if !required.is_empty() {
            section["required"] = required.into();
        }
        let options = definitions.iter().find_map(|definition| match definition.kind {
            Kind::Options(of) => Some((definition.name, of)),
            _ => None,
        });
        if let Some((name, of)) = options {
            section["allOf"] = self.options_by_scheme(name, of).into();
        }
        section
    }

    /// The same, switched off: then nothing is required.
    fn disabled(&self, definitions: &[Definition]) -> Value {
        let mut properties = self.properties(definitions);
        properties.insert("enabled".to_owned(), json!({ "const": false }));
        let section = json!({
            "type": "object",
            "properties": properties,
            "additionalProperties": false,
            "required": ["enabled"],
        });
        json!({ "anyOf": [section, { "const": false }] })
    }

    /// The possible options depend on the scheme of the DSN beside them.
    fn options_by_scheme(&self, name: &str, of: OptionsOf) -> Vec<Value> {
        let all = match of {
            OptionsOf::Transport => self.transports,
            OptionsOf::Cache => self.caches,
        };
        let options = all.iter().map(|known| {
            let pattern = format!("^({}):", known.schemes.join("|"));
            let section = self.section(&known.options);
            json!({
                "if": { "properties": { "dsn": { "type": "string", "pattern": pattern } }, "required": ["dsn"] },
                "then": { "properties": { name: { "anyOf": [section, empty_list(), { "const": null }] } } },
            })
        });
        options.collect()
    }
}

fn whole(min: u64, max: u64) -> Value {
    json!({ "type": "integer", "minimum": min, "maximum": max })
}

/// In PHP, an empty list is also an empty mapping.
fn empty_list() -> Value {
    json!({ "type": "array", "maxItems": 0 })
}

fn nullable(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "const": null }] })
}

fn is_always_refused(definition: &Definition) -> bool {
    matches!(definition.support, Support::Refused { same: [], .. })
}

fn description(definition: &Definition) -> String {
    match definition.support {
        Support::Used | Support::Accepted => definition.help.to_owned(),
        Support::Ignored { why, .. } => format!("Has no effect: {why}"),
        Support::Refused { why, .. } => format!("Not supported: {why}"),
    }
}

/// A default or example as JSON: as a number if it is one.
fn scalar(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|_| text.into())
}

#[cfg(test)]
mod tests {
    use super::super::{validator, yaml};
    use super::*;

    /// What a validator finds wrong with a text, by the schema of a program that knows these transports.
    fn validate(text: &str, transports: &[SchemeOptions]) -> Result<(), String> {
        validator::validate(&serde_json::to_value(yaml::parse(text).unwrap()).unwrap(), &schema(transports, &[]))
    }

    fn shop() -> [SchemeOptions; 1] {
        use super::super::Setting;
        const OPTIONS: [Definition; 3] = [
            Setting::php_flag("gift", "false", "wrap it").definition,
            Setting::seconds("patience", "30", "how long to wait").definition,
            Definition::refused("haggle", &[], "prices are fixed"),
        ];
        [SchemeOptions { schemes: vec!["shop", "shops"], options: OPTIONS.to_vec() }]
    }

    #[test]
    fn the_schema_accepts_what_the_reader_accepts() {
        for text in [
            "transports: {a: 'sync://', b: {dsn: 'sqlite:a.db', options: {queue_name: a}}, c: '%env(DSN)%'}",
            "transports: {a: {dsn: 'shops://x', options: {gift: on, patience: '%env(int:N)%'}}}",
            "transports: {a: {dsn: 'shop:', options: {gift: 1, patience: 5}, retry_strategy: {delay: 2s, jitter: 0}}}",
            "transports: {a: {dsn: x, retry_strategy: {service: my.php}, rate_limiter: mine, options: []}}",
            "transports: []\nworkers: ~\nheartbeat: {ttl: 1.5h}",
            "workers: [{transports: a, autoscale: false}, {transports: [a, b], autoscale: {enabled: false}}]",
            "workers: [{transports: a, options: [--sleep, 5], command: php x, autoscale: {desired_size: 5, min: 0}}]",
            "workers: [{transports: [a], command: [php, 5], autoscale: {desired_size: '%env(SIZE)%', scope: cluster}}]",
            "handlers: {A: {exec: [php, 5], timeout: 30}, B: [{exec: [a]}, {exec: [b], timeout: ~}]}",
            "routing: {A: a, B: [a, b], C: {senders: [a]}}\ninterfaces: {A: B, C: [D]}",
            "cache: redis://h\nconnections: {default: '%env(DATABASE_URL)%'}\nstate_dir: var",
            "cache: {dsn: 'redis://h', options: {prefix: a}}",
            "services: {a: b}\nframework: {secret: x, messenger: {transports: {a: x}, buses: {b: ~}, enabled: true}}",
            "framework: {messenger: false}\ncontao: {messenger: {workers: [], web_worker: {transports: [a]}}}",
        ] {
            assert_eq!(validate(text, &shop()), Ok(()), "{text}");
        }
    }

    #[test]
    fn misspelt_keys_and_wrong_values_are_refused() {
        for text in [
            "transprots: {}",
            "transports: {a: {dns: 'sync://'}}",
            "transports: {a: {dsn: 'shop:', options: {gitf: true}}}",
            "transports: {a: {dsn: 'shop:', options: {gift: perhaps}}}",
            "transports: {a: {dsn: 'shop:', options: {patience: soon}}}",
            "transports: {a: {dsn: 'shop:', options: {haggle: true}}}",
            "transports: {a: {options: {}}}",
            "transports: {a: {dsn: x, retry_strategy: {max_retries: -1}}}",
            "transports: {a: {dsn: x, retry_strategy: {multiplier: 0.5}}}",
            "workers: [{transport: a}]",
            "workers: [{transports: a, autoscale: {min: 1}}]",
            "workers: [{transports: a, autoscale: {desired_size: 5, max: 100000}}]",
            "workers: [{transports: a, autoscale: {desired_size: 5, scope: galaxy}}]",
            "handlers: {A: {exec: [a], timeout: soon}}",
            "handlers: {A: {exec: php a}}",
            "routing: {A: {sender: a}}",
            "heartbeat: {ttl: [1]}",
            "framework: {messenger: {transport: {}}}",
            "contao: {messenger: {worker: []}}",
        ] {
            assert!(validate(text, &shop()).is_err(), "{text}");
        }
    }
}

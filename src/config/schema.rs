//! The JSON schema of the configuration file, for editors and for checks in a pipeline: JSON Schema, draft 2020-12.
//!
//! It is generated from the same definitions as the checks of `minutely config check`, and accepts every value that
//! they accept. It cannot check what depends on the whole file, for example whether a transport exists. Of the
//! options in a DSN it checks the names only.

use serde_json::{Map, Value, json};

use super::definition::{Definition, Kind, Missing, OptionsOf, Support};
use super::{consume_options, keys};

/// The options for some DSN schemes.
#[derive(Debug, Clone)]
pub(crate) struct SchemeOptions {
    /// The schemes, in lower case.
    pub schemes: Vec<&'static str>,
    /// The options in such DSNs, or beside them.
    pub options: Vec<Definition>,
}

/// A file with one of these keys belongs to an application, and may have any other keys.
const APPLICATIONS: [(&str, &str, &[Definition]); 2] =
    [("framework", "where Symfony has its keys", keys::SYMFONY), ("contao", "where Contao has its keys", keys::CONTAO)];

/// The names of sections for one environment.
const SECTION: &str = "^when@.+$";

/// The schema, with the options of the given transports and caches.
pub(crate) fn schema(transports: &[SchemeOptions], caches: &[SchemeOptions]) -> Value {
    let schema = Schema { transports, caches, in_options: false };
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
        "then": { "propertyNames": { "anyOf": [{ "enum": names }, { "pattern": SECTION }] } },
        "properties": properties,
        // What is required may be outside of the section.
        "patternProperties": {
            (SECTION): {
                "description": "the keys that are different in this environment (`APP_ENV`), merged into the others",
                "type": ["object", "null"],
            },
        },
        "$defs": {
            "placeholder": {
                "description": "A placeholder such as %env(NAME)%",
                "type": "string",
                "pattern": r"%(env\(.+\)|kernel\.[a-z_]+)%",
            },
            (dsn_definition(OptionsOf::Transport)): schema.dsn(OptionsOf::Transport),
            (dsn_definition(OptionsOf::Cache)): schema.dsn(OptionsOf::Cache),
        },
    })
}

/// Where the schema of a DSN is among the definitions.
fn dsn_definition(of: OptionsOf) -> &'static str {
    match of {
        OptionsOf::Transport => "transport_dsn",
        OptionsOf::Cache => "cache_dsn",
    }
}

const DURATION: &str = r"\s*[0-9]+(\.[0-9]+)?\s*(ms|s|m|h)?\s*";
const WHOLE: &str = r"\s*\+?[0-9]+\s*";

#[derive(Clone, Copy)]
struct Schema<'a> {
    transports: &'a [SchemeOptions],
    caches: &'a [SchemeOptions],
    /// Is this about options that a DSN may have too? Then what is missing here may be there, and an empty text is the same
    /// as nothing.
    in_options: bool,
}

impl Schema<'_> {
    fn properties(&self, definitions: &[Definition]) -> Map<String, Value> {
        definitions.iter().map(|definition| (definition.name.to_owned(), self.property(definition))).collect()
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
        let mut values = match definition.support {
            Support::Refused { same, .. } => refused_but(same),
            _ => self.values(&definition.kind),
        };
        let is_anything = values.is_empty() && !matches!(definition.support, Support::Refused { .. });
        if self.in_options || definition.default != Missing::Required {
            values.push(json!({ "const": null }));
        }
        if self.in_options {
            values.push(json!({ "const": "" }));
        }
        if !is_anything {
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
        let text_of = |pattern: &str| text_of(&format!("^{pattern}$"));
        match kind {
            Kind::Text(_) | Kind::Argument => vec![json!({ "type": ["string", "number", "boolean"] })],
            Kind::Dsn(of) => vec![json!({ "$ref": format!("#/$defs/{}", dsn_definition(*of)) })],
            Kind::Matching(_, pattern) => {
                vec![text_of(&format!("({pattern})")), json!({ "type": ["number", "boolean"] }), placeholder()]
            }
            Kind::Choice(values) => vec![json!({ "enum": values }), placeholder()],
            Kind::Flag => vec![json!({ "type": "boolean" }), placeholder()],
            Kind::PhpFlag => {
                let texts = text_of(&in_any_case(&["true", "false", "on", "off", "yes", "no", "0", "1"]));
                vec![json!({ "type": "boolean" }), json!({ "enum": [0, 1] }), texts, placeholder()]
            }
            Kind::Whole(min, max) => vec![whole(*min, *max), text_of(WHOLE), placeholder()],
            Kind::WholeDuration(_) => vec![whole(0, u32::MAX.into()), text_of(r"\+?[0-9]+"), placeholder()],
            Kind::Number(min, max) => {
                let number = json!({ "type": "number", "minimum": min, "maximum": max });
                vec![number, text_of(r"\s*[0-9.eE+-]+\s*"), placeholder()]
            }
            Kind::Timeout => {
                vec![json!({ "type": "number", "minimum": 0 }), text_of("[0-9.eE+-]+"), placeholder()]
            }
            Kind::Duration(_) => {
                vec![json!({ "type": "number", "minimum": 0 }), text_of(DURATION), placeholder()]
            }
            Kind::List(item) => vec![self.list(item), json!({ "type": "object", "maxProperties": 0 })],
            Kind::OneOrMore(one) => {
                let mut values = self.values(one);
                values.push(self.list(one));
                if self.in_options {
                    values.push(self.numbered(one));
                }
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

    /// A list as PHP has it, and a DSN: its items with their numbers.
    fn numbered(&self, item: &Kind) -> Value {
        let numbers = json!({ "pattern": "^[0-9]+$" });
        json!({ "type": "object", "propertyNames": numbers, "additionalProperties": self.value(item) })
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
        if !required.is_empty() && !self.in_options {
            section["required"] = required.into();
        }
        for definition in definitions {
            match definition.kind {
                Kind::Options(of) => section["allOf"] = self.options_by_scheme(definition.name, of).into(),
                Kind::List(Kind::Argument) => section["allOf"] = json!([arguments_of_consume(definition.name)]),
                _ => {}
            }
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

    fn known(&self, of: OptionsOf) -> &[SchemeOptions] {
        match of {
            OptionsOf::Transport => self.transports,
            OptionsOf::Cache => self.caches,
        }
    }

    /// Schemes, each with the sets of options of which one goes with it. What is at a `doctrine://NAME`, only the
    /// connection's URL tells.
    fn options_of_schemes(&self, of: OptionsOf) -> Vec<(String, Vec<Vec<Definition>>)> {
        let known = self.known(of).iter();
        let mut all: Vec<_> = known.map(|known| (in_any_case(&known.schemes), vec![known.options.clone()])).collect();
        let is_of_queue = |definition: &&Definition| !definition.of_connection;
        let anywhere = self.known(of).iter().map(|known| known.options.iter().filter(is_of_queue).copied().collect());
        all.push((in_any_case(&["doctrine"]), anywhere.collect()));
        all
    }

    /// Which options there are is decided by the scheme of the DSN beside them.
    fn options_by_scheme(&self, name: &str, of: OptionsOf) -> Vec<Value> {
        let inner = Self { in_options: true, ..*self };
        let options = self.options_of_schemes(of).into_iter().map(|(schemes, sets)| {
            let mut values: Vec<Value> = sets.iter().map(|options| inner.section(options)).collect();
            values.extend([empty_list(), json!({ "const": null })]);
            json!({
                "if": {
                    "properties": { "dsn": text_of(&format!("^{schemes}:")) },
                    "required": ["dsn"],
                },
                "then": { "properties": { name: { "anyOf": values } } },
            })
        });
        options.collect()
    }

    /// A DSN: its scheme, and the names of the options in it.
    fn dsn(&self, of: OptionsOf) -> Value {
        let all = self.options_of_schemes(of);
        let schemes: Vec<&str> = all.iter().map(|(schemes, _)| schemes.as_str()).collect();
        let options = all.iter().map(|(schemes, sets)| {
            let mut names: Vec<&str> = sets.iter().flatten().map(|option| option.name).collect();
            names.sort_unstable();
            names.dedup();
            // `queues[a]=b`, and names that are written with escapes or filled in.
            let option = format!(r"(({})(\[[^=&]*)?(=[^&]*)?|[^=&]*[%+][^&]*)?", names.join("|"));
            json!({
                "if": { "pattern": format!(r"^{schemes}:[^?]*\?") },
                "then": { "pattern": format!(r"^[^?]*\?{option}(&{option})*$") },
            })
        });
        json!({
            "type": "string",
            "anyOf": [{ "pattern": format!(r"^\s*({}):", schemes.join("|")) }, { "$ref": "#/$defs/placeholder" }],
            "allOf": options.collect::<Vec<_>>(),
        })
    }
}

/// The arguments of a worker, where it is this program's own: `--sleep=5`, `--sleep` and `5`, `-t5`.
fn arguments_of_consume(name: &str) -> Value {
    let command = consume_options::definitions();
    let (mut complete, mut patterns, mut shorts) = (Vec::new(), Vec::new(), String::new());
    for option in command.get_arguments() {
        shorts.extend(option.get_short());
        let Some(long) = option.get_long() else { continue };
        complete.push(format!("--{long}"));
        if option.get_action().takes_values() {
            let value = option.get_value_names().and_then(|names| names.first());
            let value = match value.map_or("", |name| name.as_str()) {
                "TIME" => DURATION,
                "N" => r"\+?[0-9]+",
                _ => ".+",
            };
            patterns.push(format!("--{long}={value}"));
        }
    }
    let items = json!({ "anyOf": [
        { "enum": complete },
        text_of(&format!("^({})$", patterns.join("|"))),
        { "description": "options of one letter, or the value of the option before", "type": "string", "pattern": format!("^(-[{shorts}].*|[^-].*)$") },
        { "type": "number" },
        { "$ref": "#/$defs/placeholder" },
    ] });
    json!({
        "if": { "not": { "required": ["command"] } },
        "then": { "properties": { name: { "items": items } } },
    })
}

/// The values that ask for what is done anyway.
fn refused_but(same: &[&str]) -> Vec<Value> {
    if same.is_empty() {
        return Vec::new();
    }
    let plain: Vec<Value> = same.iter().map(|value| scalar(value)).collect();
    vec![json!({ "enum": plain }), text_of(&format!("^{}$", in_any_case(same)))]
}

fn text_of(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

/// A pattern for these words in upper and lower case.
fn in_any_case(words: &[&str]) -> String {
    let letter = |c: char| match c {
        'a'..='z' => format!("[{}{c}]", c.to_ascii_uppercase()),
        '+' | '.' => format!(r"\{c}"),
        c => c.to_string(),
    };
    let words: Vec<String> = words.iter().map(|word| word.chars().map(letter).collect()).collect();
    format!("({})", words.join("|"))
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

    /// What a validator finds wrong with a text, by the schema of a program with these transports and caches.
    fn validate(text: &str) -> Result<(), String> {
        use super::super::Setting;
        const GIFT: Definition = Setting::php_flag("gift", "false", "wrap it").definition;
        const PATIENCE: Definition = Setting::seconds("patience", "30", "how long to wait").definition;
        const COUNTER: Definition = Setting::text("counter", "", "where to stand").of_connection().definition;
        const TAGS: Definition = Setting::list("tags", "what it is marked with").definition;
        const LABELS: Definition = Setting::map("labels", "what is written on it").definition;
        const STALL: Definition =
            Setting::text("stall", "a", "where it is").matching("[a-z]|[0-9]+", "a letter").definition;
        const BAGS: Definition = Definition::new("bags", Kind::Section(&[GIFT]), "what it is put in").required();
        let of = |schemes: &[&'static str], options: &[Definition]| SchemeOptions {
            schemes: schemes.to_vec(),
            options: options.to_vec(),
        };
        let haggle = Definition::refused("haggle", &[], "prices are fixed");
        let prices = Definition::refused("prices", &["fixed", "1"], "prices are fixed");
        let transports = [
            of(&["sync"], &[]),
            of(&["shop", "shops"], &[GIFT, PATIENCE, COUNTER, TAGS, LABELS, STALL, BAGS, haggle, prices]),
        ];
        let caches = [of(&["redis"], &[Setting::text("prefix", "", "what keys begin with").definition])];
        validator::validate(&serde_json::to_value(yaml::parse(text).unwrap()).unwrap(), &schema(&transports, &caches))
    }

    #[test]
    fn the_schema_accepts_what_the_reader_accepts() {
        for text in [
            "transports: {a: 'sync://', b: {dsn: '%env(DSN)%', options: {queue_name: a}}, c: '%env(DSN)%?queue_name=a'}",
            "transports: {a: ' SHOP:x?gift', b: 'shop://u:p@h/x?gift=1&&patience=&bags[gift]=on&%67ift=on&counter=&haggle='}",
            "transports: {a: {dsn: 'shop:?bags[gift]=on', options: {gift: '', patience: ~, haggle: ~, prices: FIXED}}}",
            "transports: {a: {dsn: 'shop:?tags[]=a&labels[b]=c', options: {tags: [a, 5], labels: {a: b, c: ~}, stall: 12}}}",
            "transports: {a: {dsn: 'shop:', options: {tags: a, labels: [], stall: x}}}",
            "transports: {a: {dsn: 'shop:', options: {tags: {0: a, 1: b}, labels: {}, stall: '%env(STALL)%'}}}",
            "transports: {a: {dsn: 'doctrine://default?gift=1', options: {patience: 1, prices: 1}}, b: 'doctrine://x'}",
            "transports: {a: {dsn: 'shops://x', options: {gift: on, patience: '%env(int:N)%'}}}",
            "transports: {a: {dsn: 'shop:', options: {gift: 1, patience: 5}, retry_strategy: {delay: 2s, jitter: 0}}}",
            "transports: {a: {dsn: 'sync://', retry_strategy: {service: my.php}, rate_limiter: mine, options: []}}",
            "rate_limiter: {a: {policy: token_bucket, limit: 5, rate: {interval: 15 minutes, amount: 2}}}",
            "transports: []\nworkers: ~\nheartbeat: {ttl: 1.5h}",
            "workers: [{transports: a, autoscale: false}, {transports: [a, b], autoscale: {enabled: false}}]",
            "workers: [{transports: a, options: [--env=prod], command: php x, autoscale: {desired_size: 5, min: 0}}]",
            "workers: [{transports: a, options: [--sleep, 5, -t5m, -vvl, 3, '--limit=%env(N)%', --keepalive, --queues=a b]}]",
            "workers: [{transports: a, options: [--no-reset, --time-limit=1.5h, --memory-limit, 128M, -q], command: ~}]",
            "workers: [{transports: [a], command: [php, 5], autoscale: {desired_size: '%env(SIZE)%', scope: cluster}}]",
            "handlers: {A: {exec: [php, 5], timeout: 30}, B: [{exec: [a]}, {exec: [b], timeout: ~}]}",
            "routing: {A: a, B: [a, b], C: {senders: [a]}}\ninterfaces: {A: B, C: [D]}",
            "cache: redis://h\nconnections: {default: '%env(DATABASE_URL)%'}\nstate_dir: var",
            "cache: {dsn: 'redis://h', options: {prefix: a}}",
            "services: {a: b}\nframework: {secret: x, messenger: {transports: {a: 'shop:x'}, buses: {b: ~}, enabled: true}}",
            "transports: {a: 'shop:x'}\nwhen@test: {transports: {a: {options: {gift: 1}}}}\nwhen@dev: ~",
            "framework: {messenger: false}\ncontao: {messenger: {workers: [], web_worker: {transports: [a]}}}",
        ] {
            assert_eq!(validate(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn misspelt_keys_and_wrong_values_are_refused() {
        for text in [
            "transprots: {}",
            "when@dev: 5",
            "when@: {}",
            "transports: {a: {dns: 'sync://'}}",
            "transports: {a: {dsn: 'shop:', options: {gitf: true}}}",
            "transports: {a: {dsn: 'shop:', options: {gift: perhaps}}}",
            "transports: {a: {dsn: 'shop:', options: {patience: soon}}}",
            "transports: {a: {dsn: 'shop:', options: {haggle: true}}}",
            "transports: {a: {dsn: 'shop:', options: {tags: {a: b}}}}",
            "transports: {a: {dsn: 'shop:', options: {tags: [[a]]}}}",
            "transports: {a: {dsn: 'shop:', options: {labels: a}}}",
            "transports: {a: {dsn: 'shop:', options: {labels: {a: [b]}}}}",
            "transports: {a: {dsn: 'shop:', options: {stall: xy}}}",
            "transports: {a: {options: {}}}",
            "transports: {a: 'shop:x?gitf=1'}",
            "transports: {a: 'shop:x?gift=1&patience'}\ncache: {dsn: 'redis://h?gift=1'}",
            "transports: {a: {dsn: 'shops://h/x?patience=1&bag[gift]=on'}}",
            "transports: {a: 'shpo:x'}",
            "transports: {a: shop}",
            "transports: {a: 'doctrine://default?queue=a'}",
            "transports: {a: {dsn: 'doctrine://default', options: {counter: a}}}",
            "transports: {a: {dsn: 'doctrine://default', options: {patience: soon}}}",
            "transports: {a: {dsn: 'shop:', options: {prices: free}}}",
            "cache: shop:x",
            "cache: redis://h?prefixes=a",
            "workers: [{transports: a, options: [--slep=5]}]",
            "workers: [{transports: a, options: [--sleep=soon]}]",
            "workers: [{transports: a, options: [--limit=all]}]",
            "workers: [{transports: a, options: [-x]}]",
            "workers: [{transports: a, options: [--move-unhandleable=yes]}]",
            "transports: {a: {dsn: 'sync://', retry_strategy: {max_retries: -1}}}",
            "transports: {a: {dsn: 'sync://', retry_strategy: {multiplier: 0.5}}}",
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
            assert!(validate(text).is_err(), "{text}");
        }
    }
}

//! Reads what an AMQP DSN and its options say: where the broker is, and which exchange, queues and delays.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_yaml::{Mapping, Value};

use super::topology::{Binding, Delays, Exchange, Flags, Queue, Topology};
use crate::config::{Options, TransportSpec};
use crate::connection::amqp::Address;

/// Symfony Messenger's defaults.
const EXCHANGE: &str = "messages";
const DELAYS: &str = "delays";
const PATTERN: &str = "delay_%exchange_name%_%routing_key%_%delay%";

/// php-amqp's constants for `flags`.
const DURABLE: i64 = 2;
const EXCLUSIVE: i64 = 8;
const AUTO_DELETE: i64 = 16;
const INTERNAL: i64 = 32;

/// How long the broker may take to confirm a message, where nothing else is said.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of queues that are numbers, also where a DSN gives them as text.
const NUMBERS: [&str; 7] = [
    "x-delay",
    "x-delivery-limit",
    "x-expires",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-message-ttl",
];

/// Reads a transport's description, and notes what is wrong with it.
pub(super) fn read(spec: &TransportSpec, options: &mut Options<'_>) -> (Address, Topology) {
    let (address, exchange_in_path) = Address::read(spec, options);
    let mut reading = Reading { options };
    let topology = reading.topology(exchange_in_path);
    reading.refuse();
    (address, topology)
}

struct Reading<'a, 'o> {
    options: &'a mut Options<'o>,
}

impl Reading<'_, '_> {
    fn topology(&mut self, exchange_in_path: Option<String>) -> Topology {
        let delays = self.delays();
        let exchange = self.exchange(exchange_in_path);
        let queues = self.queues(&exchange);
        Topology {
            delays,
            queues,
            exchange,
            auto_setup: self.options.flag("auto_setup", true),
            confirm_timeout: self.options.timeout("confirm_timeout", CONFIRM_TIMEOUT),
            prefetch: self
                .options
                .number_or_default("prefetch_count", u16::MAX.into())
                .and_then(|count| u16::try_from(count).ok()),
        }
    }

    fn delays(&mut self) -> Delays {
        let known = ["exchange_name", "queue_name_pattern", "auto_setup", "arguments", "daily_delay_queues"];
        let mut section = self.section("delay", &known);
        let exchange = take_text(&mut section, "exchange_name").unwrap_or_else(|| DELAYS.to_owned());
        let pattern = take_text(&mut section, "queue_name_pattern").unwrap_or_else(|| PATTERN.to_owned());
        if !pattern.contains("%delay%") {
            let message = "delay: queue_name_pattern must contain %delay%, as messages with different delays must not \
                           wait in one queue";
            self.options.refuse("delay", message);
        }
        let daily = match take_text(&mut section, "daily_delay_queues").as_deref() {
            None | Some("" | "0" | "false" | "no" | "off") => false,
            Some("1" | "true" | "yes" | "on") => true,
            Some(other) => {
                let message = format!("delay: daily_delay_queues is true or false; found \"{other}\"");
                self.options.refuse("delay", message);
                false
            }
        };
        Delays {
            exchange: self.name("delay", exchange),
            pattern,
            arguments: self.arguments("delay", section.remove("arguments")),
            daily,
        }
    }

    fn exchange(&mut self, in_path: Option<String>) -> Exchange {
        let known = ["name", "type", "default_publish_routing_key", "flags", "arguments", "bindings"];
        let mut section = self.section("exchange", &known);
        let name = take_text(&mut section, "name").or(in_path).unwrap_or_else(|| EXCHANGE.to_owned());
        let kind = match take_text(&mut section, "type").as_deref() {
            None | Some("fanout") => ExchangeKind::Fanout,
            Some("direct") => ExchangeKind::Direct,
            Some("topic") => ExchangeKind::Topic,
            Some("headers") => ExchangeKind::Headers,
            Some(other) => ExchangeKind::Custom(other.to_owned()),
        };
        let routing_key = take_text(&mut section, "default_publish_routing_key").unwrap_or_default();
        let bindings = self.bindings(section.remove("bindings"), &name);
        Exchange {
            name: self.name("exchange", name),
            kind,
            routing_key: self.name("exchange", routing_key),
            flags: self.flags("exchange", section.remove("flags")),
            arguments: self.arguments("exchange", section.remove("arguments")),
            bindings,
        }
    }

    /// The exchanges that this one is bound to.
    fn bindings(&mut self, bindings: Option<Value>, exchange: &str) -> Vec<Binding> {
        let bindings = match bindings {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Sequence(none)) if none.is_empty() => return Vec::new(),
            Some(Value::Mapping(bindings)) => bindings,
            Some(_) => {
                self.options
                    .refuse("exchange", "exchange: bindings is a map of other exchanges' names to their binding_keys");
                return Vec::new();
            }
        };
        if exchange.is_empty() && !bindings.is_empty() {
            self.options.refuse("exchange", "exchange: the broker's default exchange has no bindings; give it a name");
        }
        let mut read = Vec::new();
        for (source, value) in bindings {
            let source = text_of(&source).unwrap_or_default();
            let Value::Mapping(mut section) = value else {
                self.options
                    .refuse("exchange", format!("exchange: the binding to \"{source}\" is a map with binding_keys"));
                continue;
            };
            self.check_keys("exchange", &section, &["binding_keys", "binding_arguments"]);
            let keys = self.keys("exchange", section.remove("binding_keys")).unwrap_or_default();
            if keys.is_empty() {
                let message =
                    format!("exchange: the binding to \"{source}\" needs binding_keys, such as ['#'] or ['']");
                self.options.refuse("exchange", message);
            }
            read.push(Binding {
                source: self.name("exchange", source),
                keys,
                arguments: self.arguments("exchange", section.remove("binding_arguments")),
            });
        }
        read
    }

    /// Routing keys, where there are any.
    fn keys(&mut self, option: &str, keys: Option<Value>) -> Option<Vec<ShortString>> {
        let keys: Vec<String> = match keys {
            None | Some(Value::Null) => return None,
            Some(Value::Sequence(keys)) => keys.iter().filter_map(text_of).collect(),
            // As a DSN's `binding_keys[0]=…`.
            Some(Value::Mapping(keys)) => keys.values().filter_map(text_of).collect(),
            Some(key) => text_of(&key).into_iter().collect(),
        };
        Some(keys.into_iter().map(|key| self.name(option, key)).collect())
    }

    /// One of the exchange's name, unless there are others.
    fn queues(&mut self, exchange: &Exchange) -> Vec<Queue> {
        let own = |name| Queue {
            name,
            binding_keys: vec![ShortString::default()],
            binding_arguments: FieldTable::default(),
            flags: Flags::DEFAULT,
            arguments: FieldTable::default(),
        };
        let queues = match self.options.tree("queues") {
            None | Some(Value::Null) => return vec![own(exchange.name.clone())],
            Some(Value::Sequence(none)) if none.is_empty() => return Vec::new(),
            Some(Value::Bool(false)) => return Vec::new(),
            Some(Value::String(no)) if no == "false" || no == "0" => return Vec::new(),
            Some(Value::Mapping(queues)) => queues,
            Some(_) => {
                self.options.refuse("queues", "queues is a map of names to their options, or [] for none");
                return Vec::new();
            }
        };
        let known = ["binding_keys", "binding_arguments", "flags", "arguments"];
        let mut read = Vec::new();
        for (name, value) in queues {
            let name = self.name("queues", text_of(&name).unwrap_or_default());
            let mut section = match value {
                Value::Mapping(section) => section,
                // `queues: {a: ~}`
                _ => Mapping::new(),
            };
            self.check_keys("queues", &section, &known);
            let keys = self.keys("queues", section.remove("binding_keys"));
            read.push(Queue {
                binding_keys: keys.unwrap_or_else(|| vec![ShortString::default()]),
                binding_arguments: self.arguments("queues", section.remove("binding_arguments")),
                flags: self.flags("queues", section.remove("flags")),
                arguments: self.arguments("queues", section.remove("arguments")),
                ..own(name)
            });
        }
        read
    }

    /// An option that is a map of these keys.
    fn section(&mut self, name: &'static str, known: &[&str]) -> Mapping {
        match self.options.tree(name) {
            None | Some(Value::Null) => Mapping::new(),
            Some(Value::Mapping(section)) => {
                self.check_keys(name, &section, known);
                section
            }
            Some(_) => {
                self.options.refuse(name, format!("{name} is a map with keys of {}", known.join(", ")));
                Mapping::new()
            }
        }
    }

    fn check_keys(&mut self, name: &str, section: &Mapping, known: &[&str]) {
        for key in section.keys().map(|key| text_of(key).unwrap_or_default()) {
            if !known.contains(&key.as_str()) {
                self.options.refuse(name, format!("{name}: unknown key \"{key}\"; known: {}", known.join(", ")));
            }
        }
    }

    /// A name as AMQP has them.
    fn name(&mut self, option: &str, name: String) -> ShortString {
        ShortString::try_new(name).unwrap_or_else(|_| {
            self.options.refuse(option, format!("{option}: names and keys have at most 255 bytes; one has more"));
            ShortString::default()
        })
    }

    fn flags(&mut self, option: &str, flags: Option<Value>) -> Flags {
        let Some(flags) = flags.filter(|flags| !flags.is_null()) else { return Flags::DEFAULT };
        let number: Option<i64> = text_of(&flags).and_then(|text| text.parse().ok());
        let known = DURABLE | EXCLUSIVE | AUTO_DELETE | INTERNAL;
        match number.filter(|number| number & !known == 0) {
            Some(number) => Flags {
                durable: number & DURABLE != 0,
                exclusive: number & EXCLUSIVE != 0,
                auto_delete: number & AUTO_DELETE != 0,
                internal: number & INTERNAL != 0,
            },
            None => {
                let message =
                    "flags is a sum of php-amqp's constants: 2 durable, 8 exclusive, 16 auto-delete, 32 internal";
                self.options.refuse(option, format!("{option}: {message}"));
                Flags::DEFAULT
            }
        }
    }

    fn arguments(&mut self, option: &str, arguments: Option<Value>) -> FieldTable {
        let arguments = match arguments {
            None | Some(Value::Null) => return FieldTable::default(),
            Some(Value::Mapping(arguments)) => arguments,
            Some(_) => {
                self.options.refuse(option, format!("{option}: arguments are a map"));
                return FieldTable::default();
            }
        };
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            let name = self.name(option, text_of(&name).unwrap_or_default());
            let value = match &value {
                Value::String(text) if NUMBERS.contains(&name.as_str()) => match text.parse() {
                    Ok(number) => AMQPValue::LongLongInt(number),
                    Err(_) => {
                        self.options.refuse(option, format!("{option}: the argument {name} is a whole number"));
                        continue;
                    }
                },
                Value::String(text) => AMQPValue::LongString(text.as_str().into()),
                Value::Bool(flag) => AMQPValue::Boolean(*flag),
                Value::Number(number) => match number.as_i64() {
                    Some(number) => AMQPValue::LongLongInt(number),
                    None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
                },
                _ => {
                    self.options.refuse(option, format!("{option}: the argument {name} is a text, a number or a flag"));
                    continue;
                }
            };
            table.insert(name, value);
        }
        table
    }

    /// What means something to php-amqp and nothing, or nothing to choose, here.
    fn refuse(&mut self) {
        for (name, same, why) in [
            (
                "persistent",
                &["false", "0"][..],
                "a process keeps its connection while it runs, and closes it at its end",
            ),
            ("retry", &[], "when to connect again is decided by the worker"),
            ("read_timeout", &["0", "0.0"], "a broker that has vanished is found out by `heartbeat`"),
            ("write_timeout", &["0", "0.0"], "how long the broker may take to confirm a message is `confirm_timeout`"),
            ("rpc_timeout", &["0", "0.0"], "a broker that has vanished is found out by `heartbeat`"),
        ] {
            self.options.without_effect(name, same, why);
        }
        if self.options.text("verify").is_some() && !self.options.flag("verify", true) {
            let message = "verify: a connection that does not look whom it talks to is not made; name the broker's \
                           authority with `cacert`";
            self.options.refuse("verify", message);
        }
        if self.options.text("sasl_method").is_some_and(|method| method != "0") {
            self.options
                .refuse("sasl_method", "sasl_method: users log in with name and password (PLAIN), and no other way");
        }
    }
}

fn take_text(section: &mut Mapping, key: &str) -> Option<String> {
    section.remove(key).as_ref().and_then(text_of)
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

//! Reads an AMQP DSN and its options: the broker's address, the exchange, the queues and the delays.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_yaml::{Mapping, Value};

use super::topology::{Binding, Delays, Exchange, Flags, Queue, Topology};
use crate::config::{Definition, Kind, OptionReader, Setting, TransportSpec};
use crate::connection::amqp::Address;

/// The options of exchange, queues and delays, in the DSN or under `options:`. The defaults are Symfony Messenger's.
pub(super) const OPTIONS: [Definition; 6] =
    [EXCHANGE, QUEUES, DELAY, AUTO_SETUP.definition, CONFIRM_TIMEOUT.definition, PREFETCH_COUNT.definition];

const EXCHANGE: Definition =
    Definition::new("exchange", Kind::Section(EXCHANGE_KEYS), "the exchange to which messages are sent").or("as below");
const EXCHANGE_KEYS: &[Definition] =
    &[EXCHANGE_NAME, EXCHANGE_TYPE.definition, ROUTING_KEY.definition, EXCHANGE_FLAGS, EXCHANGE_ARGUMENTS, BINDINGS];
const MESSAGES: &str = "messages";
const EXCHANGE_NAME: Definition = Definition::new(
    "name",
    Kind::Text("text"),
    "its name; empty: the broker's default exchange, whose routing keys are names of queues",
)
.or("the path's second part, or `messages`");
const EXCHANGE_TYPE: Setting<String> =
    Setting::text("type", "fanout", "`fanout`, `direct`, `topic`, `headers`, or a plugin's");
const ROUTING_KEY: Setting<String> =
    Setting::text("default_publish_routing_key", "", "the routing key of sent messages");
const EXCHANGE_FLAGS: Definition =
    Definition::new("flags", FLAGS, "a sum: 2 durable, 16 auto-delete, 32 internal").or("2");
const EXCHANGE_ARGUMENTS: Definition = Definition::new("arguments", ARGUMENTS, "further arguments of the exchange");
const BINDINGS: Definition = Definition::new(
    "bindings",
    Kind::Map(&Kind::Section(BINDING_KEYS)),
    "other exchanges, by name, that pass messages on to this one",
);
const BINDING_KEYS: &[Definition] = &[
    Definition::new("binding_keys", KEYS, "the routing keys that lead from there to here").required(),
    Definition::new("binding_arguments", ARGUMENTS, "arguments of the binding, for a headers exchange"),
];

const QUEUES: Definition = Definition::new(
    "queues",
    Kind::Either(&[Kind::Map(&Kind::Section(QUEUE_KEYS)), Kind::Off(&[])]),
    "the queues to consume and count, by name, the most important first; `[]` or `false`: none, only send",
)
.or("one, of the exchange's name");
const QUEUE_KEYS: &[Definition] = &[
    Definition::new("binding_keys", KEYS, "the routing keys of the messages that go to it").or("one, empty"),
    Definition::new("binding_arguments", ARGUMENTS, "arguments of the binding, for a headers exchange"),
    Definition::new("flags", FLAGS, "a sum: 2 durable, 8 exclusive, 16 auto-delete").or("2"),
    Definition::new("arguments", ARGUMENTS, "further arguments, such as `x-max-priority`, `x-queue-type`"),
];

const DELAY: Definition =
    Definition::new("delay", Kind::Section(DELAY_KEYS), "how delayed messages wait").or("as below");
const DELAY_KEYS: &[Definition] = &[
    DELAY_EXCHANGE.definition,
    DELAY_PATTERN.definition,
    Definition::new(
        "arguments",
        ARGUMENTS,
        "further arguments of the queues for delays, such as `x-queue-type: quorum`",
    ),
    DAILY.definition,
    Definition::accepted("auto_setup", "the exchange for delays is declared with the others"),
];
const DELAY_EXCHANGE: Setting<String> = Setting::text("exchange_name", "delays", "the exchange for delayed messages");
const DELAY_PATTERN: Setting<String> = Setting::text(
    "queue_name_pattern",
    "delay_%exchange_name%_%routing_key%_%delay%",
    "the names of the queues for delays; must have `%delay%` in it",
);
const DAILY: Setting<bool> = Setting::php_flag(
    "daily_delay_queues",
    "false",
    "use other queues for delays each day, which live for a day longer. Quorum queues need this, as declaring them again \
     does not prolong their life. The date is in UTC, written `2026-11-21Z`; PHP uses queues of its own, named by the date \
     in its time zone",
);

const AUTO_SETUP: Setting<bool> =
    Setting::php_flag("auto_setup", "true", "declare exchange and queues when they are first used");
const CONFIRM_TIMEOUT: Setting<Duration> = Setting::timeout(
    "confirm_timeout",
    "30",
    "seconds within which the broker must confirm a message. Symfony does not wait by default; minutely always does",
);
const PREFETCH_COUNT: Setting<Option<u64>> = Setting::whole(
    "prefetch_count",
    0,
    u16::MAX as u64,
    "0",
    "the most messages that the broker pushes to a worker in advance; below 8, none are; see below",
)
.or("1024");

const FLAGS: Kind = Kind::Whole(0, (DURABLE | EXCLUSIVE | AUTO_DELETE | INTERNAL) as u64);
const ARGUMENTS: Kind = Kind::Map(&Kind::Anything);
const KEYS: Kind = Kind::Either(&[Kind::OneOrMore(&Kind::Text("text")), Kind::Map(&Kind::Text("text"))]);

/// php-amqp's constants for `flags`.
const DURABLE: i64 = 2;
const EXCLUSIVE: i64 = 8;
const AUTO_DELETE: i64 = 16;
const INTERNAL: i64 = 32;

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
pub(super) fn read(spec: &TransportSpec, options: &mut OptionReader<'_>) -> (Address, Topology) {
    let (address, exchange_in_path) = Address::read(spec, options);
    let mut reading = Reading { options };
    let topology = reading.topology(exchange_in_path);
    (address, topology)
}

struct Reading<'a, 'o> {
    options: &'a mut OptionReader<'o>,
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
            auto_setup: self.options.get(&AUTO_SETUP),
            confirm_timeout: self.options.get_nonzero(&CONFIRM_TIMEOUT),
            prefetch: self
                .options
                .get(&PREFETCH_COUNT)
                .filter(|count| *count > 0)
                .and_then(|count| u16::try_from(count).ok()),
        }
    }

    fn delays(&mut self) -> Delays {
        let mut section = self.section(&DELAY);
        let exchange = self.options.take(&DELAY, &mut section, &DELAY_EXCHANGE);
        let pattern = self.options.take(&DELAY, &mut section, &DELAY_PATTERN);
        if !pattern.contains("%delay%") {
            let message = "delay: queue_name_pattern must contain %delay%, as messages with different delays must not \
                           wait in one queue";
            self.options.refuse("delay", message);
        }
        let daily = self.options.take(&DELAY, &mut section, &DAILY);
        Delays {
            exchange: self.name("delay", exchange),
            pattern,
            arguments: self.arguments("delay", section.remove("arguments")),
            daily,
        }
    }

    fn exchange(&mut self, in_path: Option<String>) -> Exchange {
        let mut section = self.section(&EXCHANGE);
        let name = take_text(&mut section, "name").or(in_path).unwrap_or_else(|| MESSAGES.to_owned());
        let kind = match self.options.take(&EXCHANGE, &mut section, &EXCHANGE_TYPE).as_str() {
            "fanout" => ExchangeKind::Fanout,
            "direct" => ExchangeKind::Direct,
            "topic" => ExchangeKind::Topic,
            "headers" => ExchangeKind::Headers,
            other => ExchangeKind::Custom(other.to_owned()),
        };
        let routing_key = self.options.take(&EXCHANGE, &mut section, &ROUTING_KEY);
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
            self.check_keys("exchange", &section, BINDING_KEYS);
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
        let queues = match self.options.tree(&QUEUES) {
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
        let mut read = Vec::new();
        for (name, value) in queues {
            let name = self.name("queues", text_of(&name).unwrap_or_default());
            let mut section = match value {
                Value::Mapping(section) => section,
                // `queues: {a: ~}`
                _ => Mapping::new(),
            };
            self.check_keys("queues", &section, QUEUE_KEYS);
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

    /// An option that is a map.
    fn section(&mut self, definition: &Definition) -> Mapping {
        let keys = definition.kind.keys();
        match self.options.tree(definition) {
            None => Mapping::new(),
            Some(Value::Mapping(section)) => {
                self.check_keys(definition.name, &section, keys);
                section
            }
            Some(_) => {
                let message = format!("{} is {}", definition.name, definition.kind.expected());
                self.options.refuse(definition.name, message);
                Mapping::new()
            }
        }
    }

    fn check_keys(&mut self, name: &str, section: &Mapping, known: &[Definition]) {
        for key in section.keys().map(|key| text_of(key).unwrap_or_default()) {
            if known.iter().all(|known| known.name != key) {
                let known: Vec<&str> = known.iter().map(|known| known.name).collect();
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

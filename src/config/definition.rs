//! An option, defined once: its name, its meaning, the values it takes, and what is used where it is missing.
//!
//! Reading, checking, the tables in `docs/` and the JSON schema all use the same [`Definition`]. A [`Setting`] is a
//! definition together with the Rust type that its value is read as:
//!
//! ```
//! # use minutely::config::{Definition, Setting};
//! const RETRIES: Setting<u64> = Setting::whole("retries", 0, 10, "3", "how often it tries again");
//! const OPTIONS: &[Definition] = &[RETRIES.definition];
//! assert_eq!(RETRIES.default_value(), 3);
//! ```

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use serde_yaml::Value;

use super::duration::Unit;
use super::value::FromValue;

/// The upper bound of whole numbers that have none of their own.
pub(crate) const UNBOUNDED: u64 = i64::MAX as u64;

/// What there is to know about an option.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Its name, as it is written.
    pub(crate) name: &'static str,
    /// The values it takes.
    pub(crate) kind: Kind,
    /// What is used where it is missing.
    pub(crate) default: Missing,
    /// What it is for: one line, without a full stop.
    pub(crate) help: &'static str,
    /// A value, for whoever has to write one.
    pub(crate) example: Option<&'static str>,
    /// What is done with its value.
    pub(crate) support: Support,
    /// Does it belong to the connection? In a `doctrine://NAME` DSN such options are the connection's URL's.
    pub(crate) of_connection: bool,
}

/// The values an option takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Text; the name says of what kind (`text`, `DSN`, `path`). Numbers, and true and false, are taken as written.
    Text(&'static str),
    /// Text that matches a pattern as a whole: what such text is called, and the regular expression.
    Matching(&'static str, &'static str),
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// As [`Kind::Flag`], also in PHP's other spellings: `1`, `on`, `yes`, `0`, `off`, `no`.
    PhpFlag,
    /// A whole number within these bounds, both included.
    Whole(u64, u64),
    /// A number within these bounds, both included.
    Number(f64, f64),
    /// A duration: a number of this unit, or a number with a unit of its own (`500ms`, `2m`).
    Duration(Unit),
    /// A whole number of this unit.
    WholeDuration(Unit),
    /// Seconds, perhaps with a fraction; 0 stands for the default.
    Timeout,
    /// A list of such values.
    List(&'static Self),
    /// One such value, or a list of them.
    OneOrMore(&'static Self),
    /// A mapping of names, free to choose, to such values.
    Map(&'static Self),
    /// A mapping with these keys.
    Section(&'static [Definition]),
    /// Any of these.
    Either(&'static [Self]),
    /// `false`, or the mapping with `enabled: false` in it: the option is switched off.
    Off(&'static [Definition]),
    /// An argument of a worker: an option of `consume`, or the value of the one before. Anything where there is a
    /// `command` beside them.
    Argument,
    /// A DSN, which may have options in it.
    Dsn(OptionsOf),
    /// The options of a transport or cache: which there are depends on the DSN beside them.
    Options(OptionsOf),
    /// Whatever it is. What it may be is checked where it is used.
    Anything,
}

/// Whose options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionsOf {
    /// A transport's.
    Transport,
    /// The cache's.
    Cache,
}

/// What is used where an option is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It must be there.
    Required,
    /// Nothing.
    Nothing,
    /// This value.
    Value(&'static str),
    /// What these words say.
    Described(&'static str),
}

/// What is done with an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It has an effect.
    Used,
    /// It is accepted, because Symfony or PHP know it, and there is nothing to say about that.
    Accepted,
    /// It is accepted and has no effect. A warning says why, except for the values that ask for what is done anyway.
    Ignored {
        /// The values, in lower case, that ask for what is done anyway.
        same: &'static [&'static str],
        /// Why it has no effect.
        why: &'static str,
    },
    /// It is known, and a mistake.
    Refused {
        /// The values, in lower case, that ask for what is done anyway.
        same: &'static [&'static str],
        /// Why it cannot be, and what to do instead.
        why: &'static str,
    },
}

impl Definition {
    /// An option of this kind, which may be missing.
    pub(crate) const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        let (default, example, support) = (Missing::Nothing, None, Support::Used);
        Self { name, kind, default, help, example, support, of_connection: false }
    }

    /// An option that is accepted for the sake of Symfony or PHP, without a word.
    pub const fn accepted(name: &'static str, help: &'static str) -> Self {
        Self { support: Support::Accepted, ..Self::new(name, Kind::Anything, help) }
    }

    /// An option that is accepted and has no effect. A warning says `why`, except for the values in `same` (in lower case), which ask for
    /// what is done anyway.
    pub const fn ignored(name: &'static str, same: &'static [&'static str], why: &'static str) -> Self {
        Self { support: Support::Ignored { same, why }, ..Self::new(name, Kind::Anything, why) }
    }

    /// An option that others know and that is a mistake here, for the reason `why`, except with the values in `same`.
    pub const fn refused(name: &'static str, same: &'static [&'static str], why: &'static str) -> Self {
        Self { support: Support::Refused { same, why }, ..Self::new(name, Kind::Anything, why) }
    }

    /// The same, where it must be given.
    #[must_use]
    pub const fn required(self) -> Self {
        Self { default: Missing::Required, ..self }
    }

    /// The same, with words for what is used where it is missing.
    #[must_use]
    pub const fn or(self, default: &'static str) -> Self {
        Self { default: Missing::Described(default), ..self }
    }

    /// The same, with a value that messages may show.
    #[must_use]
    pub const fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
    }

    /// The same, as an option of the connection.
    #[must_use]
    pub const fn of_connection(self) -> Self {
        Self { of_connection: true, ..self }
    }

    /// What to write: what it is for, and an example.
    pub(crate) fn advice(&self) -> String {
        match self.example {
            Some(example) => format!("{}, such as {example}", self.help),
            None => self.help.to_owned(),
        }
    }
}

impl Kind {
    /// The kind in a few words, as the reference shows it.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Text(what) | Self::Matching(what, _) => (*what).to_owned(),
            Self::Choice(values) => values.join(", or "),
            Self::Flag | Self::PhpFlag => "true or false".to_owned(),
            Self::Whole(0, UNBOUNDED..) => "whole number".to_owned(),
            Self::Whole(min, UNBOUNDED..) => format!("whole number, {min} or more"),
            Self::Whole(min, max) => format!("whole number, {min} to {max}"),
            Self::Number(min, max) => format!("number, {min} to {max}"),
            Self::Duration(Unit::Seconds) => "duration".to_owned(),
            Self::Duration(unit) => unit.name().to_owned(),
            Self::WholeDuration(unit) => format!("whole number of {}", unit.name()),
            Self::Timeout => "seconds".to_owned(),
            Self::List(Self::Text(of)) if !of.ends_with('s') => match *of {
                "text" => "list of text".to_owned(),
                of => format!("list of {of}s"),
            },
            Self::List(Self::Argument) => "list of text".to_owned(),
            Self::List(_) => "list".to_owned(),
            Self::OneOrMore(one) => format!("{}, or list", one.label()),
            Self::Map(_) | Self::Section(_) | Self::Options(_) => "map".to_owned(),
            Self::Either(kinds) => {
                let mut labels: Vec<String> = kinds.iter().map(Self::label).collect();
                labels.dedup();
                labels.join(", or ")
            }
            Self::Off(_) => "false".to_owned(),
            Self::Argument => "text".to_owned(),
            Self::Dsn(_) => "DSN".to_owned(),
            Self::Anything => "any".to_owned(),
        }
    }

    /// What a value must be, as an error says it.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Text(_) => "text".to_owned(),
            Self::Matching(what, _) => (*what).to_owned(),
            Self::Whole(min, u64::MAX) => format!("a whole number, {min} or more"),
            Self::Whole(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Duration(_) => "a duration, such as 500ms, 5s, 2m or 1h".to_owned(),
            Self::WholeDuration(unit) => format!("a whole number of {}, at most {}", unit.name(), u32::MAX),
            Self::Timeout => "a number of seconds".to_owned(),
            Self::Choice(values) => format!("one of {}", values.join(", ")),
            Self::List(_) => "a list".to_owned(),
            Self::OneOrMore(one) => format!("{0}, or a list of {0}", one.expected()),
            Self::Map(Self::Text(_)) => "a map of names to text".to_owned(),
            Self::Map(_) | Self::Options(_) => "a map".to_owned(),
            Self::Section(keys) => {
                let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
                format!("a map with keys of {}", names.join(", "))
            }
            other => other.label(),
        }
    }

    /// The keys of a mapping of this kind, where they are fixed.
    #[cfg(feature = "amqp")]
    pub(crate) fn keys(&self) -> &'static [Definition] {
        match self {
            Self::Section(keys) => keys,
            Self::OneOrMore(one) => one.keys(),
            Self::Either(kinds) => kinds.iter().map(Self::keys).find(|keys| !keys.is_empty()).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// An option and the type that its value is read as.
#[derive(Debug)]
pub struct Setting<T> {
    /// What there is to know about it.
    pub definition: Definition,
    /// The default, even if the option is required: the value after it was reported as missing.
    default: Missing,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Setting<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Setting<T> {}

impl<T> Setting<T> {
    const fn new(name: &'static str, kind: Kind, default: Missing, help: &'static str) -> Self {
        Self::of(Definition { default, ..Definition::new(name, kind, help) })
    }

    /// A setting of this definition, whose values are read as `T`.
    pub(crate) const fn of(definition: Definition) -> Self {
        Self { definition, default: definition.default, value: PhantomData }
    }

    /// The same, with words that describe the default for readers.
    #[must_use]
    pub const fn or(self, default: &'static str) -> Setting<Option<T>> {
        Setting::of(self.definition.or(default))
    }

    /// The same, where it must be given.
    #[must_use]
    pub const fn required(self) -> Self {
        Self { definition: self.definition.required(), ..self }
    }

    /// The same, without a default.
    #[must_use]
    pub const fn optional(self) -> Setting<Option<T>> {
        Setting::of(Definition { default: Missing::Nothing, ..self.definition })
    }

    /// The same, with a value that messages may show.
    #[must_use]
    pub const fn example(self, example: &'static str) -> Self {
        Self { definition: self.definition.example(example), ..self }
    }

    /// The same, as an option of the connection.
    #[must_use]
    pub const fn of_connection(self) -> Self {
        Self { definition: self.definition.of_connection(), ..self }
    }

    const fn of_values(self, kind: Kind) -> Self {
        Self { definition: Definition { kind, ..self.definition }, ..self }
    }
}

impl Setting<String> {
    /// Text.
    pub const fn text(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Text("text"), Missing::Value(default), help)
    }

    /// The same, with a word for what kind of text it is: `path`.
    #[must_use]
    pub const fn of_kind(self, what: &'static str) -> Self {
        self.of_values(Kind::Text(what))
    }

    /// The same, for text that matches this regular expression as a whole. `what` says in words what such text is: a
    /// mistake is reported with it, and the JSON schema has the expression.
    ///
    /// ```
    /// # use minutely::config::Setting;
    /// const BUCKET: Setting<String> = Setting::text("bucket", "mail", "where messages are kept")
    ///     .matching("[a-z][a-z0-9-]{2,62}", "a name of small letters, digits and hyphens");
    /// ```
    ///
    /// The mistake shows the value. For a secret, read the text without a pattern, and check it with
    /// [`OptionReader::refuse`](crate::transport::OptionReader::refuse).
    ///
    /// The expression is one that Rust's `regex` and JavaScript read alike: without look-around and backreferences. An
    /// expression that cannot be read fits no text, so that [`Setting::default_value`] panics.
    #[must_use]
    pub const fn matching(self, pattern: &'static str, what: &'static str) -> Self {
        self.of_values(Kind::Matching(what, pattern))
    }

    /// One of several texts.
    pub const fn choice(
        name: &'static str,
        values: &'static [&'static str],
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self::new(name, Kind::Choice(values), Missing::Value(default), help)
    }
}

impl Setting<bool> {
    /// `true` or `false`.
    pub const fn flag(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Flag, Missing::Value(default), help)
    }

    /// `true` or `false`, in any of PHP's spellings, as options in a DSN have them.
    pub const fn php_flag(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::PhpFlag, Missing::Value(default), help)
    }
}

impl Setting<u64> {
    /// A whole number from `min` to `max`.
    pub const fn whole(name: &'static str, min: u64, max: u64, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Whole(min, max), Missing::Value(default), help)
    }
}

impl Setting<f64> {
    /// A number from `min` to `max`.
    pub const fn number(name: &'static str, min: f64, max: f64, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Number(min, max), Missing::Value(default), help)
    }
}

impl Setting<Duration> {
    /// A duration. A number without a unit is seconds.
    pub const fn duration(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Duration(Unit::Seconds), Missing::Value(default), help)
    }

    /// A duration. A number without a unit is milliseconds.
    pub const fn duration_in_millis(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Duration(Unit::Milliseconds), Missing::Value(default), help)
    }

    /// A whole number of seconds.
    pub const fn seconds(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::WholeDuration(Unit::Seconds), Missing::Value(default), help)
    }

    /// A whole number of milliseconds.
    pub const fn millis(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::WholeDuration(Unit::Milliseconds), Missing::Value(default), help)
    }

    /// Seconds, perhaps with a fraction; 0 stands for the default.
    pub const fn timeout(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Timeout, Missing::Value(default), help)
    }
}

impl Setting<Vec<String>> {
    /// A list of text, empty where the option is missing. Text alone is a list of one.
    ///
    /// In YAML it is written `tags: [a, b]`, in a DSN `tags[]=a&tags[]=b`.
    pub const fn list(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::OneOrMore(&Kind::Text("text")), Missing::Nothing, help)
    }
}

impl Setting<BTreeMap<String, String>> {
    /// A map of names, free to choose, to text. Empty where the option is missing. A name without a value is left out.
    ///
    /// In YAML it is written `labels: {team: mail}`, in a DSN `labels[team]=mail`.
    pub const fn map(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Map(&Kind::Text("text")), Missing::Nothing, help)
    }
}

impl<T: FromValue> Setting<T> {
    /// What is used where the option is missing.
    ///
    /// # Panics
    ///
    /// When the definition's default is none of the values that the option takes.
    pub fn default_value(&self) -> T {
        let Definition { name, kind, .. } = &self.definition;
        let default = if let Missing::Value(text) = self.default { Some(plain_value(text)) } else { None };
        T::or_default(kind, default.as_ref())
            .unwrap_or_else(|| panic!("the definition of the option \"{name}\" has a default that it does not take"))
    }
}

/// A default's text as the YAML value it would be in a file.
fn plain_value(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text => Value::String(text.to_owned()),
    }
}

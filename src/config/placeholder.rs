//! Resolves `%env(…)%` and `%kernel.project_dir%` in values, in Symfony's notation.
//!
//! DSNs contain percent-encoding (`amqp://…/%2f`, `p%40ss`), which must survive. So a `%` starts a placeholder only if
//! a parameter's name and another `%` follow, and the name does not start like an encoded byte (two hex digits).

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_yaml::Value;

use super::env::Environment;
use super::problem::{displayable, nearest};

/// The processors that may precede a variable's name, besides `default:x:`.
const PROCESSORS: &[&str] = &["resolve", "int", "float", "bool", "string", "trim", "urlencode"];

/// The known parameters.
const PARAMETERS: &[&str] = &["kernel.project_dir", "kernel.environment"];

/// The longest placeholder that is looked for. Far longer than any real one; limits the time that a strange file takes.
const LONGEST_EXPRESSION: usize = 1000;

/// RFC 3986's unreserved characters are not encoded, as in PHP's `rawurlencode`.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Resolves placeholders.
pub(super) struct Placeholders<'a> {
    environment: &'a Environment,
    project_dir: String,
    environment_name: String,
}

/// A part of a text.
#[derive(Debug, PartialEq)]
enum Piece<'t> {
    Text(&'t str),
    Env(&'t str),
    Parameter(&'t str),
}

/// A processor: a part of an `%env(…)%` before the variable's name.
enum Step<'t> {
    Default(&'t str),
    Process(&'t str),
}

impl<'a> Placeholders<'a> {
    /// `project_dir` is the folder of the configuration.
    pub(super) fn new(environment: &'a Environment, project_dir: &Path) -> Self {
        let environment_name = environment.get("APP_ENV").filter(|name| !name.is_empty()).unwrap_or("prod").to_owned();
        Self { environment, project_dir: project_dir.to_string_lossy().into_owned(), environment_name }
    }

    /// The value of `%kernel.environment%`.
    pub(super) fn environment_name(&self) -> &str {
        &self.environment_name
    }

    /// Resolves the placeholders in a text. If the text is exactly one `%env(…)%`, the result may be a number, boolean
    /// or null. The error says what is wrong, and never contains a variable's value.
    pub(super) fn resolve(&self, text: &str) -> Result<Value, String> {
        self.fill(text, &mut Vec::new())
    }

    /// Resolves known parameters, and leaves everything else unchanged. For text that is not part of the file, such as
    /// `DATABASE_URL="sqlite:///%kernel.project_dir%/var/data.db"`.
    pub(super) fn fill_parameters(&self, text: &str) -> String {
        PARAMETERS.iter().fold(text.to_owned(), |text, name| match self.parameter(name) {
            Some(value) => text.replace(&format!("%{name}%"), value),
            None => text,
        })
    }

    /// `open` are the variables that are being resolved.
    fn fill(&self, text: &str, open: &mut Vec<String>) -> Result<Value, String> {
        let pieces = pieces(text)?;
        if let [Piece::Env(expression)] = pieces[..] {
            return self.env(expression, open);
        }
        let mut filled = String::with_capacity(text.len());
        for piece in pieces {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Env(expression) => filled.push_str(&text_of(&self.env(expression, open)?)),
                Piece::Parameter(name) => {
                    filled.push_str(self.parameter(name).ok_or_else(|| unknown_parameter(name))?);
                }
            }
        }
        Ok(Value::String(filled))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        match name {
            "kernel.project_dir" => Some(&self.project_dir),
            "kernel.environment" => Some(&self.environment_name),
            _ => None,
        }
    }

    /// Resolves the text between `%env(` and `)%`.
    fn env(&self, expression: &str, open: &mut Vec<String>) -> Result<Value, String> {
        let (steps, name) = steps(expression)?;
        let mut value = self.environment.get(name).map(|value| Value::String(self.fill_parameters(value)));
        for step in steps.iter().rev() {
            value = match (step, value) {
                (Step::Default(default), None | Some(Value::Null)) => Some(self.default(default)),
                (Step::Default(default), Some(Value::String(text))) if text.is_empty() => Some(self.default(default)),
                (Step::Default(_), value) => value,
                (Step::Process(_), None) => None,
                (Step::Process("resolve"), Some(value)) => Some(self.resolve_inside(name, &value, open)?),
                (Step::Process(processor), Some(value)) => Some(process(processor, name, value)?),
            };
        }
        value.ok_or_else(|| {
            let hint = nearest(name, self.environment.names());
            let hint = hint.map(|near| format!(" (there is {near})")).unwrap_or_default();
            format!(
                "environment variable {name} is not set{hint}: set it, put it into .env or .env.local beside the configuration, or \
                 give a default with %env(default:…:{name})%"
            )
        })
    }

    /// In Symfony, the default is the name of a parameter. Here, a text that is not a parameter's name is the value
    /// itself.
    fn default(&self, default: &str) -> Value {
        match default {
            "" => Value::Null,
            default => {
                Value::String(self.parameter(default).map_or_else(|| self.fill_parameters(default), str::to_owned))
            }
        }
    }

    /// `%env(resolve:NAME)%`: resolves the placeholders in the variable's value.
    fn resolve_inside(&self, name: &str, value: &Value, open: &mut Vec<String>) -> Result<Value, String> {
        if open.iter().any(|opened| opened == name) {
            return Err(format!("environment variable {name} refers to itself"));
        }
        open.push(name.to_owned());
        let resolved = self.fill(&text_of(value), open);
        open.pop();
        resolved.map_err(|message| format!("in environment variable {name}: {message}"))
    }
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('%') {
        let (before, from) = rest.split_at(start);
        let after = &from[1..];
        pieces.push(Piece::Text(before));
        if let Some(after) = after.strip_prefix('%') {
            pieces.push(Piece::Text("%"));
            rest = after;
        } else if let Some(expression) = after.strip_prefix("env(") {
            let end = expression.find(")%").ok_or("`%env(` is not closed by `)%`")?;
            pieces.push(Piece::Env(&expression[..end]));
            rest = &expression[end + 2..];
        } else if let Some((name, after)) = parameter_name(after) {
            pieces.push(Piece::Parameter(name));
            rest = after;
        } else {
            pieces.push(Piece::Text("%"));
            rest = after;
        }
    }
    pieces.push(Piece::Text(rest));
    pieces.retain(|piece| *piece != Piece::Text(""));
    Ok(pieces)
}

/// A parameter's name up to its `%`, and the text after that.
fn parameter_name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')?;
    let (name, rest) = text.split_at(end);
    let bytes = name.as_bytes();
    let named = matches!(bytes.first(), Some(first) if first.is_ascii_alphabetic() || *first == b'_');
    let encoded = matches!(bytes, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    rest.strip_prefix('%').filter(|_| named && !encoded).map(|rest| (name, rest))
}

/// Parses `int:default:5:NAME`: the processors, outermost first, and the variable's name.
fn steps(expression: &str) -> Result<(Vec<Step<'_>>, &str), String> {
    if expression.len() > LONGEST_EXPRESSION {
        return Err(format!("%env(…)% is longer than {LONGEST_EXPRESSION} bytes"));
    }
    // A default may be a complete DSN.
    let shown = displayable(expression);
    let mut steps = Vec::new();
    let mut rest = expression;
    while let Some((head, tail)) = rest.split_once(':') {
        if head == "default" {
            let (default, chain) =
                split_default(tail).ok_or_else(|| format!("%env({shown})% must be %env(default:x:NAME)%"))?;
            steps.push(Step::Default(default));
            rest = chain;
        } else if PROCESSORS.contains(&head) {
            steps.push(Step::Process(head));
            rest = tail;
        } else {
            return Err(format!(
                "unknown processor \"{}\" in %env({shown})%; known: default:x, {}",
                displayable(head),
                PROCESSORS.join(", ")
            ));
        }
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if rest.is_empty() || !rest.chars().all(word) {
        return Err(format!("%env({shown})% names no environment variable; write %env(NAME)%"));
    }
    Ok((steps, rest))
}

/// Separates the `x` of `default:x:…` from the rest. It may contain colons (`default:sqlite:var/app.db:DSN`): the rest
/// is the variable's name and the processors directly before it, or starts with the next `default`.
fn split_default(text: &str) -> Option<(&str, &str)> {
    if let Some((default, chain)) = text.split_once(":default:") {
        return Some((default, &text[text.len() - chain.len() - "default:".len()..]));
    }
    let mut at = text.rfind(':')?;
    while let Some(before) = text[..at].rfind(':') {
        if !PROCESSORS.contains(&&text[before + 1..at]) {
            break;
        }
        at = before;
    }
    Some((&text[..at], &text[at + 1..]))
}

fn process(processor: &str, name: &str, value: Value) -> Result<Value, String> {
    let text = text_of(&value);
    let trimmed = text.trim();
    Ok(match processor {
        "string" => Value::String(text),
        "trim" => Value::String(trimmed.to_owned()),
        "urlencode" => Value::String(utf8_percent_encode(&text, UNRESERVED).to_string()),
        "bool" => Value::Bool(truth(trimmed)),
        "int" => match trimmed.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) => return Err(format!("environment variable {name} is not a whole number")),
        },
        "float" => match trimmed.parse::<f64>() {
            Ok(number) if number.is_finite() => Value::from(number),
            _ => return Err(format!("environment variable {name} is not a number")),
        },
        _ => value,
    })
}

/// Like PHP's `FILTER_VALIDATE_BOOL`; numbers other than zero are true.
fn truth(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "on" | "yes")
        || text.parse::<f64>().is_ok_and(|number| number != 0.0)
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => String::new(),
    }
}

fn unknown_parameter(name: &str) -> String {
    let hint = nearest(name, PARAMETERS.iter().copied()).map(|near| format!(", did you mean %{near}%?"));
    let end = if hint.is_some() { "" } else { ";" };
    format!(
        "unknown parameter %{name}%{}{end} known: %kernel.project_dir%, %kernel.environment%; a plain % before a name \
         is written %%",
        hint.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment() -> Environment {
        Environment::from([
            ("NAME", "value"),
            ("EMPTY", ""),
            ("MAX", " 7 "),
            ("RATE", "0.5"),
            ("ON", "yes"),
            ("OFF", "off"),
            ("PASS", "p@ss/w ord"),
            ("URL", "sqlite:///%kernel.project_dir%/var/a.db?x=%2f&y=100%%"),
            ("DEEP", "<%env(resolve:DEEPER)%>"),
            ("DEEPER", "%env(NAME)%%%"),
            ("LOOP", "%env(resolve:POOL)%"),
            ("POOL", "%env(resolve:LOOP)%"),
            ("SECRET", "hunter2"),
        ])
    }

    fn resolve(text: &str) -> Result<Value, String> {
        Placeholders::new(&environment(), Path::new("/app")).resolve(text)
    }

    #[test]
    fn placeholders_are_resolved_anywhere_in_a_text() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("%env(NAME)%", "value"),
            ("a-%env(NAME)%-%env(NAME)%", "a-value-value"),
            ("%kernel.project_dir%/var", "/app/var"),
            ("%kernel.environment%", "prod"),
            ("100%%", "100%"),
            ("%%env(NAME)%%", "%env(NAME)%"),
            ("%env(URL)%", "sqlite:////app/var/a.db?x=%2f&y=100%%"),
            ("%env(resolve:URL)%", "sqlite:////app/var/a.db?x=%2f&y=100%"),
            ("%env(resolve:DEEP)%", "<value%>"),
            ("u:%env(urlencode:PASS)%@h", "u:p%40ss%2Fw%20ord@h"),
            ("%env(trim:string:MAX)%", "7"),
            ("%env(int:MAX)%s", "7s"),
            ("a%env(EMPTY)%b", "ab"),
            ("a%env(default::NONE)%b", "ab"),
            ("%env(default:x:NONE)%", "x"),
            ("%env(default:x:EMPTY)%", "x"),
            ("%env(default:x:NAME)%", "value"),
            ("%env(default:sqlite:var/a.db?q=1:NONE)%", "sqlite:var/a.db?q=1"),
            ("%env(default:sqlite:%kernel.project_dir%/a.db:NONE)%", "sqlite:/app/a.db"),
            ("%env(default:kernel.project_dir:NONE)%", "/app"),
            ("%env(default:trim:trim:NONE)%", "trim"),
            ("%env(default:a:default:b:NONE)%", "b"),
        ] {
            assert_eq!(resolve(text), Ok(Value::from(expected)), "{text}");
        }
    }

    #[test]
    fn a_single_placeholder_keeps_its_type() {
        assert_eq!(resolve("%env(int:MAX)%"), Ok(Value::from(7)));
        assert_eq!(resolve("%env(int:default:5:NONE)%"), Ok(Value::from(5)));
        assert_eq!(resolve("%env(float:RATE)%"), Ok(Value::from(0.5)));
        assert_eq!(resolve("%env(bool:ON)%"), Ok(Value::from(true)));
        assert_eq!(resolve("%env(bool:OFF)%"), Ok(Value::from(false)));
        assert_eq!(resolve("%env(bool:MAX)%"), Ok(Value::from(true)));
        assert_eq!(resolve("%env(default::NONE)%"), Ok(Value::Null));
    }

    #[test]
    fn percent_encoding_and_lone_percents_survive() {
        for text in [
            "amqp://guest:guest@localhost:5672/%2f/messages",
            "mysql://u:p%40ss%2Fword@h/db",
            "%C3%A4%de%",
            "100%",
            "% %",
            "date +%Y-%m-%d",
            "printf '%s\\n' \"%s \"",
            "%Ä%",
        ] {
            assert_eq!(resolve(text), Ok(Value::from(text)), "{text}");
        }
    }

    #[test]
    fn a_placeholder_that_cannot_be_resolved_says_why() {
        for (text, expected) in [
            ("%env(NMAE)%", "environment variable NMAE is not set (there is NAME)"),
            ("%env(NAME", "not closed"),
            ("%env()%", "names no environment variable"),
            ("%env(A B)%", "names no environment variable"),
            ("%env(default:NAME)%", "must be %env(default:x:NAME)%"),
            ("%env(json:NAME)%", "unknown processor \"json\" in %env(json:NAME)%; known: default:x, resolve, int"),
            ("%kernel.projct_dir%", "did you mean %kernel.project_dir%? known"),
            ("%H%M", "unknown parameter %H%; known"),
            ("%env(resolve:LOOP)%", "refers to itself"),
            ("%env(resolve:int:SECRET)%", "environment variable SECRET is not a whole number"),
            ("%env(float:SECRET)%", "environment variable SECRET is not a number"),
        ] {
            let message = resolve(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([%():]|env|default|resolve|LOOP|DEEP|NAME|kernel.project_dir|\\PC){0,40}") {
            let _ = resolve(&text);
        }

        #[test]
        fn text_without_placeholders_stays_as_it_is(text in "[a-z0-9/:@?&=.-]{0,20}(%[0-9A-Fa-f]{2}[a-z/]?){0,5}") {
            prop_assert_eq!(resolve(&text), Ok(Value::from(text)));
        }
    }
}

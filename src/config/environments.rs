//! Sections such as `when@prod`: keys for one environment, merged into the others as Symfony does.

use std::collections::HashMap;

use serde_yaml::{Mapping, Value};

use super::problem::{Problem, Problems, displayable};
use super::section::join;
use super::value::plain_text;

/// Every key that begins with this is a section for the environment named after it.
pub(super) const PREFIX: &str = "when@";

/// Where a transport may be its DSN alone, which is short for a mapping with `dsn`.
const SHORT_FOR_DSN: [&str; 2] = ["transports", "framework.messenger.transports"];

/// Where values are in the file that a section has set, by where they would be without it.
#[derive(Debug, Default)]
pub(super) struct Origins(HashMap<String, String>);

impl Origins {
    /// Where the value of this path is in the file.
    pub(super) fn place(&self, path: String) -> String {
        self.0.get(&path).cloned().unwrap_or(path)
    }
}

/// Takes the sections out of a configuration, and merges that of this environment into it. Mappings are merged, key by
/// key. Anything else, also a list, replaces what was there.
pub(super) fn merge_sections(root: &mut Mapping, environment: &str, problems: &mut Problems) -> Origins {
    let mut origins = Origins::default();
    let is_section = |key: &Value| key.as_str().is_some_and(|key| key.starts_with(PREFIX));
    let keys: Vec<Value> = root.keys().filter(|key| is_section(key)).cloned().collect();
    for key in keys {
        let (name, section) = (plain_text(&key).unwrap_or_default(), root.shift_remove(&key));
        let wrong = match section {
            _ if name == PREFIX => "names no environment: when@prod, for example",
            Some(Value::Mapping(section)) if section.keys().any(is_section) => {
                "has a section for an environment in it: they are only at the top of the file"
            }
            Some(Value::Mapping(section)) => {
                if name[PREFIX.len()..] == *environment {
                    origins.merge(root, section, "", &name);
                }
                continue;
            }
            None | Some(Value::Null) => continue,
            Some(_) => "must be a mapping of the keys that are different in this environment",
        };
        problems.push(Problem::error(displayable(&name), wrong));
    }
    origins
}

impl Origins {
    /// Merges `over`, which is at `origin` in the file, into what is at `path`.
    fn merge(&mut self, base: &mut Mapping, over: Mapping, path: &str, origin: &str) {
        for (key, value) in over {
            let name = plain_text(&key).unwrap_or_default();
            let (path, origin) = (join(path, &name), join(origin, &name));
            let is_transport = SHORT_FOR_DSN.iter().any(|transports| join(transports, &name) == path);
            match (base.get_mut(&key), value) {
                (Some(Value::Mapping(base)), Value::Mapping(over)) => self.merge(base, over, &path, &origin),
                (Some(Value::Mapping(base)), dsn @ Value::String(_)) if is_transport => {
                    base.insert("dsn".into(), dsn);
                    self.0.insert(join(&path, "dsn"), origin);
                }
                (Some(dsn @ Value::String(_)), Value::Mapping(over)) if is_transport => {
                    let mut both = Mapping::from_iter([("dsn".into(), dsn.clone())]);
                    self.merge(&mut both, over, &path, &origin);
                    *dsn = Value::Mapping(both);
                }
                (_, value) => {
                    base.insert(key, value);
                    self.0.insert(path, origin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str, environment: &str) -> (Value, Vec<String>) {
        let Value::Mapping(mut root) = serde_yaml::from_str(text).unwrap() else { panic!("{text}") };
        let mut problems = Problems::new("f");
        merge_sections(&mut root, environment, &mut problems);
        let problems = problems.list.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect();
        (Value::Mapping(root), problems)
    }

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn the_section_of_the_environment_is_merged_key_by_key_and_the_others_are_left_out() {
        let text = "heartbeat: {ttl: 1m}\nrouting: {A: a, B: [a, b]}\n\
            when@test: {routing: {B: [c], C: d}, cache: 'file:t'}\nwhen@dev: {routing: {A: x}}\nwhen@stage: ~";
        let expected = "heartbeat: {ttl: 1m}\nrouting: {A: a, B: [c], C: d}\ncache: 'file:t'";
        assert_eq!(merged(text, "test"), (yaml(expected), vec![]));
        assert_eq!(merged(text, "prod"), (yaml("heartbeat: {ttl: 1m}\nrouting: {A: a, B: [a, b]}"), vec![]));
    }

    #[test]
    fn a_dsn_alone_is_merged_as_the_dsn_of_the_transport() {
        for at in ["transports: {X}", "framework: {messenger: {transports: {X}}}"] {
            let with = |transport: &str| at.replace('X', transport);
            let long = with("a: {dsn: 'x:', options: {o: 1}}");
            let text = format!("{long}\nwhen@test: {{{}}}", with("a: 'y:'"));
            assert_eq!(merged(&text, "test"), (yaml(&with("a: {dsn: 'y:', options: {o: 1}}")), vec![]));
            let text = format!("{}\nwhen@test: {{{}}}", with("a: 'x:'"), with("a: {options: {o: 1}}"));
            assert_eq!(merged(&text, "test"), (yaml(&long), vec![]));
        }
        // Elsewhere, text replaces a mapping.
        let text = "routing: {a: {senders: [b]}}\nwhen@test: {routing: {a: c}}";
        assert_eq!(merged(text, "test"), (yaml("routing: {a: c}"), vec![]));
    }

    #[test]
    fn a_section_that_is_none_is_a_mistake_in_every_environment() {
        for (text, expected) in [
            ("when@dev: 5", "when@dev: must be a mapping"),
            ("when@dev: [a]", "when@dev: must be a mapping"),
            ("when@: {}", "when@: names no environment"),
            ("when@dev: {when@test: {}}", "when@dev: has a section for an environment in it"),
        ] {
            let (_, problems) = merged(text, "prod");
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{text}: {problems:?}");
        }
    }
}

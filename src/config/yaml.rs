//! Parses YAML text into a tree. Resolves merge keys (`<<`), and limits how far aliases may expand it.
//!
//! `serde_yaml`'s own `Value` has no such limit (a list of a thousand aliases of a list of a thousand items is legal).
//! Its `apply_merge` does not resolve merges inside merged mappings, and changes the order of the keys.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_yaml::value::{Tag, TaggedValue};
use serde_yaml::{Mapping, Value};

use super::problem::displayable;

/// The most values in a file, with aliases expanded. A file of the maximum length without aliases has fewer.
const MOST_VALUES: usize = 1_000_000;

/// The most nested brackets. The parser examines all of them at every token, so a file of only brackets would take
/// hours. It refuses more than 128 levels anyway, but only at the end.
const DEEPEST: usize = 300;

/// Parses a text. An empty text is null. The error names line and column.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    if brackets(text) > DEEPEST {
        return Err("is not valid YAML for a configuration: too many nested brackets".to_owned());
    }
    let left = Cell::new(MOST_VALUES);
    Tree { left: &left }.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| match error.location() {
        // The library's text usually ends with line and column, but not always.
        Some(at) if !error.to_string().contains(&format!("line {}", at.line())) => {
            format!("is not valid YAML: {error} at line {} column {}", at.line(), at.column())
        }
        _ => format!("is not valid YAML: {error}"),
    })
}

/// The depth of nested brackets. Counts those in quotes and comments too, which hardly matter.
fn brackets(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => continue,
        }
        most = most.max(open);
    }
    most
}

#[derive(Clone, Copy)]
struct Tree<'b> {
    left: &'b Cell<usize>,
}

impl Tree<'_> {
    fn count<E: Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| E::custom("aliases expand this file beyond the size of any configuration"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<Value, E> {
        Ok((number as f64).into())
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<Value, E> {
        Ok((number as f64).into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut mapping = Mapping::new();
        let mut merged = Vec::new();
        while let Some(key) = entries.next_key_seed(self)? {
            let value = entries.next_value_seed(self)?;
            if key == "<<" {
                merged.push(value);
            } else if mapping.contains_key(&key) {
                let key = key.as_str().map_or_else(|| "a key".to_owned(), |key| format!("\"{}\"", displayable(key)));
                return Err(A::Error::custom(format!("{key} occurs twice in one mapping")));
            } else {
                mapping.insert(key, value);
            }
        }
        for value in merged {
            merge(&mut mapping, value).map_err(A::Error::custom)?;
        }
        Ok(Value::Mapping(mapping))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (tag, value): (String, _) = tagged.variant()?;
        if tag.is_empty() {
            return Err(A::Error::custom("a tag without a name"));
        }
        let value = value.newtype_variant_seed(self)?;
        Ok(Value::Tagged(Box::new(TaggedValue { tag: Tag::new(tag), value })))
    }
}

/// Adds the entries that `mapping` does not have itself. Of several merged mappings, the first wins.
fn merge(mapping: &mut Mapping, from: Value) -> Result<(), &'static str> {
    match from {
        Value::Mapping(from) => {
            for (key, value) in from {
                mapping.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Sequence(all) if all.iter().all(Value::is_mapping) => {
            all.into_iter().try_for_each(|from| merge(mapping, from))
        }
        _ => Err("`<<` merges a mapping, or a list of mappings"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_keys_are_resolved_at_any_depth_and_keep_the_order() {
        let text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {first: 0, <<: [*b, {x: 9, w: 9}], last: 0}\n";
        let tree = parse(text).unwrap();
        let expected: Value = serde_yaml::from_str("{first: 0, last: 0, y: 2, x: 1, w: 9}").unwrap();
        assert_eq!(tree["c"], expected);
        let keys: Vec<_> = tree["c"].as_mapping().unwrap().keys().map(|key| key.as_str().unwrap()).collect();
        assert_eq!(keys, ["first", "last", "y", "x", "w"]);
        assert!(parse("a: {<<: 1}").unwrap_err().contains("`<<` merges a mapping"));
    }

    #[test]
    fn mistakes_are_reported_with_line_and_column() {
        for text in ["a: 1\nb: [\n", "a: 1\na: 2\n", "a: 1\n  b: 2\n", "a: *nobody", "a: \"App\\Message\"", "\tb: 1"] {
            let message = parse(text).unwrap_err();
            assert!(message.contains("line "), "{text}: {message}");
            assert!(message.contains("column "), "{text}: {message}");
        }
        assert!(parse("a: 1\n---\nb: 2\n").unwrap_err().contains("more than one document"));
    }

    #[test]
    fn an_empty_text_is_null() {
        for text in ["", "\n", "# only this\n  # and this", "---\n"] {
            assert_eq!(parse(text), Ok(Value::Null), "{text:?}");
        }
    }

    #[test]
    fn alias_bombs_are_refused_before_they_expand() {
        let mut laughs = String::from("a0: &a0 [lol]\n");
        for n in 1..30 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            laughs += &format!("a{n}: &a{n} [{aliases}]\n");
        }
        let square = format!("a: &a [{}]\nb: [{}]\n", "1,".repeat(50_000), "*a,".repeat(50_000));
        let deep = format!("a: {}", "[".repeat(100_000));
        let dashes = "- ".repeat(100_000);
        let questions = "? ".repeat(100_000);
        let deep_enough = "[".repeat(DEEPEST) + &"],[".repeat(50_000);
        for text in [laughs, square, deep, dashes, questions, deep_enough] {
            assert!(parse(&text).is_err());
        }
    }
}

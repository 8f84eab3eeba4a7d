//! Texts as the configuration's YAML has them, written so that they come back as they were.

/// A text as a value: as it is where YAML takes it for itself, else in quotes. A `%` is doubled, because one alone may begin
/// a placeholder.
pub(super) fn value(text: &str) -> String {
    let text = text.replace('%', "%%");
    // The configuration counts brackets, and refuses a file in which hundreds stay open.
    let opens = text.matches(['[', '{']).count() > text.matches([']', '}']).count();
    if is_plain(&text) {
        text
    } else if !opens && text.chars().all(is_printable) && (text.contains(['"', '\\']) || !text.contains('\'')) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        let mut quoted = String::from("\"");
        for char in text.chars() {
            match char {
                '"' | '\\' => quoted.extend(['\\', char]),
                '[' | '{' if opens => quoted.push_str(&format!("\\x{:02x}", u32::from(char))),
                '\n' => quoted.push_str("\\n"),
                '\t' => quoted.push_str("\\t"),
                _ if is_printable(char) => quoted.push(char),
                _ if u32::from(char) > 0xffff => quoted.push_str(&format!("\\U{:08x}", u32::from(char))),
                _ => quoted.push_str(&format!("\\u{:04x}", u32::from(char))),
            }
        }
        quoted.push('"');
        quoted
    }
}

/// A list on one line.
pub(super) fn list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| value(item)).collect();
    format!("[{}]", items.join(", "))
}

/// A text within a comment.
pub(super) fn comment(text: &str) -> String {
    text.chars().map(|char| if is_printable(char) || char == '\t' { char } else { '\u{fffd}' }).collect()
}

/// Whether the text means itself without quotes, also in a list on one line.
fn is_plain(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || "/_".contains(c);
    let fits = |c: char| c.is_ascii_alphanumeric() || "/_.+@%=-".contains(c);
    // What YAML, or one of its versions, takes for something else than text.
    let word = text.to_ascii_lowercase();
    let has_meaning = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&word.as_str());
    let is_option = text.starts_with("--") && text.len() > 2 || text.len() > 1 && text.starts_with('-');
    let starts_well = text.starts_with(first) || (is_option && text[1..].starts_with(|c| first(c) || c == '-'));
    // A colon means something at the end and before a blank alone, and no blank fits.
    let fits_within = |c: char| fits(c) || c == ':';
    starts_well
        && text.chars().all(fits_within)
        && !text.ends_with(':')
        && !has_meaning
        && !text.trim_matches('-').is_empty()
}

/// Whether YAML lets this character stand as it is, on one line.
fn is_printable(char: char) -> bool {
    matches!(char, ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_text_comes_back(text in "\\PC{0,20}|[-a:#%'\"\\\\\n\t\u{1}\u{85}\u{2028}\u{feff}\u{10ffff}{}\\[\\],&*!|>@` ]{0,12}|[yn]|-{0,3}|on|null|1e3|0x1f|~") {
            let yaml = format!("# {}\n[{}, {}]: {}\n", comment(&text), value(&text), value("x"), value(&text));
            let read: serde_yaml::Value = serde_yaml::from_str(&yaml).unwrap();
            let doubled = text.replace('%', "%%");
            let (key, found) = read.as_mapping().unwrap().iter().next().unwrap();
            proptest::prop_assert_eq!(found.as_str(), Some(doubled.as_str()), "{}", yaml);
            proptest::prop_assert_eq!(key[0].as_str(), Some(doubled.as_str()), "{}", yaml);
        }
    }
}

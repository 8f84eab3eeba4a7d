//! Reads the lines of a crontab as cron does: comments, environment settings, and commands with their schedule. Pure.

/// What a line of a crontab is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line<'t> {
    Blank,
    /// Without the `#`.
    Comment(&'t str),
    /// Counts for the lines after it.
    Setting {
        name: String,
        value: String,
    },
    Entry(Entry<'t>),
    /// Cron refuses it, too.
    Unreadable,
}

/// A command with its schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'t> {
    /// Five fields, or a word such as `@daily`.
    pub(super) schedule: String,
    /// The user, in a crontab of the system.
    pub(super) user: Option<&'t str>,
    /// The command as cron gives it to the shell.
    pub(super) command: String,
    /// What the command gets on its standard input, if that is not empty.
    pub(super) input: Option<String>,
}

/// Reads a line without its line end. Those of the system (`/etc/crontab`, `/etc/cron.d/`) have a user before the command.
pub(super) fn read(line: &str, of_system: bool) -> Line<'_> {
    let line = line.trim_start_matches([' ', '\t']);
    if line.is_empty() {
        return Line::Blank;
    }
    if let Some(comment) = line.strip_prefix('#') {
        return Line::Comment(comment);
    }
    if let Some((name, value)) = setting(line) {
        return Line::Setting { name, value };
    }
    entry(line, of_system).map_or(Line::Unreadable, Line::Entry)
}

/// `NAME = value`, where both may be in quotes.
fn setting(line: &str) -> Option<(String, String)> {
    let quote = line.chars().next().filter(|&first| matches!(first, '"' | '\''));
    let (name, rest) = match quote {
        Some(quote) => line[1..].split_once(quote)?,
        None => line.split_at(line.find(|c: char| c == '=' || c.is_whitespace())?),
    };
    let value = rest.trim_start().strip_prefix('=')?.trim();
    if name.is_empty() || name.contains('=') {
        return None;
    }
    let inner = value.chars().next().filter(|&first| matches!(first, '"' | '\'')).map(|quote| {
        let (inner, rest) = value[1..].split_once(quote)?;
        rest.is_empty().then_some(inner)
    });
    let value = match inner {
        None => value,
        Some(inner) => inner?,
    };
    Some((name.to_owned(), value.to_owned()))
}

fn entry(line: &str, of_system: bool) -> Option<Entry<'_>> {
    let mut rest = line;
    let fields = if line.starts_with('@') { 1 } else { 5 };
    let schedule = (0..fields).map(|_| word(&mut rest)).collect::<Option<Vec<_>>>()?.join(" ");
    let user = if of_system { Some(word(&mut rest)?) } else { None };
    let (command, input) = at_percent(rest);
    (!rest.is_empty()).then_some(Entry { schedule, user, command, input })
}

/// The next word, and the rest after the blanks that follow.
fn word<'t>(rest: &mut &'t str) -> Option<&'t str> {
    let (word, after) = rest.split_at(rest.find([' ', '\t']).unwrap_or(rest.len()));
    *rest = after.trim_start_matches([' ', '\t']);
    (!word.is_empty()).then_some(word)
}

/// Divides at the first `%`: before it is the command, and after it the input, in which each further `%` is a line end.
/// `\%` is a `%`.
fn at_percent(text: &str) -> (String, Option<String>) {
    let (mut command, mut input, mut escaped) = (String::new(), None::<String>, false);
    for char in text.chars() {
        let is_percent = char == '%';
        let into = input.as_mut().unwrap_or(&mut command);
        if is_percent && escaped {
            into.pop();
            into.push(char);
        } else if is_percent {
            match &mut input {
                Some(input) => input.push('\n'),
                None => input = Some(String::new()),
            }
        } else {
            into.push(char);
        }
        escaped = !escaped && char == '\\';
    }
    let input = input.filter(|input| !input.is_empty()).map(|mut input| {
        if !input.ends_with('\n') {
            input.push('\n');
        }
        input
    });
    (command, input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_of<'t>(schedule: &str, user: Option<&'t str>, command: &str, input: Option<&str>) -> Line<'t> {
        Line::Entry(Entry { schedule: schedule.into(), user, command: command.into(), input: input.map(str::to_owned) })
    }

    fn setting_of(name: &str, value: &str) -> Line<'static> {
        Line::Setting { name: name.into(), value: value.into() }
    }

    #[test]
    fn lines_are_read_as_cron_reads_them() {
        for (line, expected) in [
            ("", Line::Blank),
            (" \t ", Line::Blank),
            ("  # a comment", Line::Comment(" a comment")),
            ("PATH=/usr/bin:/bin", setting_of("PATH", "/usr/bin:/bin")),
            (" MAILTO = \"a b \" ", setting_of("MAILTO", "a b ")),
            ("MAILTO=\"\"", setting_of("MAILTO", "")),
            ("'A B'=it's", setting_of("A B", "it's")),
            ("A=\"b\" c", Line::Unreadable),
            ("*/5 * * * * php bin/console", entry_of("*/5 * * * *", None, "php bin/console", None)),
            ("0\t0  1 jan *\tA=1 b", entry_of("0 0 1 jan *", None, "A=1 b", None)),
            ("@daily  backup", entry_of("@daily", None, "backup", None)),
            ("0 0 * * * date +\\%F", entry_of("0 0 * * *", None, "date +%F", None)),
            ("0 0 * * * cat%a%b\\%", entry_of("0 0 * * *", None, "cat", Some("a\nb%\n"))),
            ("0 0 * * * cat%", entry_of("0 0 * * *", None, "cat", None)),
            ("0 0 * * * echo a\\\\b", entry_of("0 0 * * *", None, "echo a\\\\b", None)),
            ("0 0 * * *", Line::Unreadable),
            ("0 0 * *", Line::Unreadable),
            ("@daily", Line::Unreadable),
            ("nonsense", Line::Unreadable),
        ] {
            assert_eq!(read(line, false), expected, "{line:?}");
        }
        let line = "17 * * * * root cd / && run-parts --report /etc/cron.hourly";
        let expected = entry_of("17 * * * *", Some("root"), "cd / && run-parts --report /etc/cron.hourly", None);
        assert_eq!(read(line, true), expected);
        assert_eq!(read("17 * * * * root", true), Line::Unreadable);
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_too_strange(line in "[ -~\\té%\"'=@*]{0,40}", of_system: bool) {
            read(&line, of_system);
        }
    }
}

//! Which lines of a crontab start minutely's cron: those that somebody has written by hand.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::cron::NAMES as CRON;
use super::super::installation::{Installation, is_same_file};

/// A call of a program within a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    /// The folder that it is made in.
    dir: PathBuf,
    /// The configuration that its environment names.
    config: Option<String>,
    program: String,
    arguments: Vec<String>,
}

/// How deep command lines within command lines are looked for: `flock -c 'sh -c "…"'`.
const DEEPEST: usize = 4;
/// Cron runs no longer command (in bytes): Vixie's takes 1000, cronie 131,072.
const LONGEST: usize = 131_072;
/// The most words that are looked at. No command for people has more.
const MOST_WORDS: usize = 1_000;

/// Programs that run none of the words after them.
const RUN_NOTHING: [&str; 30] = [
    "echo", "printf", "logger", ":", "true", "false", "test", "[", "[[", "mail", "mailx", "cat", "tail", "head", "ls",
    "rm", "cp", "mv", "touch", "mkdir", "chmod", "chown", "grep", "pgrep", "pkill", "kill", "killall", "ps", "curl",
    "wget",
];

/// The variables of a command that cron starts, with `HOME`, where it starts.
pub(super) type Environment = HashMap<String, String>;

/// What cron sets for a user's commands. `home`: the folder that the system's list of users names.
pub(super) fn environment_of(user: &str, home: Option<PathBuf>) -> Environment {
    let home = home.unwrap_or_else(|| "/".into()).to_string_lossy().into_owned();
    [("HOME", home), ("LOGNAME", user.to_owned()), ("USER", user.to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// Whether a command line starts the cron of this installation.
pub(super) fn starts(command: &str, environment: &Environment, installation: &Installation) -> bool {
    let name = installation.program.file_name().unwrap_or_default();
    calls(command, home(environment), environment, 0).iter().any(|call| {
        let file = call.dir.join(&call.program);
        let is_it = Path::new(&call.program).file_name() == Some(name) || is_same_file(&file, &installation.program);
        let Some((before, config)) = cron_arguments(&call.arguments).filter(|_| is_it) else { return false };
        match config.or(call.config.as_deref()) {
            Some(config) => installation.is_of(&call.dir.join(config)),
            None if installation.is_whole_program => {
                installation.arguments.is_empty() && is_same_file(&call.dir, &installation.dir)
            }
            None => before == installation.arguments && is_same_file(&call.dir, &installation.dir),
        }
    })
}

/// Whether a command line starts the cron of a program of one of these names, for whatever configuration.
pub(super) fn starts_any(command: &str, programs: &[&str]) -> bool {
    calls(command, Path::new("/"), &Environment::new(), 0).iter().any(|call| {
        let name = Path::new(&call.program).file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| programs.contains(&name)) && cron_arguments(&call.arguments).is_some()
    })
}

/// If these are the arguments of `cron`: those before its name, and the configuration that they name.
fn cron_arguments(arguments: &[String]) -> Option<(&[String], Option<&str>)> {
    let at = arguments.iter().position(|argument| CRON.contains(&argument.as_str()))?;
    let (before, after) = arguments.split_at(at);
    if after[1..].iter().any(|argument| matches!(argument.as_str(), "list" | "next" | "run" | "--dry-run" | "--help")) {
        return None;
    }
    let config = arguments.iter().enumerate().find_map(|(index, argument)| match argument.as_str() {
        "-c" | "--config" => arguments.get(index + 1).map(String::as_str),
        other => other.strip_prefix("--config=").or_else(|| {
            let short = other.strip_prefix("-c").filter(|_| !other.starts_with("--"));
            short.map(|file| file.strip_prefix('=').unwrap_or(file))
        }),
    });
    Some((before, config))
}

/// Every word of a command line that may be a program, with the words after it.
fn calls(text: &str, dir: &Path, environment: &Environment, depth: usize) -> Vec<Call> {
    let mut found = Vec::new();
    if text.len() > LONGEST {
        return found;
    }
    let (mut dir, mut config) = (dir.to_owned(), environment.get("MINUTELY_CONFIG").cloned());
    for part in simple_commands(text) {
        let Ok(mut words) = shell_words::split(part) else { continue };
        words.truncate(MOST_WORDS);
        let is_program =
            |word: &&String| !word.contains('=') && !["!", "{", "if", "then", "do", "else"].contains(&word.as_str());
        let program = words.iter().find(is_program).map_or("", String::as_str);
        let runs_nothing = RUN_NOTHING.contains(&program.rsplit('/').next().unwrap_or_default());
        if let [cd, rest @ ..] = &words[..]
            && cd == "cd"
        {
            let to = rest.iter().find(|word| word.as_str() != "--");
            dir = to.map_or_else(|| home(environment).to_owned(), |to| dir.join(expanded(to, environment)));
            continue;
        }
        let values: Vec<String> = words.iter().map(|word| expanded(word, environment)).collect();
        for (index, (word, value)) in words.iter().zip(&values).enumerate() {
            if let Some(file) = value.strip_prefix("MINUTELY_CONFIG=") {
                config = Some(file.to_owned());
            } else if runs_nothing {
                continue;
            } else if word.contains(char::is_whitespace) && depth < DEEPEST {
                // As it is written: it is for another shell to expand.
                found.extend(calls(word, &dir, environment, depth + 1));
            } else {
                let arguments = values[index + 1..].to_vec();
                found.push(Call { dir: dir.clone(), config: config.clone(), program: value.clone(), arguments });
            }
        }
    }
    found
}

fn home(environment: &Environment) -> &Path {
    Path::new(environment.get("HOME").map_or("/", String::as_str))
}

/// A word with the values of `~`, `$NAME` and `${NAME}`, as far as they are known. Quotes are no longer there: one that a
/// shell would keep as it is names no file that exists.
fn expanded(word: &str, environment: &Environment) -> String {
    let (before, rest) = match word.split_once("=~") {
        Some((name, rest)) => (format!("{name}="), Some(rest)),
        None => (String::new(), word.strip_prefix('~')),
    };
    let (mut text, mut rest) = match rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
        Some(rest) => (format!("{before}{}", home(environment).display()), rest),
        None => (String::new(), word),
    };
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let (name, then) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(in_braces) => in_braces,
            None => after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len())),
        };
        match environment.get(name) {
            Some(value) => {
                text.push_str(value);
                rest = then;
            }
            None => {
                text.push('$');
                rest = after;
            }
        }
    }
    text + rest
}

/// The parts between the operators of a shell.
pub(super) fn simple_commands(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quote, mut escaped) = (Vec::new(), 0, None, false);
    for (at, char) in text.char_indices() {
        match (quote, char) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '"' | '\'') => quote = Some(char),
            (Some(open), _) if open == char => quote = None,
            (None, ';' | '&' | '|' | '(' | ')' | '\n') => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_this_installation_is_found_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().canonicalize().unwrap();
        std::fs::write(dir.join("config.yaml"), "").unwrap();
        std::fs::create_dir(dir.join("bin")).unwrap();
        std::os::unix::fs::symlink(&dir, dir.join("current")).unwrap();
        let of = |config: &str, arguments: &[&str], is_whole_program| Installation {
            dir: dir.clone(),
            program: dir.join("minutely"),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            config: dir.join(config),
            is_whole_program,
        };
        let (plain, other) = (of("config.yaml", &[], true), of("other.yaml", &["--config", "other.yaml"], true));
        let queue = of("minutely", &["queue"], false);
        let starts = |command: &str, installation| {
            let dir = dir.to_str().unwrap();
            let (parent, folder) = dir.rsplit_once('/').unwrap();
            let mut environment = environment_of("deploy", Some(parent.into()));
            environment.insert("APP".to_owned(), dir.to_owned());
            starts(&command.replace("DIR", dir).replace("FOLDER", folder), &environment, installation)
        };
        for command in [
            "cd DIR && ./minutely cron",
            "cd DIR; ./minutely cron -q >> var/cron.log 2>&1",
            "cd DIR/current && minutely contao:cron",
            "cd DIR/bin && ../minutely cron -c ../config.yaml",
            "/opt/minutely cron --config DIR/config.yaml",
            "/opt/minutely --config=DIR/config.yaml cron > /dev/null",
            "MINUTELY_CONFIG=DIR/config.yaml nice -n 5 minutely cron",
            "flock -n /tmp/app.lock -c 'cd DIR && ./minutely cron'",
            "/bin/sh -c \"sh -c 'cd DIR && ./minutely cron'\"",
            "cd ~/FOLDER && ./minutely cron",
            "cd $HOME/FOLDER && ./minutely cron",
            "cd \"${HOME}/FOLDER\" && ./minutely cron",
            "cd; cd FOLDER && ./minutely cron",
            "cd FOLDER && ./minutely cron",
            "~/FOLDER/minutely -c ~/FOLDER/config.yaml cron",
            "MINUTELY_CONFIG=~/FOLDER/config.yaml minutely cron",
            "cd $APP && ./minutely cron",
            "bash -lc 'cd $HOME/FOLDER && ./minutely cron'",
            "test -d $APP && cd $APP && ./minutely cron",
        ] {
            assert!(starts(command, &plain), "{command}");
            assert!(!starts(command, &other), "{command}");
        }
        for command in [
            "cd DIR/bin && ./minutely cron",
            "./minutely cron",
            "cd DIR && ./minutely cron list",
            "cd DIR && ./minutely cron --dry-run",
            "cd DIR && ./minutely status",
            "cd DIR && php cron",
            "echo 'cd DIR",
            "cd DIR && echo minutely cron",
            "cd DIR && pgrep -f './minutely cron'",
            "cd ~other/FOLDER && ./minutely cron",
            "cd $NOPE/FOLDER && ./minutely cron",
            "",
        ] {
            assert!(!starts(command, &plain), "{command}");
        }
        assert!(starts("cd DIR && ./minutely cron --config other.yaml", &other));
        assert!(starts("cd DIR && ./minutely queue cron", &queue) && !starts("cd DIR && ./minutely cron", &queue));
        assert!(starts_any("cd /elsewhere && ./minutely cron", &["minutely"]));
        assert!(!starts_any("cd /elsewhere && ./other cron", &["minutely"]));
        assert!(!starts_any("if A=1 /bin/echo minutely cron", &["minutely"]));
    }
}

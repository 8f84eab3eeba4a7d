//! `crontab --import`: the lines of a crontab as entries for `cron:`.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use indexmap::IndexMap;

use super::super::arguments::this_program;
use super::super::output::{self, Format};
use super::super::{End, Failure, Result};
use super::block::{content, lines};
use super::calls::{simple_commands, starts_any};
use super::program::{Crontab, LONGEST};
use super::table::{self, Entry, Line};
use super::yaml;
use crate::schedule::{Schedule, Zone};

const HEADING: &str = "\
# What differs from cron:
# - A job that still runs when it is due is not started a second time. As cron does: `overlap: allow`.
# - A run that was missed, because the host was off, is caught up once. As cron does: `catch_up: none`.
# - Output is mailed only if a job fails. All of it is in the log.
# - Commands start in the folder of config.yaml. Where that may matter, they go to the home folder first, as under cron.
# - An `@reboot` job runs after each boot, and also once, at once, when it is new in config.yaml.
# Below an existing `cron:`, paste only the entries.
# Remove the lines from the crontab once the jobs are in config.yaml; until then, both run them.
";

/// The key `cron` without entries.
const NONE: &str = "cron: []";

/// Cron's own, and that of minutely under cron.
const SHELL: &str = "/bin/sh";

/// What is read, besides the text.
struct Source<'s> {
    /// Whose commands are wanted.
    owner: &'s str,
    home: &'s Path,
    /// There is a user before each command.
    of_system: bool,
    /// Programs whose `cron` is minutely's.
    own_programs: &'s [&'s str],
}

pub(super) async fn run(crontab: &Crontab, file: &str, of_system: bool, format: Format) -> Result<End> {
    if format == Format::Json {
        return Err(Failure::Usage("--import prints YAML, and has no other format".to_owned()));
    }
    let (text, from) = match file {
        "" => (crontab.read().await?, format!("the crontab of {}", crontab.owner())),
        "-" => (read(std::io::stdin(), "standard input")?, "standard input".to_owned()),
        file => {
            let open =
                File::open(file).map_err(|error| Failure::Failed(format!("{file} cannot be opened: {error}")))?;
            (read(open, file)?, file.to_owned())
        }
    };
    let home = crontab.home().unwrap_or_else(|| "/".into());
    let own = this_program();
    let source = Source { owner: &crontab.owner(), home: &home, of_system, own_programs: &["minutely", own.as_str()] };
    let entries = translate(&text, &source);
    let heading = if entries.starts_with(NONE) {
        output::warning(&format!("nothing to import: {} has no job that can be translated", from));
        ""
    } else {
        HEADING
    };
    output::line(format_args!("# From {}.\n{heading}\n{}", yaml::comment(&from), entries.trim_end()));
    Ok(End::Well)
}

fn read(from: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = from.take(LONGEST + 1).read_to_end(&mut text);
    read.map_err(|error| Failure::Failed(format!("{name} cannot be read: {error}")))?;
    if text.len() as u64 > LONGEST {
        return Err(Failure::Failed(format!("{name} has more than {LONGEST} bytes, and is no crontab")));
    }
    Ok(text)
}

/// The settings that count for a line.
struct Settings {
    shell: String,
    zone: Option<String>,
    environment: IndexMap<String, String>,
}

/// The key `cron` with all entries.
fn translate(text: &[u8], source: &Source) -> String {
    let mut settings = Settings { shell: SHELL.to_owned(), zone: None, environment: IndexMap::new() };
    let (mut out, mut names) = (String::new(), HashSet::new());
    for (index, (_, line)) in lines(text).enumerate() {
        let number = index + 1;
        let Ok(line) = std::str::from_utf8(content(line)) else {
            keep(&mut out, number, "it is not UTF-8 text", &String::from_utf8_lossy(content(line)));
            continue;
        };
        match table::read(line, source.of_system) {
            Line::Blank if out.is_empty() || out.ends_with("\n\n") => {}
            Line::Blank => out.push('\n'),
            Line::Comment(text) => put(&mut out, format_args!("    #{}\n", yaml::comment(text))),
            Line::Unreadable => keep(&mut out, number, "cron cannot read it", line),
            Line::Setting { name, value } => {
                if let Some(why) = settings.take(name, value) {
                    keep(&mut out, number, &why, line);
                }
            }
            Line::Entry(entry) if starts_any(&entry.command, source.own_programs) => {
                put(&mut out, format_args!("    # line {number} is left out: it starts minutely itself\n"));
            }
            Line::Entry(entry) => match job(&entry, &settings, source, &mut names) {
                Ok(job) => out.push_str(&job),
                Err(why) => keep(&mut out, number, &why, line),
            },
        }
    }
    let key = if names.is_empty() { NONE } else { "cron:" };
    format!("{key}\n{out}")
}

/// Writing to a string cannot fail.
fn put(out: &mut String, text: std::fmt::Arguments) {
    let _ = out.write_fmt(text);
}

/// A line that is not translated stays as a comment.
fn keep(out: &mut String, number: usize, why: &str, line: &str) {
    let (why, line) = (yaml::comment(why), yaml::comment(line));
    put(out, format_args!("    # line {number} is not translated: {why}\n    #   {line}\n"));
}

impl Settings {
    /// Takes a setting for the lines after it; else why it cannot.
    fn take(&mut self, name: String, value: String) -> Option<String> {
        match name.as_str() {
            "MAILTO" | "MAILFROM" | "CONTENT_TYPE" | "CONTENT_TRANSFER_ENCODING" => {
                return Some(
                    "cron mails what minutely prints about failed jobs; put it above minutely's own line".into(),
                );
            }
            "RANDOM_DELAY" => return Some("give the jobs a `jitter`".into()),
            "START_HOURS_RANGE" => return Some("name the hours in the schedules".into()),
            "LOGNAME" | "USER" => return Some("cron takes the user's name all the same".into()),
            "CRON_TZ" if value.is_empty() => self.zone = None,
            // One that is unknown counts too: the jobs after it are not those of the zone before.
            "CRON_TZ" => {
                let zone = self.zone.insert(value.trim_start_matches(':').to_owned());
                return Zone::parse(zone).err().map(|why| format!("the time zone is unknown{why}"));
            }
            _ if name.contains('\0') || value.contains('\0') => return Some("it has a NUL character".into()),
            _ => {
                if name == "SHELL" {
                    self.shell.clone_from(&value);
                    if value == SHELL {
                        self.environment.shift_remove(&name);
                        return None;
                    }
                }
                self.environment.insert(name, value);
            }
        }
        None
    }
}

/// One entry of `cron:`; else why it cannot be translated.
fn job(entry: &Entry, settings: &Settings, source: &Source, names: &mut HashSet<String>) -> Result<String, String> {
    if let Some(user) = entry.user.filter(|user| *user != source.owner) {
        return Err(format!("it runs as {user}, and this is for {}; `--user {user}` translates it", source.owner));
    }
    if entry.command.contains('\0') {
        return Err("it has a NUL character".to_owned());
    }
    let schedule = schedule(&entry.schedule);
    let zone = match &settings.zone {
        Some(zone) => Zone::parse(zone).map_err(|why| format!("its time zone {zone} is unknown{why}"))?,
        None => Zone::System,
    };
    let command = command(entry, settings, source)?;
    let name = name(&entry.command);
    Schedule::parse(&schedule, zone, &name).map_err(|why| format!("minutely has no such schedule: {why}"))?;
    let unique = (1_u64..).map(|n| if n == 1 { name.clone() } else { format!("{name}-{n}") });
    let name = unique.into_iter().find(|name| !names.contains(name)).unwrap_or(name);
    names.insert(name.clone());

    let mut job = format!("    - name: {}\n      schedule: {}\n", yaml::value(&name), yaml::value(&schedule));
    if let Some(zone) = &settings.zone {
        put(&mut job, format_args!("      timezone: {}\n", yaml::value(zone)));
    }
    put(&mut job, format_args!("      command: {}\n", yaml::list(&command)));
    if !settings.environment.is_empty() {
        job.push_str("      environment:\n");
        for (name, value) in &settings.environment {
            // A name is no value: its % stays alone.
            let name = yaml::value(name).replace("%%", "%");
            put(&mut job, format_args!("          {name}: {}\n", yaml::value(value)));
        }
    }
    Ok(job)
}

/// What some crons have and `crontab(5)` has not: `-` (do not log), `~` (at random), `@every_minute`.
fn schedule(text: &str) -> String {
    match text {
        "@every_minute" => return "minutely".to_owned(),
        "@every_second" => return "every 1s".to_owned(),
        _ => {}
    }
    let fields = text.strip_prefix('-').unwrap_or(text).split(' ').map(|field| match field.split_once('~') {
        Some(("", "")) => "H".to_owned(),
        Some((from, to)) if !from.is_empty() && !to.is_empty() => format!("H({from}-{to})"),
        _ => field.to_owned(),
    });
    fields.collect::<Vec<_>>().join(" ")
}

/// What makes a word more than itself to a shell, outside of quotes.
const SPECIAL: &str = "|&;<>()$`\\*?[]{}~#!=\n";
/// What only a shell can do.
const BUILT_IN: [&str; 28] = [
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "eval", "exec", "exit", "export",
    "fg", "for", "if", "read", "return", "set", "shift", "source", "time", "trap", "ulimit", "umask", "until", "while",
];
/// Shells that read scripts as `sh` does.
const LIKE_SH: [&str; 8] = ["sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "busybox"];

/// The program and its arguments: the words themselves where these are plain, else a shell that reads the line.
fn command(entry: &Entry, settings: &Settings, source: &Source) -> Result<Vec<String>, String> {
    let text = entry.command.trim();
    if let Some(words) = plain_words(text).filter(|words| entry.input.is_none() && !uses_folder(words, source.home)) {
        return Ok(words);
    }
    let shell = if settings.shell == SHELL { "sh" } else { &settings.shell };
    let goes_somewhere = ["cd /", "cd ~", "cd $HOME", "cd \"$HOME"].iter().any(|start| text.starts_with(start));
    let go_home = if goes_somewhere { "" } else { "cd || exit; " };
    let script = match &entry.input {
        None => format!("{go_home}{text}"),
        Some(input) => {
            let name = Path::new(shell).file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !LIKE_SH.contains(&name) {
                return Err(format!(
                    "it gives its command an input (after %), which is not known how to do in {shell}"
                ));
            }
            // Not on one line: the command may end in a comment.
            format!("{go_home}printf %s {} | {{\n{text}\n}}", shell_words::quote(input))
        }
    };
    Ok(vec![shell.to_owned(), "-c".to_owned(), script])
}

/// The words of a command that means nothing else to a shell.
fn plain_words(text: &str) -> Option<Vec<String>> {
    let mut quote = None;
    for char in text.chars() {
        match (quote, char) {
            (None, '"' | '\'') => quote = Some(char),
            (Some(open), _) if open == char => quote = None,
            (None, _) if SPECIAL.contains(char) && char != '=' => return None,
            (Some('"'), '$' | '`' | '\\' | '!') => return None,
            _ => {}
        }
    }
    let words = shell_words::split(text).ok()?;
    let program = words.first().filter(|first| !first.is_empty())?;
    (!program.contains('=') && !BUILT_IN.contains(&program.as_str())).then_some(words)
}

/// Whether a word may name a file in the current folder, which is the home folder under cron.
fn uses_folder(words: &[String], home: &Path) -> bool {
    let is_file = |word: &str| {
        let word = word.rsplit('=').next().unwrap_or_default();
        let is_address = word.contains("://") || word.contains('@');
        let is_relative = !word.is_empty() && !word.starts_with(['/', '-']) && !is_address;
        let is_number = word.parse::<f64>().is_ok();
        is_relative && !is_number && (word.contains(['/', '.']) || home.join(word).exists())
    };
    let program_is_relative = words[0].contains('/') && !words[0].starts_with('/');
    program_is_relative || words[1..].iter().any(|word| is_file(word))
}

/// Programs that run what follows them.
const WRAPPERS: [&str; 16] = [
    "nice", "ionice", "nohup", "env", "sudo", "exec", "timeout", "flock", "chronic", "time", "setsid", "command", "{",
    "then", "do", "else",
];
const INTERPRETERS: [&str; 10] = ["php", "python", "python3", "perl", "ruby", "node", "sh", "bash", "java", "Rscript"];
/// Leaves room for the number that makes it unique.
const LONGEST_NAME: usize = 60;

/// A name by what the command runs: `php bin/console app:mail` is `console-app-mail`.
fn name(command: &str) -> String {
    let runs = simple_commands(command).into_iter().find_map(|part| {
        let words = shell_words::split(part).ok()?;
        let is_wrapper = |word: &str| WRAPPERS.contains(&file_name(word));
        let is_program = |word: &&String| {
            let is_number = word.trim_end_matches(['s', 'm', 'h']).parse::<f64>().is_ok();
            !(is_wrapper(word) || word.starts_with('-') || word.contains('=') || is_number)
        };
        let mut rest = words.iter().skip_while(|word| !is_program(word));
        let program = rest.next().filter(|word| !["cd", "[", "[[", "test", "if", "!", ":"].contains(&word.as_str()))?;
        let mut named = vec![file_name(program)];
        let mut arguments = rest.filter(|word| !word.starts_with('-')).peekable();
        if INTERPRETERS.contains(&named[0].trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
            && let Some(script) = arguments.next()
        {
            named = vec![file_name(script)];
        }
        let is_word = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || ":_-".contains(c));
        named.extend(arguments.next().map(String::as_str).filter(|word| is_word(word)));
        let name = named.join("-");
        name.contains(|c: char| c.is_ascii_alphanumeric()).then_some(name)
    });
    let fits = |c: char| if c.is_ascii_alphanumeric() || "_.+-".contains(c) { c } else { '-' };
    let name: String = runs.unwrap_or_default().chars().map(fits).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = name.get(..LONGEST_NAME).unwrap_or(name).trim_end_matches('-');
    if name.is_empty() { "job".to_owned() } else { name.to_owned() }
}

/// The file's name without its folder, and without what says that it is a script.
fn file_name(path: &str) -> &str {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    [".sh", ".php", ".py", ".pl", ".rb", ".js"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_command_runs() {
        for (command, expected) in [
            ("/usr/local/bin/backup.sh --full", "backup"),
            ("certbot -q renew", "certbot-renew"),
            ("cd /srv/shop && php8.2 bin/console app:mail > /dev/null 2>&1", "console-app-mail"),
            ("test -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }", "run-parts"),
            ("[ -d /tmp/a ] && TZ=UTC nice -n 5 python3 -u /opt/report.py daily", "report-daily"),
            ("timeout 5m flock -n /tmp/lock rsync -a a b", "lock-rsync"),
            ("{ echo $(date); }", "echo"),
            ("'unclosed", "job"),
            ("", "job"),
        ] {
            assert_eq!(name(command), expected, "{command}");
        }
    }

    proptest::proptest! {
        /// Whatever stands in a crontab, the configuration that is made of it can be read.
        #[test]
        fn what_is_printed_is_always_a_configuration(
            lines in proptest::collection::vec("(\\*/[0-9]|@daily|@reboot|-?0~9)( \\*){0,4} [ -~é\t\u{7}%]{0,30}|[A-Z]{1,3} ?= ?[ -~%]{0,9}|#[ -~\u{85}]{0,9}|.{0,20}", 0..8),
            of_system: bool,
        ) {
            let source = Source { owner: "a", home: Path::new("/nonexistent"), of_system, own_programs: &["minutely"] };
            let yaml = translate(lines.join("\n").as_bytes(), &source);
            let built = crate::App::builder().config_text(&yaml).build();
            proptest::prop_assert!(built.is_ok(), "{}\n{}", yaml, built.err().unwrap());
        }
    }
}

//! How cron and systemd start this program for this configuration: the folder, the program, and its arguments.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::arguments::own_arguments;
use super::{Application, Failure, GlobalArgs, Result};

/// This program with this configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installation {
    /// The folder to start in.
    pub(super) dir: PathBuf,
    /// The program's file.
    pub(super) program: PathBuf,
    /// The arguments before the command's name.
    pub(super) arguments: Vec<String>,
    /// What distinguishes it from others: the configuration's file; without one, the program's name in its folder.
    pub(super) config: PathBuf,
    /// Whether the program has these commands and no others, so that it finds its configuration by their options alone.
    pub(super) is_whole_program: bool,
}

impl Installation {
    /// That of this process, which runs the command of one of these names. `default_file` is the configuration that is read
    /// without `--config`.
    pub(super) fn find(
        app: &Application,
        default_file: Option<&Path>,
        names: &[&str],
        global: &GlobalArgs,
    ) -> Result<Self> {
        let here = current_dir().map_err(|error| unknown("the current folder", &error))?;
        let program = program(&here).map_err(|error| unknown("the path of this program", &error))?;
        let (file, is_whole_program) = match app {
            Application::Built(_) => (None, false),
            Application::Builder(builder) => (builder.file(), builder.is_whole_program),
        };
        let config = match app {
            Application::Built(app) => Ok(app.config.file.clone()),
            Application::Builder(builder) => builder.identity(),
        };
        let config = config.map_err(|error| unknown("the path of the configuration", &error))?;
        let config = as_called(config, &here).map_err(|error| unknown("the path of the configuration", &error))?;
        let (dir, arguments) = match file.and(config.parent()).filter(|_| is_whole_program) {
            // As its workers: in the folder of its configuration.
            Some(dir) => {
                let name = config.file_name().unwrap_or_default();
                let is_found = default_file.is_some_and(|default| default.as_os_str() == name);
                let arguments = if is_found { Vec::new() } else { vec!["--config".into(), name.to_owned()] };
                (dir.to_owned(), arguments)
            }
            None if is_whole_program => (here, Vec::new()),
            None => (here, as_it_was_called(app, names, global)?),
        };
        let arguments = arguments.iter().map(|argument| text(argument).map(str::to_owned)).collect::<Result<_>>()?;
        text(dir.as_os_str())?;
        text(program.as_os_str())?;
        text(config.as_os_str())?;
        Ok(Self { dir, program, arguments, config, is_whole_program })
    }

    /// What a shell runs: this program's command of this name, in its folder.
    pub(super) fn shell_command(&self, name: &str) -> String {
        let name_in_dir = self.program.file_name().filter(|_| is_in(&self.program, &self.dir));
        let program = match name_in_dir {
            Some(name) => format!("./{}", name.to_string_lossy()),
            None => self.program.display().to_string(),
        };
        let words = [program.as_str()].into_iter().chain(self.arguments.iter().map(String::as_str)).chain([name]);
        let words: Vec<_> = words.map(quoted).collect();
        format!("cd {} && {}", quoted(&self.dir.to_string_lossy()), words.join(" "))
    }

    /// The line of a crontab.
    pub(super) fn crontab_line(&self) -> String {
        // To cron a % is the end of the command.
        format!("* * * * * {}", self.shell_command("cron").replace('%', r"\%"))
    }

    /// Whether this path names its configuration, perhaps by other folders or links.
    pub(super) fn is_of(&self, config: &Path) -> bool {
        is_same_file(config, &self.config)
    }
}

/// Whether both paths lead to the same file. Files that do not exist are the same if their paths are.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// As a shell takes it, in a crontab too: of `\\` and `\%` some crons remove the first character, and some do not, so that
/// a backslash is never followed by another or by a `%`.
fn quoted(word: &str) -> String {
    let quoted: Cow<str> = shell_words::quote(word);
    if !quoted.starts_with('\'') {
        return quoted.into_owned();
    }
    let mut text = String::with_capacity(quoted.len());
    for char in quoted.chars() {
        if matches!(char, '\\' | '%') && text.ends_with('\\') {
            text.push_str("''");
        }
        text.push(char);
    }
    text
}

/// The current folder by the name that people use: through a link, such as `current` of a deployment, where the shell
/// says so.
fn current_dir() -> io::Result<PathBuf> {
    let dir = std::env::current_dir()?;
    let named = std::env::var_os("PWD").map(PathBuf::from).filter(|named| {
        let plain = named.is_absolute() && !named.components().any(|part| part == Component::ParentDir);
        plain && is_same_folder(named, &dir)
    });
    Ok(named.unwrap_or(dir))
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    id(one).is_some_and(|one| id(other) == Some(one))
}

/// Whether the program's file is in the folder.
fn is_in(program: &Path, dir: &Path) -> bool {
    program.parent().is_some_and(|parent| is_same_folder(parent, dir))
}

/// This program's file by the name that it was called by.
fn program(here: &Path) -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let is_it = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == running);
    let called = std::env::args_os().next().unwrap_or_default();
    let named = if called.as_encoded_bytes().contains(&b'/') {
        std::path::absolute(here.join(&called)).ok().filter(is_it)
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
        folders.find_map(|folder| Some(folder.join(&called)).filter(is_it))
    };
    Ok(named.filter(|named| !goes_up(named)).unwrap_or(running))
}

/// The path with the current folder as it is called, and without `..`.
fn as_called(path: PathBuf, here: &Path) -> io::Result<PathBuf> {
    let path = match path.strip_prefix(std::env::current_dir()?) {
        Ok(within) => here.join(within),
        Err(_) => path,
    };
    match (goes_up(&path), path.parent(), path.file_name()) {
        (true, Some(dir), Some(name)) => Ok(dir.canonicalize()?.join(name)),
        _ => Ok(path),
    }
}

fn goes_up(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

/// The arguments before the command's name, for a program with commands of its own.
fn as_it_was_called(app: &Application, names: &[&str], global: &GlobalArgs) -> Result<Vec<OsString>> {
    let of_workers = match app {
        Application::Built(app) => app.worker_program.as_deref(),
        Application::Builder(builder) => builder.worker_program(),
    };
    let of_workers = of_workers.map(|program| &program.arguments[..]).and_then(|arguments| match arguments {
        [before @ .., last] if last == "consume" => Some(before.to_vec()),
        _ => None,
    });
    let Some(mut arguments) = own_arguments(names, global).or(of_workers) else {
        return Err(Failure::Usage(
            "it is not known how this program is called to run `cron`; its code may say so with \
             `AppBuilder::worker_arguments`"
                .to_owned(),
        ));
    };
    // Named by MINUTELY_CONFIG, which cron does not know.
    if let Some(file) = &global.config
        && !arguments.iter().any(|one| one.as_encoded_bytes().ends_with(file.as_os_str().as_encoded_bytes()))
    {
        arguments.extend(["--config".into(), file.into()]);
    }
    Ok(arguments)
}

/// A word that can stand in a crontab and in a unit.
fn text(word: &OsStr) -> Result<&str> {
    let why = match word.to_str() {
        Some(text) if !text.contains(char::is_control) => return Ok(text),
        Some(_) => "has a line end or another control character in it",
        None => "is not UTF-8 text",
    };
    Err(Failure::Usage(format!("{word:?} {why}, so that cron cannot be told of it: rename it")))
}

fn unknown(what: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{what} cannot be determined: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(dir: &str, program: &str, arguments: &[&str]) -> Installation {
        Installation {
            dir: dir.into(),
            program: program.into(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            config: Path::new(dir).join("config.yaml"),
            is_whole_program: true,
        }
    }

    /// What cron runs for a line, by the rules of Vixie's cron 3.0, and by those of its successors.
    fn by_cron(line: &str, drops_backslashes: bool) -> String {
        let (mut command, mut escaped) = (String::new(), false);
        for char in line.strip_prefix("* * * * * ").unwrap().chars() {
            if escaped && (char == '%' || (drops_backslashes && char == '\\')) {
                command.pop();
            }
            assert!(escaped || char != '%', "the command ends within {line}");
            escaped = !escaped && char == '\\';
            command.push(char);
        }
        command
    }

    #[test]
    fn a_line_names_folder_program_and_arguments() {
        let line = installation("/srv/app", "/usr/local/bin/minutely", &["--config", "app.yaml"]).crontab_line();
        assert_eq!(line, "* * * * * cd /srv/app && /usr/local/bin/minutely --config app.yaml cron");
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        let line = installation(dir, &format!("{dir}/minutely"), &[]).crontab_line();
        assert_eq!(line, format!("* * * * * cd {} && ./minutely cron", quoted(dir)));
    }

    proptest::proptest! {
        /// Whatever folders and arguments are called, the shell that cron starts gets these words.
        #[test]
        fn every_line_survives_cron_and_the_shell(dir in "/[-a%\\\\'\" $;#~é!]{0,12}", argument in "[-a%\\\\'\" $`*&|<>]{0,12}") {
            let line = installation(&dir, "/usr/bin/minutely", &[&argument]).crontab_line();
            for drops_backslashes in [true, false] {
                let command = by_cron(&line, drops_backslashes);
                let words = shell_words::split(&command).unwrap();
                proptest::prop_assert_eq!(&words, &["cd", &dir, "&&", "/usr/bin/minutely", &argument, "cron"]);
            }
        }
    }
}

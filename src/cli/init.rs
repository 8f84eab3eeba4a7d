//! `minutely init`: write a first configuration.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::arguments::{own_arguments, this_program};
use super::installation::Installation;
use super::{Application, End, Failure, GlobalArgs, Result, output};
use crate::app::CONFIG_FILE;

/// The configuration that comes with this program.
const CONFIG: &str = include_str!("../../config.yaml");

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Writes config.yaml, or the file that --config names, with a comment on each part. An existing file is not changed.")]
pub(super) struct Args {}

/// What this command is called.
pub(super) const NAMES: &[&str] = &["init"];

/// `default_file` is the configuration that is read without `--config`.
pub(super) fn run(app: &Application, default_file: Option<&Path>, _: &Args, global: &GlobalArgs) -> Result<End> {
    let (file, is_whole_program) = match app {
        Application::Built(app) => (Some(app.config.file.as_path()), false),
        Application::Builder(builder) => (builder.file(), builder.is_whole_program),
    };
    let Some(file) = file else {
        return Err(Failure::Usage("the configuration is part of this program, and no file".to_owned()));
    };
    let before = if is_whole_program { Vec::new() } else { own_arguments(NAMES, global).unwrap_or_default() };
    match write(file, &called(this_program(), &before)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let message =
                format!("{} is there already, and is left as it is; `config check` looks at it", file.display());
            return Err(Failure::Usage(message));
        }
        Err(error) => return Err(Failure::Failed(format!("{} cannot be written: {error}", file.display()))),
    }
    // A program with commands of its own looks for its configuration as it does here; it may be in another folder.
    let start_in = if is_whole_program { folder(file)? } else { std::env::current_dir()? };
    let program = program(&start_in)?;
    let start = if is_whole_program {
        // Said where it is not what is looked for anyway.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name == CONFIG_FILE { program } else { format!("{program} --config {}", quoted(&name)) }
    } else {
        called(program, &before)
    };
    let line = Installation::find(app, default_file, NAMES, global)?.crontab_line();
    output::line(next_steps(file, &start_in, &start, &line, is_whole_program));
    Ok(End::Well)
}

/// The program, and the arguments before its command.
fn called(program: String, before: &[OsString]) -> String {
    let arguments = before.iter().map(|argument| quoted(&argument.to_string_lossy()));
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// Creates the file; leaves none that is written in part. Its comments say how this program is called.
fn write(file: &Path, called: &str) -> io::Result<()> {
    let mut created = File::create_new(file)?;
    let written = created.write_all(CONFIG.replace("minutely ", &format!("{called} ")).as_bytes());
    if written.is_err() {
        let _ = fs::remove_file(file);
    }
    written
}

/// What to type to run this program in a folder.
fn program(folder: &Path) -> Result<String> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Failed(format!("the path of this program cannot be determined: {error}")))?;
    let in_folder = folder.canonicalize().is_ok_and(|folder| program.parent() == Some(&folder));
    let name = program.file_name().filter(|_| in_folder).map(|name| format!("./{}", name.to_string_lossy()));
    Ok(quoted(&name.unwrap_or_else(|| program.display().to_string())))
}

fn folder(config: &Path) -> Result<PathBuf> {
    std::path::absolute(config)
        .map(|file| file.parent().unwrap_or(Path::new("/")).to_owned())
        .map_err(|error| Failure::Failed(format!("the current folder cannot be determined: {error}")))
}

/// What to type next; `start` is how the program is called, in the folder `start_in`, and `crontab` cron's line.
fn next_steps(config: &Path, start_in: &Path, start: &str, crontab: &str, is_whole_program: bool) -> String {
    let folder = quoted(&start_in.display().to_string());
    let beside = config.parent().filter(|parent| *parent != Path::new(""));
    let go_there = beside.filter(|_| is_whole_program).map(|_| format!("   cd {folder}\n")).unwrap_or_default();
    let handled = Path::new("var/handled.log");
    let handled = beside.filter(|_| !is_whole_program).map_or_else(|| handled.to_owned(), |dir| dir.join(handled));
    let handled = quoted(&handled.display().to_string());
    format!(
        r#"{file} is written, and works as it is. Next:

1. Send a message. As no worker runs yet, it is handled at once:
{go_there}   {start} dispatch 'App\Message\High\Note' '{{"text":"Hello"}}'
   cat {handled}

2. Add a line to your crontab. Within a minute, workers run, and messages are queued for them:
   {start} crontab --install
   This is the line, for `crontab -e` and for providers that ask for it:
   {crontab}

3. See what is going on:
   {start} status

4. Write what your own messages are, and what handles them, into {file}, and look for mistakes:
   {start} config check"#,
        file = config.display()
    )
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    shell_words::quote(text).into_owned()
}

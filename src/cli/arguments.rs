//! How this program was called, and how it is called again.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::application::Application;
use super::command::{GlobalArgs, Kind};
use crate::app::WorkerProgram;

/// The name of the program's file.
pub(super) fn this_program() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(|program| program.file_name());
    name.map_or_else(|| "minutely".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The arguments that this program was started with before those of its command, which has one of these names; with
/// the configuration, if that was named after the command.
pub(super) fn own_arguments(names: &[&str], global: &GlobalArgs) -> Option<Vec<OsString>> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // These commands have no arguments that are names, so that the last one that looks like theirs is theirs.
    let position = arguments.iter().rposition(|argument| names.iter().any(|name| argument == name))?;
    let after = arguments.split_off(position);
    if let Some(file) = &global.config {
        let named = |argument: &OsString| argument.as_encoded_bytes().ends_with(file.as_os_str().as_encoded_bytes());
        if after.iter().any(named) {
            arguments.extend(["--config".into(), file.into()]);
        }
    }
    Some(arguments)
}

/// What to do where there is no configuration. Only a program that has no other commands is known to have `--config`.
pub(super) fn advice(app: &Application, command: &Kind, global: &GlobalArgs) -> String {
    let Application::Builder(builder) = app else { return String::new() };
    let Some(file) = builder.file() else { return String::new() };
    let name_it = builder.is_whole_program.then_some("name the file with --config FILE or MINUTELY_CONFIG");
    let write = (!file.exists()).then(|| format!("`{}` writes a first one", typed(command, "init", global)));
    let name_it = name_it.filter(|_| write.is_some() || file.is_dir());
    let advice: Vec<String> = write.into_iter().chain(name_it.map(str::to_owned)).collect();
    if advice.is_empty() { String::new() } else { format!("; {}", advice.join(", or ")) }
}

/// What to type for another of these commands: as this one was typed, but for its own name.
pub(super) fn typed(command: &Kind, other: &str, global: &GlobalArgs) -> String {
    match own_arguments(command.names(), global) {
        Some(_) => format!("{} {other}", called_before(command.names(), global)),
        None => other.to_owned(),
    }
}

/// What people type before the name of a command, which has one of these names: the program, and what it needs to know.
pub(super) fn called_before(names: &[&str], global: &GlobalArgs) -> String {
    let arguments = own_arguments(names, global).unwrap_or_default();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let before = if arguments.is_empty() { String::new() } else { format!(" {}", shell_words::join(arguments)) };
    format!("{}{before}", this_program())
}

/// How this program becomes a worker, by the arguments that it was started with: those before the command's own name.
/// Nothing where they do not name it.
pub(super) fn worker_program(command: &Kind, global: &GlobalArgs) -> Option<Arc<WorkerProgram>> {
    if !command.starts_processes() {
        return None;
    }
    let mut arguments = own_arguments(command.names(), global)?;
    arguments.push("consume".into());
    Some(Arc::new(WorkerProgram { arguments, dir: None }))
}

//! What a person's shell has and cron has not: variables, and programs in PATH.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::super::App;
use super::super::installation::Installation;
use super::block::{content, lines};
use super::program::Crontab;
use super::table::{self, Line};
use crate::config::{JobAction, problems_with};

/// Cron's PATH where the crontab sets none.
const PATH: &str = "/usr/bin:/bin";

/// What to see to before cron runs this installation. `crontab` is the text that the line stands in, if it does.
pub(super) fn of(app: &App, installation: &Installation, owner: &Crontab, crontab: &[u8]) -> Vec<String> {
    let environment = environment(installation, owner, crontab);
    let path = environment.iter().rev().find(|(name, _)| name == "PATH").map_or(PATH, |(_, value)| value.as_str());
    let mut concerns: Vec<String> = missing_programs(app, path).collect();
    if app.config.file.is_file() {
        let variables = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let problems = problems_with(&app.config.file, variables);
        concerns.extend(problems.errors().map(|problem| {
            format!("under cron, which has not the variables of this shell: {}: {}", problem.path, problem.message)
        }));
    }
    let uid = app.config.file.metadata().ok().map(|metadata| metadata.uid()).filter(|uid| *uid != 0);
    if let Some(uid) = uid.filter(|_| owner.owner() == "root") {
        let name = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let name = name.map_or_else(|| format!("user {uid}"), |user| user.name);
        concerns.push(format!(
            "cron will run this as root, while {} belongs to {name}: use {name}'s crontab, unless workers need root's rights",
            app.config.file.display()
        ));
    }
    concerns
}

/// What cron sets, and what the crontab sets above the line.
fn environment(installation: &Installation, owner: &Crontab, crontab: &[u8]) -> Vec<(String, String)> {
    let home = owner.home().unwrap_or_else(|| "/".into()).display().to_string();
    let owner = owner.owner();
    let own = [("SHELL", "/bin/sh"), ("HOME", &home), ("LOGNAME", &owner), ("USER", &owner), ("PATH", PATH)];
    let mut environment: Vec<(String, String)> =
        own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let expected = installation.crontab_line();
    let texts = lines(crontab).map(|(_, line)| String::from_utf8_lossy(content(line)));
    for text in texts.take_while(|text| *text != expected) {
        if let Line::Setting { name, value } = table::read(&text, false) {
            environment.push((name, value));
        }
    }
    environment
}

/// Programs that are found in this process's PATH and not in cron's.
fn missing_programs(app: &App, path_of_cron: &str) -> impl Iterator<Item = String> {
    let config = &app.config;
    let handlers = config.handlers.values().flatten().filter_map(|handler| handler.program()?.first());
    let workers = config.workers.iter().filter_map(|worker| worker.command.as_ref()?.first());
    let jobs = config.jobs.iter().filter_map(|job| match &job.action {
        JobAction::Command { command, environment } if !environment.contains_key("PATH") => command.first(),
        _ => None,
    });
    let programs: BTreeSet<&String> = handlers.chain(workers).chain(jobs).collect();
    let own_path = std::env::var("PATH").unwrap_or_default();
    programs.into_iter().filter(|program| !program.contains('/')).filter_map(move |program| {
        let here = find(program, &own_path)?;
        find(program, path_of_cron).is_none().then(|| {
            format!(
                "{program} is {} here, and is not in cron's PATH ({path_of_cron}): write its full path in the \
                 configuration, or PATH=… above the line in the crontab",
                here.display()
            )
        })
    })
}

fn find(program: &str, path: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

//! Tests that texts name the program that people call, whatever its name is.

use std::fs;
use std::path::{Path, PathBuf};

use super::parser::parser;

/// What people would type if the program were called `minutely`.
fn minutelys_commands() -> Vec<String> {
    parser("minutely".into(), "1.0".into(), None)
        .get_subcommands()
        .map(|command| format!("minutely {}", command.get_name()))
        .collect()
}

fn help_of(mut command: clap::Command) -> String {
    let mut text = command.render_long_help().to_string();
    for subcommand in command.get_subcommands() {
        text.push_str(&help_of(subcommand.clone()));
    }
    text
}

#[test]
fn the_help_of_an_application_names_its_own_program() {
    let help = help_of(parser("courier".into(), "1.0".into(), None));
    assert!(help.contains("courier dispatch") && help.contains("courier cron"), "{help}");
    for command in minutelys_commands() {
        assert!(!help.contains(&command), "`{command}` in:\n{help}");
    }
}

/// The rooms below this one serve any program, so their texts say "the command `setup`". Whoever knows how the program
/// was called is here: see [`super::arguments::typed`].
#[test]
fn texts_of_the_rooms_below_name_no_program() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (cli, commands) = (source.join("cli"), minutelys_commands());
    let mut checked = 0;
    for file in files(&source).into_iter().filter(|file| !file.starts_with(&cli)) {
        let text = fs::read_to_string(&file).unwrap();
        for (line, code) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let named = commands.iter().find(|command| code.contains(&format!("`{command}")));
            assert_eq!(named, None, "{}:{}: {code}", file.display(), line + 1);
            checked += 1;
        }
    }
    assert!(checked > 10_000, "{checked} lines");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

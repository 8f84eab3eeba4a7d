//! The environment variables of a configuration: those of the process, then `.env.local`, then `.env` beside the file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use super::problem::{Problem, Problems};

/// Variables by name. They may be secrets, so there is no `Debug`, and no error shows a value.
#[derive(Default)]
pub(super) struct Environment {
    variables: HashMap<String, String>,
}

impl Environment {
    /// The variables of the process (`real`), which have precedence, and of `.env.local` and `.env` in `dir`, as
    /// Symfony's Dotenv loads them. The process's environment is not changed: `.env` is only for the configuration.
    pub(super) fn load(
        dir: &Path,
        real: impl IntoIterator<Item = (OsString, OsString)>,
        problems: &mut Problems,
    ) -> Self {
        let mut variables = HashMap::new();
        for name in [".env", ".env.local"] {
            if let Err(message) = read_file(&dir.join(name), &mut variables) {
                problems.push(Problem::error(name, message));
            }
        }
        // A value that is not UTF-8 cannot be used in a configuration.
        variables.extend(
            real.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        );
        Self { variables }
    }

    /// A variable's value. An empty variable is set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// All names, for "did you mean".
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self { variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into() }
    }
}

/// Adds a file's variables, up to the first mistake. A missing file has none.
fn read_file(path: &Path, variables: &mut HashMap<String, String>) -> Result<(), String> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let text = text.trim_start_matches('\u{feff}');
    for variable in dotenvy::from_read_iter(text.as_bytes()) {
        let (name, value) = variable.map_err(|error| explain(&error, text))?;
        variables.insert(name, value);
    }
    Ok(())
}

/// The error without the line's text, which may contain a password.
fn explain(error: &dotenvy::Error, text: &str) -> String {
    let line = match error {
        dotenvy::Error::LineParse(line, _) => text.find(line.as_str()).map(|at| text[..at].matches('\n').count() + 1),
        _ => None,
    };
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    format!("{place}must be NAME=value; quote values with spaces, quotes or #")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)], real: &[(&str, &str)]) -> (Environment, Problems) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let mut problems = Problems::new("config.yaml");
        let real = real.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        (Environment::load(dir.path(), real, &mut problems), problems)
    }

    #[test]
    fn the_process_has_precedence_over_env_local_and_that_over_env() {
        let (environment, problems) =
            load(&[(".env", "A=1\nB=1\nC=1\n# no\n"), (".env.local", "export B='2'\nC=\"2\"\n")], &[("C", "3")]);
        assert_eq!(
            [environment.get("A"), environment.get("B"), environment.get("C")],
            [Some("1"), Some("2"), Some("3")]
        );
        assert_eq!(environment.get("D"), None);
        assert_eq!(problems.list, []);
    }

    #[test]
    fn a_mistake_in_a_file_is_reported_by_line_without_the_text() {
        let (environment, problems) = load(&[(".env", "A=1\n\nPASSWORD=hunter2 x\nB=1\n")], &[]);
        assert_eq!(environment.get("A"), Some("1"));
        let text = problems.to_string();
        assert!(text.starts_with("config.yaml: .env: line 3: must be NAME=value"), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn an_open_quote_a_byte_order_mark_and_a_folder_are_handled() {
        assert!(load(&[(".env", "A=\"hunter2\n")], &[]).1.any_error());
        assert_eq!(load(&[(".env", "\u{feff}A=1\n")], &[]).0.get("A"), Some("1"));

        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".env")).unwrap();
        let mut problems = Problems::new("config.yaml");
        Environment::load(dir.path(), [], &mut problems);
        assert!(problems.to_string().contains(".env: cannot be read"));
    }
}

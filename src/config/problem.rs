//! Mistakes in a configuration, in a form for people.

use std::fmt;

/// A mistake or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Where in the file: `workers[1].transports[0]`. Empty for the file as a whole.
    pub path: String,
    /// What is wrong, what is allowed, and what to do. Never contains a password.
    pub message: String,
    /// Whether it is only a warning, which is shown and prevents nothing.
    pub warning: bool,
}

impl Problem {
    /// A mistake. Nothing starts until it is fixed.
    pub fn error(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), warning: false }
    }

    /// A warning: something works, but probably not as intended.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), warning: true }
    }

    /// A name that is none of those allowed: `unknown transport "asinc", did you mean "async"? Known: async, failed`.
    pub fn unknown<'a>(
        path: impl Into<String>,
        what: &str,
        found: &str,
        allowed: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let allowed: Vec<&str> = allowed.into_iter().collect();
        let hint = nearest(found, allowed.iter().copied()).map(|name| format!(", did you mean \"{name}\"?"));
        let known = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        let end = if hint.is_some() { "" } else { ";" };
        Self::error(path, format!("unknown {what} \"{found}\"{}{end} known: {known}", hint.unwrap_or_default()))
    }
}

/// The name that a typing error was probably meant to be.
pub(crate) fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = found.to_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.chars().count() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `scheme://…`, or `user:password@host`.
pub(super) fn may_hold_password(text: &str) -> bool {
    text.contains("://") || (text.contains('@') && text.contains(':'))
}

/// Text for a message: short, on one line, and without any part of a URL that could be a password.
pub(super) fn displayable(text: &str) -> String {
    const LONGEST: usize = 60;
    if may_hold_password(text) {
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        let plain = scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        return if plain && !scheme.is_empty() { format!("{scheme}:…") } else { "…".to_owned() };
    }
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    // Otherwise every backslash in a type's name would be doubled.
    short.replace(r"\\", r"\").replace("\\'", "'").replace("\\\"", "\"")
}

/// All problems of one configuration, in the order they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problems {
    /// The file, as named by the user.
    pub file: String,
    /// The problems.
    pub list: Vec<Problem>,
}

impl Problems {
    /// No problems yet.
    pub fn new(file: impl Into<String>) -> Self {
        Self { file: file.into(), list: Vec::new() }
    }

    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) {
        self.list.push(problem);
    }

    /// Whether there are mistakes.
    pub fn any_error(&self) -> bool {
        self.list.iter().any(|problem| !problem.warning)
    }

    /// The mistakes.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter().filter(|problem| !problem.warning)
    }

    /// The warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter().filter(|problem| problem.warning)
    }
}

impl fmt::Display for Problems {
    /// One line each: `config.yaml: workers[0].autoscale.max: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.list.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: ", self.file)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            if problem.warning {
                write!(f, "warning: ")?;
            }
            write!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

//! What is behind an error, as text.

use std::error::Error;
use std::iter::successors;

/// The causes of an error, the innermost last.
pub(crate) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(error.source(), |error| (*error).source())
}

/// Appends causes to a text, which may be empty. Many errors repeat their cause in their own text, so each is there once.
pub(crate) fn append<'a>(text: String, causes: impl Iterator<Item = &'a (dyn Error + 'static)>) -> String {
    causes.map(ToString::to_string).fold(text, |text, cause| match text {
        text if text.is_empty() => cause,
        text if text.contains(&cause) => text,
        text => format!("{text}: {cause}"),
    })
}

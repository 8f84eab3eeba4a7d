//! How results and errors are printed.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// For people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[value(alias = "txt")]
    Text,
    /// For programs
    Json,
}

/// The `--format` option.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct FormatArg {
    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Format,
}

/// Whether `--quiet` was given.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, only errors are printed.
pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a line of a command's result. A closed pipe (`| head`) is not an error.
pub(super) fn line(text: impl std::fmt::Display) {
    if is_quiet() {
        return;
    }
    let _ = writeln!(anstream::stdout(), "{text}");
}

/// Prints one JSON value on one line.
pub(super) fn json(value: &impl Serialize) -> super::Result<()> {
    line(serde_json::to_string(value)?);
    Ok(())
}

/// Prints an error; each of its lines gets the prefix.
pub(super) fn error(text: &str) {
    let red = anstyle::AnsiColor::Red.on_default().bold();
    for line in text.lines() {
        let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {line}");
    }
}

/// Prints a comment of SQL beside a command's result.
pub(super) fn comment(text: &str) {
    if !is_quiet() {
        let _ = writeln!(anstream::stderr(), "-- {text}");
    }
}

/// Prints lines that belong to an error.
pub(super) fn quoted(text: &str) {
    for line in text.lines() {
        let _ = writeln!(anstream::stderr(), "    {line}");
    }
}

/// Prints a warning.
pub(super) fn warning(text: &str) {
    if is_quiet() {
        return;
    }
    let yellow = anstyle::AnsiColor::Yellow.on_default().bold();
    let _ = writeln!(anstream::stderr(), "{yellow}warning:{yellow:#} {text}");
}

/// Prints rows under a bold heading; the columns in `numbers` are aligned to the right.
pub(super) fn table(heading: &[&str], numbers: std::ops::Range<usize>, rows: impl IntoIterator<Item = Vec<String>>) {
    let bold = anstyle::Style::new().bold();
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heading.iter().map(|text| text.to_string()));
    for row in rows {
        table.add_row(row);
    }
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for (n, text) in table.to_string().lines().enumerate() {
        let style = if n == 0 { bold } else { anstyle::Style::new() };
        line(format_args!("{style}{}{style:#}", text.trim_end()));
    }
}

/// A human-readable duration: `45 s`, `3 min`, `2 h`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

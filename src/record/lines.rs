//! Files of lines, each a JSON value: appended to, and read past whatever is damaged.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::state_files::{self, Mode, StateError};

/// Longer lines are none of ours.
const LONGEST: usize = 16 * 1024;

/// Appends whole lines, in one write. `text` ends with a line break.
pub(super) fn append(path: &Path, text: &str) -> Result<(), StateError> {
    let mut file = state_files::open(path, Mode::Append)?;
    let separator = if ends_within_a_line(path) { "\n" } else { "" };
    file.write_all(format!("{separator}{text}").as_bytes()).map_err(StateError::io(path, "written"))
}

/// Whether the last writer was killed, or the disk was full, in the middle of a line.
fn ends_within_a_line(path: &Path) -> bool {
    let last_byte = || {
        let mut file = state_files::open(path, Mode::Read).ok()?;
        file.seek(SeekFrom::End(-1)).ok()?;
        let mut byte = [0];
        file.read_exact(&mut byte).ok()?;
        Some(byte[0])
    };
    last_byte().is_some_and(|byte| byte != b'\n')
}

/// How many bytes a file has; none if it is missing.
pub(super) fn size(path: &Path) -> u64 {
    path.metadata().map(|metadata| metadata.len()).unwrap_or(0)
}

/// Calls `each` with every line that can be read. Returns how many could not. A file that is missing has no lines.
pub(super) fn read<T: DeserializeOwned>(path: &Path, mut each: impl FnMut(T)) -> Result<usize, StateError> {
    let file = match state_files::open(path, Mode::Read) {
        Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        file => file?,
    };
    let (mut reader, mut damaged) = (BufReader::new(file), 0);
    loop {
        match next_line(&mut reader).map_err(StateError::io(path, "read"))? {
            None => return Ok(damaged),
            Some(line) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(line) => match serde_json::from_slice(&line) {
                Ok(line) => each(line),
                Err(_) => damaged += 1,
            },
        }
    }
}

/// The next line, or as much of it as a line may have.
fn next_line(reader: &mut BufReader<File>) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if reader.by_ref().take(LONGEST as u64).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() == LONGEST && !line.ends_with(b"\n") {
        reader.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn numbers(path: &Path) -> (Vec<u64>, usize) {
        let mut numbers = Vec::new();
        let damaged = read(path, |number| numbers.push(number)).unwrap();
        (numbers, damaged)
    }

    #[test]
    fn lines_are_read_as_they_were_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        assert_eq!(numbers(&path), (vec![], 0));
        append(&path, "1\n2\n").unwrap();
        append(&path, "3\n").unwrap();
        assert_eq!(numbers(&path), (vec![1, 2, 3], 0));
    }

    #[test]
    fn an_incomplete_line_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        fs::write(&path, "1\n{\"a").unwrap();
        append(&path, "2\n").unwrap();
        assert_eq!(numbers(&path), (vec![1, 2], 1));
    }

    #[test]
    fn what_is_not_ours_is_skipped_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let long = "9".repeat(3 * LONGEST);
        fs::write(&path, [b"1\n\n\xff\xfe\x00\n", long.as_bytes(), b"\n\"text\"\n2\n"].concat()).unwrap();
        assert_eq!(numbers(&path), (vec![1, 2], 3));
    }

    #[test]
    fn a_folder_in_place_of_a_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path(), |_: u64| {}).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
    }
}

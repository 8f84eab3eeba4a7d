//! Editing a crontab's text: the block of one installation between its two marker lines. Pure.
//!
//! ```text
//! # BEGIN minutely /srv/app/config.yaml
//! * * * * * cd /srv/app && ./minutely cron
//! # END minutely /srv/app/config.yaml
//! ```
//!
//! Text outside of the block stays byte for byte, so the text is bytes: other people's lines may be of any encoding, and have
//! any line ends.

use std::ops::Range;

use thiserror::Error;

const BEGIN: &[u8] = b"# BEGIN minutely ";
const END: &[u8] = b"# END minutely ";

/// A block of this installation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Its bytes, with both marker lines.
    range: Range<usize>,
    /// The line between the markers, with its number. `None`: there is none.
    pub(super) line: Option<(usize, Vec<u8>)>,
}

/// Markers that cannot be trusted. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum BlockError {
    /// The end of a block is missing.
    #[error("line {0} begins a block of minutely's, and no line ends it")]
    NoEnd(usize),
    /// The beginning of a block is missing.
    #[error("line {0} ends a block of minutely's, and no line begins it")]
    NoBegin(usize),
    /// Somebody has added lines to the block, between these markers.
    #[error(
        "lines {0} and {1} are minutely's markers, for one line, and there are more; move those that are not minutely's \
             out of the markers"
    )]
    Foreign(usize, usize),
}

/// The lines of a text with their line ends, and where each begins.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (Range<usize>, &[u8])> {
    let mut at = 0;
    text.split_inclusive(|&byte| byte == b'\n').map(move |line| {
        let start = at;
        at += line.len();
        (start..at, line)
    })
}

/// A line without its line end.
pub(super) fn content(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The blocks whose markers name a configuration that `is_ours`.
pub(super) fn blocks(text: &[u8], is_ours: impl Fn(&[u8]) -> bool) -> Result<Vec<Block>, BlockError> {
    let ours = |line: &[u8], marker: &[u8]| line.strip_prefix(marker).is_some_and(&is_ours);
    let (mut found, mut open) = (Vec::new(), None);
    for (index, (range, line)) in lines(text).enumerate() {
        let (number, line) = (index + 1, content(line));
        let is_end = ours(line, END);
        match &mut open {
            None if is_end => return Err(BlockError::NoBegin(number)),
            None if ours(line, BEGIN) => open = Some((number, Block { range, line: None })),
            None => {}
            Some((_, block)) if is_end => {
                let line = block.line.take();
                found.push(Block { range: block.range.start..range.end, line });
                open = None;
            }
            Some((begin, _)) if ours(line, BEGIN) => return Err(BlockError::NoEnd(*begin)),
            Some((_, block)) if block.line.is_none() => block.line = Some((number, line.to_owned())),
            Some((begin, _)) => {
                let end = lines(text).skip(number).position(|(_, line)| ours(content(line), END));
                let foreign = |end| BlockError::Foreign(*begin, number + 1 + end);
                return Err(end.map_or(BlockError::NoEnd(*begin), foreign));
            }
        }
    }
    match open {
        Some((begin, _)) => Err(BlockError::NoEnd(begin)),
        None => Ok(found),
    }
}

/// The blocks whose markers name a configuration that `is_gone`: their first and last line, and the configuration.
pub(super) fn abandoned(text: &[u8], is_gone: impl Fn(&[u8]) -> bool) -> Vec<(usize, usize, &[u8])> {
    let (mut found, mut open) = (Vec::new(), None);
    for (index, (_, line)) in lines(text).enumerate() {
        let line = content(line);
        if let Some(config) = line.strip_prefix(BEGIN) {
            open = Some((index + 1, config));
        } else if let Some(config) = line.strip_prefix(END)
            && let Some((begin, _)) = open.take().filter(|(_, begun)| *begun == config)
            && is_gone(config)
        {
            found.push((begin, index + 1, config));
        }
    }
    found
}

/// The text with one block, which has this line. It replaces the block that is there; a new one is added at the end.
pub(super) fn install(
    text: &[u8],
    config: &str,
    line: &str,
    is_ours: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>, BlockError> {
    let blocks = blocks(text, is_ours)?;
    let block = [BEGIN, config.as_bytes(), b"\n", line.as_bytes(), b"\n", END, config.as_bytes(), b"\n"].concat();
    let at = match blocks.first() {
        Some(first) => first.range.start,
        // Before a last line without a line end: adding one would change that line.
        None => text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1),
    };
    Ok([&text[..at], &block, &without(text, &blocks)[at..]].concat())
}

/// The text without this installation's blocks.
pub(super) fn remove(text: &[u8], is_ours: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, BlockError> {
    Ok(without(text, &blocks(text, is_ours)?))
}

fn without(text: &[u8], blocks: &[Block]) -> Vec<u8> {
    let (mut rest, mut at) = (Vec::with_capacity(text.len()), 0);
    for block in blocks {
        rest.extend_from_slice(&text[at..block.range.start]);
        at = block.range.end;
    }
    rest.extend_from_slice(&text[at..]);
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: &str = "/srv/app/config.yaml";
    const LINE: &str = "* * * * * cd /srv/app && ./minutely cron";

    fn is_ours(config: &[u8]) -> bool {
        config == CONFIG.as_bytes()
    }

    fn install(text: &[u8]) -> Result<Vec<u8>, BlockError> {
        super::install(text, CONFIG, LINE, is_ours)
    }

    fn remove(text: &[u8]) -> Result<Vec<u8>, BlockError> {
        super::remove(text, is_ours)
    }

    /// Pieces of crontabs, glued together: line ends of all kinds, markers of this and of another installation, and bytes.
    fn any_text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => Just(b"\n".to_vec()),
            1 => Just(b"\r\n".to_vec()),
            1 => Just(format!("# BEGIN minutely {CONFIG}").into_bytes()),
            1 => Just(format!("# END minutely {CONFIG}").into_bytes()),
            1 => Just(b"# BEGIN minutely /other/config.yaml\n* * * * * x\n# END minutely /other/config.yaml\n".to_vec()),
            1 => Just(b"*/5 * * * * php bin/console\n".to_vec()),
            1 => Just(b"PATH=/usr/local/bin:/usr/bin".to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..20),
            1 => Just(vec![b'x'; 5000]),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn removing_what_was_installed_leaves_every_text_as_it_was(text in any_text()) {
            match remove(&text) {
                Err(error) => prop_assert_eq!(install(&text), Err(error)),
                Ok(rest) => {
                    let installed = install(&text).unwrap();
                    prop_assert_eq!(remove(&installed).unwrap(), rest);
                    prop_assert_eq!(install(&installed).unwrap(), installed.clone(), "a second time");
                    let found = blocks(&installed, is_ours).unwrap();
                    prop_assert_eq!(found.len(), 1);
                    prop_assert_eq!(&found[0].line.as_ref().unwrap().1, LINE.as_bytes());
                    if blocks(&text, is_ours).unwrap().is_empty() {
                        prop_assert_eq!(remove(&installed).unwrap(), text);
                    }
                }
            }
        }

        /// Where two installations share a crontab, each finds its own block.
        #[test]
        fn two_installations_do_not_meet(text in "([a-z*% ]{0,9}\r?\n?){0,6}") {
            let other = |config: &[u8]| config == b"/other";
            let both = super::install(&install(text.as_bytes()).unwrap(), "/other", "* * * * * other", other).unwrap();
            let first = remove(&both).unwrap();
            prop_assert_eq!(super::remove(&first, other).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn a_new_block_is_the_end_of_the_crontab() {
        let expected = format!("MAILTO=a\n# BEGIN minutely {CONFIG}\n{LINE}\n# END minutely {CONFIG}\n");
        assert_eq!(install(b"MAILTO=a\n").unwrap(), expected.as_bytes());
    }

    #[test]
    fn a_block_is_replaced_where_it_is_and_a_second_one_goes() {
        let block = |line: &str| format!("# BEGIN minutely {CONFIG}\n{line}\n# END minutely {CONFIG}\n");
        let text = format!("a\n{}b\r\n{}c", block("old"), block("old"));
        let expected = format!("a\n{}b\r\nc", block(LINE));
        assert_eq!(install(text.as_bytes()).unwrap(), expected.as_bytes());
        // An editor of Windows has been at work.
        let text = format!("a\r\n{}b\r\n", block("old").replace('\n', "\r\n"));
        assert_eq!(remove(text.as_bytes()).unwrap(), b"a\r\nb\r\n");
    }

    #[test]
    fn blocks_of_installations_that_are_gone_are_found_by_line() {
        let block = |config: &str| format!("# BEGIN minutely {config}\nx\n# END minutely {config}\n");
        let text = format!("a\n{}{}b\r\n{}", block("/gone"), block("/there"), block("/gone 2"));
        let text = format!("{text}# BEGIN minutely /gone 3\n{}# END minutely /gone 4\n", block("/there"));
        let found = abandoned(text.as_bytes(), |config| config.starts_with(b"/gone"));
        assert_eq!(found, [(2, 4, &b"/gone"[..]), (9, 11, b"/gone 2")]);
    }

    #[test]
    fn damaged_markers_are_told_by_line_and_nothing_is_changed() {
        let (begin, end) = (format!("# BEGIN minutely {CONFIG}\n"), format!("# END minutely {CONFIG}\n"));
        for (text, error) in [
            (format!("a\n{begin}b\n"), BlockError::NoEnd(2)),
            (format!("a\n{begin}b\nc\n"), BlockError::NoEnd(2)),
            (format!("{begin}{begin}{end}"), BlockError::NoEnd(1)),
            (format!("a\nb\n{end}"), BlockError::NoBegin(3)),
            (format!("{begin}a\n0 0 * * * backup\n{end}"), BlockError::Foreign(1, 4)),
            (format!("a\n{begin}b\nc\nd\n{end}{begin}b\n{end}"), BlockError::Foreign(2, 6)),
        ] {
            assert_eq!((install(text.as_bytes()), remove(text.as_bytes())), (Err(error.clone()), Err(error)), "{text}");
        }
    }
}

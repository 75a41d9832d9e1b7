//! Text in the columns of a terminal, where a wide character (East Asian Width) takes two.

use std::io::{self, Write};

use unicode_width::UnicodeWidthChar;

/// The columns that a text takes: the sum over its characters. Some terminals show a sequence of them as one.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(|one| one.width().unwrap_or(0)).sum()
}

/// The text, and spaces up to this many columns.
pub(super) fn padded(text: &str, columns: usize) -> String {
    let spaces = columns.saturating_sub(width(text));
    format!("{text}{:spaces$}", "")
}

/// The longest beginning that takes at most this many columns.
pub(super) fn beginning(text: &str, columns: usize) -> &str {
    let mut left = columns;
    let end = text.char_indices().find(|(_, one)| match left.checked_sub(one.width().unwrap_or(0)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// A text with its middle cut out if it takes more than `most` columns.
pub(super) fn shorten(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let (head, tail) = (most.saturating_sub(2) / 2, most.saturating_sub(2) - most.saturating_sub(2) / 2);
    let mut from = text.len();
    for (place, _) in text.char_indices().rev() {
        if width(&text[place..]) > tail {
            break;
        }
        from = place;
    }
    format!("{}..{}", beginning(text, head), &text[from..])
}

/// Write a line that begins with `first`, to which the other parts are added, with two spaces between them. The spaces before the first
/// part are those at the end of `first`. On a terminal of this width, a part that does not fit begins a line of its own, behind `indent`
/// spaces. Empty parts are left out.
pub(super) fn fitted(
    out: &mut impl Write,
    terminal: Option<usize>,
    indent: usize,
    first: &str,
    parts: &[&str],
) -> io::Result<()> {
    let begin = first.trim_end_matches(' ');
    out.write_all(begin.as_bytes())?;
    let (mut used, mut gap) = (terminal.map_or(0, |_| width(begin)), first.len() - begin.len());
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let needs = terminal.map_or(0, |_| width(part));
        match terminal {
            Some(columns) if used > indent && used + gap + needs > columns => {
                write!(out, "\n{:indent$}{part}", "")?;
                used = indent + needs;
            }
            _ => {
                write!(out, "{:gap$}{part}", "")?;
                used += gap + needs;
            }
        }
        gap = 2;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_part_that_does_not_fit_begins_a_line() {
        let lines = |terminal, parts: &[&str]| {
            let mut out = Vec::new();
            fitted(&mut out, terminal, 2, "first: ", parts).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(lines(None, &["a long part", "", "another"]), "first: a long part  another\n");
        assert_eq!(lines(Some(27), &["a long part", "", "another"]), "first: a long part  another\n");
        assert_eq!(lines(Some(26), &["a long part", "another"]), "first: a long part\n  another\n");
        assert_eq!(lines(Some(13), &["a long part", "数据", "x"]), "first:\n  a long part\n  数据  x\n");
        assert_eq!(lines(Some(5), &["a long part"]), "first:\n  a long part\n", "it stays whole");
    }

    #[test]
    fn a_wide_character_takes_two_columns() {
        assert_eq!([width("abc"), width("数据库"), width("e\u{301}")], [3, 6, 1]);
        assert_eq!(padded("数据", 6), "数据  ");
        assert_eq!(padded("abcdef", 3), "abcdef");
        assert_eq!([beginning("数据库", 5), beginning("abc", 9), beginning("数", 1)], ["数据", "abc", ""]);
    }

    #[test]
    fn a_long_text_loses_its_middle() {
        assert_eq!(shorten("abcdefghij", 10), "abcdefghij");
        assert_eq!(shorten("abcdefghij", 7), "ab..hij");
        let short = shorten("数据库服务器", 9);
        assert_eq!((short.as_str(), width(&short)), ("数..务器", 8));
        for (most, text) in (0..12).flat_map(|most| [(most, "a数据库b"), (most, "☀\u{fe0f}☀\u{fe0f}x☀\u{fe0f}")])
        {
            assert!(width(&shorten(text, most)) <= most.max(2), "{most}");
            assert!(width(beginning(text, most)) <= most, "{most}");
        }
    }
}

//! Output, gathered before it is handed on: an object of a megabyte has tens of thousands of relocations to show.

use std::io::{self, Write};

use crate::object::facts::hex_digits;

/// Bytes that are gathered.
const GATHERED: usize = 64 << 10;

/// What is written, and where it goes. What goes wrong there is kept for [`Gathered::check`].
pub(super) struct Gathered<'w> {
    /// None: all of it is kept.
    out: Option<&'w mut dyn Write>,
    /// Of which `len` bytes are written.
    bytes: Vec<u8>,
    len: usize,
    /// Bytes that were handed on.
    handed_on: u64,
    failed: Option<io::Error>,
}

/// Copies `from`, which is as long. Most pieces have a few bytes: two moves that may overlap do for those, where musl's
/// `memcpy` takes as long as for some hundred.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    fn ends<const N: usize>(to: &mut [u8], from: &[u8]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk()) {
            *to = *from;
        }
        if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk()) {
            *to = *from;
        }
    }
    match from.len() {
        0 => {}
        1 => ends::<1>(to, from),
        2..=3 => ends::<2>(to, from),
        4..=7 => ends::<4>(to, from),
        8..=15 => ends::<8>(to, from),
        16..=31 => ends::<16>(to, from),
        32..=64 => ends::<32>(to, from),
        _ => to.copy_from_slice(from),
    }
}

impl<'w> Gathered<'w> {
    /// For this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Gathered { out: Some(out), bytes: vec![0; GATHERED], len: 0, handed_on: 0, failed: None }
    }

    /// To be kept, for [`Gathered::take`].
    pub(super) fn kept() -> Self {
        Gathered { out: None, bytes: Vec::new(), len: 0, handed_on: 0, failed: None }
    }

    /// What was kept, which it then begins anew.
    pub(super) fn take(&mut self) -> String {
        let text = std::str::from_utf8(self.bytes.get(..self.len).unwrap_or_default()).unwrap_or_default().to_owned();
        self.len = 0;
        text
    }

    /// Bytes that are here, and were not handed on.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `len` bytes more.
    #[cold]
    fn make_room(&mut self, len: usize) {
        self.hand_on();
        let needed = self.len + len;
        if needed > self.bytes.len() {
            self.bytes.resize(needed.max(2 * self.bytes.len()).max(256), 0);
        }
    }

    fn hand_on(&mut self) {
        let Some(out) = &mut self.out else { return };
        if self.failed.is_none() {
            self.failed = out.write_all(self.bytes.get(..self.len).unwrap_or_default()).err();
        }
        self.handed_on += self.len as u64;
        self.len = 0;
    }

    /// Bytes that were written in all.
    pub(super) fn total(&self) -> u64 {
        self.handed_on + self.len as u64
    }

    #[inline(never)]
    fn add(&mut self, bytes: &[u8]) {
        if self.bytes.len() - self.len < bytes.len() {
            self.make_room(bytes.len());
        }
        let end = self.len + bytes.len();
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            copy(room, bytes);
            self.len = end;
        }
    }

    /// Takes away what was written last, if it is that.
    pub(super) fn take_back(&mut self, byte: u8) {
        if self.bytes.get(..self.len).and_then(<[u8]>::last) == Some(&byte) {
            self.len -= 1;
        }
    }

    /// Adds text.
    pub(super) fn put(&mut self, text: &str) -> &mut Self {
        self.add(text.as_bytes());
        self
    }

    /// Adds what has a text.
    pub(super) fn show(&mut self, what: impl std::fmt::Display) -> &mut Self {
        // What goes wrong is kept.
        let _ = write!(self, "{what}");
        self
    }

    /// Adds text of an untrusted file, without what would steer a terminal.
    pub(super) fn plain(&mut self, text: &str) -> &mut Self {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return self.put(text);
        }
        for c in text.chars() {
            self.add(if c.is_control() { '\u{fffd}' } else { c }.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self
    }

    /// Adds names, with commas between them.
    pub(super) fn list<T: AsRef<str>>(&mut self, names: impl IntoIterator<Item = T>) -> &mut Self {
        for (number, name) in names.into_iter().enumerate() {
            self.put(if number == 0 { "" } else { ", " }).plain(name.as_ref());
        }
        self
    }

    /// Adds a number.
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.right(number, 0)
    }

    /// Adds a number that may be negative.
    pub(super) fn signed(&mut self, number: i128) -> &mut Self {
        match u64::try_from(number.unsigned_abs()) {
            Ok(size) => self.put(if number < 0 { "-" } else { "" }).number(size),
            Err(_) => self.show(number),
        }
    }

    /// Adds a number, at the right end of `width` places.
    pub(super) fn right(&mut self, number: u64, width: usize) -> &mut Self {
        let mut places = [b' '; 20];
        let mut start = places.len();
        let mut left = number;
        while let Some(before) = start.checked_sub(1) {
            start = before;
            if let Some(place) = places.get_mut(start) {
                *place = b'0' + (left % 10) as u8;
            }
            left /= 10;
            if left == 0 {
                break;
            }
        }
        let start = start.min(places.len().saturating_sub(width));
        self.add(places.get(start..).unwrap_or_default());
        self
    }

    /// Adds text, at the left end of `width` places.
    pub(super) fn left(&mut self, text: &str, width: usize) -> &mut Self {
        self.put(text);
        (text.chars().count()..width).for_each(|_| self.add(b" "));
        self
    }

    /// Adds bytes as hexadecimal digits.
    pub(super) fn hex(&mut self, bytes: &[u8]) -> &mut Self {
        bytes.iter().for_each(|byte| self.add(&hex_digits(*byte)));
        self
    }

    /// Whether all could be written so far.
    ///
    /// # Errors
    /// What went wrong.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl Write for Gathered<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Most of JSON is single bytes.
        match (bytes, self.bytes.get_mut(self.len)) {
            ([byte], Some(place)) => {
                *place = *byte;
                self.len += 1;
            }
            _ => self.add(bytes),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_on();
        self.check()?;
        self.out.as_mut().map_or(Ok(()), |out| out.flush())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_length_is_copied() {
        let text: String = ('!'..='~').chain('!'..='~').collect();
        for len in 0..=text.len() {
            let mut out = Gathered::kept();
            out.put("<").put(&text[..len]).put(">");
            assert_eq!(out.take(), format!("<{}>", &text[..len]));
        }
    }

    #[test]
    fn reads_as_the_library_writes() {
        let mut out = Gathered::kept();
        for number in [0, 9, 10, 12345, 123_456, u64::MAX] {
            out.right(number, 5).put("|").number(number).put("|").signed(-i128::from(number)).put("|");
        }
        out.left("ab", 4).put("|").left("abcde", 4).put("|").hex(&[0, 0xaf, 9]).put("|").plain("a\u{1b}\u{e9}");
        let mut wanted = String::new();
        for number in [0, 9, 10, 12345, 123_456, u64::MAX] {
            wanted += &format!("{number:>5}|{number}|{}|", -i128::from(number));
        }
        assert_eq!(out.take(), wanted + "ab  |abcde|00af09|a\u{fffd}\u{e9}");
    }

    #[test]
    fn what_is_long_is_handed_on_and_all_of_it() {
        let mut all = Vec::new();
        let mut out = Gathered::new(&mut all);
        let mut wanted = String::new();
        for len in [10, GATHERED, 1, GATHERED - 1, 3 * GATHERED, 70] {
            let text = "x".repeat(len);
            out.put(&text).put(",");
            wanted += &(text + ",");
        }
        out.flush().unwrap();
        assert_eq!(String::from_utf8(all).unwrap(), wanted);
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let mut full: &mut [u8] = &mut [0; 10];
        let mut out = Gathered::new(&mut full);
        out.put(&"x".repeat(GATHERED)).put("y");
        assert!(out.check().is_err());
    }
}

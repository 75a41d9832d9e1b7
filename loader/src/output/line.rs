//! One line of output, as it is put together from many small pieces.

use std::io::{self, Write};

/// The bytes of a line. serde_json hands over a line of JSON in some hundred pieces of a few bytes. musl's memcpy takes
/// longer to begin than to copy so little, so small pieces are copied here.
#[derive(Debug, Default)]
pub struct Line {
    /// Room for the line; it is kept for the next line.
    room: Vec<u8>,
    length: usize,
}

impl Line {
    /// The line so far. The next line begins afterwards.
    pub fn take(&mut self) -> &[u8] {
        &self.room[..std::mem::take(&mut self.length)]
    }
}

/// Copy `from`, of N to 2 * N bytes, as two pieces of N bytes that may overlap.
#[inline(always)]
fn copy<const N: usize>(to: &mut [u8], from: &[u8]) {
    // Moves of whole arrays, which are no calls of memcpy.
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk::<N>()) {
        *to = *from;
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.length + bytes.len();
        if end > self.room.len() {
            self.room.resize(end.next_power_of_two().max(512), 0);
        }
        let to = &mut self.room[self.length..end];
        match bytes.len() {
            0 => {}
            1 => to[0] = bytes[0],
            2..4 => copy::<2>(to, bytes),
            4..8 => copy::<4>(to, bytes),
            8..16 => copy::<8>(to, bytes),
            16..=32 => copy::<16>(to, bytes),
            _ => to.copy_from_slice(bytes),
        }
        self.length = end;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_of_any_length_make_up_the_line() {
        let all: Vec<u8> = (0..=255).collect();
        let mut line = Line::default();
        for _ in 0..3 {
            let mut expected: Vec<u8> = vec![];
            for length in (0..70).chain([256, 3, 1]) {
                line.write_all(&all[..length]).unwrap();
                expected.extend(&all[..length]);
            }
            assert_eq!(line.take(), expected);
        }
        assert_eq!(line.take(), b"");
    }
}

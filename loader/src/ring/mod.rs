//! A perf ring over any memory. The logic is tested here without a kernel; `kernel::mmap` supplies the memory of a real
//! ring.
//!
//! The kernel writes records at `head` and stops before `head` would pass `tail`. Both positions only grow. A position
//! modulo the ring's size is an offset in the ring. A record may wrap around the end.

pub mod order;
pub mod shared;
pub mod written;

/// The memory behind a ring.
pub trait Memory {
    /// Bytes of data, a power of two.
    fn size(&self) -> usize;
    /// The number of bytes that the kernel has written so far. The bytes before this position may be read after this
    /// call.
    fn head(&self) -> u64;
    /// The number of bytes that have been read so far.
    fn tail(&self) -> u64;
    /// Give the bytes before `tail` back to the kernel.
    fn set_tail(&mut self, tail: u64);
    /// Bytes of the data; `offset + length` is at most [`Memory::size`].
    fn slice(&self, offset: usize, length: usize) -> &[u8];
}

/// Bytes of a ring from a position on, in one piece. `wrapped` takes a copy of bytes that wrap around the end; all others
/// are read in place. At most [`Memory::size`] bytes.
fn piece<'a>(memory: &'a impl Memory, position: u64, length: usize, wrapped: &'a mut Vec<u8>) -> &'a [u8] {
    let start = (position % memory.size() as u64) as usize;
    let before_end = memory.size() - start;
    if length <= before_end {
        return memory.slice(start, length);
    }
    wrapped.clear();
    wrapped.extend_from_slice(memory.slice(start, before_end));
    wrapped.extend_from_slice(memory.slice(0, length - before_end));
    wrapped
}

/// One record of a ring.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The bytes that a program emitted, and up to 7 bytes more: the kernel pads records to 8 bytes.
    Sample(&'a [u8]),
    /// The number of records that found the ring full. The kernel writes this count in front of the next record that
    /// fits.
    Lost(u64),
    /// A record of another type, which was not asked for.
    Other(u32),
}

/// An impossible record. The ring's content is wrong, and reading on would invent records.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The position of the record, in bytes since the ring was opened.
    pub position: u64,
    /// The description of the error.
    pub why: &'static str,
}

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "corrupt ring at byte {}: {}", self.position, self.why)
    }
}

impl std::error::Error for Corrupt {}

/// `PERF_RECORD_LOST` and `PERF_RECORD_SAMPLE` (include/uapi/linux/perf_event.h).
const LOST: u32 = 2;
const SAMPLE: u32 = 9;
/// `struct perf_event_header`: `u32 type, u16 misc, u16 size`.
const HEADER: usize = 8;

/// Reads a ring's records in the order in which they were written.
pub struct Reader<M> {
    memory: M,
    /// A copy of the current record, if the record wraps around the end. At most 64 KiB, since a record's size has 16 bits.
    wrapped: Vec<u8>,
}

impl<M: Memory> Reader<M> {
    /// Make a reader that starts at the memory's tail.
    pub fn new(memory: M) -> Self {
        Self { memory, wrapped: Vec::new() }
    }

    /// The memory, for example to wait for records.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Hand over every record that was complete when the call began. Then the kernel gets the space of all of them back.
    /// Returns whether there was a record.
    ///
    /// # Errors
    /// [`Corrupt`]; the ring's tail then stays at the position of the error.
    pub fn drain(&mut self, on_record: impl FnMut(Record<'_>)) -> Result<bool, Corrupt> {
        let head = self.memory.head();
        let mut tail = self.memory.tail();
        if head.wrapping_sub(tail) > self.memory.size() as u64 {
            return Err(Corrupt { position: tail, why: "more data than the ring can hold" });
        }
        if head == tail {
            return Ok(false);
        }
        let result = self.records(&mut tail, head, on_record);
        self.memory.set_tail(tail);
        result.map(|()| true)
    }

    /// Hand over the records between `tail` and `head`, and move `tail` past each of them.
    fn records(&mut self, tail: &mut u64, head: u64, mut on_record: impl FnMut(Record<'_>)) -> Result<(), Corrupt> {
        let Self { memory, wrapped } = self;
        while *tail != head {
            let corrupt = |why| Corrupt { position: *tail, why };
            let available = head.wrapping_sub(*tail) as usize;
            if available < HEADER {
                return Err(corrupt("less data than a record's header"));
            }
            let header = piece(memory, *tail, HEADER, wrapped);
            let &[a, b, c, d, _, _, e, f] = header else { return Err(corrupt("less data than a record's header")) };
            let (kind, size) = (u32::from_ne_bytes([a, b, c, d]), usize::from(u16::from_ne_bytes([e, f])));
            if size < HEADER {
                return Err(corrupt("a record smaller than its own header"));
            }
            if size > available {
                return Err(corrupt("a record that ends after the data"));
            }
            let record = piece(memory, tail.wrapping_add(HEADER as u64), size - HEADER, wrapped);
            on_record(parse(kind, record).map_err(corrupt)?);
            *tail = tail.wrapping_add(size as u64);
        }
        Ok(())
    }
}

fn parse(kind: u32, body: &[u8]) -> Result<Record<'_>, &'static str> {
    match kind {
        SAMPLE => {
            // The body of a PERF_SAMPLE_RAW is a u32 size, then as many bytes.
            let (size, raw) = body.split_first_chunk::<4>().ok_or("a sample without a size")?;
            let size = u32::from_ne_bytes(*size) as usize;
            raw.get(..size).map(Record::Sample).ok_or("a sample larger than its record")
        }
        LOST => {
            // The body is `struct { u64 id; u64 lost; }`.
            let lost = body.get(8..16).and_then(|bytes| bytes.try_into().ok());
            lost.map(|bytes| Record::Lost(u64::from_ne_bytes(bytes))).ok_or("a loss record without a count")
        }
        other => Ok(Record::Other(other)),
    }
}

#[cfg(test)]
mod tests;

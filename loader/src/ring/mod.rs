//! A perf ring, over any memory: the logic is tested here without a kernel, and `kernel::mmap` supplies the real thing.
//!
//! The kernel writes records at `head` and stops when it would reach `tail`; both only grow, and their remainder by the
//! ring's size is a position in it. A record may wrap around the end.

pub mod order;
pub mod shared;

/// The memory behind a ring.
pub trait Memory {
    /// Bytes of data, a power of two.
    fn size(&self) -> usize;
    /// How many bytes the kernel has written so far. What lies before it may be read after this call.
    fn head(&self) -> u64;
    /// How many bytes have been read so far.
    fn tail(&self) -> u64;
    /// Give the bytes before `tail` back to the kernel.
    fn set_tail(&mut self, tail: u64);
    /// Copy bytes out of the data, `offset + to.len()` being at most [`Memory::size`].
    fn copy(&self, offset: usize, to: &mut [u8]);
}

/// One record of a ring.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// What a program emitted, and up to 7 bytes more: the kernel pads records to 8.
    Sample(&'a [u8]),
    /// So many records found the ring full. The kernel says so in front of the next record that fits.
    Lost(u64),
    /// A record of a type that was not asked for.
    Other(u32),
}

/// A record that cannot be: the ring is not what it seems, and reading on would make things up.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Where, in bytes since the ring was opened.
    pub position: u64,
    /// What is wrong there.
    pub why: &'static str,
}

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "corrupt perf ring at byte {}: {}", self.position, self.why)
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
    /// The current record, in one piece. At most 64 KiB, since a record's size has 16 bits.
    record: Vec<u8>,
}

impl<M: Memory> Reader<M> {
    /// A reader that goes on where the memory's tail is.
    pub fn new(memory: M) -> Self {
        Self { memory, record: Vec::new() }
    }

    /// The memory, to wait for it.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Hand over every record that was complete when the call began. Each record's space is given back to the kernel
    /// after it was handed over.
    ///
    /// # Errors
    /// [`Corrupt`], and the ring is left where it is.
    pub fn drain(&mut self, mut on_record: impl FnMut(Record<'_>)) -> Result<(), Corrupt> {
        let head = self.memory.head();
        let mut tail = self.memory.tail();
        if head.wrapping_sub(tail) > self.memory.size() as u64 {
            return Err(Corrupt { position: tail, why: "more data than the ring can hold" });
        }
        while tail != head {
            let corrupt = |why| Corrupt { position: tail, why };
            let available = head.wrapping_sub(tail) as usize;
            if available < HEADER {
                return Err(corrupt("less data than a record's header"));
            }
            let mut header = [0; HEADER];
            self.copy(tail, &mut header);
            let [a, b, c, d, _, _, e, f] = header;
            let (kind, size) = (u32::from_ne_bytes([a, b, c, d]), usize::from(u16::from_ne_bytes([e, f])));
            if size < HEADER {
                return Err(corrupt("a record smaller than its own header"));
            }
            if size > available {
                return Err(corrupt("a record that ends after the data"));
            }
            let mut record = std::mem::take(&mut self.record);
            record.resize(size - HEADER, 0);
            self.copy(tail.wrapping_add(HEADER as u64), &mut record);
            match parse(kind, &record) {
                Ok(parsed) => on_record(parsed),
                Err(why) => return Err(corrupt(why)),
            }
            self.record = record;
            tail = tail.wrapping_add(size as u64);
            self.memory.set_tail(tail);
        }
        Ok(())
    }

    /// Copy what may wrap around the end of the ring.
    fn copy(&self, position: u64, to: &mut [u8]) {
        let size = self.memory.size();
        let start = (position % size as u64) as usize;
        let before_end = to.len().min(size - start);
        let (first, second) = to.split_at_mut(before_end);
        self.memory.copy(start, first);
        self.memory.copy(0, second);
    }
}

fn parse(kind: u32, body: &[u8]) -> Result<Record<'_>, &'static str> {
    match kind {
        SAMPLE => {
            // PERF_SAMPLE_RAW: u32 size, then as many bytes.
            let (size, raw) = body.split_first_chunk::<4>().ok_or("a sample without a size")?;
            let size = u32::from_ne_bytes(*size) as usize;
            raw.get(..size).map(Record::Sample).ok_or("a sample larger than its record")
        }
        LOST => {
            // struct { u64 id; u64 lost; }
            let lost = body.get(8..16).and_then(|bytes| bytes.try_into().ok());
            lost.map(|bytes| Record::Lost(u64::from_ne_bytes(bytes))).ok_or("a loss record without a count")
        }
        other => Ok(Record::Other(other)),
    }
}

#[cfg(test)]
mod tests;

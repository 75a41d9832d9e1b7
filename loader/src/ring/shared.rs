//! A ring that all CPUs share (BPF_MAP_TYPE_RINGBUF), over any memory.
//!
//! Each record begins at a multiple of 8 and has 8 bytes in front. The first 4 of these are the record's length and two
//! flags (kernel/bpf/ringbuf.c). Space is reserved in order, but several CPUs write at the same time. A record that is
//! still being written therefore holds up the records behind it.

use super::{Corrupt, Memory, piece};

const HEADER: u64 = 8;
/// The flags are BPF_RINGBUF_BUSY_BIT and BPF_RINGBUF_DISCARD_BIT.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// The memory of a shared ring.
pub trait SharedMemory: Memory {
    /// The length and the flags at this offset. The bytes of a finished record may be read after this call.
    fn header(&self, offset: usize) -> u32;
}

/// Reads the records in the order in which their space was reserved.
pub struct Reader<M> {
    memory: M,
    /// A copy of the current record, if the record wraps around the end.
    wrapped: Vec<u8>,
}

impl<M: SharedMemory> Reader<M> {
    /// Make a reader that starts at the memory's tail.
    pub fn new(memory: M) -> Self {
        Self { memory, wrapped: Vec::new() }
    }

    /// Hand over every record up to the first that is still being written. Then the kernel gets their space back. Returns true
    /// if no record was still being written. Behind such a record there may be finished ones.
    ///
    /// # Errors
    /// [`Corrupt`]; the ring's tail then stays at the position of the error.
    pub fn drain(&mut self, on_record: impl FnMut(&[u8])) -> Result<bool, Corrupt> {
        let head = self.memory.head();
        let start = self.memory.tail();
        if head.wrapping_sub(start) > self.memory.size() as u64 {
            return Err(Corrupt { position: start, why: "more data than the ring can hold" });
        }
        let mut tail = start;
        let result = self.records(&mut tail, head, on_record);
        if tail != start {
            self.memory.set_tail(tail);
        }
        result.map(|()| tail == head)
    }

    /// Hand over the finished records between `tail` and `head`, and move `tail` past each of them.
    fn records(&mut self, tail: &mut u64, head: u64, mut on_record: impl FnMut(&[u8])) -> Result<(), Corrupt> {
        let Self { memory, wrapped } = self;
        while *tail != head {
            let header = memory.header((*tail % memory.size() as u64) as usize);
            if header & BUSY != 0 {
                break;
            }
            let length = header & !(BUSY | DISCARDED);
            let whole = (u64::from(length) + HEADER).next_multiple_of(8);
            if whole > head.wrapping_sub(*tail) {
                return Err(Corrupt { position: *tail, why: "a record that ends after the data" });
            }
            if header & DISCARDED == 0 {
                on_record(piece(memory, tail.wrapping_add(HEADER), length as usize, wrapped));
            }
            *tail = tail.wrapping_add(whole);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::tests::Plain;

    impl SharedMemory for Plain {
        fn header(&self, offset: usize) -> u32 {
            u32::from_ne_bytes(self.data[offset..offset + 4].try_into().unwrap())
        }
    }

    impl Plain {
        fn new(start: u64) -> Self {
            Self { data: vec![0; 64], head: start, tail: start }
        }

        fn put(&mut self, flags: u32, bytes: &[u8]) {
            let size = self.data.len() as u64;
            let header = (bytes.len() as u32 | flags).to_ne_bytes();
            for (at, &byte) in header.iter().chain(&[0; 4]).chain(bytes).enumerate() {
                self.data[((self.head + at as u64) % size) as usize] = byte;
            }
            self.head += (bytes.len() as u64 + HEADER).next_multiple_of(8);
        }
    }

    fn read(memory: Plain) -> (Vec<Vec<u8>>, Plain, Result<bool, Corrupt>) {
        let mut reader = Reader::new(memory);
        let mut records = Vec::new();
        let whole = reader.drain(|bytes| records.push(bytes.to_vec()));
        (records, reader.memory, whole)
    }

    #[test]
    fn records_wrap_around_the_end_wherever_it_is() {
        for start in (0..64).step_by(8) {
            let mut memory = Plain::new(start);
            memory.put(0, b"one");
            memory.put(DISCARDED, b"never mind");
            memory.put(0, b"0123456789ab");
            let (records, memory, whole) = read(memory);
            assert_eq!(records, [b"one".to_vec(), b"0123456789ab".to_vec()], "{start}");
            assert!(whole == Ok(true) && memory.tail == memory.head);
        }
    }

    #[test]
    fn a_record_that_is_being_written_holds_up_the_rest() {
        let mut memory = Plain::new(0);
        memory.put(0, b"one");
        memory.put(BUSY, b"two");
        memory.put(0, b"three");
        let (records, memory, whole) = read(memory);
        assert_eq!(records, [b"one".to_vec()]);
        assert!(whole == Ok(false) && memory.tail == 16);
    }

    #[test]
    fn a_record_beyond_the_data_is_corrupt() {
        let mut memory = Plain::new(0);
        memory.put(0, b"one");
        memory.data[0] = 200;
        assert!(read(memory).2.is_err());
        let mut memory = Plain::new(0);
        memory.head = 72;
        assert!(read(memory).2.is_err());
    }
}

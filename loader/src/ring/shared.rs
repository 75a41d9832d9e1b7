//! A ring that all CPUs share (BPF_MAP_TYPE_RINGBUF), over any memory.
//!
//! Each record is preceded by 8 bytes, of which the first 4 are its length and two flags, and begins at a multiple of 8
//! (kernel/bpf/ringbuf.c). Space is reserved in order, but written to at the same time: a record that is still being
//! written holds up those behind it.

use super::{Corrupt, Memory};

const HEADER: u64 = 8;
/// BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// The memory of such a ring.
pub trait SharedMemory: Memory {
    /// The length and flags at this offset. What a finished record holds may be read after this call.
    fn header(&self, offset: usize) -> u32;
}

/// Reads the records in the order in which their space was reserved.
pub struct Reader<M> {
    memory: M,
    record: Vec<u8>,
}

impl<M: SharedMemory> Reader<M> {
    /// A reader that goes on where the memory's tail is.
    pub fn new(memory: M) -> Self {
        Self { memory, record: Vec::new() }
    }

    /// Hand over every record up to the first that is still being written. Each record's space is given back to the
    /// kernel after it was handed over.
    ///
    /// # Errors
    /// [`Corrupt`], and the ring is left where it is.
    pub fn drain(&mut self, mut on_record: impl FnMut(&[u8])) -> Result<(), Corrupt> {
        let head = self.memory.head();
        let mut tail = self.memory.tail();
        let size = self.memory.size() as u64;
        if head.wrapping_sub(tail) > size {
            return Err(Corrupt { position: tail, why: "more data than the ring can hold" });
        }
        while tail != head {
            let header = self.memory.header((tail % size) as usize);
            if header & BUSY != 0 {
                break;
            }
            let length = header & !(BUSY | DISCARDED);
            let whole = (u64::from(length) + HEADER).next_multiple_of(8);
            if whole > head.wrapping_sub(tail) {
                return Err(Corrupt { position: tail, why: "a record that ends after the data" });
            }
            if header & DISCARDED == 0 {
                self.record.resize(length as usize, 0);
                let start = ((tail + HEADER) % size) as usize;
                let before_end = self.record.len().min(size as usize - start);
                let (first, second) = self.record.split_at_mut(before_end);
                self.memory.copy(start, first);
                self.memory.copy(0, second);
                on_record(&self.record);
            }
            tail = tail.wrapping_add(whole);
            self.memory.set_tail(tail);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    fn read(memory: Plain) -> (Vec<Vec<u8>>, Plain, bool) {
        let mut reader = Reader::new(memory);
        let mut records = Vec::new();
        let sound = reader.drain(|bytes| records.push(bytes.to_vec())).is_ok();
        (records, reader.memory, sound)
    }

    #[test]
    fn records_wrap_around_the_end_wherever_it_is() {
        for start in (0..64).step_by(8) {
            let mut memory = Plain::new(start);
            memory.put(0, b"one");
            memory.put(DISCARDED, b"never mind");
            memory.put(0, b"0123456789ab");
            let (records, memory, sound) = read(memory);
            assert_eq!(records, [b"one".to_vec(), b"0123456789ab".to_vec()], "{start}");
            assert!(sound && memory.tail == memory.head);
        }
    }

    #[test]
    fn a_record_that_is_being_written_holds_up_the_rest() {
        let mut memory = Plain::new(0);
        memory.put(0, b"one");
        memory.put(BUSY, b"two");
        memory.put(0, b"three");
        let (records, memory, sound) = read(memory);
        assert_eq!(records, [b"one".to_vec()]);
        assert!(sound && memory.tail == 16);
    }

    #[test]
    fn a_record_beyond_the_data_is_corrupt() {
        let mut memory = Plain::new(0);
        memory.put(0, b"one");
        memory.data[0] = 200;
        assert!(!read(memory).2);
        let mut memory = Plain::new(0);
        memory.head = 72;
        assert!(!read(memory).2);
    }
}

use super::*;

/// A ring in plain memory, with the kernel's side of the ring.
pub(super) struct Plain {
    pub(super) data: Vec<u8>,
    pub(super) head: u64,
    pub(super) tail: u64,
}

impl Memory for Plain {
    fn size(&self) -> usize {
        self.data.len()
    }
    fn head(&self) -> u64 {
        self.head
    }
    fn tail(&self) -> u64 {
        self.tail
    }
    fn set_tail(&mut self, tail: u64) {
        self.tail = tail;
    }
    fn slice(&self, offset: usize, length: usize) -> &[u8] {
        &self.data[offset..offset + length]
    }
}

impl Plain {
    /// Make a ring whose positions begin at `start`.
    fn at(size: usize, start: u64) -> Self {
        Self { data: vec![0xee; size], head: start, tail: start }
    }

    /// Write as the kernel does; false if there is no room.
    fn write(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() as u64 > self.data.len() as u64 - self.head.wrapping_sub(self.tail) {
            return false;
        }
        for &byte in bytes {
            let size = self.data.len() as u64;
            self.data[(self.head % size) as usize] = byte;
            self.head = self.head.wrapping_add(1);
        }
        true
    }
}

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(0u16.to_ne_bytes());
    bytes.extend(((HEADER + body.len()) as u16).to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn sample(payload: &[u8]) -> Vec<u8> {
    let mut body = (payload.len() as u32).to_ne_bytes().to_vec();
    body.extend(payload);
    record(SAMPLE, &body)
}

fn lost(count: u64) -> Vec<u8> {
    let mut body = 77u64.to_ne_bytes().to_vec();
    body.extend(count.to_ne_bytes());
    record(LOST, &body)
}

/// The records that a reader hands over, as text.
fn drain(reader: &mut Reader<Plain>) -> Result<Vec<String>, Corrupt> {
    let mut seen = Vec::new();
    reader.drain(|record| {
        seen.push(match record {
            Record::Sample(bytes) => format!("sample {bytes:?}"),
            Record::Lost(count) => format!("lost {count}"),
            Record::Other(kind) => format!("other {kind}"),
        });
    })?;
    Ok(seen)
}

#[test]
fn an_empty_ring_has_no_records() {
    assert_eq!(drain(&mut Reader::new(Plain::at(4096, 0))), Ok(vec![]));
}

#[test]
fn records_come_in_order_and_their_space_is_given_back() {
    let mut ring = Plain::at(4096, 0);
    assert!(ring.write(&sample(&[1, 2, 3, 4])) && ring.write(&lost(5)) && ring.write(&record(4, &[0; 8])));
    let mut reader = Reader::new(ring);
    assert_eq!(drain(&mut reader).unwrap(), ["sample [1, 2, 3, 4]", "lost 5", "other 4"]);
    assert_eq!(reader.memory().tail, reader.memory().head);
    assert_eq!(drain(&mut reader), Ok(vec![]));
}

#[test]
fn a_record_may_wrap_anywhere_even_where_positions_overflow() {
    for start in [0, 4096 - 9, u64::MAX - 4095 - 20, u64::MAX - 3] {
        for shift in 0..64 {
            let mut ring = Plain::at(64, start.wrapping_add(shift));
            let payload: Vec<u8> = (0..28).collect();
            assert!(ring.write(&sample(&payload)));
            let mut reader = Reader::new(ring);
            assert_eq!(drain(&mut reader).unwrap(), [format!("sample {payload:?}")], "start {start} + {shift}");
        }
    }
}

#[test]
fn a_full_ring_is_read_whole() {
    let mut ring = Plain::at(128, 64);
    let one = sample(&[7; 20]);
    assert_eq!(one.len(), 32);
    assert!((0..4).all(|_| ring.write(&one)) && !ring.write(&one));
    assert_eq!(drain(&mut Reader::new(ring)).unwrap().len(), 4);
}

#[test]
fn impossible_records_are_corruption_and_end_the_reading() {
    let mut huge_sample = 1000u32.to_ne_bytes().to_vec();
    huge_sample.extend([0; 4]);
    let cases: [(Vec<u8>, &str); 6] = [
        (vec![9, 0, 0, 0, 0, 0, 0, 0], "a record smaller than its own header"),
        (vec![9, 0, 0, 0, 0, 0, 64, 0], "a record that ends after the data"),
        (vec![9, 0, 0, 0], "less data than a record's header"),
        (record(SAMPLE, &huge_sample), "a sample larger than its record"),
        (record(SAMPLE, &[]), "a sample without a size"),
        (record(LOST, &[0; 8]), "a loss record without a count"),
    ];
    for (bytes, why) in cases {
        let mut ring = Plain::at(4096, 4090);
        assert!(ring.write(&bytes));
        let mut reader = Reader::new(ring);
        assert_eq!(drain(&mut reader), Err(Corrupt { position: 4090, why }));
        assert_eq!(reader.memory().tail, 4090);
    }
    let mut ring = Plain::at(64, 0);
    ring.head = 65;
    assert_eq!(drain(&mut Reader::new(ring)).unwrap_err().why, "more data than the ring can hold");
}

#[test]
fn arbitrary_bytes_cause_no_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let mut ring = Plain::at(128, random());
        ring.data.iter_mut().for_each(|byte| *byte = (random() & random() & 0xff) as u8);
        ring.head = ring.tail.wrapping_add(random() % 160);
        let _ = drain(&mut Reader::new(ring));
    }
}

//! Object files built by hand, for the tests.

use crate::btf::samples::sample;
use crate::elf::EM_BPF;

/// A section of the file: name, type, flags, link, info, entry size, bytes.
pub struct Part {
    pub name: &'static str,
    pub section_type: u32,
    pub flags: u64,
    pub link: u32,
    pub info: u32,
    pub entry: u64,
    pub bytes: Vec<u8>,
}

pub fn part(name: &'static str, section_type: u32, flags: u64, bytes: Vec<u8>) -> Part {
    Part { name, section_type, flags, link: 0, info: 0, entry: 0, bytes }
}

pub struct Writer {
    pub big_endian: bool,
    pub out: Vec<u8>,
}

impl Writer {
    pub fn u16(&mut self, v: u16) {
        self.out.extend(if self.big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
    }

    pub fn u32(&mut self, v: u32) {
        self.out.extend(if self.big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
    }

    pub fn u64(&mut self, v: u64) {
        self.out.extend(if self.big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
    }
}

pub const SHF_EXEC: u64 = 6;

/// Index of each section of [`object`].
pub const TEXT: u16 = 1;
pub const PROG: u16 = 2;
pub const PROG_REL: usize = 3;
pub const MAPS: u16 = 4;
pub const SYMTAB: usize = 8;

/// `(name, info, section, value, size)`
pub type Sym = (&'static str, u8, u16, u64, u64);

pub const GLOBAL_FUNC: u8 = (1 << 4) | 2;
pub const LOCAL_FUNC: u8 = 2;
pub const GLOBAL_OBJECT: u8 = (1 << 4) | 1;

pub const SYMBOLS: &[Sym] = &[
    ("", 0, 0, 0, 0),
    ("helper", LOCAL_FUNC, TEXT, 0, 16),
    ("second", GLOBAL_FUNC, PROG, 24, 8),
    ("first", GLOBAL_FUNC, PROG, 0, 24),
    ("events", GLOBAL_OBJECT, MAPS, 32, 32),
    ("SOCKET_TO_PID", GLOBAL_OBJECT, MAPS, 0, 32),
    ("elsewhere", 1 << 4, 0, 0, 0),
];

pub fn object_with(big_endian: bool, symbols: &[Sym], edit: impl FnOnce(&mut Vec<Part>)) -> Vec<u8> {
    let mut strings = vec![0];
    let mut table = Writer { big_endian, out: Vec::new() };
    for (name, info, section, value, size) in symbols {
        table.u32(if name.is_empty() { 0 } else { strings.len() as u32 });
        table.out.extend([*info, 0]);
        table.u16(*section);
        table.u64(*value);
        table.u64(*size);
        if !name.is_empty() {
            strings.extend(name.bytes());
            strings.push(0);
        }
    }
    let mut rel = Writer { big_endian, out: Vec::new() };
    rel.u64(8);
    rel.u64((5 << 32) | 1);
    let mut parts = vec![
        part("", 0, 0, vec![]),
        part(".text", 1, SHF_EXEC, vec![0; 16]),
        part("raw_tp/tcp_retransmit_skb", 1, SHF_EXEC, vec![0; 32]),
        Part { link: 8, info: 2, entry: 16, ..part(".relraw_tp/tcp_retransmit_skb", 9, 0, rel.out) },
        part(".maps", 1, 3, vec![0; 64]),
        part("license", 1, 3, b"Dual MIT/GPL\0".to_vec()),
        part(".BTF", 1, 0, sample(big_endian).0),
        part(".BTF.ext", 1, 0, vec![1, 2, 3]),
        Part { link: 9, info: 1, entry: 24, ..part(".symtab", 2, 0, table.out) },
        part(".strtab", 3, 0, strings),
    ];
    edit(&mut parts);
    let mut names = vec![0];
    let mut name_at = Vec::new();
    parts.push(part(".shstrtab", 3, 0, Vec::new()));
    for p in &parts {
        name_at.push(if p.name.is_empty() { 0 } else { names.len() as u32 });
        if !p.name.is_empty() {
            names.extend(p.name.bytes());
            names.push(0);
        }
    }
    parts.last_mut().unwrap().bytes = names;
    write_elf(big_endian, &parts, &name_at)
}

pub fn write_elf(big_endian: bool, parts: &[Part], name_at: &[u32]) -> Vec<u8> {
    let mut w = Writer { big_endian, out: Vec::new() };
    w.out.extend(b"\x7fELF");
    w.out.extend([2, if big_endian { 2 } else { 1 }, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    w.u16(1);
    w.u16(EM_BPF);
    w.u32(1);
    let sizes: usize = parts.iter().map(|p| p.bytes.len().next_multiple_of(8)).sum();
    for value in [0, 0, 64 + sizes as u64] {
        w.u64(value);
    }
    w.u32(0);
    for value in [64, 0, 0, 64, parts.len() as u16, parts.len() as u16 - 1] {
        w.u16(value);
    }
    let mut offsets = Vec::new();
    for p in parts {
        offsets.push(w.out.len());
        w.out.extend(&p.bytes);
        w.out.resize(w.out.len().next_multiple_of(8), 0);
    }
    for ((p, offset), name) in parts.iter().zip(offsets).zip(name_at) {
        w.u32(*name);
        w.u32(p.section_type);
        w.u64(p.flags);
        w.u64(0);
        w.u64(offset as u64);
        w.u64(p.bytes.len() as u64);
        w.u32(p.link);
        w.u32(p.info);
        w.u64(1);
        w.u64(p.entry);
    }
    w.out
}

/// An object with two programs, a subprogram, two maps, a license and BTF.
pub fn object(big_endian: bool) -> Vec<u8> {
    object_with(big_endian, SYMBOLS, |_| {})
}

/// The same file for a machine of 32 bits: the header and the section table are narrower.
pub fn narrow(types: &[u8]) -> Vec<u8> {
    let mut w = Writer { big_endian: false, out: b"\x7fELF\x01\x01\x01".to_vec() };
    w.out.resize(16, 0);
    const NAMES: &[u8] = b"\0.BTF\0.shstrtab\0";
    let table = 52 + types.len() + NAMES.len();
    w.u16(1);
    w.u16(40);
    for value in [1, 0, 0, table as u32, 0] {
        w.u32(value);
    }
    for value in [52, 0, 0, 40, 3, 2] {
        w.u16(value);
    }
    w.out.extend(types);
    w.out.extend(NAMES);
    let sections = [(0, 0, 0, 0), (1, 1, 52, types.len()), (6, 3, 52 + types.len(), NAMES.len())];
    for (name, section_type, offset, size) in sections {
        for value in [name, section_type, 0, 0, offset as u32, size as u32, 0, 0, 1, 0] {
            w.u32(value);
        }
    }
    w.out
}

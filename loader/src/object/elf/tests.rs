//! Object files built by hand, damaged in every place, and read by both parsers; and what clang makes.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::object::btf::tests::{Noise, sample};
use crate::object::facts::{Facts, MOST_FUNCTIONS};
use crate::object::insn::{CALL, EXIT, Insn, PSEUDO_CALL};
use crate::object::{Btf, BtfExt, Relocations, second_opinion};

/// A section to be written: name, type, flags, link, info, entry size, bytes.
struct Part {
    name: &'static str,
    section_type: u32,
    flags: u64,
    link: u32,
    info: u32,
    entry: u64,
    bytes: Vec<u8>,
}

fn part(name: &'static str, section_type: u32, flags: u64, bytes: Vec<u8>) -> Part {
    Part { name, section_type, flags, link: 0, info: 0, entry: 0, bytes }
}

struct Writer {
    big_endian: bool,
    out: Vec<u8>,
}

impl Writer {
    fn u16(&mut self, v: u16) {
        self.out.extend(if self.big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
    }

    fn u32(&mut self, v: u32) {
        self.out.extend(if self.big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
    }

    fn u64(&mut self, v: u64) {
        self.out.extend(if self.big_endian { v.to_be_bytes() } else { v.to_le_bytes() });
    }
}

const SHF_EXEC: u64 = 6;

/// Index of each section of [`object`].
const TEXT: u16 = 1;
const PROG: u16 = 2;
const PROG_REL: usize = 3;
const MAPS: u16 = 4;
const SYMTAB: usize = 8;

/// `(name, info, section, value, size)`
type Sym = (&'static str, u8, u16, u64, u64);

const GLOBAL_FUNC: u8 = (1 << 4) | 2;
const LOCAL_FUNC: u8 = 2;
const GLOBAL_OBJECT: u8 = (1 << 4) | 1;

const SYMBOLS: &[Sym] = &[
    ("", 0, 0, 0, 0),
    ("helper", LOCAL_FUNC, TEXT, 0, 16),
    ("second", GLOBAL_FUNC, PROG, 24, 8),
    ("first", GLOBAL_FUNC, PROG, 0, 24),
    ("events", GLOBAL_OBJECT, MAPS, 32, 32),
    ("SOCKET_TO_PID", GLOBAL_OBJECT, MAPS, 0, 32),
    ("elsewhere", 1 << 4, 0, 0, 0),
];

fn object_with(big_endian: bool, symbols: &[Sym], edit: impl FnOnce(&mut Vec<Part>)) -> Vec<u8> {
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

fn write_elf(big_endian: bool, parts: &[Part], name_at: &[u32]) -> Vec<u8> {
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
pub(crate) fn object(big_endian: bool) -> Vec<u8> {
    object_with(big_endian, SYMBOLS, |_| {})
}

fn refused(bytes: &[u8]) -> String {
    ObjectFile::parse(bytes).map(|_| ()).unwrap_err().to_string()
}

#[track_caller]
fn refused_with(bytes: &[u8], words: &[&str]) {
    let message = refused(bytes);
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

#[test]
fn finds_what_is_in_it() {
    for big_endian in [false, true] {
        let bytes = object(big_endian);
        let file = ObjectFile::parse(&bytes).unwrap();
        assert_eq!(file.is_little_endian, !big_endian);
        let section = "raw_tp/tcp_retransmit_skb";
        assert_eq!(
            file.programs,
            [
                Program { name: "first", section, section_index: PROG.into(), insns: 3, offset: 0, size: 24 },
                Program { name: "second", section, section_index: PROG.into(), insns: 1, offset: 24, size: 8 },
            ]
        );
        assert_eq!(
            file.subprograms,
            [Program { name: "helper", section: ".text", section_index: TEXT.into(), insns: 2, offset: 0, size: 16 }]
        );
        assert_eq!(file.maps, ["SOCKET_TO_PID", "events"]);
        assert_eq!(file.license.as_deref(), Some("Dual MIT/GPL"));
        assert_eq!(file.btf, Some(sample(big_endian).0.as_slice()));
        assert_eq!(file.btf_ext, Some([1, 2, 3].as_slice()));
        assert_eq!(file.sections.len(), 11);
        assert_eq!(file.symbols.len(), 7);
        let relocation = Relocation { table: 3, section: 2, offset: 8, symbol: 5, relocation_type: 1, addend: 0 };
        assert_eq!(file.relocations, [relocation]);
        assert_eq!(second_opinion(&bytes, &file), Ok(()));
        assert_eq!(super::section(&bytes, ".BTF").unwrap(), file.btf);
        assert_eq!(super::section(&bytes, "no").unwrap(), None);
    }
}

/// Tables are read in place, unless the crate `object` was built to read them from anywhere.
#[test]
fn bytes_at_odd_addresses_are_read_or_refused() {
    for shift in 0..16 {
        let mut bytes = vec![0; shift];
        bytes.extend(object(false));
        match ObjectFile::parse(&bytes[shift..]) {
            Ok(file) => assert_eq!(file.programs.len(), 2),
            Err(refused) => {
                assert!(shift % 8 != 0, "{refused}");
                assert!(refused.what.contains("does not begin at a multiple of 8"), "{refused}");
            }
        }
    }
}

#[test]
fn what_is_not_elf_is_named() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "the file is empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"int main;\n", "looks like text"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"BC\xc0\xde\x35\x14", "LLVM bitcode"),
        (b"\x9f\xeb\x01\x00", "BTF data"),
        (&[0; 64], "begins with zeros"),
        (b"\xde\xad\xbe\xef\x01", "begins with de ad be ef"),
        (b"\x7fEL", "truncated: an ELF file of 3 bytes"),
        (b"\x7fELF", "truncated: an ELF file of 4 bytes"),
        (b"\x7fELF\x01", "32-bit"),
        (b"\x7fELF\x02\x01\x01", "truncated: the ELF header ends at byte 64, the file at byte 7"),
    ];
    for (bytes, word) in cases {
        refused_with(bytes, &[word]);
    }
}

#[test]
fn other_elf_files_are_named() {
    let edit = |at: usize, bytes: &[u8]| {
        let mut bad = object(false);
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    refused_with(&edit(18, &[62, 0]), &["for x86-64, not for BPF", "byte 18"]);
    refused_with(&edit(18, &[183, 0]), &["for aarch64, not for BPF"]);
    refused_with(&edit(18, &[0x34, 0x12]), &["for machine 4660"]);
    refused_with(&edit(16, &[2, 0]), &["an executable, not a relocatable object"]);
    refused_with(&edit(16, &[3, 0]), &["a shared object"]);
    refused_with(&edit(4, &[1]), &["32-bit"]);
    refused_with(&edit(4, &[9]), &["class 9"]);
    refused_with(&edit(5, &[9]), &["byte order"]);
    refused_with(&edit(6, &[9]), &["version"]);
    refused_with(&edit(56, &[1, 0]), &["program headers"]);
    refused_with(&edit(60, &[0, 0]), &["no sections"]);
    refused_with(&edit(58, &[63, 0]), &["section headers of 63 bytes"]);
    refused_with(&edit(62, &[1, 0]), &["section 1", "no string table"]);
    refused_with(&edit(62, &[0xff, 0xff]), &["section 65535", "no string table"]);
    refused_with(&edit(40, &[0xff; 8]), &["truncated: the section header table"]);
}

/// Byte offset of a field in section `index`'s header.
fn in_header(bytes: &[u8], index: usize, field: usize) -> usize {
    u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize + index * 64 + field
}

#[test]
fn damaged_sections_are_named() {
    let edit = |index: usize, field: usize, value: &[u8]| {
        let mut bad = object(false);
        let at = in_header(&bad, index, field);
        bad[at..at + value.len()].copy_from_slice(value);
        bad
    };
    refused_with(&edit(6, 32, &[0xff; 8]), &["truncated: section .BTF spans bytes", "the file ends at byte"]);
    refused_with(&edit(6, 24, &[0xff; 8]), &["truncated: section .BTF"]);
    refused_with(&edit(6, 0, &[0xff; 4]), &["section 6: its name is at byte 4294967295"]);
    refused_with(&edit(SYMTAB, 56, &[23]), &["section .symtab", "entries of 23"]);
    refused_with(&edit(SYMTAB, 32, &[1]), &["section .symtab"]);
    refused_with(&edit(SYMTAB, 40, &[1]), &["section .symtab: its names are in no string table"]);
    refused_with(&edit(SYMTAB, 4, &[1]), &["no symbol table"]);
    refused_with(&edit(PROG_REL, 44, &[99]), &["relocates section 99, which does not exist"]);
    refused_with(&edit(PROG_REL, 40, &[1]), &["its symbols are not those"]);
    refused_with(&edit(PROG_REL, 4, &[4]), &["entries of 16, but entries have 24"]);
    refused_with(&edit(2, 8, &[2]), &["function second is in no executable section"]);
    // A section without bytes in the file may be as large as it likes.
    assert!(ObjectFile::parse(&edit(7, 4, &[8])).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let good = object(false);
    for len in 0..good.len() {
        refused(&good[..len]);
    }
    refused_with(&good[..good.len() - 1], &["truncated: the section header table"]);
}

#[test]
fn damaged_contents_are_named() {
    let with = |number: usize, symbol: Sym| {
        let mut symbols = SYMBOLS.to_vec();
        symbols[number] = symbol;
        object_with(false, &symbols, |_| {})
    };
    refused_with(&with(3, ("first", GLOBAL_FUNC, PROG, 0, 40)), &["function first takes 40 bytes", "32 bytes"]);
    refused_with(&with(3, ("first", GLOBAL_FUNC, PROG, 0, 12)), &["function first", "not whole instructions"]);
    refused_with(&with(3, ("first", GLOBAL_FUNC, PROG, 4, 8)), &["function first", "not whole instructions"]);
    refused_with(&with(3, ("first", GLOBAL_FUNC, PROG, u64::MAX - 7, 8)), &["function first"]);
    refused_with(&with(3, ("first", GLOBAL_FUNC, PROG, 0, 0)), &["function first takes 0 bytes"]);
    refused_with(&with(3, ("first", LOCAL_FUNC, PROG, 0, 24)), &["program first", "static"]);
    refused_with(&with(3, ("first", GLOBAL_FUNC, 77, 0, 24)), &["symbol 3 (first) is in section 77, the last is 10"]);
    refused_with(&with(4, ("events", GLOBAL_OBJECT, MAPS, 40, 32)), &["map events ends beyond the 64 bytes"]);
    let edited = |edit: fn(&mut Vec<Part>)| object_with(false, SYMBOLS, edit);
    refused_with(&edited(|p| p[3].bytes[0] = 32), &["relocation 0 is at byte 32 of raw_tp/tcp_retransmit_skb"]);
    refused_with(&edited(|p| p[3].bytes[12] = 7), &["relocation 0 is for symbol 7, the last is 6"]);
    refused_with(&edited(|p| p[7].name = ".BTF"), &["two sections .BTF"]);
    refused_with(&edited(|p| p[7].name = ".text"), &["two sections .text"]);
    refused_with(&edited(|p| p[5].bytes[0] = 0xff), &["license"]);
    let none = object_with(false, SYMBOLS, |p| p[5].name = "other");
    assert_eq!(ObjectFile::parse(&none).unwrap().license, None);
}

#[test]
fn a_second_parser_that_sees_something_else_is_heard() {
    let bytes = object(false);
    let good = ObjectFile::parse(&bytes).unwrap();
    let differs = |edit: &dyn Fn(&mut ObjectFile<'_>), words: &[&str]| {
        let mut file = good.clone();
        edit(&mut file);
        let message = second_opinion(&bytes, &file).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "{message:?} lacks {word:?}");
        }
    };
    differs(&|f| f.is_little_endian = false, &["byte order"]);
    differs(&|f| f.sections.truncate(10), &["number of sections", "10 and 11"]);
    differs(&|f| f.sections[6].name = "x", &["name of section 6 (x)", "\"x\" and \".BTF\""]);
    differs(&|f| f.sections[6].section_type = 3, &["type of section 6 (.BTF): 3 and 1"]);
    differs(&|f| f.sections[6].flags = 4, &["flags of section 6"]);
    differs(&|f| f.sections[6].offset += 1, &["offset of section 6"]);
    differs(&|f| f.sections[6].size += 1, &["size of section 6"]);
    differs(&|f| f.sections[8].link += 1, &["link of section 8"]);
    differs(&|f| f.sections[3].info += 1, &["info of section 3"]);
    differs(&|f| f.symbols.truncate(6), &["number of symbols: 6 and 7"]);
    differs(&|f| f.symbols[2].name = "x", &["name of symbol 2"]);
    differs(&|f| f.symbols[2].value = 1, &["value of symbol 2 (second): 1 and 24"]);
    differs(&|f| f.symbols[2].size = 1, &["size of symbol 2"]);
    differs(&|f| f.symbols[2].section = 1, &["section of symbol 2"]);
    differs(&|f| f.symbols[2].bind = 0, &["bind of symbol 2"]);
    differs(&|f| f.symbols[2].symbol_type = 0, &["type of symbol 2"]);
    differs(&|f| f.relocations.clear(), &["number of relocations: 0 and 1"]);
    differs(&|f| f.relocations[0].table = 1, &["table of relocation 0"]);
    differs(&|f| f.relocations[0].section = 1, &["section of relocation 0"]);
    differs(&|f| f.relocations[0].offset = 1, &["offset of relocation 0"]);
    differs(&|f| f.relocations[0].symbol = 1, &["symbol of relocation 0"]);
    differs(&|f| f.relocations[0].relocation_type = 2, &["type of relocation 0"]);
    differs(&|f| f.relocations[0].addend = 2, &["addend of relocation 0"]);
    let message = second_opinion(b"\x7fELF", &good).unwrap_err().to_string();
    assert!(message.contains("the second parser refuses"), "{message}");
}

#[test]
fn noise_never_panics() {
    let (mut accepted, mut disputed) = (0, 0);
    for big_endian in [false, true] {
        let good = object(big_endian);
        // Damage in the tables is what a parser is tried by; most of the rest is BTF and empty code.
        let table = good.len() - 11 * 64;
        let mut noise = Noise(0x2545_f491_4f6c_dd1d);
        for round in 0..30_000 {
            let bad = if round % 3 == 0 {
                noise.damage(&good)
            } else {
                let mut bad = good[..64].to_vec();
                bad.extend(&good[64..table]);
                let head = noise.damage(&good[16..64]);
                let tail = noise.damage(&good[table..]);
                if round % 3 == 1 {
                    bad[16..64].copy_from_slice(&head)
                }
                bad.extend(if round % 3 == 2 { &tail } else { &good[table..] });
                bad
            };
            let Ok(file) = ObjectFile::parse(&bad) else { continue };
            accepted += 1;
            disputed += usize::from(second_opinion(&bad, &file).is_err());
        }
    }
    assert!(accepted > 500, "the noise must also pass, or nothing behind the checks was tried: {accepted}");
    println!("{accepted} accepted, {disputed} of them disputed by the second parser");
}

#[test]
fn what_clang_makes() {
    let dir = std::env::temp_dir().join(format!("xctl-elf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, object) = (dir.join("a.c"), dir.join("a.o"));
    let code = r#"
        #define SEC(n) __attribute__((section(n), used))
        struct { int (*type)[1]; } M SEC(".maps");
        char L[] SEC("license") = "GPL";
        static __attribute__((noinline)) int sub(long *x) { return x[0] + x[1]; }
        SEC("kprobe/one") int one(long *c) { return sub(c) + (M.type != 0); }
        SEC("kprobe/two") int two(long *c) { return sub(c) * 3; }
    "#;
    std::fs::write(&source, code).unwrap();
    for (target, little) in [("bpfel", true), ("bpfeb", false)] {
        let built = Command::new("clang")
            .args(["-O2", "-g", "-target", target, "-c", "-o"])
            .args([object.as_path(), source.as_path() as &Path])
            .output();
        match built {
            Ok(output) if output.status.success() => {}
            _ => return println!("skipped: no clang for {target}"),
        }
        let bytes = std::fs::read(&object).unwrap();
        let file = ObjectFile::parse(&bytes).unwrap();
        assert_eq!(file.is_little_endian, little);
        let names: Vec<_> = file.programs.iter().map(|p| (p.name, p.section)).collect();
        assert_eq!(names, [("one", "kprobe/one"), ("two", "kprobe/two")]);
        assert_eq!(file.subprograms.len(), 1);
        assert_eq!(file.maps, ["M"]);
        assert_eq!(file.license.as_deref(), Some("GPL"));
        assert!(!file.relocations.is_empty());
        assert_eq!(second_opinion(&bytes, &file), Ok(()));
        let btf = crate::object::Btf::parse(file.btf.unwrap()).unwrap();
        assert!(btf.find(crate::object::Kind::Func, "one").is_some());
        assert!(file.btf_ext.is_some());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn sections_that_share_bytes_are_refused() {
    let mut bytes = object(false);
    let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    // The relocations' header points at the maps: sh_offset of section 3 becomes that of section 4.
    let place = |section: usize| table + section * 64 + 24;
    let (from, to) = (place(usize::from(MAPS)), place(PROG_REL));
    bytes.copy_within(from..from + 8, to);
    refused_with(&bytes, &["sections 3 (.relraw_tp/tcp_retransmit_skb) and 4 (.maps) overlap"]);
}

#[test]
fn types_of_the_other_byte_order_are_refused() {
    let bytes = object_with(false, SYMBOLS, |parts| parts[6].bytes = sample(true).0);
    refused_with(&bytes, &["section .BTF is not of the byte order"]);
}

#[test]
fn a_string_table_of_nothing_but_ends_is_refused() {
    let bytes = object_with(false, SYMBOLS, |parts| parts[9].bytes.resize(1 << 20, 0));
    let file = ObjectFile::parse(&bytes).unwrap();
    let error = second_opinion(&bytes, &file).unwrap_err().to_string();
    assert!(error.contains("section .strtab has 10485"), "{error}");
}

/// The same file for a machine of 32 bits: the header and the section table are narrower.
fn narrow(types: &[u8]) -> Vec<u8> {
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

#[test]
fn a_section_of_a_file_is_found_whatever_its_width_and_only_so_much_of_it() {
    let types = sample(false).0;
    for bytes in [object(false), narrow(&types)] {
        let section = |name, most| section_of_file(std::io::Cursor::new(bytes.clone()), name, most);
        assert_eq!(section(".BTF", 1 << 20).unwrap().as_deref(), Some(types.as_slice()));
        assert_eq!(section(".BTF.base", 1 << 20).unwrap(), None);
        let error = section(".BTF", 16).unwrap_err().to_string();
        assert!(error.contains("section .BTF has"), "{error}");
        let short = std::io::Cursor::new(bytes[..bytes.len() - 1].to_vec());
        assert!(section_of_file(short, ".BTF", 1 << 20).is_err());
    }
}

#[test]
fn a_program_of_more_functions_than_the_kernel_takes_is_refused() {
    let call = |imm| Insn { code: CALL, dst: 0, src: PSEUDO_CALL, off: 0, imm }.encode(false);
    let exit = Insn { code: EXIT, dst: 0, src: 0, off: 0, imm: 0 }.encode(false);
    // `first` calls the first function, by a relocation, and each of them the next.
    let facts = |functions: usize| {
        let names: Vec<String> = (0..functions).map(|number| format!("f{number}")).collect();
        let mut symbols = vec![("", 0, 0, 0, 0), ("first", GLOBAL_FUNC, PROG, 0, 16)];
        symbols.extend(
            (0u64..).zip(&names).map(|(number, name)| (&*name.clone().leak(), LOCAL_FUNC, TEXT, number * 16, 16)),
        );
        let bytes = object_with(false, &symbols, |parts| {
            parts[usize::from(TEXT)].bytes = (0..functions)
                .flat_map(|number| [if number + 1 < functions { call(1) } else { exit }, exit].concat())
                .collect();
            parts[usize::from(PROG)].bytes = [call(-1), exit].concat();
            let mut relocation = Writer { big_endian: false, out: Vec::new() };
            relocation.u64(0);
            relocation.u64((2 << 32) | 10);
            parts[PROG_REL].bytes = relocation.out;
            parts[7].bytes.clear();
        });
        let file = ObjectFile::parse(&bytes).unwrap();
        let (btf, ext) = (Btf::nothing(), BtfExt::default());
        let code = Relocations::new(&bytes, &file, &btf, &ext, None).unwrap();
        Facts::of(&bytes, &file, None, &code).map(|facts| {
            let listed = |function: &crate::object::facts::FunctionFacts<'_>| function.calls.len();
            (listed(&facts.programs[0]), facts.functions.iter().map(listed).max())
        })
    };
    assert_eq!(facts(MOST_FUNCTIONS - 1), Ok((MOST_FUNCTIONS - 1, Some(1))));
    let error = facts(MOST_FUNCTIONS).unwrap_err();
    assert!(error.contains("program first calls 256 functions or more"), "{error}");
}

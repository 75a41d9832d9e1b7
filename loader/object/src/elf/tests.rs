//! Object files built by hand, read whole and damaged in every place.

mod parsers;
mod samples;

use self::samples::*;
use super::*;
use crate::btf::samples::sample;
use crate::compare_parsers;

fn parse_error(bytes: &[u8]) -> String {
    ObjectFile::parse(bytes).map(|_| ()).unwrap_err().to_string()
}

#[track_caller]
fn refused_with(bytes: &[u8], words: &[&str]) {
    let message = parse_error(bytes);
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
        assert_eq!(compare_parsers(&bytes, &file), Ok(()));
        assert_eq!(super::section(&bytes, ".BTF").unwrap(), file.btf);
        assert_eq!(super::section(&bytes, "no").unwrap(), None);
    }
}

/// Tables are read in place, unless the crate `object` was built to read from any address.
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
    refused_with(&edit(62, &[0xf0, 0xff]), &["section 65520", "no string table"]);
    // SHN_XINDEX: the number is in the first section's header, which has none here.
    refused_with(&edit(62, &[0xff, 0xff]), &["section 0", "no string table"]);
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
    // A section without bytes in the file may have any size.
    assert!(ObjectFile::parse(&edit(7, 4, &[8])).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let good = object(false);
    for len in 0..good.len() {
        parse_error(&good[..len]);
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
fn sections_that_share_bytes_are_refused() {
    let mut bytes = object(false);
    let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    // The relocations' header now points at the maps: sh_offset of section 3 becomes that of section 4.
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

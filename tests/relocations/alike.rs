//! Objects with several functions, types or variables of one name, with addresses in variables, or with more sections than 16
//! bits count.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libbpf_sys as sys;
use serde_json::{Value, json};
use xctl::kernel::source::KERNEL_BTF;
use xctl::object::{Btf, ObjectFile, compare_parsers};

use crate::compared::compare;
use crate::libbpf::{LIBBPF, may_prepare, name_of, nothing_more, open_and};
use crate::objects::{Section, compile_with, elf, have_clang};
use crate::verdict::{document, refused};
use crate::{Scratch, tell};

/// Parts of alike.c, linked by libbpf's linker.
fn linked(parts: &[&str], scratch: &Scratch) -> PathBuf {
    let text = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let out = scratch.0.join(format!("{}.linked.o", parts.join("-")));
    let _lock = LIBBPF.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (target, none) = (text(&out), std::ptr::null_mut());
    // SAFETY: the names end with NUL and live through the calls. The linker is freed once.
    unsafe {
        let linker = sys::bpf_linker__new(target.as_ptr(), none);
        assert!(!linker.is_null());
        for part in parts {
            let file = text(&compile_with(part, "alike.c", scratch));
            assert_eq!(sys::bpf_linker__add_file(linker, file.as_ptr(), std::ptr::null()), 0, "{part}");
        }
        assert_eq!(sys::bpf_linker__finalize(linker), 0);
        sys::bpf_linker__free(linker);
    }
    out
}

fn list<'v>(value: &'v Value, field: &str) -> &'v Vec<Value> {
    value[field].as_array().unwrap()
}

#[test]
fn functions_and_types_of_one_name_are_told_apart() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("alike");
    let target = compile_with("TARGET", "alike.c", &scratch);
    let file = linked(&["FIRST", "SECOND"], &scratch);
    let bytes = fs::read(&file).unwrap();
    let object = ObjectFile::parse(&bytes).unwrap();
    let [one, two] = &object.subprograms[..] else { panic!("{:?}", object.subprograms) };
    assert_eq!((one.name, two.name, one.offset), ("takes", "takes", 0));
    let labels = [one, two].map(|function| format!("takes (section .text, byte {})", function.offset));

    let report = document(&file, &target);
    let calls: Vec<_> = list(&report, "programs").iter().map(|program| &program["calls"]).collect();
    assert_eq!(calls, [&json!([labels[0]]), &json!([labels[1]]), &json!([])]);
    let named: Vec<_> = list(&report, "functions").iter().map(|function| &function["label"]).collect();
    assert_eq!(named, [&json!(labels[0]), &json!(labels[1])]);
    assert!(report["programs"][0]["label"].is_null());
    let relocated: BTreeSet<_> = list(&report, "relocations").iter().filter_map(|one| one["label"].as_str()).collect();
    assert_eq!(relocated, labels.iter().map(String::as_str).collect());
    // Of each type, its own members are asked for.
    let roots = |access: &str| -> BTreeSet<u64> {
        let all = list(&report, "relocations").iter().filter(|one| one["local"]["access"] == access);
        all.map(|one| one["local"]["type_id"].as_u64().unwrap()).collect()
    };
    let (first, second) = (roots("one->b"), roots("one->a"));
    assert!(first.len() == 1 && second.len() == 1 && first != second, "{first:?} {second:?}");
    let (first, second) = (first.first().unwrap(), second.first().unwrap());
    let reaches =
        format!("program second reaches instruction 0 of {}: one->gone of struct one [{second}]: ", labels[1]);
    let problems = list(&report, "problems");
    assert!(problems.len() == 1 && problems[0].as_str().unwrap().starts_with(&reaches), "{problems:?}");
    let (text, _) = crate::verdict::inspect(&file, &target, false);
    for words in [&labels[0], &labels[1], &format!("one->b of struct one [{first}]: "), &reaches] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    // Each variable has the type that its own file gave it.
    let variables = list(&report, "variables").iter().map(|one| (&one["name"], &one["type"], &one["size"]));
    let counts: Vec<_> = variables.filter(|(name, ..)| *name == "count").collect();
    let wanted = [("volatile int", 4), ("volatile long", 8)].map(|(ty, size)| (json!("count"), json!(ty), json!(size)));
    assert_eq!(counts, wanted.each_ref().map(|(name, ty, size)| (name, ty, size)));

    let types = Btf::parse(ObjectFile::parse(&fs::read(&target).unwrap()).unwrap().btf.unwrap()).unwrap();
    compare("two files", &bytes, &types, &target);
    for (program, loads) in [("first", true), ("second", false), ("third", true)] {
        if may_prepare() {
            let result = open_and(sys::bpf_object__load, &bytes, &target, |name| name == program);
            assert_eq!(result.is_ok(), loads, "{program}: libbpf says {:?}", result.err());
        }
    }
    // A program and a function: the section tells.
    let file = linked(&["FIRST", "NAMESAKE"], &scratch);
    let report = document(&file, &target);
    assert_eq!(report["programs"][0]["calls"], json!(["takes (section .text)"]), "{report}");
    compare("a namesake", &fs::read(&file).unwrap(), &types, &target);
}

#[test]
fn addresses_in_variables_are_as_the_file_has_them() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("addresses in variables are not compared: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("pointers"), Path::new(KERNEL_BTF));
    let file = compile_with("POINTERS", "alike.c", &scratch);
    let report = document(&file, btf);
    assert_eq!((&report["runs"], &report["more_notes"]), (&json!(true), &json!(0)));
    let notes = list(&report, "notes");
    let has =
        |words: [&str; 2]| notes.iter().any(|note| words.iter().all(|words| note.as_str().unwrap().contains(words)));
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(has(["section .rodata, byte 8 (variable names): ", "address in section .rodata.str1.1"]), "{notes:?}");
    assert!(
        has(["section .data, byte 16 (variable second_number): ", "address of numbers, programs read 0x4"]),
        "{notes:?}"
    );
    let (text, _) = crate::verdict::inspect(&file, btf, false);
    assert!(text.contains("\nnotes (3)\n") && text.contains(notes[0].as_str().unwrap()), "{text}");
    if !may_prepare() {
        return;
    }
    // What programs read is what libbpf put into the maps.
    let opened = open_and(sys::bpf_object__prepare, &fs::read(&file).unwrap(), btf, |_| true).unwrap();
    for note in notes {
        let words: Vec<&str> = note.as_str().unwrap().split([' ', ',']).collect();
        let (map, offset) = (words[1], words[4].parse::<usize>().unwrap());
        let read = u64::from_str_radix(words.last().unwrap().trim_start_matches("0x"), 16).unwrap();
        let (key, mut value) = (0u32, [0u8; 4096]);
        let name = CString::new(map).unwrap();
        // SAFETY: the object is open, and its descriptors with it. The value of no map here is longer than the buffer.
        let found = unsafe {
            let map = sys::bpf_object__find_map_fd_by_name(opened.0, name.as_ptr());
            sys::bpf_map_lookup_elem(map, (&raw const key).cast(), (&raw mut value).cast())
        };
        assert_eq!(found, 0, "{note}");
        assert_eq!(u64::from_le_bytes(value[offset..offset + 8].try_into().unwrap()), read, "{note}");
    }
}

/// An object with `count` sections more than it needs, and one function in the section with this number and name in its symbol.
fn of_many_sections(count: usize, number: u16) -> Vec<u8> {
    let code = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let function = [&[1, 0, 0, 0, 0x12, 0][..], &number.to_le_bytes(), &[0; 8], &16u64.to_le_bytes()].concat();
    let symbols = [vec![0; 24], function].concat();
    let mut sections: Vec<Section<'_>> = vec![
        ("socket", 1, 6, 0, 0, &code),
        ("license", 1, 3, 0, 0, b"GPL\0"),
        (".symtab", 2, 0, 4, 24, &symbols),
        (".strtab", 3, 0, 0, 0, b"\0function\0"),
    ];
    sections.resize(sections.len() + count, ("x", 1, 0, 0, 0, b""));
    elf(&sections)
}

#[test]
fn more_sections_than_16_bits_count_are_read() {
    let scratch = Scratch::new("sections");
    let started = Instant::now();
    // The last of them has no number that a symbol's 16 bits hold: SHN_XINDEX stands in its place.
    for (count, number, is_found) in [(0xfe00, 1, true), (70_000, 1, true), (70_000, 0xffff, false)] {
        let bytes = of_many_sections(count, number);
        let file = scratch.file("many.o", &bytes);
        let btf = Path::new(KERNEL_BTF);
        if is_found {
            let object = ObjectFile::parse(&bytes).unwrap();
            assert_eq!((object.sections.len(), object.programs[0].name), (count + 6, "function"));
            assert_eq!(compare_parsers(&bytes, &object), Ok(()));
        } else if btf.exists() {
            let words = "function function is in a section beyond the first 65279, where libbpf looks for no function";
            refused("a section beyond", &file, btf, &[words]);
        }
        if btf.exists() {
            let theirs = open_and(nothing_more, &bytes, btf, |_| true).unwrap();
            let names: Vec<_> = theirs.programs().map(|program| name_of(program)).collect();
            assert_eq!(names, if is_found { vec!["function"] } else { vec![] });
        }
    }
    // Numbers of sections that no file has room for.
    let good = of_many_sections(70_000, 1);
    let table = u64::from_le_bytes(good[40..48].try_into().unwrap()) as usize;
    for count in [0u64, 80_000, 1 << 32, u64::MAX] {
        let mut bad = good.clone();
        bad[table + 32..table + 40].copy_from_slice(&count.to_le_bytes());
        let words =
            if count == 0 { "has no sections".to_owned() } else { format!("no room for {count} section headers") };
        let error = ObjectFile::parse(&bad).unwrap_err().to_string();
        assert!(error.contains(&words), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

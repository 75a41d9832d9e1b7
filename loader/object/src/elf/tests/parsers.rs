//! Object files that both parsers read: built by hand, damaged at random, and made by clang.

use std::path::Path;
use std::process::Command;

use super::samples::*;
use crate::btf::tests::Noise;
use crate::elf::ObjectFile;
use crate::facts::{Facts, MOST_FUNCTIONS};
use crate::insn::{CALL, EXIT, Insn, PSEUDO_CALL};
use crate::{Btf, BtfExt, Relocations, compare_parsers};

#[test]
fn a_second_parser_that_sees_something_else_is_heard() {
    let bytes = object(false);
    let good = ObjectFile::parse(&bytes).unwrap();
    let differs = |edit: &dyn Fn(&mut ObjectFile<'_>), words: &[&str]| {
        let mut file = good.clone();
        edit(&mut file);
        let message = compare_parsers(&bytes, &file).unwrap_err().to_string();
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
    let message = compare_parsers(b"\x7fELF", &good).unwrap_err().to_string();
    assert!(message.contains("the second parser refuses"), "{message}");
}

#[test]
fn noise_never_panics() {
    let (mut accepted, mut disputed) = (0, 0);
    for big_endian in [false, true] {
        let good = object(big_endian);
        // Damage in the tables tests a parser most; most of the other bytes are BTF and empty code.
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
            disputed += usize::from(compare_parsers(&bad, &file).is_err());
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
        assert_eq!(compare_parsers(&bytes, &file), Ok(()));
        let btf = crate::Btf::parse(file.btf.unwrap()).unwrap();
        assert!(btf.find(crate::Kind::Func, "one").is_some());
        assert!(file.btf_ext.is_some());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_string_table_of_nothing_but_ends_is_refused() {
    let bytes = object_with(false, SYMBOLS, |parts| parts[9].bytes.resize(1 << 20, 0));
    let file = ObjectFile::parse(&bytes).unwrap();
    let error = compare_parsers(&bytes, &file).unwrap_err().to_string();
    assert!(error.contains("section .strtab has 10485"), "{error}");
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
            let listed = |function: &crate::facts::FunctionFacts<'_>| function.calls.len();
            (listed(&facts.programs[0]), facts.functions.iter().map(listed).max())
        })
    };
    assert_eq!(facts(MOST_FUNCTIONS - 1), Ok((MOST_FUNCTIONS - 1, Some(1))));
    let error = facts(MOST_FUNCTIONS).unwrap_err();
    assert!(error.contains("program first calls 256 functions or more"), "{error}");
}

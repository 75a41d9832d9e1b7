//! The verdict of `inspect`, compared with what libbpf and the kernel do with the object.

use std::fs;
use std::path::Path;
use std::process::Command;

use libbpf_sys as sys;
use xctl::commands::inspect::{self, Args};
use xctl::error::Exit;
use xctl::kernel::source::KERNEL_BTF;
use xctl::object::{Btf, ObjectFile};

use crate::Scratch;
use crate::kernels::kernels;
use crate::libbpf::{may_prepare, nothing_more, open_and};
use crate::objects::{compile, compile_with, have_clang, objects};

/// Runs `inspect`: its output, and its error if it fails.
pub fn inspect(object: &Path, btf: &Path, json: bool) -> (String, Option<anyhow::Error>) {
    let args = Args { object: Some(object.to_owned()), btf: Some(btf.to_owned()), json };
    let mut out = Vec::new();
    let error = inspect::run(&args, &mut out).err();
    (String::from_utf8(out).unwrap(), error)
}

/// The report of `inspect`, as JSON.
pub fn document(object: &Path, btf: &Path) -> serde_json::Value {
    serde_json::from_str(&inspect(object, btf, true).0).unwrap()
}

/// The report says that the object would run or, with exit code 4, that it has this problem first. Returns the report.
pub fn judged(what: &str, object: &Path, btf: &Path, problem: Option<&str>) -> serde_json::Value {
    let (text, error) = inspect(object, btf, true);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let problems = &report["problems"];
    assert_eq!(report["runs"], problem.is_none(), "{what}: {problems}");
    assert_eq!(error.as_ref().map(Exit::code_of), problem.map(|_| 4), "{what}");
    match problem {
        Some(problem) => assert!(problems[0].as_str().unwrap().contains(problem), "{what}: {problems}"),
        None => assert_eq!(problems, &serde_json::json!([]), "{what}"),
    }
    report
}

/// Whether libbpf and the kernel load an object with these programs.
pub fn loads(what: &str, object: &Path, btf: &Path, programs: impl Fn(&str) -> bool, wanted: bool) {
    if may_prepare() {
        let loads = open_and(sys::bpf_object__load, &fs::read(object).unwrap(), btf, programs);
        assert_eq!(loads.is_ok(), wanted, "{what}: libbpf says {:?}", loads.err());
    }
}

/// It is refused with exit code 4 and a message that has all of `words`.
pub fn refused(what: &str, object: &Path, btf: &Path, words: &[&str]) {
    let (_, error) = inspect(object, btf, false);
    let error = error.unwrap_or_else(|| panic!("{what}: not refused"));
    let message = format!("{error:#}");
    assert_eq!(Exit::code_of(&error), 4, "{what}: {message}");
    for word in words {
        assert!(message.contains(word), "{what}: no {word:?} in {message}");
    }
}

#[test]
fn inspect_says_whether_it_would_run() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("inspect");
    for big_endian in [false, true] {
        for (name, words) in [
            ("guarded", None),
            (
                "flavours",
                Some(&["old_field_offset reaches instruction 0", "three___old->before", "has no member before"][..]),
            ),
            ("unguarded", Some(&["program unguarded reaches instruction 0: one->a", "did you mean aa?"][..])),
            ("ambiguous", Some(&["program which, instruction 0, byte_off of one->a", "ambiguous", "0 and 32"][..])),
        ] {
            let source = objects().join(name).with_extension("c");
            let target = scratch.0.join("target.o");
            let object = scratch.0.join("object.o");
            compile(&source, big_endian, true, &target);
            compile(&source, big_endian, false, &object);
            // The BTF inside an ELF file serves as well as one by itself.
            let (text, error) = inspect(&object, &target, false);
            match words {
                None => assert!(error.is_none() && text.contains("it would run there"), "{name}: {error:?}"),
                Some(words) => refused(name, &object, &target, words),
            }
            let json = document(&object, &target);
            assert_eq!(json["runs"], words.is_none(), "{name}");
            assert_eq!(json["endian"], if big_endian { "big" } else { "little" });
            let relocations = json["relocations"].as_array().unwrap();
            assert_eq!(json["relocations_total"], relocations.len());
            assert!(relocations.iter().all(|record| record["source"]["line"].as_u64().is_some()), "{name}");
        }
    }
    // An object for one byte order, types of the other.
    let source = objects().join("guarded.c");
    compile(&source, true, true, &scratch.0.join("target.o"));
    compile(&source, false, false, &scratch.0.join("object.o"));
    refused("byte order", &scratch.0.join("object.o"), &scratch.0.join("target.o"), &["different byte order"]);
}

/// Around relocations too: what `inspect` says is what happens when libbpf loads the object into this kernel.
#[test]
fn what_would_run_is_what_loads() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("loads");
    let compile = |option: &str| compile_with(option, "loads.c", &scratch);
    let target = compile("TARGET");
    for (option, problem) in [
        ("guarded_call", None),
        ("call", Some("program program reaches instruction 0 of takes: one->a")),
        ("nested_call", Some("program program reaches instruction 0 of takes: one->a")),
        ("callback", Some("program program reaches instruction 0 of each: one->a")),
        ("guarded_callback", None),
        ("guarded_global_call", Some("of everybodys: one->a")),
        ("by_choice", None),
        ("narrowed_by_choice", None),
        ("narrowed", Some("program program reaches instruction 0: three->q")),
        ("frozen_guard", None),
        ("frozen_guard_in_array", None),
        ("frozen_guard_is_set", Some("program program reaches instruction 0 of takes: one->a")),
        ("guard_in_data", Some("program program reaches instruction 0 of takes: one->a")),
        ("guard_by_variable_index", Some("program program reaches instruction 0 of takes: one->a")),
        ("no_such_helper", Some("reaches instruction 0: the kernel of this BTF has no helper helper#999")),
        ("guarded_helper", None),
        ("two_functions", None),
        ("no_such_section", Some("no type of program for section nonsense")),
        ("legacy_maps", Some("section maps")),
        ("absent_function", Some("function xctl_no_such_function of the kernel is not in this BTF")),
        ("absent_variable", Some("variable xctl_no_such_variable of the kernel is not in this BTF")),
        ("absent_and_weak", None),
        ("own_section", Some("section socket refers to number in section numbers: libbpf makes no map")),
        ("in_no_section", Some("section socket refers to number, which is in no section")),
        ("own_arena", Some("section socket refers to number in section .addr_space.1: there is no map of type arena")),
        ("other_program", Some("section xdp refers to called in section socket: functions that programs call")),
        ("without_types", Some("it has no types (section .BTF)")),
        ("undefined_function", Some("other_file is neither here nor declared in .ksyms or .kconfig")),
        ("undefined_and_weak", Some("number is neither here nor declared in .ksyms or .kconfig")),
        ("empty_variables", Some("the variables of section .bss have no bytes")),
        ("long_version", Some("section version has 6 bytes, and libbpf takes 4")),
    ] {
        let object = compile(option);
        judged(option, &object, &target, problem);
        // Newer kernels do not look at a global function that nothing calls.
        if option != "guarded_global_call" {
            let by_default = |name: &str| !["calling", "ambiguous", "optional"].contains(&name);
            loads(option, &object, &target, by_default, problem.is_none());
        }
    }
}

/// libbpf looks for a symbol of each global variable and map among the types, and for records of each called function.
#[test]
fn types_symbols_and_records_speak_of_the_same() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("completeness");
    let target = compile_with("TARGET", "loads.c", &scratch);
    let variable = "variable shared is among the types of section .data, and has no global symbol";
    for (option, change, problem) in [
        ("described", None, None),
        ("described", Some("--redefine-sym=shared=renamed"), Some(variable)),
        ("described", Some("--localize-symbol=shared"), Some(variable)),
        ("described", Some("--weaken-symbol=shared"), None),
        ("described", Some("--redefine-sym=counts=renamed"), Some("map counts is among the types of section .maps")),
        (
            "bare_function",
            None,
            Some(".BTF.ext has function information for program program, but not for bare, which it calls"),
        ),
    ] {
        let object = compile_with(option, "loads.c", &scratch);
        if let Some(change) = change {
            let changed = Command::new("llvm-objcopy").arg(change).arg(&object).status().expect("llvm-objcopy");
            assert!(changed.success(), "{change}");
        }
        let what = format!("{option} {change:?}");
        judged(&what, &object, &target, problem);
        loads(&what, &object, &target, |_| true, problem.is_none());
    }
}

/// Gives the records of `.text` that are for byte `begin` and later the place of the instruction before it. `table` is the
/// byte of the header of `.BTF.ext` that says where the records are.
pub fn move_records(bytes: &[u8], table: usize, begin: u32) -> Vec<u8> {
    let object = ObjectFile::parse(bytes).unwrap();
    let btf = Btf::parse(object.btf.unwrap()).unwrap();
    let section = object.sections.iter().find(|section| section.name == ".BTF.ext").unwrap().offset as usize;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    // The tables' layout is that of loader/object/src/btf_ext.rs.
    let start = section + (word(section + 4) + word(section + table)) as usize;
    let (mut at, size, mut moved) = (start + 4, word(start) as usize, bytes.to_vec());
    while at < start + word(section + table + 4) as usize {
        let (is_text, count) = (btf.string(word(at)) == Some(".text"), word(at + 4) as usize);
        at += 8;
        for place in (0..count).map(|number| at + number * size).filter(|place| is_text && word(*place) >= begin) {
            moved[place..place + 4].copy_from_slice(&(begin - 8).to_le_bytes());
        }
        at += count * size;
    }
    assert!(moved != bytes);
    moved
}

/// What a program calls has the same debug information as the program.
#[test]
fn called_functions_need_the_records_of_their_programs() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("records");
    let target = compile_with("TARGET", "loads.c", &scratch);
    let bytes = fs::read(compile_with("two_functions", "loads.c", &scratch)).unwrap();
    let object = ObjectFile::parse(&bytes).unwrap();
    let [speaks, silent] = &object.subprograms[..] else { panic!("{:?}", object.subprograms) };
    assert_eq!((speaks.name, silent.name), ("speaks", "silent"));
    for (table, what) in [(8, "function"), (16, "line")] {
        let bytes = move_records(&bytes, table, silent.offset as u32);
        let words = format!(".BTF.ext has {what} information for program program, but not for silent, which it calls");
        let file = scratch.file("silent.o", &bytes);
        let report = judged(what, &file, &target, Some(&words));
        assert_eq!(report["problems"].as_array().unwrap().len(), 1, "{what}: {}", report["problems"]);
        if may_prepare() {
            let error = open_and(sys::bpf_object__load, &bytes, &target, |_| true).err();
            assert_eq!(error, Some(-nix::libc::ENOENT), "{what}: libbpf");
        }
        loads(what, &file, &target, |name| name == "other", true);
    }
}

/// The programs that the summary lists as failing are those that libbpf fails to load, each tried alone.
#[test]
fn programs_that_would_fail_are_those_that_do() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("failing");
    if Path::new(KERNEL_BTF).exists() {
        let object = compile_with("STATIC", "report.c", &scratch);
        not_opened(&object, Path::new(KERNEL_BTF), "program hidden in section socket is static");
    }
    let (object, target) = (compile_with("FEW", "report.c", &scratch), compile_with("TARGET", "report.c", &scratch));
    let document = document(&object, &target);
    let failing = document["summary"]["failing"].as_array().unwrap();
    let programs = document["programs"].as_array().unwrap();
    let by_default: Vec<_> = programs.iter().filter(|program| program["autoload"] == true).collect();
    assert_eq!((by_default.len(), failing.len()), (4, 2));
    for program in by_default {
        let name = program["name"].as_str().unwrap();
        let fails = failing.iter().any(|one| one["program"] == name);
        loads(name, &object, &target, |other| other == name, !fails);
    }
}

/// The kernel of a BTF file may have a type in a module, whose BTF is another: that is told apart from a type that lacks a
/// member.
#[test]
fn a_type_that_a_module_may_have_is_undecided() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("undecided");
    let target = compile_with("TARGET", "loads.c", &scratch);
    let bytes = fs::read(compile_with("absent_type", "loads.c", &scratch)).unwrap();
    let file = scratch.file("absent.o", &bytes);
    let (json, error) = inspect(&file, &target, true);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(error.is_none(), "{error:?}");
    assert_eq!((&json["runs"], &json["problems"]), (&serde_json::Value::Null, &serde_json::json!([])));
    let undecided = json["undecided"].as_array().unwrap();
    let words = "program program reaches instruction 0: of_a_module->member: no type struct of_a_module";
    assert!(undecided.len() == 1 && undecided[0].as_str().unwrap().starts_with(words), "{undecided:?}");
    let (text, _) = inspect(&file, &target, false);
    assert!(text.contains(words) && text.contains("not decided: a module of that kernel may have it"), "{text}");
    // What the BTF itself tells decides.
    let both = compile_with("absent_type_and_member", "loads.c", &scratch);
    refused("both", &both, &target, &["program program reaches instruction", "struct one has no member a"]);
    // Of the running kernel all modules can be asked. A folder of the test's own stands for theirs.
    let Some((.., running)) = kernels().iter().find(|(name, ..)| name == "running") else { return };
    let modules = scratch.0.join("modules");
    fs::create_dir_all(&modules).unwrap();
    for (names, runs) in [(&b"\0of_a_module\0"[..], serde_json::Value::Null), (b"\0of_another\0", false.into())] {
        fs::write(modules.join("module"), names).unwrap();
        let mut out = Vec::new();
        let target = || Ok(Some((running.clone(), KERNEL_BTF.to_owned())));
        let error = inspect::report(&bytes, "absent", target, Some(&modules), true, &mut out).err();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["runs"], runs, "{}", json["problems"]);
        assert_eq!(error.as_ref().map(Exit::code_of), (runs == false).then_some(4));
    }
}

/// libbpf does not open it. `inspect` reports what it holds, and why.
pub fn not_opened(object: &Path, btf: &Path, words: &str) {
    let (text, error) = inspect(object, btf, true);
    let error = error.unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["runs"], Exit::code_of(&error)), (&false.into(), 4), "{error:#}");
    assert!(format!("{error:#}").contains(words), "{error:#}");
    assert!(document["problems"][0].as_str().unwrap().contains(words), "{}", document["problems"]);
    assert!(!document["sections"].as_array().unwrap().is_empty(), "{document}");
    assert!(open_and(nothing_more, &fs::read(object).unwrap(), btf, |_| true).is_err(), "libbpf opens it: {error:#}");
}

#[test]
fn altered_objects_are_refused_and_the_place_is_named() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("altered");
    let source = objects().join("guarded.c");
    let target = scratch.0.join("target.o");
    compile(&source, false, true, &target);
    let good = compile(&source, false, false, &scratch.0.join("good.o"));
    let object = ObjectFile::parse(&good).unwrap();
    let at = |name: &str| object.sections.iter().find(|section| section.name == name).unwrap().offset as usize;
    let word = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
    let ext = at(".BTF.ext");
    // Past the record size and the section's name and count, the first relocation.
    let relocation = ext + (word(ext + 4) + word(ext + 24)) as usize + 12;
    let types = at(".BTF") + 24;
    let check = |what: &str, place: usize, value: u32, words: &[&str]| {
        let mut bad = good.clone();
        bad[place..place + 4].copy_from_slice(&value.to_le_bytes());
        refused(what, &scratch.file("bad.o", &bad), &target, words);
    };
    check("a relocation beyond the program", relocation, 8000, &["CO-RE relocation record for byte 8000", "socket"]);
    check("a relocation between instructions", relocation, 4, &["byte 4 of section socket: no instruction"]);
    check("a relocation of no type", relocation + 4, 4000, &["refers to type [4000]", ".BTF.ext"]);
    check("a string past the end", relocation + 8, 1 << 20, &["string offset 1048576, past the end", ".BTF.ext"]);
    check("an unknown question", relocation + 12, 77, &["program guarded, instruction", "kind 77"]);
    check("a name past the end", types + 12, 1 << 20, &["not valid BTF", "name offset 1048576", "type ["]);
    // Type 1 is the pointer that the program takes, and 2 the struct: now a pointer to itself.
    check("a type cycle", types + 8, 1, &["its types", "[1] contains itself"]);
    check("16 million members", types + 16, 0x04ff_ffff, &["not valid BTF", "16777215 entries"]);
    let code = object.programs[0].section_index;
    let code = object.sections[code].offset as usize;
    let insn = code + word(relocation) as usize;
    check(
        "another number than the types say",
        insn + 4,
        5,
        &["the instruction has 5, but by the object's own types the value is 1"],
    );
    check("another instruction", insn, 0x0000_000f, &["arithmetic on a register has no value to relocate"]);
}

//! The objects of tests/objects: results computed by hand, libbpf's results, and the compiler's sizes and offsets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use xctl::model::embedded;
use xctl::object::relo::{Outcome, RelocationKind};
use xctl::object::{Btf, ObjectFile};
use xctl::trace::check::check_object;

use crate::Scratch;
use crate::compared::{compare, relocate};
use crate::kernels::kernels;
use crate::objects::{ask_instead, clang, compile, have_clang, sources};
use crate::verdict::inspect;

/// One answer in a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Value(i64),
    Poison,
    Refused(String),
    Any,
}

/// The comments' answers: program by program, relocation by relocation.
pub fn answers(text: &str, big_endian: bool) -> Vec<(String, Answer)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let macros =
            ["PROGRAM(", "LOAD(", "STORE("].iter().find_map(|start| line.strip_prefix(start)).and_then(|rest| {
                let (name, rest) = rest.split_once(',')?;
                Some((name, rest))
            });
        let function = line.strip_prefix("SEC(").and_then(|rest| rest.split_once(" long ")?.1.split_once('('));
        let Some((name, rest)) = macros.or(function) else { continue };
        let said = rest.split_once("// ").unwrap_or_else(|| panic!("no answer for {name}")).1.trim();
        if let Some(words) = said.strip_prefix("refused: ") {
            all.push((name.to_owned(), Answer::Refused(words.to_owned())));
            continue;
        }
        for word in said.split(' ') {
            let (little, big) = word.split_once('|').unwrap_or((word, word));
            let answer = match if big_endian { big } else { little } {
                "poison" => Answer::Poison,
                "any" => Answer::Any,
                number => Answer::Value(number.parse().unwrap_or_else(|_| panic!("{name}: {said}"))),
            };
            all.push((name.to_owned(), answer));
        }
    }
    all
}

#[test]
fn the_corpus_comes_out_as_computed_by_hand_and_as_by_libbpf() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("corpus");
    let mut kinds = BTreeSet::new();
    let (mut relocations, mut compared) = (0, 0);
    for source in sources() {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&source).unwrap();
        for big_endian in [false, true] {
            let what = format!("{name}, {}-endian", if big_endian { "big" } else { "little" });
            let target = compile(&source, big_endian, true, &scratch.0.join("target.o"));
            let target = Btf::parse(ObjectFile::parse(&target).unwrap().btf.unwrap()).unwrap();
            let mut bytes = compile(&source, big_endian, false, &scratch.0.join("object.o"));
            // None of them is xctl's own object, but only those of the other byte order are refused for that.
            let refusal = format!("{:#}", check_object(&bytes).err().unwrap());
            assert_eq!(refusal.contains("byte order"), big_endian != cfg!(target_endian = "big"), "{what}: {refusal}");
            if name == "matches" {
                ask_instead(&mut bytes, RelocationKind::TypeExists, RelocationKind::TypeMatches);
            }
            let (all, _) = relocate(&bytes, &target, |_, _| true);
            // The compiler may put programs and relocations in another order than the file.
            let mut wanted = answers(&text, big_endian);
            for ours in &all {
                let place = wanted.iter().position(|(program, _)| *program == ours.program);
                let (_, answer) = wanted.remove(place.unwrap_or_else(|| panic!("{what}: {ours:?} was not expected")));
                let fits = match (&answer, &ours.outcome) {
                    (Answer::Any, Outcome::Applied) => true,
                    (Answer::Value(value), Outcome::Applied) => ours.value == Some(*value as u64),
                    (Answer::Poison, Outcome::Poisoned(_)) => true,
                    (Answer::Refused(words), Outcome::Refused(why)) => why.contains(words.as_str()),
                    _ => false,
                };
                assert!(fits, "{what}: {ours:?}, by hand: {answer:?}");
                kinds.insert(ours.kind);
            }
            assert!(wanted.is_empty(), "{what}: no relocation for {wanted:?}");
            relocations += all.len();
            let btf = scratch.file("target.btf", target.bytes());
            compared += compare(&what, &bytes, &target, &btf);
        }
    }
    println!("{relocations} relocations as computed by hand, {compared} as by libbpf");
    assert_eq!(kinds.len(), RelocationKind::ALL.len(), "{kinds:?}");
}

/// One side of a relocation, as a C expression for the compiler: its size, and where it is if that can be asked.
pub fn as_c(side: &serde_json::Value) -> (String, Option<String>) {
    let (ty, access) = (side["type"].as_str().unwrap(), side["access"].as_str().unwrap());
    if side["bit_offset"].is_null() || access.starts_with('*') {
        return (format!("sizeof({ty})"), None);
    }
    let path = &access[access.find(['-', '[']).unwrap()..];
    let place = path.strip_prefix("->").map(|path| format!("__builtin_offsetof({ty}, {path})"));
    (format!("sizeof((({ty} *)0){path})"), place)
}

/// Sizes and places of one side of all relocations are those that the compiler finds in the types of `source`. How many.
pub fn as_the_compiler_says(
    what: &str,
    source: &Path,
    options: &[&str],
    records: &[serde_json::Value],
    side: &str,
) -> usize {
    let scratch = Scratch::new("sizes");
    let sides = records.iter().map(|record| &record[side]).filter(|side| !side.is_null());
    // The compiler has no size for a bitfield, nor for an array without length.
    let sides: Vec<_> = sides.filter(|side| side["bitfield_size"].is_null() && side["size"] != 0).collect();
    let numbers = sides.iter().map(|side| as_c(side));
    let numbers = numbers.map(|(size, place)| format!("{size}, {},\n", place.unwrap_or("-1".to_owned())));
    let text = format!(
        "#include \"{}\"\nunsigned long NUMBERS[] = {{ {} }};\n",
        source.display(),
        numbers.collect::<String>()
    );
    let (c, out) = (scratch.file("sizes.c", text.as_bytes()), scratch.0.join("sizes.o"));
    let mut compiler = Command::new(clang());
    // A kernel has structs whose tag names an anonymous member, and is compiled so.
    compiler.args(["--target=bpfel", "-g", "-O2", "-w", "-fms-extensions", "-c"]).args(options);
    compiler.arg(&c).arg("-o").arg(&out);
    assert!(compiler.status().unwrap().success(), "{what}");
    let bytes = fs::read(&out).unwrap();
    let object = ObjectFile::parse(&bytes).unwrap();
    let symbol = object.symbols.iter().find(|symbol| symbol.name == "NUMBERS");
    let Some(symbol) = symbol.filter(|symbol| symbol.size > 0) else { return 0 };
    let data = &object.sections[usize::from(symbol.section)].bytes(&bytes)[symbol.value as usize..];
    for (side, numbers) in sides.iter().zip(data.chunks(16)) {
        let number = |at: usize| i64::from_le_bytes(numbers[at..at + 8].try_into().unwrap());
        assert_eq!(side["size"], number(0), "{what}: {side}");
        assert!(number(8) < 0 || side["bit_offset"] == number(8) * 8, "{what}: {side}, by the compiler {}", number(8));
    }
    sides.len()
}

#[test]
fn sizes_and_places_are_those_of_the_compiler() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("extents");
    let relocations = |object: &Path, btf: &Path| {
        let json: serde_json::Value = serde_json::from_str(&inspect(object, btf, true).0).unwrap();
        json["relocations"].as_array().unwrap().clone()
    };
    let (mut compared, mut bitfields) = (0, 0);
    for source in sources() {
        let what = source.display().to_string();
        let (target, object) = (scratch.0.join("target.o"), scratch.0.join("object.o"));
        compile(&source, false, true, &target);
        compile(&source, false, false, &object);
        let records = relocations(&object, &target);
        compared += as_the_compiler_says(&what, &source, &[], &records, "local");
        compared += as_the_compiler_says(&what, &source, &["-DTARGET"], &records, "target");
        // What drops all but a bitfield says how many bits it has; the corpus has those numbers by hand.
        for record in records.iter().filter(|record| record["kind"] == "rshift_u64") {
            for side in
                [&record["local"], &record["target"]].into_iter().filter(|side| !side["bitfield_size"].is_null())
            {
                let left = 64 - side["value"].as_i64().unwrap();
                assert_eq!(side["bitfield_size"], left, "{what}: {record}");
                bitfields += 1;
            }
        }
    }
    assert!(compared > 100 && bitfields > 3, "{compared} {bitfields}");
    let object = scratch.file("xctl.bpf.o", &embedded::object().unwrap());
    for (name, path, _) in kernels() {
        let dump = Command::new("bpftool").args(["btf", "dump", "file"]).arg(path).args(["format", "c"]).output();
        let Ok(dump) = dump else {
            println!("not compared with the compiler: no bpftool");
            break;
        };
        assert!(dump.status.success(), "{name}");
        let header = scratch.file("vmlinux.h", &dump.stdout);
        let here = as_the_compiler_says(name, &header, &[], &relocations(&object, path), "target");
        assert!(here > 100, "{name}: {here}");
        println!("{name}: {here} accesses as large, and where, the compiler says");
    }
    println!("{compared} accesses of the corpus, {bitfields} bitfields");
}

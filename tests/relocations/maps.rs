//! The maps of an object: as libbpf sees them, and whether the kernel makes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use xctl::kernel::source::KERNEL_BTF;
use xctl::model::embedded;
use xctl::object::ObjectFile;
use xctl::object::maps::map_type_name;

use crate::kernels::kernels;
use crate::libbpf::maps_by_libbpf;
use crate::objects::{compile_with, have_clang};
use crate::verdict::{document, inspect, judged, loads, not_opened};
use crate::{Scratch, tell};

/// Maps that the running kernel, or every kernel, refuses.
#[test]
fn maps_that_the_kernel_does_not_make() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("maps are not made: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("attributes"), Path::new(KERNEL_BTF));
    for (option, problem) in [
        ("plain", None),
        ("long_array_keys", Some("its key has 8 bytes, and a map of type array takes 4")),
        ("programs_by_long", Some("its value has 8 bytes, and a map of type prog_array takes 4")),
        ("queue_with_keys", Some("its key has 4 bytes, and a map of type queue takes 0")),
        ("ring_with_values", Some("its value has 4 bytes, and a map of type ringbuf takes 0")),
        // libbpf rounds it up.
        ("odd_ring", None),
        ("endless_ring", Some("a ring buffer of 3000000000 bytes is larger than 2147483648")),
        ("trie_made_before", Some("a map of type lpm_trie needs the flag BPF_F_NO_PREALLOC")),
        ("storage_of_many", Some("it has 5 entries, and a map of type sk_storage takes no number of entries")),
        ("unknown_flag", Some("the kernel of this BTF has no map flags 0x4000000")),
        ("unknown_type", Some("the kernel of this BTF has no map type unknown#99")),
        ("inner_unknown", Some("inside it: its key has 8 bytes, and a map of type array takes 4")),
    ] {
        let object = compile_with(option, "attributes.c", &scratch);
        let problem = problem.map(|problem| format!("map one: {problem}"));
        let report = judged(option, &object, btf, problem.as_deref());
        assert_eq!(report["problems"], serde_json::json!(problem.iter().collect::<Vec<_>>()), "{option}");
        loads(option, &object, btf, |_| true, problem.is_none());
    }
}

/// What a kernel has is told by its own enums: 5.10 has no `bpf_loop`, no netfilter programs, no bloom filters.
#[test]
fn what_an_older_kernel_does_not_have() {
    let Some((_, old, _)) = kernels().iter().find(|(name, ..)| name == "5.10" && have_clang()) else {
        return tell("not compared with an older kernel: no types of 5.10");
    };
    let scratch = Scratch::new("older");
    for (option, problem) in [
        ("plain", None),
        ("newer_helper", Some("program program reaches instruction 5: the kernel of this BTF has no helper bpf_loop")),
        ("newer_program", Some("program program: the kernel of this BTF has no program type netfilter")),
        ("newer_map", Some("map one: the kernel of this BTF has no map type bloom_filter")),
    ] {
        let object = compile_with(option, "attributes.c", &scratch);
        let report = judged(option, &object, old, problem);
        assert_eq!(report["problems"], serde_json::json!(problem.iter().collect::<Vec<_>>()), "{option}");
        let running = kernels().iter().find(|(name, ..)| name == "running");
        let Some((_, running, _)) = running.filter(|_| problem.is_some()) else { continue };
        let (_, error) = inspect(&object, running, true);
        loads(option, &object, running, |_| true, error.is_none());
    }
}

/// The maps of an object, those included that it only implies, are as libbpf sees them. How many there are.
pub fn same_maps(what: &str, object: &Path, btf: &Path) -> usize {
    let json = document(object, btf);
    let theirs = maps_by_libbpf(&fs::read(object).unwrap(), btf);
    let number = |map: &serde_json::Value, of: &str| map[of].as_u64().unwrap_or(0);
    let ours: BTreeMap<_, _> = json["maps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| {
            let kind = (0..100).find(|kind| map_type_name(*kind) == map["type"].as_str().unwrap()).unwrap();
            let [key, value, entries, flags] =
                ["key_size", "value_size", "max_entries", "flags"].map(|of| number(map, of));
            let facts = [kind.into(), key, value, entries, flags, u64::from(map["autocreate"].as_bool().unwrap())];
            (map["name"].as_str().unwrap().to_owned(), facts)
        })
        .collect();
    assert_eq!(ours, theirs, "{what}");
    ours.len()
}

#[test]
fn maps_are_as_libbpf_sees_them() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("maps are not compared with libbpf: that needs clang and the kernel's types");
    }
    let scratch = Scratch::new("maps");
    let own = scratch.file("own.o", &embedded::object().unwrap());
    assert!(same_maps("our object", &own, Path::new(KERNEL_BTF)) >= 8);
    let globals = compile_with("globals", "globals.c", &scratch);
    assert_eq!(same_maps("globals.c", &globals, Path::new(KERNEL_BTF)), 6);
    let (json, _) = inspect(&globals, Path::new(KERNEL_BTF), true);
    assert!(json.contains("\"unknown#99\""), "{json}");
    for option in ["plain", "linked", "by_choice", "two_by_choice", "loaded_for_one_of_two"] {
        assert!(same_maps(option, &compile_with(option, "struct_ops.c", &scratch), Path::new(KERNEL_BTF)) >= 1);
    }
}

/// Variables in an arena have a map to be in.
#[test]
fn arenas_have_room_for_their_variables() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("arenas are not compared with libbpf: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("arena"), Path::new(KERNEL_BTF));
    for (option, variables) in [("plain", 2), ("without_maps", 2), ("empty", 0)] {
        let object = compile_with(option, "arena.c", &scratch);
        let (json, error) = inspect(&object, btf, true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(error.is_none(), "{option}: {error:?}");
        assert_eq!(json["variables"].as_array().unwrap().len(), variables, "{option}: {}", json["variables"]);
        same_maps(option, &object, btf);
    }
    for (option, words) in [
        ("too_small", "section .addr_space.1 has 5004 bytes, and map arena room for 4096"),
        ("without", "section .addr_space.1: its variables need a map of type arena"),
        ("two", "maps arena and other are both arenas"),
    ] {
        not_opened(&compile_with(option, "arena.c", &scratch), btf, words);
    }
}

/// What a map's definition and its initial values may be.
#[test]
fn definitions_of_maps_are_what_libbpf_takes() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("definitions of maps are not compared with libbpf: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("definitions"), Path::new(KERNEL_BTF));
    for option in ["plain", "is_weak", "programs", "maps_in_array", "maps_by_long_later"] {
        let object = compile_with(option, "maps.c", &scratch);
        let (_, error) = inspect(&object, btf, true);
        assert!(error.is_none(), "{option}: {error:?}");
        same_maps(option, &object, btf);
    }
    for (option, words) in [
        ("is_static", "map two is static"),
        ("is_hidden", "map two is hidden"),
        ("not_a_program", "map two, byte 32: function is no program"),
        ("structs_for_programs", "map two: values are struct inner"),
        ("maps_by_long", "map two, byte 24: a hash of maps takes values only with keys of 4 bytes"),
        ("functions_for_maps", "map two: values are"),
        ("pinned_inside", "map two: an inner map cannot be pinned"),
        ("pinned_somehow", "map two: its pinning is 2"),
        ("values_in_hash", "map two: a map of type hash takes no values"),
        ("values_first", "map two: values is not its last member"),
        ("key_is_set", "map two, byte 16: only values may be set"),
    ] {
        not_opened(&compile_with(option, "maps.c", &scratch), btf, words);
    }
}

/// Initial values that point elsewhere: as clang makes them, and in objects with altered relocations.
#[test]
fn hostile_values_of_maps_are_refused() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("values of maps are not compared with libbpf: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("values"), Path::new(KERNEL_BTF));
    for (option, words) in [
        ("a_variable_for_a_map", "map two, byte 32: number is no map"),
        ("a_program_for_a_map", "map two, byte 32: program is no map"),
        ("a_map_for_a_program", "map two, byte 32: one is no program"),
    ] {
        not_opened(&compile_with(option, "values.c", &scratch), btf, words);
    }
    let good = compile_with("two_maps", "values.c", &scratch);
    assert_eq!(inspect(&good, btf, true).1.map(|error| format!("{error:#}")), None);
    assert_eq!(same_maps("two_maps", &good, btf), 3);

    let good = fs::read(good).unwrap();
    let object = ObjectFile::parse(&good).unwrap();
    let section = |name: &str| object.sections.iter().find(|section| section.name == name).unwrap();
    let symbol = |name: &str| object.symbols.iter().position(|symbol| symbol.name == name).unwrap() as u64;
    let start = |name: &str| object.symbols[symbol(name) as usize].value;
    // An entry of the table has an offset of 8 bytes, and a symbol in the upper half of the next 8.
    let second = section(".rel.maps").offset as usize + 16;
    let altered = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        scratch.file("altered.o", &bytes)
    };
    let of_symbol = |name: &str| symbol(name) << 32 | 2;
    for (at, value, words) in [
        (second, start("two") + 28, "map two, byte 28: only values may be set"),
        (second, start("two") + 16, "map two, byte 16: only values may be set"),
        (second, start("one") + 24, "map one, byte 24: only values may be set"),
        (second + 8, of_symbol("number"), "map two, byte 32: number is no map"),
        (second + 8, of_symbol("program"), "map two, byte 32: program is no map"),
        (second + 8, of_symbol("LICENSE"), "map two, byte 32: LICENSE is no map"),
        (second + 8, 2, "map two, byte 32: what is there is no map"),
    ] {
        not_opened(&altered(at, value), btf, words);
    }
}

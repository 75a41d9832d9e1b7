//! Maps of callbacks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use libbpf_sys as sys;
use xctl::kernel::source::KERNEL_BTF;
use xctl::object::hook::hook;
use xctl::object::{Btf, Kind, ObjectFile};

use crate::kernels::kernels;
use crate::libbpf::{may_prepare, name_of, open_and};
use crate::objects::{compile, compile_with, have_clang, objects};
use crate::verdict::{inspect, judged, loads, not_opened};
use crate::{Scratch, tell};

/// A map of callbacks is made where the kernel has the struct, and all that is set of it. Here that is the running one.
#[test]
fn callbacks_that_fit_are_what_libbpf_takes() {
    let btf = Path::new(KERNEL_BTF);
    let has_such = |btf: &Btf| btf.find(Kind::Struct, "bpf_struct_ops_tcp_congestion_ops").is_some();
    if !have_clang() || !kernels().iter().any(|(name, _, btf)| name == "running" && has_such(btf)) {
        return tell("struct_ops is not compared with libbpf: that needs clang and a kernel that has it");
    }
    let scratch = Scratch::new("struct_ops");
    let reaches = "program half reaches instruction 1: sock___ours->xctl_no_such_member";
    for (option, problem) in [
        ("plain", None),
        ("linked", None),
        ("by_choice", None),
        ("absent_and_empty", None),
        ("absent_callback", Some("member xctl_no_such_callback of struct tcp_congestion_ops: it is set, and")),
        ("absent_value", Some("member xctl_no_such_value of struct tcp_congestion_ops: it is set, and")),
        ("absent_type", Some("map ops: the BTF has no struct bpf_struct_ops_xctl_no_such_ops")),
        ("twice", Some("program half is member ssthresh of struct tcp_congestion_ops, and undo_cwnd of")),
        ("other_size", Some("member name of struct tcp_congestion_ops: it has 8 bytes here, 16 there")),
        ("other_kind", Some("member init of struct tcp_congestion_ops: it is")),
        // Only the first of a section is left to the loader's choice.
        ("two_by_choice", Some("map ops: the BTF has no struct bpf_struct_ops_xctl_no_such_ops")),
        // A program is loaded if a map that is made names it, whatever its own section says.
        ("left_out_with_its_map", None),
        ("loaded_for_a_map", Some(reaches)),
        ("loaded_for_one_of_two", Some(reaches)),
        ("unnamed", Some("program idle: no struct_ops map names it")),
        ("unnamed_by_choice", None),
    ] {
        let object = compile_with(option, "struct_ops.c", &scratch);
        let json = judged(option, &object, btf, problem);
        let maps = json["maps"].as_array().unwrap();
        let map = maps.iter().find(|map| map["name"] == "ops").unwrap();
        assert_eq!(map["callbacks"][0], serde_json::json!({"member": "ssthresh", "program": "half"}), "{option}");
        let programs = json["programs"].as_array().unwrap().iter();
        let ours = programs.map(|one| (one["name"].as_str().unwrap().to_owned(), one["autoload"] == true));
        let ours: BTreeMap<_, _> = ours.collect();
        let file = fs::read(&object).unwrap();
        // What the sections say, until libbpf has seen the maps.
        let by_section = |name: &str| {
            let object = ObjectFile::parse(&file).unwrap();
            object.programs.iter().any(|one| one.name == name && hook(one.section).autoload)
        };
        loads(option, &object, btf, by_section, problem.is_none());
        if let Ok(theirs) = open_and(sys::bpf_object__prepare, &file, btf, by_section) {
            // SAFETY: the object is open.
            let autoload = |program| unsafe { sys::bpf_program__autoload(program) };
            let theirs = theirs.programs().map(|program| (name_of(program), autoload(program))).collect();
            assert_eq!(ours, theirs, "{option}");
        } else {
            assert!(!may_prepare() || problem.is_some(), "{option}");
        }
    }
    for (option, words) in [
        ("of_another_type", "map ops: program half, of section socket, is not one of struct_ops"),
        ("untold", "section .struct_ops: the object's types do not tell what is in it"),
    ] {
        not_opened(&compile_with(option, "struct_ops.c", &scratch), btf, words);
    }
    // The other byte order: only its own types can tell.
    let (text, object) = (objects().join("outside/struct_ops.c"), scratch.0.join("big.o"));
    compile(&text, true, false, &object);
    let (_, error) = inspect(&object, &object, true);
    assert!(
        format!("{:#}", error.unwrap()).contains("map other: the BTF has no struct bpf_struct_ops_tcp_congestion_ops")
    );
}

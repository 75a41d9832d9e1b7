//! The facts that `inspect` reports, compared with libbpf, bpftool, readelf and sha256sum.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs;
use std::path::Path;
use std::process::Command;

use libbpf_sys as sys;
use xctl::kernel::source::KERNEL_BTF;
use xctl::model::embedded;
use xctl::object::hook::hook;
use xctl::object::{Btf, ObjectFile};

use crate::compared::compare;
use crate::libbpf::{LIBBPF, libbpf, may_prepare, nothing_more, open_and};
use crate::objects::{compile, have_clang, objcopy, objects};
use crate::verdict::inspect;
use crate::{Scratch, tell};

/// Nobody needs debug information to load an object.
#[test]
fn compressed_debug_sections_are_passed_over() {
    if !have_clang() {
        return;
    }
    const COMPRESSED: u64 = 1 << 11;
    let scratch = Scratch::new("compressed");
    let (source, object, target) = (objects().join("calls.c"), scratch.0.join("object.o"), scratch.0.join("target.o"));
    let target_types = compile(&source, false, true, &target);
    compile(&source, false, false, &object);
    let (before, _) = inspect(&object, &target, true);
    let before: serde_json::Value = serde_json::from_str(&before).unwrap();
    let Some(zlib) = objcopy(&object, "--compress-debug-sections=zlib", &scratch) else { return };
    let bytes = fs::read(zlib).unwrap();
    let mut compressed = vec![("zlib", bytes.clone())];
    // Not every llvm-objcopy knows zstd. Only the first word of a section says how it is compressed: ELFCOMPRESS_ZSTD is 2.
    let mut zstd = bytes.clone();
    let parsed = ObjectFile::parse(&bytes).unwrap();
    let sections = &parsed.sections;
    // Relocations are for the bytes before compression.
    let beyond = |one: &&xctl::object::elf::Relocation| one.offset >= sections[one.section].size;
    assert!(parsed.relocations.iter().filter(beyond).count() > 3);
    let debug: Vec<_> = sections.iter().filter(|section| section.flags & COMPRESSED != 0).collect();
    assert!(debug.len() > 3 && debug.iter().all(|section| section.name.starts_with(".debug_")), "{debug:?}");
    debug.iter().for_each(|section| zstd[section.offset as usize] = 2);
    compressed.push(("zstd", zstd));
    let types = Btf::parse(ObjectFile::parse(&target_types).unwrap().btf.unwrap()).unwrap();
    for (how, bytes) in &compressed {
        let (json, _) = inspect(&scratch.file("compressed.o", bytes), &target, true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["runs"], &json["problems"]), (&before["runs"], &before["problems"]), "{how}");
        assert!(open_and(nothing_more, bytes, &target, |_| true).is_ok(), "{how}: libbpf refuses");
        compare(how, bytes, &types, &target);
    }
}

#[test]
fn inspect_lists_what_only_the_loader_knows() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("outside");
    for big_endian in [false, true] {
        let (source, object) = (objects().join("outside/externs.c"), scratch.0.join("object.o"));
        compile(&source, big_endian, false, &object);
        let (json, error) = inspect(&object, &object, true);
        assert!(error.is_none(), "{error:?}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let programs = json["programs"].as_array().unwrap();
        let found = |name: &str| programs.iter().find(|program| program["name"] == name).unwrap();
        let (no, lock, unlock) = (serde_json::json!([]), "bpf_rcu_read_lock", "bpf_rcu_read_unlock");
        for (name, calls, kfuncs, externs) in [
            // One of them by way of a function.
            ("by_configuration", &["version"][..], &[][..], &["CONFIG_PREEMPT", "LINUX_KERNEL_VERSION"][..]),
            ("by_variable", &[], &[], &["bpf_prog_active"]),
            // Whether it is there is asked by its address.
            ("by_function", &[], &[lock, unlock], &[unlock]),
            ("by_itself", &[], &[], &[]),
        ] {
            let program = found(name);
            for (what, names) in [("calls", calls), ("kfuncs", kfuncs), ("externs", externs)] {
                assert_eq!(program[what], serde_json::json!(names), "{what} of {name}");
            }
            assert_eq!(program["provable"], program["kfuncs"] == no && program["externs"] == no, "{name}");
        }
        assert_eq!(found("by_itself")["provable"], true);
        let externs = json["externs"].as_array().unwrap();
        let kinds: BTreeMap<_, _> =
            externs.iter().map(|one| (one["name"].as_str().unwrap(), (&one["kind"], &one["in_btf"]))).collect();
        let (yes, unknown) = (serde_json::json!(true), serde_json::Value::Null);
        for (name, kind, in_btf) in [
            (lock, "function", &yes),
            (unlock, "function", &yes),
            ("bpf_prog_active", "variable", &yes),
            ("CONFIG_PREEMPT", "configuration", &unknown),
            ("LINUX_KERNEL_VERSION", "configuration", &unknown),
        ] {
            assert_eq!(kinds[name], (&serde_json::json!(kind), in_btf), "{name}");
        }
        let weak: Vec<_> = json["externs"].as_array().unwrap().iter().filter(|one| one["weak"] == true).collect();
        assert_eq!(weak.len(), 2, "{weak:?}");
        let (text, _) = inspect(&object, &object, false);
        assert!(text.contains("provable  no: ") && text.contains("bpf_rcu_read_unlock (may be missing)"), "{text}");
    }
}

pub fn said_by(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_inspect_says_of_our_object_others_say_too() {
    let scratch = Scratch::new("facts");
    let bytes = embedded::object().unwrap();
    let path = scratch.file("xctl.bpf.o", &bytes);
    let file = path.to_str().unwrap();
    if !Path::new(KERNEL_BTF).exists() {
        tell(&format!("not compared: no {KERNEL_BTF}"));
        return;
    }
    let (out, error) = inspect(&path, Path::new(KERNEL_BTF), true);
    assert!(error.is_none(), "{error:?}");
    let facts: serde_json::Value = serde_json::from_str(&out).unwrap();
    let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();

    assert_eq!(text(&facts["sha256"]), said_by("sha256sum", &[file]).split(' ').next().unwrap());
    // "  [ 1] .strtab STRTAB 0000000000000000 05688a 0006e5 00 ...", with flags before three numbers
    let table = said_by("readelf", &["-SW", file]);
    let theirs: Vec<_> = table.lines().filter_map(|line| line.trim().strip_prefix('[')?.split_once("] ")).collect();
    let ours = list(&facts["sections"]);
    assert_eq!(ours.len(), theirs.len() - 2, "{theirs:?}"); // the heading, and the section that is none
    let mut license = None;
    for (ours, (_, line)) in ours.iter().zip(&theirs[2..]) {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |word: &str| u64::from_str_radix(word, 16).unwrap();
        // of the flags those that say what a section is in memory
        let sorted = |flags: &str| flags.chars().filter(|flag| "AWX".contains(*flag)).collect::<BTreeSet<_>>();
        let flags = if words.len() == 10 { words[6] } else { "" };
        assert_eq!(text(&ours["name"]), words[0]);
        // of LLVM's own types readelf has no names
        let kind = text(&ours["type"]).replace("0x6", "LOOS+0x");
        assert_eq!(kind, words[1], "{line}");
        assert_eq!(sorted(&text(&ours["flags"])), sorted(flags), "{line}");
        assert_eq!((&ours["offset"], &ours["size"]), (&number(words[3]).into(), &number(words[4]).into()), "{line}");
        if words[0] == "license" {
            license = Some(&bytes[number(words[3]) as usize..][..number(words[4]) as usize - 1]);
        }
    }
    assert_eq!(text(&facts["license"]).as_bytes(), license.unwrap());

    if !may_prepare() {
        return;
    }
    if Command::new("bpftool").arg("version").output().is_err() {
        tell("helpers are not compared: no bpftool");
        return;
    }
    // Numbers of functions are the kernel's, and bpftool has their names in that order.
    let names = said_by("bpftool", &["feature", "list_builtins", "helpers"]);
    let names: Vec<_> = names.lines().collect();
    let programs = list(&facts["programs"]);
    let by_default = |name: &str| programs.iter().any(|one| one["name"] == name && one["autoload"] == true);
    let opened = open_and(nothing_more, &bytes, Path::new(KERNEL_BTF), by_default).unwrap();
    let before: BTreeMap<_, _> = opened.programs().map(|program| opened.code(program)).collect();
    let after = libbpf(&bytes, Path::new(KERNEL_BTF), by_default).unwrap();
    let after: BTreeMap<_, _> = after.programs.into_iter().collect();
    for program in programs.iter().filter(|program| program["autoload"] == true) {
        let name = text(&program["name"]);
        assert_eq!(program["insns"], before[&name].len(), "{name}");
        assert_eq!(program["insns_total"], after[&name].len(), "{name}");
        const CALL: u8 = 0x85;
        let called = after[&name].iter().filter(|insn| insn.code == CALL && insn.src == 0);
        // what libbpf makes of a relocation that fails is a call to no function
        let called: BTreeSet<_> = called.filter_map(|insn| names.get(insn.imm as usize).copied()).collect();
        let helpers = list(&program["helpers"]);
        assert_eq!(helpers.iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>(), called, "{name}");
    }
    let mut insns = 0;
    for relocation in list(&facts["relocations"]) {
        let (name, at) = (text(&relocation["program"]), relocation["insn"].as_u64().unwrap() as usize);
        let Some(code) = before.get(&name).filter(|_| by_default(&name)) else { continue };
        // not by the function that inspect writes them with
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for (side, insn) in [("before", code[at]), ("after", after[&name][at])] {
            assert_eq!(text(&relocation[side]["bytes"])[..16], hex(&insn.encode(false)), "{relocation}");
        }
        insns += 1;
    }
    println!("{} programs, {insns} instructions before and after", programs.len());
    assert!(programs.len() > 10 && insns > 1000);
}

#[test]
fn section_names_mean_what_they_mean_to_libbpf() {
    let kinds = "socket sk_reuseport kprobe kretprobe uprobe uretprobe ksyscall kretsyscall usdt kprobe.multi kretprobe.multi \
        kprobe.session uprobe.multi uretprobe.multi uprobe.session tc tcx classifier action netkit tracepoint tp raw_tracepoint \
        raw_tp raw_tracepoint.w raw_tp.w tp_btf fentry fmod_ret fexit fsession freplace lsm lsm_cgroup iter syscall xdp xdp.frags \
        perf_event lwt_in lwt_out lwt_xmit lwt_seg6local sockops sk_skb sk_msg lirc_mode2 flow_dissector cgroup_skb cgroup \
        struct_ops sk_lookup netfilter maps mine";
    let rest = "x a/b ingress egress primary peer migrate devmap cpumap stream_parser stream_verdict verdict skb sock_create \
        sock_release sock post_bind4 post_bind6 bind4 bind6 bind_unix connect4 connect6 connect_unix sendmsg4 sendmsg_unix \
        recvmsg6 recvmsg_unix getpeername4 getpeername_unix getsockname6 getsockname_unix sysctl getsockopt setsockopt dev";
    let _quiet = LIBBPF.lock().unwrap();
    let mut known = 0;
    for kind in kinds.split_whitespace().flat_map(|kind| [kind.to_owned(), format!("{kind}.s"), format!("{kind}.x")]) {
        let names = rest.split_whitespace().map(|rest| format!("{kind}/{rest}"));
        for name in names.chain([kind.clone(), format!("{kind}/")]) {
            let (mut number, mut attach) = (0, 0);
            let section = CString::new(name.as_str()).unwrap();
            // SAFETY: the name ends with NUL, and both numbers are ours. The text is static, or null.
            let theirs = unsafe {
                let error = sys::libbpf_prog_type_by_name(section.as_ptr(), &mut number, &mut attach);
                (error == 0).then(|| CStr::from_ptr(sys::libbpf_bpf_prog_type_str(number)).to_str().unwrap())
            };
            assert_eq!(hook(&name).program_type, theirs, "{name}");
            known += usize::from(theirs.is_some());
        }
    }
    assert!(known > 1000, "{known}");
}

//! BTF that was cut down for an object.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use xctl::model::embedded;
use xctl::object::cut::{Asked, cut};
use xctl::object::difference::first_difference;
use xctl::object::relo::{Outcome, RelocationKind};
use xctl::object::{Btf, ObjectFile};
use xctl::trace::check::check_object;
use xctl::trace::hooks::{self, Attach};
use xctl::trace::target::{ASKED, Target, read_types};

use crate::Scratch;
use crate::compared::{Ours, compare, relocate, same};
use crate::kernels::kernels;
use crate::objects::{ask_instead, compile, have_clang, sources};
use crate::random::{Noise, any_access, object_of};

/// The hooks that the loader would choose with these types, all of them or why not.
pub fn plans(btf: &Path) -> Vec<String> {
    let object = embedded::object().unwrap();
    let target = Target::ask(btf, read_types(btf).unwrap(), &check_object(&object).unwrap()).unwrap();
    let all = [Attach::Auto, Attach::Kprobe, Attach::Tracepoint, Attach::Fentry, Attach::Mixed, Attach::Lsm];
    all.iter()
        .flat_map(|attach| [false, true].map(|sends| format!("{:?}", hooks::choose(*attach, sends, &target))))
        .collect()
}

#[test]
fn a_cut_btf_answers_as_the_whole_and_as_bpftools() {
    let scratch = Scratch::new("cut");
    let bytes = embedded::object().unwrap();
    let object = scratch.file("xctl.bpf.o", &bytes);
    for (name, path, btf) in kernels() {
        let cut = cut(&bytes, btf, &ASKED).unwrap();
        println!("{name}: {} bytes of {}", cut.bytes.len(), btf.bytes().len());
        assert!(cut.bytes.len() < 8192, "{name}: {} bytes", cut.bytes.len());
        let small = Btf::parse(&cut.bytes).unwrap();
        let file = scratch.file("cut.btf", &cut.bytes);
        assert!(same(name, &bytes, btf, &small) > 100);
        assert_eq!(first_difference(&bytes, &small, btf), Ok(None), "{name}");
        compare(&format!("our object, {name} cut"), &bytes, &small, &file);
        assert_eq!(plans(path), plans(&file), "{name}");
        let theirs = scratch.0.join("bpftool.btf");
        let bpftool = Command::new("bpftool").args(["gen", "min_core_btf"]).args([path, &theirs, &object]).status();
        match bpftool {
            Ok(status) => {
                assert!(status.success(), "{name}: bpftool refuses");
                let theirs = Btf::parse(&fs::read(&theirs).unwrap()).unwrap();
                same(&format!("{name}, ours and bpftool's"), &bytes, &small, &theirs);
            }
            Err(error) => println!("not compared with bpftool: {error}"),
        }
    }
}

/// What can be cut for an object: with the types that are left, it comes out the same. False if it would not load.
pub fn cuts(what: &str, bytes: &[u8], target: &Btf, scratch: &Scratch) -> bool {
    let (all, _) = relocate(bytes, target, |_, _| true);
    let number = RelocationKind::TypeIdTarget as u32;
    let impossible = |ours: &Ours| {
        matches!(ours.outcome, Outcome::Refused(_)) || (ours.kind == number && ours.value.is_some_and(|id| id > 0))
    };
    let cut = cut(bytes, target, &Asked::default());
    if all.iter().any(impossible) {
        let error = cut.map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("program "), "{what}: {error}");
        return false;
    }
    let cut = cut.unwrap_or_else(|error| panic!("{what}: {error}")).bytes;
    let small = Btf::parse(&cut).unwrap();
    assert!(small.len() <= target.len());
    same(what, bytes, target, &small);
    compare(&format!("{what}, cut"), bytes, &small, &scratch.file("cut.btf", &cut));
    true
}

#[test]
fn a_cut_btf_will_do_for_the_corpus_and_for_random_accesses() {
    let scratch = Scratch::new("cuts");
    let mut done = BTreeSet::new();
    for source in sources().into_iter().filter(|_| have_clang()) {
        let name = source.file_stem().unwrap().to_str().unwrap().to_owned();
        for big_endian in [false, true] {
            let target = compile(&source, big_endian, true, &scratch.0.join("target.o"));
            let target = Btf::parse(ObjectFile::parse(&target).unwrap().btf.unwrap()).unwrap();
            let mut bytes = compile(&source, big_endian, false, &scratch.0.join("object.o"));
            if name == "matches" {
                ask_instead(&mut bytes, RelocationKind::TypeExists, RelocationKind::TypeMatches);
            }
            if cuts(&name, &bytes, &target, &scratch) {
                done.insert(name.clone());
            }
        }
    }
    println!("{done:?}");
    let all = kernels();
    for ((from, _, local), (to, _, target)) in all.iter().zip(all.iter().cycle().skip(1)) {
        let mut noise = Noise(from.len() as u64 * 37 + to.len() as u64);
        let mut chosen = Vec::new();
        while chosen.len() < 300 {
            chosen.extend(any_access(local, &mut noise).filter(|(.., kind)| *kind != RelocationKind::TypeIdTarget));
        }
        // Without those that libbpf refuses; whether it does can depend on those before.
        let bytes = loop {
            let bytes = object_of(local, &chosen, &mut Noise(1));
            let (all, _) = relocate(&bytes, target, |_, _| true);
            let mut refused = all.iter().map(|ours| matches!(ours.outcome, Outcome::Refused(_)));
            let before = chosen.len();
            chosen.retain(|_| refused.next() == Some(false));
            if chosen.len() == before {
                break bytes;
            }
        };
        assert!(chosen.len() > 200, "{}", chosen.len());
        assert!(cuts(&format!("accesses to {from} on {to}"), &bytes, target, &scratch));
    }
}

//! Our results for the relocations of an object, compared with libbpf's.

use std::collections::BTreeSet;
use std::env;
use std::mem::discriminant;
use std::path::Path;

use xctl::object::hook::hook;
use xctl::object::image::{Image, MapThere};
use xctl::object::insn::Insn;
use xctl::object::relo::{Outcome, RelocationKind, Relocations};
use xctl::object::search::Roots;
use xctl::object::uses::Places;
use xctl::object::{Btf, BtfExt, ObjectFile};

use crate::Scratch;
use crate::libbpf::{Theirs, libbpf, may_prepare};

/// A relocation and what we make of it.
#[derive(Clone, Debug)]
pub struct Ours {
    pub program: String,
    pub kind: u32,
    pub value: Option<u64>,
    pub outcome: Outcome,
}

/// A program's name, and its instructions as far as they are known.
pub type Code = Vec<(String, Vec<Option<Insn>>)>;

/// Every relocation of the programs that `loaded` is true for, and every program's code afterwards, where an instruction
/// that the ELF file relocates, and whose content nobody knows before loading, is `None`.
pub fn relocate(bytes: &[u8], target: &Btf, loaded: impl Fn(&str, &str) -> bool) -> (Vec<Ours>, Code) {
    let object = ObjectFile::parse(bytes).unwrap();
    let btf = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &btf).unwrap();
    let mut relocations = Relocations::new(bytes, &object, &btf, &ext, Some(target)).unwrap();
    let mut all = Vec::new();
    relocations
        .run::<(), _>(
            |program| loaded(program.name, program.section),
            |relocated| {
                all.push(Ours {
                    program: relocated.program.unwrap().name.to_owned(),
                    kind: relocated.relocation.kind,
                    value: relocated.resolution.as_ref().and_then(|resolution| resolution.value),
                    outcome: relocated.outcome.clone(),
                });
                Ok(())
            },
        )
        .unwrap();
    let places = Places::new(&object);
    let code = |program: &xctl::object::Program<'_>| {
        let addresses = places.of(program, &relocations).addresses;
        let unknown = |index: &usize| addresses.contains(index) || (*index > 0 && addresses.contains(&(*index - 1)));
        let insns = relocations.code(program).enumerate();
        insns.map(|(index, insn)| (!unknown(&index)).then_some(insn)).collect()
    };
    let code = object.programs.iter().map(|program| (program.name.to_owned(), code(program))).collect();
    (all, code)
}

/// Our result and libbpf's, instruction by instruction. Returns how many relocations were compared. libbpf searches all types
/// and, as when xctl loads the object, the part of them that it has to search: what it refuses, contradictions between
/// candidates included, must not depend on that.
pub fn compare(what: &str, bytes: &[u8], target: &Btf, btf: &Path) -> usize {
    if !may_prepare() {
        return 0;
    }
    let compared = compare_by(what, bytes, target, btf);
    if let Some(part) = searched(bytes, target) {
        let scratch = Scratch::new(&format!("part-{:?}", std::thread::current().id()));
        let by_part = compare_by(&format!("{what}, a part"), bytes, target, &scratch.file("part.btf", &part));
        assert_eq!(compared, by_part, "{what}");
    }
    compared
}

/// The part of the types that libbpf searches.
pub fn searched(bytes: &[u8], target: &Btf) -> Option<Vec<u8>> {
    let object = ObjectFile::parse(bytes).unwrap();
    let local = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &local).unwrap();
    Roots::of(&local, &ext).map(|roots| roots.within(target))
}

fn compare_by(what: &str, bytes: &[u8], target: &Btf, btf: &Path) -> usize {
    // libbpf computes shifts for the byte order of the machine that it runs on.
    let foreign = target.is_big_endian() != cfg!(target_endian = "big");
    let shifted: BTreeSet<String> = relocate(bytes, target, |_, _| foreign)
        .0
        .into_iter()
        .filter(|ours| ours.kind == RelocationKind::FieldLshiftU64 as u32)
        .map(|ours| ours.program)
        .collect();
    let by_default = |name: &str, section: &str| hook(section).autoload && !shifted.contains(name);
    let (all, _) = relocate(bytes, target, by_default);
    let refused: BTreeSet<String> =
        all.iter().filter(|r| matches!(r.outcome, Outcome::Refused(_))).map(|r| r.program.clone()).collect();
    let object = ObjectFile::parse(bytes).unwrap();
    let programs = object.programs.iter().filter(|program| by_default(program.name, program.section));
    let defaults: BTreeSet<&str> = programs.map(|program| program.name).collect();
    // What we refuse libbpf must refuse. With a whole kernel's types each takes it a while: then by default a few do.
    let all_of_them = target.len() < 10_000 || env::var_os("XCTL_ALL_PAIRS").is_some();
    for program in refused.iter().take(if all_of_them { usize::MAX } else { 2 }) {
        let result = libbpf(bytes, btf, |name| name == program);
        assert!(result.is_err(), "{what}: libbpf relocates {program}, we refuse: {all:?}");
    }
    let taken = |name: &str| defaults.contains(name) && !refused.contains(name);
    let (all, ours) = relocate(bytes, target, |name, _| taken(name));
    let still: Vec<_> = all.iter().filter(|r| matches!(r.outcome, Outcome::Refused(_))).collect();
    assert!(still.is_empty(), "{what}: {still:?}");
    let theirs = libbpf(bytes, btf, taken).unwrap_or_else(|error| panic!("{what}: libbpf refuses: {error}"));
    compare_whole(what, bytes, target, &theirs, taken);
    // Theirs have functions of .text among them.
    for (name, insns) in &ours {
        let (_, other) =
            theirs.programs.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{what}: no {name}"));
        if !taken(name) {
            continue;
        }
        for (index, (one, two)) in insns.iter().zip(other).enumerate() {
            let Some(one) = one else { continue };
            assert_eq!(one, two, "{what}: {name}, instruction {index}: {} and {}", one.text(None), two.text(None));
        }
        assert!(insns.len() <= other.len(), "{what}: {name}");
    }
    all.iter().filter(|r| r.outcome != Outcome::Skipped).count()
}

/// Whole programs, with the functions that they call and the descriptors of their maps.
pub fn compare_whole(what: &str, bytes: &[u8], target: &Btf, theirs: &Theirs, taken: impl Fn(&str) -> bool) {
    let object = ObjectFile::parse(bytes).unwrap();
    let btf = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &btf).unwrap();
    let mut code = Relocations::new(bytes, &object, &btf, &ext, Some(target)).unwrap();
    code.run::<(), _>(|program| program.section == ".text" || taken(program.name), |_| Ok(())).unwrap();
    for program in object.programs.iter().filter(|program| taken(program.name)) {
        let image = Image::of(program, &object, &code);
        let (_, insns) = theirs.programs.iter().find(|(name, _)| name == program.name).unwrap();
        let difference = image.difference(insns, |map| theirs.maps.get(map).copied().map(MapThere::Descriptor));
        assert_eq!(difference, None, "{what}: {}", program.name);
    }
}

/// Every relocation comes to the same with both, and the code too. Returns how many.
pub fn same(what: &str, bytes: &[u8], one: &Btf, two: &Btf) -> usize {
    let ((all, code), (others, other_code)) = (relocate(bytes, one, |_, _| true), relocate(bytes, two, |_, _| true));
    for (ours, theirs) in all.iter().zip(&others) {
        let same = (ours.value, discriminant(&ours.outcome)) == (theirs.value, discriminant(&theirs.outcome));
        assert!(same, "{what}: {ours:?} and {theirs:?}");
    }
    assert_eq!(all.len(), others.len(), "{what}");
    assert!(code == other_code, "{what}: the code differs");
    all.len()
}

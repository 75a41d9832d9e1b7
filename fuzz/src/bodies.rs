//! What each fuzz target does with its bytes. tests/seeds.rs does the same with the seeds and with what fuzzing found.

use crate::object::cut::{Asked, cut};
use crate::object::facts::Facts;
use crate::object::relo::reach::reachable;
use crate::object::relo::{Relocations, type_name};
use crate::object::uses::Places;
use crate::object::{Btf, BtfExt, ObjectFile, second_opinion};

/// Relocations that are asked about.
const MOST: usize = 256;

/// Bytes at a multiple of 8, as those of a file that was read.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))).collect()
}

/// Reads an object file twice, and all that it says about itself.
pub fn elf(bytes: &[u8]) {
    with_object(bytes, None);
}

/// Reads BTF, and asks every type everything.
pub fn btf(bytes: &[u8]) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    let _ = btf.cycle();
    for id in btf.ids().take(4096) {
        let _ = (btf.size_of(id), btf.resolve(id), type_name(&btf, id), btf.find_member(id, "a"));
        let _ = (btf.members(id).count(), btf.enumerators(id).count(), btf.section_vars(id).count());
    }
}

/// Two bytes of length, BTF of that many bytes, and `.BTF.ext`.
pub fn btf_ext(bytes: &[u8]) {
    let Some((types, ext)) = split(bytes) else { return };
    let Ok(btf) = Btf::parse(types) else { return };
    let _ = BtfExt::parse(ext, &btf);
}

/// Two bytes of length, an object file of that many bytes, and the BTF to resolve its relocations against.
pub fn resolver(bytes: &[u8]) {
    let Some((object, target)) = split(bytes) else { return };
    let Ok(target) = Btf::parse(target) else { return };
    with_object(object, Some(&target));
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

fn with_object(bytes: &[u8], target: Option<&Btf>) {
    let words = aligned(bytes);
    let whole: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let bytes = whole.get(..bytes.len()).unwrap_or_default();
    let Ok(object) = ObjectFile::parse(bytes) else { return };
    if second_opinion(bytes, &object).is_err() {
        return;
    }
    let Some(Ok(btf)) = object.btf.map(Btf::parse) else { return };
    let Ok(ext) = BtfExt::parse(object.btf_ext.unwrap_or_default(), &btf) else { return };
    let Ok(mut code) = Relocations::new(bytes, &object, &btf, &ext, target) else { return };
    let _ = Facts::of(bytes, &object, Some(&btf), &code);
    let mut left = MOST;
    let _ = code.run(
        |_| true,
        |relocated| {
            let _ = (relocated.before.text(), relocated.after.text());
            if let (Some(resolution), Some(target)) = (&relocated.resolution, target) {
                let _ = resolution.local.text(&btf, resolution.kind);
                let _ = resolution.target.as_ref().map(|spec| spec.text(target, resolution.kind));
            }
            left -= 1;
            if left == 0 { Err(()) } else { Ok(()) }
        },
    );
    if let Some(target) = target {
        let _ = cut(bytes, target, &Asked::default());
    }
    let places = Places::new(&object);
    for function in object.programs.iter().chain(&object.subprograms).take(16) {
        let insns: Vec<_> = code.code(function).collect();
        let uses = places.of(function, &code);
        let _ = reachable(&insns, |index| !uses.addresses.contains(&index));
    }
}

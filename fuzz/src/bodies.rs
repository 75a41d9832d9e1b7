//! What each fuzz target does with its bytes. tests/seeds.rs does the same with the seeds and with what fuzzing found.

use std::io::{Cursor, sink};

use crate::commands::inspect;
use crate::kernel::source::MAX_FILE;
use crate::object::btf_ext::CoreRelocation;
use crate::object::cut::{Asked, cut};
use crate::object::elf::section_of_file;
use crate::object::image::Image;
use crate::object::relo::Resolver;
use crate::object::relo::type_name;
use crate::object::{Btf, BtfExt, ObjectFile, Relocations, TypeId, cdef};

/// Relocations that are asked about one by one.
const MOST: usize = 1024;

/// What a loader would ask, besides what the object does: in the seeds there are such types.
const ASKED: Asked<'_> = Asked {
    structs: &["fields", "sock"],
    fields: &[("fields", "a"), ("sock", "c.st")],
    functions: &["f", "tcp_sendmsg"],
};

/// Reads an object file twice, all that it says about itself, and what its programs must be.
pub fn elf(bytes: &[u8]) {
    let _ = section_of_file(Cursor::new(bytes), ".BTF", MAX_FILE);
    let _ = inspect_both(bytes, None);
}

/// Reads BTF, and asks every type everything.
pub fn btf(bytes: &[u8]) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    let _ = btf.cycle();
    for id in btf.ids().take(4096) {
        let _ = (btf.size_of(id), btf.resolve(id), type_name(&btf, id), btf.find_member(id, "a"));
        let _ = (btf.members(id).count(), btf.enumerators(id).count(), btf.section_vars(id).count());
    }
    let _ = (btf.tracepoint_args("it"), btf.function_args("it"), btf.field("sock", "c.st"));
}

/// Four bytes of length, BTF of that many bytes, and `.BTF.ext`.
pub fn btf_ext(bytes: &[u8]) {
    let Some((types, ext)) = split(bytes) else { return };
    let Ok(btf) = Btf::parse(types) else { return };
    let _ = BtfExt::parse(ext, &btf);
}

/// Four bytes of length, an object file of that many bytes, and the BTF to resolve its relocations against.
pub fn resolver(bytes: &[u8]) {
    let Some((object, target)) = split(bytes) else { return };
    let Ok(target) = Btf::parse(target) else { return };
    if inspect_both(object, Some(&target)).is_some() {
        let _ = cut(object, &target, &ASKED);
    }
}

/// Four bytes of length and the object's BTF, the same of the target's, and accesses, each on a line: the type's number, a
/// space, the kind as a letter from `a`, the access string.
pub fn accesses(bytes: &[u8]) {
    let Some((local, (target, accesses))) = split(bytes).and_then(|(local, rest)| Some((local, split(rest)?))) else {
        return;
    };
    let (Ok(local), Ok(target)) = (Btf::parse(local), Btf::parse(target)) else { return };
    // Of types that contain themselves nobody is asked.
    if local.cycle().is_some() {
        return;
    }
    let relocation = |line: &'_ [u8]| {
        let (root, question) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        let (kind, access) = question.split_at_checked(1)?;
        let root = root.parse().ok().filter(|root| *root as usize <= local.len() && *root > 0)?;
        Some((TypeId(root), u32::from(kind.bytes().next()?.wrapping_sub(b'a')), access.to_owned()))
    };
    let all: Vec<_> = accesses.split(|byte| *byte == b'\n').take(MOST).filter_map(relocation).collect();
    let mut resolver = Resolver::new(&local, &target, all.iter().map(|(root, ..)| *root), Default::default());
    for (root, kind, access) in &all {
        let relocation = CoreRelocation { offset: 0, root: *root, access, kind: *kind };
        let _ = Resolver::describe(&local, &relocation);
        if let Ok(resolution) = resolver.resolve(&relocation, true) {
            let _ = resolution.local.text(&local, resolution.kind);
            let _ = resolution.target.as_ref().map(|spec| spec.text(&target, resolution.kind));
        }
    }
}

/// Four bytes of length, a list of types of that many bytes, and the BTF to define them from.
pub fn definitions(bytes: &[u8]) {
    let Some((list, types)) = split(bytes) else { return };
    let (Ok(list), Ok(btf)) = (std::str::from_utf8(list), Btf::parse(types)) else { return };
    let Ok(entries) = cdef::parse_list(list) else { return };
    let _ = cdef::header(&btf, &entries, list);
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The bytes at a multiple of 8 in memory, as those of a file that was read.
fn aligned<T>(bytes: &[u8], then: impl FnOnce(&[u8]) -> T) -> T {
    let mut room = vec![0; bytes.len() + 7];
    let start = room.as_ptr().align_offset(8).min(7);
    let Some(there) = room.get_mut(start..start + bytes.len()) else { unreachable!("there is room") };
    there.copy_from_slice(bytes);
    then(there)
}

/// `xctl inspect` in both forms, and the programs as they must reach the kernel; `None` if the object was refused before.
fn inspect_both(bytes: &[u8], target: Option<&Btf>) -> Option<()> {
    aligned(bytes, |bytes| {
        let given = || Ok(target.map(|target| (target.clone(), "target".to_owned())));
        let _ = inspect::report(bytes, "object", given, None, true, &mut sink());
        let _ = inspect::report(bytes, "object", given, None, false, &mut sink());
        let object = ObjectFile::parse(bytes).ok()?;
        let btf = Btf::parse(object.btf?).ok().filter(|btf| btf.cycle().is_none())?;
        let ext = BtfExt::parse(object.btf_ext.unwrap_or_default(), &btf).ok()?;
        let mut code = Relocations::new(bytes, &object, &btf, &ext, target).ok()?;
        let _: Result<(), ()> = code.run(|_| true, |_| Ok(()));
        for program in object.programs.iter().take(16) {
            let image = Image::of(program, &object, &code);
            let _ = image.difference(&[], |_| None);
        }
        Some(())
    })
}

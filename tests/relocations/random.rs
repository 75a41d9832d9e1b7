//! Random accesses to the types of one kernel, resolved on another.

use std::env;

use xctl::object::btf_ext::CoreRelocation;
use xctl::object::insn::Insn;
use xctl::object::relo::{Outcome, RelocationKind, Resolver};
use xctl::object::{Btf, Kind, TypeId};

use crate::compared::{compare, relocate};
use crate::kernels::kernels;
use crate::libbpf::may_prepare;
use crate::objects::elf;

/// A generator of numbers that look random and are the same every time.
pub struct Noise(pub u64);

impl Noise {
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as u32) % limit.max(1)
    }
}

/// An access to something in a kernel's types: root type, access string, kind.
pub fn any_access(btf: &Btf, noise: &mut Noise) -> Option<(TypeId, String, RelocationKind)> {
    let root = TypeId(1 + noise.below(btf.len() as u32));
    if btf.name(root).is_empty() {
        return None;
    }
    let resolved = btf.resolve(root);
    let kind = RelocationKind::ALL[noise.below(13) as usize];
    if kind.is_type() {
        let sensible = matches!(
            btf.kind(root),
            Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Typedef
                | Kind::Int
                | Kind::Fwd
                | Kind::Float
        );
        return sensible.then(|| (root, "0".to_owned(), kind));
    }
    if kind.is_enumval() {
        let count = btf.entry_count(resolved);
        let known = btf.kind(resolved).is_enum() && count > 0;
        return known.then(|| (root, noise.below(count).to_string(), kind));
    }
    if !btf.kind(resolved).is_composite() {
        return None;
    }
    let mut access = if noise.below(20) == 0 { noise.below(4).to_string() } else { "0".to_owned() };
    let mut id = resolved;
    for _ in 0..12 {
        id = btf.resolve(id);
        let index = if let Some(array) = btf.array(id) {
            id = array.elem;
            noise.below(array.nelems.max(1))
        } else {
            let count = btf.entry_count(id);
            if !btf.kind(id).is_composite() || count == 0 {
                break;
            }
            let index = noise.below(count);
            id = btf.member_as_written(id, index)?.ty;
            index
        };
        access.push_str(&format!(":{index}"));
        if noise.below(3) == 0 {
            break;
        }
    }
    Some((root, access, kind))
}

/// First and last constant of every enum of 64 bits: too few to come by chance, and clang makes none before version 15.
pub fn wide_constants(btf: &Btf) -> Vec<(TypeId, String, RelocationKind)> {
    let wide = btf.ids().filter(|id| btf.kind(*id) == Kind::Enum64 && !btf.name(*id).is_empty());
    let constants = wide.flat_map(|id| [(id, 0), (id, btf.entry_count(id).saturating_sub(1))]);
    let kinds = [RelocationKind::EnumvalValue, RelocationKind::EnumvalExists];
    constants.flat_map(|(id, index)| kinds.map(|kind| (id, index.to_string(), kind))).collect()
}

/// An ELF object with the types of `btf`, and a program of one or two instructions for each access.
pub fn object_of(btf: &Btf, accesses: &[(TypeId, String, RelocationKind)], noise: &mut Noise) -> Vec<u8> {
    const HEADER: usize = 24;
    // The kernel's own BTF has its strings last, so that more can follow.
    let mut types = btf.bytes().to_vec();
    let section_name = btf.strings_len();
    types.extend_from_slice(b"socket\0");
    let (mut code, mut records, mut symbols) = (Vec::new(), Vec::new(), vec![0u8; 24]);
    let mut names = b"\0".to_vec();
    for (number, (root, access, kind)) in accesses.iter().enumerate() {
        let at = types.len() - types_start(btf);
        types.extend_from_slice(access.as_bytes());
        types.push(0);
        let relocation = CoreRelocation { offset: 0, root: *root, access, kind: *kind as u32 };
        let local = Resolver::describe(btf, &relocation).map_or(0, |(.., value)| value);
        let start = code.len();
        let mut insn = |code_: u8, off: i16, imm: i32| {
            code.extend_from_slice(
                &Insn { code: code_, dst: 0, src: u8::from(code_ & 7 == 1), off, imm }.encode(false),
            );
        };
        let load = *kind == RelocationKind::FieldByteOffset && noise.below(2) == 0;
        match (load, i16::try_from(local), i32::try_from(local as i64)) {
            (true, Ok(offset), _) => insn([0x61, 0x69, 0x71, 0x79][load_size(btf, *root, access, noise)], offset, 0),
            (_, _, Ok(value)) => insn(0xb7, 0, value),
            _ => {
                insn(0x18, 0, local as i32);
                insn(0, 0, (local >> 32) as i32);
            }
        }
        insn(0x95, 0, 0);
        for word in [start as u32, root.0, at as u32, *kind as u32] {
            records.extend_from_slice(&word.to_le_bytes());
        }
        symbols.extend_from_slice(&(names.len() as u32).to_le_bytes());
        symbols.extend_from_slice(&[0x12, 0, 1, 0]); // a global function in section 1
        symbols.extend_from_slice(&(start as u64).to_le_bytes());
        symbols.extend_from_slice(&((code.len() - start) as u64).to_le_bytes());
        names.extend_from_slice(format!("p{number}\0").as_bytes());
    }
    let externs = (types.len() - types_start(btf)) as u32;
    types.extend_from_slice(b".ksyms\0");
    rename_datasecs(btf, &mut types, externs);
    let strings = (types.len() - types_start(btf)) as u32;
    types[20..24].copy_from_slice(&strings.to_le_bytes());
    let mut ext = vec![0x9f, 0xeb, 1, 0, 32, 0, 0, 0];
    let stretch = 4 + 8 + records.len() as u32;
    for word in [0, 0, 0, 0, 0, stretch, 16, section_name as u32, accesses.len() as u32] {
        ext.extend_from_slice(&word.to_le_bytes());
    }
    ext.extend_from_slice(&records);
    assert!(types.len() > HEADER);
    elf(&[
        ("socket", 1, 6, 0, 0, &code),
        (".BTF", 1, 0, 0, 0, &types),
        (".BTF.ext", 1, 0, 0, 0, &ext),
        ("license", 1, 3, 0, 0, b"GPL\0"),
        (".symtab", 2, 0, 6, 24, &symbols),
        (".strtab", 3, 0, 0, 0, &names),
    ])
}

/// libbpf looks for the sections that BTF describes, and a kernel's own are not in the object. It does not look for those
/// of variables that are elsewhere.
pub fn rename_datasecs(btf: &Btf, types: &mut [u8], name: u32) {
    let mut at = 24;
    for id in btf.ids() {
        let info = u32::from_le_bytes(types[at + 4..at + 8].try_into().unwrap());
        let entries = (info & 0x00ff_ffff) as usize;
        let tail = match btf.kind(id) {
            Kind::Int | Kind::Var | Kind::DeclTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => entries * 12,
            Kind::Enum | Kind::FuncProto => entries * 8,
            _ => 0,
        };
        if btf.kind(id) == Kind::Datasec {
            types[at..at + 4].copy_from_slice(&name.to_le_bytes());
        }
        at += 12 + tail;
    }
}

/// Where the strings begin in the data.
pub fn types_start(btf: &Btf) -> usize {
    btf.bytes().len() - btf.strings_len()
}

/// Index of the load instruction for a field, or sometimes of another.
pub fn load_size(btf: &Btf, root: TypeId, access: &str, noise: &mut Noise) -> usize {
    let mut id = root;
    for index in access.split(':').skip(1) {
        id = btf.resolve(id);
        id = match btf.array(id) {
            Some(array) => array.elem,
            None => btf.member_as_written(id, index.parse().unwrap()).unwrap().ty,
        };
    }
    match btf.size_of(id) {
        _ if noise.below(10) == 0 => noise.below(4) as usize,
        Some(2) => 1,
        Some(1) => 2,
        Some(8) => 3,
        _ => 0,
    }
}

/// `XCTL_RANDOM_ACCESSES=2000 XCTL_ALL_PAIRS=1` does more of it.
#[test]
fn random_accesses_to_one_kernel_come_out_on_another_as_by_libbpf() {
    let accesses: usize = env::var("XCTL_RANDOM_ACCESSES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    if !may_prepare() {
        return;
    }
    let all_pairs = env::var_os("XCTL_ALL_PAIRS").is_some();
    let mut of_wide_enums = 0;
    for (number, (from, _, local)) in kernels().iter().enumerate() {
        for (other, (to, path, target)) in kernels().iter().enumerate() {
            // Each takes libbpf about a second: by default every kernel to the next one.
            if !all_pairs && other != (number + 1) % kernels().len() {
                continue;
            }
            let mut noise = Noise(from.len() as u64 * 31 + to.len() as u64);
            let mut chosen = Vec::new();
            while chosen.len() < accesses {
                chosen.extend(any_access(local, &mut noise));
            }
            let wide = wide_constants(local);
            let constants = wide.len();
            of_wide_enums += constants;
            chosen.extend(wide);
            let bytes = object_of(local, &chosen, &mut noise);
            let (all, _) = relocate(&bytes, target, |_, _| true);
            for ours in &all {
                *seen
                    .entry(match ours.outcome {
                        Outcome::Applied => "applied",
                        Outcome::Poisoned(_) => "poisoned",
                        Outcome::Refused(_) => "refused",
                        Outcome::Skipped | Outcome::Unresolved => "skipped",
                    })
                    .or_default() += 1;
            }
            let compared = compare(&format!("accesses to {from} on {to}"), &bytes, target, path);
            println!("{from} on {to}: {compared} of {} as by libbpf, {constants} of 64-bit enums", all.len());
        }
    }
    println!("{seen:?}");
    assert!(of_wide_enums > 0 || kernels().len() < 2, "no kernel has a 64-bit enum");
}

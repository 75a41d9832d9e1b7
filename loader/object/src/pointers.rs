//! Addresses in variables. The compiler leaves a relocation for each, such as `R_BPF_64_ABS64`. libbpf applies only those of
//! instructions, maps and struct_ops (`bpf_object__elf_collect()`), and copies all other sections as they are in the file.

use super::elf::{ObjectFile, Relocation};
use super::uses::{ARENA, Places, is_data};

/// Bytes of an `R_BPF_64_ABS32`, which is relocation type 3. The other types that a compiler leaves in data have 8 bytes.
const ABS32: (u32, usize) = (3, 4);

/// The addresses in variables, which programs read as the file has them. A sentence about each, in the order of the file.
pub fn not_relocated<'o>(bytes: &'o [u8], object: &'o ObjectFile<'_>) -> impl Iterator<Item = String> + 'o {
    let places = Places::new(object);
    object.relocations.iter().filter_map(move |relocation| told(bytes, object, &places, relocation))
}

/// `section .rodata, byte 16 (variable names): libbpf does not relocate this address in section .rodata.str1.1, programs read
/// 0x4`
fn told(bytes: &[u8], object: &ObjectFile<'_>, places: &Places<'_, '_>, relocation: &Relocation) -> Option<String> {
    let section = object.sections.get(relocation.section)?;
    if !is_data(section) && section.name != ARENA {
        return None;
    }
    let offset = relocation.offset;
    let variable = u16::try_from(relocation.section).ok().and_then(|home| places.named_at(home, offset));
    let variable = variable.map_or_else(String::new, |variable| format!(" (variable {})", variable.name));
    let symbol = object.symbols.get(relocation.symbol as usize)?;
    let of = match (symbol.name, symbol.home().and_then(|home| object.sections.get(home))) {
        ("", Some(home)) => format!("address in section {}", home.name),
        (name, _) => format!("address of {name}"),
    };
    let size = if relocation.relocation_type == ABS32.0 { ABS32.1 } else { 8 };
    let start = usize::try_from(offset).ok()?;
    let stored = section.bytes(bytes).get(start..start.checked_add(size)?).unwrap_or_default();
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    let stored = match object.is_little_endian {
        true => stored.iter().rev().fold(0, add),
        false => stored.iter().fold(0, add),
    };
    let place = format!("section {}, byte {offset}{variable}", section.name);
    Some(format!("{place}: libbpf does not relocate this {of}, programs read {stored:#x}"))
}

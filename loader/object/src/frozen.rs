//! Constants in `.rodata`, which the verifier reads.

use super::elf::{ObjectFile, Program, Section};
use super::known::Known;
use super::relo::Relocations;
use super::relo::reach::{Address, Load};
use super::uses::{Places, is_data, place_of};

/// Constants in `.rodata`, as the file has them. libbpf freezes these maps before it loads programs, and the verifier
/// then treats a load from a constant address in such a map as a constant (`bpf_map_direct_read`).
pub(super) struct Frozen<'f, 'r, 'a> {
    bytes: &'f [u8],
    object: &'f ObjectFile<'a>,
    places: &'f Places<'f, 'a>,
    code: &'f Relocations<'r, 'a>,
    /// Whether the verifier does so.
    is_read: bool,
}

impl<'f, 'r, 'a> Frozen<'f, 'r, 'a> {
    pub(super) fn new(
        bytes: &'f [u8],
        object: &'f ObjectFile<'a>,
        places: &'f Places<'f, 'a>,
        code: &'f Relocations<'r, 'a>,
        known: &Known,
    ) -> Self {
        Frozen { bytes, object, places, code, is_read: known.reads_frozen_maps() }
    }

    /// The value of the 64-bit immediate load at this index of a function.
    pub(super) fn load(&self, function: &Program<'_>, index: usize) -> Load {
        let (section, offset) = place_of(function, index);
        let Some(relocation) = self.places.relocation_at(section, offset) else { return Load::Number };
        let insn = usize::try_from(offset).ok().and_then(|offset| self.code.insn(section, offset));
        let symbol = self.object.symbols.get(relocation.symbol as usize);
        let (Some(symbol), Some(insn)) = (symbol, insn) else { return Load::Unknown };
        let home = symbol.home().and_then(|home| self.object.sections.get(home));
        let is_frozen = |home: &Section<'_>| self.is_read && is_data(home) && home.name.starts_with(".rodata");
        match home.filter(|home| is_frozen(home)) {
            Some(_) => Load::Address(Address {
                section: symbol.section,
                offset: symbol.value.wrapping_add(i64::from(insn.imm) as u64),
            }),
            None => Load::Unknown,
        }
    }

    /// The number of `size` bytes at an address.
    pub(super) fn read(&self, address: Address, size: u32) -> Option<u64> {
        let section = self.object.sections.get(usize::from(address.section))?;
        let start = usize::try_from(address.offset).ok()?;
        let bytes = section.bytes(self.bytes).get(start..start.checked_add(size as usize)?)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(match self.object.is_little_endian {
            true => bytes.iter().rev().fold(0, add),
            false => bytes.iter().fold(0, add),
        })
    }
}

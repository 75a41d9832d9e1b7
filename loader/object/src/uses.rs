//! The calls and accesses of a function: helpers, kernel functions, other functions, maps, variables.

use crate::sort;
use std::collections::BTreeSet;

use super::elf::{INSN_SIZE, ObjectFile, Program, Relocation, Section, Symbol};
use super::insn::{CALL, Insn, PSEUDO_CALL, PSEUDO_KFUNC_CALL};
use super::relo::Relocations;

/// Where a function or an instruction begins: its section and byte offset.
pub type Place = (usize, u64);

/// The place of a function's instruction in its section.
#[must_use]
pub fn place_of(function: &Program<'_>, index: usize) -> Place {
    (function.section_index, function.offset + index as u64 * INSN_SIZE)
}

const STT_OBJECT: u8 = 1;

/// The section of variables that live in an arena.
pub(super) const ARENA: &str = ".addr_space.1";

/// The calls and accesses of a function. The functions that it calls are named, not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses<'a> {
    /// Helpers, by number.
    pub helpers: BTreeSet<i32>,
    /// Kernel functions, by name.
    pub kfuncs: BTreeSet<&'a str>,
    /// The instructions that call functions of the same object or take their address, in order. Each has its callee, as
    /// section and byte offset.
    pub called_at: Vec<(usize, (usize, u64))>,
    /// Maps, by name.
    pub maps: BTreeSet<&'a str>,
    /// Global variables, by name.
    pub variables: BTreeSet<&'a str>,
    /// Variables of the kernel or its configuration, by name.
    pub externs: BTreeSet<&'a str>,
    /// Indices of the instructions to which a relocation of the ELF file gives an address. The number in such an instruction
    /// means nothing yet.
    pub addresses: BTreeSet<usize>,
}

/// Computes the [`Uses`] of all functions of an object.
#[derive(Debug)]
pub struct Places<'o, 'a> {
    object: &'o ObjectFile<'a>,
    /// Indices of relocations, by section and offset.
    by_place: Vec<&'o Relocation>,
    /// Symbols of maps and variables that have a name, by section and offset.
    named: Vec<&'o Symbol<'a>>,
}

impl<'o, 'a> Places<'o, 'a> {
    /// Sorts the object's relocations and symbols.
    pub fn new(object: &'o ObjectFile<'a>) -> Self {
        let mut by_place: Vec<&Relocation> = object.relocations.iter().collect();
        sort::by_key(&mut by_place, |relocation| (relocation.section, relocation.offset));
        let mut named: Vec<&Symbol<'a>> =
            object.symbols.iter().filter(|symbol| symbol.symbol_type == STT_OBJECT && symbol.section != 0).collect();
        sort::by_key(&mut named, |symbol| (symbol.section, symbol.value));
        Places { object, by_place, named }
    }

    /// The relocation at this place; `None` if there is none.
    pub(super) fn relocation_at(&self, section: usize, offset: u64) -> Option<&'o Relocation> {
        let found = self.by_place.binary_search_by_key(&(section, offset), |r| (r.section, r.offset)).ok()?;
        self.by_place.get(found).copied()
    }

    /// The map that begins at byte `offset` of a section.
    pub(super) fn map_at(&self, section: u16, offset: u64) -> Option<&'a str> {
        self.named_at(section, offset).filter(|symbol| symbol.value == offset).map(|symbol| symbol.name)
    }

    /// The map or variable at byte `offset` of a section.
    pub(super) fn named_at(&self, section: u16, offset: u64) -> Option<&'o Symbol<'a>> {
        let after = self.named.partition_point(|symbol| (symbol.section, symbol.value) <= (section, offset));
        let symbol = self.named.get(after.checked_sub(1)?)?;
        let inside = symbol.section == section && (offset - symbol.value < symbol.size || offset == symbol.value);
        inside.then_some(*symbol)
    }

    /// The calls and accesses of a function.
    pub fn of(&self, function: &Program<'_>, code: &Relocations<'_, '_>) -> Uses<'a> {
        let mut uses = Uses::default();
        let mut skip = false;
        let first = (function.section_index, function.offset);
        let mut relocations = &self.by_place[self.by_place.partition_point(|r| (r.section, r.offset) < first)..];
        for (index, insn) in code.code(function).enumerate() {
            if std::mem::take(&mut skip) {
                continue;
            }
            skip = insn.is_ldimm64();
            let offset = function.offset + index as u64 * INSN_SIZE;
            let place = (function.section_index, offset);
            let relocation = loop {
                match relocations {
                    [next, rest @ ..] if (next.section, next.offset) < place => relocations = rest,
                    [next, ..] => break Some(*next).filter(|next| (next.section, next.offset) == place),
                    [] => break None,
                }
            };
            if relocation.is_some() {
                uses.addresses.insert(index);
            }
            let symbol = relocation.and_then(|relocation| self.object.symbols.get(relocation.symbol as usize));
            match (insn.code == CALL, symbol) {
                (true, Some(symbol)) if symbol.section == 0 => {
                    uses.kfuncs.insert(symbol.name);
                }
                (true, Some(symbol)) => {
                    // The immediate counts instructions from the one after the symbol's.
                    let to = symbol.value as i64 / INSN_SIZE as i64 + i64::from(insn.imm) + 1;
                    uses.calls(index, symbol.section.into(), to);
                }
                (true, None) => match insn.src {
                    0 if insn != Insn::POISON => {
                        uses.helpers.insert(insn.imm);
                    }
                    PSEUDO_CALL => {
                        let to = (offset / INSN_SIZE) as i64 + i64::from(insn.imm) + 1;
                        uses.calls(index, function.section_index, to);
                    }
                    PSEUDO_KFUNC_CALL => {
                        uses.kfuncs.insert("(a kernel function by number)");
                    }
                    _ => {}
                },
                (false, Some(symbol)) => self.address(index, insn, symbol, &mut uses),
                (false, None) => {}
            }
        }
        uses
    }

    /// Handles a 64-bit immediate load of an address.
    fn address(&self, index: usize, insn: Insn, symbol: &'o Symbol<'a>, uses: &mut Uses<'a>) {
        if symbol.section == 0 {
            uses.externs.insert(symbol.name);
            return;
        }
        let Some(section) = symbol.home().and_then(|home| self.object.sections.get(home)) else { return };
        let offset = symbol.value.wrapping_add(i64::from(insn.imm) as u64);
        if section.is_executable() {
            uses.calls(index, symbol.section.into(), (offset / INSN_SIZE) as i64);
            return;
        }
        let name = self.named_at(symbol.section, offset).map_or(section.name, |symbol| symbol.name);
        if section.name == ".maps" {
            uses.maps.insert(name);
        } else {
            uses.variables.insert(name);
        }
    }

    /// Global variables: the section and the symbol of each, in the order of the file.
    pub fn variables(&self) -> impl Iterator<Item = (&'o Section<'a>, &'o Symbol<'a>)> {
        self.named.iter().filter_map(|symbol| {
            let section = self.object.sections.get(symbol.home()?)?;
            (is_data(section) || section.name == ARENA).then_some((section, *symbol))
        })
    }
}

impl Uses<'_> {
    fn calls(&mut self, index: usize, section: usize, insn: i64) {
        if let Ok(insn) = u64::try_from(insn) {
            let place = (section, insn.saturating_mul(INSN_SIZE));
            push(&mut self.called_at, (index, place));
        }
    }
}

/// Append to a list. The list first reserves one place: there is a list for each function, and most hold one value.
pub(super) fn push<T>(list: &mut Vec<T>, value: T) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
    list.push(value);
}

/// True for sections of variables, from which libbpf makes maps.
pub fn is_data(section: &Section<'_>) -> bool {
    [".data", ".rodata", ".bss"]
        .iter()
        .any(|kind| section.name.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

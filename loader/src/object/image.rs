//! What a program must be when it reaches the kernel: its code after CO-RE relocation, the functions that it calls behind it,
//! and in each place what the relocations of the ELF file put there.
//!
//! libbpf (src/libbpf.c: `bpf_object__reloc_code`, `bpf_object__relocate_data`, `bpf_object__sanitize_prog`) does the same;
//! this is our own reading of it, made to be compared with what libbpf handed over, instruction by instruction.

use std::collections::HashMap;

use super::elf::{INSN_SIZE, ObjectFile, Program, Relocation, Symbol};
use super::facts::MOST_FUNCTIONS;
use super::insn::{CALL, Insn, LEFT_OUT, PSEUDO_CALL};
use super::relo::Relocations;
use super::uses::{Places, is_data};

/// `src` of a 64-bit load of a map.
const PSEUDO_MAP_FD: u8 = 1;
/// `src` of a 64-bit load of an address in a map's value.
const PSEUDO_MAP_VALUE: u8 = 2;
/// `src` of a 64-bit load of a function's address.
const PSEUDO_FUNC: u8 = 4;

/// Helpers that newer kernels split in two, and what libbpf calls instead where the kernel has only the old one (before
/// 5.5): `bpf_probe_read_user`, `_kernel`, `_user_str`, `_kernel_str`.
const OLD_HELPERS: [(i32, i32); 4] = [(112, 4), (113, 4), (114, 45), (115, 45)];

/// What became of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapThere {
    /// It was created: its descriptor.
    Descriptor(i32),
    /// It was left out: its number among the object's maps.
    LeftOut(usize),
}

/// An instruction, and why it is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    /// The object's own, or made by relocation.
    Exactly(Insn),
    /// A load of this map: the number is the map's descriptor.
    Map(Insn, String),
    /// The second half of such a load.
    Rest(Insn, String),
    /// Something that only the loader knows, of this name.
    Unknown(String),
}

/// A program as it must reach the kernel.
#[derive(Clone, Debug, Default)]
pub struct Image<'a> {
    /// Instruction by instruction: the function that it belongs to, its number there, what it must be.
    slots: Vec<(&'a str, usize, Slot)>,
}

/// The first instruction that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Counted from the beginning of the program.
    pub insn: usize,
    /// The function that it is in, and its number there.
    pub function: String,
    /// What the object, the BTF and the maps make of it.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// What it takes to lay a program out.
struct Layout<'o, 'r, 'a> {
    object: &'o ObjectFile<'a>,
    code: &'o Relocations<'r, 'a>,
    places: Places<'o, 'a>,
    slots: Vec<(&'a str, usize, Slot)>,
    /// Where the functions that it calls begin, by section and offset.
    placed: HashMap<(usize, u64), usize>,
}

impl<'a> Image<'a> {
    /// Lays out `program`. The relocations of it and of all functions in `.text` must have run.
    pub fn of(program: &Program<'a>, object: &ObjectFile<'a>, code: &Relocations<'_, 'a>) -> Self {
        let places = Places::new(object);
        let mut layout = Layout { object, code, places, slots: Vec::new(), placed: HashMap::new() };
        layout.add(program);
        layout.relocate(program, 0);
        Self { slots: layout.slots }
    }

    /// Number of instructions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The maps whose descriptors it holds.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter_map(|(.., slot)| match slot {
            Slot::Map(_, map) => Some(map.as_str()),
            _ => None,
        })
    }

    /// The whole program. `descriptor` tells a map's; what only the loader knows is left as zeros.
    #[cfg(test)]
    pub(crate) fn fill(&self, descriptor: impl Fn(&str) -> i32) -> Vec<Insn> {
        let insn = |slot: &Slot| match slot {
            Slot::Exactly(insn) | Slot::Rest(insn, _) => *insn,
            Slot::Map(load, map) => Insn { imm: descriptor(map), ..*load },
            Slot::Unknown(_) => Insn::EMPTY,
        };
        self.slots.iter().map(|(.., slot)| insn(slot)).collect()
    }

    /// Where `found` is not this image. `map` tells what became of one.
    pub fn difference(&self, found: &[Insn], map: impl Fn(&str) -> Option<MapThere>) -> Option<Difference> {
        let mut found_there = found.iter().copied();
        for (insn, (function, index, slot)) in self.slots.iter().enumerate() {
            let there = found_there.next();
            let (wanted, what) = match slot {
                Slot::Exactly(wanted) if there.is_some_and(|there| is(*wanted, there)) => continue,
                Slot::Exactly(wanted) => (Some(*wanted), String::new()),
                Slot::Map(insn, name) | Slot::Rest(insn, name) => match (map(name), slot) {
                    (Some(MapThere::LeftOut(number)), _) => {
                        (left_out(number), format!(", for map {name} was left out"))
                    }
                    (Some(MapThere::Descriptor(_)), Slot::Rest(..)) => (Some(*insn), String::new()),
                    (Some(MapThere::Descriptor(fd)), _) => {
                        (Some(Insn { imm: fd, ..*insn }), format!(", the descriptor of map {name}"))
                    }
                    (None, _) => (None, format!("the descriptor of map {name}, which there is not")),
                },
                Slot::Unknown(name) => (None, format!("the address of {name}, which only the loader knows")),
            };
            if wanted.is_some() && there == wanted {
                continue;
            }
            let expected = wanted.map_or(String::new(), shown) + &what;
            let found = there.map_or("nothing".to_owned(), shown);
            return Some(Difference { insn, function: format!("{function}:{index}"), expected, found });
        }
        let more = found_there.next()?;
        Some(Difference {
            insn: self.slots.len(),
            function: "behind the last function".to_owned(),
            expected: "nothing".to_owned(),
            found: shown(more),
        })
    }
}

/// Whether an instruction is the wanted one, or what libbpf documents that it makes of that on old kernels.
fn is(wanted: Insn, found: Insn) -> bool {
    let is_helper = wanted.code == CALL && wanted.src == 0;
    let old = OLD_HELPERS.iter().find(|(new, _)| is_helper && *new == wanted.imm);
    found == wanted || old.is_some_and(|(_, old)| found == Insn { imm: *old, ..wanted })
}

/// What libbpf makes of both halves of a load of a map that was left out (`poison_map_ldimm64`).
fn left_out(number: usize) -> Option<Insn> {
    let imm = LEFT_OUT.checked_add(i32::try_from(number).ok()?)?;
    Some(Insn { code: CALL, imm, ..Insn::EMPTY })
}

fn shown(insn: Insn) -> String {
    let bytes: Vec<String> =
        insn.encode(cfg!(target_endian = "big")).iter().map(|byte| format!("{byte:02x}")).collect();
    let text =
        if insn == Insn::EMPTY || insn.code == 0 { format!("second half, {}", insn.imm) } else { insn.text(None) };
    format!("{} ({text})", bytes.join(" "))
}

impl<'a> Layout<'_, '_, 'a> {
    /// Puts a function's code, as it is, behind what there is.
    fn add(&mut self, function: &Program<'a>) {
        let code = self.code.code(function).enumerate();
        self.slots.extend(code.map(|(index, insn)| (function.name, index, Slot::Exactly(insn))));
    }

    fn set(&mut self, at: usize, slot: Slot) {
        if let Some((.., old)) = self.slots.get_mut(at) {
            *old = slot;
        }
    }

    /// Does what the ELF file's relocations ask for in the function that begins at `start`.
    fn relocate(&mut self, function: &Program<'a>, start: usize) {
        let insns: Vec<Insn> = self.code.code(function).collect();
        let mut second = false;
        for (index, insn) in insns.iter().copied().enumerate() {
            if std::mem::replace(&mut second, false) {
                continue;
            }
            second = insn.is_ldimm64();
            let offset = function.offset + index as u64 * INSN_SIZE;
            let relocation = self.places.relocation_at(function.section_index, offset);
            let symbol = relocation.and_then(|relocation: &Relocation| self.symbol(relocation));
            let next = insns.get(index + 1).copied().unwrap_or(Insn::EMPTY);
            match (insn.code == CALL, symbol) {
                (_, Some(symbol)) if symbol.section == 0 => {
                    self.set(start + index, Slot::Unknown(symbol.name.to_owned()));
                }
                (true, Some(symbol)) => {
                    // The immediate counts instructions from the one after the symbol's.
                    let to = (symbol.value / INSN_SIZE) as i64 + i64::from(insn.imm) + 1;
                    self.call(start + index, insn, symbol.section.into(), to);
                }
                (true, None) if insn.src == PSEUDO_CALL => {
                    let to = (offset / INSN_SIZE) as i64 + i64::from(insn.imm) + 1;
                    self.call(start + index, insn, function.section_index, to);
                }
                (false, Some(symbol)) => self.address(start + index, insn, next, symbol),
                (_, None) => {}
            }
        }
    }

    fn symbol(&self, relocation: &Relocation) -> Option<Symbol<'a>> {
        self.object.symbols.get(relocation.symbol as usize).cloned()
    }

    /// A call, or a load of a function's address: the number is the distance from the next instruction.
    fn call(&mut self, at: usize, insn: Insn, section: usize, to: i64) {
        let offset = u64::try_from(to).ok().and_then(|to| to.checked_mul(INSN_SIZE));
        let function = offset.and_then(|offset| self.code.function_at(section, offset));
        let Some(function) = function.filter(|function| Some(function.offset) == offset) else {
            return self.set(at, Slot::Unknown("a function that the object has not".to_owned()));
        };
        let place = (function.section_index, function.offset);
        let begins = match self.placed.get(&place) {
            Some(begins) => *begins,
            None if self.placed.len() + 1 >= MOST_FUNCTIONS => {
                return self.set(at, Slot::Unknown("more functions than the kernel takes".to_owned()));
            }
            None => {
                let begins = self.slots.len();
                self.placed.insert(place, begins);
                self.add(function);
                self.relocate(function, begins);
                begins
            }
        };
        let distance = i32::try_from(begins as i64 - at as i64 - 1).unwrap_or(0);
        self.set(at, Slot::Exactly(Insn { imm: distance, ..insn }));
    }

    /// A 64-bit load of something's address.
    fn address(&mut self, at: usize, insn: Insn, next: Insn, symbol: Symbol<'a>) {
        let Some(section) = self.object.sections.get(usize::from(symbol.section)) else {
            return self.set(at, Slot::Unknown("a section that the object has not".to_owned()));
        };
        if section.is_executable() {
            let to = (symbol.value as i64).wrapping_add(insn.imm.into()) / INSN_SIZE as i64;
            return self.call(at, Insn { src: PSEUDO_FUNC, ..insn }, symbol.section.into(), to);
        }
        if section.name == ".maps" {
            let map = self.places.map_at(symbol.section, symbol.value).unwrap_or("(no map)");
            self.set(at, Slot::Map(Insn { src: PSEUDO_MAP_FD, ..insn }, map.to_owned()));
            return self.set(at + 1, Slot::Rest(next, map.to_owned()));
        }
        if !is_data(section) {
            return self.set(at, Slot::Unknown(section.name.to_owned()));
        }
        self.set(at, Slot::Map(Insn { src: PSEUDO_MAP_VALUE, ..insn }, section.name.to_owned()));
        let offset = insn.imm.wrapping_add(symbol.value as i32);
        self.set(at + 1, Slot::Rest(Insn { imm: offset, ..next }, section.name.to_owned()));
    }
}

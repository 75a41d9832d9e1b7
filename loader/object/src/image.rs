//! A program as it must reach the kernel. It consists of its code after CO-RE relocation, followed by the functions that it
//! calls. The relocations of the ELF file have filled in their values.
//!
//! libbpf does the same work (src/libbpf.c: `bpf_object__reloc_code`, `bpf_object__relocate_data`,
//! `bpf_object__sanitize_prog`). This module is our own reading of the rules. Its result is compared with the program that
//! libbpf handed over, instruction by instruction.

use std::collections::{BTreeMap, HashMap};

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

/// Helpers that newer kernels split in two, and the helpers that libbpf calls instead where the kernel has only the old one
/// (before 5.5): `bpf_probe_read_user`, `_kernel`, `_user_str`, `_kernel_str`.
const OLD_HELPERS: [(i32, i32); 4] = [(112, 4), (113, 4), (114, 45), (115, 45)];

/// The state of a map after loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapThere {
    /// The map was created and has this descriptor.
    Descriptor(i32),
    /// The map was left out and has this number among the object's maps.
    LeftOut(usize),
}

/// The origin of a value that the object does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    /// A load of this map: the immediate is the map's descriptor.
    Map(&'a str),
    /// The second half of a load of this map.
    Rest(&'a str),
    /// A value of this name that only the loader knows.
    Unknown(&'a str),
}

/// A program as it must reach the kernel.
#[derive(Clone, Debug, Default)]
pub struct Image<'a> {
    /// The instructions.
    insns: Vec<Insn>,
    /// The instructions whose values the object does not hold, by their numbers.
    values: BTreeMap<usize, Value<'a>>,
    /// The functions in their order: each one's first instruction, and its name.
    functions: Vec<(usize, &'a str)>,
}

/// The first instruction that differs from the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Counted from the beginning of the program.
    pub insn: usize,
    /// The name of the instruction's function, and the instruction's number there.
    pub function: String,
    /// The instruction that follows from the object, the BTF and the maps.
    pub expected: String,
    /// The instruction that was found.
    pub found: String,
}

/// The state of laying out a program.
struct Layout<'o, 'r, 'a> {
    object: &'o ObjectFile<'a>,
    code: &'o Relocations<'r, 'a>,
    places: Places<'o, 'a>,
    image: Image<'a>,
    /// The positions of the functions that the program calls, by section and offset.
    placed: HashMap<(usize, u64), usize>,
}

impl<'a> Image<'a> {
    /// Lays out `program`. Relocation of `program` and of all functions in `.text` must be complete.
    pub fn of(program: &Program<'a>, object: &ObjectFile<'a>, code: &Relocations<'_, 'a>) -> Self {
        let places = Places::new(object);
        let mut layout = Layout { object, code, places, image: Self::default(), placed: HashMap::new() };
        layout.add(program);
        layout.relocate(program, 0);
        layout.image.insns.shrink_to_fit();
        layout.image
    }

    /// Number of instructions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.insns.len()
    }

    /// True if there are no instructions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.insns.is_empty()
    }

    /// The maps whose descriptors the program holds.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.values.values().filter_map(|value| match value {
            Value::Map(map) => Some(*map),
            _ => None,
        })
    }

    /// The whole program. `descriptor` gives a map's descriptor. Values that only the loader knows are zeros.
    pub fn fill(&self, descriptor: impl Fn(&str) -> i32) -> Vec<Insn> {
        let insn = |(at, insn): (usize, &Insn)| match self.values.get(&at) {
            None | Some(Value::Rest(_)) => *insn,
            Some(Value::Map(map)) => Insn { imm: descriptor(map), ..*insn },
            Some(Value::Unknown(_)) => Insn::EMPTY,
        };
        self.insns.iter().enumerate().map(insn).collect()
    }

    /// The first place where `found` differs from this image. `map` gives a map's state.
    pub fn difference(&self, found: &[Insn], map: impl Fn(&str) -> Option<MapThere>) -> Option<Difference> {
        let mut found_there = found.iter().copied();
        for (at, insn) in self.insns.iter().copied().enumerate() {
            let there = found_there.next();
            let (wanted, what) = match self.values.get(&at) {
                None if there.is_some_and(|there| is(insn, there)) => continue,
                None => (Some(insn), String::new()),
                Some(value @ (Value::Map(name) | Value::Rest(name))) => match (map(name), value) {
                    (Some(MapThere::LeftOut(number)), _) => {
                        (left_out(number), format!(", for map {name} was left out"))
                    }
                    (Some(MapThere::Descriptor(_)), Value::Rest(_)) => (Some(insn), String::new()),
                    (Some(MapThere::Descriptor(fd)), _) => {
                        (Some(Insn { imm: fd, ..insn }), format!(", the descriptor of map {name}"))
                    }
                    (None, _) => (None, format!("the descriptor of map {name}, which was not created")),
                },
                Some(Value::Unknown(name)) => (None, format!("the address of {name}, which only the loader knows")),
            };
            if wanted.is_some() && there == wanted {
                continue;
            }
            let expected = wanted.map_or(String::new(), shown) + &what;
            let found = there.map_or("nothing".to_owned(), shown);
            return Some(Difference { insn: at, function: self.place(at), expected, found });
        }
        let more = found_there.next()?;
        Some(Difference {
            insn: self.insns.len(),
            function: "behind the last function".to_owned(),
            expected: "nothing".to_owned(),
            found: shown(more),
        })
    }

    /// The name of the function of an instruction, and the instruction's number there.
    fn place(&self, at: usize) -> String {
        let before = self.functions.partition_point(|(begins, _)| *begins <= at);
        let (begins, name) = before.checked_sub(1).and_then(|last| self.functions.get(last)).unwrap_or(&(0, ""));
        format!("{name}:{}", at - begins)
    }
}

/// Whether `found` is the wanted instruction, or the one that libbpf documents as its replacement on old kernels.
fn is(wanted: Insn, found: Insn) -> bool {
    let is_helper = wanted.code == CALL && wanted.src == 0;
    let old = OLD_HELPERS.iter().find(|(new, _)| is_helper && *new == wanted.imm);
    found == wanted || old.is_some_and(|(_, old)| found == Insn { imm: *old, ..wanted })
}

/// The instruction that libbpf writes into both halves of a load of a map that was left out (`poison_map_ldimm64`).
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
    /// Appends a function's code, unchanged.
    fn add(&mut self, function: &Program<'a>) {
        self.image.functions.push((self.image.insns.len(), function.name));
        self.image.insns.extend(self.code.code(function));
    }

    /// Puts another instruction in place of one.
    fn set(&mut self, at: usize, insn: Insn) {
        if let Some(old) = self.image.insns.get_mut(at) {
            *old = insn;
        }
    }

    /// Notes where the value of an instruction comes from.
    fn note(&mut self, at: usize, value: Value<'a>) {
        if at < self.image.insns.len() {
            self.image.values.insert(at, value);
        }
    }

    fn unknown(&mut self, at: usize, what: &'a str) {
        self.note(at, Value::Unknown(what));
    }

    /// Applies the relocations of the ELF file to the function that begins at `start`.
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
                    self.unknown(start + index, symbol.name);
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

    /// A call, or a load of a function's address: the immediate is the distance from the next instruction.
    fn call(&mut self, at: usize, insn: Insn, section: usize, to: i64) {
        let offset = u64::try_from(to).ok().and_then(|to| to.checked_mul(INSN_SIZE));
        let function = offset.and_then(|offset| self.code.function_at(section, offset));
        let Some(function) = function.filter(|function| Some(function.offset) == offset) else {
            return self.unknown(at, "a function that the object does not have");
        };
        let place = (function.section_index, function.offset);
        let begins = match self.placed.get(&place) {
            Some(begins) => *begins,
            None if self.placed.len() + 1 >= MOST_FUNCTIONS => {
                return self.unknown(at, "more functions than the kernel takes");
            }
            None => {
                let begins = self.image.insns.len();
                self.placed.insert(place, begins);
                self.add(function);
                self.relocate(function, begins);
                begins
            }
        };
        let distance = i32::try_from(begins as i64 - at as i64 - 1).unwrap_or(0);
        self.set(at, Insn { imm: distance, ..insn });
    }

    /// A 64-bit load of an address.
    fn address(&mut self, at: usize, insn: Insn, next: Insn, symbol: Symbol<'a>) {
        let Some(section) = symbol.home().and_then(|home| self.object.sections.get(home)) else {
            return self.unknown(at, "a section that the object does not have");
        };
        if section.is_executable() {
            let to = (symbol.value as i64).wrapping_add(insn.imm.into()) / INSN_SIZE as i64;
            return self.call(at, Insn { src: PSEUDO_FUNC, ..insn }, symbol.section.into(), to);
        }
        let (load, rest, name) = if section.name == ".maps" {
            let map = self.places.map_at(symbol.section, symbol.value).unwrap_or("(no map)");
            (Insn { src: PSEUDO_MAP_FD, ..insn }, next, map)
        } else if is_data(section) {
            let offset = insn.imm.wrapping_add(symbol.value as i32);
            (Insn { src: PSEUDO_MAP_VALUE, ..insn }, Insn { imm: offset, ..next }, section.name)
        } else {
            return self.unknown(at, section.name);
        };
        self.set(at, load);
        self.set(at + 1, rest);
        self.note(at, Value::Map(name));
        self.note(at + 1, Value::Rest(name));
    }
}

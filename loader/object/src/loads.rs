//! Whether an object would be loaded: what libbpf refuses before the kernel sees the object, and whether the verifier
//! would reach an unresolved CO-RE relocation.

use crate::sort;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::attributes;
use super::btf::{Btf, Kind};
use super::elf::{ObjectFile, Program, Relocation, Section};
use super::facts::{Facts, FunctionFacts, MapFacts};
use super::frozen::Frozen;
use super::insn::{CALL, Insn};
use super::known::Known;
use super::relo::Relocations;
use super::relo::reach::{ANY, reachable};
use super::struct_ops;
use super::uses::{ARENA, Place, Places, is_data, place_of};

const STT_FUNC: u8 = 2;

/// The parts of the object that libbpf (1.0 and newer) refuses. The kernel's BTF must have been searched for the object's
/// externs. The texts are made one by one, since a hostile object has any number of them.
pub fn refused_by_libbpf<'o>(
    object: &'o ObjectFile<'_>,
    object_types: Option<&'o Btf>,
    facts: &'o Facts<'_>,
) -> impl Iterator<Item = String> + 'o {
    let old_maps = object.sections.iter().any(|section| section.name == "maps");
    let old_maps = old_maps
        .then(|| "maps are defined in section maps, which libbpf no longer reads: they belong into .maps".to_owned());
    let sections = object.sections.iter().filter_map(|section| match section.name {
        "version" if section.size != 4 => {
            Some(format!("section version has {} bytes, and libbpf takes 4", section.size))
        }
        "license" if section.size == 0 => Some("section license is empty".to_owned()),
        _ => None,
    });
    let empty = object_types.into_iter().flat_map(|types| without_bytes(object, types));
    let needs_types = !facts.maps.iter().all(|map| map.implicit) || !facts.externs.is_empty();
    let no_types = object.btf.is_none() && (needs_types || object.sections.iter().any(struct_ops::is_section));
    let no_types = no_types.then(|| {
        "it has no types (section .BTF), which describe maps and symbols from outside: compile with -g".to_owned()
    });
    let mut seen = BTreeSet::new();
    let places = object.relocations.iter().filter(move |place| {
        object.sections.get(place.section).is_some_and(Section::is_executable) && seen.insert(place.symbol)
    });
    let places = places.filter_map(|place| out_of_reach(object, facts, place));
    let strange = facts.externs.iter().filter(|one| object.btf.is_some() && one.kind.is_none());
    let strange = strange.map(|one| format!("{} is neither here nor declared in .ksyms or .kconfig", one.name));
    let absent = facts.externs.iter().filter(|one| !one.weak && one.in_btf == Some(false));
    let absent = absent.map(|one| {
        let kind = one.kind.unwrap_or("symbol");
        format!("{kind} {} of the kernel is not in this BTF, and not declared weak", one.name)
    });
    let parts = old_maps.into_iter().chain(sections).chain(empty).chain(no_types);
    parts.chain(places).chain(strange).chain(absent)
}

/// Programs of unknown type or purpose, which libbpf does not load: the number of each, and the reason.
pub fn refused_programs(facts: &Facts<'_>) -> impl Iterator<Item = (usize, String)> {
    let loaded = facts.programs.iter().enumerate().filter(|(_, program)| program.autoload);
    loaded.filter_map(|(number, FunctionFacts { name, section, program_type, named_by_map, .. })| match program_type {
        None => Some((number, format!("program {name}: libbpf knows no type of program for section {section}"))),
        Some("struct_ops") if !named_by_map => Some((
            number,
            format!("program {name}: no struct_ops map names it, so libbpf does not know which callback it is"),
        )),
        Some(_) => None,
    })
}

/// Programs of a type that the kernel does not have: their numbers, and why.
pub fn unknown_programs(facts: &Facts<'_>, known: &Known) -> impl Iterator<Item = (usize, String)> {
    let loaded = facts.programs.iter().enumerate().filter(|(_, program)| program.autoload);
    loaded.filter_map(|(number, program)| {
        let kind = program.program_type.filter(|kind| known.lacks_program_type(kind))?;
        Some((number, format!("program {}: the kernel of this BTF has no program type {kind}", program.name)))
    })
}

/// Maps that this kernel, or every kernel, refuses, and why.
pub fn refused_maps(facts: &Facts<'_>, known: &Known) -> impl Iterator<Item = String> {
    facts.maps.iter().filter(|map| map.autocreate).filter_map(|map| {
        let inner = map.inner.iter().find_map(|inner| refused_map(inner, known));
        let why = refused_map(map, known).or_else(|| Some(format!("inside it: {}", inner?)))?;
        Some(format!("map {}: {why}", map.name))
    })
}

fn refused_map(map: &MapFacts, known: &Known) -> Option<String> {
    if map.type_number.is_some_and(|number| known.lacks_map_type(number)) {
        return Some(format!("the kernel of this BTF has no map type {}", map.map_type));
    }
    // For maps that libbpf makes itself, it drops flags that the kernel lacks.
    match if map.implicit { 0 } else { known.lacks_map_flags(map.flags) } {
        0 => attributes::why_refused(map),
        flags => Some(format!("the kernel of this BTF has no map flags {flags:#x}")),
    }
}

/// Sections that have the size 0 in the types, and no bytes in the file. libbpf cannot find their size. libbpf computes
/// the size of .kconfig and .ksyms itself. A static linker writes the size into the types.
fn without_bytes<'b>(object: &'b ObjectFile<'_>, types: &'b Btf) -> impl Iterator<Item = String> + 'b {
    let datasecs = types.ids().filter(|id| types.kind(*id) == Kind::Datasec && types.size_of(*id) == Some(0));
    let names = datasecs.map(|id| types.name(id)).filter(|name| ![".ksyms", ".kconfig"].contains(name));
    let full = object.sections.iter().filter(|section| section.size > 0);
    let full = sort::set(full.map(|section| section.name));
    names.filter(move |name| !full.contains(name)).map(|name| format!("the variables of section {name} have no bytes"))
}

/// The reason why libbpf refuses this relocation of the ELF file; none if it does not.
fn out_of_reach(object: &ObjectFile<'_>, facts: &Facts<'_>, place: &Relocation) -> Option<String> {
    let symbol = object.symbols.get(place.symbol as usize).filter(|symbol| symbol.section != 0)?;
    let from = object.sections.get(place.section)?.name;
    let Some(section) = symbol.home().and_then(|home| object.sections.get(home)) else {
        return Some(format!("section {from} refers to {}, which is in no section of the file", symbol.name));
    };
    let why = match section.name {
        ".text" | ".maps" | ".jumptables" => return None,
        ARENA if facts.maps.iter().any(|map| map.map_type == "arena") => return None,
        ARENA => "there is no map of type arena",
        _ if is_data(section) => return None,
        _ if section.is_executable() => "functions that programs call belong into .text",
        _ => "libbpf makes no map of it",
    };
    let name = if symbol.name.is_empty() { "something" } else { symbol.name };
    Some(format!("section {from} refers to {name} in section {}: {why}", section.name))
}

/// A program that would reach an instruction which the verifier refuses.
pub struct Reach<'o, 'a> {
    /// The program, which libbpf loads by default.
    pub program: &'o Program<'a>,
    /// The function that has the instruction: the program itself, or a function that the program calls.
    pub function: &'o Program<'a>,
    /// The instruction, counted from the function's beginning.
    pub index: usize,
    /// The instruction: one that did not resolve, or a call of a helper that the kernel does not have.
    pub insn: Insn,
}

/// Programs that reach an instruction which did not resolve, or a helper that the kernel does not have. For each
/// program one such instruction is named, preferably one of the program itself. An instruction whose place is in `open`
/// may be fine with another BTF, and is the last choice.
///
/// The verifier begins at the programs that are loaded, and follows calls and callbacks at instructions that can run.
/// It may know arguments of a static function; this code assumes that it knows none. Before 6.8 the verifier also
/// checks every global function of a program by itself, even if no call of the function can run. This code assumes such a
/// verifier.
#[must_use]
pub fn reaching<'o, 'a>(
    bytes: &[u8],
    object: &'o ObjectFile<'a>,
    facts: &Facts<'_>,
    code: &Relocations<'_, 'a>,
    known: &Known,
    open: &BTreeSet<Place>,
) -> Vec<Reach<'o, 'a>> {
    let is_refused =
        |insn: Insn| insn.is_poison() || (insn.code == CALL && insn.src == 0 && known.lacks_helper(insn.imm));
    // Most objects have no such instruction, and need no search for who calls what.
    if !code.functions().iter().any(|function| code.code(function).any(is_refused)) {
        return Vec::new();
    }
    let places = Places::new(object);
    let all = object.programs.iter().chain(&object.subprograms);
    let all = sort::map(
        all.map(|function| ((function.section_index, function.offset), (function, places.of(function, code)))),
    );
    let globals = object.symbols.iter();
    let globals = globals.filter(|one| one.symbol_type == STT_FUNC && one.is_global());
    let globals = sort::set(globals.map(|one| (usize::from(one.section), one.value)));
    let loaded = object.programs.iter().zip(&facts.programs).filter(|(_, facts)| facts.autoload);
    let loaded: Vec<Place> = loaded.map(|(program, _)| (program.section_index, program.offset)).collect();
    let frozen = Frozen::new(bytes, object, &places, code, known);
    // The callers of each function: by calls that can run, and by all calls.
    let (mut callers, mut all_callers) = (Callers::new(), Callers::new());
    // The first refused instruction of each function that is decided, and the first that is open.
    let (mut decided, mut undecided) = (BTreeMap::new(), BTreeMap::new());
    let mut seen = BTreeSet::new();
    let mut todo = loaded.clone();
    while let Some(place) = todo.pop() {
        let Some((function, uses)) = all.get(&place).filter(|_| seen.insert(place)) else { continue };
        let insns: Vec<_> = code.code(function).collect();
        let is_open = |index: usize| open.contains(&place_of(function, index));
        // With a value from another BTF, the verifier goes on behind an open instruction.
        let followed = insns.iter().enumerate().map(|(index, insn)| if is_open(index) { ANY } else { *insn });
        let followed: Vec<_> = followed.collect();
        let runs =
            reachable(&followed, |index| frozen.load(function, index), |address, size| frozen.read(address, size));
        let runs = |index: usize| runs.get(index) == Some(&true);
        for (index, callee) in &uses.called_at {
            all_callers.entry(*callee).or_default().push(place);
            if runs(*index) {
                callers.entry(*callee).or_default().push(place);
            }
            todo.push(*callee);
        }
        for (index, insn) in insns.iter().enumerate() {
            // A relocation of the ELF file makes a call one of a function, and not of a helper.
            let is_helper = || !uses.addresses.contains(&index);
            if is_refused(*insn) && (insn.is_poison() || is_helper()) && runs(index) {
                let kind = if is_open(index) { &mut undecided } else { &mut decided };
                kind.entry(place).or_insert((index, *insn));
            }
        }
    }
    let reach = |refused: &BTreeMap<Place, (usize, Insn)>| {
        let reached = handed_up(refused.keys().map(|place| (*place, *place)), &callers);
        let by_globals = reached.iter().filter(|(place, _)| globals.contains(place));
        let by_globals = handed_up(by_globals.map(|(place, at)| (*place, *at)), &all_callers);
        (reached, by_globals)
    };
    let found = [(reach(&decided), &decided), (reach(&undecided), &undecided)];
    let found = loaded.iter().filter_map(|place| {
        let (at, refused) = found.iter().find_map(|((reached, by_globals), refused)| {
            Some((reached.get(place).or_else(|| by_globals.get(place))?, refused))
        })?;
        let ((program, _), (function, _)) = (all.get(place)?, all.get(at)?);
        let (index, insn) = *refused.get(at)?;
        Some(Reach { program, function, index, insn })
    });
    let mut found: Vec<_> = found.collect();
    sort::by_key(&mut found, |reach| (reach.program.section_index, reach.program.offset));
    found
}

/// The callers of each function, by the place of the function.
pub(super) type Callers = BTreeMap<Place, Vec<Place>>;

/// Hand the finding of each function up to all its direct and indirect callers. A function keeps the first finding.
pub(super) fn handed_up(begin: impl Iterator<Item = (Place, Place)>, callers: &Callers) -> BTreeMap<Place, Place> {
    let mut reached = BTreeMap::new();
    let mut todo: VecDeque<(Place, Place)> = begin.collect();
    while let Some((place, poison)) = todo.pop_front() {
        if let Entry::Vacant(free) = reached.entry(place) {
            free.insert(poison);
            todo.extend(callers.get(&place).into_iter().flatten().map(|caller| (*caller, poison)));
        }
    }
    reached
}

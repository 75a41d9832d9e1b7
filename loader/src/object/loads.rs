//! Whether an object would be loaded: what libbpf refuses before the kernel sees it, and what the verifier would get to
//! that CO-RE relocations left without a value.

use std::collections::{BTreeMap, BTreeSet};

use super::btf::{Btf, Kind};
use super::elf::{INSN_SIZE, ObjectFile, Program, Relocation, Section};
use super::facts::{Facts, FunctionFacts};
use super::relo::Relocations;
use super::relo::reach::reachable;
use super::struct_ops;
use super::uses::{ARENA, Places, Uses, is_data};

/// `STB_GLOBAL` and `STB_WEAK`
const SEEN_OUTSIDE: [u8; 2] = [1, 2];
const STT_FUNC: u8 = 2;

/// What libbpf (1.0 and newer) refuses in it. The types that it is to run with were asked for what it expects from outside.
#[must_use]
pub fn refused(object: &ObjectFile<'_>, object_types: Option<&Btf>, facts: &Facts<'_>) -> Vec<String> {
    let mut all = Vec::new();
    if object.sections.iter().any(|section| section.name == "maps") {
        all.push("maps are defined in section maps, which libbpf no longer reads: they belong into .maps".to_owned());
    }
    for section in &object.sections {
        if section.name == "version" && section.size != 4 {
            all.push(format!("section version has {} bytes, and libbpf takes 4", section.size));
        }
        if section.name == "license" && section.size == 0 {
            all.push("section license is empty".to_owned());
        }
    }
    all.extend(object_types.into_iter().flat_map(|types| without_bytes(object, types)));
    let needs_types = !facts.maps.iter().all(|map| map.implicit) || !facts.externs.is_empty();
    if object.btf.is_none() && (needs_types || object.sections.iter().any(struct_ops::is_section)) {
        all.push("it has no types (section .BTF), which tell of maps and of what is expected from outside".to_owned());
    }
    let mut seen = BTreeSet::new();
    let places = object.relocations.iter().filter(|place| {
        object.sections.get(place.section).is_some_and(Section::is_executable) && seen.insert(place.symbol)
    });
    all.extend(places.filter_map(|place| out_of_reach(object, facts, place)));
    all.extend(facts.programs.iter().filter(|program| program.autoload).filter_map(|program| {
        let FunctionFacts { name, section, .. } = program;
        match program.program_type {
            None => Some(format!("program {name}: libbpf knows no type of program for section {section}")),
            Some("struct_ops") if !program.named_by_map => {
                Some(format!("program {name}: no struct_ops map names it, so libbpf does not know what it is for"))
            }
            Some(_) => None,
        }
    }));
    if object.btf.is_some() {
        let strange = facts.externs.iter().filter(|one| one.kind.is_none());
        all.extend(strange.map(|one| format!("{} is neither here nor declared in .ksyms or .kconfig", one.name)));
    }
    let absent = facts.externs.iter().filter(|one| !one.weak && one.in_btf == Some(false));
    all.extend(absent.map(|one| {
        let kind = one.kind.unwrap_or("symbol");
        format!("{kind} {} of the kernel is not in this BTF, and not declared weak", one.name)
    }));
    all
}

/// Sections whose variables have no byte together: libbpf does not find out how large they are. Those of what is outside it
/// fills itself, and those that a linker has made tell their size.
fn without_bytes<'b>(object: &'b ObjectFile<'_>, types: &'b Btf) -> impl Iterator<Item = String> + 'b {
    let datasecs = types.ids().filter(|id| types.kind(*id) == Kind::Datasec && types.size_of(*id) == Some(0));
    let names = datasecs.map(|id| types.name(id)).filter(|name| ![".ksyms", ".kconfig"].contains(name));
    let empty = |name: &&str| !object.sections.iter().any(|section| section.name == *name && section.size > 0);
    names.filter(empty).map(|name| format!("the variables of section {name} have no bytes"))
}

/// Why libbpf does not give an instruction the address that it is to have.
fn out_of_reach(object: &ObjectFile<'_>, facts: &Facts<'_>, place: &Relocation) -> Option<String> {
    let symbol = object.symbols.get(place.symbol as usize).filter(|symbol| symbol.section != 0)?;
    let from = object.sections.get(place.section)?.name;
    let Some(section) = object.sections.get(usize::from(symbol.section)) else {
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

/// Where a function begins: its section and byte offset.
type Place = (usize, u64);

/// Functions that reach an instruction which did not resolve, and the first such instruction in each.
///
/// The verifier begins at the programs that are loaded, and follows calls and callbacks at instructions that can run, to
/// static functions with what it knows of their arguments (here: nothing). Before 6.8 it also takes every global function
/// of a program by itself, called or not; so that is assumed.
#[must_use]
pub fn reaching_poison<'o, 'a>(
    object: &'o ObjectFile<'a>,
    facts: &Facts<'_>,
    code: &Relocations<'_, 'a>,
) -> Vec<(&'o Program<'a>, usize)> {
    let places = Places::new(object);
    let all = object.programs.iter().chain(&object.subprograms);
    let all: BTreeMap<Place, (&Program<'a>, Uses<'a>)> = all
        .map(|function| ((function.section_index, function.offset), (function, places.of(function, code))))
        .collect();
    let globals = object.symbols.iter();
    let globals = globals.filter(|one| one.symbol_type == STT_FUNC && SEEN_OUTSIDE.contains(&one.bind));
    let globals: BTreeSet<Place> = globals.map(|one| (usize::from(one.section), one.value)).collect();
    let loaded = object.programs.iter().zip(&facts.programs).filter(|(_, facts)| facts.autoload);
    let loaded: Vec<Place> = loaded.map(|(program, _)| (program.section_index, program.offset)).collect();
    // What libbpf appends to them.
    let mut appended = BTreeSet::new();
    let mut todo = loaded.clone();
    while let Some(place) = todo.pop() {
        if let Some((_, uses)) = all.get(&place).filter(|_| appended.insert(place)) {
            todo.extend(uses.called_at.iter().map(|(_, place)| *place));
        }
    }
    let mut todo: Vec<Place> = loaded.into_iter().chain(appended.intersection(&globals).copied()).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    while let Some(place) = todo.pop() {
        let Some((function, uses)) = all.get(&place).filter(|_| seen.insert(place)) else { continue };
        let insns: Vec<_> = code.code(function).collect();
        let runs = reachable(&insns, |index| !uses.addresses.contains(&index));
        let runs = |index: usize| runs.get(index) == Some(&true);
        todo.extend(uses.called_at.iter().filter(|(index, _)| runs(*index)).map(|(_, place)| *place));
        let poison = insns.iter().enumerate().position(|(index, insn)| insn.is_poison() && runs(index));
        found.extend(poison.map(|index| (*function, index)));
    }
    let order = |function: &Program<'_>| (function.section == ".text", function.section_index, function.offset);
    found.sort_by_key(|(function, _)| order(function));
    found
}

/// The place of a function's instruction in its section.
#[must_use]
pub fn place_of(function: &Program<'_>, index: usize) -> Place {
    (function.section_index, function.offset + index as u64 * INSN_SIZE)
}

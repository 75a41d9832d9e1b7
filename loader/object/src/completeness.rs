//! Whether an object's types, symbols and `.BTF.ext` describe the same things. libbpf refuses an object with -ENOENT if one
//! of them lacks an entry that another one refers to.

use std::collections::BTreeSet;

use super::btf::{Btf, Kind};
use super::btf_ext::{BtfExt, Stretch};
use super::elf::{ObjectFile, Program};
use super::facts::Facts;
use super::loads::{Callers, handed_up};
use super::relo::Relocations;
use super::sort;
use super::uses::{Place, Places};

const STT_OBJECT: u8 = 1;

/// Sections of variables from outside the object. The object has no symbols of their own for these variables.
const OUTSIDE: [&str; 2] = [".kconfig", ".ksyms"];

/// Global variables and maps that the types list, but that have no global symbol of their name (`btf_fixup_datasec()`).
pub fn without_symbol<'o>(object: &'o ObjectFile<'_>, types: &'o Btf) -> impl Iterator<Item = String> + 'o {
    let symbols = object.symbols.iter();
    let symbols = symbols.filter(|one| one.symbol_type == STT_OBJECT && one.is_global());
    let symbols = sort::set(symbols.map(|one| one.name));
    let sections = types.ids().filter(|id| types.kind(*id) == Kind::Datasec && !OUTSIDE.contains(&types.name(*id)));
    let all = sections.flat_map(|section| types.section_vars(section).map(move |entry| (section, entry.var)));
    let missing = all.filter(move |(_, var)| types.var_is_global(*var) && !symbols.contains(types.name(*var)));
    missing.map(|(section, var)| {
        let (section, name) = (types.name(section), types.name(var));
        let what = if section == ".maps" { "map" } else { "variable" };
        format!("{what} {name} is among the types of section {section}, and has no global symbol of that name")
    })
}

/// The functions that `.BTF.ext` has a record of.
struct Described<'x> {
    /// The functions' sections and byte offsets.
    places: BTreeSet<(&'x str, u32)>,
}

impl<'x> Described<'x> {
    fn by<T>(stretches: &'x [Stretch<'x, T>], offset: impl Fn(&T) -> u32) -> Self {
        let places = stretches.iter().flat_map(|stretch| {
            let section = stretch.section;
            stretch.records.iter().map(|record| (section, offset(record))).collect::<Vec<_>>()
        });
        Described { places: places.collect() }
    }

    /// Whether there is a record for an instruction of the function.
    fn contains(&self, function: &Program<'_>) -> bool {
        let (Ok(start), Ok(end)) = (u32::try_from(function.offset), u32::try_from(function.offset + function.size))
        else {
            return false;
        };
        self.places.range((function.section, start)..(function.section, end)).next().is_some()
    }
}

/// Functions without a record of their own in `.BTF.ext`, called by a program that has a record. One function for each
/// program, with the program's index (`reloc_prog_func_and_line_info()`).
pub fn without_records(
    object: &ObjectFile<'_>,
    facts: &Facts<'_>,
    code: &Relocations<'_, '_>,
    ext: &BtfExt<'_>,
) -> Vec<(usize, String)> {
    let kinds = [
        ("function", Described::by(&ext.functions, |one| one.offset)),
        ("line", Described::by(&ext.lines, |one| one.offset)),
    ];
    // Compilers describe all functions or, without -g, none. So most objects need no search for callers.
    let is_whole = |described: &Described<'_>| {
        object.subprograms.iter().all(|function| described.contains(function))
            || !object.programs.iter().any(|program| described.contains(program))
    };
    if kinds.iter().all(|(_, described)| is_whole(described)) {
        return Vec::new();
    }
    let places = Places::new(object);
    let mut callers = Callers::new();
    for function in code.functions() {
        for (_, (section, offset)) in places.of(function, code).called_at {
            if let Some(callee) = code.function_at(section, offset) {
                callers.entry(begin(callee)).or_default().push(begin(function));
            }
        }
    }
    let reached = kinds.map(|(kind, described)| {
        let bare = object.subprograms.iter().filter(|function| !described.contains(function));
        let reached = handed_up(bare.map(|function| (begin(function), begin(function))), &callers);
        (kind, described, reached)
    });
    let loaded = object.programs.iter().zip(&facts.programs).enumerate().filter(|(_, (_, facts))| facts.autoload);
    let found = loaded.filter_map(|(number, (program, _))| {
        let described = reached.iter().filter(|(_, described, _)| described.contains(program));
        let (kind, (section, offset)) =
            described.filter_map(|(kind, _, at)| Some((kind, at.get(&begin(program))?))).next()?;
        let names = code.names();
        let (program, function) = (names.shown(program), names.shown(code.function_at(*section, *offset)?));
        Some((
            number,
            format!(".BTF.ext has {kind} information for program {program}, but not for {function}, which it calls"),
        ))
    });
    found.collect()
}

/// The place where a function begins.
fn begin(function: &Program<'_>) -> Place {
    (function.section_index, function.offset)
}

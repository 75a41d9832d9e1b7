//! What an object holds, collected for a reader: programs, maps, variables. Names as the object has them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::btf::{Btf, Kind, TypeId};
use super::elf::{ObjectFile, Program};
use super::helpers;
use super::hook::hook;
use super::maps::{self, Definitions, MapDefinition};
use super::relo::{Relocations, essential_name, type_name};
use super::struct_ops::{self, StructOps};
use super::uses::{ARENA, Places, Uses, is_data};

/// Bytes of a variable's initial value that are shown.
const MOST_VALUE: usize = 64;

/// Functions may share instructions only in files made by hand; reading each one's must not cost more than this many times
/// the whole file.
const MOST_OVERLAP: u64 = 4;

/// Functions that a program may have, itself included (`BPF_MAX_SUBPROGS` in the kernel's include/linux/bpf_verifier.h).
pub const MOST_FUNCTIONS: usize = 256;

/// The smallest page of the kernels that have arenas, whose entries are pages.
const PAGE: u64 = 4096;

/// What functions call and touch is listed for each, and for a program along its calls: bytes of names, and [`LISTED`] for
/// each, beyond which it is too much to list. The largest programs that there are take a tenth.
const MOST_LISTED: usize = 4 << 20;
const LISTED: usize = 16;
const TOO_MUCH: &str = "its functions call and touch more than can be listed";

/// A section of the file.
#[derive(Clone, Debug, Serialize)]
pub struct SectionFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type's name.
    #[serde(rename = "type")]
    pub section_type: String,
    /// `A`llocated, `W`ritable, e`X`ecutable.
    pub flags: String,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A program, or a function that programs call.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// The section that it is in.
    pub section: &'a str,
    /// The kind of hook that a program asks for, such as `kprobe`; null for functions in `.text`.
    pub hook: Option<&'a str>,
    /// What the hook is on, such as a kernel function.
    pub target: Option<&'a str>,
    /// Whether the BTF of the kernel that it is to run on has that; null where BTF does not tell, or there is none.
    pub target_in_btf: Option<bool>,
    /// Its type, as bpftool names it.
    pub program_type: Option<&'static str>,
    /// May sleep.
    pub sleepable: bool,
    /// Loaded unless somebody says otherwise. One that struct_ops maps name is if one of them is made.
    pub autoload: bool,
    /// A struct_ops map names it.
    #[serde(skip)]
    pub named_by_map: bool,
    /// Instructions of its own.
    pub insns: usize,
    /// Of a program, instructions with all functions that it calls, which libbpf appends: what the verifier sees. Of a
    /// function in `.text`, its own.
    pub insns_total: usize,
    /// Helpers that it calls; of a program, also those that a function it calls does.
    pub helpers: Vec<String>,
    /// Kernel functions, likewise.
    pub kfuncs: Vec<&'a str>,
    /// Functions of this object, likewise.
    pub calls: Vec<&'a str>,
    /// Maps, likewise.
    pub maps: Vec<&'a str>,
    /// Global variables, likewise.
    pub variables: Vec<&'a str>,
    /// Variables of the kernel or its configuration, likewise.
    pub externs: Vec<&'a str>,
    /// The object and the BTF alone say what it, likewise, must be in the kernel; else only its loader knows.
    pub provable: bool,
}

/// A map.
#[derive(Clone, Debug, Serialize)]
pub struct MapFacts {
    /// Its name.
    pub name: String,
    /// Its type's name: `hash`, `array`, ...
    #[serde(rename = "type")]
    pub map_type: Cow<'static, str>,
    /// Bytes of a key.
    pub key_size: Option<u32>,
    /// The key's C type.
    pub key: Option<Arc<str>>,
    /// Bytes of a value.
    pub value_size: Option<u32>,
    /// The value's C type.
    pub value: Option<Arc<str>>,
    /// Entries; null if whoever loads the object sets it, or libbpf does.
    pub max_entries: Option<u32>,
    /// `BPF_F_*`, as a number.
    pub flags: u32,
    /// The names of the flags.
    pub flag_names: Vec<&'static str>,
    /// Pinned by name in the BPF file system.
    pub pinned: bool,
    /// What it means depends on the type.
    pub extra: Option<u64>,
    /// What is in a map of maps.
    pub inner: Option<Box<MapFacts>>,
    /// Made by libbpf for a section of variables.
    pub implicit: bool,
    /// False if it is only made where its loader says so.
    pub autocreate: bool,
    /// Of a struct_ops map: the members that have a program.
    pub callbacks: Vec<Callback>,
}

/// A member of a struct_ops map, and its program.
#[derive(Clone, Debug, Serialize)]
pub struct Callback {
    /// The member's name.
    pub member: String,
    /// The program's.
    pub program: String,
}

/// A global variable.
#[derive(Clone, Debug, Serialize)]
pub struct VariableFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// `.data`, `.rodata`, `.bss`, ...
    pub section: &'a str,
    /// Bytes from the beginning of the section.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Its C type, if the BTF has it.
    #[serde(rename = "type")]
    pub ty: Option<Arc<str>>,
    /// Its initial value: bytes in hexadecimal. Null if it is longer than 64 bytes.
    #[serde(serialize_with = "as_hex")]
    pub value: Option<&'a [u8]>,
}

/// A variable or function that the object expects from outside.
#[derive(Clone, Debug, Serialize)]
pub struct ExternFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// May be missing.
    pub weak: bool,
    /// `function` or `variable` of the kernel, `symbol` (its address alone), `configuration`; null if the object's BTF does
    /// not say.
    pub kind: Option<&'static str>,
    /// Whether the BTF of the kernel that it is to run on has that function or variable; null where BTF does not tell, or
    /// there is none.
    pub in_btf: Option<bool>,
}

impl<'a> ExternFacts<'a> {
    /// What the kernel's BTF has if it has this. libbpf leaves out a flavour.
    fn wanted(&self) -> Option<(Kind, &'a str)> {
        let kind = match self.kind? {
            "function" => Kind::Func,
            "variable" => Kind::Var,
            _ => return None,
        };
        Some((kind, essential_name(self.name)))
    }
}

/// What an object holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts<'a> {
    /// `little` or `big`.
    pub endian: &'static str,
    /// The license, as the kernel will see it.
    pub license: Option<String>,
    /// Sections, without the empty first one.
    pub sections: Vec<SectionFacts<'a>>,
    /// How many symbols.
    pub symbols: usize,
    /// How many relocations of the ELF file (CO-RE relocations are not among them).
    pub elf_relocations: usize,
    /// Types in the object's BTF.
    pub types: usize,
    /// Programs.
    pub programs: Vec<FunctionFacts<'a>>,
    /// Functions in `.text`.
    pub functions: Vec<FunctionFacts<'a>>,
    /// Maps.
    pub maps: Vec<MapFacts>,
    /// Those of callbacks, as far as it takes to judge them.
    #[serde(skip)]
    pub struct_ops: Vec<StructOps<'a>>,
    /// Global variables.
    pub variables: Vec<VariableFacts<'a>>,
    /// What it expects from outside.
    pub externs: Vec<ExternFacts<'a>>,
}

impl<'a> Facts<'a> {
    /// Asks the BTF of the kernel that the object is to run on for what the hooks are on, and for what is expected from
    /// outside.
    pub fn look_up_targets(&mut self, kernel: &Btf) {
        let wanted: Vec<_> = self.programs.iter().map(|program| hook(program.section).in_btf()).collect();
        let names = wanted.iter().flatten().map(|(kind, name)| (*kind, name.as_str()));
        let names = names.chain(self.externs.iter().filter_map(ExternFacts::wanted)).collect();
        let known = kernel.known(&names);
        let in_btf: Vec<_> = self.externs.iter().map(|one| Some(known.contains(&one.wanted()?))).collect();
        for (one, in_btf) in self.externs.iter_mut().zip(in_btf) {
            one.in_btf = in_btf;
        }
        for (program, wanted) in self.programs.iter_mut().zip(&wanted) {
            program.target_in_btf = wanted.as_ref().map(|(kind, name)| known.contains(&(*kind, name.as_str())));
        }
    }

    /// Whether a program is loaded unless its loader says otherwise. Functions in `.text` go with what calls them.
    #[must_use]
    pub fn loads(&self, object: &ObjectFile<'_>, program: &Program<'_>) -> bool {
        let index = object.program_at(program.section_index, program.offset);
        index.and_then(|index| self.programs.get(index)).is_none_or(|program| program.autoload)
    }

    /// Collects them. `code` is the object's, before its relocations ran.
    ///
    /// # Errors
    /// Why libbpf would not take a map, or the kernel a program, or that the functions overlap each other.
    pub fn of(
        bytes: &'a [u8],
        object: &ObjectFile<'a>,
        btf: Option<&Btf>,
        code: &Relocations<'_, 'a>,
    ) -> Result<Self, String> {
        let places = Places::new(object);
        let mut functions = Functions::of(bytes, object, &places, code)?;
        let struct_ops = btf.map(|btf| struct_ops::all(bytes, object, btf)).transpose()?.unwrap_or_default();
        let mut programs = functions.facts(0, &object.programs)?;
        for (program, needed) in programs.iter_mut().zip(struct_ops::needed(&struct_ops, object.programs.len())) {
            program.autoload = needed.unwrap_or(program.autoload);
            program.named_by_map = needed.is_some();
        }
        let maps = all_maps(object, btf, &places, &struct_ops)?;
        arena(object, &maps)?;
        let facts = Facts {
            endian: if object.is_little_endian { "little" } else { "big" },
            license: object.license.clone(),
            sections: object.sections.iter().skip(1).map(section).collect(),
            symbols: object.symbols.len(),
            elf_relocations: object.relocations.len(),
            types: btf.map_or(0, Btf::len),
            programs,
            functions: functions.facts(object.programs.len(), &object.subprograms)?,
            maps,
            struct_ops,
            variables: variables(bytes, btf, &places),
            externs: externs(object, btf),
        };
        if facts.names() > MOST_LISTED {
            return Err("its sections, maps, variables and externs have longer names than can be listed".to_owned());
        }
        Ok(facts)
    }

    /// Bytes of the names of what is no function, and of their types'.
    fn names(&self) -> usize {
        let len = |ty: &Option<Arc<str>>| ty.as_ref().map_or(0, |ty| ty.len());
        let sections = self.sections.iter().map(|one| one.name.len());
        let maps = self.maps.iter().map(|one| one.name.len() + len(&one.key) + len(&one.value));
        let variables = self.variables.iter().map(|one| one.name.len() + one.section.len() + len(&one.ty));
        let externs = self.externs.iter().map(|one| one.name.len());
        sections.chain(maps).chain(variables).chain(externs).sum()
    }
}

fn section<'a>(section: &super::elf::Section<'a>) -> SectionFacts<'a> {
    let section_type = match section.section_type {
        1 => "PROGBITS".to_owned(),
        2 => "SYMTAB".to_owned(),
        3 => "STRTAB".to_owned(),
        4 => "RELA".to_owned(),
        8 => "NOBITS".to_owned(),
        9 => "REL".to_owned(),
        other => format!("{other:#x}"),
    };
    let flag = |bit: u64, letter: char| (section.flags & bit != 0).then_some(letter);
    let flags = [flag(2, 'A'), flag(1, 'W'), flag(4, 'X')].into_iter().flatten().collect();
    SectionFacts { name: section.name, section_type, flags, offset: section.offset, size: section.size }
}

/// A function, and what it uses by itself.
struct Used<'o, 'a> {
    function: &'o Program<'a>,
    uses: Uses<'a>,
    /// Where in [`Functions::called`] those begin that it calls.
    first_called: usize,
    /// For which function it was looked at last, by that one's number from 1.
    seen: usize,
}

/// What every function uses by itself, to be added up along a program's calls. Programs come first, as in the object.
struct Functions<'o, 'a> {
    all: Vec<Used<'o, 'a>>,
    /// Of each the number of the first that begins at the same place: itself, but for aliases.
    firsts: Vec<u32>,
    /// The numbers of those that each calls, one function's after the other's.
    called: Vec<u32>,
    /// How much more may be listed.
    left: usize,
    /// The numbers of those that are to be looked at for one function.
    todo: Vec<usize>,
}

/// Where functions begin, in order: section, byte offset, number.
type Begins = Vec<(usize, u64, u32)>;

/// The number of the function that begins at a place: of several, the first.
fn function_at(begins: &Begins, (section, offset): (usize, u64)) -> Option<u32> {
    let at = begins.partition_point(|begin| *begin < (section, offset, 0));
    begins.get(at).filter(|begin| (begin.0, begin.1) == (section, offset)).map(|begin| begin.2)
}

impl<'o, 'a> Functions<'o, 'a> {
    fn of(
        bytes: &[u8],
        object: &'o ObjectFile<'a>,
        places: &Places<'o, 'a>,
        code: &Relocations<'_, 'a>,
    ) -> Result<Self, String> {
        let functions = || object.programs.iter().chain(&object.subprograms);
        let total: u64 = functions().map(|function| function.size).fold(0, u64::saturating_add);
        if total > MOST_OVERLAP * bytes.len() as u64 {
            return Err("its functions overlap each other".to_owned());
        }
        // A file has fewer functions than a u32 counts.
        let begin = |(number, function): (u32, &Program<'_>)| (function.section_index, function.offset, number);
        let mut begins: Begins = (0..).zip(functions()).map(begin).collect();
        begins.sort_unstable();
        let mut firsts = vec![0; begins.len()];
        for same in begins.chunk_by(|one, next| (one.0, one.1) == (next.0, next.1)) {
            for (.., number) in same {
                let first = same.first().map_or(0, |first| first.2);
                firsts.get_mut(*number as usize).into_iter().for_each(|place| *place = first);
            }
        }
        let mut all = Vec::with_capacity(begins.len());
        let (mut called, mut calls) = (Vec::new(), 0);
        for function in functions() {
            let (uses, first_called) = (places.of(function, code), called.len());
            calls += uses.called_at.len();
            called.extend(uses.called_at.iter().filter_map(|(_, place)| function_at(&begins, *place)));
            // Each is listed with its caller at least.
            if calls > MOST_LISTED / LISTED {
                return Err(TOO_MUCH.to_owned());
            }
            all.push(Used { function, uses, first_called, seen: 0 });
        }
        Ok(Functions { all, firsts, called, left: MOST_LISTED, todo: Vec::new() })
    }

    /// Of these functions, the first of which has that number.
    fn facts(&mut self, first: usize, functions: &[Program<'a>]) -> Result<Vec<FunctionFacts<'a>>, String> {
        let mut facts = Vec::with_capacity(functions.len());
        for (number, function) in (first..).zip(functions) {
            facts.push(self.one(number, function)?);
        }
        Ok(facts)
    }

    fn one(&mut self, number: usize, function: &Program<'a>) -> Result<FunctionFacts<'a>, String> {
        let is_program = function.section != ".text";
        let hook = is_program.then(|| hook(function.section));
        let mut facts = FunctionFacts {
            name: function.name,
            section: function.section,
            hook: hook.map(|hook| hook.kind),
            target: hook.map(|hook| hook.target).filter(|target| !target.is_empty()),
            target_in_btf: None,
            program_type: hook.and_then(|hook| hook.program_type),
            sleepable: hook.is_some_and(|hook| hook.sleepable),
            autoload: hook.is_none_or(|hook| hook.autoload),
            named_by_map: false,
            insns: function.insns,
            insns_total: 0,
            helpers: Vec::new(),
            kfuncs: Vec::new(),
            calls: Vec::new(),
            maps: Vec::new(),
            variables: Vec::new(),
            externs: Vec::new(),
            provable: true,
        };
        let mut helpers = BTreeSet::new();
        let Functions { all, firsts, called: all_called, left, todo } = self;
        let mut count = 0;
        todo.clear();
        todo.push(number);
        // Whoever calls what is here by its other name calls itself.
        let first = firsts.get(number).map(|first| *first as usize).filter(|first| *first != number);
        first.and_then(|first| all.get_mut(first)).into_iter().for_each(|first| first.seen = number + 1);
        while let Some(index) = todo.pop() {
            let next = all.get(index + 1).map_or(all_called.len(), |next| next.first_called);
            let Some(Used { function: called, uses, first_called, seen }) = all.get_mut(index) else { continue };
            if std::mem::replace(seen, number + 1) == number + 1 {
                continue;
            }
            count += 1;
            if count > 1 {
                push(&mut facts.calls, called.name);
                // What a function calls is listed with that function.
                if !is_program {
                    continue;
                }
            }
            if is_program && count > MOST_FUNCTIONS {
                let name = function.name;
                return Err(format!("program {name} calls {MOST_FUNCTIONS} functions or more, the kernel takes fewer"));
            }
            let names = [&uses.kfuncs, &uses.maps, &uses.variables, &uses.externs].into_iter().flatten();
            let listed: usize = names.map(|name| name.len() + LISTED).sum();
            let listed = listed + called.name.len() + LISTED * (uses.helpers.len() + uses.called_at.len());
            *left = left.checked_sub(listed).ok_or(TOO_MUCH)?;
            facts.insns_total += called.insns;
            helpers.extend(&uses.helpers);
            facts.kfuncs.extend(&uses.kfuncs);
            facts.maps.extend(&uses.maps);
            facts.variables.extend(&uses.variables);
            facts.externs.extend(&uses.externs);
            todo.extend(all_called.get(*first_called..next).into_iter().flatten().map(|index| *index as usize));
        }
        let lists = [&mut facts.kfuncs, &mut facts.calls, &mut facts.maps, &mut facts.variables, &mut facts.externs];
        lists.into_iter().for_each(each_once);
        facts.provable = facts.kfuncs.is_empty() && facts.externs.is_empty();
        let name = |number: &i32| helpers::name(*number).map_or_else(|| format!("helper#{number}"), str::to_owned);
        facts.helpers = helpers.iter().map(name).collect();
        Ok(facts)
    }
}

/// Puts something behind the rest of a list. Of as many as there are functions, most have one place.
pub(super) fn push<T>(list: &mut Vec<T>, value: T) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
    list.push(value);
}

fn each_once(list: &mut Vec<&str>) {
    list.sort_unstable();
    list.dedup();
}

fn map_facts(name: String, map: MapDefinition) -> MapFacts {
    MapFacts {
        name,
        map_type: map.type_name(),
        flag_names: map.flag_names(),
        key_size: map.key_size,
        key: map.key,
        value_size: map.value_size,
        value: map.value,
        max_entries: map.max_entries,
        flags: map.flags.unwrap_or(0),
        pinned: map.pinning.is_some_and(|pinning| pinning != 0),
        extra: map.extra,
        inner: map.inner.map(|inner| Box::new(map_facts(String::new(), *inner))),
        implicit: false,
        autocreate: true,
        callbacks: Vec::new(),
    }
}

/// The maps that the object defines, and those that libbpf makes for its variables.
fn all_maps(
    object: &ObjectFile<'_>,
    btf: Option<&Btf>,
    places: &Places<'_, '_>,
    struct_ops: &[StructOps<'_>],
) -> Result<Vec<MapFacts>, String> {
    let mut all = Vec::new();
    let hidden: BTreeSet<&str> = object.symbols.iter().filter(|one| one.hidden).map(|one| one.name).collect();
    let definitions = btf.map(Definitions::new);
    for name in &object.maps {
        if hidden.contains(name.as_str()) {
            return Err(format!("map {name} is hidden; libbpf takes only those that others may see"));
        }
        let definition = definitions.as_ref().map(|definitions| definitions.of(name)).transpose()?.flatten();
        all.push(map_facts(name.clone(), definition.unwrap_or_default()));
    }
    if let Some(definitions) = &definitions {
        maps::check_values(object, places, definitions)?;
    }
    for section in object.sections.iter().filter(|section| is_data(section) && section.size > 0) {
        let definition = of_variables(section.name, section.size, btf, &hidden);
        all.push(MapFacts { implicit: true, ..map_facts(section.name.to_owned(), definition) });
    }
    if let Some(size) = btf.and_then(configuration_size) {
        let definition = of_variables(CONFIGURATION, size, btf, &hidden);
        all.push(MapFacts { implicit: true, ..map_facts(CONFIGURATION.to_owned(), definition) });
    }
    let Some(btf) = btf else { return Ok(all) };
    for map in struct_ops {
        let definition = MapDefinition {
            map_type: Some(26),
            key_size: Some(4),
            // on loading, as many as the kernel's type has
            value_size: btf.size_of(map.ty).and_then(|size| u32::try_from(size).ok()),
            value: Some(type_name(btf, map.ty).into()),
            max_entries: Some(1),
            // BPF_F_LINK
            flags: map.is_linked.then_some(1 << 13),
            ..MapDefinition::default()
        };
        let owned =
            |(member, program): (&str, &str)| Callback { member: member.to_owned(), program: program.to_owned() };
        let callbacks = map.callbacks(btf).map(owned).collect();
        all.push(MapFacts { autocreate: map.autocreate, callbacks, ..map_facts(map.name.to_owned(), definition) });
    }
    Ok(all)
}

/// A map of type arena has the variables of one section in it, at its end.
///
/// # Errors
/// Why libbpf would not put them there.
fn arena(object: &ObjectFile<'_>, maps: &[MapFacts]) -> Result<(), String> {
    let mut arenas = maps.iter().filter(|map| map.map_type == "arena");
    let map = arenas.next();
    if let (Some(map), Some(other)) = (map, arenas.next()) {
        return Err(format!("maps {} and {} are both arenas, and an object may have one", map.name, other.name));
    }
    // Without a section of maps libbpf does not ask.
    let asks = object.sections.iter().any(|section| section.name == ".maps");
    let Some(section) = object.sections.iter().rfind(|section| asks && section.name == ARENA && section.holds_data())
    else {
        return Ok(());
    };
    let map =
        map.ok_or_else(|| format!("section {ARENA}: its variables need a map of type arena, which is not there"))?;
    let room = u64::from(map.max_entries.unwrap_or(0)) * PAGE;
    if section.size > room {
        return Err(format!("section {ARENA} has {} bytes, and map {} room for {room}", section.size, map.name));
    }
    Ok(())
}

/// The section of variables that libbpf fills with the kernel's configuration.
const CONFIGURATION: &str = ".kconfig";

/// The map that libbpf makes for a section of variables.
fn of_variables(section: &str, size: u64, btf: Option<&Btf>, hidden: &BTreeSet<&str>) -> MapDefinition {
    const RDONLY_PROG: u32 = 1 << 7;
    const MMAPABLE: u32 = 1 << 10;
    let read_only = section.starts_with(".rodata") || section == CONFIGURATION;
    // Only what others may look for by its name is mapped, and only where the kernel can.
    let is_seen = |btf: &Btf, var: TypeId| {
        btf.kind(var) == Kind::Var && !btf.var_is_static(var) && !hidden.contains(btf.name(var))
    };
    let mappable = btf.is_some_and(|btf| {
        let vars = btf.find(Kind::Datasec, section).into_iter().flat_map(|id| btf.section_vars(id));
        vars.into_iter().any(|var| is_seen(btf, var.var))
    });
    MapDefinition {
        map_type: Some(2),
        key_size: Some(4),
        value_size: u32::try_from(size).ok(),
        max_entries: Some(1),
        flags: Some(if read_only { RDONLY_PROG } else { 0 } | if mappable { MMAPABLE } else { 0 }),
        ..MapDefinition::default()
    }
}

/// Bytes of what an object asks of the kernel's configuration; none if it asks nothing. What is aligned most comes first
/// (cmp_externs() in libbpf's src/libbpf.c), so nothing lies between: numbers, truth values, and arrays of characters.
fn configuration_size(btf: &Btf) -> Option<u64> {
    let section = btf.find(Kind::Datasec, CONFIGURATION)?;
    btf.section_vars(section).try_fold(0, |size: u64, var| size.checked_add(btf.size_of(btf.target(var.var))?))
}

fn variables<'a>(bytes: &'a [u8], btf: Option<&Btf>, places: &Places<'_, 'a>) -> Vec<VariableFacts<'a>> {
    // The type of each, and what it is called once that was asked for.
    let mut types: BTreeMap<&str, (TypeId, Option<Arc<str>>)> = BTreeMap::new();
    if let Some(btf) = btf {
        let vars = btf.ids().filter(|id| btf.kind(*id) == Kind::Var);
        types.extend(vars.map(|id| (btf.name(id), (btf.target(id), None))));
    }
    let one = |(section, symbol): (&super::elf::Section<'a>, &super::elf::Symbol<'a>)| {
        let ty = btf.zip(types.get_mut(symbol.name));
        let ty = ty.map(|(btf, (ty, name))| name.get_or_insert_with(|| type_name(btf, *ty).into()).clone());
        let start = usize::try_from(symbol.value).ok();
        let size = usize::try_from(symbol.size).ok().filter(|size| *size <= MOST_VALUE);
        let value = start.zip(size).and_then(|(start, size)| section.bytes(bytes).get(start..start.checked_add(size)?));
        VariableFacts { name: symbol.name, section: section.name, offset: symbol.value, size: symbol.size, ty, value }
    };
    places.variables().map(one).collect()
}

fn externs<'a>(object: &ObjectFile<'a>, btf: Option<&Btf>) -> Vec<ExternFacts<'a>> {
    let mut kinds: BTreeMap<&str, &'static str> = BTreeMap::new();
    for (btf, section) in btf.into_iter().flat_map(|btf| [".kconfig", ".ksyms"].map(|section| (btf, section))) {
        let vars = btf.find(Kind::Datasec, section).into_iter().flat_map(|section| btf.section_vars(section));
        kinds.extend(vars.map(|var| {
            let kind = match btf.kind(var.var) {
                _ if section == ".kconfig" => "configuration",
                Kind::Func => "function",
                _ if btf.kind(btf.resolve(btf.target(var.var))) == Kind::Void => "symbol",
                _ => "variable",
            };
            (btf.name(var.var), kind)
        }));
    }
    let outside = object.symbols.iter().skip(1).filter(|symbol| symbol.section == 0 && !symbol.name.is_empty());
    let one = |symbol: &super::elf::Symbol<'a>| ExternFacts {
        name: symbol.name,
        weak: symbol.bind == 2,
        kind: kinds.get(symbol.name).copied(),
        in_btf: None,
    };
    outside.map(one).collect()
}

fn as_hex<S: serde::Serializer>(value: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(hex).serialize(serializer)
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| hex_digits(*byte)).map(char::from).collect()
}

/// The two digits of a byte.
pub fn hex_digits(byte: u8) -> [u8; 2] {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
    [digit(byte >> 4), digit(byte & 15)]
}

//! Maps of type struct_ops: variables in sections of that name. Each is a struct of the kernel whose members hold programs
//! as callbacks.
//!
//! The rules are libbpf's (src/libbpf.c: `init_struct_ops_maps()`, `bpf_object__collect_st_ops_relos()`,
//! `bpf_map__init_kern_struct_ops()`, `bpf_object_adjust_struct_ops_autoload()`).

use crate::sort;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::btf::{Btf, Kind, Member, TypeId};
use super::elf::{ObjectFile, Program, Section};
use super::hook::hook;
use super::relo::{essential_name, type_name};
use super::steps::Steps;

/// Sections of such maps. A map whose section has `?` in front is made only if its loader asks for it.
const SECTIONS: [&str; 2] = [".struct_ops", LINKED];
/// The section of maps that a link keeps registered.
const LINKED: &str = ".struct_ops.link";
/// The prefix of the wrapper type's name: the kernel wraps each struct that it takes in such a type.
const VALUE: &str = "bpf_struct_ops_";

/// A map of type struct_ops.
#[derive(Clone, Debug)]
pub struct StructOps<'a> {
    /// The variable's name.
    pub name: &'a str,
    /// A link registers the map.
    pub is_linked: bool,
    /// libbpf makes the map even if its loader does not ask for it.
    pub autocreate: bool,
    /// The struct in the object's types.
    pub ty: TypeId,
    /// The initial bytes of the variable.
    data: &'a [u8],
    /// One entry for each member that has a program.
    programs: Vec<Callback<'a>>,
}

/// The program of one member.
#[derive(Clone, Copy, Debug)]
struct Callback<'a> {
    /// Byte offset of the member in the struct.
    offset: u64,
    /// The program's index in the object.
    index: usize,
    /// The program's name.
    program: &'a str,
}

/// Whether a section has maps of type struct_ops.
pub(super) fn is_section(section: &Section<'_>) -> bool {
    let name = section.name.strip_prefix('?').unwrap_or(section.name);
    SECTIONS.contains(&name) && section.holds_data()
}

/// The struct_ops maps of an object.
///
/// # Errors
/// The reason why libbpf would refuse a map; or no steps are left.
pub fn all<'a>(
    bytes: &'a [u8],
    object: &ObjectFile<'a>,
    local: &Btf,
    steps: &Steps,
) -> Result<Vec<StructOps<'a>>, String> {
    let (mut all, mut seen) = (Vec::new(), Vec::new());
    for (index, section) in object.sections.iter().enumerate().filter(|(_, section)| is_section(section)) {
        if seen.contains(&section.name) {
            return Err(format!("two sections {}", section.name));
        }
        seen.push(section.name);
        let datasec = local.find(Kind::Datasec, section.name);
        let datasec =
            datasec.ok_or_else(|| format!("section {}: the object's types do not tell what is in it", section.name))?;
        let mut symbols = HashMap::new();
        for symbol in object.symbols.iter().filter(|one| one.home() == Some(index)) {
            symbols.entry(symbol.name).or_insert(symbol);
        }
        let mut places: Vec<_> = object.relocations.iter().filter(|one| one.section == index).collect();
        sort::by_key(&mut places, |place| place.offset);
        for (rank, var) in local.section_vars(datasec).enumerate() {
            let name = local.name(var.var);
            let symbol = symbols.get(name).ok_or_else(|| format!("section {}: no symbol {name}", section.name))?;
            let of = |what: String| format!("map {}: {what}", symbol.name);
            let ty = local.resolve(local.target(var.var));
            if local.kind(ty) != Kind::Struct || local.name(ty).is_empty() {
                return Err(of(format!("it is {}, not a struct with a name", type_name(local, ty))));
            }
            steps.take(1 + local.entry_count(ty) as usize)?;
            let size = local.size_of(ty).and_then(|size| usize::try_from(size).ok());
            let start = usize::try_from(symbol.value).ok();
            let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
            let data = range.and_then(|range| section.bytes(bytes).get(range));
            let data = data.ok_or_else(|| of(format!("it goes beyond the end of section {}", section.name)))?;
            let range = symbol.value..symbol.value + data.len() as u64;
            let mut programs = Vec::new();
            let first = places.partition_point(|place| place.offset < range.start);
            for place in places.iter().skip(first).take_while(|place| place.offset < range.end) {
                let offset = place.offset - symbol.value;
                steps.take(1 + local.entry_count(ty) as usize)?;
                let mut here = local.members(ty).filter(|member| u64::from(member.bit_offset) == offset * 8);
                if !here.any(|member| is_callback(local, &member)) {
                    return Err(of(format!("byte {offset} is not where a callback is")));
                }
                let target = object.symbols.get(place.symbol as usize);
                let index = target.and_then(|target| object.program_at(target.section.into(), target.value));
                let index = index.ok_or_else(|| of(format!("the callback at byte {offset} is no program")))?;
                let Program { name: program, section, .. } = object.programs[index];
                if hook(section).program_type != Some("struct_ops") {
                    return Err(of(format!("program {program}, of section {section}, is not one of struct_ops")));
                }
                programs.push(Callback { offset, index, program });
            }
            let is_linked = section.name.ends_with(LINKED);
            // libbpf removes the question mark once it has read the section's first map, and so makes the other maps.
            let autocreate = rank > 0 || !section.name.starts_with('?');
            all.push(StructOps { name: symbol.name, is_linked, autocreate, ty, data, programs });
        }
    }
    Ok(all)
}

/// For each program of an object: whether libbpf loads it, because a map that libbpf makes names the program. None if no map
/// names the program.
#[must_use]
pub fn needed(maps: &[StructOps<'_>], programs: usize) -> Vec<Option<bool>> {
    let mut needed = vec![None; programs];
    for map in maps {
        for callback in &map.programs {
            if let Some(one) = needed.get_mut(callback.index) {
                *one = Some(map.autocreate || *one == Some(true));
            }
        }
    }
    needed
}

/// The names of the types by which a kernel shows that it takes these maps: sorted, and each once.
#[must_use]
pub fn value_types(maps: &[StructOps<'_>], local: &Btf) -> Vec<Vec<u8>> {
    let mut names: Vec<_> =
        maps.iter().map(|map| value_type(essential_name(local.name(map.ty))).into_bytes()).collect();
    sort::ascending(&mut names);
    names.dedup();
    names
}

fn value_type(name: &str) -> String {
    format!("{VALUE}{name}")
}

/// The reasons why libbpf does not make the maps on the kernel that has these types. `elsewhere` tells whether a module has
/// a type that the BTF lacks; such a type is not checked further.
///
/// # Errors
/// No steps are left.
pub fn misfits(
    maps: &[StructOps<'_>],
    local: &Btf,
    kernel: &Btf,
    elsewhere: impl Fn(&str) -> bool,
    steps: &Steps,
) -> Result<Vec<String>, String> {
    let structs = structs_of(maps, local, kernel);
    let mut known: HashMap<TypeId, Result<Option<TypeId>, String>> = HashMap::new();
    let mut all = Vec::new();
    for map in maps.iter().filter(|map| map.autocreate) {
        let there = match known.entry(map.ty) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(new) => new.insert(kernels(essential_name(local.name(map.ty)), kernel, &structs, &elsewhere)),
        };
        let why = match there {
            Ok(Some(there)) => map.misfit(*there, local, kernel, steps)?,
            Ok(None) => None,
            Err(why) => Some(why.clone()),
        };
        all.extend(why.map(|why| format!("map {}: {why}", map.name)));
    }
    all.extend(shared(maps, local));
    Ok(all)
}

/// The kernel's structs for these maps, by name: of each name the first.
fn structs_of<'k>(maps: &[StructOps<'_>], local: &Btf, kernel: &'k Btf) -> HashMap<&'k str, TypeId> {
    let names = maps.iter().map(|map| essential_name(local.name(map.ty)));
    let wanted: HashSet<String> = names.flat_map(|name| [name.to_owned(), value_type(name)]).collect();
    let mut structs = HashMap::new();
    for id in kernel.ids().filter(|id| !wanted.is_empty() && kernel.kind(*id) == Kind::Struct) {
        if wanted.contains(kernel.name(id)) {
            structs.entry(kernel.name(id)).or_insert(id);
        }
    }
    structs
}

/// The kernel's struct of that name, which the kernel takes from programs; none if only a module has the struct.
fn kernels(
    name: &str,
    kernel: &Btf,
    structs: &HashMap<&str, TypeId>,
    elsewhere: &impl Fn(&str) -> bool,
) -> Result<Option<TypeId>, String> {
    let value = value_type(name);
    let Some(value_type) = structs.get(value.as_str()).copied() else {
        let why = format!("the BTF has no struct {value}: the kernel takes no {name} from programs");
        return if elsewhere(&value) { Ok(None) } else { Err(why) };
    };
    let ty = structs.get(name).copied().ok_or_else(|| format!("the BTF has no struct {name}"))?;
    if !kernel.members(value_type).any(|member| member.ty == ty) {
        return Err(format!("struct {value} has no struct {name} in it"));
    }
    Ok(Some(ty))
}

/// The reasons why libbpf does not make the maps together. A program may be one member of one struct only, in any number of
/// maps.
fn shared(maps: &[StructOps<'_>], local: &Btf) -> Vec<String> {
    let (mut users, mut all) = (HashMap::<&str, (&str, &str)>::new(), Vec::new());
    for map in maps.iter().filter(|map| map.autocreate) {
        let name = essential_name(local.name(map.ty));
        for (member, program) in map.callbacks(local) {
            match users.get(program) {
                None => drop(users.insert(program, (member, name))),
                Some((other, of)) if (*other, *of) != (member, name) => all
                    .push(format!("program {program} is member {other} of struct {of}, and {member} of struct {name}")),
                Some(_) => {}
            }
        }
    }
    all
}

fn is_callback(btf: &Btf, member: &Member<'_>) -> bool {
    let pointer = btf.resolve(member.ty);
    btf.kind(pointer) == Kind::Ptr && btf.kind(btf.resolve(btf.target(pointer))) == Kind::FuncProto
}

impl<'a> StructOps<'a> {
    fn program_of(&self, member: &Member<'_>) -> Option<&'a str> {
        let begin = u64::from(member.bit_offset / 8);
        let found = self.programs.binary_search_by_key(&begin, |callback| callback.offset).ok()?;
        self.programs.get(found).map(|callback| callback.program)
    }

    /// The members that have a program, and the program's name.
    pub fn callbacks<'s>(&'s self, local: &'s Btf) -> impl Iterator<Item = (&'s str, &'a str)> + 's {
        local.members(self.ty).filter_map(|member| Some((member.name, self.program_of(&member)?)))
    }

    /// The first member that differs in the kernel's struct, and how.
    fn misfit(&self, there: TypeId, local: &Btf, kernel: &Btf, steps: &Steps) -> Result<Option<String>, String> {
        for member in local.members(self.ty) {
            steps.take(kernel.entry_count(there) as usize)?;
            steps.text(local.size_of(member.ty).map_or(0, |size| usize::try_from(size).unwrap_or(usize::MAX)))?;
            let other = kernel.members(there).find(|other| other.name == member.name);
            if let Some(why) = self.misfit_of(&member, other.as_ref(), local, kernel) {
                return Ok(Some(format!("member {} of struct {}: {why}", member.name, kernel.name(there))));
            }
        }
        Ok(None)
    }

    fn misfit_of(&self, here: &Member<'_>, there: Option<&Member<'_>>, local: &Btf, kernel: &Btf) -> Option<String> {
        let Some(size) = local.size_of(here.ty) else { return Some("it has no size".to_owned()) };
        let offset = u64::from(here.bit_offset / 8);
        let program = self.program_of(here);
        let bytes = self.data.iter().skip(offset as usize).take(usize::try_from(size).unwrap_or(usize::MAX));
        let is_set = program.is_some() || bytes.into_iter().any(|byte| *byte != 0);
        let Some(there) = there else {
            return is_set.then(|| "it is set, and the BTF has no such member".to_owned());
        };
        if here.bitfield_size != 0 || there.bitfield_size != 0 {
            return Some("it is a bitfield".to_owned());
        }
        let (own, other) = (local.resolve(here.ty), kernel.resolve(there.ty));
        if local.kind(own) != kernel.kind(other) {
            return Some(format!("it is {} there, {} here", type_name(kernel, other), type_name(local, own)));
        }
        if local.kind(own) != Kind::Ptr {
            let other = kernel.size_of(other);
            let sizes =
                || format!("it has {size} bytes here, {} there", other.map_or("no".to_owned(), |n| n.to_string()));
            return (other != Some(size)).then(sizes);
        }
        match program {
            Some(_) if !is_callback(kernel, there) => Some("it is no callback there".to_owned()),
            None if is_set => Some("it is a pointer that is set, to no program".to_owned()),
            _ => None,
        }
    }
}

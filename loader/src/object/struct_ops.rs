//! Maps of type struct_ops: variables in sections of that name, structs of the kernel's that programs fill with callbacks.
//!
//! The rules are libbpf's (src/libbpf.c: `init_struct_ops_maps()`, `bpf_object__collect_st_ops_relos()`,
//! `bpf_map__init_kern_struct_ops()`, `bpf_object_adjust_struct_ops_autoload()`).

use std::collections::HashMap;

use super::btf::{Btf, Kind, Member, TypeId};
use super::elf::{ObjectFile, Program, Section};
use super::hook::hook;
use super::relo::{essential_name, type_name};

/// Sections whose maps are made; with `?` in front, only if their loader says so.
const SECTIONS: [&str; 2] = [".struct_ops", LINKED];
/// Of maps that a link keeps registered.
const LINKED: &str = ".struct_ops.link";
/// What precedes the name of the type that the kernel makes of such a struct.
const VALUE: &str = "bpf_struct_ops_";

/// Such a map.
#[derive(Clone, Debug)]
pub struct StructOps<'a> {
    /// The variable's name.
    pub name: &'a str,
    /// Registered by a link.
    pub is_linked: bool,
    /// Made without its loader saying so.
    pub autocreate: bool,
    /// The struct in the object's types.
    pub ty: TypeId,
    /// What the variable holds.
    data: &'a [u8],
    /// Of each member that has a program.
    programs: Vec<Callback<'a>>,
}

/// A member's program.
#[derive(Clone, Copy, Debug)]
struct Callback<'a> {
    /// Where the member begins, in bytes.
    offset: u64,
    /// The program, by its index in the object.
    index: usize,
    /// Its name.
    program: &'a str,
}

/// Whether a section has such maps.
pub(super) fn is_section(section: &Section<'_>) -> bool {
    let name = section.name.strip_prefix('?').unwrap_or(section.name);
    SECTIONS.contains(&name) && section.holds_data()
}

/// Beyond these an object is none that anybody wrote: everything below is looked for one by one. Maps, structs that they are
/// of, members of all maps together, and bytes of those.
const MOST_MAPS: usize = 256;
const MOST_STRUCTS: usize = 16;
const MOST_MEMBERS: usize = 2048;
const MOST_BYTES: u64 = 1 << 20;

/// Those of an object.
///
/// # Errors
/// Why libbpf would not take one.
pub fn all<'a>(bytes: &'a [u8], object: &ObjectFile<'a>, local: &Btf) -> Result<Vec<StructOps<'a>>, String> {
    let (mut all, mut seen, mut structs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut members, mut member_bytes) = (0, 0);
    for (index, section) in object.sections.iter().enumerate().filter(|(_, section)| is_section(section)) {
        if seen.contains(&section.name) {
            return Err(format!("two sections {}", section.name));
        }
        seen.push(section.name);
        let datasec = local.find(Kind::Datasec, section.name);
        let datasec =
            datasec.ok_or_else(|| format!("section {}: the object's types do not tell what is in it", section.name))?;
        let mut symbols = HashMap::new();
        for symbol in object.symbols.iter().filter(|one| usize::from(one.section) == index) {
            symbols.entry(symbol.name).or_insert(symbol);
        }
        let mut places: Vec<_> = object.relocations.iter().filter(|one| one.section == index).collect();
        places.sort_by_key(|place| place.offset);
        for (rank, var) in local.section_vars(datasec).enumerate() {
            let name = local.name(var.var);
            let symbol = symbols.get(name).ok_or_else(|| format!("section {}: no symbol {name}", section.name))?;
            let of = |what: String| format!("map {}: {what}", symbol.name);
            let ty = local.resolve(local.target(var.var));
            if local.kind(ty) != Kind::Struct || local.name(ty).is_empty() {
                return Err(of(format!("it is {}, not a struct with a name", type_name(local, ty))));
            }
            if !structs.contains(&ty) {
                structs.push(ty);
            }
            members += local.entry_count(ty) as usize;
            if members > MOST_MEMBERS || all.len() >= MOST_MAPS || structs.len() > MOST_STRUCTS {
                return Err(of(format!(
                    "more than {MOST_MAPS} such maps, {MOST_STRUCTS} structs or {MOST_MEMBERS} members in them"
                )));
            }
            for member in local.members(ty) {
                member_bytes = local.size_of(member.ty).unwrap_or(0).saturating_add(member_bytes);
            }
            if member_bytes > MOST_BYTES {
                return Err(of(format!("its members, and those before it, have more than {MOST_BYTES} bytes")));
            }
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
                let mut here = local.members(ty).filter(|member| u64::from(member.bit_offset) == offset * 8);
                if programs.len() > MOST_MEMBERS || !here.any(|member| is_callback(local, &member)) {
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
            // libbpf takes the question mark off when it has read the first of them, and makes the others.
            let autocreate = rank > 0 || !section.name.starts_with('?');
            all.push(StructOps { name: symbol.name, is_linked, autocreate, ty, data, programs });
        }
    }
    Ok(all)
}

/// For each program of an object whether a map that is made names it, and so libbpf loads it; none if no map names it.
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

/// The names of the types by which a kernel that takes them shows it: sorted, and each once.
#[must_use]
pub fn value_types(maps: &[StructOps<'_>], local: &Btf) -> Vec<Vec<u8>> {
    let mut names: Vec<_> =
        maps.iter().map(|map| value_type(essential_name(local.name(map.ty))).into_bytes()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn value_type(name: &str) -> String {
    format!("{VALUE}{name}")
}

/// Why libbpf does not make them on the kernel that has these types. `elsewhere` tells of a type that the BTF lacks whether
/// a module has it; then nothing more is said.
#[must_use]
pub fn misfits(maps: &[StructOps<'_>], local: &Btf, kernel: &Btf, elsewhere: impl Fn(&str) -> bool) -> Vec<String> {
    let mut known: Vec<(TypeId, Result<Option<TypeId>, String>)> = Vec::new();
    let mut all = Vec::new();
    for map in maps.iter().filter(|map| map.autocreate) {
        let at = known.iter().position(|(ty, _)| *ty == map.ty).unwrap_or_else(|| {
            known.push((map.ty, kernels(essential_name(local.name(map.ty)), kernel, &elsewhere)));
            known.len() - 1
        });
        let why = match &known[at].1 {
            Ok(Some(there)) => map.misfit(*there, local, kernel),
            Ok(None) => None,
            Err(why) => Some(why.clone()),
        };
        all.extend(why.map(|why| format!("map {}: {why}", map.name)));
    }
    all.extend(shared(maps, local));
    all
}

/// The kernel's struct of that name, which it takes from programs; none if only a module has it.
fn kernels(name: &str, kernel: &Btf, elsewhere: &impl Fn(&str) -> bool) -> Result<Option<TypeId>, String> {
    let value = value_type(name);
    let Some(value_type) = kernel.find(Kind::Struct, &value) else {
        let why = format!("the BTF has no struct {value}: the kernel takes no {name} from programs");
        return if elsewhere(&value) { Ok(None) } else { Err(why) };
    };
    let ty = kernel.find(Kind::Struct, name).ok_or_else(|| format!("the BTF has no struct {name}"))?;
    if !kernel.members(value_type).any(|member| member.ty == ty) {
        return Err(format!("struct {value} has no struct {name} in it"));
    }
    Ok(Some(ty))
}

/// Why libbpf does not make them together: a program may be one member of one struct only, in however many maps.
fn shared(maps: &[StructOps<'_>], local: &Btf) -> Vec<String> {
    let (mut users, mut all) = (Vec::<(&str, &str, &str)>::new(), Vec::new());
    for map in maps.iter().filter(|map| map.autocreate) {
        let name = essential_name(local.name(map.ty));
        for (member, program) in map.callbacks(local) {
            match users.iter().find(|(user, ..)| *user == program) {
                None => users.push((program, member, name)),
                Some((_, other, of)) if (*other, *of) != (member, name) => all
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
        self.programs.iter().find(|callback| callback.offset == begin).map(|callback| callback.program)
    }

    /// The members that have a program, and which.
    pub fn callbacks<'s>(&'s self, local: &'s Btf) -> impl Iterator<Item = (&'s str, &'a str)> + 's {
        local.members(self.ty).filter_map(|member| Some((member.name, self.program_of(&member)?)))
    }

    /// The first member that the kernel's struct has otherwise.
    fn misfit(&self, there: TypeId, local: &Btf, kernel: &Btf) -> Option<String> {
        let name = kernel.name(there);
        if kernel.entry_count(there) as usize > MOST_MEMBERS {
            return Some(format!("struct {name} of the BTF has more than {MOST_MEMBERS} members"));
        }
        local.members(self.ty).find_map(|member| {
            let other = kernel.members(there).find(|other| other.name == member.name);
            let why = self.misfit_of(&member, other.as_ref(), local, kernel)?;
            Some(format!("member {} of struct {name}: {why}", member.name))
        })
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

//! Maps of type struct_ops: variables in sections of that name, structs of the kernel's that programs fill with callbacks.
//!
//! The rules are libbpf's (src/libbpf.c: `init_struct_ops_maps()`, `bpf_object__collect_st_ops_relos()`,
//! `bpf_map__init_kern_struct_ops()`).

use std::collections::{BTreeMap, HashMap, HashSet};

use super::btf::{Btf, Kind, Member, TypeId};
use super::elf::ObjectFile;
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
    /// The program of each member that has one, by where the member begins, in bytes.
    programs: BTreeMap<u64, &'a str>,
}

/// Whether a section has such maps.
#[must_use]
pub fn is_section(name: &str) -> bool {
    SECTIONS.contains(&name.strip_prefix('?').unwrap_or(name))
}

/// Members, of all maps together, beyond which an object is none that anybody wrote.
const MOST_MEMBERS: usize = 1 << 16;

/// Those of an object.
///
/// # Errors
/// Why libbpf would not take one.
pub fn all<'a>(bytes: &'a [u8], object: &ObjectFile<'a>, local: &Btf) -> Result<Vec<StructOps<'a>>, String> {
    let sections = || object.sections.iter().enumerate().filter(|(_, section)| is_section(section.name));
    if sections().next().is_none() {
        return Ok(Vec::new());
    }
    let symbols = object.symbols.iter().map(|symbol| ((usize::from(symbol.section), symbol.name), symbol));
    let symbols: HashMap<_, _> = symbols.collect();
    let programs = object.programs.iter().map(|program| ((program.section_index, program.offset), program.name));
    let programs: HashMap<_, _> = programs.collect();
    let places = object.relocations.iter().map(|place| ((place.section, place.offset), place.symbol));
    let places: BTreeMap<_, _> = places.collect();
    let (mut all, mut seen, mut members) = (Vec::new(), HashSet::new(), 0);
    for (index, section) in sections() {
        if !seen.insert(section.name) {
            return Err(format!("two sections {}", section.name));
        }
        let datasec = local.find(Kind::Datasec, section.name);
        for var in datasec.into_iter().flat_map(|id| local.section_vars(id)) {
            let name = local.name(var.var);
            let symbol = symbols.get(&(index, name));
            let symbol = symbol.ok_or_else(|| format!("section {}: no symbol {name}", section.name))?;
            let of = |what: String| format!("map {}: {what}", symbol.name);
            let ty = local.resolve(local.target(var.var));
            if local.kind(ty) != Kind::Struct || local.name(ty).is_empty() {
                return Err(of(format!("it is {}, not a struct with a name", type_name(local, ty))));
            }
            members += local.entry_count(ty) as usize;
            if members > MOST_MEMBERS {
                return Err(of(format!("with it there are {members} members, {MOST_MEMBERS} are the most")));
            }
            let size = local.size_of(ty).and_then(|size| usize::try_from(size).ok());
            let start = usize::try_from(symbol.value).ok();
            let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
            let data = range.and_then(|range| section.bytes(bytes).get(range));
            let data = data.ok_or_else(|| of(format!("it goes beyond the end of section {}", section.name)))?;
            let callbacks = local.members(ty).filter(|member| is_callback(local, member));
            let callbacks: HashSet<u64> = callbacks.map(|member| member.bit_offset.into()).collect();
            let end = symbol.value + data.len() as u64;
            let mut of_members = BTreeMap::new();
            for ((_, offset), target) in places.range((index, symbol.value)..(index, end)) {
                let offset = offset - symbol.value;
                if !callbacks.contains(&(offset * 8)) {
                    return Err(of(format!("byte {offset} is not where a callback is")));
                }
                let target = object.symbols.get(*target as usize);
                let program = target.and_then(|target| programs.get(&(usize::from(target.section), target.value)));
                let program = program.ok_or_else(|| of(format!("the callback at byte {offset} is no program")))?;
                of_members.insert(offset, *program);
            }
            let (is_linked, autocreate) = (section.name.ends_with(LINKED), !section.name.starts_with('?'));
            all.push(StructOps { name: symbol.name, is_linked, autocreate, ty, data, programs: of_members });
        }
    }
    Ok(all)
}

/// Why libbpf does not make them together: a program may be one member of one struct only, in however many maps.
#[must_use]
pub fn shared(maps: &[StructOps<'_>], local: &Btf) -> Vec<String> {
    let mut users = HashMap::new();
    let mut all = Vec::new();
    for map in maps.iter().filter(|map| map.autocreate) {
        let name = essential_name(local.name(map.ty));
        for (member, program) in map.callbacks(local) {
            let (other, of) = *users.entry(program).or_insert((member, name));
            if (other, of) != (member, name) {
                all.push(format!("program {program} is member {other} of struct {of}, and {member} of struct {name}"));
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
    /// The members that have a program, and which.
    pub fn callbacks<'s>(&'s self, local: &'s Btf) -> impl Iterator<Item = (&'s str, &'a str)> + 's {
        let program = |member: &Member<'_>| self.programs.get(&u64::from(member.bit_offset / 8)).copied();
        local.members(self.ty).filter_map(move |member| Some((member.name, program(&member)?)))
    }

    /// The type that the kernel makes of the struct.
    #[must_use]
    pub fn value_type(&self, local: &Btf) -> String {
        format!("{VALUE}{}", essential_name(local.name(self.ty)))
    }

    /// Why libbpf does not make it on the kernel that has these types; none if it does, or is not to.
    #[must_use]
    pub fn misfit(&self, local: &Btf, kernel: &Btf) -> Option<String> {
        if !self.autocreate {
            return None;
        }
        let (name, value) = (essential_name(local.name(self.ty)), self.value_type(local));
        let why = 'why: {
            let Some(value_type) = kernel.find(Kind::Struct, &value) else {
                break 'why Some(format!("the BTF has no struct {value}: the kernel takes no {name} from programs"));
            };
            let Some(ty) = kernel.find(Kind::Struct, name) else {
                break 'why Some(format!("the BTF has no struct {name}"));
            };
            if !kernel.members(value_type).any(|member| member.ty == ty) {
                break 'why Some(format!("struct {value} has no struct {name} in it"));
            }
            let mut theirs = HashMap::new();
            kernel.members(ty).for_each(|member| {
                theirs.entry(member.name).or_insert(member);
            });
            local.members(self.ty).find_map(|member| {
                let why = self.misfit_of(&member, theirs.get(member.name), local, kernel)?;
                Some(format!("member {} of struct {name}: {why}", member.name))
            })
        };
        why.map(|why| format!("map {}: {why}", self.name))
    }

    fn misfit_of(&self, here: &Member<'_>, there: Option<&Member<'_>>, local: &Btf, kernel: &Btf) -> Option<String> {
        let Some(size) = local.size_of(here.ty) else { return Some("it has no size".to_owned()) };
        let offset = u64::from(here.bit_offset / 8);
        let program = self.programs.get(&offset);
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

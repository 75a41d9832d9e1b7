//! Maps as an object asks for them: the types of the variables in its `.maps` section (`__uint(type, ...)`,
//! `__type(key, ...)`). The conventions are libbpf's; the values are those of the kernel's include/uapi/linux/bpf.h.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::btf::{Btf, Kind, TypeId};
use super::elf::{ObjectFile, Section};
use super::relo::type_name;
use super::sort;
use super::uses::Places;

/// The definition of a map. A field that the definition leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapDefinition {
    /// `enum bpf_map_type`
    pub map_type: Option<u32>,
    /// Bytes of a key.
    pub key_size: Option<u32>,
    /// The key's type in C.
    pub key: Option<Arc<str>>,
    /// Bytes of a value.
    pub value_size: Option<u32>,
    /// The value's type in C.
    pub value: Option<Arc<str>>,
    /// The capacity, in entries.
    pub max_entries: Option<u32>,
    /// `BPF_F_*`
    pub flags: Option<u32>,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// 1: libbpf finds the map in the BPF file system by its name, or puts it there.
    pub pinning: Option<u32>,
    /// A number. The map type decides its meaning.
    pub extra: Option<u64>,
    /// The definition of the maps inside the map.
    pub inner: Option<Box<MapDefinition>>,
}

impl MapDefinition {
    /// The type's name.
    pub fn type_name(&self) -> Cow<'static, str> {
        self.map_type.map_or("unknown".into(), map_type_name)
    }

    /// The flags' names; a flag without a name is left out.
    pub fn flag_names(&self) -> Vec<&'static str> {
        let flags = self.flags.unwrap_or(0);
        FLAGS.iter().filter(|(bit, _)| flags & (1 << bit) != 0).map(|(_, name)| *name).collect()
    }
}

/// The name of a map type; `unknown#99` for a type that is newer than this list.
pub fn map_type_name(number: u32) -> Cow<'static, str> {
    TYPES.get(number as usize).map_or_else(|| format!("unknown#{number}").into(), |name| (*name).into())
}

/// Names of `enum bpf_map_type`, as libbpf and bpftool print them.
#[rustfmt::skip]
const TYPES: &[&str] = &[
    "unspec", "hash", "array", "prog_array", "perf_event_array", "percpu_hash", "percpu_array", "stack_trace",
    "cgroup_array", "lru_hash", "lru_percpu_hash", "lpm_trie", "array_of_maps", "hash_of_maps", "devmap", "sockmap",
    "cpumap", "xskmap", "sockhash", "cgroup_storage", "reuseport_sockarray", "percpu_cgroup_storage", "queue", "stack",
    "sk_storage", "devmap_hash", "struct_ops", "ringbuf", "inode_storage", "task_storage", "bloom_filter",
    "user_ringbuf", "cgrp_storage", "arena", "insn_array",
];

/// Names of map flags, by bit.
const FLAGS: &[(u32, &str)] = &[
    (0, "BPF_F_NO_PREALLOC"),
    (1, "BPF_F_NO_COMMON_LRU"),
    (2, "BPF_F_NUMA_NODE"),
    (3, "BPF_F_RDONLY"),
    (4, "BPF_F_WRONLY"),
    (5, "BPF_F_STACK_BUILD_ID"),
    (6, "BPF_F_ZERO_SEED"),
    (7, "BPF_F_RDONLY_PROG"),
    (8, "BPF_F_WRONLY_PROG"),
    (9, "BPF_F_CLONE"),
    (10, "BPF_F_MMAPABLE"),
    (11, "BPF_F_PRESERVE_ELEMS"),
    (12, "BPF_F_INNER_MAP"),
    (13, "BPF_F_LINK"),
    (14, "BPF_F_PATH_FD"),
    (15, "BPF_F_VTYPE_BTF_OBJ_FD"),
    (16, "BPF_F_TOKEN_FD"),
    (17, "BPF_F_SEGV_ON_FAULT"),
    (18, "BPF_F_NO_USER_CONV"),
];

/// The map types that take initial values: `BPF_MAP_TYPE_PROG_ARRAY`, `BPF_MAP_TYPE_ARRAY_OF_MAPS`,
/// `BPF_MAP_TYPE_HASH_OF_MAPS`.
const PROG_ARRAY: u32 = 3;
const HASH_OF_MAPS: u32 = 13;
const MAPS_IN_IT: [u32; 2] = [12, HASH_OF_MAPS];

/// The number of names that a definition's members can have. A definition has each name at most once.
const MOST_MEMBERS: u32 = 11;

/// The definitions of an object's maps.
#[derive(Debug)]
pub struct Definitions<'b> {
    btf: &'b Btf,
    /// The variables in the section `.maps`, by name. Of several with one name, the first.
    vars: HashMap<&'b str, TypeId>,
    /// Size and name of the types that keys and values have, as far as they were computed already.
    known: RefCell<HashMap<TypeId, (u32, Arc<str>)>>,
}

impl<'b> Definitions<'b> {
    /// Finds the variables of the section `.maps`.
    pub fn new(btf: &'b Btf) -> Self {
        let vars = btf.find(Kind::Datasec, ".maps").into_iter().flat_map(|section| btf.section_vars(section));
        let mut by_name = HashMap::new();
        for var in vars {
            by_name.entry(btf.name(var.var)).or_insert(var.var);
        }
        Definitions { btf, vars: by_name, known: RefCell::default() }
    }

    /// The definition of the map called `name`; `None` if the object's BTF has no such variable in its `.maps` section.
    ///
    /// # Errors
    /// The reason why libbpf would refuse the map.
    pub fn of(&self, name: &str) -> Result<Option<MapDefinition>, String> {
        let Some(var) = self.vars.get(name) else { return Ok(None) };
        if self.btf.var_is_static(*var) {
            return Err(format!("map {name} is static; libbpf takes only global ones"));
        }
        let ty = self.struct_of(*var);
        if self.btf.kind(ty) != Kind::Struct {
            return Err(format!("map {name} is {}, not a struct", type_name(self.btf, ty)));
        }
        self.parse(ty, true).map(Some).map_err(|what| format!("map {name}: {what}"))
    }

    fn struct_of(&self, var: TypeId) -> TypeId {
        self.btf.resolve(self.btf.target(var))
    }

    /// The byte offset in the map's definition at which the initial values of the map called `name` begin; `None` if the map
    /// takes none.
    pub fn values_at(&self, name: &str) -> Option<u64> {
        let last = self.btf.members(self.struct_of(*self.vars.get(name)?)).last()?;
        (last.name == "values").then_some(u64::from(last.bit_offset / 8))
    }

    fn parse(&self, ty: TypeId, may_nest: bool) -> Result<MapDefinition, String> {
        let btf = self.btf;
        let mut map = MapDefinition::default();
        if btf.entry_count(ty) > MOST_MEMBERS {
            return Err(format!("its definition has {} members, {MOST_MEMBERS} are known", btf.entry_count(ty)));
        }
        for (rank, member) in btf.members(ty).enumerate() {
            match member.name {
                "type" => map.map_type = Some(number(btf, member.ty, member.name)?),
                "max_entries" => map.max_entries = Some(number(btf, member.ty, member.name)?),
                "map_flags" => map.flags = Some(number(btf, member.ty, member.name)?),
                "numa_node" => map.numa_node = Some(number(btf, member.ty, member.name)?),
                "pinning" => match number(btf, member.ty, member.name)? {
                    _ if !may_nest => return Err("an inner map cannot be pinned".to_owned()),
                    how @ 0..=1 => map.pinning = Some(how),
                    how => return Err(format!("its pinning is {how}, which libbpf does not know")),
                },
                "map_extra" => map.extra = Some(long(btf, member.ty)?),
                "key_size" => map.key_size = Some(same(map.key_size, number(btf, member.ty, member.name)?, "key")?),
                "value_size" => {
                    map.value_size = Some(same(map.value_size, number(btf, member.ty, member.name)?, "value")?)
                }
                "key" => {
                    let (size, text) = self.pointed_to(member.ty, "key")?;
                    (map.key_size, map.key) = (Some(same(map.key_size, size, "key")?), Some(text));
                }
                "value" => {
                    let (size, text) = self.pointed_to(member.ty, "value")?;
                    (map.value_size, map.value) = (Some(same(map.value_size, size, "value")?), Some(text));
                }
                "values" if !may_nest => return Err("an inner map cannot contain maps".to_owned()),
                "values" if rank + 1 < btf.entry_count(ty) as usize => {
                    return Err("values is not its last member".to_owned());
                }
                "values" => {
                    let kind = map.map_type.unwrap_or(0);
                    if !(MAPS_IN_IT.contains(&kind) || kind == PROG_ARRAY) {
                        return Err(format!("a map of type {} takes no values", map_type_name(kind)));
                    }
                    map.value_size = Some(same(map.value_size, 4, "value")?);
                    let array = btf.array(btf.resolve(member.ty)).filter(|array| array.nelems == 0);
                    let pointer = btf.resolve(array.ok_or("values is not an array without length")?.elem);
                    let inner = btf.resolve(btf.target(pointer));
                    match btf.kind(inner) {
                        Kind::Struct if kind != PROG_ARRAY => map.inner = Some(Box::new(self.parse(inner, false)?)),
                        Kind::FuncProto if kind == PROG_ARRAY => {}
                        _ => return Err(format!("values are {}", type_name(btf, inner))),
                    }
                }
                other => return Err(format!("its definition has an unknown member {}", super::relo::cut(other))),
            }
        }
        if map.map_type.is_none_or(|number| number == 0) {
            return Err("its definition has no type".to_owned());
        }
        Ok(map)
    }

    /// `__type(name, TYPE)`: a pointer to the type. Returns the type's size and name.
    fn pointed_to(&self, ty: TypeId, what: &str) -> Result<(u32, Arc<str>), String> {
        let btf = self.btf;
        if btf.kind(ty) != Kind::Ptr {
            return Err(format!("its {what} is {}, not a pointer", type_name(btf, ty)));
        }
        let to = btf.target(ty);
        if let Some((size, name)) = self.known.borrow().get(&to) {
            return Ok((*size, name.clone()));
        }
        let (size, name) = (btf.size_of(to).and_then(|size| u32::try_from(size).ok()), type_name(btf, to));
        let size = size.ok_or_else(|| format!("its {what}, {name}, has no size"))?;
        let name: Arc<str> = name.into();
        self.known.borrow_mut().insert(to, (size, name.clone()));
        Ok((size, name))
    }
}

/// Checks the initial values of maps: programs and maps, by the relocations of the section `.maps`.
///
/// # Errors
/// The reason why libbpf would refuse one of them.
pub(super) fn check_values(
    object: &ObjectFile<'_>,
    places: &Places<'_, '_>,
    maps: &Definitions<'_>,
) -> Result<(), String> {
    let is_maps = |section: &Section<'_>| section.name == ".maps";
    let names = sort::set(object.maps.iter().map(String::as_str));
    for place in object.relocations.iter().filter(|one| object.sections.get(one.section).is_some_and(is_maps)) {
        let offset = place.offset;
        let section = u16::try_from(place.section).unwrap_or(0);
        let map =
            places.named_at(section, offset).ok_or_else(|| format!("byte {offset} of section .maps is in no map"))?;
        let Some(definition) = maps.of(map.name)? else { continue };
        let at = offset - map.value;
        let of = |what: &str| Err(format!("map {}, byte {at}: {what}", map.name));
        if !maps.values_at(map.name).is_some_and(|values| at >= values && (at - values) % 8 == 0) {
            return of("only values may be set, which some types of maps have");
        }
        let target = object.symbols.get(place.symbol as usize);
        let target = target.ok_or_else(|| format!("map {}, byte {at}: there is no such symbol", map.name))?;
        if definition.map_type == Some(PROG_ARRAY) {
            let program = object.program_at(target.section.into(), target.value);
            if program.is_none_or(|index| object.programs[index].name != target.name) {
                return of(&format!("{} is no program, or none by that name", named(target.name)));
            }
        } else if !target.home().and_then(|home| object.sections.get(home)).is_some_and(is_maps)
            || !names.contains(target.name)
        {
            return of(&format!("{} is no map, or none by that name", named(target.name)));
        } else if definition.map_type == Some(HASH_OF_MAPS) && definition.key_size != Some(4) {
            return of("a hash of maps takes values only with keys of 4 bytes");
        }
    }
    Ok(())
}

fn named(name: &str) -> &str {
    if name.is_empty() { "what is there" } else { name }
}

/// `__uint(name, NUMBER)`: a pointer to an array of NUMBER elements.
fn number(btf: &Btf, ty: TypeId, name: &str) -> Result<u32, String> {
    let pointer = btf.resolve(ty);
    let array = (btf.kind(pointer) == Kind::Ptr).then(|| btf.array(btf.target(pointer))).flatten();
    array.map(|array| array.nelems).ok_or_else(|| format!("{name} is {}, not a number", type_name(btf, ty)))
}

/// `__ulong(name, NUMBER)`: an enum of one constant, or the form that [`number`] reads.
fn long(btf: &Btf, ty: TypeId) -> Result<u64, String> {
    let id = btf.resolve(ty);
    match (btf.kind(id).is_enum() && btf.entry_count(id) == 1).then(|| btf.enumerator(id, 0)).flatten() {
        Some(constant) => Ok(constant.value as u64),
        None => number(btf, ty, "map_extra").map(u64::from),
    }
}

fn same(known: Option<u32>, size: u32, what: &str) -> Result<u32, String> {
    match known {
        Some(known) if known != 0 && known != size => Err(format!("its {what} has {known} and {size} bytes")),
        _ => Ok(size),
    }
}

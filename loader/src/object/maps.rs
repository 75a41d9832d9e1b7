//! Maps as an object asks for them, from the types of the variables in its `.maps` section (`__uint(type, ...)`,
//! `__type(key, ...)`): libbpf's conventions, the values are those of the kernel's include/uapi/linux/bpf.h.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::btf::{Btf, Kind, TypeId};
use super::relo::type_name;

/// What a map's definition says. What it leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapDefinition {
    /// `enum bpf_map_type`
    pub map_type: Option<u32>,
    /// Bytes of a key.
    pub key_size: Option<u32>,
    /// The key's type in C.
    pub key: Option<Rc<str>>,
    /// Bytes of a value.
    pub value_size: Option<u32>,
    /// The value's type in C.
    pub value: Option<Rc<str>>,
    /// How many entries it can have.
    pub max_entries: Option<u32>,
    /// `BPF_F_*`
    pub flags: Option<u32>,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// 1: found or put under its name in the BPF file system.
    pub pinning: Option<u32>,
    /// What it means depends on the type.
    pub extra: Option<u64>,
    /// The maps inside it.
    pub inner: Option<Box<MapDefinition>>,
}

impl MapDefinition {
    /// The type's name.
    pub fn type_name(&self) -> Cow<'static, str> {
        self.map_type.map_or("unknown".into(), map_type_name)
    }

    /// The flags' names, for those that have one.
    pub fn flag_names(&self) -> Vec<&'static str> {
        let flags = self.flags.unwrap_or(0);
        FLAGS.iter().filter(|(bit, _)| flags & (1 << bit) != 0).map(|(_, name)| *name).collect()
    }
}

/// The name of a map type; `unknown#99` for one that is newer than this list.
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

/// Names of the flags for maps, by bit.
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

/// Names that a definition's members have. Each says something once.
const MOST_MEMBERS: u32 = 11;

/// The definitions of an object's maps.
#[derive(Debug)]
pub struct Definitions<'b> {
    btf: &'b Btf,
    /// The types of the variables in the section `.maps`, by name; of equal ones the first.
    types: HashMap<&'b str, TypeId>,
    /// What is known of types that keys and values have: size and name.
    known: RefCell<HashMap<TypeId, (u32, Rc<str>)>>,
}

impl<'b> Definitions<'b> {
    /// Looks for them.
    pub fn new(btf: &'b Btf) -> Self {
        let vars = btf.find(Kind::Datasec, ".maps").into_iter().flat_map(|section| btf.section_vars(section));
        let mut types = HashMap::new();
        for var in vars {
            types.entry(btf.name(var.var)).or_insert(btf.target(var.var));
        }
        Definitions { btf, types, known: RefCell::default() }
    }

    /// The definition of the map called `name`; `None` if the object's BTF has no such variable in its `.maps` section.
    ///
    /// # Errors
    /// Why libbpf would not take it.
    pub fn of(&self, name: &str) -> Result<Option<MapDefinition>, String> {
        let Some(ty) = self.types.get(name).map(|ty| self.btf.resolve(*ty)) else { return Ok(None) };
        if self.btf.kind(ty) != Kind::Struct {
            return Err(format!("map {name} is {}, not a struct", type_name(self.btf, ty)));
        }
        self.parse(ty, true).map(Some).map_err(|what| format!("map {name}: {what}"))
    }
    fn parse(&self, ty: TypeId, may_nest: bool) -> Result<MapDefinition, String> {
        let btf = self.btf;
        let mut map = MapDefinition::default();
        if btf.entry_count(ty) > MOST_MEMBERS {
            return Err(format!("its definition has {} members, {MOST_MEMBERS} are known", btf.entry_count(ty)));
        }
        for member in btf.members(ty) {
            match member.name {
                "type" => map.map_type = Some(number(btf, member.ty, member.name)?),
                "max_entries" => map.max_entries = Some(number(btf, member.ty, member.name)?),
                "map_flags" => map.flags = Some(number(btf, member.ty, member.name)?),
                "numa_node" => map.numa_node = Some(number(btf, member.ty, member.name)?),
                "pinning" => map.pinning = Some(number(btf, member.ty, member.name)?),
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
                "values" => {
                    map.value_size = Some(same(map.value_size, 4, "value")?);
                    let array = btf.array(btf.resolve(member.ty)).filter(|array| array.nelems == 0);
                    let pointer = btf.resolve(array.ok_or("values is not an array without length")?.elem);
                    let inner = btf.resolve(btf.target(pointer));
                    match btf.kind(inner) {
                        Kind::Struct if may_nest => map.inner = Some(Box::new(self.parse(inner, false)?)),
                        Kind::Struct => return Err("maps in maps in maps".to_owned()),
                        Kind::FuncProto => {}
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

    /// `__type(name, TYPE)`: a pointer to the type. Its size and name.
    fn pointed_to(&self, ty: TypeId, what: &str) -> Result<(u32, Rc<str>), String> {
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
        let name: Rc<str> = name.into();
        self.known.borrow_mut().insert(to, (size, name.clone()));
        Ok((size, name))
    }
}

/// `__uint(name, NUMBER)`: a pointer to an array of that many.
fn number(btf: &Btf, ty: TypeId, name: &str) -> Result<u32, String> {
    let pointer = btf.resolve(ty);
    let array = (btf.kind(pointer) == Kind::Ptr).then(|| btf.array(btf.target(pointer))).flatten();
    array.map(|array| array.nelems).ok_or_else(|| format!("{name} is {}, not a number", type_name(btf, ty)))
}

/// `__ulong(name, NUMBER)`: an enum of one constant; or as [`number`].
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

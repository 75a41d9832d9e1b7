//! Maps: those that the object defines, and those that libbpf makes for its variables.

use std::collections::BTreeSet;

use super::{Callback, MapFacts};
use crate::btf::{Btf, Kind, TypeId};
use crate::elf::ObjectFile;
use crate::maps::{self, Definitions, MapDefinition};
use crate::relo::type_name;
use crate::sort;
use crate::struct_ops::StructOps;
use crate::uses::{ARENA, Places, is_data};

/// The smallest page of the kernels that have arenas, whose entries are pages.
const PAGE: u64 = 4096;

fn map_facts(name: String, map: MapDefinition) -> MapFacts {
    MapFacts {
        name,
        map_type: map.type_name(),
        type_number: map.map_type,
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
pub(super) fn all(
    object: &ObjectFile<'_>,
    btf: Option<&Btf>,
    places: &Places<'_, '_>,
    struct_ops: &[StructOps<'_>],
    refused: &mut Vec<String>,
) -> Vec<MapFacts> {
    let mut all = Vec::new();
    let hidden = sort::set(object.symbols.iter().filter(|one| one.hidden).map(|one| one.name));
    let definitions = btf.map(Definitions::new);
    for name in &object.maps {
        if hidden.contains(name.as_str()) {
            refused.push(format!("map {name} is hidden; libbpf takes only those that others may see"));
        }
        match definitions.as_ref().map(|definitions| definitions.of(name)).transpose() {
            Ok(definition) => all.push(map_facts(name.clone(), definition.flatten().unwrap_or_default())),
            Err(why) => refused.push(why),
        }
    }
    if let Some(definitions) = definitions.as_ref().filter(|_| refused.is_empty()) {
        refused.extend(maps::check_values(object, places, definitions).err());
    }
    for section in object.sections.iter().filter(|section| is_data(section) && section.size > 0) {
        let definition = of_variables(section.name, section.size, btf, &hidden);
        all.push(MapFacts { implicit: true, ..map_facts(section.name.to_owned(), definition) });
    }
    if let Some(size) = btf.and_then(configuration_size) {
        let definition = of_variables(CONFIGURATION, size, btf, &hidden);
        all.push(MapFacts { implicit: true, ..map_facts(CONFIGURATION.to_owned(), definition) });
    }
    let Some(btf) = btf else { return all };
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
    all
}

/// A map of type arena has the variables of one section in it, at its end.
///
/// # Errors
/// Why libbpf would not put them there.
pub(super) fn check_arena(object: &ObjectFile<'_>, maps: &[MapFacts]) -> Result<(), String> {
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
    // A section is mappable only if it has a global variable.
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

/// The bytes of the object's `.kconfig` variables; none if it has none. libbpf sorts them by descending alignment
/// (cmp_externs() in src/libbpf.c), so there is no padding.
fn configuration_size(btf: &Btf) -> Option<u64> {
    let section = btf.find(Kind::Datasec, CONFIGURATION)?;
    btf.section_vars(section).try_fold(0, |size: u64, var| size.checked_add(btf.size_of(btf.target(var.var))?))
}

//! Variables: those of the object, and those that it expects from outside.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{ExternFacts, MOST_VALUE, VariableFacts};
use crate::btf::{Btf, Kind, TypeId};
use crate::elf::{ObjectFile, Section, Symbol};
use crate::relo::type_name;
use crate::uses::Places;

/// The types of variables. Static variables of several files that were linked may have one name.
struct VariableTypes<'b> {
    /// By name: the section, the offset and the type of each; sections and offsets are those of the linked file.
    by_name: HashMap<&'b str, Vec<(&'b str, u32, TypeId)>>,
}

impl<'b> VariableTypes<'b> {
    fn new(btf: &'b Btf) -> Self {
        let mut by_name: HashMap<&str, Vec<_>> = HashMap::new();
        for section in btf.ids().filter(|id| btf.kind(*id) == Kind::Datasec) {
            for var in btf.section_vars(section).filter(|var| btf.kind(var.var) == Kind::Var) {
                let place = (btf.name(section), var.offset, btf.target(var.var));
                by_name.entry(btf.name(var.var)).or_default().push(place);
            }
        }
        VariableTypes { by_name }
    }

    /// The type of the variable with this symbol: of several, the one in that section and at that offset.
    fn of(&self, section: &str, symbol: &Symbol<'_>) -> Option<TypeId> {
        let all = self.by_name.get(symbol.name)?;
        let differs = |place: &&(&str, u32, TypeId)| (place.0 != section, u64::from(place.1) != symbol.value);
        all.iter().min_by_key(differs).map(|place| place.2)
    }
}

pub(super) fn all<'a>(bytes: &'a [u8], btf: Option<&Btf>, places: &Places<'_, 'a>) -> Vec<VariableFacts<'a>> {
    let types = btf.map(VariableTypes::new);
    let mut names: HashMap<TypeId, Arc<str>> = HashMap::new();
    let one = |(section, symbol): (&Section<'a>, &Symbol<'a>)| {
        let ty = btf.zip(types.as_ref().and_then(|types| types.of(section.name, symbol)));
        let ty = ty.map(|(btf, ty)| names.entry(ty).or_insert_with(|| type_name(btf, ty).into()).clone());
        let start = usize::try_from(symbol.value).ok();
        let size = usize::try_from(symbol.size).ok().filter(|size| *size <= MOST_VALUE);
        let value = start.zip(size).and_then(|(start, size)| section.bytes(bytes).get(start..start.checked_add(size)?));
        VariableFacts { name: symbol.name, section: section.name, offset: symbol.value, size: symbol.size, ty, value }
    };
    places.variables().map(one).collect()
}

pub(super) fn externs<'a>(object: &ObjectFile<'a>, btf: Option<&Btf>) -> Vec<ExternFacts<'a>> {
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
    let one = |symbol: &Symbol<'a>| ExternFacts {
        name: symbol.name,
        weak: symbol.bind == 2,
        kind: kinds.get(symbol.name).copied(),
        in_btf: None,
    };
    outside.map(one).collect()
}

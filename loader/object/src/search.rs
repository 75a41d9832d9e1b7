//! The part of a kernel's BTF that libbpf searches to relocate an object: every type that has the name of a type that the
//! object asks about, with everything inside it.
//!
//! The names alone decide which types are in this part, and not what our own resolver made of the questions. So libbpf finds
//! every candidate that it would find in the whole BTF, the same members in each, and the same contradictions.

use std::collections::{HashMap, HashSet};

use super::btf::{Btf, Kind, is_code};
use super::btf_ext::BtfExt;
use super::cut::{Depth, Keep};
use super::relo::{RelocationKind, by_essential_name, essential_name, same_kind};

/// The types that an object's relocations ask about.
#[derive(Clone, Debug, Default)]
pub struct Roots(HashMap<String, HashSet<Root>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Root {
    kind: Kind,
    depth: Depth,
    /// The question is about the constants of an enum.
    constants: bool,
}

impl Roots {
    /// The types that these relocations ask about, in the order of the object. None if a relocation asks for the number of a
    /// type, which is different in a part of the BTF, or is of a kind that is not known here.
    pub fn of(local: &Btf, ext: &BtfExt<'_>) -> Option<Self> {
        let mut roots: HashMap<String, HashSet<Root>> = HashMap::new();
        for relocation in ext.relocations.iter().flat_map(|stretch| &stretch.records) {
            let depth = match RelocationKind::from_number(relocation.kind)? {
                RelocationKind::TypeIdLocal => continue,
                RelocationKind::TypeIdTarget => return None,
                RelocationKind::TypeMatches => Depth::Whole,
                kind if kind.is_type() => Depth::Type,
                _ => Depth::Inside,
            };
            let constants = RelocationKind::from_number(relocation.kind).is_some_and(RelocationKind::is_enumval);
            let name = essential_name(local.name(relocation.root));
            let root = Root { kind: local.kind(relocation.root), depth, constants };
            match roots.get_mut(name) {
                Some(roots) => drop(roots.insert(root)),
                None => drop(roots.insert(name.to_owned(), HashSet::from([root]))),
            }
        }
        Some(Roots(roots))
    }

    /// That part of `target`, as a BTF of its own.
    pub fn within(&self, target: &Btf) -> Vec<u8> {
        let mut keep = Keep::of(target);
        keep.pointer_size();
        let functions = self.0.values().flatten().any(|root| is_code(root.kind));
        for (name, candidates) in by_essential_name(target, self.0.keys().map(String::as_str), functions) {
            for candidate in candidates {
                let kind = target.kind(candidate);
                for root in self.0.get(name).into_iter().flatten().filter(|root| same_kind(root.kind, kind)) {
                    keep.keep(candidate, root.depth);
                    if root.constants {
                        keep.all_entries(target.resolve(candidate));
                    }
                }
            }
        }
        keep.written()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::btf::samples::{Builder, sample};

    fn asked(name: &str, kind: Kind, depth: Depth) -> Roots {
        Roots(HashMap::from([(name.to_owned(), HashSet::from([Root { kind, depth, constants: false }]))]))
    }

    #[test]
    fn fields_are_all_there_at_their_places() {
        for big_endian in [false, true] {
            let whole = Btf::parse(&sample(big_endian).0).unwrap();
            let part = Btf::parse(&asked("sock", Kind::Struct, Depth::Inside).within(&whole)).unwrap();
            for field in ["c", "c.daddr", "c.d8", "c.port", "c.num", "c.kern", "c.st", "next", "name", "a"] {
                let place = |btf: &Btf| btf.field("sock", field).map(|field| (field.bit_offset, field.size));
                assert_eq!(place(&part), place(&whole), "{field}");
                assert!(place(&part).is_some(), "{field}");
            }
            assert!(part.find(Kind::Typedef, "btf_trace_it").is_none() && part.find(Kind::Func, "it").is_none());
        }
    }

    /// libbpf must find a contradiction between types of one name, so all of them are there.
    #[test]
    fn every_type_of_a_name_is_there() {
        let mut b = Builder::new(false);
        let int = b.int("int", 4, true);
        let other = b.composite(4, "other", 4, false, &[("a", int, 0)]);
        let to_other = b.ptr(other);
        for (kind, name, at) in [(4, "one", 0), (4, "one", 32), (5, "one", 0), (4, "one___old", 64)] {
            b.composite(kind, name, 24, false, &[("a", int, at), ("other", to_other, 128)]);
        }
        let whole = Btf::parse(&b.finish()).unwrap();
        let part = Btf::parse(&asked("one", Kind::Struct, Depth::Inside).within(&whole)).unwrap();
        let structs = part.ids().filter(|id| part.kind(*id) == Kind::Struct);
        let places: Vec<_> = structs.map(|id| (part.name(id), part.members(id).next().unwrap().bit_offset)).collect();
        assert_eq!(places, [("one", 0), ("one", 32), ("one___old", 64)]);
        // Fields lie in the struct, not behind its pointers.
        assert!(part.find(Kind::Union, "one").is_none() && part.find(Kind::Struct, "other").is_none());
    }
}

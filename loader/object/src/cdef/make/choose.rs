//! Chooses the types and members that are defined.

use std::collections::{BTreeMap, HashSet};

use super::{Maker, Pick, describe, keyword};
use crate::btf::{Enumerator, Kind, Member, TypeId};
use crate::cdef::CdefError;
use crate::cdef::list::{Entry, Name};
use crate::nearest::{hint, nearest};

impl<'a> Maker<'a> {
    /// Finds the type of an entry, and remembers which members are wanted. `None` if the type is optional and missing.
    pub(super) fn choose(&mut self, entry: &Entry) -> Result<Option<TypeId>, CdefError> {
        let kinds: &[Kind] = match entry.kind {
            Some(Kind::Enum) => &[Kind::Enum, Kind::Enum64],
            Some(Kind::Struct) => &[Kind::Struct],
            Some(Kind::Union) => &[Kind::Union],
            Some(Kind::Typedef) => &[Kind::Typedef],
            _ => &[Kind::Struct, Kind::Union, Kind::Typedef, Kind::Enum, Kind::Enum64],
        };
        let Some(id) = kinds.iter().find_map(|kind| self.listed.get(&(*kind, entry.name.as_str())).copied()) else {
            if entry.optional {
                return Ok(None);
            }
            let known = self.btf.ids().filter(|id| kinds.contains(&self.btf.kind(*id))).map(|id| self.btf.name(id));
            let hint = hint(&nearest(&entry.name, known));
            return Err(CdefError::new(format!("this BTF has no {}{hint}", describe(entry))));
        };
        // An unnamed struct can be listed only by its typedef's name.
        let target = if self.btf.kind(id) == Kind::Typedef { self.btf.resolve(id) } else { id };
        let Some(members) = &entry.members else {
            self.picks.insert(target, Pick::Whole);
            return Ok(Some(id));
        };
        let has_tag = self.btf.kind(target).is_composite() || self.btf.kind(target).is_enum();
        if target != id && has_tag && !self.btf.name(target).is_empty() {
            let tag = format!("{} {}", keyword(self.btf.kind(target)), self.btf.name(target));
            return Err(CdefError::new(format!("typedef {} stands for {tag}: list the members of that", entry.name)));
        }
        for member in members {
            self.check_has(target, entry, member)?;
        }
        let pick = self.picks.entry(target).or_insert_with(|| Pick::Only(BTreeMap::new()));
        if let Pick::Only(names) = pick {
            for member in members {
                let optional = entry.optional || member.optional;
                names.entry(member.name.clone()).and_modify(|o| *o &= optional).or_insert(optional);
            }
        }
        Ok(Some(id))
    }

    fn check_has(&self, id: TypeId, entry: &Entry, wanted: &Name) -> Result<(), CdefError> {
        let kind = self.btf.kind(id);
        let (what, all): (_, Vec<&str>) = if kind.is_composite() {
            if self.btf.find_member(id, &wanted.name).is_some() {
                return Ok(());
            }
            ("member", self.flat_members(id, &|_| true).iter().map(|m| m.name).collect())
        } else if kind.is_enum() {
            if self.btf.enumerators(id).any(|e| e.name == wanted.name) {
                return Ok(());
            }
            ("constant", self.btf.enumerators(id).map(|e| e.name).collect())
        } else {
            return Err(CdefError::new(format!("{} has no members", describe(entry))));
        };
        if entry.optional || wanted.optional {
            return Ok(());
        }
        let hint = hint(&nearest(&wanted.name, all.into_iter()));
        Err(CdefError::new(format!("{} has no {what} {}{hint}", describe(entry), wanted.name)))
    }

    /// Members in the kernel's order. An anonymous struct or union is replaced by its members.
    fn flat_members(&self, id: TypeId, wanted: &dyn Fn(&str) -> bool) -> Vec<Member<'a>> {
        let mut found = Vec::new();
        let mut seen = HashSet::from([id]);
        // Not recursive: a hostile file can nest as deep as it is long.
        let mut todo: Vec<Member<'a>> = self.btf.members(id).collect();
        todo.reverse();
        while let Some(member) = todo.pop() {
            if !member.name.is_empty() {
                if wanted(member.name) {
                    found.push(member);
                }
                continue;
            }
            let inner = self.btf.resolve(member.ty);
            if self.btf.kind(inner).is_composite() && seen.insert(inner) {
                let before = todo.len();
                todo.extend(self.btf.members(inner));
                todo[before..].reverse();
            }
        }
        found
    }

    /// The members that the definition of a type will have.
    pub(super) fn picked(&self, id: TypeId) -> Vec<Member<'a>> {
        match self.picks.get(&id) {
            Some(Pick::Only(names)) => self.flat_members(id, &|name| names.contains_key(name)),
            _ => self.btf.members(id).collect(),
        }
    }

    pub(super) fn picked_constants(&self, id: TypeId) -> Vec<Enumerator<'a>> {
        match self.picks.get(&id) {
            Some(Pick::Only(names)) => self.btf.enumerators(id).filter(|e| names.contains_key(e.name)).collect(),
            _ => self.btf.enumerators(id).collect(),
        }
    }
}

//! Types by name: one look at every type, for any number of names.

use std::collections::{HashMap, HashSet};

use super::{Btf, Kind, TypeId, two};

/// The beginnings of wanted names. They sort out most names of a kernel before these are measured and hashed.
pub(crate) struct Beginnings(Vec<bool>);

impl Beginnings {
    /// The beginnings of these names, and of the same names with more behind.
    pub(crate) fn of<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut slots = vec![false; 1 << 16];
        for name in names {
            // More may follow a name of one byte at once. So its second byte can be any.
            let wanted = match name.as_bytes() {
                [first, second, ..] => Self::slot(*first, *second)..Self::slot(*first, *second) + 1,
                _ => 0..slots.len(),
            };
            if let Some(slots) = slots.get_mut(wanted) {
                slots.fill(true);
            }
        }
        Beginnings(slots)
    }

    fn slot(first: u8, second: u8) -> usize {
        usize::from(first) << 8 | usize::from(second)
    }
}

/// True for functions and for kinds that describe them: half of a kernel's types. No relocation accesses those.
pub(crate) fn is_code(kind: Kind) -> bool {
    matches!(kind, Kind::Func | Kind::FuncProto | Kind::DeclTag | Kind::Var)
}

impl Btf {
    /// The named types whose names begin like one of those that are wanted, with their names. Code is left out unless `with_code`
    /// asks for it.
    pub(crate) fn beginning_like(
        &self,
        wanted: &Beginnings,
        with_code: bool,
    ) -> impl Iterator<Item = (TypeId, Kind, &str)> {
        let (data, big_endian) = (&*self.data, self.big_endian);
        let strings = data.get(self.strings.0..).unwrap_or_default();
        // This loop runs once for each of a kernel's 150,000 types, so it decodes no more of a type than it needs.
        (0..).zip(&self.index).skip(1).filter_map(move |(id, at)| {
            let [name, info] = two(data.get(*at as usize..)?.first_chunk()?, big_endian);
            let kind = Kind::from_number(info >> 24 & 0x7f)?;
            if name == 0 || (!with_code && is_code(kind)) {
                return None;
            }
            let [first, second] = *strings.get(name as usize..)?.first_chunk()?;
            let found = first != 0 && *wanted.0.get(Beginnings::slot(first, second))?;
            found.then(|| (TypeId(id), kind, self.name_at(name)))
        })
    }

    /// The first type of each of these kinds and names; none of those that this BTF does not have. Looks at every type once,
    /// for any number of names.
    pub fn first<'n>(&'n self, names: &HashSet<(Kind, &'n str)>) -> HashMap<(Kind, &'n str), TypeId> {
        let wanted = Beginnings::of(names.iter().map(|(_, name)| *name).filter(|name| !name.is_empty()));
        let mut found = HashMap::new();
        for (id, kind, name) in self.beginning_like(&wanted, true) {
            if let Some(name) = names.get(&(kind, name)) {
                found.entry(*name).or_insert(id);
            }
        }
        found
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::btf::samples::{Builder, sample};

    #[test]
    fn the_first_of_a_name_is_the_one_that_a_search_finds() {
        let mut b = Builder::new(false);
        let x = b.int("x", 4, true);
        for (kind, name) in [(8, "x"), (8, "xy"), (8, "xy"), (8, "x___old"), (12, "xy")] {
            b.refer(kind, name, x);
        }
        for bytes in [b.finish(), sample(false).0, sample(true).0] {
            let btf = Btf::parse(&bytes).unwrap();
            let there = btf.ids().map(|id| (btf.kind(id), btf.name(id))).filter(|(_, name)| !name.is_empty());
            let absent = [(Kind::Struct, "x"), (Kind::Typedef, "xyz"), (Kind::Int, "y"), (Kind::Int, "")];
            let names: HashSet<_> = there.chain(absent).collect();
            let found = btf.first(&names);
            assert!(names.iter().all(|(kind, name)| found.get(&(*kind, name)).copied() == btf.find(*kind, name)));
            assert!(found.len() > 4);
        }
    }
}

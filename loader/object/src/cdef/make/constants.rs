//! Constants that are wanted without their enum.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::Maker;
use crate::btf::{Enumerator, TypeId};
use crate::cdef::CdefError;
use crate::cdef::list::Entry;
use crate::nearest::{hint, nearest};

impl<'a> Maker<'a> {
    /// Writes constants that are wanted without their enum, those of one enum together. Unnamed enums are searched first.
    pub(super) fn loose_constants(&mut self, entries: &[Entry]) -> Result<(), CdefError> {
        let btf = self.btf;
        let all = || btf.ids().filter(|id| btf.kind(*id).is_enum());
        // The enum of each constant, found in one walk over all enums.
        let mut homes: HashMap<&str, Option<(bool, TypeId, Enumerator<'a>)>> = HashMap::new();
        let loose = entries.iter().filter(|entry| entry.name.is_empty());
        homes.extend(loose.clone().flat_map(|entry| entry.members.iter().flatten()).map(|n| (n.name.as_str(), None)));
        if homes.is_empty() {
            return Ok(());
        }
        for id in all() {
            let named = !btf.name(id).is_empty();
            for constant in btf.enumerators(id) {
                let Some(home) = homes.get_mut(constant.name) else { continue };
                if home.is_none_or(|(was_named, ..)| was_named && !named) {
                    *home = Some((named, id, constant));
                }
            }
        }
        // By enum, in the order of the list: the kernel's order changes from one kernel to the next.
        let mut groups: Vec<(TypeId, Vec<Enumerator<'a>>)> = Vec::new();
        for entry in loose {
            for wanted in entry.members.iter().flatten() {
                match homes.get(wanted.name.as_str()).copied().flatten() {
                    Some((_, id, constant)) => match groups.iter_mut().find(|(other, _)| *other == id) {
                        Some((_, constants)) => constants.push(constant),
                        None => groups.push((id, vec![constant])),
                    },
                    None if entry.optional || wanted.optional => {
                        self.push(format!("/* {}: this kernel has none */", wanted.name))?;
                    }
                    None => {
                        let known = all().flat_map(|id| btf.enumerators(id)).map(|e| e.name);
                        let hint = hint(&nearest(&wanted.name, known));
                        let what = format!("this BTF has no enum with a constant {}{hint}", wanted.name);
                        return Err(CdefError::new(what).on_line(entry.line));
                    }
                }
            }
        }
        for (id, mut constants) in groups {
            constants.retain(|c| self.constants.insert((id, c.name.to_owned())));
            if constants.is_empty() {
                continue;
            }
            let mut text = "enum {\n".to_owned();
            for constant in &constants {
                let _ = writeln!(text, "\t{}", self.constant(constant)?);
            }
            self.push(format!("{text}}};"))?;
        }
        Ok(())
    }
}

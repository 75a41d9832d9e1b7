//! Types that contain themselves. No compiler writes such types, and code that measures or prints one never ends.

use super::{Btf, Kind, TypeId};

/// Which references are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// The parts of a type: members, elements, the type behind a typedef or qualifier. A pointer ends the search.
    Parts,
    /// The types that a type's name consists of: pointers, elements, parameters. A struct ends the search.
    Names,
}

/// The state of a type in the search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    Open,
    Done,
}

impl Btf {
    /// A type that is part of itself, or whose description leads back to itself without passing a struct or union. `None` if
    /// there is no such type: compilers make none. Looks at every type and member twice.
    pub fn cycle(&self) -> Option<TypeId> {
        self.cycle_by(Follow::Parts).or_else(|| self.cycle_by(Follow::Names))
    }

    fn cycle_by(&self, follow: Follow) -> Option<TypeId> {
        let mut marks = vec![Mark::New; self.len() + 1];
        // Each entry is a type and the number of its next reference. The stack is our own, because types can be nested very
        // deep.
        let mut path: Vec<(TypeId, u32)> = Vec::new();
        for start in self.ids() {
            path.push((start, 0));
            while let Some((id, next)) = path.pop() {
                let mark = marks.get_mut(id.0 as usize)?;
                match *mark {
                    Mark::Done => continue,
                    Mark::Open if next == 0 => return Some(id),
                    _ => *mark = Mark::Open,
                }
                match self.reference(id, next, follow) {
                    Some(to) => {
                        path.push((id, next + 1));
                        if !to.is_void() {
                            path.push((to, 0));
                        }
                    }
                    None => *mark = Mark::Done,
                }
            }
        }
        None
    }

    /// Reference number `index` of a type.
    fn reference(&self, id: TypeId, index: u32, follow: Follow) -> Option<TypeId> {
        let kind = self.kind(id);
        match kind {
            Kind::Struct | Kind::Union if follow == Follow::Parts => self.member_type(id, index),
            Kind::FuncProto if follow == Follow::Names => match index {
                0 => Some(self.proto_return(id)),
                _ => self.proto_param(id, index - 1),
            },
            Kind::Array if index == 0 => self.array(id).map(|array| array.elem),
            Kind::Ptr if index == 0 && follow == Follow::Names => Some(self.target(id)),
            _ if index == 0 && kind.is_modifier() => Some(self.target(id)),
            _ => None,
        }
    }
}

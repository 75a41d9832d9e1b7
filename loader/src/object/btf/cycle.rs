//! Types that contain themselves, which no compiler writes: whoever measures or prints one never ends.

use super::{Btf, Kind, TypeId};

/// Which references are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// What is part of a type: members, elements, what a typedef or qualifier stands for. Pointers end it.
    Parts,
    /// What a type's name is made of: pointers, elements, parameters. Structs end it.
    Names,
}

/// How far the search has come with a type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    Open,
    Done,
}

impl Btf {
    /// A type that is part of itself, or whose description leads back to itself without passing a struct or union; `None`
    /// if there is none, as in all that compilers make. Looks at every type and member twice.
    pub fn cycle(&self) -> Option<TypeId> {
        self.cycle_by(Follow::Parts).or_else(|| self.cycle_by(Follow::Names))
    }

    fn cycle_by(&self, follow: Follow) -> Option<TypeId> {
        let mut marks = vec![Mark::New; self.len() + 1];
        // A type, and which of its references comes next: a stack of our own, as types can be nested very deep.
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

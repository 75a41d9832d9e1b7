//! Questions that take more than one type to answer. Each is bounded, whatever the types look like.

use std::collections::HashSet;

use super::{Btf, Kind, MAX_DEPTH, Member, TypeId};

/// Bytes of a pointer. Kernels and objects of 64 bits are what xctl reads.
const POINTER_SIZE: u64 = 8;

/// Where a member lies, seen from the outermost struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bits from the beginning of the outermost struct.
    pub bit_offset: u64,
    /// Width in bits if it is a bitfield, else 0.
    pub bitfield_size: u32,
    /// Size of its type in bytes (for a bitfield, of the type it is declared with).
    pub size: u64,
    /// Its type.
    pub ty: TypeId,
}

impl Field {
    /// Bytes from the beginning of the outermost struct, when it begins at a whole byte and is no bitfield.
    pub fn byte_offset(&self) -> Option<u64> {
        (self.bitfield_size == 0 && self.bit_offset.is_multiple_of(8)).then_some(self.bit_offset / 8)
    }
}

impl Btf {
    /// The first type of that kind and name. Looks at every type: under a millisecond for a whole kernel.
    pub fn find(&self, kind: Kind, name: &str) -> Option<TypeId> {
        if name.is_empty() {
            return None;
        }
        self.ids().find(|id| {
            self.head(*id).is_some_and(|head| {
                Kind::from_number(head.kind_number()) == Some(kind) && self.is_named(head.name, name)
            })
        })
    }

    /// Those of `names` that there are. Looks at every type once, however many are asked for.
    pub fn known<'n>(&'n self, names: &HashSet<(Kind, &'n str)>) -> HashSet<(Kind, &'n str)> {
        // Few names of a kernel begin like one of them, and only those are worth hashing.
        let start = |name: &[u8]| name.first().zip(name.get(1)).map(|(first, second)| (*first, *second));
        let mut starts = [[false; 256]; 256];
        for (first, second) in names.iter().filter_map(|(_, name)| start(name.as_bytes())) {
            starts[usize::from(first)][usize::from(second)] = true;
        }
        let strings = self.data.get(self.strings.0..).unwrap_or_default();
        let may_be = |offset: u32| {
            let name = strings.get(offset as usize..).unwrap_or_default();
            start(name).is_none_or(|(first, second)| second == 0 || starts[usize::from(first)][usize::from(second)])
        };
        let heads = self.ids().filter_map(|id| self.head(id)).filter(|head| may_be(head.name));
        let kinds = heads.filter_map(|head| Some((Kind::from_number(head.kind_number())?, head.name)));
        kinds.filter_map(|(kind, name)| names.get(&(kind, self.name_at(name))).copied()).collect()
    }

    pub(super) fn is_named(&self, offset: u32, name: &str) -> bool {
        let (start, len) = self.strings;
        let strings = self.data.get(start..start.saturating_add(len)).unwrap_or_default();
        let begin = offset as usize;
        let Some(end) = begin.checked_add(name.len()) else { return false };
        strings.get(begin..end) == Some(name.as_bytes()) && strings.get(end) == Some(&0)
    }

    /// The type behind typedefs, `const`, `volatile`, `restrict` and type tags.
    ///
    /// [`TypeId::VOID`] if they go round in a circle.
    pub fn resolve(&self, id: TypeId) -> TypeId {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            if !self.kind(id).is_modifier() {
                return id;
            }
            id = self.target(id);
        }
        TypeId::VOID
    }

    /// A type's size in bytes, as `sizeof` in the program that the BTF describes.
    ///
    /// `None` for what has no size (void, functions, forward declarations, tags), for sizes beyond 64 bits, and for types
    /// that contain themselves.
    pub fn size_of(&self, id: TypeId) -> Option<u64> {
        let mut id = id;
        let mut times: u64 = 1;
        for _ in 0..MAX_DEPTH {
            match self.kind(id) {
                Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float | Kind::Datasec => {
                    return times.checked_mul(u64::from(self.head(id)?.arg));
                }
                Kind::Ptr => return times.checked_mul(POINTER_SIZE),
                Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag | Kind::Var => {
                    id = self.target(id);
                }
                Kind::Array => {
                    let array = self.array(id)?;
                    times = times.checked_mul(u64::from(array.nelems))?;
                    id = array.elem;
                }
                Kind::Void | Kind::Fwd | Kind::Func | Kind::FuncProto | Kind::DeclTag | Kind::Unknown => return None,
            }
        }
        None
    }

    /// A member by name, also inside anonymous members (as C finds it), and its offset in bits from the beginning of
    /// `id`. The offset in the [`Member`] itself is that in the innermost struct.
    pub fn find_member(&self, id: TypeId, name: &str) -> Option<(u64, Member<'_>)> {
        self.search(id, name).map(|(_, offset, member)| (offset, member))
    }

    /// The same, after the numbers of the members that lead there.
    fn search(&self, id: TypeId, name: &str) -> Option<(Vec<u32>, u64, Member<'_>)> {
        if name.is_empty() {
            return None;
        }
        let mut seen = HashSet::new();
        // Of each anonymous member on the way: its number, and the one that it is in (0: none).
        let mut trail = vec![(0, 0)];
        let mut todo = vec![(self.resolve(id), 0u64, 0)];
        while let Some((composite, base, place)) = todo.pop() {
            // A hostile file can nest one anonymous type in itself, or use it in so many places that looking into each
            // would never end.
            if !seen.insert(composite) {
                continue;
            }
            for (number, member) in (0..).zip(self.members(composite)) {
                let offset = base.saturating_add(u64::from(member.bit_offset));
                if member.name == name {
                    let mut numbers = vec![number];
                    let mut place = place;
                    while let Some((number, outer)) = trail.get(place).filter(|_| place > 0) {
                        numbers.push(*number);
                        place = *outer;
                    }
                    numbers.reverse();
                    return Some((numbers, offset, member));
                }
                if member.name.is_empty() {
                    trail.push((number, place));
                    todo.push((self.resolve(member.ty), offset, trail.len() - 1));
                }
            }
        }
        None
    }

    /// The type called `struct_name`, and the numbers of the members that lead to `path` in it, those of anonymous ones
    /// included.
    pub fn field_path(&self, struct_name: &str, path: &str) -> Option<(TypeId, Vec<u32>)> {
        let root = self.composite_called(struct_name)?;
        let (mut id, mut numbers) = (root, Vec::new());
        for name in path.split('.') {
            let (steps, _, member) = self.search(id, name)?;
            numbers.extend(steps);
            id = member.ty;
        }
        Some((root, numbers))
    }

    fn composite_called(&self, name: &str) -> Option<TypeId> {
        [Kind::Struct, Kind::Union, Kind::Typedef].iter().find_map(|kind| self.find(*kind, name))
    }

    /// Where `path` (`a`, or `a.b.c`) lies in the struct, union or typedef called `struct_name`.
    ///
    /// `None` if there is no such type or member, or the member has no size.
    pub fn field(&self, struct_name: &str, path: &str) -> Option<Field> {
        self.field_in(self.composite_called(struct_name)?, path)
    }

    /// As [`Btf::field`], in a type that is known already.
    pub fn field_in(&self, id: TypeId, path: &str) -> Option<Field> {
        let mut ty = id;
        let mut bit_offset = 0u64;
        let mut bitfield_size = 0;
        for name in path.split('.') {
            let (offset, member) = self.find_member(ty, name)?;
            bit_offset = bit_offset.checked_add(offset)?;
            bitfield_size = member.bitfield_size;
            ty = member.ty;
        }
        Some(Field { bit_offset, bitfield_size, size: self.size_of(ty)?, ty })
    }

    /// How many arguments the raw tracepoint `name` passes to a BPF program, or `None` if this BTF has no such tracepoint.
    ///
    /// The kernel describes each by `typedef void (*btf_trace_NAME)(void *__data, ...)`, whose first parameter is not
    /// for BPF (include/trace/bpf_probe.h, `__DEFINE_EVENT`).
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        let typedef = self.find(Kind::Typedef, &format!("btf_trace_{name}"))?;
        let pointer = self.resolve(typedef);
        let proto = self.resolve(self.target(pointer));
        if self.kind(pointer) != Kind::Ptr || self.kind(proto) != Kind::FuncProto {
            return None;
        }
        self.proto_params(proto).count().checked_sub(1)
    }

    /// How many arguments the function `name` has, or `None` if this BTF does not know it.
    pub fn function_args(&self, name: &str) -> Option<usize> {
        let function = self.find(Kind::Func, name)?;
        Some(self.proto_params(self.target(function)).count())
    }
}

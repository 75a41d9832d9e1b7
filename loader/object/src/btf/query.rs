//! Questions that need more than one type for an answer. The work for each is bounded for any input.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::{Btf, Kind, MAX_DEPTH, Member, TypeId};

/// Bytes of a pointer. xctl reads kernels and objects of 64 bits.
const POINTER_SIZE: u64 = 8;

/// The position of a member, relative to the outermost struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bits from the beginning of the outermost struct.
    pub bit_offset: u64,
    /// Width in bits if the member is a bitfield, else 0.
    pub bitfield_size: u32,
    /// Size of the member's type in bytes (for a bitfield, of the type in its declaration).
    pub size: u64,
    /// The member's type.
    pub ty: TypeId,
}

impl Field {
    /// Bytes from the beginning of the outermost struct; none for a bitfield, or a member that does not begin at a whole
    /// byte.
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

    /// Types that share kind and name with another type. A linker makes these when it joins files that each define one.
    pub fn ambiguous(&self) -> HashSet<TypeId> {
        let is_defined = |kind: Kind| kind.is_composite() || kind.is_enum() || kind == Kind::Typedef;
        let (mut first, mut ambiguous) = (HashMap::new(), HashSet::new());
        for id in self.ids() {
            let (kind, name) = (self.kind(id), self.name(id));
            if !is_defined(kind) || name.is_empty() {
                continue;
            }
            match first.entry((kind, name)) {
                Entry::Vacant(free) => {
                    free.insert(id);
                }
                Entry::Occupied(other) => ambiguous.extend([id, *other.get()]),
            }
        }
        ambiguous
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
    /// [`TypeId::VOID`] if the references form a cycle.
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
    /// `None` for types without a size (void, functions, forward declarations, tags), for sizes beyond 64 bits, and for
    /// types that contain themselves.
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

    /// A member by name, also inside anonymous members (as C finds it), and its offset in bits from the beginning of `id`.
    /// The offset inside the returned [`Member`] counts from the innermost struct.
    pub fn find_member(&self, id: TypeId, name: &str) -> Option<(u64, Member<'_>)> {
        self.search(id, name).map(|(_, offset, member)| (offset, member))
    }

    /// As [`Btf::find_member`], with the numbers of the members that lead there in front.
    fn search(&self, id: TypeId, name: &str) -> Option<(Vec<u32>, u64, Member<'_>)> {
        if name.is_empty() {
            return None;
        }
        let mut seen = HashSet::new();
        // For each anonymous member on the way: the member's number, and the index of the entry that contains the member (0:
        // none).
        let mut trail = vec![(0, 0)];
        let mut todo = vec![(self.resolve(id), 0u64, 0)];
        while let Some((composite, base, place)) = todo.pop() {
            // A hostile file can nest an anonymous type in itself. It can also use one in so many places that a search in
            // each would never end.
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

    /// The type called `struct_name`, and the numbers of the members that lead to `path` in the type. The numbers of
    /// anonymous members are included.
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

    /// The position of `path` (`a`, or `a.b.c`) in the struct, union or typedef called `struct_name`.
    ///
    /// `None` if there is no such type or member, or the member has no size.
    pub fn field(&self, struct_name: &str, path: &str) -> Option<Field> {
        self.field_in(self.composite_called(struct_name)?, path)
    }

    /// As [`Btf::field`], for a type that the caller has already.
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

    /// The number of arguments that the raw tracepoint `name` passes to a BPF program, or `None` if this BTF has no such
    /// tracepoint.
    ///
    /// The kernel describes each by `typedef void (*btf_trace_NAME)(void *__data, ...)`, whose first parameter is not
    /// for BPF (include/trace/bpf_probe.h, `__DEFINE_EVENT`).
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.tracepoint_args_of(self.find(Kind::Typedef, &format!("btf_trace_{name}"))?)
    }

    /// As [`Btf::tracepoint_args`], for a typedef that the caller has already.
    pub fn tracepoint_args_of(&self, typedef: TypeId) -> Option<usize> {
        let pointer = self.resolve(typedef);
        let proto = self.resolve(self.target(pointer));
        if self.kind(pointer) != Kind::Ptr || self.kind(proto) != Kind::FuncProto {
            return None;
        }
        self.proto_params(proto).count().checked_sub(1)
    }

    /// The number of arguments of the function `name`, or `None` if this BTF does not know the function.
    pub fn function_args(&self, name: &str) -> Option<usize> {
        self.find(Kind::Func, name).map(|function| self.function_args_of(function))
    }

    /// As [`Btf::function_args`], for a function that the caller has already.
    pub fn function_args_of(&self, function: TypeId) -> usize {
        self.proto_params(self.target(function)).count()
    }
}

//! One type, as it is in the data: its name, what it refers to, and its entries.

use super::{Array, Btf, Enumerator, Head, Int, Kind, Member, Param, SectionVar, TypeId, three, word};

impl Btf {
    /// The type's kind; [`Kind::Void`] for void and for an id that this BTF does not have.
    pub fn kind(&self, id: TypeId) -> Kind {
        match self.head(id) {
            None => Kind::Void,
            Some(head) => Kind::from_number(head.kind_number()).unwrap_or(Kind::Unknown),
        }
    }

    /// The type's name; empty if it has none.
    pub fn name(&self, id: TypeId) -> &str {
        self.head(id).map_or("", |head| self.name_at(head.name))
    }

    /// The type that this type refers to: a pointer's target, the type behind a typedef or qualifier, a function's
    /// prototype, a variable's type, a tag's target. [`TypeId::VOID`] for `void` and for kinds that refer to nothing;
    /// arrays and prototypes have their own questions.
    pub fn target(&self, id: TypeId) -> TypeId {
        let refers =
            |kind: Kind| kind.is_modifier() || matches!(kind, Kind::Ptr | Kind::Func | Kind::Var | Kind::DeclTag);
        self.head_of(id, refers).map_or(TypeId::VOID, |head| TypeId(head.arg))
    }

    /// The members of a struct or union, in order; nothing for other kinds.
    pub fn members(&self, id: TypeId) -> impl Iterator<Item = Member<'_>> {
        let head = self.head_of(id, Kind::is_composite);
        let packed = head.is_some_and(Head::flag);
        self.entries(head, 12).map(move |entry| {
            let ty = TypeId(self.entry_word(entry, 1));
            let offset = self.entry_word(entry, 2);
            let (bit_offset, bitfield_size) = if packed {
                (offset & 0x00ff_ffff, offset >> 24)
            } else {
                // Before the kind flag (Linux 4.21) a bitfield was a member of an odd integer type.
                match self.int(self.resolve(ty)) {
                    Some(int) if int.bits != int.size * 8 => (offset.saturating_add(int.bit_offset), int.bits),
                    _ => (offset, 0),
                }
            };
            Member { name: self.name_at(self.entry_word(entry, 0)), ty, bit_offset, bitfield_size }
        })
    }

    /// How many members a struct or union, or constants an enum has; 0 for other kinds.
    pub fn entry_count(&self, id: TypeId) -> u32 {
        self.head_of(id, |kind| kind.is_composite() || kind.is_enum()).map_or(0, |head| head.info & 0x00ff_ffff)
    }

    /// How many parameters a function prototype has; 0 for other kinds.
    pub fn proto_param_count(&self, id: TypeId) -> u32 {
        self.head_of(id, |kind| kind == Kind::FuncProto).map_or(0, |head| head.info & 0x00ff_ffff)
    }

    /// Member `index`, in constant time, with offset and width as the member has them. Old compilers describe a
    /// bitfield in its integer type alone: [`Btf::members`] decodes that; this function, like libbpf, does not.
    pub fn member_as_written(&self, id: TypeId, index: u32) -> Option<Member<'_>> {
        let head = self.head_of(id, Kind::is_composite)?;
        let entry = self.entries(Some(head), 12).nth(index as usize)?;
        Some(self.as_written(head, three(entry.first_chunk()?, self.big_endian)))
    }

    fn as_written(&self, head: Head, [name, ty, offset]: [u32; 3]) -> Member<'_> {
        let (bit_offset, bitfield_size) = if head.flag() { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
        Member { name: self.name_at(name), ty: TypeId(ty), bit_offset, bitfield_size }
    }

    /// The type of member `index`, in constant time.
    pub fn member_type(&self, id: TypeId, index: u32) -> Option<TypeId> {
        let entry = self.entries(self.head_of(id, Kind::is_composite), 12).nth(index as usize)?;
        Some(TypeId(self.entry_word(entry, 1)))
    }

    /// The members with this name, and each member without a name, which may contain such a member: index and member,
    /// as written. Other members' names are not read.
    pub fn members_called<'b>(&'b self, id: TypeId, name: &'b str) -> impl Iterator<Item = (u32, Member<'b>)> {
        let head = self.head_of(id, Kind::is_composite);
        let (start, len) = self.strings;
        let strings = self.data.get(start..start.saturating_add(len)).unwrap_or_default();
        let first = name.bytes().next().unwrap_or(0);
        (0..).zip(self.entries(head, 12)).filter_map(move |(index, entry)| {
            let words = three(entry.first_chunk()?, self.big_endian);
            // Most names differ in their first byte.
            let begins = strings.get(words[0] as usize).copied().unwrap_or(0);
            let wanted = begins == 0 || (begins == first && self.is_named(words[0], name));
            if wanted { Some((index, self.as_written(head?, words))) } else { None }
        })
    }

    /// Constant `index` of an enum, at once.
    pub fn enumerator(&self, id: TypeId, index: u32) -> Option<Enumerator<'_>> {
        self.enumerators_from(id, index as usize).next()
    }

    /// The parameters of a function prototype, in order; nothing for other kinds.
    pub fn proto_params(&self, id: TypeId) -> impl Iterator<Item = Param<'_>> {
        self.entries(self.head_of(id, |k| k == Kind::FuncProto), 8)
            .map(|entry| Param { name: self.name_at(self.entry_word(entry, 0)), ty: TypeId(self.entry_word(entry, 1)) })
    }

    /// The type of parameter `index`, at once.
    pub fn proto_param(&self, id: TypeId, index: u32) -> Option<TypeId> {
        let entry = self.entries(self.head_of(id, |k| k == Kind::FuncProto), 8).nth(index as usize)?;
        Some(TypeId(self.entry_word(entry, 1)))
    }

    /// The return type of a function prototype; [`TypeId::VOID`] also for other kinds.
    pub fn proto_return(&self, id: TypeId) -> TypeId {
        self.head_of(id, |k| k == Kind::FuncProto).map_or(TypeId::VOID, |head| TypeId(head.arg))
    }

    /// The constants of an enum of either width, in order; nothing for other kinds.
    pub fn enumerators(&self, id: TypeId) -> impl Iterator<Item = Enumerator<'_>> {
        self.enumerators_from(id, 0)
    }

    fn enumerators_from(&self, id: TypeId, first: usize) -> impl Iterator<Item = Enumerator<'_>> {
        let head = self.head_of(id, Kind::is_enum);
        let wide = self.kind(id) == Kind::Enum64;
        let signed = head.is_some_and(Head::flag);
        let mut entries = self.entries(head, if wide { 12 } else { 8 });
        if first > 0 {
            entries.nth(first - 1);
        }
        entries.map(move |entry| {
            let low = self.entry_word(entry, 1);
            let value = if wide {
                let bits = (u64::from(self.entry_word(entry, 2)) << 32) | u64::from(low);
                if signed { i128::from(bits as i64) } else { i128::from(bits) }
            } else if signed {
                i128::from(low as i32)
            } else {
                i128::from(low)
            };
            Enumerator { name: self.name_at(self.entry_word(entry, 0)), value }
        })
    }

    /// True if an enum's values are signed. Before Linux 6.0 nothing said so, and all counted as unsigned.
    pub fn enum_is_signed(&self, id: TypeId) -> bool {
        self.head_of(id, Kind::is_enum).is_some_and(Head::flag)
    }

    /// The elements of an array.
    pub fn array(&self, id: TypeId) -> Option<Array> {
        let head = self.head_of(id, |k| k == Kind::Array)?;
        let at = |n| word(&self.data, head.tail + n, self.big_endian);
        Some(Array { elem: TypeId(at(0)?), index: TypeId(at(4)?), nelems: at(8)? })
    }

    /// How an integer is encoded.
    pub fn int(&self, id: TypeId) -> Option<Int> {
        let head = self.head_of(id, |k| k == Kind::Int)?;
        let data = word(&self.data, head.tail, self.big_endian)?;
        Some(Int {
            size: head.arg,
            bits: data & 0xff,
            bit_offset: (data >> 16) & 0xff,
            signed: data & (1 << 24) != 0,
            is_char: data & (1 << 25) != 0,
            is_bool: data & (1 << 26) != 0,
        })
    }

    /// True for a forward declaration of a union, false for one of a struct and for other kinds.
    pub fn fwd_is_union(&self, id: TypeId) -> bool {
        self.head_of(id, |k| k == Kind::Fwd).is_some_and(Head::flag)
    }

    /// True for a variable that only its own object sees (`BTF_VAR_STATIC`).
    pub fn var_is_static(&self, id: TypeId) -> bool {
        self.var_linkage(id) == Some(0)
    }

    /// Whether a variable is defined in the object, and global.
    pub fn var_is_global(&self, id: TypeId) -> bool {
        self.var_linkage(id) == Some(1)
    }

    /// `BTF_VAR_STATIC`, `BTF_VAR_GLOBAL_ALLOCATED` or `BTF_VAR_GLOBAL_EXTERN` (include/uapi/linux/btf.h).
    fn var_linkage(&self, id: TypeId) -> Option<u32> {
        self.head_of(id, |k| k == Kind::Var).and_then(|h| word(&self.data, h.tail, self.big_endian))
    }

    /// The variables of a section; nothing for other kinds.
    pub fn section_vars(&self, id: TypeId) -> impl Iterator<Item = SectionVar> + '_ {
        self.entries(self.head_of(id, |k| k == Kind::Datasec), 12).map(|entry| SectionVar {
            var: TypeId(self.entry_word(entry, 0)),
            offset: self.entry_word(entry, 1),
            size: self.entry_word(entry, 2),
        })
    }
}

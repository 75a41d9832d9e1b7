//! The kinds of types, and the parts that a type consists of.

use super::TypeId;

/// The kind of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Type 0, and any id that the BTF does not have.
    Void,
    /// An integer, `char` and `_Bool` included.
    Int,
    /// A pointer.
    Ptr,
    /// An array with a fixed number of elements (0 for a flexible one).
    Array,
    /// A struct.
    Struct,
    /// A union.
    Union,
    /// An enum of up to 32 bits a value.
    Enum,
    /// A struct or union of which only the name is known.
    Fwd,
    /// A typedef.
    Typedef,
    /// `volatile`
    Volatile,
    /// `const`
    Const,
    /// `restrict`
    Restrict,
    /// A function; its parameters are in the function prototype it refers to.
    Func,
    /// A function prototype.
    FuncProto,
    /// A global variable.
    Var,
    /// A section and the variables in it.
    Datasec,
    /// A floating-point number.
    Float,
    /// `__attribute__((btf_decl_tag("...")))`
    DeclTag,
    /// `__attribute__((btf_type_tag("...")))`
    TypeTag,
    /// An enum of 64 bits a value.
    Enum64,
    /// A kind younger than this parser, whose size the BTF's own layout section gave.
    Unknown,
}

impl Kind {
    pub(super) fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            1 => Kind::Int,
            2 => Kind::Ptr,
            3 => Kind::Array,
            4 => Kind::Struct,
            5 => Kind::Union,
            6 => Kind::Enum,
            7 => Kind::Fwd,
            8 => Kind::Typedef,
            9 => Kind::Volatile,
            10 => Kind::Const,
            11 => Kind::Restrict,
            12 => Kind::Func,
            13 => Kind::FuncProto,
            14 => Kind::Var,
            15 => Kind::Datasec,
            16 => Kind::Float,
            17 => Kind::DeclTag,
            18 => Kind::TypeTag,
            19 => Kind::Enum64,
            _ => return None,
        })
    }

    /// True for what only wraps another type without changing what it holds: typedefs, qualifiers, type tags.
    pub fn is_modifier(self) -> bool {
        matches!(self, Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag)
    }

    /// True for structs and unions.
    pub fn is_composite(self) -> bool {
        matches!(self, Kind::Struct | Kind::Union)
    }

    /// True for enums of either width.
    pub fn is_enum(self) -> bool {
        matches!(self, Kind::Enum | Kind::Enum64)
    }

    /// The kind's name in the style of the kernel's `BTF_KIND_*`.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Void => "VOID",
            Kind::Int => "INT",
            Kind::Ptr => "PTR",
            Kind::Array => "ARRAY",
            Kind::Struct => "STRUCT",
            Kind::Union => "UNION",
            Kind::Enum => "ENUM",
            Kind::Fwd => "FWD",
            Kind::Typedef => "TYPEDEF",
            Kind::Volatile => "VOLATILE",
            Kind::Const => "CONST",
            Kind::Restrict => "RESTRICT",
            Kind::Func => "FUNC",
            Kind::FuncProto => "FUNC_PROTO",
            Kind::Var => "VAR",
            Kind::Datasec => "DATASEC",
            Kind::Float => "FLOAT",
            Kind::DeclTag => "DECL_TAG",
            Kind::TypeTag => "TYPE_TAG",
            Kind::Enum64 => "ENUM64",
            Kind::Unknown => "UNKNOWN",
        }
    }
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its name; empty for an anonymous struct or union.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
    /// Where it begins, in bits from the beginning of the struct.
    pub bit_offset: u32,
    /// Its width in bits if it is a bitfield, else 0.
    pub bitfield_size: u32,
}

/// A parameter of a function prototype. A last parameter without name and of type void stands for `...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// Its name; often empty.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
}

/// A constant of an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enumerator<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value: wide enough for every `i64` and every `u64`.
    pub value: i128,
}

/// The elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// The element's type.
    pub elem: TypeId,
    /// The type that indexes it (of no meaning in C).
    pub index: TypeId,
    /// How many elements; 0 for a flexible array.
    pub nelems: u32,
}

/// How an integer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    /// Storage in bytes.
    pub size: u32,
    /// Bits in use, at most 8 times `size`.
    pub bits: u32,
    /// The first bit in use: not 0 only for bitfields as old compilers described them.
    pub bit_offset: u32,
    /// Signed.
    pub signed: bool,
    /// Said to be a character. Compilers rarely say so, even for `char`.
    pub is_char: bool,
    /// A `_Bool`.
    pub is_bool: bool,
}

/// A variable in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionVar {
    /// The variable ([`Kind::Var`], or [`Kind::Func`] for `extern` functions).
    pub var: TypeId,
    /// Where it lies, in bytes from the beginning of the section. 0 in an object that was not linked by libbpf yet.
    pub offset: u32,
    /// Its size in bytes.
    pub size: u32,
}

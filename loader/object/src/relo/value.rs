//! The value that a relocation asks for, computed for one side: the object's types (the value that the compiler put into the
//! instruction) or the target's (the value that the instruction needs).

use super::spec::Spec;
use super::{RelocationKind, Types};
use crate::btf::{Kind, TypeId};

/// A value, and its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// The value itself; negative constants as two's complement.
    pub(super) value: u64,
    /// For offsets of fields that are no bitfields: the number of bytes that a load of the field reads, and the field's
    /// type. For an array, the bytes of one element.
    pub(super) load: Option<(u32, TypeId)>,
    /// False if the compiler may have chosen another value, so that the instruction's own value proves nothing.
    pub(super) certain: bool,
}

impl Value {
    fn certain(value: impl Into<u64>) -> Self {
        Value { value: value.into(), load: None, certain: true }
    }
}

/// The value of `kind` for `spec`, a path in `types`.
///
/// # Errors
/// The question makes no sense for this path, such as the signedness of an element.
pub(super) fn of(types: Types<'_>, kind: RelocationKind, spec: &Spec) -> Result<Value, String> {
    let size = |id| types.size(id).ok_or_else(|| format!("{} has no size", types.name(id)));
    match kind {
        RelocationKind::FieldExists
        | RelocationKind::TypeExists
        | RelocationKind::TypeMatches
        | RelocationKind::EnumvalExists => Ok(Value::certain(1u32)),
        RelocationKind::TypeSize => Ok(Value::certain(size(spec.root)?)),
        // Linkers renumber types without changing the instructions that hold their numbers.
        RelocationKind::TypeIdLocal | RelocationKind::TypeIdTarget => {
            Ok(Value { certain: false, ..Value::certain(spec.root.0) })
        }
        RelocationKind::EnumvalValue => {
            let step = spec.last().ok_or("no constant")?;
            let constant = types.btf.enumerator(step.ty, step.index).ok_or("no such constant")?;
            // libbpf takes 32-bit values as signed, even if the enum is unsigned.
            let value = match types.btf.kind(step.ty) {
                Kind::Enum64 => constant.value as u64,
                _ => i64::from(constant.value as i32) as u64,
            };
            Ok(Value::certain(value))
        }
        RelocationKind::FieldByteOffset
        | RelocationKind::FieldByteSize
        | RelocationKind::FieldSigned
        | RelocationKind::FieldLshiftU64
        | RelocationKind::FieldRshiftU64 => match spec.last_member(types.btf) {
            None => element(types, kind, spec),
            Some(member) if member.bitfield_size > 0 => bitfield(types, kind, spec, member.ty, member.bitfield_size),
            Some(member) => field(types, kind, spec, member.ty),
        },
    }
}

/// The number of bytes that a load of a field of type `id` reads; for an array, of one element.
fn load_size(types: Types<'_>, id: TypeId) -> Result<u32, String> {
    let mut id = types.btf.resolve(id);
    // Arrays of arrays. A cycle of arrays has no size, and was refused before.
    for _ in 0..super::MAX_SIZE_DEPTH {
        match types.btf.array(id) {
            Some(array) => id = types.btf.resolve(array.elem),
            None => return types.size(id).ok_or_else(|| format!("{} has no size", types.name(id))),
        }
    }
    Err("arrays of arrays without end".to_owned())
}

/// A path that ends in an element, or is the root itself.
fn element(types: Types<'_>, kind: RelocationKind, spec: &Spec) -> Result<Value, String> {
    let step = spec.last().ok_or("no access")?;
    match kind {
        RelocationKind::FieldByteOffset => {
            let load = Some((load_size(types, step.ty)?, step.ty));
            Ok(Value { load, ..Value::certain(spec.bit_offset / 8) })
        }
        RelocationKind::FieldByteSize => {
            let size = types.size(step.ty).ok_or_else(|| format!("{} has no size", types.name(step.ty)))?;
            Ok(Value::certain(size))
        }
        _ => Err(format!("an element of an array has no {}", kind.label())),
    }
}

fn is_signed(types: Types<'_>, id: TypeId) -> bool {
    types.btf.enum_is_signed(id) || types.btf.int(id).is_some_and(|int| int.signed)
}

/// A path that ends in a member that is no bitfield.
fn field(types: Types<'_>, kind: RelocationKind, spec: &Spec, ty: TypeId) -> Result<Value, String> {
    let ty = types.btf.resolve(ty);
    let bytes = types.size(ty).ok_or_else(|| format!("{} has no size", types.name(ty)))?;
    let offset = spec.bit_offset / 8;
    let bits = i64::from(bytes) * 8;
    let begin = i64::from(spec.bit_offset % 8);
    Ok(match kind {
        RelocationKind::FieldByteOffset => Value { load: Some((load_size(types, ty)?, ty)), ..Value::certain(offset) },
        RelocationKind::FieldByteSize => Value::certain(bytes),
        RelocationKind::FieldSigned => Value::certain(is_signed(types, ty)),
        RelocationKind::FieldLshiftU64 => Value::certain(left_shift(types, begin, bits, bytes)),
        _ => Value::certain(right_shift(bits)),
    })
}

/// The number of bits above a field of `bits` bits, where the first is bit `begin` of a load of `bytes` bytes. The result is
/// modulo 2^32, as in libbpf. libbpf's results for fields wider than a register are of no use, but ours must be equal.
fn left_shift(types: Types<'_>, begin: i64, bits: i64, bytes: u32) -> u64 {
    let shift = if types.btf.is_big_endian() { (8 - i64::from(bytes)) * 8 + begin } else { 64 - (begin + bits) };
    u64::from(shift as u32)
}

fn right_shift(bits: i64) -> u64 {
    u64::from((64 - bits) as u32)
}

/// A path that ends in a bitfield of `bits` bits, declared with type `ty`.
fn bitfield(types: Types<'_>, kind: RelocationKind, spec: &Spec, ty: TypeId, bits: u32) -> Result<Value, String> {
    let ty = types.btf.resolve(ty);
    let integer = matches!(types.btf.kind(ty), Kind::Int | Kind::Enum | Kind::Enum64);
    let mut bytes = types.size(ty).filter(|bytes| integer && *bytes > 0).ok_or("a bitfield of no integer type")?;
    // The smallest load that holds the whole field, at a multiple of the load's own size.
    let load = loop {
        let load = spec.bit_offset / 8 / bytes * bytes;
        let end = u64::from(spec.bit_offset) + u64::from(bits);
        if end - u64::from(load) * 8 <= u64::from(bytes) * 8 {
            break load;
        }
        if bytes >= 8 {
            return Err("a bitfield that no load of 64 bits holds".to_owned());
        }
        bytes *= 2;
    };
    let begin = i64::from(spec.bit_offset) - i64::from(load) * 8;
    let uncertain = |value: u64| Value { value, load: None, certain: false };
    Ok(match kind {
        RelocationKind::FieldByteOffset => uncertain(load.into()),
        RelocationKind::FieldByteSize => uncertain(bytes.into()),
        RelocationKind::FieldSigned => Value::certain(is_signed(types, ty)),
        RelocationKind::FieldLshiftU64 => uncertain(left_shift(types, begin, bits.into(), bytes)),
        _ => Value::certain(right_shift(bits.into())),
    })
}

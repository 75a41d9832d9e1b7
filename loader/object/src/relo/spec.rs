//! The access of a relocation: a path of members and array elements from a root type.

use super::{RelocationKind, Types, cut, shorten};
use crate::btf::{Btf, Kind, Member, TypeId};
use crate::btf_ext::CoreRelocation;
use crate::steps::Steps;

/// The longest path (`BPF_CORE_SPEC_MAX_LEN` in libbpf's src/relo_core.h).
pub(super) const MAX_STEPS: usize = 64;

/// One step of a path as a C programmer writes it: a named member, or an array's element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// For a member, the struct or union that contains it; for an element, the element's type; for a constant, the enum.
    pub ty: TypeId,
    /// The member's, element's or constant's number.
    pub index: u32,
    /// True for members and constants, false for elements.
    pub named: bool,
}

/// A path from a root type to the accessed member or element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The type where the path begins, as the relocation or the candidate search gives it: possibly a typedef.
    pub root: TypeId,
    /// The steps that a C programmer writes. The first is an element of an imagined array of the root type, nearly always
    /// element 0. Empty for questions about types.
    pub steps: Vec<Step>,
    /// All steps, also those through anonymous members, as in the relocation's access string.
    pub raw: Vec<u32>,
    /// Bits from the beginning of the root type.
    pub bit_offset: u32,
}

impl Spec {
    pub(super) fn new(root: TypeId) -> Self {
        Spec { root, steps: Vec::new(), raw: Vec::new(), bit_offset: 0 }
    }

    /// The last step.
    pub fn last(&self) -> Option<Step> {
        self.steps.last().copied()
    }

    /// Moves the path forward by `count` elements of `bytes` bytes each.
    pub(super) fn advance(&mut self, count: u32, bytes: u32) -> Result<(), String> {
        let bits = u64::from(count) * u64::from(bytes);
        let there = bits.checked_mul(8).and_then(|bits| bits.checked_add(self.bit_offset.into()));
        // libbpf computes modulo 2^32. No struct is that large, so no object depends on the difference.
        self.bit_offset = there.and_then(|there| u32::try_from(there).ok()).ok_or("its offset is beyond 512 MiB")?;
        Ok(())
    }

    pub(super) fn advance_bits(&mut self, bits: u32) -> Result<(), String> {
        self.bit_offset = self.bit_offset.checked_add(bits).ok_or("its offset is beyond 512 MiB")?;
        Ok(())
    }

    /// The member that the last step refers to.
    pub(super) fn last_member<'b>(&self, btf: &'b Btf) -> Option<Member<'b>> {
        let step = self.last().filter(|step| step.named)?;
        btf.member_as_written(step.ty, step.index)
    }

    /// The access string: `0:1:2`.
    pub fn raw_text(&self) -> String {
        let mut text = String::with_capacity(16);
        for number in &self.raw {
            text.push_str(if text.is_empty() { "" } else { ":" });
            match u8::try_from(*number).ok().filter(|digit| *digit < 10) {
                Some(digit) => text.push(char::from(b'0' + digit)),
                None => text.push_str(&number.to_string()),
            }
        }
        if text.is_empty() { "0".to_owned() } else { text }
    }

    /// The access as a C programmer writes it, with the root type's name in place of the pointer's:
    /// `sock->__sk_common.skc_dport`, `*sock`, `sock[2].field`. For a constant or a type, its name.
    pub fn text(&self, btf: &Btf, kind: RelocationKind) -> String {
        let root = btf.name(self.root);
        let root = if root.is_empty() { "(anonymous)" } else { root };
        if kind.is_type() {
            return super::type_name(btf, self.root);
        }
        if kind.is_enumval() {
            let constant = self.last().and_then(|step| btf.enumerator(step.ty, step.index));
            return cut(constant.map_or("", |constant| constant.name));
        }
        let mut text = String::with_capacity(64);
        text.push_str(if self.steps.len() == 1 && self.steps.iter().all(|step| step.index == 0) { "*" } else { "" });
        text.push_str(root);
        for (number, step) in self.steps.iter().enumerate() {
            // Nobody reads longer text, and a hostile file can have many long paths.
            if text.len() > super::SHOWN {
                break;
            }
            if step.named && number > 0 {
                let is_first = number == 1 && self.steps.first().is_some_and(|first| first.index == 0);
                let member = btf.member_as_written(step.ty, step.index);
                text.push_str(if is_first { "->" } else { "." });
                text.push_str(member.map_or("", |member| member.name));
            } else if number > 0 || step.index != 0 {
                text.extend(["[", &step.index.to_string(), "]"]);
            }
        }
        shorten(text)
    }
}

/// True if an array without length, reached by `step`, is a struct's flexible last member.
pub(super) fn is_flexible(btf: &Btf, step: Option<Step>, nelems: u32) -> bool {
    nelems == 0 && step.is_some_and(|step| step.named && step.index.checked_add(1) == Some(btf.entry_count(step.ty)))
}

/// The numbers of an access string.
fn numbers(access: &str) -> Result<Vec<u32>, String> {
    let mut raw = Vec::new();
    for number in access.split(':') {
        if raw.len() == MAX_STEPS {
            return Err(format!("the access string has more than {MAX_STEPS} steps"));
        }
        // libbpf also takes signs and spaces, but no compiler writes them.
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        match number.parse::<u32>() {
            Ok(value) if digits && value <= i32::MAX as u32 => raw.push(value),
            _ => return Err(format!("the access string {:?} is not numbers between colons", cut(access))),
        }
    }
    Ok(raw)
}

/// The path that a relocation describes, in the object's own types.
///
/// # Errors
/// The access string is malformed, or does not fit the types.
pub(super) fn parse(
    types: Types<'_>,
    relocation: &CoreRelocation<'_>,
    kind: RelocationKind,
    steps: &Steps,
) -> Result<Spec, String> {
    let btf = types.btf;
    let mut spec = Spec::new(relocation.root);
    if kind.is_type() {
        if relocation.access != "0" {
            return Err(format!(
                "a question about a type has the access string {:?}, not \"0\"",
                cut(relocation.access)
            ));
        }
        return Ok(spec);
    }
    spec.raw = numbers(relocation.access)?;
    steps.take(spec.raw.len())?;
    let root = btf.resolve(relocation.root);
    let first = spec.raw.first().copied().unwrap_or(0);
    if kind.is_enumval() {
        let known = btf.kind(root).is_enum() && spec.raw.len() == 1 && first < btf.entry_count(root);
        if !known {
            return Err(format!("{} has no constant {:?}", types.name(root), cut(relocation.access)));
        }
        spec.steps.push(Step { ty: root, index: first, named: true });
        return Ok(spec);
    }
    spec.steps.push(Step { ty: root, index: first, named: false });
    let size = types.size(root).ok_or_else(|| format!("{} has no size", types.name(root)))?;
    spec.advance(first, size)?;
    let mut id = root;
    for number in 1..spec.raw.len() {
        let index = spec.raw.get(number).copied().unwrap_or(0);
        id = btf.resolve(id);
        if let Some(array) = btf.array(id) {
            if index >= array.nelems && !is_flexible(btf, spec.last(), array.nelems) {
                return Err(format!("element {index} of an array of {}", array.nelems));
            }
            id = btf.resolve(array.elem);
            let size = types.size(id).ok_or_else(|| format!("{} has no size", types.name(id)))?;
            spec.steps.push(Step { ty: id, index, named: false });
            spec.advance(index, size)?;
        } else if btf.kind(id).is_composite() {
            let member = btf.member_as_written(id, index);
            let member = member.ok_or_else(|| format!("{} has no member number {index}", types.name(id)))?;
            spec.advance_bits(member.bit_offset)?;
            if !member.name.is_empty() {
                spec.steps.push(Step { ty: id, index, named: true });
            }
            id = member.ty;
        } else {
            let what = if btf.kind(id) == Kind::Void { "void".to_owned() } else { types.name(id) };
            return Err(format!("the access string leads into {what}, which has no members"));
        }
    }
    Ok(spec)
}

//! Whether an object comes out the same with the types of two kernels, or with a kernel's and what was cut out of them.

use std::mem::{Discriminant, discriminant};

use super::btf::Btf;
use super::cut::CutError;
use super::insn::Insn;
use super::relo::{Outcome, Relocated, Relocations, type_name};
use super::{BtfExt, ObjectFile};

/// An object, read as far as it takes to relocate it.
pub(super) struct Parts<'p> {
    bytes: &'p [u8],
    /// The file.
    pub object: &'p ObjectFile<'p>,
    /// Its types.
    pub local: &'p Btf,
    ext: &'p BtfExt<'p>,
}

/// What is done with each relocation.
type Each<'e> = &'e mut dyn FnMut(&Relocated<'_, '_>) -> Result<(), CutError>;

// Not generic: what is made for each use of it is large.
impl Parts<'_> {
    /// Reads the object in `bytes` for `work`.
    ///
    /// # Errors
    /// Why it cannot be relocated; those of `work`.
    pub fn read(bytes: &[u8], work: &mut dyn FnMut(&Parts<'_>) -> Result<(), CutError>) -> Result<(), CutError> {
        let refused = |error: &dyn std::fmt::Display| CutError::Object(error.to_string());
        let object = ObjectFile::parse(bytes).map_err(|error| refused(&error))?;
        let local = object.btf.ok_or_else(|| refused(&"it has no .BTF section"))?;
        let local = Btf::parse(local).map_err(|error| refused(&error))?;
        if let Some(id) = local.cycle() {
            return Err(refused(&format!("its types: {} {id} contains itself", type_name(&local, id))));
        }
        let ext = object.btf_ext.map(|data| BtfExt::parse(data, &local)).transpose();
        let ext = ext.map_err(|error| refused(&error))?.unwrap_or_default();
        work(&Parts { bytes, object: &object, local: &local, ext: &ext })
    }

    /// What all relocations come to with these types.
    ///
    /// # Errors
    /// A relocation is of no instruction; there are more questions than are answered; those of `each`.
    pub fn relocate(&self, target: &Btf, each: Each<'_>) -> Result<(), CutError> {
        let code = Relocations::new(self.bytes, self.object, self.local, self.ext, Some(target));
        code.map_err(|error| CutError::Object(error.to_string()))?.run(
            |_| true,
            |relocated| match &relocated.outcome {
                Outcome::Refused(why) if relocated.spent => {
                    Err(CutError::Object(format!("{}: {why}", relocated.place())))
                }
                _ => each(relocated),
            },
        )
    }
}

/// What became of a relocation, without the words: which types are similar to one that is missing differs.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Answer {
    value: Option<u64>,
    after: (Insn, Option<Insn>),
    outcome: Discriminant<Outcome>,
}

impl Answer {
    pub fn of(relocated: &Relocated<'_, '_>) -> Self {
        Answer {
            value: relocated.resolution.as_ref().and_then(|resolution| resolution.value),
            after: (relocated.after.insn, relocated.after.second),
            outcome: discriminant(&relocated.outcome),
        }
    }
}

/// The first relocation of the object in `bytes` that comes out otherwise with `given` than with `own`, and how; none if all
/// come out the same.
///
/// # Errors
/// Why the object cannot be relocated at all.
pub fn difference(bytes: &[u8], given: &Btf, own: &Btf) -> Result<Option<String>, CutError> {
    let mut difference = None;
    Parts::read(bytes, &mut |parts| {
        let mut answers = Vec::new();
        parts.relocate(own, &mut |relocated| {
            answers.push(Answer::of(relocated));
            Ok(())
        })?;
        let mut answers = answers.iter();
        parts.relocate(given, &mut |relocated| {
            if let Some(answer) = answers.next().filter(|answer| **answer != Answer::of(relocated)) {
                difference.get_or_insert_with(|| told(parts, relocated, answer));
            }
            Ok(())
        })
    })?;
    Ok(difference)
}

/// `program kp_sendmsg, instruction 7: byte_off of sock->sk_protocol is 540 by it, 532 by the kernel's own`
fn told(parts: &Parts<'_>, relocated: &Relocated<'_, '_>, own: &Answer) -> String {
    let value = |answer: &Answer| answer.value.map_or_else(|| "not known".to_owned(), |value| value.to_string());
    let what = relocated.resolution.as_ref().map_or_else(String::new, |resolution| {
        format!("{} of {}", resolution.kind.label(), resolution.local.text(parts.local, resolution.kind))
    });
    let place = relocated.place();
    format!("{place}: {what} is {} by it, {} by the kernel's own", value(&Answer::of(relocated)), value(own))
}

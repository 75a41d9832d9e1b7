//! Whether an object has the same results with the types of two kernels, or with a kernel's types and a part cut out of
//! them.

use std::fmt;
use std::mem::{Discriminant, discriminant};

use super::btf::Btf;
use super::btf_ext::BtfExt;
use super::elf::ObjectFile;
use super::insn::Insn;
use super::relo::{Outcome, Relocated, Relocations, type_name};

/// The reason why an object cannot be relocated at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRelocated(pub String);

impl fmt::Display for NotRelocated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRelocated {}

/// The parts of an object that relocation needs.
pub(super) struct Parts<'p> {
    bytes: &'p [u8],
    /// The parsed object file.
    pub object: &'p ObjectFile<'p>,
    /// The types of the object.
    pub local: &'p Btf,
    ext: &'p BtfExt<'p>,
}

/// A function that is called with each relocation.
type Each<'e, E> = &'e mut dyn FnMut(&Relocated<'_, '_>) -> Result<(), E>;

impl Parts<'_> {
    /// Reads the object in `bytes` for `work`.
    ///
    /// # Errors
    /// The reason why the object cannot be relocated, or the errors of `work`.
    pub fn read<T, E: From<NotRelocated>>(bytes: &[u8], work: impl FnOnce(&Parts<'_>) -> Result<T, E>) -> Result<T, E> {
        let refused = |error: &dyn fmt::Display| NotRelocated(error.to_string());
        let object = ObjectFile::parse(bytes).map_err(|error| refused(&error))?;
        let local = object.btf.ok_or_else(|| refused(&"it has no .BTF section"))?;
        let local = Btf::parse(local).map_err(|error| refused(&error))?;
        if let Some(id) = local.cycle() {
            return Err(refused(&format!("its types: {} {id} contains itself", type_name(&local, id))).into());
        }
        let ext = object.btf_ext.map(|data| BtfExt::parse(data, &local)).transpose();
        let ext = ext.map_err(|error| refused(&error))?.unwrap_or_default();
        work(&Parts { bytes, object: &object, local: &local, ext: &ext })
    }

    /// Computes the results of all relocations with these types.
    ///
    /// # Errors
    /// A relocation is of no instruction; or the object asks more questions than are answered; or the errors of `each`.
    pub fn relocate<E: From<NotRelocated>>(&self, target: &Btf, each: Each<'_, E>) -> Result<(), E> {
        let code = Relocations::new(self.bytes, self.object, self.local, self.ext, Some(target));
        code.map_err(|error| NotRelocated(error.to_string()))?.run(
            |_| true,
            |relocated| match &relocated.outcome {
                Outcome::Refused(why) if relocated.spent => {
                    Err(NotRelocated(format!("{}: {why}", relocated.place())).into())
                }
                _ => each(relocated),
            },
        )
    }
}

/// The result of a relocation, without the messages. Messages may differ, because they name types that are similar to a
/// missing one.
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

/// The first relocation of the object in `bytes` that has other results with `given` than with `own`, and the difference.
/// None if all have the same results.
///
/// # Errors
/// The reason why the object cannot be relocated at all.
pub fn first_difference(bytes: &[u8], given: &Btf, own: &Btf) -> Result<Option<String>, NotRelocated> {
    Parts::read(bytes, |parts| {
        let (mut answers, mut difference) = (Vec::new(), None);
        parts.relocate::<NotRelocated>(own, &mut |relocated| {
            answers.push(Answer::of(relocated));
            Ok(())
        })?;
        let mut answers = answers.iter();
        parts.relocate::<NotRelocated>(given, &mut |relocated| {
            if let Some(answer) = answers.next().filter(|answer| **answer != Answer::of(relocated)) {
                difference.get_or_insert_with(|| told(parts, relocated, answer));
            }
            Ok(())
        })?;
        Ok(difference)
    })
}

/// `program kp_sendmsg, instruction 7: byte_off of sock->sk_protocol is 540 with the given BTF, 532 with the kernel's`
fn told(parts: &Parts<'_>, relocated: &Relocated<'_, '_>, own: &Answer) -> String {
    let value = |answer: &Answer| answer.value.map_or_else(|| "not known".to_owned(), |value| value.to_string());
    let what = relocated.resolution.as_ref().map_or_else(String::new, |resolution| {
        format!("{} of {}", resolution.kind.label(), resolution.local.text(parts.local, resolution.kind))
    });
    let place = relocated.place();
    format!("{place}: {what} is {} with the given BTF, {} with the kernel's", value(&Answer::of(relocated)), value(own))
}

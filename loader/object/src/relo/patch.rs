//! The instruction after relocation. libbpf's rules decide which instructions can be relocated, and which are refused.

use std::rc::Rc;

use super::resolver::Resolution;
use crate::insn::{Insn, class};

/// An instruction, with the second one if the first is a 64-bit immediate load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The instruction.
    pub insn: Insn,
    /// The following instruction, if the first takes two places.
    pub second: Option<Insn>,
}

impl Place {
    /// The text of the instruction in the verifier's log.
    pub fn text(&self) -> String {
        self.insn.text(self.second)
    }

    /// The bytes, in an object's byte order.
    pub fn bytes(&self, big_endian: bool) -> Vec<u8> {
        let second = self.second.map(|insn| insn.encode(big_endian));
        [self.insn.encode(big_endian)].into_iter().chain(second).flatten().collect()
    }
}

/// The result of relocating an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patched {
    /// The instruction has its value.
    Done(Place),
    /// There is no value: the instruction was replaced by one that cannot run, for this reason.
    Poisoned(Place, Rc<str>),
}

fn poisoned(place: Place, why: Rc<str>) -> Patched {
    let second = place.second.filter(|_| place.insn.is_ldimm64()).map(|_| Insn::POISON);
    Patched::Poisoned(Place { insn: Insn::POISON, second }, why)
}

/// Puts a resolution's value into an instruction.
///
/// # Errors
/// The reason why libbpf would refuse the object. The instruction is of a kind that holds no such value, or does not hold
/// the object's own value before relocation.
pub fn patch(resolution: &Resolution, place: Place) -> Result<Patched, String> {
    let Some(value) = resolution.value else {
        return Ok(poisoned(place, resolution.missing.clone().unwrap_or_else(|| "nothing matches".into())));
    };
    let insn = place.insn;
    let check = |holds: u64| {
        if resolution.certain && holds != resolution.local_value {
            return Err(format!(
                "the instruction has {holds}, but by the object's own types the value is {}",
                resolution.local_value
            ));
        }
        Ok(())
    };
    match insn.class() {
        class::ALU | class::ALU64 => {
            if insn.code & 8 != 0 {
                return Err("arithmetic on a register has no value to relocate".to_owned());
            }
            check(i64::from(insn.imm) as u64)?;
            Ok(Patched::Done(Place { insn: Insn { imm: value as i32, ..insn }, second: place.second }))
        }
        class::LDX | class::ST | class::STX => memory(resolution, place, value, check),
        class::LD => {
            let second = place.second.filter(|second| *second == Insn { imm: second.imm, ..Insn::EMPTY });
            let Some(second) = second.filter(|_| insn.is_ldimm64() && insn.src == 0 && insn.off == 0) else {
                return Err("it is not a plain load of a 64-bit value".to_owned());
            };
            check(insn.imm64(second))?;
            let insn = Insn { imm: value as i32, ..insn };
            let second = Insn { imm: (value >> 32) as i32, ..second };
            Ok(Patched::Done(Place { insn, second: Some(second) }))
        }
        _ => Err("it is neither arithmetic nor a load or store".to_owned()),
    }
}

/// Patches a load or store: its offset becomes the value, and its size may change.
fn memory(
    resolution: &Resolution,
    place: Place,
    value: u64,
    check: impl Fn(u64) -> Result<(), String>,
) -> Result<Patched, String> {
    let insn = place.insn;
    check(i64::from(insn.off) as u64)?;
    let off = i16::try_from(value).map_err(|_| format!("offset {value} does not fit a load or store"))?;
    let mut patched = Insn { off, ..insn };
    if let Some(resized) = resolution.resized {
        let (local, target) = (resized.local, resized.target);
        if !resized.harmless {
            let why = format!(
                "the field has {target} bytes in the kernel, {local} in the object, and is not an unsigned integer in both"
            );
            return Ok(poisoned(place, why.into()));
        }
        if insn.memory_size() != local {
            return Err(format!("it moves {} bytes, the field has {local}", insn.memory_size()));
        }
        patched = patched.with_memory_size(target).ok_or_else(|| format!("no load moves {target} bytes"))?;
    }
    Ok(Patched::Done(Place { insn: patched, second: place.second }))
}

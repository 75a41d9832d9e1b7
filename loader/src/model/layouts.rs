//! The check that the object was built from the same `events.h`. Every offset, size and enumerator is compared with the
//! object's BTF, so that C and Rust cannot drift apart.

use anyhow::{Result, anyhow};

use super::enums::{Counter, CutWhy, EventType, How, Kind, KnownBy};
use super::events::{
    Cut, Drop, Flow, Header, Holder, NetnsKey, Owner, ProcessKey, Retransmit, Send, Settings, SocketRecord, Totals,
    UnderWay,
};
use super::mirror::{Field, Mirror, MirrorEnum};
use super::network::Network;
use super::reading::{Account, AccountWhy, Reading, ReadingOf};
use crate::error::Exit;
use crate::object::Btf;

/// Compares every layout and enum with the BTF of the object that is about to be loaded.
///
/// # Errors
/// [`Exit::Object`], naming the first field or enumerator that differs.
pub fn check(object: &Btf) -> Result<()> {
    let structs = [
        layout::<Flow>(),
        layout::<Owner>(),
        layout::<Header>(),
        layout::<UnderWay>(),
        layout::<Retransmit>(),
        layout::<Send>(),
        layout::<Cut>(),
        layout::<Drop>(),
        layout::<SocketRecord>(),
        layout::<Reading>(),
        layout::<Account>(),
        layout::<Holder>(),
        layout::<ProcessKey>(),
        layout::<NetnsKey>(),
        layout::<Totals>(),
        layout::<Network>(),
        layout::<Settings>(),
    ];
    let enums = [
        values::<KnownBy>(),
        values::<How>(),
        values::<ReadingOf>(),
        values::<AccountWhy>(),
        values::<EventType>(),
        values::<Kind>(),
        values::<CutWhy>(),
        values::<Counter>(),
    ];
    structs.iter().try_for_each(|expected| check_struct(object, expected))?;
    enums.iter().try_for_each(|expected| check_enum(object, expected))
}

/// A struct of this xctl.
struct Struct {
    name: &'static str,
    size: usize,
    fields: &'static [Field],
}

const fn layout<T: Mirror>() -> Struct {
    Struct { name: T::C_NAME, size: size_of::<T>(), fields: T::FIELDS }
}

/// An enum of this xctl: its name, and the name and value of each enumerator.
type Enum = (&'static str, &'static [(&'static str, u32)]);

const fn values<T: MirrorEnum>() -> Enum {
    (T::C_NAME, T::ENUMERATORS)
}

fn check_enum(object: &Btf, &(name, enumerators): &Enum) -> Result<()> {
    let refuse = |why: String| Err(anyhow!(why).context(Exit::Object));
    let Some(id) = object.ids().find(|&id| object.kind(id).is_enum() && object.name(id) == name) else {
        return refuse(format!("the object has no enum {name} in its BTF, so it was not built for this xctl"));
    };
    let theirs = object.enumerators(id).count();
    if theirs != enumerators.len() {
        return refuse(format!(
            "enum {name} has {theirs} enumerators in the object and {} in this xctl",
            enumerators.len()
        ));
    }
    for (there, &(enumerator, value)) in object.enumerators(id).zip(enumerators) {
        if (there.name, there.value) != (enumerator, i128::from(value)) {
            let (name_there, value_there) = (there.name, there.value);
            return refuse(format!(
                "enum {name}: {name_there} is {value_there} in the object; {enumerator} is {value} in this xctl"
            ));
        }
    }
    Ok(())
}

fn check_struct(object: &Btf, &Struct { name, size, fields }: &Struct) -> Result<()> {
    let refuse = |why: String| Err(anyhow!(why).context(Exit::Object));
    let Some(id) = object.find(crate::object::Kind::Struct, name) else {
        return refuse(format!("the object has no struct {name} in its BTF, so it was not built for this xctl"));
    };
    let theirs = object.size_of(id);
    if theirs != Some(size as u64) {
        let theirs = theirs.map_or("an unknown number of".into(), |size| size.to_string());
        return refuse(format!("struct {name} has {theirs} bytes in the object and {size} in this xctl"));
    }
    let theirs = object.members(id).count();
    if theirs != fields.len() {
        return refuse(format!("struct {name} has {theirs} members in the object and {} in this xctl", fields.len()));
    }
    for (member, &(field, offset, size)) in object.members(id).zip(fields) {
        // `type` is a keyword of Rust, so the field is called `kind` there.
        let same_name = member.name == field || (member.name == "type" && field == "kind");
        let there = (u64::from(member.bit_offset), object.size_of(member.ty));
        if !same_name || there != (offset as u64 * 8, Some(size as u64)) {
            return refuse(format!(
                "struct {name}: {} at bit {}, {} bytes in the object; {field} at bit {}, {size} bytes in this xctl",
                member.name,
                there.0,
                there.1.map_or("?".into(), |size| size.to_string()),
                offset * 8
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_struct_has_padding_of_its_own() {
        fn gapless<T: Mirror>() {
            let end = T::FIELDS.iter().fold(0, |at, &(name, offset, size)| {
                assert_eq!(offset, at, "{}.{name}", T::C_NAME);
                at + size
            });
            assert_eq!(end, size_of::<T>(), "{}", T::C_NAME);
        }
        gapless::<Flow>();
        gapless::<Owner>();
        gapless::<Header>();
        gapless::<UnderWay>();
        gapless::<Retransmit>();
        gapless::<Send>();
        gapless::<SocketRecord>();
        gapless::<Reading>();
        gapless::<Account>();
        gapless::<Holder>();
        gapless::<ProcessKey>();
        gapless::<NetnsKey>();
        gapless::<Totals>();
        gapless::<Network>();
        gapless::<Settings>();
    }

    /// The offset of an enumerator's value in bytes of BTF. An enumerator is the offset of its name in the strings,
    /// then its value.
    fn enumerator_at(btf: &[u8], name: &str, value: u32) -> usize {
        let word = |at: usize| u32::from_le_bytes(btf[at..at + 4].try_into().unwrap());
        let strings = (word(4) + word(16)) as usize;
        let text = format!("\0{name}\0");
        let place = btf[strings..].windows(text.len()).position(|found| found == text.as_bytes()).unwrap() + 1;
        let entry = [(place as u32).to_le_bytes(), value.to_le_bytes()].concat();
        let types = &btf[..strings];
        types.windows(8).position(|found| found == entry).unwrap() + 4
    }

    #[test]
    fn a_differing_enumerator_is_refused() {
        let object = crate::model::embedded::object().unwrap();
        let own = crate::object::ObjectFile::parse(&object).unwrap().btf.unwrap();
        check(&Btf::parse(own).unwrap()).unwrap();
        for (name, value) in
            [("KIND_TLP", 4), ("HOW_SEED", 5), ("LOST_READ", 4), ("LOST_KINDS", 13), ("EVENT_SEND", 2), ("BY_INODE", 2)]
        {
            let mut altered = own.to_vec();
            let at = enumerator_at(own, name, value);
            altered[at..at + 4].copy_from_slice(&(value + 40).to_le_bytes());
            let error = check(&Btf::parse(&altered).unwrap()).unwrap_err();
            assert_eq!(Exit::code_of(&error), 4);
            let text = format!("{error:#}");
            assert!(
                text.contains(&format!("{name} is {} in the object; {name} is {value} in this xctl", value + 40)),
                "{text}"
            );
        }
    }
}

//! The same bytes, parsed by `goblin` and compared with the result of the `object` crate.
//!
//! If two independent parsers read a file differently, the file was made for that purpose, or one parser has a bug. Neither
//! may decide which program goes into the kernel.

use goblin::elf::section_header::SHT_STRTAB;
use goblin::elf::{Elf, Reloc, SectionHeader, Sym};

use super::elf::{ObjectFile, Refused, Relocation, Section, Symbol};

/// The number of strings that a table may have beyond twice the number of names in use.
const SPARE_STRINGS: usize = 1024;

/// Parses `bytes` with goblin and compares the result with `first`, which came from the same bytes. Compared are sections
/// (name, type, flags, offset, size), symbols (name, value, size, section, bind, type) and relocations (table, place,
/// symbol, type, addend).
///
/// # Errors
/// The first difference, or the reason why goblin does not read the file at all.
pub fn compare_parsers(bytes: &[u8], first: &ObjectFile<'_>) -> Result<(), Refused> {
    check_strings(bytes, first)?;
    let second = Elf::parse(bytes).map_err(|error| refuses(bytes, first, &error))?;
    differ("byte order", &String::new, &first.is_little_endian, &second.little_endian)?;
    differ("number of sections", &String::new, &first.sections.len(), &second.section_headers.len())?;
    for (index, (one, two)) in first.sections.iter().zip(&second.section_headers).enumerate() {
        section(index, one, two, &second)?;
    }
    differ("number of symbols", &String::new, &first.symbols.len(), &second.syms.len())?;
    for (index, (one, two)) in first.symbols.iter().zip(second.syms.iter()).enumerate() {
        symbol(index, one, &two, &second)?;
    }
    let relocations = second.shdr_relocs.iter().map(|(_, table)| table.len()).sum();
    differ("number of relocations", &String::new, &first.relocations.len(), &relocations)?;
    let all = second.shdr_relocs.iter().flat_map(|(table, entries)| entries.iter().map(move |entry| (*table, entry)));
    for (index, (one, (table, two))) in first.relocations.iter().zip(all).enumerate() {
        relocation(index, one, table, &two, &second)?;
    }
    Ok(())
}

/// Refuses string tables with far more strings than the file has names. goblin keeps a list of all strings, 24 bytes for
/// each.
fn check_strings(bytes: &[u8], first: &ObjectFile<'_>) -> Result<(), Refused> {
    let names = first.sections.len() + first.symbols.len();
    for section in first.sections.iter().filter(|section| section.section_type == SHT_STRTAB) {
        let strings = section.bytes(bytes).iter().filter(|byte| **byte == 0).count();
        if strings > 2 * names + SPARE_STRINGS {
            let Section { name, offset, .. } = section;
            let what = format!("section {name} has {strings} strings for {names} names");
            return Err(Refused::at(*offset, what));
        }
    }
    Ok(())
}

/// The place where goblin gave up. goblin reads string tables whole; the `object` crate reads only the names in use.
fn refuses(bytes: &[u8], first: &ObjectFile<'_>, error: &goblin::error::Error) -> Refused {
    let no_text = first.sections.iter().enumerate().find_map(|(index, section)| {
        let is_table = section.section_type == SHT_STRTAB;
        let at = std::str::from_utf8(section.bytes(bytes)).err().filter(|_| is_table)?.valid_up_to();
        Some((index, section, section.offset + at as u64))
    });
    match no_text {
        Some((index, Section { name, .. }, at)) => Refused::at(
            at,
            format!("two parsers disagree about section {index} ({name}): one reads it, the other says {error}"),
        ),
        None => Refused::new(format!("the second parser refuses the file: {error}")),
    }
}

/// An error if the parsers see different values for `field` of `whose`.
fn differ<T: PartialEq + std::fmt::Debug>(
    field: &str,
    whose: &dyn Fn() -> String,
    one: &T,
    two: &T,
) -> Result<(), Refused> {
    if one == two {
        return Ok(());
    }
    let whose = whose();
    let of = if whose.is_empty() { "" } else { " of " };
    let what = format!("two parsers disagree about the {field}{of}{whose}: {one:?} and {two:?}");
    Err(Refused::new(what))
}

fn section(index: usize, one: &Section<'_>, two: &SectionHeader, second: &Elf<'_>) -> Result<(), Refused> {
    let whose = || format!("section {index} ({})", one.name);
    let differ_at = |field: &str, a: u64, b: u64| differ(field, &whose, &a, &b);
    differ("name", &whose, &one.name, &second.shdr_strtab.get_at(two.sh_name).unwrap_or_default())?;
    differ_at("type", one.section_type.into(), two.sh_type.into())?;
    differ_at("flags", one.flags, two.sh_flags)?;
    differ_at("offset", one.offset, two.sh_offset)?;
    differ_at("size", one.size, two.sh_size)?;
    differ_at("link", one.link.into(), two.sh_link.into())?;
    differ_at("info", one.info.into(), two.sh_info.into())
}

fn symbol(index: usize, one: &Symbol<'_>, two: &Sym, second: &Elf<'_>) -> Result<(), Refused> {
    let whose = || format!("symbol {index} ({})", one.name);
    let differ_at = |field: &str, a: u64, b: u64| differ(field, &whose, &a, &b);
    differ("name", &whose, &one.name, &second.strtab.get_at(two.st_name).unwrap_or_default())?;
    differ_at("value", one.value, two.st_value)?;
    differ_at("size", one.size, two.st_size)?;
    differ("section", &whose, &usize::from(one.section), &two.st_shndx)?;
    differ_at("bind", one.bind.into(), two.st_bind().into())?;
    differ_at("type", one.symbol_type.into(), two.st_type().into())
}

fn relocation(index: usize, one: &Relocation, table: usize, two: &Reloc, second: &Elf<'_>) -> Result<(), Refused> {
    let whose = || format!("relocation {index}");
    let target = second.section_headers.get(table).map_or(0, |header| header.sh_info as usize);
    differ("table", &whose, &one.table, &table)?;
    differ("section", &whose, &one.section, &target)?;
    differ("offset", &whose, &one.offset, &two.r_offset)?;
    differ("symbol", &whose, &(one.symbol as usize), &two.r_sym)?;
    differ("type", &whose, &one.relocation_type, &two.r_type)?;
    differ("addend", &whose, &one.addend, &two.r_addend.unwrap_or(0))
}

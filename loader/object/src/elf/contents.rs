//! The meaning of a BPF object's sections and symbols: programs, subprograms, maps, license. The conventions are libbpf's.

use super::sections::Section;
use super::symbols::Symbol;
use super::{INSN_SIZE, Program, Refused};
use crate::sort;

const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STB_LOCAL: u8 = 0;
/// `st_shndx` of a symbol whose section's index takes more than 16 bits.
const SHN_XINDEX: u16 = 0xffff;

/// The most refusals that are reported for one file.
const MOST_REFUSALS: usize = 100;

/// The section called `name`. Two sections of that name are refused, so that libbpf's choice between them does not matter.
fn only<'s, 'a>(sections: &'s [Section<'a>], name: &str) -> Result<Option<(usize, &'s Section<'a>)>, Refused> {
    let mut found = sections.iter().enumerate().filter(|(_, s)| s.name == name);
    let first = found.next();
    match found.next() {
        Some((_, second)) => Err(Refused::at(second.offset, format!("the object has two sections {name}"))),
        None => Ok(first),
    }
}

/// The bytes of the one section called `name`.
pub(super) fn bytes_of<'a>(file: &'a [u8], sections: &[Section<'a>], name: &str) -> Result<Option<&'a [u8]>, Refused> {
    Ok(only(sections, name)?.map(|(_, section)| section.bytes(file)))
}

/// The programs, and the subprograms in `.text`. Functions that are refused are left out, and `refusals` gives the reasons.
pub(super) fn functions<'a>(
    sections: &[Section<'a>],
    symbols: &[Symbol<'a>],
    refusals: &mut Vec<Refused>,
) -> (Vec<Program<'a>>, Vec<Program<'a>>) {
    refusals.extend(only(sections, ".text").err());
    let mut programs = Vec::new();
    let mut subprograms = Vec::new();
    for symbol in symbols.iter().filter(|s| s.symbol_type == STT_FUNC && s.section != 0) {
        let home = symbol.home().and_then(|home| Some((home, sections.get(home).filter(|s| s.is_executable())?)));
        let Some((home, section)) = home else {
            push(refusals, || {
                let place = match symbol.section {
                    SHN_XINDEX => "a section beyond the first 65279, where libbpf looks for no function",
                    _ => "no executable section",
                };
                Refused::new(format!("function {} is in {place}", symbol.name))
            });
            continue;
        };
        let (offset, size) = (symbol.value, symbol.size);
        let fits = offset.checked_add(size).is_some_and(|end| end <= section.size);
        if size == 0 || size % INSN_SIZE != 0 || offset % INSN_SIZE != 0 || !fits {
            push(refusals, || {
                let what = format!(
                    "function {} takes {size} bytes from byte {offset} of section {} ({} bytes): not whole instructions in it",
                    symbol.name, section.name, section.size
                );
                Refused::at(section.offset, what)
            });
            continue;
        }
        let program = Program {
            name: symbol.name,
            section: section.name,
            section_index: home,
            // The size fits into memory, because it is at most the size of the file.
            insns: (size / INSN_SIZE) as usize,
            offset,
            size,
        };
        if section.name == ".text" {
            subprograms.push(program);
        } else if symbol.bind == STB_LOCAL {
            push(refusals, || {
                let (name, section) = (symbol.name, section.name);
                Refused::new(format!("program {name} in section {section} is static; libbpf takes only global ones"))
            });
        } else {
            programs.push(program);
        }
    }
    sort::by_key(&mut programs, |program: &Program<'_>| (program.section_index, program.offset));
    sort::by_key(&mut subprograms, |program| program.offset);
    (programs, subprograms)
}

/// Adds a refusal while there are few: a hostile file can have any number.
fn push(refusals: &mut Vec<Refused>, why: impl FnOnce() -> Refused) {
    if refusals.len() < MOST_REFUSALS {
        refusals.push(why());
    }
}

/// The names of the maps. Maps that are refused are left out, and `refusals` gives the reasons.
pub(super) fn maps(sections: &[Section<'_>], symbols: &[Symbol<'_>], refusals: &mut Vec<Refused>) -> Vec<String> {
    let (index, section) = match only(sections, ".maps") {
        Ok(Some(found)) => found,
        Ok(None) => return Vec::new(),
        Err(why) => {
            refusals.push(why);
            return Vec::new();
        }
    };
    let mut found: Vec<&Symbol<'_>> = Vec::new();
    for symbol in symbols.iter().filter(|s| s.home() == Some(index) && s.symbol_type == STT_OBJECT) {
        let fits = symbol.value.checked_add(symbol.size).is_some_and(|end| end <= section.size);
        if !fits {
            push(refusals, || {
                let what = format!("map {} ends beyond the {} bytes of section .maps", symbol.name, section.size);
                Refused::at(section.offset, what)
            });
            continue;
        }
        found.push(symbol);
    }
    sort::by_key(&mut found, |symbol| symbol.value);
    found.into_iter().map(|symbol| symbol.name.to_owned()).collect()
}

/// The text of the `license` section.
pub(super) fn license(bytes: Option<&[u8]>) -> Result<Option<String>, Refused> {
    let Some(bytes) = bytes else { return Ok(None) };
    let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Refused::new("the license in section license is not text")),
    }
}

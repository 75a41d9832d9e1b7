//! What the sections and symbols of a BPF object mean: programs, subprograms, maps, license. The conventions are
//! libbpf's.

use super::sections::Section;
use super::symbols::Symbol;
use super::{INSN_SIZE, Program, Refused};

const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STB_LOCAL: u8 = 0;

/// The section called `name`. Two of that name are refused: which of them libbpf would take is nobody's business.
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

/// The programs, and the subprograms in `.text`.
pub(super) fn functions<'a>(
    sections: &[Section<'a>],
    symbols: &[Symbol<'a>],
) -> Result<(Vec<Program<'a>>, Vec<Program<'a>>), Refused> {
    only(sections, ".text")?;
    let mut programs: Vec<(u16, Program<'a>)> = Vec::new();
    let mut subprograms = Vec::new();
    for symbol in symbols.iter().filter(|s| s.symbol_type == STT_FUNC && s.section != 0) {
        let Some(section) = sections.get(usize::from(symbol.section)).filter(|s| s.is_executable()) else {
            return Err(Refused::new(format!("function {} is in no executable section", symbol.name)));
        };
        let (offset, size) = (symbol.value, symbol.size);
        let fits = offset.checked_add(size).is_some_and(|end| end <= section.size);
        if size == 0 || size % INSN_SIZE != 0 || offset % INSN_SIZE != 0 || !fits {
            let what = format!(
                "function {} takes {size} bytes from byte {offset} of section {} ({} bytes): not whole instructions in it",
                symbol.name, section.name, section.size
            );
            return Err(Refused::at(section.offset, what));
        }
        let program = Program {
            name: symbol.name,
            section: section.name,
            section_index: symbol.section.into(),
            // A size in memory, and not more than the file's.
            insns: (size / INSN_SIZE) as usize,
            offset,
            size,
        };
        if section.name == ".text" {
            subprograms.push(program);
        } else if symbol.bind == STB_LOCAL {
            let what =
                format!("program {} in section {} is static; libbpf takes only global ones", symbol.name, section.name);
            return Err(Refused::new(what));
        } else {
            programs.push((symbol.section, program));
        }
    }
    programs.sort_by_key(|(section, program)| (*section, program.offset));
    subprograms.sort_by_key(|program| program.offset);
    Ok((programs.into_iter().map(|(_, program)| program).collect(), subprograms))
}

/// The names of the maps.
pub(super) fn maps(sections: &[Section<'_>], symbols: &[Symbol<'_>]) -> Result<Vec<String>, Refused> {
    let Some((index, section)) = only(sections, ".maps")? else { return Ok(Vec::new()) };
    let mut found: Vec<&Symbol<'_>> = Vec::new();
    for symbol in symbols.iter().filter(|s| usize::from(s.section) == index && s.symbol_type == STT_OBJECT) {
        let fits = symbol.value.checked_add(symbol.size).is_some_and(|end| end <= section.size);
        if !fits {
            let what = format!("map {} ends beyond the {} bytes of section .maps", symbol.name, section.size);
            return Err(Refused::at(section.offset, what));
        }
        found.push(symbol);
    }
    found.sort_by_key(|symbol| symbol.value);
    Ok(found.into_iter().map(|symbol| symbol.name.to_owned()).collect())
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

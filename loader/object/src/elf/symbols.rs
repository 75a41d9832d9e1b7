//! The symbol table and the relocations.

use object::Endianness;
use object::elf::{self, Rel64, Rela64, Sym64};
use object::read::elf::{Rel, Rela, Sym};

use super::Refused;
use super::sections::{Header, Section, name_at, table};

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is, in bytes from the beginning of its section.
    pub value: u64,
    /// Its size in bytes.
    pub size: u64,
    /// `st_shndx`: the section's index; 0 if it is defined elsewhere. Numbers from 0xff00 are no indices: 0xfff1 says that the
    /// value is just a number, and 0xffff that the index is in a table of its own ([`Symbol::home`]).
    pub section: u16,
    /// `STB_LOCAL` is 0, `STB_GLOBAL` 1, `STB_WEAK` 2.
    pub bind: u8,
    /// `STT_NOTYPE` is 0, `STT_OBJECT` 1, `STT_FUNC` 2, `STT_SECTION` 3.
    pub symbol_type: u8,
    /// Hidden or internal visibility (`STV_HIDDEN`, `STV_INTERNAL`); libbpf takes such a variable for a static one.
    pub hidden: bool,
}

impl Symbol<'_> {
    /// The index of the section that the symbol is in; `None` if it is in none. Also `None` for a section with an index from
    /// 0xff00: libbpf does not read the table that has such an index (`SHT_SYMTAB_SHNDX`), and neither does this parser.
    #[must_use]
    pub fn home(&self) -> Option<usize> {
        (1..elf::SHN_LORESERVE).contains(&self.section).then(|| self.section.into())
    }

    /// True if other objects may refer to it: `STB_GLOBAL` or `STB_WEAK`.
    #[must_use]
    pub fn is_global(&self) -> bool {
        matches!(self.bind, 1 | 2)
    }
}

/// A relocation: a place in a section that depends on a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Index of the section that holds the relocation.
    pub table: usize,
    /// Index of the section that it applies to.
    pub section: usize,
    /// The place, in bytes from the beginning of that section.
    pub offset: u64,
    /// Index of the symbol.
    pub symbol: u32,
    /// `R_BPF_64_64` is 1, `R_BPF_64_ABS64` 2, `R_BPF_64_ABS32` 3, `R_BPF_64_NODYLD32` 4, `R_BPF_64_32` 10.
    pub relocation_type: u32,
    /// What is added; 0 where the addend is in the place itself, as BPF has it.
    pub addend: i64,
}

/// How many entries a section's table has.
fn entries(section: &Section<'_>, size: usize) -> Result<usize, Refused> {
    let size = size as u64;
    if section.entry_size != size || !section.size.is_multiple_of(size) {
        let what = format!(
            "section {}: {} bytes in entries of {}, but entries have {size} bytes",
            section.name, section.size, section.entry_size
        );
        return Err(Refused::at(section.offset, what));
    }
    usize::try_from(section.size / size).map_err(|_| Refused::new(format!("section {} is too long", section.name)))
}

/// The symbol table's section index, and the symbols.
pub(super) fn symbols<'a>(
    bytes: &'a [u8],
    header: &Header<'_>,
    sections: &[Section<'a>],
) -> Result<(usize, Vec<Symbol<'a>>), Refused> {
    let mut tables = sections.iter().enumerate().filter(|(_, s)| s.section_type == elf::SHT_SYMTAB.0);
    let Some((index, section)) = tables.next() else {
        return Err(Refused::new("the object has no symbol table (was it stripped?)"));
    };
    if tables.next().is_some() {
        return Err(Refused::new("the object has two symbol tables"));
    }
    let strings = match sections.get(section.link as usize) {
        Some(strings) if strings.section_type == elf::SHT_STRTAB.0 => strings.bytes(bytes),
        _ => return Err(Refused::new(format!("section {}: its names are in no string table", section.name))),
    };
    let endian = header.endian;
    let count = entries(section, size_of::<Sym64<Endianness>>())?;
    let raw: &[Sym64<Endianness>] = table(bytes, section.offset, count, "the symbol table")?;
    let mut symbols = Vec::with_capacity(count);
    for (number, raw) in raw.iter().enumerate() {
        let at = section.offset + number as u64 * 24;
        let name = name_at(strings, raw.st_name(endian))
            .map_err(|what| Refused::at(at, format!("symbol {number}: {what}")))?;
        let home = raw.st_shndx(endian).0;
        if home < elf::SHN_LORESERVE && usize::from(home) >= sections.len() {
            let what = format!("symbol {number} ({name}) is in section {home}, the last is {}", sections.len() - 1);
            return Err(Refused::at(at, what));
        }
        symbols.push(Symbol {
            name,
            value: raw.st_value(endian),
            size: raw.st_size(endian),
            section: home,
            bind: raw.st_bind().0,
            symbol_type: raw.st_type().0,
            hidden: matches!(raw.st_other().0 & 3, 1 | 2),
        });
    }
    Ok((index, symbols))
}

/// Every relocation of the file.
pub(super) fn relocations(
    bytes: &[u8],
    header: &Header<'_>,
    sections: &[Section<'_>],
    symtab: usize,
    symbols: usize,
) -> Result<Vec<Relocation>, Refused> {
    let endian = header.endian;
    let mut all = Vec::new();
    for (table_index, section) in sections.iter().enumerate() {
        let first = all.len();
        if section.section_type == elf::SHT_REL.0 {
            let count = entries(section, size_of::<Rel64<Endianness>>())?;
            let raw: &[Rel64<Endianness>] = table(bytes, section.offset, count, section.name)?;
            all.extend(raw.iter().map(|r| Relocation {
                table: table_index,
                section: section.info as usize,
                offset: r.r_offset(endian),
                symbol: r.r_sym(endian),
                relocation_type: r.r_type(endian).0,
                addend: 0,
            }));
        } else if section.section_type == elf::SHT_RELA.0 {
            let count = entries(section, size_of::<Rela64<Endianness>>())?;
            let raw: &[Rela64<Endianness>] = table(bytes, section.offset, count, section.name)?;
            all.extend(raw.iter().map(|r| Relocation {
                table: table_index,
                section: section.info as usize,
                offset: r.r_offset(endian),
                symbol: r.r_sym(endian, false),
                relocation_type: r.r_type(endian, false).0,
                addend: r.r_addend(endian),
            }));
        } else {
            continue;
        }
        if section.link as usize != symtab {
            return Err(Refused::new(format!("section {}: its symbols are not those of the object", section.name)));
        }
        let Some(target) = sections.get(section.info as usize).filter(|_| section.info != 0) else {
            let what = format!("section {} relocates section {}, which does not exist", section.name, section.info);
            return Err(Refused::new(what));
        };
        let size = target.relocated_size(bytes, endian);
        for (number, relocation) in all.get(first..).unwrap_or_default().iter().enumerate() {
            let at = section.offset + number as u64 * section.entry_size;
            if relocation.offset >= size {
                let what = format!(
                    "section {}: relocation {number} is at byte {} of {}, which has {size} bytes",
                    section.name, relocation.offset, target.name
                );
                return Err(Refused::at(at, what));
            }
            if relocation.symbol as usize >= symbols {
                let what = format!(
                    "section {}: relocation {number} is for symbol {}, the last is {}",
                    section.name,
                    relocation.symbol,
                    symbols.saturating_sub(1)
                );
                return Err(Refused::at(at, what));
            }
        }
    }
    Ok(all)
}

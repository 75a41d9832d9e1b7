//! The BPF object file: its sections, symbols, relocations, programs and maps, read with the `object` crate.
//!
//! Stricter than a linker: a field that is not as clang writes it is refused rather than worked around, because what
//! passes here goes to the kernel.

mod contents;
mod sections;
mod symbols;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;

use std::fmt;

pub use sections::{Section, section, section_of_file};
pub use symbols::{Relocation, Symbol};

/// `e_machine` of BPF.
pub const EM_BPF: u16 = 247;

/// Size of a BPF instruction in bytes. A 64-bit immediate load takes two.
pub const INSN_SIZE: u64 = 8;

/// Names may share text, and take more than this many times the file only in files made by hand.
const MOST_NAMES: usize = 4;

/// Why an object file is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong, with the section or symbol it is in.
    pub what: String,
    /// Byte offset in the file, where one says more.
    pub offset: Option<u64>,
}

impl Refused {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Refused { what: what.into(), offset: None }
    }

    pub(crate) fn at(offset: u64, what: impl Into<String>) -> Self {
        Refused { what: what.into(), offset: Some(offset) }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.offset {
            Some(offset) => write!(f, " (byte {offset} of the file)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

/// A function in a program section, or a subprogram in `.text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// The function's name.
    pub name: &'a str,
    /// The section it is in: what `SEC("...")` said, or `.text`.
    pub section: &'a str,
    /// That section's index.
    pub section_index: usize,
    /// How many instructions of eight bytes, before libbpf appends the subprograms it calls.
    pub insns: usize,
    /// Where it begins, in bytes from the beginning of the section.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A BPF object file.
#[derive(Clone, Debug)]
pub struct ObjectFile<'a> {
    /// Byte order of everything in the file, instructions and BTF included.
    pub is_little_endian: bool,
    /// Every section, by index; entry 0 is the empty one that every ELF file has.
    pub sections: Vec<Section<'a>>,
    /// Every symbol, by index; entry 0 is the empty one.
    pub symbols: Vec<Symbol<'a>>,
    /// Every relocation, section by section.
    pub relocations: Vec<Relocation>,
    /// The programs: global functions in executable sections other than `.text`. By section, then by offset.
    pub programs: Vec<Program<'a>>,
    /// The functions in `.text`, which programs call. By offset.
    pub subprograms: Vec<Program<'a>>,
    /// The maps, by their symbols in the `.maps` section. In the order of the symbols' offsets.
    pub maps: Vec<String>,
    /// The license, as the kernel will see it.
    pub license: Option<String>,
    /// The `.BTF` section: the object's own types.
    pub btf: Option<&'a [u8]>,
    /// The `.BTF.ext` section: line and function information and CO-RE relocations.
    pub btf_ext: Option<&'a [u8]>,
}

impl<'a> ObjectFile<'a> {
    /// Reads and checks an object file: 64-bit ELF for BPF, relocatable, complete. The bytes should begin at a multiple of
    /// 8 in memory, as those of a `Vec` read from a file do.
    ///
    /// # Errors
    /// [`Refused`] says what the bytes are instead, or what is wrong with them and where.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refused> {
        let (header, sections) = sections::read(bytes)?;
        header.check_is_bpf_object()?;
        sections::check_apart(&sections)?;
        let (symtab, symbols) = symbols::symbols(bytes, &header, &sections)?;
        let names = sections.iter().map(|section| section.name.len()).chain(symbols.iter().map(|s| s.name.len()));
        if names.sum::<usize>() > MOST_NAMES * bytes.len() {
            return Err(Refused::new("its sections and symbols share the ends of long names"));
        }
        let relocations = symbols::relocations(bytes, &header, &sections, symtab, symbols.len())?;
        let (programs, subprograms) = contents::functions(&sections, &symbols)?;
        let text = |name| contents::bytes_of(bytes, &sections, name);
        let btf = text(".BTF")?;
        let other_order: &[u8] = if header.is_little_endian() { &[0xeb, 0x9f] } else { &[0x9f, 0xeb] };
        if btf.is_some_and(|btf| btf.starts_with(other_order)) {
            return Err(Refused::new("section .BTF is not of the byte order of the file that it is in"));
        }
        Ok(ObjectFile {
            is_little_endian: header.is_little_endian(),
            maps: contents::maps(&sections, &symbols)?,
            license: contents::license(text("license")?)?,
            btf,
            btf_ext: text(".BTF.ext")?,
            programs,
            subprograms,
            sections,
            symbols,
            relocations,
        })
    }

    /// The index of the program that begins at byte `offset` of a section.
    #[must_use]
    pub fn program_at(&self, section_index: usize, offset: u64) -> Option<usize> {
        self.programs.binary_search_by_key(&(section_index, offset), |one| (one.section_index, one.offset)).ok()
    }
}

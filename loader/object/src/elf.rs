//! The BPF object file: its sections, symbols, relocations, programs and maps, read with the `object` crate.
//!
//! The parser is stricter than a linker. It refuses a field that differs from clang's output, and does not work around it,
//! because an accepted object goes to the kernel.

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

/// The names in a file may have at most this many times the file's size together. Names may share text, but only files made
/// by hand have more.
const MOST_NAMES: usize = 4;

/// The reason why an object file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The fault, with its section or symbol.
    pub what: String,
    /// Byte offset in the file, where the offset tells more.
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
    /// The name of the function's section: the text in `SEC("...")`, or `.text`.
    pub section: &'a str,
    /// That section's index.
    pub section_index: usize,
    /// Number of instructions of eight bytes, before libbpf appends the subprograms that the function calls.
    pub insns: usize,
    /// Byte offset of the function in the section.
    pub offset: u64,
    /// The function's size in bytes.
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
    /// The names of the maps, which have symbols in the `.maps` section. In the order of the symbols' offsets.
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
    /// [`Refused`] says what the bytes are, if not a BPF object; or which fault the object has, and where.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refused> {
        let (object, refusals) = Self::read(bytes)?;
        refusals.into_iter().next().map_or(Ok(object), Err)
    }

    /// As [`ObjectFile::parse`], but continues after a part that is refused. Returns the parts that could be read, and the
    /// faults of the rest. If the relocations cannot be read, nothing is known of functions, and functions are left out.
    ///
    /// # Errors
    /// The file is no BPF object, or its sections or symbols cannot be read.
    pub fn read(bytes: &'a [u8]) -> Result<(Self, Vec<Refused>), Refused> {
        let (header, sections) = sections::read(bytes)?;
        header.check_is_bpf_object()?;
        sections::check_apart(&sections)?;
        let (symtab, symbols) = symbols::symbols(bytes, &header, &sections)?;
        let names = sections.iter().map(|section| section.name.len()).chain(symbols.iter().map(|s| s.name.len()));
        if names.sum::<usize>() > MOST_NAMES * bytes.len() {
            return Err(Refused::new("its sections and symbols share the ends of long names"));
        }
        let mut refusals = Vec::new();
        let relocations = symbols::relocations(bytes, &header, &sections, symtab, symbols.len());
        let relocations = relocations.map_err(|why| refusals.push(why)).ok();
        let (mut programs, mut subprograms) = (Vec::new(), Vec::new());
        if relocations.is_some() {
            (programs, subprograms) = contents::functions(&sections, &symbols, &mut refusals);
        }
        let mut text = |name| match contents::bytes_of(bytes, &sections, name) {
            Ok(text) => text,
            Err(why) => {
                refusals.push(why);
                None
            }
        };
        let [mut btf, btf_ext, license] = [".BTF", ".BTF.ext", "license"].map(&mut text);
        let other_order: &[u8] = if header.is_little_endian() { &[0xeb, 0x9f] } else { &[0x9f, 0xeb] };
        if btf.is_some_and(|btf| btf.starts_with(other_order)) {
            refusals.push(Refused::new("section .BTF is not of the byte order of the file that it is in"));
            btf = None;
        }
        let object = ObjectFile {
            is_little_endian: header.is_little_endian(),
            maps: contents::maps(&sections, &symbols, &mut refusals),
            license: contents::license(license).unwrap_or_else(|why| {
                refusals.push(why);
                None
            }),
            btf,
            btf_ext,
            programs,
            subprograms,
            sections,
            symbols,
            relocations: relocations.unwrap_or_default(),
        };
        Ok((object, refusals))
    }

    /// The index of the program that begins at byte `offset` of a section.
    #[must_use]
    pub fn program_at(&self, section_index: usize, offset: u64) -> Option<usize> {
        self.programs.binary_search_by_key(&(section_index, offset), |one| (one.section_index, one.offset)).ok()
    }
}

//! `.BTF.ext`: information about single instructions. It gives the function and source line of each, and the CO-RE
//! relocations.
//!
//! The format is that of the kernel's Documentation/bpf/btf.rst ("`.BTF.ext` section"): a header, then up to three tables.
//! Each table is a record size, followed by stretches of records, one stretch for each ELF section. Text and types are in
//! `.BTF`. [`BtfExt::parse`] checks every offset against the data and the BTF, [`BtfExt::check_places`] against the object.

use std::collections::HashMap;
use std::fmt;

use super::btf::{Btf, TypeId};
use super::elf::{INSN_SIZE, ObjectFile, Refused};

/// Header bytes up to the end of `line_info_len`.
const HEADER: usize = 24;
/// Header bytes up to the end of `core_relo_len`.
const HEADER_WITH_RELOCATIONS: usize = 32;

/// Bytes of a stretch's head: the section's name and the number of records.
const STRETCH_HEAD: usize = 8;

/// The most bytes that a section name or access string may have.
const MAX_TEXT: usize = 1024;

/// The records of one ELF section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch<'b, T> {
    /// The ELF section's name.
    pub section: &'b str,
    /// The records, in the order of the file.
    pub records: Vec<T>,
}

/// The start of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuncInfo {
    /// Bytes from the beginning of the section.
    pub offset: u32,
    /// The function ([`super::Kind::Func`]).
    pub func: TypeId,
}

/// The source line of instructions, up to the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineInfo {
    /// Bytes from the beginning of the section.
    pub offset: u32,
    /// The file's name, for [`Btf::string`].
    pub file: u32,
    /// The line's text, for [`Btf::string`].
    pub text: u32,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1; 0 if unknown.
    pub column: u32,
}

/// A CO-RE relocation, as the compiler wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreRelocation<'b> {
    /// The instruction, in bytes from the beginning of the section.
    pub offset: u32,
    /// The type that is accessed, in the object's own BTF.
    pub root: TypeId,
    /// The part of the type that is accessed: indices separated by colons, such as `0:1:2`. Not checked here.
    pub access: &'b str,
    /// The question about the part: a number of the kernel's `enum bpf_core_relo_kind`. Not checked here.
    pub kind: u32,
}

/// The reason why bytes are not a valid `.BTF.ext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BtfExtError {
    /// Byte offset of the flaw in the section.
    pub offset: usize,
    /// A description of the flaw.
    pub what: String,
}

impl fmt::Display for BtfExtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid .BTF.ext: {} (byte {})", self.what, self.offset)
    }
}

impl std::error::Error for BtfExtError {}

/// The contents of `.BTF.ext`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BtfExt<'b> {
    /// Functions, section by section.
    pub functions: Vec<Stretch<'b, FuncInfo>>,
    /// Source lines, section by section.
    pub lines: Vec<Stretch<'b, LineInfo>>,
    /// CO-RE relocations, section by section.
    pub relocations: Vec<Stretch<'b, CoreRelocation<'b>>>,
}

struct Reader<'d, 'b> {
    data: &'d [u8],
    btf: &'b Btf,
}

/// The words of one record, and the record's offset in the data.
struct Record<'r, 'd, 'b> {
    reader: &'r Reader<'d, 'b>,
    at: usize,
    words: [u32; 4],
}

fn flaw(offset: usize, what: impl Into<String>) -> BtfExtError {
    BtfExtError { offset, what: what.into() }
}

impl<'b> Reader<'_, 'b> {
    fn word(&self, at: usize) -> Result<u32, BtfExtError> {
        let four = at.checked_add(4).and_then(|end| self.data.get(at..end));
        match four.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
            Some(four) if self.btf.is_big_endian() => Ok(u32::from_be_bytes(four)),
            Some(four) => Ok(u32::from_le_bytes(four)),
            None => Err(flaw(at, format!("the data ends at byte {}, within a number", self.data.len()))),
        }
    }

    /// A short text of the BTF's strings.
    fn text(&self, offset: u32, at: usize, what: &str) -> Result<&'b str, BtfExtError> {
        let (text, len) = (self.btf.string(offset), self.btf.strings_len());
        match text {
            Some(text) if text.len() <= MAX_TEXT => Ok(text),
            Some(_) => Err(flaw(at, format!("{what}, at string offset {offset}, is longer than {MAX_TEXT} bytes"))),
            None if offset as usize >= len => Err(flaw(
                at,
                format!("{what} is at string offset {offset}, past the end of the {len} bytes of strings"),
            )),
            None => Err(flaw(at, format!("{what}, at string offset {offset}, is not UTF-8"))),
        }
    }

    /// Reads a table: `start` and `len` come from the header, and a record has at least `least` bytes.
    fn table<T>(
        &self,
        (start, len): (usize, usize),
        least: usize,
        name: &str,
        one: impl Fn(&Record<'_, '_, 'b>) -> Result<T, BtfExtError>,
    ) -> Result<Vec<Stretch<'b, T>>, BtfExtError> {
        let mut stretches = Vec::new();
        if len == 0 {
            return Ok(stretches);
        }
        let end = start.checked_add(len).filter(|end| *end <= self.data.len()).ok_or_else(|| {
            flaw(start.min(self.data.len()), format!("the {name} table ends beyond the {} bytes", self.data.len()))
        })?;
        if start % 4 != 0 {
            return Err(flaw(start, format!("the {name} table does not begin at a multiple of 4")));
        }
        if len < 4 {
            return Err(flaw(start, format!("the {name} table is too short for its record size")));
        }
        let size = self.word(start)? as usize;
        if size < least || !size.is_multiple_of(4) {
            return Err(flaw(start, format!("{name} records of {size} bytes, at least {least} are known")));
        }
        let mut at = start + 4;
        if at == end {
            return Err(flaw(start, format!("the {name} table has no records")));
        }
        while at < end {
            if end - at < STRETCH_HEAD {
                return Err(flaw(at, format!("the {name} table ends within the head of a section's records")));
            }
            let section = self.text(self.word(at)?, at, "a section's name")?;
            if section.is_empty() {
                return Err(flaw(at, format!("{name} records for a section without name")));
            }
            let count = self.word(at + 4)? as usize;
            let bytes = count.checked_mul(size).filter(|bytes| *bytes <= end - at - STRETCH_HEAD);
            let Some(bytes) = bytes.filter(|_| count > 0) else {
                let what =
                    format!("{count} {name} records of {size} bytes for section {section}, {} bytes are left", {
                        end - at - STRETCH_HEAD
                    });
                return Err(flaw(at + 4, what));
            };
            let first = at + STRETCH_HEAD;
            let mut records = Vec::with_capacity(count);
            for place in (first..first + bytes).step_by(size) {
                let mut words = [0; 4];
                for (number, word) in words.iter_mut().enumerate().take(least / 4) {
                    *word = self.word(place + number * 4)?;
                }
                if u64::from(words[0]) % INSN_SIZE != 0 {
                    let what = format!("a {name} record for byte {} of section {section}: no instruction", words[0]);
                    return Err(flaw(place, what));
                }
                records.push(one(&Record { reader: self, at: place, words })?);
            }
            stretches.push(Stretch { section, records });
            at = first + bytes;
        }
        Ok(stretches)
    }
}

impl<'b> Record<'_, '_, 'b> {
    fn type_id(&self, word: usize) -> Result<TypeId, BtfExtError> {
        let id = TypeId(self.words[word]);
        if id.0 as usize > self.reader.btf.len() {
            let what = format!("refers to type {id}, the last is [{}]", self.reader.btf.len());
            return Err(flaw(self.at + word * 4, what));
        }
        Ok(id)
    }

    /// The offset of a text that is read only on demand: lines of source can be long, and many records can share one.
    fn text_offset(&self, word: usize) -> Result<u32, BtfExtError> {
        let (offset, len) = (self.words[word], self.reader.btf.strings_len());
        if offset as usize >= len {
            let what = format!("refers to string offset {offset}, past the end of the {len} bytes of strings");
            return Err(flaw(self.at + word * 4, what));
        }
        Ok(offset)
    }
}

impl<'b> BtfExt<'b> {
    /// Reads and checks the section; `btf` is the BTF of the same object.
    ///
    /// # Errors
    /// [`BtfExtError`] says what is wrong, and at which byte.
    pub fn parse(data: &[u8], btf: &'b Btf) -> Result<BtfExt<'b>, BtfExtError> {
        let reader = Reader { data, btf };
        let magic: &[u8] = if btf.is_big_endian() { &[0xeb, 0x9f] } else { &[0x9f, 0xeb] };
        if data.len() < HEADER {
            return Err(flaw(data.len(), format!("{} bytes are too few for a header of {HEADER}", data.len())));
        }
        if !data.starts_with(magic) {
            let order = if btf.is_big_endian() { "big" } else { "little" };
            return Err(flaw(
                0,
                format!("does not begin with the magic number eb9f in {order}-endian order, like .BTF"),
            ));
        }
        if data.get(2..4) != Some(&[1, 0]) {
            return Err(flaw(2, "only version 1 without flags is known"));
        }
        let header = reader.word(4)? as usize;
        if header < HEADER || header > data.len() || !header.is_multiple_of(4) {
            return Err(flaw(4, format!("header length {header}: multiples of 4 from {HEADER} would be possible")));
        }
        let range = |at: usize| -> Result<(usize, usize), BtfExtError> {
            let start = header.checked_add(reader.word(at)? as usize);
            Ok((start.ok_or_else(|| flaw(at, "an offset beyond all memory"))?, reader.word(at + 4)? as usize))
        };
        let functions = reader.table(range(8)?, 8, "function", |record| {
            Ok(FuncInfo { offset: record.words[0], func: record.type_id(1)? })
        })?;
        let lines = reader.table(range(16)?, 16, "line", |record| {
            let [offset, _, _, place] = record.words;
            let (file, text) = (record.text_offset(1)?, record.text_offset(2)?);
            Ok(LineInfo { offset, file, text, line: place >> 10, column: place & 0x3ff })
        })?;
        let mut relocations = Vec::new();
        if header >= HEADER_WITH_RELOCATIONS {
            relocations = reader.table(range(24)?, 16, "relocation", |record| {
                let [offset, _, access, kind] = record.words;
                let root = record.type_id(1)?;
                if root.is_void() {
                    return Err(flaw(record.at + 4, "a relocation of type void"));
                }
                let access = record.reader.text(access, record.at + 8, "an access string")?;
                Ok(CoreRelocation { offset, root, access, kind })
            })?;
        }
        Ok(BtfExt { functions, lines, relocations })
    }

    /// Checks that every record is for an instruction of the object. Returns the indices of the records' sections, by name.
    ///
    /// # Errors
    /// The first record that is not. The record's section does not exist, is not executable or exists twice; or the record
    /// lies beyond the section's end.
    pub fn check_places<'o>(&self, object: &'o ObjectFile<'_>) -> Result<HashMap<&'o str, usize>, Refused> {
        let mut sections: HashMap<&str, usize> = HashMap::new();
        let mut twice: HashMap<&str, u64> = HashMap::new();
        for (index, section) in object.sections.iter().enumerate() {
            if sections.insert(section.name, index).is_some() {
                twice.insert(section.name, section.offset);
            }
        }
        let check = |what: &str, name: &str, offsets: &mut dyn Iterator<Item = u32>| {
            let home = sections.get(name).and_then(|index| object.sections.get(*index)).filter(|s| s.is_executable());
            let Some(home) = home else {
                return Err(Refused::new(format!(
                    ".BTF.ext has {what} records for {name}, which is no program section"
                )));
            };
            if let Some(second) = twice.get(name) {
                return Err(Refused::at(*second, format!("the object has two sections {name}")));
            }
            for offset in offsets {
                let size = home.size;
                if u64::from(offset) + INSN_SIZE > size {
                    let record = format!("a {what} record for byte {offset}");
                    let what = format!(".BTF.ext has {record} of section {name}, which has {size} bytes");
                    return Err(Refused::at(home.offset, what));
                }
            }
            Ok(())
        };
        for stretch in &self.functions {
            check("function", stretch.section, &mut stretch.records.iter().map(|r| r.offset))?;
        }
        for stretch in &self.lines {
            check("line", stretch.section, &mut stretch.records.iter().map(|r| r.offset))?;
        }
        for stretch in &self.relocations {
            check("CO-RE relocation", stretch.section, &mut stretch.records.iter().map(|r| r.offset))?;
        }
        Ok(sections)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::btf::samples::Builder;
    use crate::btf::tests::Noise;

    /// BTF with the texts that [`sample`] refers to, and their offsets: section, file, line, access.
    fn types(big_endian: bool) -> (Btf, [u32; 4]) {
        let mut b = Builder::new(big_endian);
        let int = b.int("int", 4, true);
        b.composite(4, "s", 4, false, &[("a", int, 0)]);
        let texts = [b.string(b"kprobe/f"), b.string(b"a.c"), b.string(b"return 0;"), b.string(b"0:0")];
        (Btf::parse(&b.finish()).unwrap(), texts)
    }

    /// One function, two lines, one relocation.
    fn words([section, file, text, access]: [u32; 4]) -> Vec<u32> {
        let tables = [
            vec![8, section, 1, 0, 2],
            vec![16, section, 2, 0, file, text, (7 << 10) | 3, 8, file, text, 8 << 10],
            vec![16, section, 1, 8, 2, access, 0],
        ];
        let mut words = vec![32];
        let mut offset = 0;
        for table in &tables {
            words.extend([offset, table.len() as u32 * 4]);
            offset += table.len() as u32 * 4;
        }
        words.into_iter().chain(tables.into_iter().flatten()).collect()
    }

    fn bytes(words: &[u32], big_endian: bool) -> Vec<u8> {
        let magic: [u8; 4] = if big_endian { [0xeb, 0x9f, 1, 0] } else { [0x9f, 0xeb, 1, 0] };
        let words = words.iter().flat_map(|word| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() });
        magic.into_iter().chain(words).collect()
    }

    #[test]
    fn reads_what_was_written_in_either_byte_order() {
        for big_endian in [false, true] {
            let (btf, texts) = types(big_endian);
            let data = bytes(&words(texts), big_endian);
            let ext = BtfExt::parse(&data, &btf).unwrap();
            assert_eq!(ext.functions[0].section, "kprobe/f");
            assert_eq!(ext.functions[0].records, [FuncInfo { offset: 0, func: TypeId(2) }]);
            let [_, file, text, _] = texts;
            let line = LineInfo { offset: 0, file, text, line: 7, column: 3 };
            assert_eq!(ext.lines[0].records, [line, LineInfo { offset: 8, line: 8, column: 0, ..line }]);
            let relocation = CoreRelocation { offset: 8, root: TypeId(2), access: "0:0", kind: 0 };
            assert_eq!(ext.relocations[0].records, [relocation]);
            assert!(BtfExt::parse(&bytes(&words(texts), !big_endian), &btf).unwrap_err().what.contains("magic"));
        }
    }

    #[test]
    fn a_flaw_is_named_with_its_place() {
        let (btf, texts) = types(false);
        let good = words(texts);
        // Words after the magic: 1 to 6 are the tables' offsets and lengths, 7 the first table, 12 the second, 23 the third.
        let flaws: &[(usize, u32, usize, &str)] = &[
            (0, 20, 4, "header length 20"),
            (0, 1 << 20, 4, "header length 1048576"),
            (2, 400, 32, "function table ends beyond"),
            (1, 2, 34, "does not begin at a multiple of 4"),
            (2, 3, 32, "too short"),
            (7, 4, 32, "function records of 4 bytes"),
            (7, 10, 32, "function records of 10 bytes"),
            (2, 4, 32, "no records"),
            (8, 9999, 36, "string offset 9999, past the end"),
            (8, 0, 36, "a section without name"),
            (9, 0, 40, "0 function records"),
            (9, 1_000_000_000, 40, "1000000000 function records"),
            (10, 4, 44, "byte 4 of section kprobe/f: no instruction"),
            (11, 77, 48, "refers to type [77], the last is [2]"),
            (16, 9999, 68, "refers to string offset 9999"),
            (27, 0, 112, "type void"),
            (28, 9999, 116, "an access string is at string offset 9999"),
        ];
        for (word, value, place, text) in flaws {
            let mut bad = good.clone();
            bad[*word] = *value;
            let error = BtfExt::parse(&bytes(&bad, false), &btf).unwrap_err();
            assert!(error.what.contains(text), "word {word}: {error}, not {text:?}");
            assert_eq!(error.offset, *place, "word {word}: {error}");
        }
    }

    #[test]
    fn damaged_and_truncated_data_is_refused_or_read() {
        let (btf, texts) = types(true);
        let good = bytes(&words(texts), true);
        for length in 0..good.len() {
            assert!(BtfExt::parse(&good[..length], &btf).is_err(), "{length}");
        }
        let mut noise = Noise(3);
        for _ in 0..20_000 {
            let _ = BtfExt::parse(&noise.damage(&good), &btf);
        }
    }
}

//! The ELF header and the section table.

use crate::sort;
use std::io::{Read, Seek, SeekFrom};

use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endian, Endianness, Pod, ReadCache, ReadRef};

use super::{EM_BPF, Refused};

/// The longest name of a section or symbol, in bytes. Many symbols may share the end of one name; a limit keeps a
/// hostile file from costing the square of its size.
const MAX_NAME: usize = 1024;

/// The most bytes that the names of a file's sections may take together. A kernel's take some thousand.
const MAX_NAMES: u64 = 1 << 20;

/// A section of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// `sh_type`: `SHT_PROGBITS` is 1, `SHT_SYMTAB` 2, `SHT_STRTAB` 3, `SHT_NOBITS` 8, `SHT_REL` 9.
    pub section_type: u32,
    /// `sh_flags`: `SHF_WRITE` is 1, `SHF_ALLOC` 2, `SHF_EXECINSTR` 4.
    pub flags: u64,
    /// `sh_link`: the symbols' strings, the relocations' symbols.
    pub link: u32,
    /// `sh_info`: the section that relocations apply to.
    pub info: u32,
    /// `sh_entsize`: bytes of an entry in a table.
    pub entry_size: u64,
}

impl Section<'_> {
    /// True if the section takes room in memory but has no bytes in the file, like `.bss`.
    pub fn is_nobits(&self) -> bool {
        self.section_type == elf::SHT_NOBITS.0
    }

    /// True if the section holds instructions.
    pub fn is_executable(&self) -> bool {
        self.section_type == elf::SHT_PROGBITS.0 && self.flags & elf::SHF_EXECINSTR.0 != 0
    }

    /// Bytes that relocations of the section may be at. Relocations of a compressed debug section are for its bytes before
    /// compression, whose number the section begins with (`Elf64_Chdr`).
    pub(super) fn relocated_size(&self, file: &[u8], endian: Endianness) -> u64 {
        let others = elf::SHF_ALLOC.0 | elf::SHF_EXECINSTR.0;
        let is_compressed = self.flags & (elf::SHF_COMPRESSED.0 | others) == elf::SHF_COMPRESSED.0;
        let size = self.bytes(file).get(8..).and_then(|rest| rest.first_chunk::<8>()).filter(|_| is_compressed);
        match size {
            Some(size) if endian.is_little_endian() => u64::from_le_bytes(*size),
            Some(size) => u64::from_be_bytes(*size),
            None => self.size,
        }
    }

    /// Whether libbpf may make a map of the section (.data, .rodata, .bss), by its name.
    pub fn holds_data(&self) -> bool {
        self.section_type == elf::SHT_PROGBITS.0 && self.size > 0 && !self.is_executable()
    }

    /// The section's bytes in the file that it was read from; none for [`Section::is_nobits`].
    pub fn bytes<'b>(&self, file: &'b [u8]) -> &'b [u8] {
        if self.is_nobits() {
            return &[];
        }
        // Checked when the section was read.
        let range = usize::try_from(self.offset).ok().zip(usize::try_from(self.offset.saturating_add(self.size)).ok());
        range.and_then(|(start, end)| file.get(start..end)).unwrap_or_default()
    }
}

/// A header that was checked to be one of 64-bit ELF.
pub(super) struct Header<'a> {
    raw: &'a FileHeader64<Endianness>,
    pub(super) endian: Endianness,
}

impl Header<'_> {
    pub(super) fn is_little_endian(&self) -> bool {
        self.endian.is_little_endian()
    }

    pub(super) fn check_is_bpf_object(&self) -> Result<(), Refused> {
        let machine = self.raw.e_machine(self.endian).0;
        if machine != EM_BPF {
            let name = machine_name(machine);
            return Err(Refused::at(18, format!("an ELF file for {name}, not for BPF (clang -target bpf)")));
        }
        let file_type = self.raw.e_type(self.endian);
        if file_type != elf::ET_REL {
            let what = match file_type {
                elf::ET_EXEC => "an executable".to_owned(),
                elf::ET_DYN => "a shared object".to_owned(),
                elf::ET_CORE => "a core dump".to_owned(),
                other => format!("of ELF type {}", other.0),
            };
            return Err(Refused::at(16, format!("{what}, not a relocatable object (clang -c)")));
        }
        // Program headers are for files that run on their own. Nothing here checks them, so a file that has some is
        // refused.
        if self.raw.e_phnum(self.endian) != 0 {
            return Err(Refused::at(56, "a BPF object has no program headers, this file does"));
        }
        Ok(())
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        0 => "no machine",
        3 => "x86",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "ppc64",
        22 => "s390",
        40 => "arm",
        62 => "x86-64",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("machine {other}"),
    }
    .to_owned()
}

/// What a file that is not ELF looks like.
fn looks_like(bytes: &[u8]) -> String {
    let known: &[(&[u8], &str)] = &[
        (b"#!", "a script"),
        (b"\x1f\x8b", "gzip data"),
        (b"\xfd7zXZ\0", "xz data"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (b"!<arch>\n", "an archive"),
        (b"BC\xc0\xde", "LLVM bitcode (compile without -flto and -emit-llvm)"),
        (b"\x9f\xeb", "BTF data"),
        (b"\xeb\x9f", "BTF data"),
        (b"MZ", "a Windows program"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\0asm", "WebAssembly"),
    ];
    if bytes.is_empty() {
        return "the file is empty".to_owned();
    }
    if let Some((_, name)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return format!("it looks like {name}");
    }
    let sample = bytes.get(..512).unwrap_or(bytes);
    if sample.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return "it looks like text".to_owned();
    }
    if sample.iter().all(|b| *b == 0) {
        return "it begins with zeros".to_owned();
    }
    let hex: Vec<String> = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("it begins with {}", hex.join(" "))
}

/// `count` entries of a table that lies within the file.
pub(super) fn table<'a, T: Pod>(bytes: &'a [u8], offset: u64, count: usize, what: &str) -> Result<&'a [T], Refused> {
    let start = usize::try_from(offset).ok();
    let tail = start.and_then(|start| bytes.get(start..)).unwrap_or_default();
    match object::pod::slice_from_bytes::<T>(tail, count) {
        Ok((entries, _)) => Ok(entries),
        Err(()) => {
            let size = count as u64 * size_of::<T>() as u64;
            let end = offset.saturating_add(size);
            if end <= bytes.len() as u64 {
                // Tables are read in place. Compilers align them in the file; a caller's buffer must not undo that.
                return Err(Refused::at(offset, format!("{what} does not begin at a multiple of 8")));
            }
            Err(Refused::at(offset, format!("truncated: {what} ends at byte {end}, the file at byte {}", bytes.len())))
        }
    }
}

/// The NUL-terminated name at `offset` of a string table.
pub(super) fn name_at(strings: &[u8], offset: u32) -> Result<&str, String> {
    let Some(rest) = strings.get(offset as usize..).filter(|rest| !rest.is_empty()) else {
        // Files without names at all have an empty table.
        if offset == 0 {
            return Ok("");
        }
        return Err(format!("its name is at byte {offset} of a string table of {} bytes", strings.len()));
    };
    let window = rest.get(..=MAX_NAME).unwrap_or(rest);
    let Some(end) = window.iter().position(|b| *b == 0) else {
        return Err(format!("its name, at byte {offset} of the string table, has no end within {MAX_NAME} bytes"));
    };
    std::str::from_utf8(&window[..end])
        .map_err(|_| format!("its name, at byte {offset} of the string table, is not UTF-8"))
}

/// Reads the header and the section table of any 64-bit ELF file.
pub(super) fn read(bytes: &[u8]) -> Result<(Header<'_>, Vec<Section<'_>>), Refused> {
    let magic = elf::ELFMAG.as_slice();
    if !bytes.starts_with(magic) {
        if !bytes.is_empty() && magic.starts_with(bytes) {
            return Err(Refused::new(format!("truncated: an ELF file of {} bytes", bytes.len())));
        }
        return Err(Refused::new(format!("not an ELF file: {}", looks_like(bytes))));
    }
    match bytes.get(4) {
        Some(2) => {}
        Some(1) => return Err(Refused::at(4, "a 32-bit ELF file, BPF objects have 64 bits")),
        Some(other) => return Err(Refused::at(4, format!("an ELF file of unknown class {other}"))),
        None => return Err(Refused::new("truncated: an ELF file of 4 bytes")),
    }
    let raw: &FileHeader64<Endianness> = match table(bytes, 0, 1, "the ELF header")?.first() {
        Some(raw) => raw,
        None => return Err(Refused::new("truncated: no ELF header")),
    };
    let unknown_order = || Refused::at(5, "an ELF file of unknown byte order");
    if !raw.is_little_endian() && !raw.is_big_endian() {
        return Err(unknown_order());
    }
    let endian = raw.endian().map_err(|_| unknown_order())?;
    if !raw.is_supported() {
        return Err(Refused::at(6, "an ELF file of an unknown version"));
    }
    let header = Header { raw, endian };
    let entry = usize::from(raw.e_shentsize(endian));
    let offset: u64 = raw.e_shoff(endian);
    if offset == 0 {
        return Err(Refused::at(60, "the ELF file has no sections"));
    }
    if entry != size_of::<elf::SectionHeader64<Endianness>>() {
        return Err(Refused::at(58, format!("section headers of {entry} bytes, ELF has 64")));
    }
    // A number beyond 65,279 is in the empty first section's header.
    let count = match usize::from(raw.e_shnum(endian)) {
        0 => {
            let first: &[elf::SectionHeader64<Endianness>] = table(bytes, offset, 1, "the first section header")?;
            let count = first.first().map_or(0, |first| first.sh_size(endian));
            let most = bytes.len() / size_of::<elf::SectionHeader64<Endianness>>();
            let fits = usize::try_from(count).ok().filter(|count| *count <= most);
            fits.ok_or_else(|| Refused::at(offset, format!("the file has no room for {count} section headers")))?
        }
        count => count,
    };
    if count == 0 {
        return Err(Refused::at(60, "the ELF file has no sections"));
    }
    let headers: &[elf::SectionHeader64<Endianness>] = table(bytes, offset, count, "the section header table")?;
    let sections = named(bytes, &header, headers, offset)?;
    Ok((header, sections))
}

fn named<'a>(
    bytes: &'a [u8],
    header: &Header<'_>,
    headers: &[elf::SectionHeader64<Endianness>],
    table_offset: u64,
) -> Result<Vec<Section<'a>>, Refused> {
    let endian = header.endian;
    let names_index = match header.raw.e_shstrndx(endian) {
        elf::SHN_XINDEX => headers.first().map_or(0, |first| first.sh_link(endian) as usize),
        index => index.0.into(),
    };
    let read = |raw: &elf::SectionHeader64<Endianness>| Section {
        name: "",
        offset: raw.sh_offset(endian),
        size: raw.sh_size(endian),
        section_type: raw.sh_type(endian).0,
        flags: raw.sh_flags(endian).0,
        link: raw.sh_link(endian),
        info: raw.sh_info(endian),
        entry_size: raw.sh_entsize(endian),
    };
    let end_of = |section: &Section<'_>| section.offset.saturating_add(section.size);
    let fits = |section: &Section<'_>| section.is_nobits() || end_of(section) <= bytes.len() as u64;
    let names = headers.get(names_index).map(read).filter(|s| names_index != 0 && s.section_type == elf::SHT_STRTAB.0);
    let Some(names) = names else {
        let what = format!("section {names_index}, said to hold the section names, is no string table");
        return Err(Refused::at(62, what));
    };
    let names = names.bytes(bytes);
    let mut sections = Vec::with_capacity(headers.len());
    for (index, raw) in headers.iter().enumerate() {
        let mut section = read(raw);
        // Where this section's own header is.
        let at = table_offset + index as u64 * 64;
        let name = name_at(names, raw.sh_name(endian));
        if !fits(&section) {
            let shown = match &name {
                Ok(name) if !name.is_empty() => format!("section {name}"),
                _ => format!("section {index}"),
            };
            let (start, end, len) = (section.offset, end_of(&section), bytes.len());
            let what = format!("truncated: {shown} spans bytes {start} to {end}, the file ends at byte {len}");
            return Err(Refused::at(at, what));
        }
        section.name = name.map_err(|what| Refused::at(at, format!("section {index}: {what}")))?;
        sections.push(section);
    }
    Ok(sections)
}

/// Refuses sections that share bytes. No compiler writes such, and reading what is in each would cost many times the file.
pub(super) fn check_apart(sections: &[Section<'_>]) -> Result<(), Refused> {
    // The first section is empty. Its size is the number of sections, if 16 bits do not hold it.
    let with_bytes =
        sections.iter().enumerate().skip(1).filter(|(_, section)| !section.is_nobits() && section.size > 0);
    // The sums are within the file: checked when the sections were read.
    let mut spans: Vec<_> = with_bytes.map(|(index, s)| (s.offset, s.offset.saturating_add(s.size), index)).collect();
    sort::ascending(&mut spans);
    for pair in spans.windows(2) {
        if let [(_, end, first), (begin, _, second)] = pair
            && begin < end
        {
            let name = |index: &usize| sections.get(*index).map_or("", |section| section.name);
            let what = format!("sections {first} ({}) and {second} ({}) overlap", name(first), name(second));
            return Err(Refused::at(*begin, what));
        }
    }
    Ok(())
}

/// The bytes of the section called `name`, of a 64-bit ELF file for any machine; `None` if it has no such section.
///
/// # Errors
/// The file is not ELF, or damaged.
pub fn section<'a>(bytes: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, Refused> {
    let (_, sections) = read(bytes)?;
    Ok(sections.iter().find(|s| s.name == name).map(|s| s.bytes(bytes)))
}

/// Like [`section_of`], for files of 32 and 64 bits. Reads only the headers and that section, since a kernel with debug
/// information is large.
///
/// # Errors
/// The file is not ELF, damaged, or cannot be read; or the section has more than `most` bytes.
pub fn section_of_file(file: impl Read + Seek, name: &str, most: u64) -> Result<Option<Vec<u8>>, Refused> {
    let cache = ReadCache::new(file);
    let class = (&cache).read_bytes_at(4, 1).ok().and_then(|bytes| bytes.first().copied());
    let place = match class {
        Some(1) => find::<FileHeader32<Endianness>, _>(&cache, name, most),
        _ => find::<FileHeader64<Endianness>, _>(&cache, name, most),
    };
    let Some((start, size)) = place? else { return Ok(None) };
    let (mut file, mut bytes) = (cache.into_inner(), Vec::new());
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(size).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 == size => Ok(Some(bytes)),
        Ok(_) => Err(Refused::new(format!("truncated: section {name} ends beyond the file"))),
        Err(error) => Err(Refused::new(format!("section {name}: {error}"))),
    }
}

/// Where the section called `name` begins, and its size.
fn find<H: FileHeader<Endian = Endianness>, R: Read + Seek>(
    cache: &ReadCache<R>,
    name: &str,
    most: u64,
) -> Result<Option<(u64, u64)>, Refused> {
    let read = |error: object::Error| Refused::new(error.to_string());
    let header = H::parse(cache).map_err(read)?;
    let endian = header.endian().map_err(read)?;
    let sections = header.section_headers(endian, cache).map_err(read)?;
    if sections.is_empty() {
        return Err(Refused::new("the ELF file has no sections"));
    }
    let names = sections.get(header.shstrndx(endian, cache).map_err(read)? as usize);
    let names = names.ok_or_else(|| Refused::new("the ELF file has no section names"))?;
    if names.sh_size(endian).into() > MAX_NAMES {
        return Err(Refused::new(format!("its section names take more than {} MiB", MAX_NAMES >> 20)));
    }
    let names = names.data(endian, cache).map_err(read)?;
    let is_called = |section: &&H::SectionHeader| {
        let rest = names.get(section.sh_name(endian) as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    };
    let Some(section) = sections.iter().find(is_called) else { return Ok(None) };
    if section.sh_type(endian) == elf::SHT_NOBITS {
        return Ok(Some((0, 0)));
    }
    let (start, size) = (section.sh_offset(endian).into(), section.sh_size(endian).into());
    if size > most {
        return Err(Refused::new(format!("section {name} has {size} bytes, more than {} MiB", most >> 20)));
    }
    Ok(Some((start, size)))
}

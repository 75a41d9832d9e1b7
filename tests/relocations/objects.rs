//! Making objects: compiled, altered, or built by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use xctl::object::ObjectFile;
use xctl::object::relo::RelocationKind;

use crate::{Scratch, tell};

pub fn objects() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/objects")
}

pub fn clang() -> String {
    env::var("CLANG").unwrap_or_else(|_| "clang".to_owned())
}

pub fn have_clang() -> bool {
    let have =
        Command::new(clang()).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !have {
        println!("skipped: no clang");
    }
    have
}

/// Compiles one half of a file of the corpus.
pub fn compile(source: &Path, big_endian: bool, target: bool, into: &Path) -> Vec<u8> {
    let mut command = Command::new(clang());
    command.arg(if big_endian { "--target=bpfeb" } else { "--target=bpfel" }).args(["-g", "-O2", "-c"]);
    command.args(target.then_some("-DTARGET"));
    let status = command.arg(source).arg("-o").arg(into).status().unwrap();
    assert!(status.success(), "{}", source.display());
    fs::read(into).unwrap()
}

pub fn sources() -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = fs::read_dir(objects()).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    sources.sort();
    assert!(sources.len() >= 10, "{sources:?}");
    sources
}

/// Changes what the relocations of an object ask.
pub fn ask_instead(bytes: &mut [u8], from: RelocationKind, to: RelocationKind) {
    let object = ObjectFile::parse(bytes).unwrap();
    let big_endian = !object.is_little_endian;
    let section = object.sections.iter().find(|section| section.name == ".BTF.ext").unwrap().offset as usize;
    let word = |at: usize| {
        let four = bytes[at..at + 4].try_into().unwrap();
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    // The tables' layout is that of loader/object/src/btf_ext.rs.
    let (mut at, len) =
        ((section as u32 + word(section + 4) + word(section + 24)) as usize, word(section + 28) as usize);
    let (end, size) = (at + len, word(at) as usize);
    at += 4;
    let mut places = Vec::new();
    while at < end {
        let count = word(at + 4) as usize;
        at += 8;
        places.extend((0..count).map(|number| at + number * size + 12));
        at += count * size;
    }
    let number = |kind: RelocationKind| RelocationKind::ALL.iter().position(|other| *other == kind).unwrap() as u32;
    let places: Vec<usize> = places.into_iter().filter(|place| word(*place) == number(from)).collect();
    assert!(!places.is_empty());
    for place in places {
        let bytes_of = if big_endian { u32::to_be_bytes } else { u32::to_le_bytes };
        bytes[place..place + 4].copy_from_slice(&bytes_of(number(to)));
    }
}

/// An object as llvm-objcopy changes it; none if there is no such tool, or it does not know how.
pub fn objcopy(object: &Path, change: &str, scratch: &Scratch) -> Option<PathBuf> {
    let tool = env::var("LLVM_OBJCOPY").unwrap_or_else(|_| "llvm-objcopy".to_owned());
    let changed = scratch.0.join("changed.o");
    let done = Command::new(tool).args(change.split(' ')).args([object, &changed]).stderr(Stdio::null()).status();
    let is_done = done.is_ok_and(|status| status.success());
    if !is_done {
        tell(&format!("not compared with libbpf: no llvm-objcopy that does {change}"));
    }
    is_done.then_some(changed)
}

/// Compiles a file for what is around relocations, with one macro defined.
pub fn compile_with(option: &str, source: &str, scratch: &Scratch) -> PathBuf {
    let out = scratch.0.join(format!("{option}.o"));
    let mut compiler = Command::new(clang());
    compiler.args(["--target=bpf", "-g", "-O2", "-c", "-w"]).arg(format!("-D{option}")).arg("-o").arg(&out);
    if option == "without_types" {
        compiler.arg("-g0");
    }
    assert!(compiler.arg(objects().join("outside").join(source)).status().unwrap().success(), "{option}");
    out
}

/// A section: name, type, flags, link, entry size, bytes.
pub type Section<'a> = (&'a str, u32, u64, u32, u64, &'a [u8]);

/// An ELF file for BPF with these sections.
pub fn elf(sections: &[Section<'_>]) -> Vec<u8> {
    let mut names = b"\0".to_vec();
    let mut headers = vec![0u8; 64];
    let mut out = vec![0u8; 64];
    let header = |names: &mut Vec<u8>, out: &[u8], (name, kind, flags, link, entry, bytes): Section<'_>| {
        let mut header = Vec::new();
        header.extend_from_slice(&(names.len() as u32).to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        header.extend_from_slice(&kind.to_le_bytes());
        for word in [flags, 0, out.len() as u64, bytes.len() as u64] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header.extend_from_slice(&link.to_le_bytes());
        header.extend_from_slice(&u32::from(kind == 2).to_le_bytes());
        for word in [8, entry] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header
    };
    for section in sections {
        headers.extend(header(&mut names, &out, *section));
        out.extend_from_slice(section.5);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    let last = header(&mut names, &out, (".shstrtab", 3, 0, 0, 0, &[]));
    let start = out.len() as u64;
    headers.extend(last);
    let at = headers.len() - 64 + 32;
    headers[at..at + 8].copy_from_slice(&(names.len() as u64).to_le_bytes());
    headers[at - 8..at].copy_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&names);
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    let count = sections.len() as u32 + 2;
    // Numbers from SHN_LORESERVE on are in the first section's header: its size and its link.
    let is_large = count >= 0xff00;
    if is_large {
        headers[32..40].copy_from_slice(&u64::from(count).to_le_bytes());
        headers[40..44].copy_from_slice(&(count - 1).to_le_bytes());
    }
    let (count, names) = if is_large { (0, 0xffff) } else { (count as u16, count as u16 - 1) };
    out.extend_from_slice(&headers);
    out[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    out[16..20].copy_from_slice(&[1, 0, 247, 0]);
    out[20..24].copy_from_slice(&1u32.to_le_bytes());
    out[40..48].copy_from_slice(&table.to_le_bytes());
    out[52..54].copy_from_slice(&64u16.to_le_bytes());
    out[58..60].copy_from_slice(&64u16.to_le_bytes());
    out[60..62].copy_from_slice(&count.to_le_bytes());
    out[62..64].copy_from_slice(&names.to_le_bytes());
    out
}

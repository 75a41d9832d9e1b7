//! The content of an object, collected for a reader: programs, maps, variables. Names as the object has them.

mod functions;
mod maps;
mod variables;

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use self::functions::Functions;
use super::btf::{Btf, Kind};
use super::elf::{ObjectFile, Program};
use super::hook::hook;
use super::relo::{Relocations, essential_name};
use super::struct_ops::{self, StructOps};
use super::uses::Places;

/// Bytes of a variable's initial value that are shown.
const MOST_VALUE: usize = 64;

/// Functions that a program may have, itself included (`BPF_MAX_SUBPROGS` in the kernel's include/linux/bpf_verifier.h).
pub const MOST_FUNCTIONS: usize = 256;

/// A section of the file.
#[derive(Clone, Debug, Serialize)]
pub struct SectionFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type's name.
    #[serde(rename = "type")]
    pub section_type: String,
    /// `A`llocated, `W`ritable, e`X`ecutable.
    pub flags: String,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A program, or a function that programs call.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// The section that it is in.
    pub section: &'a str,
    /// Its name with its section, if other functions have the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The kind of hook that a program asks for, such as `kprobe`; null for functions in `.text`.
    pub hook: Option<&'a str>,
    /// The place of the hook, such as a kernel function.
    pub target: Option<&'a str>,
    /// Whether the target kernel's BTF has the target of the hook; null if BTF does not tell, or there is none.
    pub target_in_btf: Option<bool>,
    /// Its type, as bpftool names it.
    pub program_type: Option<&'static str>,
    /// May sleep.
    pub sleepable: bool,
    /// Whether libbpf loads the program by default. A struct_ops program is loaded if a map that names it is created.
    pub autoload: bool,
    /// A struct_ops map names it.
    #[serde(skip)]
    pub named_by_map: bool,
    /// Instructions of its own.
    pub insns: usize,
    /// Of a program, instructions with all functions that it calls, which libbpf appends: what the verifier sees. Of a
    /// function in `.text`, its own.
    pub insns_total: usize,
    /// Helpers that the function calls. For a program, also the helpers that its called functions call.
    pub helpers: Vec<String>,
    /// Kernel functions, likewise.
    pub kfuncs: Vec<&'a str>,
    /// Functions of this object, likewise; with the section if other functions have the same name.
    pub calls: Vec<Cow<'a, str>>,
    /// Maps, likewise.
    pub maps: Vec<&'a str>,
    /// Global variables, likewise.
    pub variables: Vec<&'a str>,
    /// Variables of the kernel or its configuration, likewise.
    pub externs: Vec<&'a str>,
    /// Whether the object and the BTF determine all instructions that the kernel gets. False: some depend on the
    /// loader.
    pub provable: bool,
}

/// A map.
#[derive(Clone, Debug, Serialize)]
pub struct MapFacts {
    /// Its name.
    pub name: String,
    /// Its type's name: `hash`, `array`, ...
    #[serde(rename = "type")]
    pub map_type: Cow<'static, str>,
    /// Its type's number; none if its definition is not known.
    #[serde(skip)]
    pub type_number: Option<u32>,
    /// Bytes of a key.
    pub key_size: Option<u32>,
    /// The key's C type.
    pub key: Option<Arc<str>>,
    /// Bytes of a value.
    pub value_size: Option<u32>,
    /// The value's C type.
    pub value: Option<Arc<str>>,
    /// The number of entries; null if the loader of the object or libbpf sets it.
    pub max_entries: Option<u32>,
    /// `BPF_F_*`, as a number.
    pub flags: u32,
    /// The names of the flags.
    pub flag_names: Vec<&'static str>,
    /// Pinned by name in the BPF file system.
    pub pinned: bool,
    /// Its meaning depends on the type.
    pub extra: Option<u64>,
    /// The inner map of a map of maps.
    pub inner: Option<Box<MapFacts>>,
    /// Made by libbpf for a section of variables.
    pub implicit: bool,
    /// False if it is only made where its loader says so.
    pub autocreate: bool,
    /// Of a struct_ops map: the members that have a program.
    pub callbacks: Vec<Callback>,
}

/// A member of a struct_ops map, and its program.
#[derive(Clone, Debug, Serialize)]
pub struct Callback {
    /// The member's name.
    pub member: String,
    /// The program's.
    pub program: String,
}

/// A global variable.
#[derive(Clone, Debug, Serialize)]
pub struct VariableFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// `.data`, `.rodata`, `.bss`, ...
    pub section: &'a str,
    /// Bytes from the beginning of the section.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Its C type, if the BTF has it.
    #[serde(rename = "type")]
    pub ty: Option<Arc<str>>,
    /// Its initial value: bytes in hexadecimal. Null if it is longer than 64 bytes.
    #[serde(serialize_with = "as_hex")]
    pub value: Option<&'a [u8]>,
}

/// A variable or function that the object expects from outside.
#[derive(Clone, Debug, Serialize)]
pub struct ExternFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// May be missing.
    pub weak: bool,
    /// `function` or `variable` of the kernel, `symbol` (its address alone), `configuration`; null if the object's BTF does
    /// not say.
    pub kind: Option<&'static str>,
    /// Whether the target kernel's BTF has that function or variable; null if BTF does not tell, or there is none.
    pub in_btf: Option<bool>,
}

impl<'a> ExternFacts<'a> {
    /// The kind and the name that the kernel's BTF must have. A flavour (`___suffix`) does not count.
    fn wanted(&self) -> Option<(Kind, &'a str)> {
        let kind = match self.kind? {
            "function" => Kind::Func,
            "variable" => Kind::Var,
            _ => return None,
        };
        Some((kind, essential_name(self.name)))
    }
}

/// The content of an object.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts<'a> {
    /// `little` or `big`; null if the file could not be read.
    pub endian: Option<&'static str>,
    /// The license, as the kernel will see it.
    pub license: Option<String>,
    /// Sections, without the empty first one.
    pub sections: Vec<SectionFacts<'a>>,
    /// How many symbols.
    pub symbols: usize,
    /// How many relocations of the ELF file (CO-RE relocations are not among them).
    pub elf_relocations: usize,
    /// Types in the object's BTF.
    pub types: usize,
    /// Programs.
    pub programs: Vec<FunctionFacts<'a>>,
    /// Functions in `.text`.
    pub functions: Vec<FunctionFacts<'a>>,
    /// Maps.
    pub maps: Vec<MapFacts>,
    /// The struct_ops maps, with the facts that judging them takes.
    #[serde(skip)]
    pub struct_ops: Vec<StructOps<'a>>,
    /// Global variables.
    pub variables: Vec<VariableFacts<'a>>,
    /// The symbols that it expects from outside.
    pub externs: Vec<ExternFacts<'a>>,
    /// Why libbpf would not take a map, or the kernel a program.
    #[serde(skip)]
    pub refused: Vec<String>,
    /// Why the callbacks of struct_ops maps are left out.
    #[serde(skip)]
    pub unread: Option<String>,
    /// Why functions are left out: no steps are left to list what they call and touch.
    #[serde(skip)]
    pub too_much: Option<String>,
}

impl<'a> Facts<'a> {
    /// Looks in the target kernel's BTF for the targets of the hooks, and for the functions and variables that the
    /// object expects from outside.
    pub fn look_up_targets(&mut self, kernel: &Btf) {
        let wanted: Vec<_> = self.programs.iter().map(|program| hook(program.section).in_btf()).collect();
        let names = wanted.iter().flatten().map(|(kind, name)| (*kind, name.as_str()));
        let names = names.chain(self.externs.iter().filter_map(ExternFacts::wanted)).collect();
        let known = kernel.first(&names);
        let in_btf: Vec<_> = self.externs.iter().map(|one| Some(known.contains_key(&one.wanted()?))).collect();
        for (one, in_btf) in self.externs.iter_mut().zip(in_btf) {
            one.in_btf = in_btf;
        }
        for (program, wanted) in self.programs.iter_mut().zip(&wanted) {
            program.target_in_btf = wanted.as_ref().map(|(kind, name)| known.contains_key(&(*kind, name.as_str())));
        }
    }

    /// Whether a program is loaded unless its loader says otherwise. Functions in `.text` are
    /// loaded with the programs that call them.
    #[must_use]
    pub fn loads(&self, object: &ObjectFile<'_>, program: &Program<'_>) -> bool {
        let index = object.program_at(program.section_index, program.offset);
        index.and_then(|index| self.programs.get(index)).is_none_or(|program| program.autoload)
    }

    /// Collects them. `code` is the object's, before its relocations ran.
    ///
    /// # Errors The reason: libbpf would refuse a map, the kernel would refuse a program, or functions overlap.
    pub fn of(
        bytes: &'a [u8],
        object: &ObjectFile<'a>,
        btf: Option<&Btf>,
        code: &Relocations<'_, 'a>,
    ) -> Result<Self, String> {
        let facts = Self::read(bytes, object, btf, code);
        let mut wrong = facts.too_much.iter().chain(&facts.unread).chain(&facts.refused);
        wrong.next().cloned().map_or(Ok(facts), Err)
    }

    /// Like [`Facts::of`], but if something is wrong, returns the parts that could be read. The facts then say what is
    /// wrong.
    pub fn read(bytes: &'a [u8], object: &ObjectFile<'a>, btf: Option<&Btf>, code: &Relocations<'_, 'a>) -> Self {
        let places = Places::new(object);
        let mut refused = Vec::new();
        let struct_ops = btf.map(|btf| struct_ops::all(bytes, object, btf, code.steps())).transpose();
        let unread = struct_ops.as_ref().err().filter(|_| !code.steps().is_spent()).cloned();
        let struct_ops = struct_ops.ok().flatten().unwrap_or_default();
        let (mut programs, mut functions) = (Vec::new(), Vec::new());
        let listed = Functions::of(bytes, object, &places, code).and_then(|mut all| {
            all.facts(0, &object.programs, &mut programs, &mut refused)?;
            all.facts(object.programs.len(), &object.subprograms, &mut functions, &mut refused)
        });
        let too_much = listed.err();
        for (program, needed) in programs.iter_mut().zip(struct_ops::needed(&struct_ops, object.programs.len())) {
            program.autoload = needed.unwrap_or(program.autoload);
            program.named_by_map = needed.is_some();
        }
        let maps = maps::all(object, btf, &places, &struct_ops, &mut refused);
        refused.extend(maps::check_arena(object, &maps).err());
        Facts {
            endian: Some(if object.is_little_endian { "little" } else { "big" }),
            license: object.license.clone(),
            sections: object.sections.iter().skip(1).map(section).collect(),
            symbols: object.symbols.len(),
            elf_relocations: object.relocations.len(),
            types: btf.map_or(0, Btf::len),
            programs,
            functions,
            maps,
            struct_ops,
            variables: variables::all(bytes, btf, &places),
            externs: variables::externs(object, btf),
            refused,
            unread,
            too_much,
        }
    }
}

fn section<'a>(section: &super::elf::Section<'a>) -> SectionFacts<'a> {
    let section_type = match section.section_type {
        1 => "PROGBITS".to_owned(),
        2 => "SYMTAB".to_owned(),
        3 => "STRTAB".to_owned(),
        4 => "RELA".to_owned(),
        8 => "NOBITS".to_owned(),
        9 => "REL".to_owned(),
        other => format!("{other:#x}"),
    };
    let flag = |bit: u64, letter: char| (section.flags & bit != 0).then_some(letter);
    let flags = [flag(2, 'A'), flag(1, 'W'), flag(4, 'X')].into_iter().flatten().collect();
    SectionFacts { name: section.name, section_type, flags, offset: section.offset, size: section.size }
}

fn as_hex<S: serde::Serializer>(value: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(hex).serialize(serializer)
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| hex_digits(*byte)).map(char::from).collect()
}

/// The two digits of a byte.
fn hex_digits(byte: u8) -> [u8; 2] {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
    [digit(byte >> 4), digit(byte & 15)]
}

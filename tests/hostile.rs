//! Object files that try to exhaust their reader: up to a megabyte each, in which one thing is repeated many times. The
//! program `hostile FOLDER` writes them to the folder, for tests/bench/inspect. tests/seeds.rs uses this file directly.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::{env, fs};

/// The size limit of a file, in bytes: less than a megabyte, so that the parts around the repeated one fit too.
const SIZE: usize = 980_000;

const CALL: [u8; 8] = [0x85, 0x10, 0, 0, 0, 0, 0, 0];
const LOAD_ZERO: [u8; 8] = [0xb7, 1, 0, 0, 0, 0, 0, 0];
const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

const LOCAL_FUNC: u8 = 2;
const GLOBAL_FUNC: u8 = 0x12;
const GLOBAL_OBJECT: u8 = 0x11;

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A section of the file.
#[derive(Clone, Default)]
struct Section {
    name: String,
    /// Type, flags, link, info, entry size.
    head: (u32, u64, u32, u32, u64),
    bytes: Vec<u8>,
}

/// An ELF file under construction. Section 1 is `.text`, and section 2 is `socket`, the program's.
struct Object {
    sections: Vec<Section>,
    symbols: Vec<u8>,
    strings: Vec<u8>,
}

impl Object {
    /// An object with a program that does nothing.
    fn new() -> Self {
        let mut object = Object { sections: vec![Section::default()], symbols: vec![0; 24], strings: vec![0] };
        object.section(".text", (1, 6, 0, 0, 0), Vec::new());
        object.section("socket", (1, 6, 0, 0, 0), [LOAD_ZERO, EXIT].concat());
        object.section("license", (1, 3, 0, 0, 0), b"GPL\0".to_vec());
        object
    }

    fn section(&mut self, name: &str, head: (u32, u64, u32, u32, u64), bytes: Vec<u8>) -> u16 {
        self.sections.push(Section { name: name.to_owned(), head, bytes });
        (self.sections.len() - 1) as u16
    }

    fn string(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    fn symbol(&mut self, name: u32, info: u8, section: u16, value: u64, size: u64) {
        self.symbols.extend(name.to_le_bytes());
        self.symbols.extend([info, 0]);
        self.symbols.extend(section.to_le_bytes());
        self.symbols.extend([value, size].map(u64::to_le_bytes).concat());
    }

    /// The approximate size of the file so far, in bytes.
    fn len(&self) -> usize {
        let sections = self.sections.iter().map(|section| section.bytes.len() + section.name.len() + 73).sum::<usize>();
        sections + self.symbols.len() + self.strings.len() + 256
    }

    fn program(&mut self) {
        let name = self.string("program");
        let size = self.sections[2].bytes.len() as u64;
        self.symbol(name, GLOBAL_FUNC, 2, 0, size);
    }

    fn finish(mut self) -> Vec<u8> {
        let last = self.sections.len() as u32;
        let symbols = std::mem::take(&mut self.symbols);
        let strings = std::mem::take(&mut self.strings);
        for section in self.sections.iter_mut().filter(|section| section.head.0 == 9) {
            section.head.2 = last;
        }
        self.section(".symtab", (2, 0, last + 1, 1, 24), symbols);
        self.section(".strtab", (3, 0, 0, 0, 0), strings);
        let mut names = vec![0];
        let mut name_at = Vec::new();
        self.section(".shstrtab", (3, 0, 0, 0, 0), Vec::new());
        for section in &self.sections {
            name_at.push(names.len() as u32);
            names.extend(section.name.bytes().chain([0]));
        }
        self.sections.last_mut().unwrap().bytes = names;
        let mut out = vec![0; 64];
        let mut table = Vec::new();
        for (section, name) in self.sections.iter().zip(name_at) {
            let (kind, flags, link, info, entry) = section.head;
            table.extend(words([if section.name.is_empty() { 0 } else { name }, kind]));
            table.extend([flags, 0, out.len() as u64, section.bytes.len() as u64].map(u64::to_le_bytes).concat());
            table.extend(words([link, info]));
            table.extend([1, entry].map(u64::to_le_bytes).concat());
            out.extend(&section.bytes);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        let at = out.len() as u64;
        out.extend(table);
        out[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0");
        out[20] = 1;
        out[40..48].copy_from_slice(&at.to_le_bytes());
        out[52] = 64;
        out[58] = 64;
        out[60..62].copy_from_slice(&(self.sections.len() as u16).to_le_bytes());
        out[62..64].copy_from_slice(&(self.sections.len() as u16 - 1).to_le_bytes());
        out
    }
}

/// BTF under construction. Type 1 is `int`.
struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Types {
    fn new() -> Self {
        let mut types = Types { types: Vec::new(), strings: vec![0], count: 0 };
        let int = types.string("int");
        types.add(int, 1, 0, 4, [(1 << 24) | 32]);
        types
    }

    fn string(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: u32, kind: u32, entries: u32, arg: u32, tail: impl IntoIterator<Item = u32>) -> u32 {
        self.types.extend(words([name, kind << 24 | entries, arg].into_iter().chain(tail)));
        self.count += 1;
        self.count
    }

    fn finish(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        [b"\x9f\xeb\x01\0".to_vec(), words([24, 0, types, types, strings]), self.types.clone(), self.strings.clone()]
            .concat()
    }
}

/// `.BTF.ext` with lines and relocations. Each stretch has the section's name and the words of its records.
fn ext(lines: &[(u32, Vec<[u32; 4]>)], relocations: &[(u32, Vec<[u32; 4]>)]) -> Vec<u8> {
    let table = |stretches: &[(u32, Vec<[u32; 4]>)]| {
        let mut table = Vec::new();
        for (name, records) in stretches {
            table.extend([*name, records.len() as u32].into_iter().chain(records.iter().flatten().copied()));
        }
        if table.is_empty() { Vec::new() } else { words([16].into_iter().chain(table)) }
    };
    let (lines, relocations) = (table(lines), table(relocations));
    let (one, two) = (lines.len() as u32, relocations.len() as u32);
    [b"\x9f\xeb\x01\0".to_vec(), words([32, 0, 0, 0, one, one, two]), lines, relocations].concat()
}

/// An object of one program with enough instructions that each relocation has its own.
fn relocated(types: &Types, section: u32, relocations: Vec<[u32; 4]>, lines: Vec<[u32; 4]>) -> Vec<u8> {
    let code = LOAD_ZERO.repeat(relocations.len());
    with_code(code, types, section, relocations, lines)
}

/// Like [`relocated`], with the given code.
fn with_code(code: Vec<u8>, types: &Types, section: u32, relocations: Vec<[u32; 4]>, lines: Vec<[u32; 4]>) -> Vec<u8> {
    let mut object = Object::new();
    object.sections[2].bytes = [code, EXIT.to_vec()].concat();
    object.program();
    object.section(".BTF", (1, 0, 0, 0, 0), types.finish());
    let lines = if lines.is_empty() { Vec::new() } else { vec![(section, lines)] };
    object.section(".BTF.ext", (1, 0, 0, 0, 0), ext(&lines, &[(section, relocations)]));
    object.finish()
}

/// Many section headers for one string table.
fn overlapping_sections() -> Vec<u8> {
    let mut object = Object::new();
    object.program();
    let table = [8u64.to_le_bytes(), (1u64 << 32 | 10).to_le_bytes()].concat().repeat(30_000);
    object.section(".rel", (9, 0, 0, 2, 16), table);
    for _ in 0..7000 {
        object.section(".rel", (9, 0, 0, 2, 16), Vec::new());
    }
    let mut bytes = object.finish();
    let at = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    for section in 5..7005 {
        // The fields of its offset and its size.
        let from = at + 4 * 64 + 24;
        bytes.copy_within(from..from + 16, at + section * 64 + 24);
    }
    bytes
}

/// A string table of empty strings.
fn empty_strings() -> Vec<u8> {
    let mut object = Object::new();
    object.program();
    object.strings.resize(SIZE - object.len(), 0);
    object.finish()
}

/// Programs of one instruction each.
fn programs() -> Vec<u8> {
    let mut object = Object::new();
    object.sections[2].bytes.clear();
    let name = object.string("p");
    let mut count = 0;
    while object.len() < SIZE {
        object.sections[2].bytes.extend(EXIT);
        object.symbol(name, GLOBAL_FUNC, 2, count * 8, 8);
        count += 1;
    }
    object.finish()
}

/// Programs that call the same 200 functions.
fn closures() -> Vec<u8> {
    let mut object = Object::new();
    object.sections[2].bytes.clear();
    let mut relocations = Vec::new();
    for number in 0..200u64 {
        let name = object.string(&format!("function_number_{number}"));
        object.sections[1].bytes.extend([CALL, EXIT].concat());
        object.symbol(name, LOCAL_FUNC, 1, number * 16, 16);
    }
    // The last function calls no other.
    let end = object.sections[1].bytes.len() - 16;
    object.sections[1].bytes[end..end + 8].copy_from_slice(&LOAD_ZERO);
    // Each call skips the exit after it.
    for at in (0..end).step_by(16) {
        object.sections[1].bytes[at + 4] = 1;
    }
    let name = object.string("p");
    let mut count = 0;
    while object.len() + relocations.len() < SIZE {
        object.sections[2].bytes.extend([0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        object.sections[2].bytes.extend(EXIT);
        object.symbol(name, GLOBAL_FUNC, 2, count * 16, 16);
        relocations.extend([(count * 16).to_le_bytes(), (1u64 << 32 | 10).to_le_bytes()].concat());
        count += 1;
    }
    object.section(".relsocket", (9, 0, 0, 2, 16), relocations);
    object.finish()
}

/// Variables of one name, with a type that takes long to write.
fn variables() -> Vec<u8> {
    let mut object = Object::new();
    object.program();
    let mut types = Types::new();
    let long = types.string(&"t".repeat(1000));
    let name = types.string("v");
    let ty = types.add(long, 4, 0, 64, []);
    types.add(name, 14, 0, ty, [1]);
    object.section(".BTF", (1, 0, 0, 0, 0), types.finish());
    let data = object.section(".data", (1, 3, 0, 0, 0), vec![0xff; 64]);
    let name = object.string("v");
    while object.len() < SIZE {
        object.symbol(name, GLOBAL_OBJECT, data, 0, 64);
    }
    object.finish()
}

/// Entries of a section's types that name one variable, which has a long name and no symbol.
fn without_symbol() -> Vec<u8> {
    const COUNT: u32 = 60_000;
    let mut object = Object::new();
    object.program();
    let mut types = Types::new();
    let (int, name) = (types.string("int"), types.string(&"v".repeat(1000)));
    let int = types.add(int, 1, 0, 4, [0x0100_0020]);
    let var = types.add(name, 14, 0, int, [1]);
    let section = types.string(".data");
    types.add(section, 15, COUNT, 4, (0..COUNT).flat_map(|_| [var, 0, 4]));
    object.section(".BTF", (1, 0, 0, 0, 0), types.finish());
    object.section(".data", (1, 3, 0, 0, 0), vec![0xff; 4]);
    object.finish()
}

/// Instructions that load the values of relocations.
fn loads(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(|value| [[0xb7, 1, 0, 0], value.to_le_bytes()].concat()).collect()
}

/// Accesses to an existing member. No two have the same type and kind.
fn accesses() -> Vec<u8> {
    // libbpf's byte_off, byte_sz, field_exists, signed, lshift_u64 and rshift_u64, and their values for an int.
    const KINDS: [(u32, u32); 6] = [(0, 0), (1, 4), (2, 1), (3, 1), (4, 32), (5, 32)];
    let mut types = Types::new();
    let (section, access, member) = (types.string("socket"), types.string("0:0"), types.string("exit_code"));
    let (mut relocations, mut values) = (Vec::new(), Vec::new());
    while types.types.len() + types.strings.len() + relocations.len() * 24 < SIZE {
        let name = types.string(&format!("task_struct___{}", types.count));
        let ty = types.add(name, 4, 1, 4, [member, 1, 0]);
        for (kind, value) in KINDS {
            relocations.push([relocations.len() as u32 * 8, ty, access, kind]);
            values.push(value);
        }
    }
    with_code(loads(values), &types, section, relocations, Vec::new())
}

/// Like [`repeated`], with long names of the access and of the program. JSON has to escape the program's name.
fn repeated_names() -> Vec<u8> {
    let mut types = Types::new();
    let zeros = format!("0:{}", "0".repeat(1000));
    let (section, access, member) = (types.string("socket"), types.string(&zeros), types.string("pid"));
    let name = types.string("task_struct");
    let ty = types.add(name, 4, 1, 4, [member, 1, 0]);
    let mut object = Object::new();
    object.sections[2].bytes = [loads([1]), EXIT.to_vec()].concat();
    let name = object.string(&"\"".repeat(1000));
    object.symbol(name, GLOBAL_FUNC, 2, 0, 16);
    object.section(".BTF", (1, 0, 0, 0, 0), types.finish());
    let relocations = vec![[0, ty, access, 2]; (SIZE - object.len()) / 16];
    object.section(".BTF.ext", (1, 0, 0, 0, 0), ext(&[], &[(section, relocations)]));
    object.finish()
}

/// Parameters with one long name that is not ASCII.
fn long_parameters() -> Vec<u8> {
    let mut types = Types::new();
    let section = types.string("socket");
    let name = types.string(&"\u{e9}".repeat(500));
    let count = SIZE as u32 / 8 - 1000;
    types.add(0, 13, count, 0, (0..count).flat_map(|_| [name, 1]));
    relocated(&types, section, Vec::new(), Vec::new())
}

/// Functions that share the same instructions, which are calls.
fn overlapping_functions() -> Vec<u8> {
    let mut object = Object::new();
    object.program();
    object.sections[1].bytes = [CALL.repeat(17), EXIT.to_vec()].concat();
    let name = object.string("f");
    for _ in 0..13_000 {
        object.symbol(name, LOCAL_FUNC, 1, 0, 18 * 8);
    }
    let rest = SIZE - object.len();
    object.section("rest", (1, 0, 0, 0, 0), vec![0; rest]);
    object.finish()
}

/// Accesses to types that no kernel has.
fn misses() -> Vec<u8> {
    let mut types = Types::new();
    let (section, access, member) = (types.string("socket"), types.string("0:0"), types.string("x"));
    let mut relocations = Vec::new();
    while types.types.len() + types.strings.len() + relocations.len() * 24 < SIZE {
        let name = types.string(&format!("sock_{}", relocations.len()));
        let ty = types.add(name, 4, 1, 4, [member, 1, 0]);
        relocations.push([relocations.len() as u32 * 8, ty, access, 0]);
    }
    relocated(&types, section, relocations, Vec::new())
}

/// Accesses to members that the kernel's largest struct does not have.
fn missing_members() -> Vec<u8> {
    let mut types = Types::new();
    let (section, root) = (types.string("socket"), types.string("task_struct"));
    let mut members = Vec::new();
    let mut accesses = Vec::new();
    while types.strings.len() + members.len() * 4 + accesses.len() * 24 < SIZE {
        let name = types.string(&format!("member_{}", accesses.len()));
        members.extend([name, 1, 0]);
        let access = types.string(&format!("0:{}", accesses.len()));
        accesses.push(access);
    }
    let ty = types.add(root, 4, accesses.len() as u32, 4, members);
    let relocations = (0..).zip(accesses).map(|(number, access)| [number * 8, ty, access, 0]).collect();
    relocated(&types, section, relocations, Vec::new())
}

/// Accesses to an existing member, in a source file with a name as long as half of the object.
fn long_file_name() -> Vec<u8> {
    let mut types = Types::new();
    let (section, access, name, member) =
        (types.string("socket"), types.string("0:0"), types.string("sock"), types.string("__sk_common"));
    let file = types.string(&"/".repeat(SIZE / 2));
    let ty = types.add(name, 4, 1, 4, [member, 1, 0]);
    let count = (SIZE / 2 / 40) as u32;
    let lines = (0..count).map(|number| [number * 8, file, file, 1 << 10]).collect();
    // A kind for which it does not matter that the object has an integer where the kernel has a struct.
    relocated(&types, section, (0..count).map(|number| [number * 8, ty, access, 2]).collect(), lines)
}

/// Structs with long names, to be compared member by member.
fn long_names() -> Vec<u8> {
    let mut types = Types::new();
    let (section, access) = (types.string("socket"), types.string("0"));
    let long = types.string(&"n".repeat(1000));
    let mut relocations = Vec::new();
    let members: Vec<u32> = (0..4000).flat_map(|number| [long + number % 500, 1, 0]).collect();
    for number in 0..16 {
        let name = types.string(&format!("task_struct___{number}"));
        let ty = types.add(name, 4, 4000, 4, members.clone());
        for question in [8, 9, 12] {
            relocations.push([relocations.len() as u32 * 8, ty, access, question]);
        }
    }
    relocated(&types, section, relocations, Vec::new())
}

/// A stretch for each record, and many sections.
fn stretches() -> Vec<u8> {
    let mut types = Types::new();
    let (name, access, ty) = (types.string("socket"), types.string("0"), 1);
    let mut object = Object::new();
    object.program();
    for _ in 0..5000 {
        object.section("x", (1, 0, 0, 0, 0), Vec::new());
    }
    let stretch = (name, vec![[0, ty, access, 8]]);
    let count = (SIZE - object.len()) / 24;
    object.section(".BTF", (1, 0, 0, 0, 0), types.finish());
    object.section(".BTF.ext", (1, 0, 0, 0, 0), ext(&[], &vec![stretch; count]));
    object.finish()
}

/// Functions of many parameters, which are compared repeatedly.
fn parameters() -> Vec<u8> {
    let mut types = Types::new();
    let (section, access) = (types.string("socket"), types.string("0"));
    let proto = types.add(0, 13, 40_000, 0, (0..40_000).flat_map(|_| [0, 1]));
    let pointer = types.add(0, 2, 0, proto, []);
    let mut relocations = Vec::new();
    while types.types.len() + types.strings.len() + relocations.len() * 24 < SIZE {
        let name = types.string(&format!("rcu_callback_t___{}", relocations.len()));
        let ty = types.add(name, 8, 0, pointer, []);
        relocations.push([relocations.len() as u32 * 8, ty, access, 12]);
    }
    relocated(&types, section, relocations, Vec::new())
}

/// The highest allowed number of struct_ops maps, of the highest allowed number of structs, among many symbols and
/// relocations.
fn callbacks() -> Vec<u8> {
    let mut object = Object::new();
    object.program();
    let mut types = Types::new();
    let proto = types.add(0, 13, 0, 0, []);
    let pointer = types.add(0, 2, 0, proto, []);
    let member = types.string("init");
    let structs: Vec<u32> = (0..16)
        .map(|number| {
            let name = types.string(&format!("ops_{number}"));
            types.add(name, 4, 1, 8, [member, pointer, 0])
        })
        .collect();
    let place = object.section(".struct_ops", (1, 3, 0, 0, 0), vec![0; 256 * 8]);
    let other = object.string("other");
    for _ in 0..20_000 {
        object.symbol(other, 0, 1, 0, 0);
    }
    let mut vars = Vec::new();
    for number in 0..256 {
        let text = format!("map_{number}");
        let (name, ty) = (types.string(&text), structs[number % structs.len()]);
        vars.extend([types.add(name, 14, 0, ty, [1]), number as u32 * 8, 8]);
        let name = object.string(&text);
        object.symbol(name, GLOBAL_OBJECT, place, number as u64 * 8, 8);
    }
    let section = types.string(".struct_ops");
    types.add(section, 15, 256, 256 * 8, vars);
    object.section(".BTF", (1, 0, 0, 0, 0), types.finish());
    let relocation = [0u64.to_le_bytes(), (1u64 << 32 | 10).to_le_bytes()].concat();
    let count = (SIZE - object.len()) / relocation.len();
    object.section(".relsocket", (9, 0, 0, 2, 16), relocation.repeat(count));
    object.finish()
}

/// A file's name, and the function that makes the file.
type Made = (&'static str, fn() -> Vec<u8>);

/// All files, by name.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let all: Vec<Made> = vec![
        ("overlapping_sections", overlapping_sections),
        ("empty_strings", empty_strings),
        ("programs", programs),
        ("closures", closures),
        ("variables", variables),
        ("without_symbol", without_symbol),
        ("accesses", accesses),
        ("repeated_names", repeated_names),
        ("long_parameters", long_parameters),
        ("overlapping_functions", overlapping_functions),
        ("misses", misses),
        ("missing_members", missing_members),
        ("long_file_name", long_file_name),
        ("long_names", long_names),
        ("stretches", stretches),
        ("parameters", parameters),
        ("callbacks", callbacks),
    ];
    let all = all.into_iter().map(|(name, make)| (name, make()));
    all.inspect(|(name, bytes)| assert!((500_000..1 << 20).contains(&bytes.len()), "{name}: {}", bytes.len())).collect()
}

#[allow(dead_code)]
fn main() {
    let folder = PathBuf::from(env::args_os().nth(1).unwrap());
    for (name, bytes) in all() {
        fs::write(folder.join(name).with_extension("o"), bytes).unwrap();
    }
}

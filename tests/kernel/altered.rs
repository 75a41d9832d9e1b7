//! Copies of xctl's own object, each with one thing in it that must not be there.

use xctl::model::embedded;
use xctl::model::events::{Owner, Totals};
use xctl::object::{Btf, BtfExt, Kind, ObjectFile, TypeId};

/// An object that must be refused, and words that its refusal must have: the defect, and its place.
pub struct Altered {
    pub what: &'static str,
    pub bytes: Vec<u8>,
    pub words: Vec<String>,
    /// The words of `inspect`, if `trace` does not refuse the object itself: libbpf notices the defect when it loads the
    /// object.
    pub on_loading: Option<&'static str>,
}

/// The object, parsed far enough to find places in it.
struct Parts<'a> {
    bytes: &'a [u8],
    object: ObjectFile<'a>,
    btf: Btf,
}

impl Parts<'_> {
    fn section(&self, name: &str) -> usize {
        let found = self.object.sections.iter().find(|section| section.name == name);
        found.map_or_else(|| panic!("no section {name}"), |section| section.offset as usize)
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap_or_default())
    }

    /// The offset in the file of the first type of a kind, and its id.
    fn first(&self, kind: Kind) -> (usize, u32) {
        self.find(|id| self.btf.kind(id) == kind)
    }

    /// The offset in the file of the first type that `wanted` accepts, and its id.
    fn find(&self, wanted: impl Fn(TypeId) -> bool) -> (usize, u32) {
        let mut at = self.section(".BTF") + 24;
        for id in self.btf.ids() {
            if wanted(id) {
                return (at, id.0);
            }
            let entries = (self.word(at + 4) & 0xffff) as usize;
            at += 12
                + match self.btf.kind(id) {
                    Kind::Int | Kind::Var | Kind::DeclTag => 4,
                    Kind::Array => 12,
                    Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => entries * 12,
                    Kind::Enum | Kind::FuncProto => entries * 8,
                    _ => 0,
                };
        }
        panic!("no such type")
    }

    /// The offset in the file of the field that names the type of a member of a map's definition.
    fn of_map(&self, map: &str, member: &str) -> usize {
        let is_it = |id| self.btf.kind(id) == Kind::Var && self.btf.name(id) == map;
        let (_, variable) = self.find(is_it);
        let definition = self.btf.resolve(self.btf.target(TypeId(variable)));
        let (at, _) = self.find(|id| id == definition);
        let place = self.btf.members(definition).position(|one| one.name == member).expect("the member");
        at + 12 + place * 12 + 4
    }

    /// The offset of the first CO-RE relocation, and the section that the relocation is for.
    fn relocation(&self) -> (usize, String) {
        let ext = self.section(".BTF.ext");
        let table = ext + (self.word(ext + 4) + self.word(ext + 24)) as usize + 4;
        let section = self.btf.string(self.word(table)).unwrap_or_default().to_owned();
        (table + 8, section)
    }

    /// The offset in the file of a program's first instruction whose number is the place of a struct's member.
    fn relocated_insn(&self, program: &str) -> usize {
        let program = self.object.programs.iter().find(|other| other.name == program).expect("the program");
        let ext = BtfExt::parse(self.object.btf_ext.expect("its .BTF.ext"), &self.btf).expect("its .BTF.ext");
        let of_section = ext.relocations.iter().find(|stretch| stretch.section == program.section);
        let within = program.offset..program.offset + program.size;
        let records = of_section.into_iter().flat_map(|stretch| &stretch.records);
        const BYTE_OFFSET: u32 = 0;
        let mut of_program =
            records.filter(|record| within.contains(&record.offset.into()) && record.kind == BYTE_OFFSET);
        self.section(program.section) + of_program.next().expect("a relocation of it").offset as usize
    }

    /// The object with a string table that has moved to the end of the file and got one more byte, which is no text. No
    /// name has this byte, so a reader that goes name by name never sees it. Also returns the offset of this byte.
    fn with_no_text(&self) -> (Vec<u8>, u64) {
        let mut sections = self.object.sections.iter();
        let index = sections.position(|section| section.name == ".strtab").expect("its string table");
        let section = &self.object.sections[index];
        let mut bytes = self.bytes.to_vec();
        let begins = bytes.len() as u64;
        bytes.extend_from_slice(section.bytes(self.bytes));
        let no_text = bytes.len() as u64;
        bytes.extend([0xff, 0]);
        // The fields sh_offset and sh_size of the section header.
        let header = self.word(40) as usize + index * 64;
        bytes[header + 24..header + 32].copy_from_slice(&begins.to_le_bytes());
        bytes[header + 32..header + 40].copy_from_slice(&(section.size + 2).to_le_bytes());
        (bytes, no_text)
    }

    fn with(&self, at: usize, value: u32) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    }
}

/// A program that `auto` loads on every kernel.
pub const LOADED: &str = "tp_state";

/// All altered objects.
pub fn all() -> Vec<Altered> {
    let bytes = &embedded::object().expect("our own object");
    let object = ObjectFile::parse(bytes).expect("our own object");
    let btf = Btf::parse(object.btf.expect("its BTF")).expect("its BTF");
    let parts = Parts { bytes, object, btf };
    let (relocation, section) = parts.relocation();
    let insn = parts.relocated_insn(LOADED);
    let (typedef, typedef_id) = parts.first(Kind::Typedef);
    let (structure, _) = parts.first(Kind::Struct);
    let altered = |what, at, value, words: &[&str]| Altered {
        what,
        bytes: parts.with(at, value),
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        on_loading: None,
    };
    vec![
        altered(
            "a relocation outside its program",
            relocation,
            800_000,
            &["CO-RE relocation record for byte 800000 of section", &section],
        ),
        altered("a relocation of no type", relocation + 4, 400_000, &[".BTF.ext", "type [400000]"]),
        altered("a string past the end", relocation + 8, 1 << 20, &[".BTF.ext", "string offset 1048576, past the end"]),
        altered("a name past the end", typedef, 1 << 20, &["BTF", "name offset 1048576"]),
        altered(
            "a type that contains itself",
            typedef + 8,
            typedef_id,
            &["its types", &format!("[{typedef_id}] contains itself")],
        ),
        altered("millions of members", structure + 4, 0x04ff_ffff, &["BTF", "16777215 entries"]),
        {
            let (bytes, at) = parts.with_no_text();
            let words = ["two parsers disagree about section", "(.strtab)", &format!("byte {at} of the file")];
            Altered {
                what: "a section that two parsers see differently",
                bytes,
                words: words.map(str::to_owned).to_vec(),
                on_loading: None,
            }
        },
        // The number under a relocation differs from the types in the object. The code that applies the relocation must
        // notice.
        Altered {
            what: "another number under a relocation",
            bytes: {
                let mut bytes = bytes.to_vec();
                // The offset of a load or store is in bytes 2 and 3, any other number in 4 to 7.
                let at = if matches!(bytes[insn] & 7, 1..=3) { insn + 2 } else { insn + 4 };
                bytes[at] ^= 0x40;
                bytes
            },
            words: vec![format!("'{LOADED}'"), "relo #".to_owned(), "unexpected insn #".to_owned()],
            on_loading: Some("but by the object's own types the value is"),
        },
    ]
}

/// Objects with a map whose sizes differ from those that the loader assumes. The kernel would write more bytes to the
/// loader's buffer than the buffer has. The objects have no other defect.
pub fn maps() -> Vec<Altered> {
    let bytes = &embedded::object().expect("our own object");
    let object = ObjectFile::parse(bytes).expect("our own object");
    let btf = Btf::parse(object.btf.expect("its BTF")).expect("its BTF");
    let parts = Parts { bytes, object, btf };
    let (owner, totals) = (size_of::<Owner>(), size_of::<Totals>());
    let altered = |what, map: &str, member, like, words: &str| Altered {
        what,
        bytes: parts.with(parts.of_map(map, member), parts.word(parts.of_map(like, member))),
        words: vec![format!("map {map} {words}")],
        on_loading: None,
    };
    vec![
        altered(
            "longer values",
            "SOCKET_TO_PID",
            "value",
            "PROCESS_TOTALS",
            &format!("has values of {totals} bytes in the object and {owner}"),
        ),
        altered(
            "shorter values",
            "PROCESS_TOTALS",
            "value",
            "SOCKET_TO_PID",
            &format!("has values of {owner} bytes in the object and {totals}"),
        ),
        altered("longer keys", "NETNS_TOTALS", "key", "PROCESS_TOTALS", "has keys of 24 bytes in the object and 8"),
        altered(
            "longer counters",
            "LOST",
            "value",
            "NETNS_TOTALS",
            &format!("has values of {totals} bytes in the object and 8"),
        ),
        altered(
            "a counter for all CPUs",
            "LOST",
            "type",
            "EVENTS",
            "has type perf_event_array in the object and percpu_array",
        ),
        altered("totals of each CPU", "PROCESS_TOTALS", "type", "LOST", "has type percpu_array in the object and hash"),
        altered(
            "a ring that is none",
            "SHARED_RING",
            "type",
            "LOST",
            "has type percpu_array in the object and ringbuf",
        ),
    ]
}

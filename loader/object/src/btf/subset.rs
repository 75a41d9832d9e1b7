//! A part of a BTF's types, written as a BTF of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Btf, Head, Kind, TypeId};

/// Bytes of a BTF header.
const HEADER: u32 = 24;

/// The types that stay, each with a set of numbers. A struct, union or enum keeps its size, and the members or constants
/// with these numbers, each with its offset or value. Any other type stays whole, and its set has no meaning.
pub type Subset = BTreeMap<TypeId, BTreeSet<u32>>;

impl Btf {
    /// Writes these types, in their order, with new numbers. A reference to a type outside the set becomes a reference to
    /// void.
    pub fn subset(&self, kept: &Subset) -> Vec<u8> {
        let numbers = kept.keys().copied().zip(1..).collect();
        let mut writer = Writer { btf: self, numbers, types: Vec::new(), strings: vec![0], known: HashMap::new() };
        for (id, entries) in kept {
            writer.write(*id, entries);
        }
        writer.finish()
    }
}

struct Writer<'b> {
    btf: &'b Btf,
    numbers: HashMap<TypeId, u32>,
    types: Vec<u8>,
    strings: Vec<u8>,
    known: HashMap<&'b [u8], u32>,
}

impl<'b> Writer<'b> {
    fn bytes(&self, value: u32) -> [u8; 4] {
        if self.btf.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn put(&mut self, value: u32) {
        let bytes = self.bytes(value);
        self.types.extend(bytes);
    }

    fn number(&self, id: u32) -> u32 {
        self.numbers.get(&TypeId(id)).copied().unwrap_or(0)
    }

    fn name(&mut self, offset: u32) -> u32 {
        let name = self.btf.name_bytes(offset);
        if name.is_empty() {
            return 0;
        }
        let strings = &mut self.strings;
        *self.known.entry(name).or_insert_with(|| {
            let at = strings.len() as u32;
            strings.extend(name);
            strings.push(0);
            at
        })
    }

    fn write(&mut self, id: TypeId, entries: &BTreeSet<u32>) {
        let (btf, kind) = (self.btf, self.btf.kind(id));
        let Some(head) = btf.head(id) else { return };
        let chosen = kind.is_composite() || kind.is_enum();
        // The kinds of the words after the head, and whether they follow once or for each entry.
        let (words, each): (&[Word], bool) = match kind {
            Kind::Struct | Kind::Union => (&[Word::Name, Word::Type, Word::Value], true),
            Kind::Enum => (&[Word::Name, Word::Value], true),
            Kind::Enum64 => (&[Word::Name, Word::Value, Word::Value], true),
            Kind::FuncProto => (&[Word::Name, Word::Type], true),
            Kind::Array => (&[Word::Type, Word::Type, Word::Value], false),
            Kind::Int | Kind::Var | Kind::DeclTag => (&[Word::Value], false),
            Kind::Datasec => (&[Word::Type, Word::Value, Word::Value], true),
            _ => (&[], false),
        };
        let stays = |number: &u32| !chosen || entries.contains(number);
        let count = if each { head.vlen() as u32 } else { 1 };
        let numbers: Vec<u32> = (0..count).filter(stays).collect();
        let name = self.name(head.name);
        self.put(name);
        self.put(if each { head.info & !0x00ff_ffff | numbers.len() as u32 } else { head.info });
        let refers =
            kind.is_modifier() || matches!(kind, Kind::Ptr | Kind::Func | Kind::FuncProto | Kind::Var | Kind::DeclTag);
        self.put(if refers { self.number(head.arg) } else { head.arg });
        for number in numbers {
            for (place, word) in words.iter().enumerate() {
                let value = tail_word(btf, head, number as usize * words.len() + place);
                let value = match word {
                    Word::Name => self.name(value),
                    Word::Type => self.number(value),
                    Word::Value => value,
                };
                self.put(value);
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut out = if self.btf.big_endian { vec![0xeb, 0x9f] } else { vec![0x9f, 0xeb] };
        out.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for value in [HEADER, 0, types, types, strings] {
            out.extend(self.bytes(value));
        }
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }
}

/// The meaning of a word after a type's head.
enum Word {
    /// An offset of the string section.
    Name,
    /// A type.
    Type,
    /// A value, which stays unchanged.
    Value,
}

/// Parsing has checked that types are whole, so the fallback value is never used.
fn tail_word(btf: &Btf, head: Head, word: usize) -> u32 {
    super::word(&btf.data, head.tail + word * 4, btf.big_endian).unwrap_or(0)
}

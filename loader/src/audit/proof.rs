//! The proof that a program in the kernel is the one in the object.
//!
//! 1. Our own resolver computes every CO-RE relocation from the object and the BTF. The instructions that libbpf passed
//!    to the kernel are then compared with the result, one by one ([`Image`]).
//! 2. The kernel's own hash of the instructions that it received, the tag, is the hash of the instructions that libbpf
//!    passed ([`super::tag`]). This hash leaves out the descriptors of maps and offsets in maps, hence the next step.
//! 3. The maps that the program uses, according to the kernel, are those that the object's relocations name. The only
//!    other map is the `.rodata` that libbpf binds to every program.
//! 4. The program after verification does the same, step by step ([`super::translated`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use super::tag::Hash;
use super::translated::{self, Translation, Unexplained};
use crate::kernel::bpf::ProgramInfo;
use crate::object::elf::INSN_SIZE;
use crate::object::facts::{Facts, MapFacts, hex};
use crate::object::image::{Image, MapThere};
use crate::object::insn::Insn;
use crate::object::relo::Outcome;
use crate::object::{Btf, BtfExt, ObjectFile, Relocations, sort};

/// A difference in a program that nothing explains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unproven {
    /// The program's name.
    pub program: String,
    /// The instruction, counted from the beginning of the program; null if the difference concerns the whole program.
    pub insn: Option<usize>,
    /// The description of the difference.
    pub why: String,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.insn {
            Some(insn) => write!(f, "program {}, instruction {insn}: {}", self.program, self.why),
            None => write!(f, "program {}: {}", self.program, self.why),
        }
    }
}

/// The maps of an object, after loading.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// Ids and descriptors of the maps in the kernel, by name.
    pub created: BTreeMap<String, (u32, i32)>,
    /// The maps that were left out, because this kernel lacks their type or no setting needs them, each with its index in
    /// libbpf's order.
    pub left_out: BTreeMap<String, usize>,
}

impl Maps {
    fn there(&self, name: &str) -> Option<MapThere> {
        let created = self.created.get(name).map(|(_, fd)| MapThere::Descriptor(*fd));
        created.or_else(|| self.left_out.get(name).map(|number| MapThere::LeftOut(*number)))
    }
}

/// A program as it must be.
#[derive(Debug, Default)]
struct Wanted<'a> {
    image: Image<'a>,
    applied: usize,
    poisoned: usize,
}

/// The programs of an object as they must be on a kernel with these types.
#[derive(Debug)]
pub struct Proof<'a> {
    programs: HashMap<String, Wanted<'a>>,
    maps: Vec<MapFacts>,
}

impl<'a> Proof<'a> {
    /// Relocate the programs of these names. The types are freed as early as possible, since many kernels do not let a process
    /// map them, and then they are half of the memory of a start.
    ///
    /// # Errors
    /// If the object does not allow it, in which case libbpf does not load it either; or if a relocation exceeds the
    /// limits of the resolver.
    pub fn new(bytes: &'a [u8], target: Btf, programs: &BTreeSet<&str>) -> Result<Self> {
        let object = ObjectFile::parse(bytes)?;
        let btf = Btf::parse(object.btf.context("the object has no .BTF section")?)?;
        let mut ext = object.btf_ext.map(|data| BtfExt::parse(data, &btf)).transpose()?.unwrap_or_default();
        // Nothing here asks for source lines, and there are as many as instructions.
        ext.lines = Vec::new();
        let mut code = Relocations::new(bytes, &object, &btf, &ext, Some(&target))?;
        let maps = Facts::of(bytes, &object, Some(&btf), &code).map_err(|what| anyhow!(what))?.maps;
        let mut wanted: HashMap<String, Wanted<'a>> = HashMap::new();
        code.run(
            |program| programs.contains(program.name) || program.section == ".text",
            |relocated| {
                if let Outcome::Refused(why) = &relocated.outcome
                    && relocated.spent
                {
                    bail!("{}: {why}", relocated.place());
                }
                if let Some(program) = relocated.program {
                    let wanted = wanted.entry(program.name.to_owned()).or_default();
                    match relocated.outcome {
                        Outcome::Applied => wanted.applied += 1,
                        Outcome::Poisoned(_) => wanted.poisoned += 1,
                        Outcome::Refused(_) | Outcome::Skipped | Outcome::Unresolved => {}
                    }
                }
                Ok(())
            },
        )?;
        let changed = code.into_changed();
        drop((target, ext));
        let no_records = BtfExt::default();
        let code = Relocations::new(bytes, &object, &btf, &no_records, None)?.with(changed);
        for program in object.programs.iter().filter(|program| programs.contains(program.name)) {
            wanted.entry(program.name.to_owned()).or_default().image = Image::of(program, &object, &code);
        }
        Ok(Self { programs: wanted, maps })
    }

    /// A map, as the object defines it.
    #[must_use]
    pub fn map(&self, name: &str) -> Option<&MapFacts> {
        self.maps.iter().find(|map| map.name == name)
    }

    /// The number of CO-RE relocations of a program that were applied, and the number that do not resolve on this
    /// kernel.
    #[must_use]
    pub fn relocations(&self, program: &str) -> (usize, usize) {
        self.programs.get(program).map_or((0, 0), |wanted| (wanted.applied, wanted.poisoned))
    }

    /// Find a difference in a program. `sent` are the instructions that the kernel was given, and `info` is the
    /// kernel's information about the program. `hash` is the kind of hash of `sent` that the tag is, if any. `maps`
    /// holds ids and descriptors by name.
    #[must_use]
    pub fn check(
        &self,
        program: &str,
        sent: &[u8],
        info: &ProgramInfo,
        hash: Option<Hash>,
        maps: &Maps,
    ) -> Option<Unproven> {
        let wrong = |insn, why| Some(Unproven { program: program.to_owned(), insn, why });
        let Some(wanted) = self.programs.get(program) else {
            return wrong(None, "the object has no such program".to_owned());
        };
        if sent.is_empty() {
            return wrong(None, "the call that loaded the program was not recorded".to_owned());
        }
        let insns = decoded(sent);
        if let Some(difference) = wanted.image.difference(&insns, |name| maps.there(name)) {
            let (function, found, expected) = (difference.function, difference.found, difference.expected);
            return wrong(
                Some(difference.insn),
                format!("({function}) the instruction is {found}, and must be {expected}"),
            );
        }
        if hash.is_none() {
            let tag = hex(&info.tag);
            return wrong(
                None,
                format!("the tag of the program, {tag}, is not the hash of the instructions that the kernel was given"),
            );
        }
        let created = &maps.created;
        let used = sort::set(wanted.image.maps().filter_map(|name| created.get(name)).map(|(id, _)| *id));
        let has = sort::set(info.map_ids.iter().copied());
        if has != used {
            return wrong(None, format!("the program uses maps {has:?}, and in the object it uses {used:?}"));
        }
        None
    }
}

/// Compare a program after verification with `sent`, the instructions that the kernel was given. The first result is
/// none if they cannot be compared. The second is a difference that nothing explains.
#[must_use]
pub(super) fn translation(sent: &[u8], translated: &[u8], maps: &Maps) -> (Option<Translation>, Option<Unexplained>) {
    let translated = decoded(translated);
    if translated::is_blinded(&translated) {
        return (None, None);
    }
    let ids = sort::map(maps.created.values().map(|(id, fd)| (*fd, *id)));
    match translated::compare(&decoded(sent), &translated, |fd| ids.get(&fd).copied()) {
        Ok(translation) => (Some(translation), None),
        Err(unexplained) => (None, Some(unexplained)),
    }
}

fn decoded(insns: &[u8]) -> Vec<Insn> {
    let insn = |bytes: &[u8]| Some(Insn::decode(bytes.try_into().ok()?, cfg!(target_endian = "big")));
    insns.chunks_exact(INSN_SIZE as usize).filter_map(insn).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernel::source::{KERNEL_BTF, read_btf};
    use crate::model::embedded;

    /// The instructions that the kernel would receive if every program were faultless. Descriptors count from 100, ids
    /// from 1.
    fn handed(proof: &Proof<'_>, program: &str) -> (Vec<Insn>, Maps) {
        let created: BTreeMap<_, _> =
            proof.maps.iter().zip(1..).map(|(map, id)| (map.name.clone(), (id, 100 + id as i32))).collect();
        let image = &proof.programs[program].image;
        // The search for each instruction works by trial: the map that is missing is named.
        (image.fill(|name| created[name].1), Maps { created, ..Maps::default() })
    }

    fn bytes(insns: &[Insn]) -> Vec<u8> {
        insns.iter().flat_map(|insn| insn.encode(cfg!(target_endian = "big"))).collect()
    }

    fn for_each_program(mut each: impl FnMut(&Proof<'_>, &str, Vec<Insn>, Maps, ProgramInfo)) {
        let Ok(target) = read_btf(Path::new(KERNEL_BTF)) else {
            return println!("skipped: needs {KERNEL_BTF}");
        };
        let target = Btf::from_vec(target).unwrap();
        let bytes = embedded::object().unwrap();
        let object = ObjectFile::parse(&bytes).unwrap();
        let names: BTreeSet<&str> = object.programs.iter().map(|program| program.name).collect();
        let proof = Proof::new(&bytes, target, &names).unwrap();
        assert!(names.len() > 30);
        for name in names {
            let (insns, maps) = handed(&proof, name);
            let map_ids = proof.programs[name].image.maps().map(|map| maps.created[map].0).collect();
            each(&proof, name, insns, maps, ProgramInfo { map_ids, ..ProgramInfo::default() });
        }
    }

    #[test]
    fn every_altered_instruction_is_noticed() {
        for_each_program(|proof, name, mut insns, maps, info| {
            let check = |insns: &[Insn]| proof.check(name, &bytes(insns), &info, Some(Hash::Sha1), &maps);
            assert_eq!(check(&insns), None, "{name}");
            for at in 0..insns.len() {
                let good = insns[at];
                // Each instruction is altered in one way, by turns: a check reads the whole program.
                let ways = [
                    Insn { imm: good.imm ^ 1, ..good },
                    Insn { off: good.off ^ 8, ..good },
                    Insn { dst: good.dst ^ 1, ..good },
                    Insn { src: good.src ^ 2, ..good },
                    Insn { code: good.code ^ 0x10, ..good },
                ];
                insns[at] = ways[at % ways.len()];
                let found = check(&insns).unwrap_or_else(|| panic!("{name}, {at}: {:?}", insns[at]));
                assert_eq!((found.program.as_str(), found.insn), (name, Some(at)), "{found}");
                insns[at] = good;
            }
            let last = insns.pop().unwrap();
            assert_eq!(check(&insns).unwrap().insn, Some(insns.len()));
            insns.extend([last, last]);
            assert_eq!(check(&insns).unwrap().insn, Some(insns.len() - 1));
        });
    }

    #[test]
    fn another_tag_and_other_maps_are_noticed() {
        for_each_program(|proof, name, insns, maps, info| {
            let insns = bytes(&insns);
            let other = |info: ProgramInfo| proof.check(name, &insns, &info, Some(Hash::Sha1), &maps).unwrap().why;
            let why = proof.check(name, &insns, &info, None, &maps).unwrap().why;
            assert!(why.contains("the tag of the program, 0000000000000000"), "{why}");
            let mut more = info.clone();
            more.map_ids.push(9999);
            assert!(other(more).contains("9999"));
            assert!(other(ProgramInfo::default()).contains("the program uses maps {}"));
            assert!(proof.check(name, &[], &info, None, &maps).unwrap().why.contains("not recorded"));
        });
        let nothing = Proof { programs: HashMap::new(), maps: Vec::new() };
        assert!(nothing.check("x", &[0; 8], &ProgramInfo::default(), None, &Maps::default()).is_some());
    }

    /// If a map was left out, the instructions that libbpf puts in place of its loads are explained. The explanation
    /// holds only at the loads of that map, and nowhere else.
    #[test]
    fn a_missing_map_is_explained() {
        const MAP: &str = "SHARED_RING";
        let mut explained = 0;
        for_each_program(|proof, name, mut insns, mut maps, mut info| {
            let Some((id, fd)) = maps.created.remove(MAP) else { panic!("no {MAP}") };
            maps.left_out.insert(MAP.to_owned(), 3);
            info.map_ids.retain(|other| *other != id);
            let check = |insns: &[Insn]| proof.check(name, &bytes(insns), &info, Some(Hash::Sha1), &maps);
            let load = |insn: &Insn| insn.is_ldimm64() && insn.src == 1 && insn.imm == fd;
            let places: Vec<usize> = (0..insns.len()).filter(|at| load(&insns[*at])).collect();
            let Some(first) = places.first().copied() else { return assert_eq!(check(&insns), None, "{name}") };
            assert_eq!(check(&insns).unwrap().insn, Some(first), "{name}: still loaded");
            let call = |number| Insn { code: 0x85, imm: number, ..Insn::EMPTY };
            for at in places {
                insns[at..at + 2].fill(call(2_001_000_003));
            }
            assert_eq!(check(&insns), None, "{name}");
            for (at, number) in [(first, 2_001_000_004), (first + 1, 2_001_000_002), (first + 1, 1)] {
                let mut other = insns.clone();
                other[at] = call(number);
                let found = check(&other).unwrap();
                assert_eq!(
                    (found.insn, found.why.contains("map SHARED_RING was left out")),
                    (Some(at), true),
                    "{found}"
                );
            }
            explained += 1;
        });
        if Path::new(KERNEL_BTF).exists() {
            assert!(explained > 0);
        }
    }

    #[test]
    fn only_the_two_old_helper_names_are_explained() {
        for_each_program(|proof, name, mut insns, maps, info| {
            let check = |insns: &[Insn]| proof.check(name, &bytes(insns), &info, Some(Hash::Sha1), &maps);
            const PROBE_READ_KERNEL: i32 = 113;
            let calls = |insn: &Insn| insn.code == 0x85 && insn.src == 0 && insn.imm == PROBE_READ_KERNEL;
            let Some(at) = insns.iter().position(calls) else { return };
            insns[at].imm = 4;
            assert_eq!(check(&insns), None, "{name}");
            insns[at].imm = 45;
            assert_eq!(check(&insns).unwrap().insn, Some(at), "{name}");
        });
    }
}

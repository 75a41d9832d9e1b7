//! The judgements about an object: its parts, its relocations, and the instructions that its programs reach.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;

use super::verdict::Verdict;
use super::view::{Shown, View};
use super::{Report, modules};
use crate::object::elf::INSN_SIZE;
use crate::object::facts::Facts;
use crate::object::known::Known;
use crate::object::loads::Reach;
use crate::object::names::Names;
use crate::object::relo::{Outcome, Relocated, Relocations, Resolution, Take, essential_name};
use crate::object::uses::{Place, place_of};
use crate::object::{Btf, BtfExt, ObjectFile, Program, completeness, helpers, loads, pointers, sort, struct_ops};

/// Poisoned instructions whose reason is kept until it is known whether they are reached.
const MOST_POISONED: usize = 4096;

/// Poisoned instructions, by section and byte offset: the relocation of each, and why it was poisoned.
pub(super) type Poisoned = BTreeMap<(usize, u64), (Option<Rc<Resolution>>, Rc<str>)>;

/// Why not all relocations were looked at.
enum Ended {
    /// No steps are left: the relocation that was too much.
    Spent(String),
    /// They could not be written.
    Failed(anyhow::Error),
}

/// An object that is judged by the types of a kernel.
pub(super) struct Judge<'r, 'a> {
    pub(super) bytes: &'a [u8],
    pub(super) object: &'r ObjectFile<'a>,
    /// The types of the object.
    pub(super) types: Option<&'r Btf>,
    pub(super) ext: &'r BtfExt<'r>,
    /// The kernel's types. None: the object is only shown.
    pub(super) target: Option<&'r Btf>,
    /// The helpers, map types, program types and map flags that the kernel's types list.
    pub(super) known: Known,
    /// The folder with the BTF of the kernel's modules. None: they are not known.
    pub(super) modules: Option<&'r Path>,
    pub(super) view: View<'r>,
}

impl<'r, 'a> Judge<'r, 'a> {
    /// The facts about the object, and whether every part of it could be read.
    pub(super) fn facts(&self, code: &Relocations<'_, 'a>, verdict: &mut Verdict) -> (Facts<'a>, bool) {
        let mut facts = Facts::read(self.bytes, self.object, self.types, code);
        facts.unread.iter().for_each(|why| verdict.refused_for(why.clone()));
        let all_read = !verdict.is_refused;
        facts.refused.iter().for_each(|why| verdict.refused_for(why.clone()));
        verdict.ended = facts.too_much.clone();
        if let Some(target) = self.target {
            facts.look_up_targets(target);
            if let Some(modules) = self.modules {
                modules::look_up_externs(&mut facts, modules);
            }
        }
        (facts, all_read && verdict.ended.is_none())
    }

    /// Judges the parts of the object, before its relocations.
    pub(super) fn parts(&self, facts: &Facts<'a>, code: &Relocations<'_, 'a>, all_read: bool, verdict: &mut Verdict) {
        if self.target.is_some_and(|target| target.is_big_endian() == self.object.is_little_endian) {
            verdict.problem(|| "the object and the BTF are of different byte order".to_owned());
        }
        if let Some(target) = self.target.filter(|_| all_read) {
            self.loading(facts, code, verdict);
            self.callbacks(facts, code, target, verdict);
        }
        pointers::not_relocated(self.bytes, self.object).for_each(|what| verdict.note(what));
    }

    /// Would libbpf and the kernel take the maps, programs and symbols? Every part of the object must have been read.
    fn loading(&self, facts: &Facts<'a>, code: &Relocations<'_, 'a>, verdict: &mut Verdict) {
        let (object, known) = (self.object, &self.known);
        let without_symbol = self.types.into_iter().flat_map(|types| completeness::without_symbol(object, types));
        let refusals = loads::refused_by_libbpf(object, self.types, facts).chain(without_symbol);
        let refusals = refusals.chain(loads::refused_maps(facts, known));
        refusals.for_each(|what| verdict.problem(|| what));
        let refused_programs = loads::refused_programs(facts).chain(loads::unknown_programs(facts, known));
        let without_records = completeness::without_records(object, facts, code, self.ext);
        for (program, what) in refused_programs.chain(without_records) {
            verdict.program_problem(Some(program), || what);
        }
    }

    /// Do the maps of callbacks fit the kernel's structs, or those of its modules?
    fn callbacks(&self, facts: &Facts<'a>, code: &Relocations<'_, 'a>, target: &Btf, verdict: &mut Verdict) {
        let Some(local) = self.types else { return };
        let maps = &facts.struct_ops;
        // The modules are searched only if the kernel lacks one of these types, and once for all of them.
        let in_modules = LazyCell::new(|| match self.modules {
            Some(folder) => modules::named_in(folder, struct_ops::value_types(maps, local)),
            None => BTreeSet::new(),
        });
        let in_modules = |name: &str| in_modules.contains(name.as_bytes());
        match struct_ops::misfits(maps, local, target, in_modules, code.steps()) {
            Ok(misfits) => misfits.into_iter().for_each(|what| verdict.problem(|| what)),
            Err(why) => verdict.ended = Some(why),
        }
    }

    /// Writes and counts the result of every relocation. Returns the poisoned instructions.
    pub(super) fn relocate(
        &self,
        facts: &Facts<'a>,
        code: &mut Relocations<'r, 'a>,
        writer: &mut dyn Report,
        verdict: &mut Verdict,
    ) -> Result<Poisoned> {
        let mut poisoned = Poisoned::new();
        let ended = code.run(
            |program| if facts.loads(self.object, program) { Take::Load } else { Take::Show },
            |relocated| {
                let shown = self.view.show(relocated);
                if relocated.spent {
                    return Err(Ended::Spent(refusal(relocated, &shown)));
                }
                let loads = |program: &Program<'_>| facts.loads(self.object, program);
                count(verdict, &mut poisoned, self.object, relocated, &shown, loads);
                writer.relocation(&shown).map_err(Ended::Failed)
            },
        );
        verdict.not_looked_at = code.len() - verdict.relocations_total;
        verdict.relocations_total = code.len();
        let left = verdict.not_looked_at;
        match ended {
            Err(Ended::Failed(error)) => return Err(error),
            Err(Ended::Spent(why)) => {
                verdict.ended = Some(format!("{why}; this and what follows, {left} relocations, were not looked at"));
            }
            Ok(()) => {}
        }
        Ok(poisoned)
    }

    /// Judges the instructions that the programs reach, and with them the object. Every part must have been read.
    pub(super) fn reached(
        &self,
        facts: &Facts<'a>,
        code: &Relocations<'r, 'a>,
        poisoned: &Poisoned,
        verdict: &mut Verdict,
    ) {
        if self.target.is_none() {
            return;
        }
        let open = self.types.map(|types| in_modules(poisoned, types, self.modules)).unwrap_or_default();
        let reached = loads::reaching(self.bytes, self.object, facts, code, &self.known, &open);
        refused_instructions(self.object, &reached, code.names(), &self.view, poisoned, &open, verdict);
        verdict.runs = match (verdict.problems.is_empty(), verdict.undecided.is_empty()) {
            (true, true) => Some(true),
            (true, false) => None,
            (false, _) => Some(false),
        };
    }
}

fn count(
    verdict: &mut Verdict,
    poisoned: &mut Poisoned,
    object: &ObjectFile<'_>,
    relocated: &Relocated<'_, '_>,
    shown: &Shown<'_>,
    loads: impl Fn(&Program<'_>) -> bool,
) {
    verdict.relocations_total += 1;
    match &relocated.outcome {
        Outcome::Applied => verdict.applied += 1,
        Outcome::Poisoned(why) => {
            verdict.poisoned += 1;
            if let Some(program) = relocated.program.filter(|_| poisoned.len() < MOST_POISONED) {
                let at = u64::from(relocated.relocation.offset);
                // A 64-bit load is poisoned as two instructions.
                for at in [Some(at), relocated.before.second.map(|_| at + INSN_SIZE)].into_iter().flatten() {
                    poisoned.insert((program.section_index, at), (relocated.resolution.clone(), why.clone()));
                }
            }
        }
        Outcome::Skipped => verdict.skipped += 1,
        Outcome::Unresolved => {}
        Outcome::Refused(_) => {
            verdict.refused += 1;
            // libbpf passes over programs that are not loaded.
            if relocated.program.is_none_or(loads) {
                let program = relocated.program.and_then(|program| number_of(object, program));
                verdict.program_problem(program, || refusal(relocated, shown));
            }
        }
    }
}

/// The number of a program; none of a function in `.text`.
fn number_of(object: &ObjectFile<'_>, program: &Program<'_>) -> Option<usize> {
    object.program_at(program.section_index, program.offset)
}

/// `program kp_sendmsg, instruction 7, byte_off of sock->sk_protocol: ` and why it is refused.
fn refusal(relocated: &Relocated<'_, '_>, shown: &Shown<'_>) -> String {
    let (access, which) = shown.local.as_ref().map_or(("", ""), |local| (&local.access, &local.which));
    let place = relocated.place();
    format!("{place}, {} of {access}{which}: {}", shown.kind, shown.why.unwrap_or_default())
}

/// A problem for every program that reaches an instruction which the verifier refuses.
fn refused_instructions<'a>(
    object: &ObjectFile<'_>,
    reached: &[Reach<'_, 'a>],
    names: &Names<'a>,
    view: &View<'_>,
    poisoned: &Poisoned,
    open: &BTreeSet<Place>,
    verdict: &mut Verdict,
) {
    for Reach { program, function, index, insn } in reached {
        let place = place_of(function, *index);
        let told = || {
            let why = poisoned.get(&place).map(|(asked, why)| {
                let access = asked.as_ref().map_or_else(String::new, |asked| view.access(&asked.local, asked.kind));
                format!("{access}: {why}")
            });
            let why = why.unwrap_or_else(|| match insn.is_poison() {
                true => "something is not there".to_owned(),
                false => format!("the kernel of this BTF has no helper {}", helpers::shown(insn.imm)),
            });
            let of = match std::ptr::eq(*program, *function) {
                true => String::new(),
                false => format!(" of {}", names.shown(function)),
            };
            format!("program {} reaches instruction {index}{of}: {why}", names.shown(program))
        };
        match open.contains(&place) {
            true => verdict.undecided(told),
            false => verdict.program_problem(number_of(object, program), told),
        }
    }
}

/// The poisoned instructions that need a type which a module may have. For the running kernel, its modules' BTF decides. Nothing
/// is known about the modules of another kernel, so any of them may have the type.
fn in_modules(poisoned: &Poisoned, local: &Btf, modules: Option<&Path>) -> BTreeSet<Place> {
    let absent = poisoned.iter().filter_map(|(place, (asked, _))| Some((*place, asked.as_ref()?)));
    let absent = absent.filter(|(_, asked)| asked.absent);
    let absent: Vec<_> = absent.map(|(place, asked)| (place, essential_name(local.name(asked.local.root)))).collect();
    let there = modules.map(|folder| modules::named_in(folder, absent.iter().map(|(_, name)| *name)));
    let may_have = |name: &str| there.as_ref().is_none_or(|there| there.contains(name.as_bytes()));
    sort::set(absent.into_iter().filter(|(_, name)| may_have(name)).map(|(place, _)| place))
}

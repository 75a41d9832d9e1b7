//! All relocations of an object, in the order of the file, and the code afterwards.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use super::patch::{Patched, Place, patch};
use super::resolver::{Resolution, Resolver};
use crate::btf::Btf;
use crate::btf_ext::{BtfExt, CoreRelocation};
use crate::elf::{INSN_SIZE, ObjectFile, Program, Refused};
use crate::insn::Insn;
use crate::names::Names;
use crate::sort;
use crate::steps::Steps;

/// How the relocations of a function are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// As libbpf resolves those of a program that it loads.
    Load,
    /// As if the program were loaded, but without an effect on the results of other programs. libbpf does not look at
    /// the relocations of a program that is not loaded (`bpf_object__relocate_core()`).
    Show,
    /// Not at all.
    Skip,
}

impl From<bool> for Take {
    /// True if the function is loaded; else its relocations are skipped.
    fn from(loaded: bool) -> Self {
        if loaded { Take::Load } else { Take::Skip }
    }
}

/// What became of a relocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The instruction has its value.
    Applied,
    /// It does not resolve, for this reason: libbpf replaces the instruction by one that the verifier refuses if it is
    /// ever reached.
    Poisoned(Rc<str>),
    /// libbpf does not load the object, for this reason; or it is [`Relocated::spent`].
    Refused(String),
    /// It belongs to no function, or to a program that is not loaded: libbpf passes over it.
    Skipped,
    /// There is no target to resolve against.
    Unresolved,
}

/// A relocation and what became of it.
#[derive(Clone, Debug)]
pub struct Relocated<'r, 'a> {
    /// The program section.
    pub section: &'r str,
    /// The function that the instruction is in.
    pub program: Option<&'r Program<'a>>,
    /// The function's name, with its section if other functions have the same name; the section's name if there is no function.
    pub label: Cow<'r, str>,
    /// The instruction, counted from the beginning of the function, or of the section if it is in none.
    pub index: usize,
    /// The relocation as the compiler wrote it.
    pub relocation: CoreRelocation<'r>,
    /// The result; `None` if the relocation is malformed, ambiguous or [`Relocated::spent`], or if there is no target.
    pub resolution: Option<Rc<Resolution>>,
    /// The instruction before.
    pub before: Place,
    /// The instruction afterwards.
    pub after: Place,
    /// What became of it.
    pub outcome: Outcome,
    /// It was refused because no steps are left.
    pub spent: bool,
}

impl Relocated<'_, '_> {
    /// Where it is: `program kp_sendmsg, instruction 7`.
    pub fn place(&self) -> String {
        format!("program {}, instruction {}", self.label, self.index)
    }
}

/// An object's code and relocations, to be resolved against a target.
#[derive(Debug)]
pub struct Relocations<'r, 'a> {
    /// The file.
    bytes: &'r [u8],
    object: &'r ObjectFile<'a>,
    ext: &'r BtfExt<'r>,
    /// The sections that relocations are in, by name.
    sections: HashMap<&'r str, usize>,
    /// All functions, by section and offset.
    functions: Vec<&'r Program<'a>>,
    names: Names<'a>,
    steps: Rc<Steps>,
    resolver: Option<Resolver<'r>>,
    changed: Changed,
}

/// The instructions as they are now, of each section that relocations changed, by the section's index.
#[derive(Debug)]
pub struct Changed(Vec<Option<Vec<Insn>>>);

impl<'r, 'a> Relocations<'r, 'a> {
    /// For the object that was read from `bytes`, with its own types and `.BTF.ext`; `target` are the types to resolve
    /// against.
    ///
    /// # Errors
    /// A record of `.BTF.ext` is for an instruction that the object does not have.
    pub fn new(
        bytes: &'r [u8],
        object: &'r ObjectFile<'a>,
        btf: &'r Btf,
        ext: &'r BtfExt<'r>,
        target: Option<&'r Btf>,
    ) -> Result<Self, Refused> {
        let sections = ext.check_places(object)?;
        let mut functions: Vec<&Program<'a>> = object.programs.iter().chain(&object.subprograms).collect();
        sort::by_key(&mut functions, |function| (function.section_index, function.offset));
        let names = Names::new(functions.iter().copied());
        let roots = || ext.relocations.iter().flat_map(|stretch| stretch.records.iter().map(|record| record.root));
        let steps = Rc::new(Steps::default());
        let resolver = target.map(|target| Resolver::new(btf, target, roots(), steps.clone()));
        Ok(Relocations {
            bytes,
            object,
            ext,
            sections,
            functions,
            names,
            steps,
            resolver,
            changed: Changed(vec![None; object.sections.len()]),
        })
    }

    /// The code after [`run`](Self::run), without the types that it was resolved against.
    pub fn into_changed(self) -> Changed {
        self.changed
    }

    /// The same object, with code that was resolved before.
    #[must_use]
    pub fn with(self, changed: Changed) -> Self {
        Self { changed, ..self }
    }

    /// How many relocations there are.
    pub fn len(&self) -> usize {
        self.ext.relocations.iter().map(|stretch| stretch.records.len()).sum()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves the relocations of every function in the way that `take` says, and calls `each` for every relocation.
    /// This function is called once.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn run<E, T: Into<Take>>(
        &mut self,
        take: impl Fn(&Program<'a>) -> T,
        mut each: impl FnMut(&Relocated<'r, 'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        for stretch in &self.ext.relocations {
            let Some(section) = self.sections.get(stretch.section).copied() else {
                continue; // checked when this was made
            };
            for relocation in &stretch.records {
                each(&self.one(section, stretch.section, relocation, |program| take(program).into()))?;
            }
        }
        Ok(())
    }

    fn one(
        &mut self,
        section: usize,
        name: &'r str,
        relocation: &CoreRelocation<'r>,
        take: impl Fn(&Program<'a>) -> Take,
    ) -> Relocated<'r, 'a> {
        let offset = relocation.offset as usize;
        let program = self.function_at(section, offset as u64);
        let before = self.place(section, offset);
        let base = program.map_or(0, |program| program.offset as usize);
        let mut relocated = Relocated {
            section: name,
            program,
            label: program.map_or(name.into(), |program| self.names.shown(program)),
            index: (offset - base.min(offset)) / INSN_SIZE as usize,
            relocation: *relocation,
            resolution: None,
            before,
            after: before,
            outcome: Outcome::Skipped,
            spent: false,
        };
        // A report of the relocation writes these names, so they cost steps.
        let names = name.len() + program.map_or(0, |program| program.name.len()) + relocation.access.len();
        if let Err(why) = self.steps.text(names) {
            (relocated.outcome, relocated.spent) = (Outcome::Refused(why), true);
            return relocated;
        }
        let take = program.map_or(Take::Skip, take);
        if take == Take::Skip {
            return relocated;
        }
        let Some(resolver) = &mut self.resolver else {
            relocated.outcome = Outcome::Unresolved;
            return relocated;
        };
        let patched = resolver.resolve(relocation, take == Take::Load).and_then(|resolution| {
            self.steps.text(resolution.missing.as_ref().map_or(0, |why| why.len()))?;
            let patched = patch(&resolution, before);
            relocated.resolution = Some(resolution);
            patched
        });
        let (after, outcome) = match patched {
            Ok(Patched::Done(after)) => (after, Outcome::Applied),
            Ok(Patched::Poisoned(after, why)) => (after, Outcome::Poisoned(why)),
            Err(why) => (before, Outcome::Refused(why)),
        };
        relocated.spent = self.steps.is_spent() && relocated.resolution.is_none();
        (relocated.after, relocated.outcome) = (after, outcome);
        if after != before {
            self.change(section, offset, after);
        }
        relocated
    }

    fn change(&mut self, section: usize, offset: usize, after: Place) {
        let (size, is_big_endian) = (INSN_SIZE as usize, !self.object.is_little_endian);
        let Some(changed) = self.changed.0.get_mut(section) else { return };
        let bytes = self.object.sections.get(section).map_or(&[][..], |section| section.bytes(self.bytes));
        let code = changed.get_or_insert_with(|| {
            (0..bytes.len()).step_by(size).map_while(|offset| Insn::at(bytes, offset, is_big_endian)).collect()
        });
        // Whether the offset is that of an instruction was checked when this was made.
        for (place, insn) in code.iter_mut().skip(offset / size).zip([after.insn].into_iter().chain(after.second)) {
            *place = insn;
        }
    }

    /// The function that has the instruction at byte `offset` of a section.
    pub fn function_at(&self, section: usize, offset: u64) -> Option<&'r Program<'a>> {
        let after = self.functions.partition_point(|f| (f.section_index, f.offset) <= (section, offset));
        let function = self.functions.get(after.checked_sub(1)?)?;
        let inside = function.section_index == section && offset - function.offset < function.size;
        inside.then_some(*function)
    }

    /// All functions, by section and offset.
    pub fn functions(&self) -> &[&'r Program<'a>] {
        &self.functions
    }

    /// The steps that are left for the object.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Functions that share a name.
    pub fn names(&self) -> &Names<'a> {
        &self.names
    }

    /// The instruction at byte `offset` of a section, as it is now.
    pub fn insn(&self, section: usize, offset: usize) -> Option<Insn> {
        let size = INSN_SIZE as usize;
        if let Some(Some(code)) = self.changed.0.get(section).filter(|_| offset.is_multiple_of(size)) {
            return code.get(offset / size).copied();
        }
        let bytes = self.object.sections.get(section)?.bytes(self.bytes);
        Insn::at(bytes, offset, !self.object.is_little_endian)
    }

    fn place(&self, section: usize, offset: usize) -> Place {
        // Whether it lies within was checked when this was made.
        let insn = self.insn(section, offset).unwrap_or(Insn::EMPTY);
        let second = if insn.is_ldimm64() { self.insn(section, offset + INSN_SIZE as usize) } else { None };
        Place { insn, second }
    }

    /// A function's instructions as they are now.
    pub fn code(&self, function: &Program<'_>) -> impl Iterator<Item = Insn> {
        let (section, start) = (function.section_index, function.offset as usize);
        (0..function.insns).map_while(move |index| self.insn(section, start + index * INSN_SIZE as usize))
    }
}

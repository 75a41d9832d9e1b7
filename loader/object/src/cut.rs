//! A kernel's BTF, cut down to the types that an object's CO-RE relocations, its hooks and its loader ask for. The result is
//! a few kilobytes, which can be shipped to kernels that have no BTF of their own.
//!
//! Each type that is kept keeps its name, size and offsets, so that every question has the same answer as before. [`cut`]
//! does not assume this: it asks every question again.

use std::collections::{BTreeSet, HashSet};

use super::btf::{Btf, Kind, Subset, TypeId};
use super::difference::{Answer, NotRelocated, Parts};
use super::hook::hook;
use super::relo::{Outcome, Relocated, RelocationKind, Resolution, Spec, type_name};

/// A loader's own questions about a kernel's BTF, besides those of the object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Structs: whether the BTF has them.
    pub structs: &'a [&'a str],
    /// Structs and paths in them: whether the BTF has them, and at which offset.
    pub fields: &'a [(&'a str, &'a str)],
    /// Functions: whether the BTF has them, and how many arguments they have.
    pub functions: &'a [&'a str],
}

/// The reason why there is no cut BTF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutError {
    /// The object cannot be relocated.
    Object(String),
    /// The object does not fit the BTF at all, or asks something that only the whole BTF can answer.
    Misfit(String),
    /// The cut BTF would answer a question differently.
    Differs(String),
}

impl std::fmt::Display for CutError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CutError::Object(what) | CutError::Misfit(what) => f.write_str(what),
            CutError::Differs(what) => write!(f, "the reduced BTF gives other results: {what}"),
        }
    }
}

impl std::error::Error for CutError {}

impl From<NotRelocated> for CutError {
    fn from(NotRelocated(why): NotRelocated) -> Self {
        CutError::Object(why)
    }
}

/// The BTF that is left, and how much it holds.
#[derive(Clone, Debug)]
pub struct Cut {
    /// BTF data.
    pub bytes: Vec<u8>,
    /// Types in it.
    pub types: usize,
    /// CO-RE relocations that have the same result with the cut BTF.
    pub relocations: usize,
}

/// Cuts `target` down to the types that the object in `bytes` and its loader ask for.
///
/// # Errors
/// The object cannot be relocated against `target` at all, or has other results with the cut BTF.
pub fn cut(bytes: &[u8], target: &Btf, asked: &Asked<'_>) -> Result<Cut, CutError> {
    Parts::read(bytes, |parts| cut_for(parts, target, asked))
}

fn cut_for(parts: &Parts<'_>, target: &Btf, asked: &Asked<'_>) -> Result<Cut, CutError> {
    let mut keep = Keep::of(target);
    keep.pointer_size();
    questions(parts, asked, |question| keep.question(question));
    let mut answers = Vec::new();
    parts.relocate::<CutError>(target, &mut |relocated| {
        is_fit(parts, relocated)?;
        relocated.resolution.iter().for_each(|resolution| keep.resolution(resolution));
        answers.push(Answer::of(relocated));
        Ok(())
    })?;
    let cut = keep.written();
    let small = Btf::parse(&cut).map_err(|error| CutError::Differs(error.to_string()))?;
    same(parts, asked, target, &small, &answers)?;
    Ok(Cut { types: small.len(), bytes: cut, relocations: answers.len() })
}

/// A question about a name.
#[derive(Clone, Copy, Debug)]
enum Question<'a> {
    Tracepoint(&'a str),
    Function(&'a str),
    Struct(&'a str),
    Field(&'a str, &'a str),
}

impl Question<'_> {
    /// The answer. Two BTFs must give the same.
    fn ask(self, btf: &Btf) -> Option<u64> {
        match self {
            Question::Tracepoint(name) => btf.tracepoint_args(name).map(|count| count as u64),
            Question::Function(name) => btf.function_args(name).map(|count| count as u64),
            Question::Struct(name) => btf.find(Kind::Struct, name).and_then(|id| btf.size_of(id)),
            Question::Field(name, path) => btf.field(name, path).map(|field| field.bit_offset),
        }
    }
}

/// All questions about names: the places where programs are attached, and the loader's questions.
fn questions(parts: &Parts<'_>, asked: &Asked<'_>, mut each: impl FnMut(Question<'_>)) {
    let mut sections = BTreeSet::new();
    for program in parts.object.programs.iter().filter(|program| sections.insert(program.section)) {
        let hook = hook(program.section);
        match hook.kind {
            "raw_tracepoint" | "raw_tracepoint.w" | "tp_btf" => each(Question::Tracepoint(hook.target)),
            "kprobe" | "kretprobe" | "fentry" | "fexit" | "fmod_ret" => each(Question::Function(hook.target)),
            "lsm" | "lsm_cgroup" => each(Question::Function(&format!("bpf_lsm_{}", hook.target))),
            "iter" => each(Question::Struct(&format!("bpf_iter__{}", hook.target))),
            _ => {}
        }
    }
    asked.structs.iter().for_each(|name| each(Question::Struct(name)));
    asked.fields.iter().for_each(|(name, path)| each(Question::Field(name, path)));
    asked.functions.iter().for_each(|name| each(Question::Function(name)));
}

/// Whether the relocation has a result at all, and does not depend on the whole BTF.
fn is_fit(parts: &Parts<'_>, relocated: &Relocated<'_, '_>) -> Result<(), CutError> {
    let misfit = |why: &str| Err(CutError::Misfit(format!("{}: {why}", relocated.place())));
    if let Outcome::Refused(why) = &relocated.outcome {
        return misfit(why);
    }
    if let Some(resolution) = &relocated.resolution
        && resolution.kind == RelocationKind::TypeIdTarget
        && resolution.target.is_some()
    {
        let name = type_name(parts.local, resolution.local.root);
        return misfit(&format!("it asks for the number of {name} in the kernel's whole BTF"));
    }
    Ok(())
}

/// Asks every question again.
fn same(parts: &Parts<'_>, asked: &Asked<'_>, whole: &Btf, small: &Btf, answers: &[Answer]) -> Result<(), CutError> {
    let mut before = answers.iter();
    parts.relocate::<CutError>(small, &mut |relocated| match before.next() {
        Some(answer) if *answer == Answer::of(relocated) => Ok(()),
        _ => Err(CutError::Differs(format!("{}: it resolves differently with the reduced BTF", relocated.place()))),
    })?;
    let mut differs = None;
    questions(parts, asked, |question| {
        if question.ask(whole) != question.ask(small) {
            differs.get_or_insert(format!("{question:?}"));
        }
    });
    differs.map_or(Ok(()), |what| Err(CutError::Differs(what)))
}

/// The part of a type that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Depth {
    /// Enough to show a field's type: its kind, name and size. The target of a pointer does not count.
    Field,
    /// Enough to find fields: all members, and all within these. The target of a pointer does not count.
    Inside,
    /// Enough to show that a type exists: as for a field, and the targets of pointers.
    Type,
    /// Enough to show that a type behind a pointer matches: the name of a struct; any other type whole.
    Behind,
    /// Enough to show that a type matches: everything.
    Whole,
}

/// The types that stay.
pub(super) struct Keep<'b> {
    btf: &'b Btf,
    kept: Subset,
    seen: HashSet<(TypeId, Depth)>,
}

impl<'b> Keep<'b> {
    /// No type of this BTF yet.
    pub(super) fn of(btf: &'b Btf) -> Self {
        Keep { btf, kept: Subset::new(), seen: HashSet::new() }
    }

    /// The types that stay, as a BTF of its own.
    pub(super) fn written(&self) -> Vec<u8> {
        self.btf.subset(&self.kept)
    }

    /// Keeps the type `long`: its size tells a reader the width of the kernel's pointers.
    pub(super) fn pointer_size(&mut self) {
        for name in ["long", "long int", "unsigned long", "long unsigned int"] {
            if let Some(id) = self.btf.find(Kind::Int, name) {
                self.keep(id, Depth::Field);
            }
        }
    }

    fn question(&mut self, question: Question<'_>) {
        let btf = self.btf;
        match question {
            Question::Tracepoint(name) => {
                let Some(typedef) = btf.find(Kind::Typedef, &format!("btf_trace_{name}")) else { return };
                self.keep(typedef, Depth::Field);
                self.keep(btf.target(btf.resolve(typedef)), Depth::Field);
            }
            Question::Function(name) => {
                btf.find(Kind::Func, name).into_iter().for_each(|id| self.keep(id, Depth::Field));
            }
            Question::Struct(name) => {
                btf.find(Kind::Struct, name).into_iter().for_each(|id| self.keep(id, Depth::Field));
            }
            Question::Field(name, path) => {
                let Some((root, raw)) = btf.field_path(name, path) else { return };
                self.path(root, &raw);
            }
        }
    }

    fn resolution(&mut self, resolution: &Resolution) {
        for spec in resolution.target.iter().chain(&resolution.others) {
            self.spec(resolution.kind, spec);
        }
    }

    fn spec(&mut self, kind: RelocationKind, spec: &Spec) {
        if kind.is_type() {
            return self.keep(spec.root, if kind == RelocationKind::TypeMatches { Depth::Whole } else { Depth::Type });
        }
        if kind.is_enumval() {
            self.keep(spec.root, Depth::Field);
            return self.entries(self.btf.resolve(spec.root), spec.raw.iter().copied());
        }
        // The first number is an element of an imagined array of the root type.
        self.path(spec.root, spec.raw.get(1..).unwrap_or_default());
    }

    /// Keeps the types on the path that these numbers of members and elements describe.
    fn path(&mut self, root: TypeId, raw: &[u32]) {
        let mut id = root;
        self.keep(id, Depth::Field);
        for index in raw {
            let inner = self.btf.resolve(id);
            id = match self.btf.array(inner) {
                Some(array) => array.elem,
                None => {
                    self.entries(inner, [*index]);
                    self.btf.member_as_written(inner, *index).map_or(TypeId::VOID, |member| member.ty)
                }
            };
            self.keep(id, Depth::Field);
        }
    }

    /// Keeps all members or constants of a type.
    pub(super) fn all_entries(&mut self, id: TypeId) {
        self.entries(id, 0..self.btf.entry_count(id));
    }

    fn entries(&mut self, id: TypeId, entries: impl IntoIterator<Item = u32>) {
        self.kept.entry(id).or_default().extend(entries);
    }

    pub(super) fn keep(&mut self, id: TypeId, depth: Depth) {
        let btf = self.btf;
        let mut todo = vec![(id, depth)];
        while let Some((id, depth)) = todo.pop() {
            let kind = btf.kind(id);
            if kind == Kind::Void || !self.seen.insert((id, depth)) {
                continue;
            }
            self.kept.entry(id).or_default();
            match kind {
                Kind::Ptr => match depth {
                    Depth::Field | Depth::Inside => {}
                    Depth::Type => todo.push((btf.target(id), Depth::Type)),
                    Depth::Behind | Depth::Whole => todo.push((btf.target(id), Depth::Behind)),
                },
                Kind::Struct | Kind::Union if matches!(depth, Depth::Inside | Depth::Whole) => {
                    self.all_entries(id);
                    todo.extend(btf.members(id).map(|member| (member.ty, depth)));
                }
                Kind::Enum | Kind::Enum64 if matches!(depth, Depth::Behind | Depth::Whole) => {
                    self.all_entries(id);
                }
                Kind::Array => {
                    todo.extend(btf.array(id).into_iter().flat_map(|a| [(a.elem, depth), (a.index, Depth::Field)]));
                }
                Kind::FuncProto => {
                    todo.extend(btf.proto_params(id).map(|param| (param.ty, depth)));
                    todo.push((btf.proto_return(id), depth));
                }
                Kind::Func | Kind::Var | Kind::DeclTag => todo.push((btf.target(id), depth)),
                _ if kind.is_modifier() => todo.push((btf.target(id), depth)),
                _ => {}
            }
        }
    }
}

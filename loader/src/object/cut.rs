//! A kernel's BTF cut down to what an object's CO-RE relocations, its hooks, and its loader ask of it: a few kilobytes to
//! ship to kernels that have none of their own.
//!
//! What is kept keeps its name, size and offsets, so that every question has the same answer as before. That is not taken
//! for granted: [`cut`] asks them all again.

use std::collections::{BTreeSet, HashSet};

use super::agree::{Answer, Parts};
use super::btf::{Btf, Kind, Subset, TypeId};
use super::hook::hook;
use super::relo::{Outcome, Relocated, RelocationKind, Resolution, Spec, type_name};

/// What a loader asks of a kernel's BTF, besides what the object does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Structs: whether there are such.
    pub structs: &'a [&'a str],
    /// Structs and paths in them: whether there are such, and where.
    pub fields: &'a [(&'a str, &'a str)],
    /// Functions: whether there are such, and how many arguments they have.
    pub functions: &'a [&'a str],
}

/// Why there is no cut BTF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutError {
    /// The object is not one that can be relocated.
    Object(String),
    /// The object does not fit the BTF at all, or asks for what only the whole BTF can tell.
    Misfit(String),
    /// A question would be answered otherwise.
    Differs(String),
}

impl std::fmt::Display for CutError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CutError::Object(what) | CutError::Misfit(what) => f.write_str(what),
            CutError::Differs(what) => write!(f, "the cut BTF would not do: {what}"),
        }
    }
}

impl std::error::Error for CutError {}

/// How many types, and what is left of them.
#[derive(Clone, Debug)]
pub struct Cut {
    /// BTF data.
    pub bytes: Vec<u8>,
    /// Types in it.
    pub types: usize,
    /// CO-RE relocations that come out the same with it.
    pub relocations: usize,
}

/// Cuts `target` down to what the object in `bytes` and its loader ask.
///
/// # Errors
/// The object cannot be relocated against `target` at all, or comes out otherwise with what is left of it.
pub fn cut(bytes: &[u8], target: &Btf, asked: &Asked<'_>) -> Result<Cut, CutError> {
    let mut result = None;
    Parts::read(bytes, &mut |parts| {
        result = Some(cut_for(parts, target, asked)?);
        Ok(())
    })?;
    result.ok_or_else(|| CutError::Object("it was not read".to_owned()))
}

fn cut_for(parts: &Parts<'_>, target: &Btf, asked: &Asked<'_>) -> Result<Cut, CutError> {
    let mut keep = Keep { btf: target, kept: Subset::new(), seen: HashSet::new() };
    keep.pointer_size();
    questions(parts, asked, |question| keep.question(question));
    let mut answers = Vec::new();
    parts.relocate(target, &mut |relocated| {
        is_fit(parts, relocated)?;
        relocated.resolution.iter().for_each(|resolution| keep.resolution(resolution));
        answers.push(Answer::of(relocated));
        Ok(())
    })?;
    let cut = target.subset(&keep.kept);
    let small = Btf::parse(&cut).map_err(|error| CutError::Differs(error.to_string()))?;
    same(parts, asked, target, &small, &answers)?;
    Ok(Cut { types: small.len(), bytes: cut, relocations: answers.len() })
}

/// What is asked by name.
#[derive(Clone, Copy, Debug)]
enum Question<'a> {
    Tracepoint(&'a str),
    Function(&'a str),
    Struct(&'a str),
    Field(&'a str, &'a str),
}

impl Question<'_> {
    /// The answer, of which two BTFs must give the same.
    fn ask(self, btf: &Btf) -> Option<u64> {
        match self {
            Question::Tracepoint(name) => btf.tracepoint_args(name).map(|count| count as u64),
            Question::Function(name) => btf.function_args(name).map(|count| count as u64),
            Question::Struct(name) => btf.find(Kind::Struct, name).and_then(|id| btf.size_of(id)),
            Question::Field(name, path) => btf.field(name, path).map(|field| field.bit_offset),
        }
    }
}

/// All that is asked by name: where programs are attached, and what the loader wants to know.
fn questions(parts: &Parts<'_>, asked: &Asked<'_>, mut each: impl FnMut(Question<'_>)) {
    let mut sections = BTreeSet::new();
    for program in parts.object.programs.iter().filter(|program| sections.insert(program.section)) {
        let hook = hook(program.section);
        match hook.kind {
            "raw_tracepoint" | "raw_tracepoint.w" | "tp_btf" => each(Question::Tracepoint(hook.target)),
            "kprobe" | "kretprobe" | "fentry" | "fexit" | "fmod_ret" => each(Question::Function(hook.target)),
            "iter" => each(Question::Struct(&format!("bpf_iter__{}", hook.target))),
            _ => {}
        }
    }
    asked.structs.iter().for_each(|name| each(Question::Struct(name)));
    asked.fields.iter().for_each(|(name, path)| each(Question::Field(name, path)));
    asked.functions.iter().for_each(|name| each(Question::Function(name)));
}

/// Whether the relocation comes out at all, and does not depend on the whole BTF.
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

/// Asks everything again.
fn same(parts: &Parts<'_>, asked: &Asked<'_>, whole: &Btf, small: &Btf, answers: &[Answer]) -> Result<(), CutError> {
    let mut before = answers.iter();
    parts.relocate(small, &mut |relocated| match before.next() {
        Some(answer) if *answer == Answer::of(relocated) => Ok(()),
        _ => Err(CutError::Differs(format!("{}: it comes out otherwise", relocated.place()))),
    })?;
    let mut differs = None;
    questions(parts, asked, |question| {
        if question.ask(whole) != question.ask(small) {
            differs.get_or_insert(format!("{question:?}"));
        }
    });
    differs.map_or(Ok(()), |what| Err(CutError::Differs(what)))
}

/// How much of a type is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Depth {
    /// What a field's type must show: its kind, name and size. A pointer's target is not looked at.
    Field,
    /// What a type must show to exist: the same, and what pointers point to.
    Type,
    /// What a type must show to match, behind a pointer: of structs the name, all else whole.
    Behind,
    /// What a type must show to match: everything.
    Whole,
}

/// The types that stay.
struct Keep<'b> {
    btf: &'b Btf,
    kept: Subset,
    seen: HashSet<(TypeId, Depth)>,
}

impl Keep<'_> {
    /// By its `long` a reader knows how wide the kernel's pointers are.
    fn pointer_size(&mut self) {
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
        // The first number is an element of an array of the root type that is only imagined.
        self.path(spec.root, spec.raw.get(1..).unwrap_or_default());
    }

    /// Keeps what lies on the way that these numbers of members and elements lead.
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

    fn entries(&mut self, id: TypeId, entries: impl IntoIterator<Item = u32>) {
        self.kept.entry(id).or_default().extend(entries);
    }

    fn keep(&mut self, id: TypeId, depth: Depth) {
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
                    Depth::Field => {}
                    Depth::Type => todo.push((btf.target(id), Depth::Type)),
                    Depth::Behind | Depth::Whole => todo.push((btf.target(id), Depth::Behind)),
                },
                Kind::Struct | Kind::Union if depth == Depth::Whole => {
                    self.entries(id, 0..btf.entry_count(id));
                    todo.extend(btf.members(id).map(|member| (member.ty, Depth::Whole)));
                }
                Kind::Enum | Kind::Enum64 if matches!(depth, Depth::Behind | Depth::Whole) => {
                    self.entries(id, 0..btf.entry_count(id));
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

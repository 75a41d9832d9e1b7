//! Chooses the definitions, and puts them in an order that compiles.

mod choose;
mod constants;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::CdefError;
use super::list::{Entry, is_identifier};
use crate::btf::{Btf, Kind, TypeId};

/// The most definitions that need each other in a chain. Real kernels stay below 50.
const MAX_NESTING: usize = 256;

/// The text may have so many bytes. Beyond, the types count as endless: nested anonymous types can double the text at every
/// level.
const MAX_TEXT: usize = 32 << 20;

/// Which members of a type are wanted.
enum Pick {
    Whole,
    /// Members by name, and whether the BTF may lack each.
    Only(BTreeMap<String, bool>),
}

/// Whether a type must be complete, or a declaration is enough (behind a pointer).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Need {
    Declared,
    Complete,
}

#[derive(PartialEq, Eq)]
enum State {
    Begun,
    Done,
}

struct Maker<'a> {
    btf: &'a Btf,
    /// The first type of each listed name, by kind.
    listed: HashMap<(Kind, &'a str), TypeId>,
    picks: HashMap<TypeId, Pick>,
    /// The C name of each named type.
    names: HashMap<TypeId, String>,
    /// How often each tag and each other name was used: struct tags are a namespace of their own.
    tags: HashMap<String, u32>,
    idents: HashMap<String, u32>,
    /// Enum constants that were written, with their enum.
    constants: HashSet<(TypeId, String)>,
    state: HashMap<TypeId, State>,
    visited: HashSet<(TypeId, Need)>,
    /// The `struct foo` that are declared before all definitions.
    declared: BTreeSet<String>,
    /// The definitions, in order.
    items: Vec<String>,
    /// Bytes that may still be written.
    budget: usize,
}

/// The definitions, without the frame of a header.
pub(super) fn definitions(btf: &Btf, entries: &[Entry]) -> Result<String, CdefError> {
    let wanted: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let mut listed = HashMap::new();
    for id in btf.ids().filter(|id| wanted.contains(btf.name(*id))) {
        listed.entry((btf.kind(id), btf.name(id))).or_insert(id);
    }
    let mut maker = Maker {
        btf,
        listed,
        picks: HashMap::new(),
        names: HashMap::new(),
        tags: HashMap::new(),
        idents: HashMap::new(),
        constants: HashSet::new(),
        state: HashMap::new(),
        visited: HashSet::new(),
        declared: BTreeSet::new(),
        items: Vec::new(),
        budget: MAX_TEXT,
    };
    let mut roots = Vec::new();
    for entry in entries.iter().filter(|e| !e.name.is_empty()) {
        let root = maker.choose(entry).map_err(|error| error.on_line(entry.line))?;
        roots.push((entry, root));
    }
    // A listed type gets the plain name, even if other types of the kernel have the same name.
    for (_, root) in &roots {
        if let Some(id) = root {
            maker.name_of(*id)?;
        }
    }
    for (entry, root) in roots {
        match root {
            Some(id) => maker.need(id, Need::Complete, 0).map_err(|error| error.on_line(entry.line))?,
            None => maker.push(format!("/* {}: this kernel has none */", describe(entry)))?,
        }
    }
    maker.loose_constants(entries)?;
    let declared = maker.declared.iter().map(|tag| format!("{tag};"));
    Ok(lay_out(declared.chain(maker.items.iter().cloned())))
}

/// Puts definitions of one line next to each other, and empty lines around longer ones.
fn lay_out(items: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    let mut before = "";
    for item in items {
        let kind = if item.contains('\n') { "long" } else { item.split(' ').next().map_or("", one_line_kind) };
        if !before.is_empty() && (kind != before || kind == "long") {
            text.push('\n');
        }
        before = kind;
        text.push_str(&item);
        text.push('\n');
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn one_line_kind(word: &str) -> &'static str {
    if word == "typedef" { "typedef" } else { "other" }
}

/// `struct foo`, for messages.
fn describe(entry: &Entry) -> String {
    match entry.kind {
        Some(kind) => format!("{} {}", keyword(kind), entry.name),
        None => entry.name.clone(),
    }
}

fn keyword(kind: Kind) -> &'static str {
    match kind {
        Kind::Struct => "struct",
        Kind::Union => "union",
        Kind::Typedef => "typedef",
        _ => "enum",
    }
}

impl<'a> Maker<'a> {
    fn push(&mut self, item: String) -> Result<(), CdefError> {
        self.spend(item.len())?;
        self.items.push(item);
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<(), CdefError> {
        match self.budget.checked_sub(bytes.max(1)) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(CdefError::new(format!("the definitions take more than {} MiB", MAX_TEXT >> 20))),
        }
    }

    /// The type's name in C. A kernel can have several types of one name; all but the first get a suffix such as `___2`,
    /// which relocation ignores.
    fn name_of(&mut self, id: TypeId) -> Result<String, CdefError> {
        if let Some(name) = self.names.get(&id) {
            return Ok(name.clone());
        }
        let name = self.btf.name(id);
        if name.is_empty() {
            return Ok(String::new());
        }
        let is_tag = self.btf.kind(id) != Kind::Typedef;
        let name = claim(if is_tag { &mut self.tags } else { &mut self.idents }, name)?;
        self.names.insert(id, name.clone());
        Ok(name)
    }

    /// Writes the definitions that must precede a use of `id`, and `id` itself if it is a definition.
    fn need(&mut self, id: TypeId, need: Need, depth: usize) -> Result<(), CdefError> {
        if !self.visited.insert((id, need)) {
            return match self.state.get(&id) {
                Some(State::Begun) if need == Need::Complete => Err(self.error(id, "contains itself")),
                _ => Ok(()),
            };
        }
        if depth > MAX_NESTING {
            return Err(self.error(id, "is nested too deep"));
        }
        let next = depth + 1;
        match self.btf.kind(id) {
            Kind::Void | Kind::Int | Kind::Float => Ok(()),
            Kind::Ptr => self.need(self.btf.target(id), Need::Declared, next),
            Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag => self.need(self.btf.target(id), need, next),
            // C needs the complete element type even behind a pointer to the array.
            Kind::Array => match self.btf.array(id) {
                Some(array) => self.need(array.elem, Need::Complete, next),
                None => Ok(()),
            },
            Kind::FuncProto => {
                self.need(self.btf.proto_return(id), Need::Declared, next)?;
                for param in self.btf.proto_params(id) {
                    self.need(param.ty, Need::Declared, next)?;
                }
                Ok(())
            }
            Kind::Typedef => self.need_typedef(id, need, next),
            Kind::Struct | Kind::Union => self.need_composite(id, need, next),
            Kind::Enum | Kind::Enum64 if self.btf.name(id).is_empty() => Ok(()),
            Kind::Enum | Kind::Enum64 => {
                if self.state.insert(id, State::Done).is_none() {
                    let text = self.enumeration(id, "")?;
                    self.push(format!("{text};"))?;
                }
                Ok(())
            }
            Kind::Fwd => self.declare_ahead(id),
            Kind::Func | Kind::Var | Kind::Datasec | Kind::DeclTag | Kind::Unknown => {
                Err(self.error(id, "is not a type in C"))
            }
        }
    }

    fn need_typedef(&mut self, id: TypeId, need: Need, depth: usize) -> Result<(), CdefError> {
        // The compiler has this type built in.
        if self.btf.name(id) == "__builtin_va_list" {
            return Ok(());
        }
        let target = self.btf.target(id);
        if self.state.get(&id) == Some(&State::Begun) {
            return Err(self.error(id, "contains itself"));
        }
        if !self.state.contains_key(&id) {
            self.state.insert(id, State::Begun);
            self.need(target, Need::Declared, depth)?;
            let name = self.name_of(id)?;
            let text = self.declare(target, name, 0, "")?;
            self.push(format!("typedef {text};"))?;
            self.state.insert(id, State::Done);
        }
        if need == Need::Complete {
            self.need(target, Need::Complete, depth)?;
        }
        Ok(())
    }

    fn need_composite(&mut self, id: TypeId, need: Need, depth: usize) -> Result<(), CdefError> {
        let named = !self.btf.name(id).is_empty();
        if named && need == Need::Declared {
            return self.declare_ahead(id);
        }
        // An unnamed type is written where it is used; only the types that it contains must precede it.
        if named {
            self.state.insert(id, State::Begun);
        }
        for member in self.picked(id) {
            self.need(member.ty, Need::Complete, depth)?;
        }
        if named {
            let text = self.composite(id, 0, "")?;
            self.push(format!("{text};"))?;
            self.state.insert(id, State::Done);
        }
        Ok(())
    }

    fn declare_ahead(&mut self, id: TypeId) -> Result<(), CdefError> {
        let tag = self.tag(id)?;
        self.spend(tag.len())?;
        self.declared.insert(tag);
        Ok(())
    }

    /// `struct foo`. A forward declaration stands for any struct of that name, so it uses up no name of its own.
    fn tag(&mut self, id: TypeId) -> Result<String, CdefError> {
        if self.btf.kind(id) == Kind::Fwd {
            let name = self.btf.name(id);
            if !is_identifier(name) {
                return Err(CdefError::new(format!("{name:?} is not a C name")));
            }
            let word = if self.btf.fwd_is_union(id) { "union" } else { "struct" };
            return Ok(format!("{word} {name}"));
        }
        let name = self.name_of(id)?;
        Ok(format!("{} {name}", keyword(self.btf.kind(id))))
    }

    fn error(&self, id: TypeId, what: &str) -> CdefError {
        let kind = self.btf.kind(id).label();
        CdefError::new(format!("type {id} ({kind} {:?}) {what}", self.btf.name(id)))
    }
}

/// Reserves `name`, or `name___2` and so on if `name` is in use.
fn claim(taken: &mut HashMap<String, u32>, name: &str) -> Result<String, CdefError> {
    if !is_identifier(name) {
        return Err(CdefError::new(format!("{name:?} is not a C name")));
    }
    let count = taken.entry(name.to_owned()).and_modify(|n| *n += 1).or_insert(1);
    Ok(if *count == 1 { name.to_owned() } else { format!("{name}___{count}") })
}

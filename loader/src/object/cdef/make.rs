//! Chooses what to define, and puts it in an order that compiles.

mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use super::CdefError;
use super::list::{Entry, Name, is_identifier};
use crate::object::btf::{Btf, Enumerator, Kind, Member, TypeId};
use crate::object::nearest::{hint, nearest};

/// How deep one definition may need another. Real kernels stay below 50.
const MAX_NESTING: usize = 256;

/// Bytes of text after which the types count as endless: nested anonymous types can double the text at every level.
const MAX_TEXT: usize = 32 << 20;

/// Which members of a type are wanted.
enum Pick {
    Whole,
    /// Names, and whether each may be missing.
    Only(BTreeMap<String, bool>),
}

/// Whether a type must be complete, or a declaration will do (behind a pointer).
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
    /// How often each tag and each other name was given away: struct tags are a namespace of their own.
    tags: HashMap<String, u32>,
    idents: HashMap<String, u32>,
    /// Enum constants that were written, by enum.
    constants: HashSet<(TypeId, String)>,
    state: HashMap<TypeId, State>,
    visited: HashSet<(TypeId, Need)>,
    /// `struct foo` that are declared ahead of everything else.
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
    // What is listed gets the plain name, whatever else in the kernel is called the same.
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

/// Definitions of one line next to each other, longer ones with an empty line around.
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
    /// Finds the type of an entry and remembers which members are wanted. `None` if it is optional and missing.
    fn choose(&mut self, entry: &Entry) -> Result<Option<TypeId>, CdefError> {
        let kinds: &[Kind] = match entry.kind {
            Some(Kind::Enum) => &[Kind::Enum, Kind::Enum64],
            Some(Kind::Struct) => &[Kind::Struct],
            Some(Kind::Union) => &[Kind::Union],
            Some(Kind::Typedef) => &[Kind::Typedef],
            _ => &[Kind::Struct, Kind::Union, Kind::Typedef, Kind::Enum, Kind::Enum64],
        };
        let Some(id) = kinds.iter().find_map(|kind| self.listed.get(&(*kind, entry.name.as_str())).copied()) else {
            if entry.optional {
                return Ok(None);
            }
            let known = self.btf.ids().filter(|id| kinds.contains(&self.btf.kind(*id))).map(|id| self.btf.name(id));
            let hint = hint(&nearest(&entry.name, known));
            return Err(CdefError::new(format!("this BTF has no {}{hint}", describe(entry))));
        };
        // A typedef of an unnamed struct is the only name that its members can be listed under.
        let target = if self.btf.kind(id) == Kind::Typedef { self.btf.resolve(id) } else { id };
        let Some(members) = &entry.members else {
            self.picks.insert(target, Pick::Whole);
            return Ok(Some(id));
        };
        let has_tag = self.btf.kind(target).is_composite() || self.btf.kind(target).is_enum();
        if target != id && has_tag && !self.btf.name(target).is_empty() {
            let tag = format!("{} {}", keyword(self.btf.kind(target)), self.btf.name(target));
            return Err(CdefError::new(format!("typedef {} stands for {tag}: list the members of that", entry.name)));
        }
        for member in members {
            self.check_has(target, entry, member)?;
        }
        let pick = self.picks.entry(target).or_insert_with(|| Pick::Only(BTreeMap::new()));
        if let Pick::Only(names) = pick {
            for member in members {
                let optional = entry.optional || member.optional;
                names.entry(member.name.clone()).and_modify(|o| *o &= optional).or_insert(optional);
            }
        }
        Ok(Some(id))
    }

    fn check_has(&self, id: TypeId, entry: &Entry, wanted: &Name) -> Result<(), CdefError> {
        let kind = self.btf.kind(id);
        let (what, all): (_, Vec<&str>) = if kind.is_composite() {
            if self.btf.find_member(id, &wanted.name).is_some() {
                return Ok(());
            }
            ("member", self.flat_members(id, &|_| true).iter().map(|m| m.name).collect())
        } else if kind.is_enum() {
            if self.btf.enumerators(id).any(|e| e.name == wanted.name) {
                return Ok(());
            }
            ("constant", self.btf.enumerators(id).map(|e| e.name).collect())
        } else {
            return Err(CdefError::new(format!("{} has no members", describe(entry))));
        };
        if entry.optional || wanted.optional {
            return Ok(());
        }
        let hint = hint(&nearest(&wanted.name, all.into_iter()));
        Err(CdefError::new(format!("{} has no {what} {}{hint}", describe(entry), wanted.name)))
    }

    /// Members in the kernel's order, those of anonymous structs and unions in place of these.
    fn flat_members(&self, id: TypeId, wanted: &dyn Fn(&str) -> bool) -> Vec<Member<'a>> {
        let mut found = Vec::new();
        let mut seen = HashSet::from([id]);
        // Not recursive: a hostile file nests as deep as it is long.
        let mut todo: Vec<Member<'a>> = self.btf.members(id).collect();
        todo.reverse();
        while let Some(member) = todo.pop() {
            if !member.name.is_empty() {
                if wanted(member.name) {
                    found.push(member);
                }
                continue;
            }
            let inner = self.btf.resolve(member.ty);
            if self.btf.kind(inner).is_composite() && seen.insert(inner) {
                let before = todo.len();
                todo.extend(self.btf.members(inner));
                todo[before..].reverse();
            }
        }
        found
    }

    /// Members of a definition, as it will be written.
    fn picked(&self, id: TypeId) -> Vec<Member<'a>> {
        match self.picks.get(&id) {
            Some(Pick::Only(names)) => self.flat_members(id, &|name| names.contains_key(name)),
            _ => self.btf.members(id).collect(),
        }
    }

    fn picked_constants(&self, id: TypeId) -> Vec<Enumerator<'a>> {
        match self.picks.get(&id) {
            Some(Pick::Only(names)) => self.btf.enumerators(id).filter(|e| names.contains_key(e.name)).collect(),
            _ => self.btf.enumerators(id).collect(),
        }
    }

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

    /// The type's name in C. A kernel can have several types of one name; all but the first get a `___2` behind it,
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

    /// Writes what must come before `id` can be used, and `id` itself if it is a definition.
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
            // C wants the element complete even behind a pointer to the array.
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
        // The compiler has this one built in.
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
        // An unnamed one is written where it is used; only what it contains must be there before.
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

    /// `struct foo`. A forward declaration means whatever struct has the name, so it takes no name of its own.
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

    /// Constants that are wanted without their enum, those of one enum together. Unnamed enums are searched first.
    fn loose_constants(&mut self, entries: &[Entry]) -> Result<(), CdefError> {
        let btf = self.btf;
        let all = || btf.ids().filter(|id| btf.kind(*id).is_enum());
        // Where each constant is, in one walk over all enums.
        let mut homes: HashMap<&str, Option<(bool, TypeId, Enumerator<'a>)>> = HashMap::new();
        let loose = entries.iter().filter(|entry| entry.name.is_empty());
        homes.extend(loose.clone().flat_map(|entry| entry.members.iter().flatten()).map(|n| (n.name.as_str(), None)));
        if homes.is_empty() {
            return Ok(());
        }
        for id in all() {
            let named = !btf.name(id).is_empty();
            for constant in btf.enumerators(id) {
                let Some(home) = homes.get_mut(constant.name) else { continue };
                if home.is_none_or(|(was_named, ..)| was_named && !named) {
                    *home = Some((named, id, constant));
                }
            }
        }
        // By enum, in the order of the list: that of the kernel changes from one to the next.
        let mut groups: Vec<(TypeId, Vec<Enumerator<'a>>)> = Vec::new();
        for entry in loose {
            for wanted in entry.members.iter().flatten() {
                match homes.get(wanted.name.as_str()).copied().flatten() {
                    Some((_, id, constant)) => match groups.iter_mut().find(|(other, _)| *other == id) {
                        Some((_, constants)) => constants.push(constant),
                        None => groups.push((id, vec![constant])),
                    },
                    None if entry.optional || wanted.optional => {
                        self.push(format!("/* {}: this kernel has none */", wanted.name))?;
                    }
                    None => {
                        let known = all().flat_map(|id| btf.enumerators(id)).map(|e| e.name);
                        let hint = hint(&nearest(&wanted.name, known));
                        let what = format!("this BTF has no enum with a constant {}{hint}", wanted.name);
                        return Err(CdefError::new(what).on_line(entry.line));
                    }
                }
            }
        }
        for (id, mut constants) in groups {
            constants.retain(|c| self.constants.insert((id, c.name.to_owned())));
            if constants.is_empty() {
                continue;
            }
            let mut text = "enum {\n".to_owned();
            for constant in &constants {
                let _ = writeln!(text, "\t{}", self.constant(constant)?);
            }
            self.push(format!("{text}}};"))?;
        }
        Ok(())
    }
}

/// Gives `name` away, or `name___2` and so on if it is taken.
fn claim(taken: &mut HashMap<String, u32>, name: &str) -> Result<String, CdefError> {
    if !is_identifier(name) {
        return Err(CdefError::new(format!("{name:?} is not a C name")));
    }
    let count = taken.entry(name.to_owned()).and_modify(|n| *n += 1).or_insert(1);
    Ok(if *count == 1 { name.to_owned() } else { format!("{name}___{count}") })
}

//! The text of one definition.

use std::fmt::Write as _;

use super::{Maker, Pick, claim, keyword};
use crate::btf::{Enumerator, Kind, MAX_DEPTH, TypeId};
use crate::cdef::CdefError;
use crate::cdef::list::is_identifier;

impl Maker<'_> {
    /// A struct's definition without the semicolon.
    pub(super) fn composite(&mut self, id: TypeId, depth: usize, indent: &str) -> Result<String, CdefError> {
        let name = self.name_of(id)?;
        let space = if name.is_empty() { "" } else { " " };
        let mut text = format!("{}{space}{name} {{\n", keyword(self.btf.kind(id)));
        self.spend(text.len() + indent.len())?;
        let inner = format!("{indent}\t");
        let members = self.picked(id);
        for member in &members {
            let anonymous = member.name.is_empty();
            // An unnamed bitfield only fills space, which means nothing here.
            if anonymous && !self.btf.kind(self.btf.resolve(member.ty)).is_composite() {
                continue;
            }
            if !anonymous && !is_identifier(member.name) {
                return Err(self.error(id, &format!("has a member that is not a C name: {:?}", member.name)));
            }
            let mut declared = self.declare(member.ty, member.name.to_owned(), depth + 1, &inner)?;
            if member.bitfield_size > 0 {
                let _ = write!(declared, ":{}", member.bitfield_size);
            }
            let _ = writeln!(text, "{inner}{declared};");
            self.spend(inner.len() + member.name.len() + 2)?;
        }
        if let Some(Pick::Only(names)) = self.picks.get(&id) {
            for name in names.keys().filter(|n| !members.iter().any(|m| m.name == **n)) {
                let _ = writeln!(text, "{inner}/* {name}: this kernel has none */");
            }
        }
        let _ = write!(text, "{indent}}}");
        Ok(text)
    }

    /// An enum's definition without the semicolon.
    pub(super) fn enumeration(&mut self, id: TypeId, indent: &str) -> Result<String, CdefError> {
        let name = self.name_of(id)?;
        let space = if name.is_empty() { "" } else { " " };
        let mut text = format!("enum{space}{name} {{\n");
        self.spend(text.len())?;
        for constant in self.picked_constants(id) {
            self.constants.insert((id, constant.name.to_owned()));
            let line = self.constant(&constant)?;
            let _ = writeln!(text, "{indent}\t{line}");
        }
        let _ = write!(text, "{indent}}}");
        // The enum's size decides how many bytes are read from the kernel.
        match self.btf.size_of(id) {
            Some(1) => text.push_str(" __attribute__((mode(QI)))"),
            Some(2) => text.push_str(" __attribute__((mode(HI)))"),
            Some(8) => text.push_str(" __attribute__((mode(DI)))"),
            _ => {}
        }
        Ok(text)
    }

    pub(super) fn constant(&mut self, constant: &Enumerator<'_>) -> Result<String, CdefError> {
        let name = claim(&mut self.idents, constant.name)?;
        let value = match constant.value {
            // C has no literal for this value: the minus sign is an operator.
            v if v == i128::from(i64::MIN) => "(-9223372036854775807LL - 1)".to_owned(),
            v if v > i128::from(i64::MAX) => format!("{v}ULL"),
            v if v > i128::from(u32::MAX) || v < i128::from(i32::MIN) => format!("{v}LL"),
            v => v.to_string(),
        };
        self.spend(name.len() + value.len() + 8)?;
        Ok(format!("{name} = {value},"))
    }

    /// `inner` declared with type `id`: C's declarations are written from the inside out.
    pub(super) fn declare(
        &mut self,
        id: TypeId,
        inner: String,
        depth: usize,
        indent: &str,
    ) -> Result<String, CdefError> {
        if depth > MAX_DEPTH {
            return Err(self.error(id, "is nested too deep"));
        }
        let mut inner = inner;
        let mut qualifiers = String::new();
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let base = match self.btf.kind(id) {
                Kind::Ptr => {
                    inner = format!("*{qualifiers}{inner}");
                    qualifiers.clear();
                    id = self.btf.target(id);
                    continue;
                }
                kind @ (Kind::Const | Kind::Volatile) => {
                    let word = if kind == Kind::Const { "const " } else { "volatile " };
                    if !qualifiers.contains(word) {
                        qualifiers.push_str(word);
                    }
                    id = self.btf.target(id);
                    continue;
                }
                // Neither changes the bytes that are read, and older compilers do not know the tag.
                Kind::Restrict | Kind::TypeTag => {
                    id = self.btf.target(id);
                    continue;
                }
                Kind::Array => {
                    let Some(array) = self.btf.array(id) else { break };
                    inner = format!("{}[{}]", parenthesised(inner), array.nelems);
                    id = array.elem;
                    continue;
                }
                Kind::FuncProto => {
                    let params = self.params(id, depth, indent)?;
                    inner = format!("{}({params})", parenthesised(inner));
                    // C has no qualified function type.
                    qualifiers.clear();
                    id = self.btf.proto_return(id);
                    continue;
                }
                Kind::Void => "void".to_owned(),
                Kind::Int | Kind::Float => {
                    let name = self.btf.name(id);
                    if !name.split(' ').all(is_identifier) {
                        return Err(self.error(id, "has a name that C does not know"));
                    }
                    name.to_owned()
                }
                Kind::Typedef if self.btf.name(id) == "__builtin_va_list" => "__builtin_va_list".to_owned(),
                Kind::Typedef => self.name_of(id)?,
                Kind::Struct | Kind::Union if self.btf.name(id).is_empty() => self.composite(id, depth + 1, indent)?,
                Kind::Enum | Kind::Enum64 if self.btf.name(id).is_empty() => self.enumeration(id, indent)?,
                Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Fwd => self.tag(id)?,
                Kind::Func | Kind::Var | Kind::Datasec | Kind::DeclTag | Kind::Unknown => {
                    return Err(self.error(id, "is not a type in C"));
                }
            };
            self.spend(base.len().min(inner.len()) + qualifiers.len())?;
            let space = if inner.is_empty() { "" } else { " " };
            return Ok(format!("{qualifiers}{base}{space}{inner}"));
        }
        Err(self.error(id, "never ends"))
    }

    fn params(&mut self, proto: TypeId, depth: usize, indent: &str) -> Result<String, CdefError> {
        let btf = self.btf;
        let mut texts = Vec::new();
        for param in btf.proto_params(proto) {
            // Parameter names would mean nothing here. A parameter of type void is BTF's form of "...".
            let text = if param.ty.is_void() {
                "...".to_owned()
            } else {
                self.declare(param.ty, String::new(), depth + 1, indent)?
            };
            self.spend(text.len())?;
            texts.push(text);
        }
        Ok(if texts.is_empty() { "void".to_owned() } else { texts.join(", ") })
    }
}

/// A pointer to an array or function needs parentheses.
fn parenthesised(inner: String) -> String {
    if inner.starts_with('*') { format!("({inner})") } else { inner }
}

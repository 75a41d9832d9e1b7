//! The list of types to define: one entry a line.
//!
//! ```text
//! # a comment
//! struct in6_addr                      the whole type, with all that it needs
//! struct sock: sk_protocol sk_type     only these members
//! typedef __u32
//! enum bpf_map_type
//! enum: BPF_ANY TCP_ESTABLISHED        constants, whichever enum has them
//! ? struct foo: bar                    may be missing
//! struct sock: ?sk_foo                 may be missing
//! ```

use super::CdefError;
use crate::btf::Kind;

/// A member or constant to include.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The member's or constant's name.
    pub name: String,
    /// True if the BTF may lack it.
    pub optional: bool,
}

/// A type to define.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The kind of the type; `None` to take the first type that has the name.
    pub kind: Option<Kind>,
    /// The type's name; empty for constants of any enum.
    pub name: String,
    /// The members or constants to include; `None` for all.
    pub members: Option<Vec<Name>>,
    /// True if the BTF may lack the type.
    pub optional: bool,
    /// Line in the list, from 1; 0 if the entry comes from elsewhere.
    pub line: usize,
}

/// True if `name` can stand in C source. BTF from other languages has names that cannot.
pub(super) fn is_identifier(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn identifier(word: &str) -> Result<String, CdefError> {
    if is_identifier(word) { Ok(word.to_owned()) } else { Err(CdefError::new(format!("{word:?} is not a C name"))) }
}

/// Splits a leading `?` off.
fn optional(text: &str) -> (bool, &str) {
    match text.strip_prefix('?') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text),
    }
}

/// Reads one entry, such as `struct sock: sk_type`. A leading kind may be left out.
///
/// # Errors
/// The text is no entry; the error shows the form of an entry.
pub fn parse_entry(text: &str) -> Result<Entry, CdefError> {
    let (may_lack, text) = optional(text.trim());
    let (head, tail) = match text.split_once(':') {
        Some((head, tail)) => (head, Some(tail)),
        None => (text, None),
    };
    let words: Vec<&str> = head.split_whitespace().collect();
    let kind_of = |word: &str| match word {
        "struct" => Some(Kind::Struct),
        "union" => Some(Kind::Union),
        "enum" => Some(Kind::Enum),
        "typedef" => Some(Kind::Typedef),
        _ => None,
    };
    let (kind, name) = match words.as_slice() {
        ["enum"] if tail.is_some() => (Some(Kind::Enum), String::new()),
        [name] if kind_of(name).is_none() => (None, identifier(name)?),
        [kind, name] if kind_of(kind).is_some() => (kind_of(kind), identifier(name)?),
        _ => {
            let what = format!("{text:?} is not a type: expected `struct|union|enum|typedef NAME[: MEMBER...]`");
            return Err(CdefError::new(what));
        }
    };
    let members = match tail {
        None => None,
        Some(tail) => {
            let mut names = Vec::new();
            for word in tail.split_whitespace() {
                let (may_lack, word) = optional(word);
                names.push(Name { name: identifier(word)?, optional: may_lack });
            }
            if names.is_empty() {
                return Err(CdefError::new(format!(
                    "{text:?} has a colon but no member; without it the whole type is meant"
                )));
            }
            Some(names)
        }
    };
    Ok(Entry { kind, name, members, optional: may_lack, line: 0 })
}

/// Reads a list: one entry a line, `#` begins a comment.
///
/// # Errors
/// The first line that is no entry.
pub fn parse_list(text: &str) -> Result<Vec<Entry>, CdefError> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            let entry = parse_entry(line).map_err(|error| error.on_line(index + 1))?;
            entries.push(Entry { line: index + 1, ..entry });
        }
    }
    Ok(entries)
}

//! C definitions of kernel types, made from BTF. The file `vmlinux/vmlinux.h` consists of them.
//!
//! A type is given whole, with all that its definition needs, or trimmed to the members that are read. Every access through
//! these definitions is relocated (CO-RE): libbpf looks the member up by name in the running kernel's type. So neither order
//! nor offsets matter here. A member that the kernel keeps in an anonymous struct or union stands at the top level: libbpf's
//! lookup also descends into anonymous members of the kernel's type.
//!
//! A member's own type does matter: the type's size decides how many bytes are read.

mod list;
mod make;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::fmt;

pub use list::{Entry, Name, parse_entry, parse_list};

use super::btf::Btf;

/// The reason why there is no definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdefError {
    /// The line of the list that the error is about, from 1; 0 if the error is about no line.
    pub line: usize,
    /// A description of the fault.
    pub what: String,
}

impl CdefError {
    fn new(what: impl Into<String>) -> Self {
        CdefError { line: 0, what: what.into() }
    }

    fn on_line(self, line: usize) -> Self {
        CdefError { line: if self.line == 0 { line } else { self.line }, ..self }
    }
}

impl fmt::Display for CdefError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for CdefError {}

/// A C header with the definitions of `entries`, in an order that compiles. The same BTF and entries give the same bytes.
///
/// `made_by` is the command that the header's first comment names; no fact about the host goes into the header.
///
/// # Errors
/// A type or member is not optional, and the BTF does not have it; the error names the closest names that the BTF has. Or C
/// cannot express a type.
pub fn header(btf: &Btf, entries: &[Entry], made_by: &str) -> Result<String, CdefError> {
    let body = make::definitions(btf, entries)?;
    // A command line may hold any text, also the end of a comment.
    let made_by: String = made_by.replace("*/", "* /").replace(|c: char| c.is_control(), " ");
    Ok(format!(
        "/*
 * Kernel types, from BTF. Made by: {made_by}
 *
 * Only what is read is here. Offsets and order mean nothing: each access is relocated (CO-RE), by the member's name, to
 * the kernel it runs on. That is also why members of the kernel's anonymous structs and unions may stand at the top
 * level here: the relocation looks into anonymous members by itself. Do not take sizeof() of these structs.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)

{body}#pragma clang attribute pop

#endif /* __VMLINUX_H__ */
"
    ))
}

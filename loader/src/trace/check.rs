//! Checks that the object is sane and is one of ours. The kernel is not asked.

use std::ffi::{CStr, CString};

use anyhow::{Context, Error, Result, anyhow};

use crate::error::Exit;
use crate::model::{layouts, maps};
use crate::object::facts::{Facts, MOST_FUNCTIONS};
use crate::object::hook::{Hook, hook};
use crate::object::relo::type_name;
use crate::object::search::Roots;
use crate::object::{self, Btf, BtfExt, ObjectFile, Relocations};

/// An object that passed the checks, and may be given to libbpf.
pub struct CheckedObject<'a> {
    bytes: &'a [u8],
    license: CString,
    programs: Vec<&'a str>,
    /// The hook of each program, as the name of its section says.
    hooks: Vec<Hook<'a>>,
    roots: Option<Roots>,
}

/// Read the object without the kernel: it must be sane, two parsers must agree on it, and its types must describe our
/// events.
///
/// # Errors
/// [`Exit::Object`]: the message says which part of the object is wrong, and why.
pub fn check_object(bytes: &[u8]) -> Result<CheckedObject<'_>> {
    let refused = |error: Error| error.context(Exit::Object);
    let file = ObjectFile::parse(bytes).map_err(|error| refused(error.into()))?;
    object::compare_parsers(bytes, &file).map_err(|error| refused(error.into()))?;
    if file.is_little_endian != cfg!(target_endian = "little") {
        return Err(refused(anyhow!("the object is for a machine with the other byte order")));
    }
    let btf = file.btf.ok_or_else(|| refused(anyhow!("the object has no .BTF section: compile it with -g")))?;
    let btf = Btf::parse(btf).context("the object's BTF").map_err(refused)?;
    // libbpf follows a chain of modifiers without a limit.
    if let Some(id) = btf.cycle() {
        return Err(refused(anyhow!("its types: {} {id} contains itself", type_name(&btf, id))));
    }
    let ext = file.btf_ext.map(|data| BtfExt::parse(data, &btf)).transpose().map_err(|error| refused(error.into()))?;
    let ext = ext.unwrap_or_default();
    let code = Relocations::new(bytes, &file, &btf, &ext, None).map_err(|error| refused(error.into()))?;
    // libbpf follows calls of any depth recursively, on its stack.
    if code.functions().len() >= MOST_FUNCTIONS {
        Facts::of(bytes, &file, Some(&btf), &code).map_err(|what| refused(anyhow!(what)))?;
    }
    layouts::check(&btf)?;
    maps::check(&btf)?;
    Ok(CheckedObject {
        bytes,
        license: CString::new(file.license.unwrap_or_default()).unwrap_or_default(), // its text ends before a NUL
        programs: file.programs.iter().map(|program| program.name).collect(),
        hooks: file.programs.iter().map(|program| hook(program.section)).collect(),
        roots: Roots::of(&btf, &ext),
    })
}

impl<'a> CheckedObject<'a> {
    /// The bytes of the object file.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its license, as the kernel will see it; empty for none.
    #[must_use]
    pub fn license(&self) -> &CStr {
        &self.license
    }

    /// The names of its programs.
    #[must_use]
    pub fn programs(&self) -> &[&'a str] {
        &self.programs
    }

    /// The programs, each with its hook.
    pub fn hooks(&self) -> impl Iterator<Item = (&'a str, &Hook<'a>)> {
        self.programs.iter().copied().zip(&self.hooks)
    }

    /// The types that its relocations ask about; none if a part of the kernel's types cannot answer them.
    #[must_use]
    pub fn roots(&self) -> Option<&Roots> {
        self.roots.as_ref()
    }
}

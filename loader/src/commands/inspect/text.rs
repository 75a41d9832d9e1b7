//! The report for people.

use std::fmt::{self, Display};
use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};

use super::plain::{Names, Plain};
use super::view::{Code, MemoryPlace, Shown};
use super::{Head, Report, Summary, Verdict, screen};
use crate::object::facts::{Callback, ExternFacts, FunctionFacts, MapFacts, SectionFacts, VariableFacts, hex};
use crate::output::line::Line;

impl Display for MemoryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u32| if count == 1 { "" } else { "s" };
        match *self {
            MemoryPlace::Bits { bits, at } => write!(f, "{bits} bit{} at bit {at}", plural(bits)),
            MemoryPlace::Bytes { bytes, at: None } => write!(f, "{bytes} byte{}", plural(bytes)),
            MemoryPlace::Bytes { bytes, at: Some(at) } => write!(f, "{bytes} byte{} at {at}", plural(bytes)),
        }
    }
}

impl Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A character to the formatter would cost a call of memcpy.
        let mut pairs = String::with_capacity(self.bytes.len() / 2 * 3);
        for (number, digit) in self.bytes.chars().enumerate() {
            if number > 0 && number % 2 == 0 {
                pairs.push(' ');
            }
            pairs.push(digit);
        }
        write!(f, "{pairs}  {}", self.text)
    }
}

/// The report for people.
pub(super) struct Text<'w> {
    out: BufWriter<&'w mut dyn Write>,
    /// The lines about relocations. They follow the verdict, which is known only after the last relocation.
    relocations: Line,
    /// The program whose relocations are being listed.
    program: Option<String>,
}

impl<'w> Text<'w> {
    /// A report to this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Text { out: BufWriter::new(out), relocations: Line::default(), program: None }
    }

    /// Adds the lines of a relocation.
    fn list(&mut self, shown: &Shown<'_>) -> io::Result<()> {
        let out = &mut self.relocations;
        let name = shown.label.or(shown.program).unwrap_or(shown.section);
        if self.program.as_deref() != Some(name) {
            writeln!(out, "  {}", Plain(name))?;
            self.program = Some(name.to_owned());
        }
        let (local, target) = (shown.local.as_ref(), shown.target.as_ref());
        let access = local.map_or("?", |local| &local.access);
        write!(out, "    {:>5}  {:<14} {}", shown.insn, shown.kind, Plain(access))?;
        match local {
            Some(local) if !local.which.is_empty() => write!(out, "{}", Plain(&local.which))?,
            Some(local) if shown.is_enumval => write!(out, " of {}", Plain(&local.ty))?,
            _ => {}
        }
        out.write_all(b": ")?;
        let there = target.and_then(|target| target.place);
        let value = local.and_then(|local| local.value);
        if let Some(value) = value {
            write!(out, "{value} here")?;
            // A size that is the same on both sides is shown once.
            if let Some(here) = local.and_then(|local| local.place).filter(|here| there != Some(*here)) {
                write!(out, " ({here})")?;
            }
        }
        let comma = if value.is_some() { ", " } else { "" };
        match (shown.outcome, shown.value) {
            ("applied", Some(value)) => write!(out, "{comma}{value} there{}", There { shown, place: there })?,
            ("unresolved", _) => {}
            (outcome, _) => write!(out, "{comma}{outcome}{}", There { shown, place: there })?,
        }
        if let Some(why) = shown.why {
            write!(out, ": {}", Plain(why))?;
        }
        if let Some(source) = &shown.source {
            write!(out, "  [{}:{}]", Plain(source.file), source.line)?;
        }
        write!(out, "\n             {}\n", shown.before)?;
        if shown.after != shown.before {
            writeln!(out, "          -> {}", shown.after)?;
        }
        Ok(())
    }
}

/// The text in brackets: the access in the target's types, if it differs, and the part of memory that the access is about.
struct There<'s> {
    shown: &'s Shown<'s>,
    place: Option<MemoryPlace>,
}

impl Display for There<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accesses = self.shown.local.as_ref().zip(self.shown.target.as_ref());
        let accesses = accesses.map(|(local, target)| (local.access.as_str(), target.access.as_str()));
        let other = accesses.filter(|(here, there)| here != there && !there.is_empty()).map(|(_, there)| Plain(there));
        match (other, self.place) {
            (Some(access), Some(place)) => write!(f, " ({access}, {place})"),
            (Some(access), None) => write!(f, " ({access})"),
            (None, Some(place)) => write!(f, " ({place})"),
            (None, None) => Ok(()),
        }
    }
}

fn title(out: &mut impl Write, name: &str, count: usize) -> io::Result<()> {
    writeln!(out, "\n{name} ({count})")
}

/// A line of names, left out if there are none.
fn item<T: AsRef<str>>(out: &mut impl Write, name: &str, names: &[T]) -> io::Result<()> {
    if names.is_empty() { Ok(()) } else { writeln!(out, "    {name:<10}{}", Names(names)) }
}

fn function(out: &mut impl Write, function: &FunctionFacts<'_>) -> io::Result<()> {
    write!(out, "  {}: {} instructions", Plain(function.label.as_deref().unwrap_or(function.name)), function.insns)?;
    if function.insns_total != function.insns {
        write!(out, " ({} with the functions it calls)", function.insns_total)?;
    }
    writeln!(out)?;
    if let Some(kind) = function.hook {
        write!(out, "    {:<10}{}", "hook", Plain(kind))?;
        if let Some(target) = function.target {
            write!(out, " {}", Plain(target))?;
        }
        out.write_all(if function.target_in_btf == Some(false) { b" (not in this BTF)" } else { b"" })?;
        match function.program_type {
            Some(ty) => write!(out, ", type {ty}")?,
            None => out.write_all(b", not known to libbpf")?,
        }
        out.write_all(if function.sleepable { b", may sleep" } else { b"" })?;
        out.write_all(if function.autoload { b"\n" } else { b", not loaded by default\n" })?;
    }
    item(out, "helpers", &function.helpers)?;
    item(out, "kfuncs", &function.kfuncs)?;
    item(out, "calls", &function.calls)?;
    item(out, "maps", &function.maps)?;
    item(out, "variables", &function.variables)?;
    item(out, "externs", &function.externs)?;
    if !function.provable {
        item(
            out,
            "provable",
            &["no: only its loader knows the values of its externs and the addresses of its kfuncs"],
        )?;
    }
    Ok(())
}

/// A key or a value of a map: its size, and its type if known.
fn size(size: Option<u32>, ty: Option<&str>) -> String {
    match (size, ty) {
        (None, _) => "unset".to_owned(),
        (Some(size), None) => format!("{size} bytes"),
        (Some(size), Some(ty)) => format!("{size} bytes ({})", Plain(ty)),
    }
}

fn map(out: &mut impl Write, map: &MapFacts, inside: &str, name: &str) -> io::Result<()> {
    let (key, value) = (size(map.key_size, map.key.as_deref()), size(map.value_size, map.value.as_deref()));
    write!(out, "  {inside}{}: {}, key {key}, value {value}, entries ", Plain(name), map.map_type)?;
    match map.max_entries {
        Some(entries) => write!(out, "{entries}")?,
        None => out.write_all(b"unset")?,
    }
    if map.flags != 0 {
        write!(out, ", flags {:#x} ({})", map.flags, Names(&map.flag_names))?;
    }
    out.write_all(if map.pinned { b", pinned by name" } else { b"" })?;
    out.write_all(if map.implicit { b", made by libbpf for the variables" } else { b"" })?;
    out.write_all(if map.autocreate { b"\n" } else { b", made only if its loader says so\n" })?;
    for Callback { member, program } in &map.callbacks {
        writeln!(out, "    {}: program {}", Plain(member), Plain(program))?;
    }
    match &map.inner {
        Some(inner) => self::map(out, inner, &format!("{inside}  inside "), name),
        None => Ok(()),
    }
}

fn variable(out: &mut impl Write, variable: &VariableFacts<'_>) -> io::Result<()> {
    write!(out, "  {}:", Plain(variable.name))?;
    if let Some(ty) = &variable.ty {
        write!(out, " {}", Plain(ty))?;
    }
    write!(out, ", {} bytes at {} of {}", variable.size, variable.offset, Plain(variable.section))?;
    if let Some(value) = variable.value.filter(|value| value.iter().any(|byte| *byte != 0)) {
        write!(out, " = {}", hex(value))?;
    }
    writeln!(out)
}

/// A symbol that the object expects from outside, such as a kernel function.
fn expected(out: &mut impl Write, one: &ExternFacts<'_>) -> io::Result<()> {
    if let Some(kind) = one.kind {
        write!(out, "{kind} ")?;
    }
    write!(out, "{}", Plain(one.name))?;
    out.write_all(if one.weak { b" (may be missing)" } else { b"" })?;
    out.write_all(if one.in_btf == Some(false) { b" (not in this BTF)" } else { b"" })
}

fn section(out: &mut impl Write, section: &SectionFacts<'_>) -> io::Result<()> {
    let (kind, flags, name) = (&section.section_type, &section.flags, Plain(section.name));
    writeln!(out, "  {:>8} bytes at {:>8}  {kind:<10} {flags:<3} {name}", section.size, section.offset)
}

/// All of the report except the text about relocations, which is passed as `relocations`.
fn report(out: &mut impl Write, head: &Head<'_>, verdict: &Verdict, relocations: &[u8]) -> io::Result<()> {
    screen::put(out, head, verdict, &Summary::of(&head.facts, verdict))?;
    screen::put_problems(out, verdict)?;
    screen::put_notes(out, verdict)?;
    let facts = &head.facts;
    title(out, "programs", facts.programs.len())?;
    facts.programs.iter().try_for_each(|program| function(out, program))?;
    if !facts.functions.is_empty() {
        title(out, "functions that programs call", facts.functions.len())?;
        facts.functions.iter().try_for_each(|one| function(out, one))?;
    }
    title(out, "maps", facts.maps.len())?;
    facts.maps.iter().try_for_each(|one| map(out, one, "", &one.name))?;
    title(out, "variables", facts.variables.len())?;
    facts.variables.iter().try_for_each(|one| variable(out, one))?;
    if !facts.externs.is_empty() {
        out.write_all(b"\nexpected from outside: ")?;
        for (number, one) in facts.externs.iter().enumerate() {
            out.write_all(if number == 0 { b"" } else { b", " })?;
            expected(out, one)?;
        }
        writeln!(out)?;
    }
    out.write_all(b"\nCO-RE relocations\n")?;
    out.write_all(relocations)?;
    title(out, "sections", facts.sections.len())?;
    facts.sections.iter().try_for_each(|one| section(out, one))?;
    out.flush()
}

impl Report for Text<'_> {
    /// Writes nothing yet: the verdict comes first, and needs all relocations.
    fn head(&mut self, _: &Head<'_>) -> Result<()> {
        Ok(())
    }

    fn relocation(&mut self, shown: &Shown<'_>) -> Result<()> {
        self.list(shown).context("writing the report")
    }

    fn end(&mut self, head: &Head<'_>, verdict: &Verdict) -> Result<()> {
        report(&mut self.out, head, verdict, self.relocations.take()).context("writing the report")
    }
}

//! The report for people.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::gathered::Gathered;
use super::view::{About, AboutText, Code, MemoryPlace, Record};
use super::{Head, Report, Verdict};
use crate::object::facts::{Callback, ExternFacts, FunctionFacts, MapFacts, SectionFacts, VariableFacts};

/// For people.
pub(super) struct Text<'w> {
    out: Gathered<'w>,
    /// The program whose relocations are being listed.
    program: Option<String>,
    /// Where text is made that is to be kept.
    scratch: Gathered<'static>,
}

/// Adds how much of memory an access is about.
fn place(out: &mut Gathered<'_>, place: MemoryPlace) {
    let plural = |count: u32| if count == 1 { "" } else { "s" };
    match place {
        MemoryPlace::Bits { bits, at } => {
            out.number(bits.into()).put(" bit").put(plural(bits)).put(" at bit ").number(at.into())
        }
        MemoryPlace::Bytes { bytes, at: None } => out.number(bytes.into()).put(" byte").put(plural(bytes)),
        MemoryPlace::Bytes { bytes, at: Some(at) } => {
            out.number(bytes.into()).put(" byte").put(plural(bytes)).put(" at ").number(at.into())
        }
    };
}

/// What is known of a relocation's subject.
fn about(out: &mut Gathered<'_>, about: &About<'_>) -> AboutText {
    let (local, target) = (about.local(), about.target());
    let accessed = local.map(|local| local.access());
    out.left(&about.kind(), 14).put(" ").plain(accessed.as_deref().unwrap_or("?"));
    if let Some(local) = local.filter(|_| about.is_enumval()) {
        out.put(" of ").plain(&local.ty());
    }
    out.put(": ");
    let there_place = target.and_then(|target| target.place());
    let value = local.and_then(|local| local.value);
    if let Some(value) = value {
        out.signed(value).put(" here");
        // Once is enough of what is the same here and there.
        if let Some(here) = local.and_then(|local| local.place()).filter(|here| there_place != Some(*here)) {
            out.put(" (");
            place(out, here);
            out.put(")");
        }
    }
    let there = out.len();
    let path = target.map(|target| target.access()).filter(|path| accessed.as_ref().is_some_and(|here| here != path));
    if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
        out.put(" (").plain(path);
    }
    if let Some(there_place) = there_place {
        out.put(if out.len() == there { " (" } else { ", " });
        place(out, there_place);
    }
    out.put(if out.len() == there { "" } else { ")" });
    AboutText { text: out.take(), there, has_value: value.is_some() }
}

/// An instruction: its bytes, and what it does.
fn code(code: &Code) -> String {
    let mut line = String::with_capacity(code.bytes.len() * 2 + code.text.len());
    for (number, digit) in code.bytes.chars().enumerate() {
        if number > 0 && number % 2 == 0 {
            line.push(' ');
        }
        line.push(digit);
    }
    line + "  " + &code.text
}

impl<'w> Text<'w> {
    /// To this writer.
    pub(super) fn new(out: &'w mut dyn Write) -> Self {
        Text { out: Gathered::new(out), program: None, scratch: Gathered::kept() }
    }

    fn title(&mut self, what: &str, count: usize) {
        self.out.put("\n").put(what).put(" (").number(count as u64).put(")\n");
    }

    /// A line of names, left out if there are none.
    fn item<T: AsRef<str>>(&mut self, name: &str, names: &[T]) {
        if !names.is_empty() {
            self.out.put("    ").left(name, 10).list(names).put("\n");
        }
    }

    fn section(&mut self, section: &SectionFacts<'_>) {
        self.out.put("  ").right(section.size, 8).put(" bytes at ").right(section.offset, 8).put("  ");
        self.out.left(&section.section_type, 10).put(" ").left(&section.flags, 3).put(" ");
        self.out.plain(section.name).put("\n");
    }

    fn function(&mut self, function: &FunctionFacts<'_>) {
        let out = &mut self.out;
        out.put("  ").plain(function.name).put(": ").number(function.insns as u64).put(" instructions");
        if function.insns_total != function.insns {
            out.put(" (").number(function.insns_total as u64).put(" with the functions it calls)");
        }
        out.put("\n");
        if let Some(kind) = function.hook {
            out.put("    ").left("hook", 10).plain(kind);
            if let Some(target) = function.target {
                out.put(" ").plain(target);
            }
            out.put(if function.target_in_btf == Some(false) { " (not in this BTF)" } else { "" });
            match function.program_type {
                Some(ty) => out.put(", type ").put(ty),
                None => out.put(", not known to libbpf"),
            };
            out.put(if function.sleepable { ", may sleep" } else { "" });
            out.put(if function.autoload { "" } else { ", not loaded by default" }).put("\n");
        }
        self.item("helpers", &function.helpers);
        self.item("kfuncs", &function.kfuncs);
        self.item("calls", &function.calls);
        self.item("maps", &function.maps);
        self.item("variables", &function.variables);
        self.item("externs", &function.externs);
        if !function.provable {
            self.item("provable", &["no: what it takes from outside only its loader knows"]);
        }
    }

    fn size(&mut self, what: &str, size: Option<u32>, ty: &Option<Arc<str>>) {
        self.out.put(what);
        let Some(size) = size else {
            self.out.put("unset");
            return;
        };
        self.out.number(size.into()).put(" bytes");
        if let Some(ty) = ty {
            self.out.put(" (").plain(ty).put(")");
        }
    }

    fn map(&mut self, map: &MapFacts, inside: &str, name: &str) {
        self.out.put("  ").put(inside).plain(name).put(": ").put(&map.map_type);
        self.size(", key ", map.key_size, &map.key);
        self.size(", value ", map.value_size, &map.value);
        self.out.put(", entries ");
        match map.max_entries {
            Some(entries) => self.out.number(entries.into()),
            None => self.out.put("unset"),
        };
        if map.flags != 0 {
            self.out.put(", flags ").show(format_args!("{:#x}", map.flags)).put(" (").list(&map.flag_names).put(")");
        }
        self.out.put(if map.pinned { ", pinned by name" } else { "" });
        self.out.put(if map.implicit { ", made by libbpf for the variables" } else { "" });
        self.out.put(if map.autocreate { "" } else { ", made only if its loader says so" }).put("\n");
        for Callback { member, program } in &map.callbacks {
            self.out.put("    ").plain(member).put(": program ").plain(program).put("\n");
        }
        if let Some(inner) = &map.inner {
            self.map(inner, &format!("{inside}  inside "), name);
        }
    }

    fn variable(&mut self, variable: &VariableFacts<'_>) {
        self.out.put("  ").plain(variable.name).put(":");
        if let Some(ty) = &variable.ty {
            self.out.put(" ").plain(ty);
        }
        self.out.put(", ").number(variable.size).put(" bytes at ").number(variable.offset).put(" of ");
        self.out.plain(variable.section);
        if let Some(value) = variable.value.filter(|value| value.iter().any(|byte| *byte != 0)) {
            self.out.put(" = ").hex(value);
        }
        self.out.put("\n");
    }

    fn expected(&mut self, one: &ExternFacts<'_>) {
        if let Some(kind) = one.kind {
            self.out.put(kind).put(" ");
        }
        self.out.plain(one.name).put(if one.weak { " (may be missing)" } else { "" });
        self.out.put(if one.in_btf == Some(false) { " (not in this BTF)" } else { "" });
    }
}

impl Report for Text<'_> {
    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        let (facts, out) = (&head.facts, &mut self.out);
        out.put("object       ").put(&head.object).put("\n");
        out.put("sha256       ").put(&head.sha256).put("\n");
        out.show(format_args!(
            "file         {} bytes, ELF for BPF, {}-endian, {} sections, {} symbols, {} relocations, {} types\n",
            head.bytes,
            facts.endian,
            facts.sections.len(),
            facts.symbols,
            facts.elf_relocations,
            facts.types
        ));
        out.put("license      ").plain(facts.license.as_deref().unwrap_or("none")).put("\n");
        match &head.btf {
            Some(btf) => {
                out.show(format_args!("resolved by  {} ({} types, {} bytes)\n", btf.path, btf.types, btf.bytes))
            }
            None => out.put("resolved by  nothing: this host has no BTF, --btf FILE takes another's\n"),
        };
        self.title("sections", facts.sections.len());
        facts.sections.iter().for_each(|section| self.section(section));
        self.title("programs", facts.programs.len());
        facts.programs.iter().for_each(|program| self.function(program));
        if !facts.functions.is_empty() {
            self.title("functions that programs call", facts.functions.len());
            facts.functions.iter().for_each(|function| self.function(function));
        }
        self.title("maps", facts.maps.len());
        facts.maps.iter().for_each(|map| self.map(map, "", &map.name));
        self.title("variables", facts.variables.len());
        facts.variables.iter().for_each(|variable| self.variable(variable));
        if !facts.externs.is_empty() {
            self.out.put("\nexpected from outside: ");
            for (number, one) in facts.externs.iter().enumerate() {
                self.out.put(if number == 0 { "" } else { ", " });
                self.expected(one);
            }
            self.out.put("\n");
        }
        self.out.put("\nCO-RE relocations\n");
        self.out.check().context("writing the report")
    }

    fn relocation(&mut self, record: &Record<'_, '_>) -> Result<()> {
        let out = &mut self.out;
        let name = record.program.unwrap_or(record.section);
        if self.program.as_deref() != Some(name) {
            out.put("  ").plain(name).put("\n");
            self.program = Some(name.to_owned());
        }
        let about = record.about.text(|subject| about(&mut self.scratch, subject));
        let (here, there) = about.text.split_at_checked(about.there).unwrap_or((&about.text, ""));
        out.put("    ").right(record.insn as u64, 5).put("  ").put(here);
        let comma = if about.has_value { ", " } else { "" };
        match (record.outcome, record.value) {
            ("applied", Some(value)) => out.put(comma).signed(value).put(" there").put(there),
            ("unresolved", _) => out,
            (outcome, _) => out.put(comma).put(outcome).put(there),
        };
        if let Some(why) = record.why {
            out.put(": ").plain(why);
        }
        if let Some(source) = &record.source {
            out.put("  [").plain(source.file).put(":").number(source.line.into()).put("]");
        }
        out.put("\n             ").put(record.before.text(code)).put("\n");
        if **record.after != **record.before {
            out.put("          -> ").put(record.after.text(code)).put("\n");
        }
        out.check().context("writing the report")
    }

    fn written(&self) -> u64 {
        self.out.total()
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        self.out.show(format_args!(
            "\n{} relocations: {} applied, {} poisoned, {} refused, {} skipped",
            verdict.relocations_total, verdict.applied, verdict.poisoned, verdict.refused, verdict.skipped
        ));
        if verdict.not_looked_at > 0 {
            self.out.put(", ").number(verdict.not_looked_at as u64).put(" not looked at");
        }
        self.out.put("\n");
        for problem in &verdict.problems {
            self.out.put("  ").plain(problem).put("\n");
        }
        if verdict.more_problems > 0 {
            self.out.put("  and ").number(verdict.more_problems as u64).put(" more\n");
        }
        match (&verdict.ended, verdict.runs) {
            (Some(why), _) => self.out.put("not decided: ").plain(why),
            (None, None) => self.out.put("not resolved: there is no BTF to say whether it would run"),
            (None, Some(true)) => self.out.put("as far as relocations decide, it would run there"),
            (None, Some(false)) => self.out.put("it would not run there"),
        };
        self.out.put("\n").flush().context("writing the report")
    }
}

//! The first screen of the report for people: the verdict and its reasons, in at most 40 lines.

use std::io::{self, Write};

use super::plain::Plain;
use super::summary::Summary;
use super::{Head, Verdict};

/// The most lines of each list. With titles, and with 9 lines before the lists, the screen has 40 lines.
const MOST_PROBLEMS: usize = 7;
const MOST_HOOKS: usize = 9;
const MOST_ABSENT: usize = 5;

/// Writes the first screen.
pub(super) fn put(out: &mut impl Write, head: &Head<'_>, verdict: &Verdict, summary: &Summary<'_>) -> io::Result<()> {
    let facts = &head.facts;
    match (&verdict.ended, verdict.runs) {
        (Some(why), Some(false)) => {
            writeln!(out, "verdict      it would not run there, and the report is not complete: {}", Plain(why))?
        }
        (Some(why), _) => writeln!(out, "verdict      not decided: {}", Plain(why))?,
        (None, None) if !verdict.undecided.is_empty() => {
            writeln!(out, "verdict      not decided: a module of that kernel may have it")?
        }
        (None, None) => writeln!(out, "verdict      not resolved: there is no BTF to say whether it would run")?,
        (None, Some(true)) => writeln!(out, "verdict      as far as relocations decide, it would run there")?,
        (None, Some(false)) => writeln!(out, "verdict      it would not run there")?,
    }
    writeln!(out, "not judged   {}", summary.not_judged())?;
    let Verdict { relocations_total, applied, poisoned, refused, skipped, not_looked_at, .. } = verdict;
    write!(out, "relocations  {relocations_total} relocations: {applied} applied, {poisoned} poisoned, ")?;
    write!(out, "{refused} refused, {skipped} skipped")?;
    if *not_looked_at > 0 {
        write!(out, ", {not_looked_at} not looked at")?;
    }
    write!(out, "\nobject       {}\nsha256       {}\n", head.object, head.sha256)?;
    write!(out, "file         {} bytes", head.bytes)?;
    if let Some(endian) = facts.endian {
        let (sections, symbols) = (facts.sections.len(), facts.symbols);
        write!(out, ", ELF for BPF, {endian}-endian, {sections} sections, {symbols} symbols, ")?;
        write!(out, "{} relocations, {} types", facts.elf_relocations, facts.types)?;
    }
    writeln!(out, "\nlicense      {}", Plain(facts.license.as_deref().unwrap_or("none")))?;
    match &head.btf {
        Some(btf) => writeln!(out, "resolved by  {} ({} types, {} bytes)", btf.path, btf.types, btf.bytes)?,
        None if facts.endian.is_none() => writeln!(out, "resolved by  nothing: the file could not be read")?,
        None => writeln!(out, "resolved by  nothing: this host has no BTF, --btf FILE takes another's")?,
    }

    let problems = verdict.problems.len() + verdict.more_problems;
    if problems > 0 {
        writeln!(out, "\nproblems ({problems})")?;
        put_lines(out, verdict.problems.iter().take(MOST_PROBLEMS))?;
        put_more(out, problems, MOST_PROBLEMS, ", all of them below")?;
    }
    // Without problems, there is room for these.
    let undecided = verdict.undecided.len() + verdict.more_undecided;
    if problems == 0 && undecided > 0 {
        writeln!(out, "\nundecided ({undecided})")?;
        put_lines(out, verdict.undecided.iter().take(MOST_PROBLEMS))?;
        put_more(out, undecided, MOST_PROBLEMS, ", more of them with --json")?;
    }
    if !summary.hooks.is_empty() {
        writeln!(out, "\nprograms by type and hook ({})", facts.programs.len())?;
        for count in summary.hooks.iter().take(MOST_HOOKS) {
            write!(out, "  {:>5}  {}, ", count.programs, Plain(count.hook))?;
            match count.program_type {
                Some(program_type) => write!(out, "type {program_type}")?,
                None => write!(out, "not known to libbpf")?,
            }
            if count.not_loaded > 0 {
                write!(out, ", {} not loaded by default", count.not_loaded)?;
            }
            if count.failing > 0 {
                write!(out, ", {} would fail", count.failing)?;
            }
            writeln!(out)?;
        }
        put_more(out, summary.hooks.len(), MOST_HOOKS, "")?;
    }
    if !summary.absent.is_empty() {
        writeln!(out, "\nhooks that this BTF does not have ({})", summary.absent.len())?;
        for absent in summary.absent.iter().take(MOST_ABSENT) {
            let (hook, target, program) = (Plain(absent.hook), Plain(absent.target), Plain(absent.program));
            let loaded = if absent.autoload { "" } else { ", not loaded by default" };
            writeln!(out, "  {hook} {target}: program {program}{loaded}")?;
        }
        put_more(out, summary.absent.len(), MOST_ABSENT, "")?;
    }
    Ok(())
}

/// Writes all problems that were kept, if the first screen had no room for them.
pub(super) fn put_problems(out: &mut impl Write, verdict: &Verdict) -> io::Result<()> {
    let problems = verdict.problems.len() + verdict.more_problems;
    if problems <= MOST_PROBLEMS {
        return Ok(());
    }
    writeln!(out, "\nall problems ({problems})")?;
    put_lines(out, &verdict.problems)?;
    put_more(out, problems, verdict.problems.len(), "")
}

/// Writes what a reader should know, although it keeps nothing from loading.
pub(super) fn put_notes(out: &mut impl Write, verdict: &Verdict) -> io::Result<()> {
    let notes = verdict.notes.len() + verdict.more_notes;
    if notes == 0 {
        return Ok(());
    }
    writeln!(out, "\nnotes ({notes})")?;
    put_lines(out, &verdict.notes)?;
    put_more(out, notes, verdict.notes.len(), "")
}

fn put_lines<'l>(out: &mut impl Write, lines: impl IntoIterator<Item = &'l String>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(out, "  {}", Plain(line)))
}

/// Writes how many entries there are beyond the shown ones.
fn put_more(out: &mut impl Write, all: usize, shown: usize, rest: &str) -> io::Result<()> {
    if all > shown { writeln!(out, "  and {} more{rest}", all - shown) } else { Ok(()) }
}

//! `xctl inspect`: what an object holds, and what its CO-RE relocations come to on the kernel that a BTF describes.
//!
//! Needs no privilege and asks the kernel nothing but its BTF file.

mod gathered;
mod json;
mod text;
mod view;

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use self::json::Json;
use self::text::Text;
use self::view::{Lately, Record, View};
use super::{btf_path, read_btf};
use crate::fault::Exit;
use crate::object::facts::{ExternFacts, Facts, hex};
use crate::object::relo::{Outcome, Relocated, Relocations, Resolution, essential_name, type_name};
use crate::object::{Btf, BtfExt, KERNEL_BTF, ObjectFile, Program, loads, second_opinion, struct_ops};

/// Version of the JSON document.
const SCHEMA: u32 = 1;

/// The running kernel's types, and its modules'.
const MODULES: &str = "/sys/kernel/btf";

/// Problems that are listed; a hostile file has as many as it likes.
const MOST_PROBLEMS: usize = 100;

/// Bytes of the report on an object's relocations, for each megabyte that it has or begins. Twice what the largest have.
const MOST_WRITTEN: u64 = 12 << 20;

/// Poisoned instructions whose reason is kept until it is known whether they are reached.
const MOST_POISONED: usize = 4096;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// The object; the one inside the binary if there is none.
    pub object: Option<PathBuf>,
    /// BTF to resolve against, instead of the running kernel's: raw, or an ELF file with a `.BTF` section.
    pub btf: Option<PathBuf>,
    /// One JSON document instead of text.
    pub json: bool,
}

/// The BTF that relocations were resolved against.
#[derive(Debug, Serialize)]
struct Target {
    path: String,
    types: usize,
    bytes: usize,
}

/// What is known before the first relocation.
#[derive(Debug, Serialize)]
struct Head<'a> {
    schema: u32,
    object: String,
    sha256: String,
    bytes: usize,
    #[serde(flatten)]
    facts: Facts<'a>,
    btf: Option<Target>,
}

/// Why not all relocations were looked at.
enum Ended {
    /// The object asks and compares more than is spent on one of its size: the relocation that was too much.
    Spent(String),
    /// So much is told of them that it is more than is written of an object of its size: the last one.
    Long(String),
    /// They could not be written.
    Failed(anyhow::Error),
}

/// How the relocations came out, and what follows.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    relocations_total: usize,
    applied: usize,
    poisoned: usize,
    refused: usize,
    skipped: usize,
    /// Those of them that the report ends before.
    not_looked_at: usize,
    /// Why it ends there: the object asks and compares more than is spent on one of its size, or more is told of it; null if
    /// it does not.
    ended: Option<String>,
    /// Why the object, or a program in it, would not load.
    problems: Vec<String>,
    /// Problems beyond those.
    more_problems: usize,
    /// Whether everything in it would load, as far as its relocations decide that; null without a BTF, and if not all of
    /// them were looked at.
    runs: Option<bool>,
}

impl Verdict {
    fn problem(&mut self, what: impl FnOnce() -> String) {
        match self.problems.len() < MOST_PROBLEMS {
            true => self.problems.push(what()),
            false => self.more_problems += 1,
        }
    }
}

/// Writes what the object holds to `out`.
///
/// # Errors
/// Files that cannot be read; with [`Exit::Object`], an object that is refused, or that would not run on the kernel that
/// the BTF describes.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let (bytes, shown) = super::object(args.object.as_deref())?;
    let modules = args.btf.is_none().then_some(Path::new(MODULES));
    report(&bytes, &shown, || target(args), modules, args.json, out)
}

/// The same of an object that was read: `shown` is what to call it. `target` gives the types to resolve against, and where
/// they are from; asked once the object is known to be one. In `modules` are those of the kernel's modules.
///
/// # Errors
/// As [`run`].
pub fn report(
    bytes: &[u8],
    shown: &str,
    target: impl FnOnce() -> Result<Option<(Btf, String)>>,
    modules: Option<&Path>,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let shown = shown.to_owned();
    let refused = |error: anyhow::Error| error.context(shown.clone()).context(Exit::Object);
    let object = ObjectFile::parse(bytes).map_err(|error| refused(error.into()))?;
    second_opinion(bytes, &object).map_err(|error| refused(error.into()))?;
    let btf = object.btf.map(Btf::parse).transpose().map_err(|error| refused(anyhow!(error).context("its types")))?;
    if let Some((btf, id)) = btf.as_ref().and_then(|btf| Some((btf, btf.cycle()?))) {
        return Err(refused(anyhow!("its types: {} {id} contains itself", type_name(btf, id))));
    }
    let (target, target_facts) = target()?
        .map(|(btf, path)| {
            let facts = Target { path, types: btf.len(), bytes: btf.bytes().len() };
            (btf, facts)
        })
        .unzip();

    let nothing = Btf::nothing();
    let local = btf.as_ref().unwrap_or(&nothing);
    let ext = object.btf_ext.filter(|_| btf.is_some()).map(|data| BtfExt::parse(data, local)).transpose();
    let ext = ext.map_err(|error| refused(error.into()))?.unwrap_or_default();
    let code = Relocations::new(bytes, &object, local, &ext, target.as_ref());
    let mut code = code.map_err(|error| refused(error.into()))?;
    let mut facts = Facts::of(bytes, &object, btf.as_ref(), &code).map_err(|what| refused(anyhow!(what)))?;
    if let Some(target) = &target {
        facts.look_up_targets(target);
        if let Some(modules) = modules {
            look_in_modules(&mut facts, modules);
        }
    }

    let sha256 = hex(&hmac_sha256::Hash::hash(bytes));
    let head = Head { schema: SCHEMA, object: shown.clone(), sha256, bytes: bytes.len(), facts, btf: target_facts };
    let mut writer: Box<dyn Report> = if json { Box::new(Json::new(out)) } else { Box::new(Text::new(out)) };
    writer.head(&head)?;

    let mut verdict = Verdict::default();
    if target.as_ref().is_some_and(|target| target.is_big_endian() == object.is_little_endian) {
        verdict.problem(|| "the object and the BTF are of different byte order".to_owned());
    }
    if let Some(target) = &target {
        loads::refused(&object, btf.as_ref(), &head.facts).into_iter().for_each(|what| verdict.problem(|| what));
        let maps = &head.facts.struct_ops;
        // Modules are asked once for all of these, and only if the kernel lacks one.
        let known = LazyCell::new(|| {
            let names = struct_ops::value_types(maps, local);
            let there = modules.map(|folder| named_in_modules(folder, &names)).unwrap_or_default();
            (names, there)
        });
        let in_modules = |name: &str| {
            let (names, there) = &*known;
            names
                .binary_search_by(|one| one.as_slice().cmp(name.as_bytes()))
                .is_ok_and(|at| there.get(at) == Some(&true))
        };
        let misfits = struct_ops::misfits(maps, local, target, in_modules);
        misfits.into_iter().for_each(|what| verdict.problem(|| what));
    }
    let view = View::new(local, target.as_ref(), &ext, !object.is_little_endian);
    let lately = Lately::new();
    let most_written = writer.written() + MOST_WRITTEN * (bytes.len() as u64).div_ceil(1 << 20);
    let mut poisoned = Poisoned::new();
    let ended = code.run(
        |_| true,
        |relocated| {
            let record = view.record(&lately, relocated);
            if relocated.spent {
                return Err(Ended::Spent(refusal(relocated, &record)));
            }
            let loads = |program: &Program<'_>| head.facts.loads(&object, program);
            count(&mut verdict, &mut poisoned, relocated, &record, loads);
            writer.relocation(&record).map_err(Ended::Failed)?;
            if writer.written() > most_written { Err(Ended::Long(relocated.place())) } else { Ok(()) }
        },
    );
    verdict.not_looked_at = code.len() - verdict.relocations_total;
    verdict.relocations_total = code.len();
    let left = verdict.not_looked_at;
    match ended {
        Err(Ended::Failed(error)) => return Err(error),
        Err(Ended::Spent(why)) => {
            verdict.ended = Some(format!("{why}; this and what follows, {left} relocations, were not looked at"));
        }
        Err(Ended::Long(place)) if left > 0 => {
            let why = "the report is longer than is written of an object of its size";
            verdict.ended = Some(format!("{place}: {why}; what follows, {left} relocations, was not looked at"));
        }
        Ok(()) | Err(Ended::Long(_)) => {}
    }
    if let Some(why) = verdict.ended.clone() {
        writer.verdict(&verdict)?;
        return Err(refused(anyhow!(why)));
    }
    if target.is_some() {
        poisoned_programs(&object, &head.facts, &code, local, &poisoned, &mut verdict);
        verdict.runs = Some(verdict.problems.is_empty());
    }
    writer.verdict(&verdict)?;
    if verdict.runs == Some(false) {
        let first = verdict.problems.first().map_or("", String::as_str);
        let more = verdict.problems.len().saturating_sub(1) + verdict.more_problems;
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        let path = head.btf.as_ref().map_or("", |target| &target.path);
        return Err(anyhow!("{shown} would not run with the types of {path}: {first}{more}").context(Exit::Object));
    }
    Ok(())
}

/// What the running kernel does not have a module may: libbpf looks there too.
fn look_in_modules(facts: &mut Facts<'_>, folder: &Path) {
    let name = |one: &ExternFacts<'_>| essential_name(one.name).as_bytes().to_owned();
    let absent = |one: &&mut ExternFacts<'_>| one.in_btf == Some(false);
    let mut names: Vec<_> = facts.externs.iter_mut().filter(absent).map(|one| name(one)).collect();
    names.sort_unstable();
    names.dedup();
    let found = named_in_modules(folder, &names);
    for one in facts.externs.iter_mut().filter(absent) {
        let there = names.binary_search(&name(one)).is_ok_and(|at| found.get(at) == Some(&true));
        one.in_btf = Some(there);
    }
}

/// Which of `names`, in their order, the types of the running kernel's modules have. They build on the kernel's, and are not
/// read here: that one has the name decides.
fn named_in_modules(folder: &Path, names: &[Vec<u8>]) -> Vec<bool> {
    let mut there = vec![false; names.len()];
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    for file in files.filter(|path| path.file_name() != Path::new(KERNEL_BTF).file_name()) {
        if names.is_empty() {
            break;
        }
        // Every name ends with NUL, and follows one.
        let Ok(bytes) = fs::read(file) else { continue };
        for found in bytes.split(|byte| *byte == 0) {
            let at = names.partition_point(|name| name.as_slice() < found);
            if names.get(at).is_some_and(|name| name == found) {
                there[at] = true;
            }
        }
    }
    there
}

/// The types to resolve against. Without an explicit choice, it is no failure that this host has none.
fn target(args: &Args) -> Result<Option<(Btf, String)>> {
    let path = btf_path(args.btf.as_deref());
    let bytes = match read_btf(&path) {
        Ok(bytes) => bytes,
        Err(_) if args.btf.is_none() && !path.exists() => return Ok(None),
        Err(error) => bail!(anyhow!(error).context("reading BTF")),
    };
    let btf = Btf::from_cow(bytes).with_context(|| path.display().to_string())?;
    Ok(Some((btf, path.display().to_string())))
}

/// Poisoned instructions by section and byte offset: what they ask, and why they are.
type Poisoned = BTreeMap<(usize, u64), (Option<Rc<Resolution>>, Rc<str>)>;

fn count(
    verdict: &mut Verdict,
    poisoned: &mut Poisoned,
    relocated: &Relocated<'_, '_>,
    record: &Record<'_, '_>,
    loads: impl Fn(&Program<'_>) -> bool,
) {
    verdict.relocations_total += 1;
    match &relocated.outcome {
        Outcome::Applied => verdict.applied += 1,
        Outcome::Poisoned(why) => {
            verdict.poisoned += 1;
            if let Some(program) = relocated.program.filter(|_| poisoned.len() < MOST_POISONED) {
                let place = (program.section_index, relocated.relocation.offset.into());
                poisoned.insert(place, (relocated.resolution.clone(), why.clone()));
            }
        }
        Outcome::Skipped => verdict.skipped += 1,
        Outcome::Unresolved => {}
        Outcome::Refused(_) => {
            verdict.refused += 1;
            // libbpf passes over programs that are not loaded.
            if relocated.program.is_none_or(loads) {
                verdict.problem(|| refusal(relocated, record));
            }
        }
    }
}

/// `program kp_sendmsg, instruction 7, byte_off of sock->sk_protocol: ` and why it is refused.
fn refusal(relocated: &Relocated<'_, '_>, record: &Record<'_, '_>) -> String {
    let (place, about, why) = (relocated.place(), &record.about, record.why.unwrap_or_default());
    format!("{place}, {} of {}: {why}", about.kind(), about.access())
}

/// A problem for every program that reaches an instruction that did not resolve.
fn poisoned_programs(
    object: &ObjectFile<'_>,
    facts: &Facts<'_>,
    code: &Relocations<'_, '_>,
    local: &Btf,
    poisoned: &Poisoned,
    verdict: &mut Verdict,
) {
    if verdict.poisoned == 0 {
        return;
    }
    for (function, index) in loads::reaching_poison(object, facts, code) {
        verdict.problem(|| {
            let why = poisoned.get(&loads::place_of(function, index)).map(|(asked, why)| {
                let access = asked.as_ref().map_or_else(String::new, |asked| asked.local.text(local, asked.kind));
                format!("{access}: {why}")
            });
            let why = why.as_deref().unwrap_or("something is not there");
            format!("program {} reaches instruction {index}: {why}", function.name)
        });
    }
}

/// A form of output.
trait Report {
    fn head(&mut self, head: &Head<'_>) -> Result<()>;
    fn relocation(&mut self, record: &Record<'_, '_>) -> Result<()>;
    /// Bytes so far.
    fn written(&self) -> u64;
    fn verdict(&mut self, verdict: &Verdict) -> Result<()>;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_module_has_is_there() {
        let folder = std::env::temp_dir().join(format!("xctl-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // What is called vmlinux was asked before.
        fs::write(folder.join("vmlinux"), b"\0nowhere\0").unwrap();
        fs::write(folder.join("one"), b"BTF\0in_one\0\0").unwrap();
        fs::write(folder.join("two"), b"BTF\0in_two\0nowhere_else\0").unwrap();
        let one = |name| ExternFacts { name, weak: false, kind: Some("function"), in_btf: Some(false) };
        let mut facts = Facts { externs: vec![one("in_two"), one("nowhere"), one("in_one___v2")], ..Facts::default() };
        look_in_modules(&mut facts, &folder);
        fs::remove_dir_all(&folder).unwrap();
        let found: Vec<_> = facts.externs.iter().map(|one| one.in_btf).collect();
        assert_eq!(found, [Some(true), Some(false), Some(true)]);
    }
}
